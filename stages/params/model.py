"""The base model, its training and its generation."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.params.section import Count, Section, Share


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
    chat_template: str


def _layer_range(text: str | None) -> str | None:
    if text is not None:
        first, _, last = text.partition("-")
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise ValueError("must be null for all layers or FIRST-LAST, such as 15-29")
    return text


Auto = Literal["auto"]


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
    max_tokens: Annotated[int, Field(ge=8)]
    max_left_out_share: Share
    micro_batch_tokens: Count | Auto
    precision: Literal["auto", "float32", "bfloat16"]
    packing: bool | Auto
    attention: Literal["auto", "varlen", "sdpa"]
    checkpointing: bool | Auto
    compile: Literal["auto", "none", "graphs"]
    sharding: bool | Auto
    deterministic: bool
    evaluate_every: Count
    early_stopping_patience: Count | None
    sample_prompts: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _adalora_runs_to_the_end(self) -> "Train":
        if self.method != "full" and self.adapter == "adalora" and self.early_stopping_patience is not None:
            raise ValueError("adalora plans its ranks over the whole run; set early_stopping_patience to null")
        return self


class Generation(Section):
    engine: Literal["transformers", "vllm"]
    max_new_tokens: Count
    batch_tokens: Count | Literal["auto"]
