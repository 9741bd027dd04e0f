"""The strict schema of params.yaml. A key that is not here is an error; so is a value out of its range."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages import paths
from stages.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of params.yaml: no unknown keys, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_source(source: str) -> str:
    kind, _, rest = source.partition(":")
    if kind not in ("package", "hub", "path") or not rest:
        raise ValueError("must be package:NAME==VERSION, hub:NAME@COMMIT or path:FOLDER")
    if kind == "package" and "==" not in rest:
        raise ValueError("a package needs its exact version: package:NAME==VERSION")
    if kind == "hub" and len(rest.partition("@")[2]) != 40:
        raise ValueError("a hub model needs the 40 digits of a commit: hub:NAME@COMMIT; a branch can change")
    return source


class Model(Section):
    """The base model: where it comes from and what it must be."""

    source: Annotated[str, AfterValidator(_known_source)]
    file: str | None
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    licence: str
    dtype: Literal["bfloat16", "float16", "float32"]


class Task(Section):
    """What the model is asked: the instruction before every prompt and the contract of the answer."""

    instruction: str
    schema_file: str
    label_field: str


class Clean(Section):
    raw: str
    ignore_columns: list[str]
    max_rejected_share: Share
    fix_mojibake: bool
    strip_html: bool
    mask_personal_data: bool
    phone_region: Annotated[str, Field(pattern="^[A-Z]{2}$")]
    min_prompt_characters: Count
    max_prompt_characters: Count
    max_completion_characters: Count
    max_line_bytes: Count


class Dedup(Section):
    threshold: Annotated[int, Field(ge=50, le=100)]
    completion: Literal["equal", "fuzzy", "ignore"]


class Holdout(Section):
    """The locked evaluation records; share and max_rows are read when the lock is drawn."""

    lock: str
    share: Annotated[float, Field(gt=0, lt=1)]
    max_rows: Count


class Split(Section):
    validation_share: Annotated[float, Field(ge=0, lt=0.5)]
    max_train_rows: Count | None


class Augment(Section):
    malformed_every: Count | None
    malformed_completion: str
    structured_share: Share
    replay_file: str
    replay_share: Annotated[float, Field(ge=0, lt=1)]


def _layer_range(text: str | None) -> str | None:
    if text is not None:
        first, _, last = text.partition("-")
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise ValueError("must be null for all layers or FIRST-LAST, such as 15-29")
    return text


class Train(Section):
    method: Literal["lora", "qlora", "full"]
    adapter: Literal["lora", "dora", "adalora"]
    rank: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[list[str], Field(min_length=1)]
    layers_to_transform: Annotated[str | None, AfterValidator(_layer_range)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"]
    warmup_share: Share
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    max_gradient_norm: Annotated[float, Field(gt=0)]
    epochs: Annotated[float, Field(gt=0)]
    batch_size: Count
    accumulation: Count
    max_tokens: Annotated[int, Field(ge=8)]
    gradient_checkpointing: bool
    evaluate_every: Count
    early_stopping_patience: Count | None
    sample_prompts: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _adalora_runs_to_the_end(self) -> "Train":
        if self.method != "full" and self.adapter == "adalora" and self.early_stopping_patience is not None:
            raise ValueError("adalora plans its ranks over the whole run; set early_stopping_patience to null")
        return self


class Generation(Section):
    max_new_tokens: Count
    batch_size: Count


class Gate(Section):
    """One threshold: `metric` is FILE.KEY.KEY below metrics/, such as evaluate.adapter.exact_match."""

    metric: str
    minimum: float | None = None
    maximum: float | None = None
    required: bool = True

    @model_validator(mode="after")
    def _one_threshold(self) -> "Gate":
        if (self.minimum is None) == (self.maximum is None):
            raise ValueError("must have either a minimum or a maximum")
        return self


class Scoring(Section):
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class Evaluate(Section):
    gates: dict[str, Gate]


class MergeQuantize(Section):
    gates: dict[str, Gate]


class Report(Section):
    examples: Annotated[int, Field(ge=0)]


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
    train: Train
    generation: Generation
    scoring: Scoring
    evaluate: Evaluate
    merge_quantize: MergeQuantize
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
    return f"{key}: {problem['input']!r} is not allowed: {message[:1].lower()}{message[1:]}"


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
