"""Settings of this machine, no parameters of the project: they change no result, only speed or who is told of a run.

Each is read from the environment variable TUNETRAIL_NAME, else from machine.yaml, which git ignores.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core import paths
from stages.core.errors import UserError
from stages.core.yaml_reader import load_yaml

_FILE, _PREFIX = Path("machine.yaml"), "TUNETRAIL_"
Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Machine(BaseModel):
    """Settings that make nothing stale; `auto` fits the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    processes: Count = Field(1, description="devices to train on, one process each")
    wait: Count = Field(600, description="seconds that machines which train together wait for each other")
    packing: bool | Auto = Field("auto", description="examples end to end in one row, none seeing another")
    attention: Literal["auto", "varlen", "sdpa"] = Field(
        "auto", description="varlen: one kernel for a packed row, in 16 bit on a card; sdpa: the one of torch"
    )
    checkpointing: bool | Auto = Field("auto", description="recompute layers in the backward pass to save memory")
    compile: Literal["auto", "none", "graphs"] = Field(
        "auto", description="none: launch kernels one by one; graphs: replay them as CUDA graphs"
    )
    micro_batch_tokens: Count | Auto = Field("auto", description="tokens trained on at once")
    sharding: bool | Auto = Field("auto", description="spread a base model that does not fit over all devices (FSDP)")
    generation_tokens: Count | Auto = Field("auto", description="prompt and answer tokens in memory at once")
    engine_threads: Count | Auto = Field("auto", description="of an engine's server; auto: one for each core")
    ray: str = Field("", description="auto or HOST:PORT: the Ray cluster that cleans and compares many rows")
    vllm_python: str = Field("", description="the Python of vLLM's own environment, which is started from there")
    report_to: Literal["none", "mlflow", "wandb", "trackio"] = Field(
        "none", description="the tracker that is told of training, by its own settings, such as MLFLOW_TRACKING_URI"
    )


def machine_settings() -> Machine:
    """The settings of this machine.

    Raises UserError with every mistake at once: the setting and where it stands, its value, what is allowed.
    """
    values = _from_file()
    places = {name: f"{_FILE}: {name}" for name in values}
    for variable, text in os.environ.items():
        if variable.startswith(_PREFIX):
            name = variable.removeprefix(_PREFIX).lower()
            values[name], places[name] = _plain(text), variable
    try:
        return Machine.model_validate(values)
    except ValidationError as error:
        said: dict[str, str] = {}  # a setting that takes a number or a word has two errors: what either may be
        for one in error.errors():
            name, may_be = str(one["loc"][0]), f"{one['msg'][:1].lower()}{one['msg'][1:]}"
            if one["type"] == "extra_forbidden":
                near = difflib.get_close_matches(name, Machine.model_fields, n=1, cutoff=0.5)
                said[name] = f"unknown setting; did you mean {near[0]}?" if near else "unknown setting; remove it"
            else:
                said[name] = (
                    f"{said[name]}, or {may_be}" if name in said else f"{one['input']!r} is not allowed: {may_be}"
                )
        lines = [f"{places[name]}: {sentence}" for name, sentence in said.items()]
        raise UserError("this machine's settings:\n  " + "\n  ".join(lines)) from None


def _from_file() -> dict[str, Any]:
    file = paths.of_checkout(_FILE)
    try:
        values = load_yaml(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{_FILE}: not YAML: {error}") from None
    if not isinstance(values or {}, dict):
        raise UserError(f"{_FILE}: expected NAME: VALUE lines, found {type(values).__name__}")
    return dict(values or {})


def _plain(text: str) -> object:
    """A number, true, false or a word, as machine.yaml would have it."""
    try:
        return load_yaml(text)
    except ValueError:
        return text
