"""All of params.yaml: read, checked and handed out by the key. A key that is not in the schema is an error."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from stages.core import paths
from stages.core.errors import UserError
from stages.core.yaml_reader import load_yaml
from stages.params.measure import Evaluate, Gates, Judge, Probes, Report, Review, Scoring
from stages.params.model import Engine, Generation, Model, Prefer, Quantize, Train
from stages.params.prepare import Augment, Checks, Clean, Dedup, Holdout, Split
from stages.params.section import Section, Seed
from stages.params.task import Task

# What people take for the place of a key is not repeated in messages.
_MAY_HOLD_A_KEY = ("judge.endpoint", "judge.key_variable")

# What to do about a text where none is wanted, and about another value where a text is.
_TEXT = {"bool_type": "; write true or false"} | dict.fromkeys(("int_type", "float_type"), "; write it without quotes")
_NO_TEXT = {"string_type": "; put it into quotes"}
_BREAKS = re.compile("[\\x00\\x85\\u2028\\u2029]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80

AnySection = TypeVar("AnySection", bound=Section)


class Params(Section):
    """All of params.yaml."""

    seed: Seed = Field(17, description="of every draw but the bootstrap's")
    model: Model
    task: Task
    clean: Clean = Clean()
    dedup: Dedup = Dedup()
    holdout: Holdout = Holdout()
    split: Split = Split()
    augment: Augment = Augment()
    checks: Checks = Checks()
    train: Train = Train()
    prefer: Prefer = Prefer()
    generation: Generation = Generation()
    engine: Engine = Engine()
    quantize: Quantize = Quantize()
    scoring: Scoring = Scoring()
    probes: Probes = Probes()
    evaluate: Evaluate = Evaluate()
    judge: Judge = Judge()
    review: Review = Review()
    gates: Gates = Field(description="by name; the gates below hold besides, unless null takes one away")
    report: Report = Report()

    @model_validator(mode="after")
    def _a_label_head_has_labels_alone(self) -> Self:
        if self.train.head == "label" and (problems := [*self._label_head_problems()]):
            raise ValueError(f"train.head: label: {'; '.join(problems)}")
        return self

    def _label_head_problems(self) -> Iterator[str]:
        """What a classification head cannot do, each with what to write."""
        contracts = [self.task, *map(self.task.contract, self.task.tags)]
        if any(one.kind != "classification" or one.labels != self.task.labels for one in contracts):
            yield "set task.kind to classification, and leave out tags with contracts of their own"
        if self.train.engine == "fused":
            yield "the fused engine trains completions; set train.engine to auto"
        if self.train.adaptive:
            yield "set train.adapter to lora or dora"
        if self.prefer.objective != "sft":
            yield f"{self.prefer.objective} needs answers that are written; set prefer.objective to sft"
        if self.generation.enforce != "none":
            yield "its answers are always labels; set generation.enforce to none"
        if self.augment.replay_share or self.augment.canaries:
            yield "a general row or a canary has no label; set augment.replay_share and augment.canaries to 0"
        if wrong := [name for name in self.quantize.formats if name in ("gguf", "compressed_tensors")]:
            yield f"{wrong[0]} holds no such head here; set quantize.formats to some of merged, nf4, int8, lora"
        if any(engine != "transformers" for engine in self.quantize.engines.values()):
            yield "transformers alone serves it; leave out quantize.engines"


def load_params(*keys: str, path: Path = paths.PARAMS) -> Params:
    """Read and check params.yaml, and return the named keys alone: sections, or single keys such as task.instruction.

    All of the file is checked; UserError names every mistake at once. Reading a key that was not named raises
    AttributeError, so a stage cannot come to depend on a parameter that its entry in dvc.yaml does not declare.
    """
    return _only(check_params(read_params(path), path), keys)


def _only(section: AnySection, keys: Iterable[str]) -> AnySection:
    """The section without the keys that are not named; model_construct would fill them with their defaults."""
    named: dict[str, list[str]] = {}
    for key in keys:
        first, _, rest = key.partition(".")
        named.setdefault(first, []).append(rest)
    part = section.model_copy()
    for name in type(section).model_fields.keys() - named.keys():
        del part.__dict__[name]
    for name, below in named.items():
        if "" not in below:
            part.__dict__[name] = _only(getattr(section, name), below)
    return part


def read_params(path: Path = paths.PARAMS) -> dict[str, Any]:
    """The file as plain values. Raises UserError when it is missing or no YAML mapping."""
    try:
        values = load_yaml(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the repository's root") from None
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections of keys, found {type(values).__name__}")
    return values


def check_params(values: dict[str, Any], path: Path = paths.PARAMS) -> Params:
    """Check plain values against the schema. Raises UserError with all mistakes at once."""
    lines = list(_rewritten(values, set()))
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        lines += map(_sentence, error.errors())
    if lines:
        raise UserError(f"{path} has {len(lines)} mistake{'s' * (len(lines) > 1)}:\n  " + "\n  ".join(lines))
    return params


def _rewritten(node: Any, seen: set[int], keys: tuple[Any, ...] = ()) -> Iterator[str]:
    """Texts that `dvc exp run -S` would change or trip over when it writes params.yaml, whatever key is set.

    DVC hands the file to OmegaConf, for which ${...} refers to another key and ??? is a value that is missing; and
    its YAML writer adds spaces at line separators of Unicode.
    """
    if isinstance(node, str):
        if "${" in node or node == "???" or _BREAKS.search(node):
            why = "DVC does not keep ${, ???, NUL and line separators of Unicode where it writes; write it otherwise"
            yield f"{_name(keys)}: {_shown(node, keys)} is not allowed: {why}"
    elif isinstance(node, (dict, list)) and id(node) not in seen:
        seen.add(id(node))  # an alias is looked at once
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _rewritten(key, seen, keys)
            yield from _rewritten(value, seen, (*keys, key))


def _sentence(problem: Any) -> str:
    keys, key = problem["loc"], _name(problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(keys[-1]), _known_keys(keys[:-1]), n=1, cutoff=0.5)
        return f"{key}: unknown key; " + (f"did you mean {_name([*keys[:-1], *near])}?" if near else "remove it")
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if not keys:  # several sections do not go together
        return str(message)
    hint = _TEXT.get(problem["type"], "") if isinstance(problem["input"], str) else _NO_TEXT.get(problem["type"], "")
    return f"{key}: {_shown(problem['input'], keys)} is not allowed: {message[:1].lower()}{message[1:]}{hint}"


def _name(keys: Sequence[Any]) -> str:
    """The dotted name of a key, with what cannot be read of it shown as Python would."""
    return ".".join(
        key if isinstance(key, str) and key.isprintable() and len(key) <= 80 else _shown(key) for key in keys
    )


def _shown(value: Any, keys: Sequence[Any] = ()) -> str:
    if ".".join(map(str, keys)) in _MAY_HOLD_A_KEY:
        return "the value"
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def _known_keys(keys: Sequence[Any]) -> list[str]:
    """The keys that the schema allows below `keys`; a free name (of a gate) says nothing, its section does."""
    model: type[BaseModel] = Params
    for key in keys:
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        sections = [c for c in (annotation, *get_args(annotation)) if isinstance(c, type) and issubclass(c, BaseModel)]
        model = next(iter(sections), model)
    return list(model.model_fields)
