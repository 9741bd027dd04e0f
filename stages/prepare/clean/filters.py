"""What keeps a clean record out: too many tokens, another language, repetition, refusal."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.params import Clean
from stages.prepare.clean.languages import language_filter
from stages.prepare.clean.repetition import repeated_share
from stages.prepare.clean.rows import Rejected
from stages.records.record import Record

Filter = Callable[[Record], None]


def chosen_filters(params: Clean) -> list[Filter]:
    """The filters that the parameters switch on. Each raises Rejected for a record that must not be trained on.

    Raises:
        UserError: when one lacks its file or library.
    """
    filters: list[Filter] = []
    if params.refusals:
        filters.append(partial(_no_refusal, phrases=[_plain(phrase) for phrase in params.refusals]))
    if params.max_repetition is not None:
        filters.append(partial(_no_repetition, most=params.max_repetition))
    if params.max_tokens is not None:
        tokenizer = load_tokenizer(Path(params.tokenizer_file))
        filters.append(partial(_few_tokens, tokenizer=tokenizer, most=params.max_tokens))
    if params.languages:
        filters.append(language_filter(params.languages, params.other_languages, params.language_confidence))
    return filters


def load_tokenizer(path: Path) -> Any:
    """A tokenizer.json. Raises UserError when it is missing or none."""
    from tokenizers import Tokenizer  # late: takes longer to load than the stage

    if not path.is_file():
        raise UserError(f"{path} is missing; clean.tokenizer_file must name a tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own for it
        raise UserError(f"{path} is no tokenizer.json: {error}") from None


def _few_tokens(record: Record, tokenizer: Any, most: int) -> None:
    """Tokens of context, prompt and completion; a chat template adds some of its own, which are not counted."""
    texts = [*(message.content for message in record.context), record.prompt, record.completion]
    count = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    if count > most:
        raise Rejected("too_many_tokens", f"{count} tokens without the chat template's; clean.max_tokens is {most}")


def _no_refusal(record: Record, phrases: Sequence[str]) -> None:
    opening = _plain(record.completion)
    for phrase in phrases:
        if opening.startswith(phrase):
            raise Rejected("refusal", f"the completion opens with {phrase!r}, one of clean.refusals")


def _plain(text: str) -> str:
    """For comparison: lower case, straight apostrophes, no quotes or spaces in front."""
    return text.casefold().replace("’", "'").lstrip(" \t\n\"'“‘*")


def _no_repetition(record: Record, most: float) -> None:
    """Of prompts and of answers in words; JSON repeats by nature, and the schema says how much of it is right."""
    answer = "" if record.completion[:1] in ("{", "[") else record.completion
    for column, text in (("prompt", record.prompt), ("completion", answer)):
        if (share := repeated_share(text)) > most:
            detail = f"{share:.0%} of the {column} repeats what it said before; clean.max_repetition is {most:.0%}"
            raise Rejected(f"repetitive_{column}", detail)
