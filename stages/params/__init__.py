"""The strict schema of params.yaml. A key that is not here is an error; so is a value out of its range."""

import difflib
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from stages.core import paths
from stages.core.errors import UserError
from stages.params.data import Augment, Checks, Clean, Dedup, Holdout, PersonalData, Shape, Source, Split
from stages.params.evaluation import Evaluate, Gate, Judge, Price, Probes, Report, Review, Scoring, Task, TaskContract
from stages.params.model import Generation, Model, Train
from stages.params.section import Section

__all__ = [
    "Augment",
    "Checks",
    "Clean",
    "Dedup",
    "Evaluate",
    "Gate",
    "Generation",
    "Holdout",
    "Judge",
    "Model",
    "Params",
    "PersonalData",
    "Price",
    "Probes",
    "Report",
    "Review",
    "Scoring",
    "Shape",
    "Source",
    "Split",
    "Task",
    "TaskContract",
    "Train",
    "check_params",
    "load_params",
    "read_params",
]


# What people take for the place of a key is not repeated in messages.
_MAY_HOLD_A_KEY = ("judge.endpoint", "judge.key_variable")


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    model: Model
    task: Task
    clean: Clean
    dedup: Dedup
    holdout: Holdout
    split: Split
    augment: Augment
    checks: Checks
    train: Train
    generation: Generation
    scoring: Scoring
    probes: Probes
    evaluate: Evaluate
    judge: Judge
    review: Review
    gates: dict[str, Gate]
    report: Report


def load_params(*sections: str, path: Path = paths.PARAMS) -> Params:
    """Read and check params.yaml, and return the named top-level sections alone.

    All of the file is checked. Reading a section that was not named raises AttributeError, so a stage
    cannot come to depend on a parameter that its entry in dvc.yaml does not declare.

    Raises:
        UserError: with every mistake in the file at once: the key, the value, what is allowed.
    """
    params = check_params(read_params(path), path)
    return Params.model_construct(**{name: getattr(params, name) for name in sections})


def read_params(path: Path = paths.PARAMS) -> dict[str, Any]:
    """The file as plain values. Raises UserError when it is missing or no YAML mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the repository's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections of keys, found {type(values).__name__}")
    return values


def check_params(values: dict[str, Any], path: Path = paths.PARAMS) -> Params:
    """Check plain values against the schema. Raises UserError with all mistakes at once."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [_sentence(problem) for problem in error.errors()]
        raise UserError(f"{path} has {len(lines)} mistake{'s' * (len(lines) > 1)}:\n  " + "\n  ".join(lines)) from None


def _sentence(problem: Any) -> str:
    keys = [str(part) for part in problem["loc"]]
    key = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], _known_keys(keys[:-1]), n=1, cutoff=0.5)
        meant = f"; did you mean {'.'.join([*keys[:-1], *near])}?" if near else "; remove it"
        return f"{key}: unknown key{meant}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    value = "the value" if key in _MAY_HOLD_A_KEY else repr(problem["input"])
    return f"{key}: {value} is not allowed: {message[:1].lower()}{message[1:]}"


def _known_keys(keys: list[str]) -> list[str]:
    """The keys that the schema allows below `keys`."""
    model: type[BaseModel] = Params
    for key in keys:
        field = model.model_fields.get(key)
        annotation = field.annotation if field else None
        # A mapping of free names to sections (the gates): the name itself says nothing, its section does.
        candidates = [annotation, *get_args(annotation)]
        found = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        model = found or model
    return list(model.model_fields)
