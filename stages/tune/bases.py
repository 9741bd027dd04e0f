"""bases: candidates for the base model beside each other, on the rows that it is to learn, before the first run.

Each candidate is loaded in a process of its own, so that its memory is its own and a broken one ends alone.
"""

import math
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from email.parser import Parser
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import file_digest, tree_digest
from stages.core.run_notes import peak_bytes
from stages.core.yaml_reader import load_yaml
from stages.params.loader import load_params
from stages.records.record import Message, Record, rank, read_records
from stages.scoring.metrics import Share
from stages.tune.estimate import Prices, seconds_of_last_run

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = 2000  # training rows whose tokens are counted
_UNSAID = "not said"


@dataclass(frozen=True, slots=True)
class Answered:
    """How the validation rows were answered; `prompt_tokens` and `answer_tokens` are means."""

    exact_match: Share
    label_accuracy: Share | None
    prompt_tokens: float
    answer_tokens: float
    tokens_per_second: float
    over_context: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one base model is here.

    `fault` says why it cannot be used, and then the fields after it are empty. `memory_mib` is the most that its
    process held, of the card where there is one.
    """

    source: str
    sha256: str
    licence: str
    fault: str = ""
    template: str = ""
    parameters: int = 0
    context: int = 0
    tokens_a_word: float = math.nan
    over_limit: float = math.nan
    zero_shot: Answered | None = None
    few_shot: Answered | None = None
    memory_mib: int = 0


def look_at(sources: Sequence[str], rows: int, shots: int) -> Iterator[Candidate]:
    """Each candidate in turn: `hub:NAME@COMMIT`, `path:FOLDER` or `package:NAME==VERSION#FILE.gguf`.

    Scores are those of at most `rows` validation rows, asked without and with `shots` training rows as examples; the
    hold-out stays unseen, since a base that is chosen by it would be judged by what chose it. Raises UserError when
    there are no training and validation rows yet, or a source is in no known form.
    """
    for file in (paths.SPLIT_TRAIN, paths.VALIDATION):
        if not file.is_file():
            raise UserError(f"{file} is not there; `dvc repro split` writes the rows that candidates are asked")
    for source in sources:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            try:
                yield alone.submit(_measure, source, rows, shots).result()
            except BrokenProcessPool:
                yield Candidate(source, "", _UNSAID, "its process was killed: it needs more memory than there is")


def _measure(source: str, rows: int, shots: int) -> Candidate:
    from stages.tune.base.base_model import materialise
    from stages.tune.base.model_source import locate, read_template

    params = load_params("model", "seed", "task", "train", "generation", "scoring")
    place, _, member = source.partition("#")
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as folder:
        try:
            fetched = locate(place, member or None, Path(scratch))
        except UserError as error:
            return Candidate(source, "", _UNSAID, str(error).removeprefix("model.source: "))
        digest = file_digest(fetched) if fetched.is_file() else tree_digest(fetched)
        found = Candidate(source, digest, licence_of(place, fetched, Path(scratch)))
        faults: list[str] = []
        for template, what in (("", "its own"), (read_template(Path(params.model.chat_template)), "the project's")):
            if faults and not template:
                break
            try:
                materialise(fetched, Path(folder), params.model.dtype, template)
                said = f"{what}{': ' + faults[0] if faults else ''}"
                return _asked(replace(found, template=said), Path(folder), params, rows, shots)
            except UserError as error:
                faults.append(str(error).removeprefix("model.source: "))
        return replace(found, fault=faults[0])


def _asked(found: Candidate, folder: Path, params: Any, rows: int, shots: int) -> Candidate:
    import torch

    from stages.model.chat import task_chat
    from stages.model.loading import load_model, load_tokenizer

    chat = task_chat(load_tokenizer(folder), params.task)
    train = read_records(paths.SPLIT_TRAIN)
    asked = sorted(read_records(paths.VALIDATION), key=lambda row: rank(params.seed, "bases", row.id))[:rows]
    counted = sorted(train, key=lambda row: rank(params.seed, "bases", row.id))[:_TEXTS]
    lengths = [len(chat.prompt_ids(row)) + len(chat.completion_ids(row.completion)) for row in counted]
    texts = [f"{row.prompt} {row.completion}" for row in counted]
    pieces = sum(len(chat.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    model = load_model(folder)
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)
    given = examples(train, shots, params.seed)
    few = [with_examples(row, given) for row in asked]
    found = replace(
        found,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context=context,
        tokens_a_word=pieces / max(1, sum(len(text.split()) for text in texts)),
        over_limit=sum(length > params.train.max_tokens for length in lengths) / max(1, len(lengths)),
        zero_shot=_answered(model, chat, asked, params, context),
        few_shot=_answered(model, chat, few, params, context) if given else None,
    )
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()
    return replace(found, memory_mib=memory // 2**20)


def _answered(model: Any, chat: Any, rows: Sequence[Record], params: Any, context: int) -> Answered:
    """The answers to `rows`, scored; a prompt that the model's `context` does not hold counts as wrong."""
    from stages.model.answers import Answer, answer, as_rows
    from stages.scoring.rows import score_row
    from stages.scoring.summary import summarise
    from stages.text.json_schema import Tasks

    lengths = [len(chat.prompt_ids(row)) for row in rows]
    limit = context - params.generation.max_new_tokens if context else max(lengths)
    start = time.perf_counter()
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    said = answer(model, chat, fitting, params.generation, "bases")
    seconds, answers = time.perf_counter() - start, iter(said)
    answered = [next(answers) if length <= limit else Answer("", 0, False) for length in lengths]
    tasks = Tasks(params.task)
    scores = summarise([score_row(row, tasks) for row in as_rows(rows, answered)], params.scoring)
    tokens = sum(one.tokens for one in said)
    return Answered(
        exact_match=scores.exact_match,
        label_accuracy=scores.label_accuracy,
        prompt_tokens=sum(lengths) / len(lengths),
        answer_tokens=tokens / max(1, len(said)),
        tokens_per_second=tokens / seconds,
        over_context=len(rows) - len(fitting),
    )


