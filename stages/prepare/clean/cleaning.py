"""One raw row to one record: its shape, the text operators, the contract of the completion, the filters."""

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import NamedTuple

from stages.core.errors import UserError
from stages.params.prepare import Clean
from stages.params.task import Task
from stages.prepare.clean.operators import Step, chosen_operators, cleaner, has_tags
from stages.prepare.clean.rejected_rows import Rejected, Row
from stages.prepare.clean.shapes import Pair, read_pair
from stages.prepare.clean.sources import RawFile
from stages.records.prompt import asked
from stages.records.record import Message, Record, canonical, make_record
from stages.text.json_schema import Schema, Tasks
from stages.text.normal_form import Unsettled
from stages.text.personal_data import NAMES, TYPES, Values, finder
from stages.text.strict_json import BrokenContract, is_structured, one_form, parse_json, rewrite

# Markup may take most of a raw text. What is longer even so is rejected before the operators spend time on it.
_RAW_PER_CLEAN = 4
_LONGEST_NAME = 500  # characters of a label, source or task, before the operators
_LONGEST_FIELD = 10_000  # of a kept column
_LONGEST_DETAIL = 300
_DIGITS = 7  # from which the digits of a number alone say whose it is
_NUMBER = re.compile(r"\d(?:[\s()./-]{0,3}\d){6,}")  # of as many digits
_GRAM = 5
_FEWEST = 40  # units; in less, lists and forms repeat by nature
_LONGEST_WORD = 20  # characters on average, beyond which a text is not one of words (Chinese, or one held key)

Cleaned = tuple[str, tuple[Step, ...]]
Filter = Callable[[Record], None]


class Change(NamedTuple):
    """The first change that an operator made in a row: in which column, from what to what."""

    column: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A record, what changed in it by operator, and how many personal data of each type were masked."""

    record: Record
    changed: Mapping[str, Change]
    personal_data: Counter[str]
    shape: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What a row must be, read once for all rows."""

    params: Clean
    tasks: Tasks
    filters: Sequence[Filter]
    find: Callable[[str], tuple[str, Values]]  # personal data
    questions: Callable[[str], Cleaned]
    about_markup: Callable[[str], Cleaned]  # questions, of which the answers have tags
    answers: Callable[[str], Cleaned]
    shown: Callable[..., str]

    @classmethod
    def of(cls, params: Clean, task: Task, schema: str | None = None) -> "Rules":
        find = lru_cache(1024)(finder(params.mask_personal_data, params.phone_region, params.ner_model))
        operators = chosen_operators(params, lambda text: find(text)[0])
        patterns = finder([kind for kind in TYPES if kind not in NAMES], params.phone_region, "")

        def only(names: Container[str]) -> Callable[[str], Cleaned]:
            return cleaner({name: operators[name] for name in operators if name in names})

        questions, about_markup = only(operators), only(operators.keys() - {"html"})
        answers = only(["personal_data", *params.clean_completions])
        shown: Callable[..., str] = lru_cache(partial(_shown, patterns))
        return cls(params, Tasks(task, schema), chosen_filters(params), find, questions, about_markup, answers, shown)


def clean_row(row: Row, file: RawFile, rules: Rules) -> Kept | Rejected:
    """The record of a raw row, or why there is none. Every row gives exactly one of the two.

    What a reason quotes of the row is masked: it is printed and reported.
    """
    try:
        if isinstance(row.values, Rejected):
            raise row.values
        pair = read_pair(row.values, file.shape, rules.params.keep_columns, rules.params.ignore_columns)
        return clean_pair(pair, file.source, f"{row.file}:{row.number}", rules)
    except Rejected as rejected:
        return Rejected(rejected.reason, rules.shown(rejected.detail))
    except Unsettled as error:
        return Rejected("unsettled", str(error))
    except RecursionError:  # a kept column may hold what can just be read, but not be written any more
        return Rejected("not_json", "nested too deeply")


def _shown(find: Callable[[str], tuple[str, Values]], text: str, longest: int = _LONGEST_DETAIL) -> str:
    """A piece of a raw row as it may be shown: without personal data, and short."""
    try:
        # What is cut off before must not leave half of a number.
        return cut(find(text[: 8 * longest])[0], longest)
    except Unsettled:
        return "…"


def cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def clean_pair(pair: Pair, source: str, origin: str, rules: Rules) -> Kept:
    """Clean one pair. Raises Rejected, or Unsettled when a text does not come to rest."""
    names = {name: getattr(pair, name) or "" for name in ("label", "source", "task")}
    for columns, longest in ((names, _LONGEST_NAME), (pair.fields, _LONGEST_FIELD)):
        for column, text in columns.items():
            if len(text) > longest:
                raise Rejected("column_too_long", f"{column!r} has {len(text)} characters; {longest} are allowed")
    answers = [pair.completion, *(message.content for message in pair.context if message.role == "assistant")]
    changes = _Changes(rules, rules.about_markup if any(map(has_tags, answers)) else rules.questions)
    context, prompt = _clean_question(pair, rules.params, changes)
    masked = list(changes.masked)
    named = {column: changes.text(column, text) for column, text in names.items()}
    completion = _clean_completion(pair.completion, named["task"] or None, rules, changes)
    if kind := _said(completion, masked):
        raise Rejected("personal_data", f"the answer has the {kind} that is masked in its prompt")
    fields = {column: changes.text(column, value) for column, value in pair.fields.items()}
    if named["source"].startswith("augment:"):  # would pass for rows that augment makes, which are asked otherwise
        raise Rejected("reserved_source", "'augment:' begins the sources of rows that augment adds; rename it")
    record = make_record(
        prompt,
        completion,
        named["label"] or None,
        named["source"] or source,
        origin,
        task=named["task"] or None,
        context=context,
        fields=fields,
    )
    for keep_out in rules.filters:
        keep_out(record)
    kinds = Counter(kind for kind, _ in changes.masked)
    return Kept(record, changes.made, kinds, pair.shape, tuple(map(rules.shown, pair.left_out)))


@dataclass(slots=True)
class _Changes:
    """Applies the operators and keeps what they changed."""

    rules: Rules
    clean: Callable[[str], Cleaned]
    made: dict[str, Change] = field(default_factory=dict)
    masked: Values = field(default_factory=list)
    odd: bool = False  # whether a key or number was masked

    def text(self, column: str, text: str) -> str:
        return self._note(column, *self.clean(text))

    def answer(self, column: str, text: str) -> str:
        """An answer: of a JSON object or array the values, else the text."""
        if is_structured(text):
            return self.json(column, text)
        return self._note(column, *self.rules.answers(text))

    def json(self, column: str, text: str) -> str:
        """JSON with its strings clean, and personal data masked in keys and numbers, too."""

        def change(kind: str, value: str) -> str:
            if kind == "string":
                return self._note(column, *self.rules.answers(value))
            masked, values = self.rules.find(value if kind == "key" else _written_out(value))
            if not values:
                return value
            self.odd = True
            return self._note(column, masked, (Step("personal_data", value, masked),), values)

        return rewrite(text, change)

    def form(self, before: str, after: str) -> str:
        """Note the one form of an answer, where it had another."""
        if before != after:
            self.made.setdefault("completion_form", Change("completion", before, after))
        return after

    def _note(self, column: str, text: str, steps: tuple[Step, ...], values: Values | None = None) -> str:
        for step in steps:
            self.made.setdefault(step.operator, Change(column, step.before, step.after))
            if step.operator == "personal_data":
                self.masked += self.rules.find(step.before)[1] if values is None else values
        return text


def _written_out(number: str) -> str:
    """A JSON number as a card's or telephone's would be written: -4.1e3 is 4100."""
    if abs(float(number)) > 1e6 and (value := abs(Decimal(number))) == value.to_integral_value():
        return f"{value.to_integral_value():f}"
    return number


def _said(text: str, values: Values) -> str | None:
    """The type of a value that a text has; of a number also with other separators, in pieces, or without its start."""
    folded, joined = text.casefold(), re.sub(r"\D", "", text)
    runs = [re.sub(r"\D|^0+", "", run) for run in _NUMBER.findall(text)]
    for kind, value in dict.fromkeys(values):
        if value.casefold() in folded and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE):
            return kind
        digits = re.sub(r"\D", "", value) if joined else ""
        if len(digits) >= _DIGITS and (digits in joined or any(run in digits or digits in run for run in runs)):
            return kind
    return None


def _clean_question(pair: Pair, params: Clean, changes: _Changes) -> tuple[list[Message], str]:
    """Context and prompt. The limit is that of all that the model reads, its length in characters."""
    shortest, longest = params.min_prompt_characters, params.max_prompt_characters
    raw = sum(len(message.content) for message in pair.context) + len(pair.prompt)
    _check_raw_length("prompt", raw, longest)
    operate = {"assistant": changes.answer, "user": changes.text, "system": changes.text}
    context = [Message(turn.role, operate[turn.role]("context", turn.content)) for turn in pair.context]
    if context and context[0].role == "system" and not context[0].content:
        del context[0]
    if not all(message.content.strip() for message in context):
        raise Rejected("empty_turn", "a turn before the prompt has no text")
    prompt = changes.text("prompt", pair.prompt)
    if len(prompt) < shortest:
        raise Rejected("prompt_too_short", f"{len(prompt)} characters; clean.min_prompt_characters is {shortest}")
    length = sum(len(message.content) for message in context) + len(prompt)
    if length > longest:
        what = "characters with all that comes before it" if context else "characters"
        raise Rejected("prompt_too_long", f"{length} {what}; clean.max_prompt_characters is {longest}")
    return context, prompt


