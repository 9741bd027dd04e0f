"""One raw row to one record: text operators, the contract of the completion, the limits."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.clean.lines import Line
from stages.clean.operators import Operator, apply, chosen_operators
from stages.clean.personal_data import TYPES, placeholder
from stages.clean.rows import RawRow, Rejected, parse_row
from stages.clean.settling import Unsettled
from stages.completions import BrokenContract, Schema, parse_json
from stages.params import Clean
from stages.records import Record, make_record

# Markup may take most of a raw text. What is longer even so is rejected before the operators spend time on it.
_RAW_PER_CLEAN = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """A record, the names of the operators that changed it, and how many personal data of each type they masked."""

    record: Record
    changed: set[str]
    personal_data: Counter[str]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a row must be, read once for all rows."""

    params: Clean
    schema: Schema
    operators: Mapping[str, Operator]

    @classmethod
    def of(cls, params: Clean, schema: Schema) -> "Rules":
        return cls(params, schema, chosen_operators(params))


def clean_line(line: Line, rules: Rules) -> Kept | Rejected:
    """The record of a raw line, or why there is none. Every line gives exactly one of the two."""
    try:
        row = parse_row(line, rules.params.ignore_columns)
        return clean_row(row, line.path.name, line.number, rules)
    except Rejected as rejected:
        return rejected


def clean_row(row: RawRow, file: str, number: int, rules: Rules) -> Kept:
    """Clean one row of line `number` of `file`.

    Raises:
        Rejected: prompt_too_short, prompt_too_long, empty_completion, completion_too_long,
            completion_not_json, breaks_schema or unsettled.
    """
    changes = _Changes()
    try:
        prompt = _clean_prompt(row.prompt, rules, changes)
        completion = _clean_completion(row.completion, rules, changes)
        label, source = (
            apply(rules.operators, text or "", changes.observe) or default
            for text, default in ((row.label, None), (row.source, file))
        )
    except Unsettled as error:
        raise Rejected("unsettled", str(error)) from None
    record = make_record(prompt, completion, label, source or file, f"{file}:{number}")
    return Kept(record, changes.operators, changes.personal_data)


@dataclass(slots=True)
class _Changes:
    operators: set[str] = field(default_factory=set)
    personal_data: Counter[str] = field(default_factory=Counter)

    def observe(self, operator: str, before: str, after: str) -> None:
        self.operators.add(operator)
        if operator == "personal_data":
            for kind in TYPES:
                self.personal_data[kind] += after.count(placeholder(kind)) - before.count(placeholder(kind))


def _clean_prompt(prompt: str, rules: Rules, changes: _Changes) -> str:
    shortest, longest = rules.params.min_prompt_characters, rules.params.max_prompt_characters
    _check_raw_length("prompt", prompt, longest)
    prompt = apply(rules.operators, prompt, changes.observe)
    if len(prompt) < shortest:
        raise Rejected("prompt_too_short", f"{len(prompt)} characters; clean.min_prompt_characters is {shortest}")
    if len(prompt) > longest:
        raise Rejected("prompt_too_long", f"{len(prompt)} characters; clean.max_prompt_characters is {longest}")
    return prompt


def _clean_completion(completion: str, rules: Rules, changes: _Changes) -> str:
    longest = rules.params.max_completion_characters
    _check_raw_length("completion", completion, longest)
    if not completion.strip():
        raise Rejected("empty_completion", "the completion has no text")
    try:
        value = parse_json(completion)
        cleaned = _map_strings(value, rules, changes)
        problem = rules.schema.problem(cleaned)
    except BrokenContract as error:
        raise Rejected("completion_not_json", str(error)) from None
    except RecursionError:
        raise Rejected("completion_not_json", "nested too deeply") from None
    if problem:
        raise Rejected("breaks_schema", problem)
    if dump(value) != completion:
        changes.operators.add("completion_form")
    if len(dump(cleaned)) > longest:
        detail = f"{len(dump(cleaned))} characters; clean.max_completion_characters is {longest}"
        raise Rejected("completion_too_long", detail)
    return dump(cleaned)


def _check_raw_length(column: str, text: str, longest: int) -> None:
    if len(text) > _RAW_PER_CLEAN * longest:
        detail = f"{len(text)} raw characters; clean.max_{column}_characters is {longest}"
        raise Rejected(f"{column}_too_long", detail)


def dump(value: Any) -> str:
    """The one form of a completion. The order of its keys is the author's: a model may reason in it."""
    return json.dumps(value, ensure_ascii=False)


def _map_strings(value: Any, rules: Rules, changes: _Changes) -> Any:
    """`value` with the operators applied to its strings; keys belong to the schema and stay."""
    if isinstance(value, str):
        return apply(rules.operators, value, changes.observe)
    if isinstance(value, list):
        return [_map_strings(item, rules, changes) for item in value]
    if isinstance(value, dict):
        return {key: _map_strings(item, rules, changes) for key, item in value.items()}
    return value