def examples(train: Sequence[Record], shots: int, seed: int) -> list[Record]:
    """`shots` training rows, one of each label before a second of any; rows with turns of their own are left out."""
    order = sorted((row for row in train if not row.context), key=lambda row: rank(seed, "shots", row.id))
    seen: Counter[str | None] = Counter()
    turns = []
    for row in order:
        turns.append((seen[row.label], row))
        seen[row.label] += 1
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])][:shots]


def with_examples(row: Record, given: Sequence[Record]) -> Record:
    """The record with the examples as turns before its own; its system message stays first."""
    shown = [m for one in given for m in (Message("user", one.prompt), Message("assistant", one.completion))]
    system = [message for message in row.context if message.role == "system"]
    return replace(row, context=(*system, *shown, *(m for m in row.context if m.role != "system")))


def licence_of(place: str, fetched: Path, scratch: Path) -> str:
    """What the model itself says of its licence: its card, the GGUF file or the package."""
    kind, _, rest = place.partition(":")
    said: Any = None
    if kind == "hub":
        from huggingface_hub import model_info

        name, _, commit = rest.partition("@")
        with suppress(Exception):  # a hub that is gone, or a card that cannot be read, says nothing
            card_data: Any = model_info(name, revision=commit).card_data
            said = card_data.get("license") if card_data else None
    elif fetched.is_dir() and (card := fetched / "README.md").is_file():
        with suppress(ValueError, IndexError):
            head = load_yaml(card.read_text(encoding="utf-8").split("---")[1].encode())
            said = head.get("license") if isinstance(head, Mapping) else None
    elif fetched.is_file():
        import gguf

        field = gguf.GGUFReader(str(fetched)).fields.get("general.license")
        said = field.contents() if field else None
        for wheel in scratch.glob("*.whl") if not said else ():
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
                facts = Parser().parsestr(archive.read(names[0]).decode(errors="replace"), headersonly=True)
                said = facts["License-Expression"] or facts["License"]
    return str(said).splitlines()[0][:80] if said else _UNSAID