def _clean_completion(completion: str, task: str | None, rules: Rules, changes: _Changes) -> str:
    longest = rules.params.max_completion_characters
    _check_raw_length("completion", len(completion), longest)
    if not completion.strip():
        raise Rejected("empty_completion", "the completion has no text")
    contract = rules.tasks.of(task) if rules.params.check_contract else None
    if contract and contract.settings.kind == "json":
        cleaned = _fitting(completion, contract.schema, changes)
    else:
        cleaned = changes.answer("completion", completion)
    if not cleaned.strip():
        raise Rejected("empty_completion", "the completion has no text once it is clean")
    if contract and contract.settings.kind == "classification":
        cleaned = changes.form(cleaned, canonical(cleaned.strip()))
        if cleaned not in contract.settings.labels:
            raise Rejected("not_a_label", f"{cleaned!r} is none of the labels that the task names")
    if len(cleaned) > longest:
        raise Rejected("completion_too_long", f"{len(cleaned)} characters; clean.max_completion_characters: {longest}")
    return cleaned


def _fitting(completion: str, schema: Schema, changes: _Changes) -> str:
    """The completion, clean and in its one form, if it is JSON that fits the schema."""
    try:
        value = parse_json(completion)
        form = changes.form(completion, one_form(completion))
    except BrokenContract as error:
        raise Rejected("completion_not_json", str(error)) from None
    cleaned = canonical(changes.json("completion", form))
    try:
        problem = schema.problem(value if cleaned == form else parse_json(cleaned))
    except BrokenContract as error:  # two keys that are the same once they are masked, or canonical
        problem = str(error)
    if problem and changes.odd:
        raise Rejected("personal_data", f"in a key or a number, where a mask does not fit: {problem}")
    if problem:
        raise Rejected("breaks_schema", problem)
    return cleaned


def _check_raw_length(column: str, length: int, longest: int) -> None:
    if length > _RAW_PER_CLEAN * longest:
        raise Rejected(f"{column}_too_long", f"{length} raw characters; clean.max_{column}_characters is {longest}")


def chosen_filters(params: Clean) -> list[Filter]:
    """The filters that the parameters switch on. Each raises Rejected for a record that must not be trained on."""
    filters: list[Filter] = []
    if params.refusals:
        filters.append(partial(_no_refusal, phrases=[_plain(phrase) for phrase in params.refusals]))
    if params.max_repetition is not None:
        filters.append(partial(_no_repetition, most=params.max_repetition))
    if params.languages:
        filters.append(language_filter(params.languages, params.other_languages, params.language_confidence))
    return filters


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
            raise Rejected(f"repetitive_{column}", f"{share:.0%} is said before; clean.max_repetition is {most:.0%}")


def repeated_share(text: str) -> float:
    """The share of words, 0 to 1, that lie in a run of five that occurred earlier in the text.

    After the n-gram rules of Gopher (Rae et al. 2021, arXiv:2112.11446, A.1.1), but over words instead of characters.
    Of text without spaces characters count instead; a short text counts as 0.
    """
    units: list[str] = text.split()
    if len(text) > _LONGEST_WORD * len(units):
        units = list(text)
    if len(units) < _FEWEST:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    repeated, end = 0, 0
    for start in range(len(units) - _GRAM + 1):
        gram = tuple(units[start : start + _GRAM])
        if gram in seen:
            repeated += start + _GRAM - max(start, end)
            end = start + _GRAM
        seen.add(gram)
    return repeated / len(units)


def language_filter(wanted: Sequence[str], others: Sequence[str], confidence: float) -> Callable[[Record], None]:
    """A filter that rejects a record asked in one of `others` (ISO 639-1 codes) with at least `confidence`."""
    if not find_spec("lingua"):
        raise UserError("clean.languages needs lingua: pip install 'tunetrail[language]', or set it to []")
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = sorted({*wanted, *others})
    known = [getattr(IsoCode639_1, code.upper(), None) for code in codes]
    if None in known or len(codes) < 2:
        raise UserError(f"clean.languages: lingua cannot tell {', '.join(codes)} apart; give two ISO 639-1 codes")
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*known).build()

    def check(record: Record) -> None:
        found = detector.compute_language_confidence_values(asked(record))[0]
        code = found.language.iso_code_639_1.name.lower()
        if code not in wanted and found.value >= confidence:
            detail = f"{code} with confidence {found.value:.2f}; clean.languages are {', '.join(wanted)}"
            raise Rejected("other_language", detail)

    return check