def table(found: Sequence[Candidate]) -> "pd.DataFrame":
    """A fact a row, a candidate that can be used a column."""
    import pandas as pd

    def share(one: Share | None) -> str:
        return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})" if one else "–"

    def facts(one: Candidate) -> dict[str, str]:
        few, zero = one.few_shot, one.zero_shot
        return {
            "Licence": one.licence,
            "SHA-256": one.sha256,
            "Chat template": one.template,
            "Parameters": f"{one.parameters / 1e6:,.1f} million",
            "Context": f"{one.context:,} tokens" if one.context else "–",
            "Tokens a word of your rows": f"{one.tokens_a_word:.2f}",
            "Rows over train.max_tokens": f"{one.over_limit:.1%}",
            "Exact match": share(zero.exact_match if zero else None),
            "Exact match with examples": share(few.exact_match if few else None),
            "Label right": share(zero.label_accuracy if zero else None),
            "Label right with examples": share(few.label_accuracy if few else None),
            "Tokens a prompt": f"{zero.prompt_tokens:.0f}" if zero else "–",
            "Tokens a prompt with examples": f"{few.prompt_tokens:.0f}" if few else "–",
            "Tokens a second": f"{zero.tokens_per_second:.1f}" if zero else "–",
            "Memory": f"{one.memory_mib:,} MiB",
        }

    frame = pd.DataFrame({one.source: facts(one) for one in found if not one.fault}, dtype=object)
    return frame.rename_axis("Fact")


def notes(found: Sequence[Candidate]) -> list[str]:
    """What stands below the table: why a candidate cannot be used, and prompts that it cannot hold."""
    lines = [f"{one.source} cannot be used: {one.fault}" for one in found if one.fault]
    for one in found:
        lines += [
            f"{one.source}: {answered.over_context} prompts{what} are longer than its context, and count as wrong"
            for answered, what in ((one.zero_shot, ""), (one.few_shot, " with examples"))
            if answered and answered.over_context
        ]
    return lines


def whether_it_pays(found: Candidate, prices: Prices, run_hours: float | None) -> list[str]:
    """Sentences: a prompt with examples against a tuned model, by this candidate's own token counts.

    Both are asked at the same prices, so the difference is what the examples cost. `run_hours` is what a run takes.
    """
    zero, few = found.zero_shot, found.few_shot
    if not zero or not few:
        return ["Without examples (--shots) there is nothing to compare a run with."]

    def million(answered: Answered, answer_tokens: float) -> float:
        return answered.prompt_tokens * prices.prompt_million_tokens + answer_tokens * prices.answer_million_tokens

    examples_cost, tuned_cost = million(few, few.answer_tokens), million(zero, few.answer_tokens)
    saved, unit = examples_cost - tuned_cost, prices.currency
    lines = [
        f"A million requests: {examples_cost:,.2f} {unit} with {few.prompt_tokens:.0f} tokens a prompt with examples, "
        f"{tuned_cost:,.2f} {unit} with the {zero.prompt_tokens:.0f} of a tuned model."
    ]
    if run_hours is None:
        return [*lines, "What a run costs: `tunetrail estimate` says it, or metrics/env after the first run."]
    run = run_hours * prices.run_hour
    if saved <= 0:
        return [*lines, f"A run of {run_hours:.2f} hours costs {run:,.2f} {unit}, which shorter prompts never repay."]
    return [
        *lines,
        f"A run of {run_hours:.2f} hours costs {run:,.2f} {unit}: shorter prompts repay it after "
        f"{run / saved * 1e6:,.0f} requests.",
    ]


def hours_of_last_run() -> float | None:
    """Of all stages; None without a trained model there."""
    taken = seconds_of_last_run()
    return sum(taken.values()) / 3600 if "train" in taken else None
