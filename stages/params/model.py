"""`model`, `train`, `prefer`, `generation`, `engine`, `quantize`: the base, how it is tuned, asked, made smaller."""

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from stages.params.section import Count, Endpoint, FewOrNone, FileName, PathName, Phrase, Section, Share, Size, Variable

_PART = r"[A-Za-z0-9](?:[\w-]|\.(?!\.))*"
_SOURCE = rf"package:{_PART}(\[[\w,.-]+\])?==[\w.!+]+|hub:{_PART}(/{_PART})?@[0-9a-f]{{40}}|path:(?s:.+)"


def _known_source(source: str) -> str:
    if not re.fullmatch(_SOURCE, source):
        raise ValueError("must be package:NAME==VERSION, hub:NAME@COMMIT with its 40 small digits, or path:FOLDER")
    return source


def _licence(name: str) -> str:
    """A name that no reader of the card's front matter takes for a number or for more than a name."""
    if not name.isprintable() or not re.search("[A-Za-z]{2}", name):
        raise ValueError("must be the licence's name in one line, such as Apache-2.0")
    return name


Source = Annotated[PathName, AfterValidator(_known_source)]
Digest = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]


class Model(Section):
    """The base model: where it comes from and what it must be."""

    source: Source = Field(description="package:NAME==VERSION (with a GGUF file), hub:NAME@COMMIT or path:FOLDER")
    file: PathName | None = Field(None, description="the GGUF file inside the package; null for hub and path")
    sha256: Digest = Field("", description="what the file or folder must hash to; empty for no check")
    licence: Annotated[str, AfterValidator(_licence)] = Field(description="of the base model, for the model card")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="of models/base and merged")
    chat_template: FileName = Field(
        "data/chat_template.jinja", description="in place of the model's own; a file of a comment alone for that"
    )


def _layer_range(text: str | None) -> str | None:
    if text is not None:
        found = re.fullmatch("([0-9]{1,5})-([0-9]{1,5})", text)
        if not found or int(found[1]) > int(found[2]):
            raise ValueError("must be null for all layers or FIRST-LAST, such as 15-29")
    return text


Norm = Annotated[float, Field(gt=0, le=1_000_000)]
Layers = Annotated[str | None, AfterValidator(_layer_range)]
Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine"]


class Train(Section):
    """What is trained, and how; what only changes speed is a machine setting."""

    engine: Literal["auto", "trl", "fused"] = Field(
        "auto",
        description="trl trains anywhere; auto takes fused on a CUDA card where it shows that it computes the same",
    )
    head: Literal["completion", "label"] = Field(
        "completion", description="label: a classification head says the labels of a classification task"
    )
    method: Literal["lora", "qlora", "full"] = Field("lora", description="qlora: the base in 4 bit; full: all weights")
    adapter: Literal["lora", "dora", "adalora"] = Field("lora", description="kind of adapter; without use for full")
    rank: Annotated[int, Field(ge=1, le=16_384)] = Field(16, description="rank of the adapter's matrices")
    alpha: Annotated[int, Field(ge=1, le=65_536)] = Field(32, description="the adapter counts alpha / rank times")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of the adapter's inputs")
    target_modules: Annotated[list[Phrase], Field(min_length=1)] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="the linear layers that get an adapter",
    )
    layers_to_transform: Layers = Field(None, description="FIRST-LAST, from 0: those with an adapter; null for all")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(3e-3, description="the highest of the schedule")
    scheduler: Scheduler = Field("cosine", description="how the learning rate goes down")
    warmup_share: Share = Field(0.05, description="of the steps, over which the learning rate rises")
    weight_decay: Share = Field(0.0, description="of AdamW")
    max_gradient_norm: Norm = Field(1.0, description="larger gradients are scaled down to it")
    epochs: Annotated[float, Field(gt=0, le=10_000)] = Field(3, description="how often each row is seen")
    batch_size: Size = Field(4, description="rows of one optimiser step, over all devices")
    max_tokens: Annotated[int, Field(ge=8, le=10_000_000)] = Field(256, description="longer rows are left out")
    max_left_out_share: Share = Field(0.05, description="of the rows; with more left out, training does not begin")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of products; auto: bfloat16 where a card has it, or a CPU and the base model; else float32",
    )
    deterministic: bool = Field(False, description="the same adapter from every run on one card; a CPU always does")
    evaluate_every: Count = Field(60, description="optimiser steps between validations and checkpoints")
    early_stopping_patience: Count | None = Field(3, description="validations without improvement; null: to the end")
    sample_prompts: FewOrNone = Field(2, description="validation prompts answered at each validation")

    @property
    def adaptive(self) -> bool:
        """Whether AdaLoRA moves ranks between layers."""
        return self.method != "full" and self.adapter == "adalora"

    @model_validator(mode="after")
    def _adalora_runs_to_the_end(self) -> Self:
        if self.adaptive and self.early_stopping_patience is not None:
            raise ValueError("adalora plans its ranks over the whole run; set early_stopping_patience to null")
        return self


class Prefer(Section):
    """Training beyond imitation, on top of what `train` made; what is not named here is as in `train`."""

    objective: Literal["sft", "dpo", "kto", "distil", "grpo"] = Field(
        "sft",
        description="sft: nothing more; dpo: pairs; kto: thumbs; distil: a teacher; grpo: the task's own contract",
    )
    beta: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="what leaving the SFT model costs; null: 0.1 for dpo and kto, nothing for grpo"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(1e-4, description="the highest of the schedule")
    epochs: Annotated[float, Field(gt=0, le=10_000)] = Field(1, description="how often each row is seen")
    batch_size: Size = Field(16, description="rows of one optimiser step; of grpo, answers")
    evaluate_every: Count = Field(20, description="optimiser steps between validations and checkpoints")
    early_stopping_patience: Count | None = Field(3, description="validations without improvement; null: to the end")
    validation_share: Share = Field(0.1, description="of the prompts of data/preferences, held back; for dpo and kto")
    validation_rows: Size = Field(64, description="validation prompts answered at each validation; for distil and grpo")
    generations: Annotated[int, Field(ge=2, le=1024)] = Field(8, description="answers to each prompt; for grpo")
    temperature: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="of the answers that are learnt from")
    max_new_tokens: Size = Field(64, description="an answer that is learnt from ends after so many tokens")
    teacher: PathName | None = Field(None, description="folder of the model that distil learns from")
    teacher_sha256: Digest = Field("", description="what that folder must hash to: it is no stage's output")

    @model_validator(mode="after")
    def _has_what_its_objective_needs(self) -> Self:
        if self.objective == "grpo" and self.batch_size % self.generations:
            raise ValueError(f"batch_size must be a multiple of generations, which is {self.generations}")
        if self.objective == "distil" and not self.teacher:
            raise ValueError("distil needs a teacher: the folder of a model in the transformers layout")
        return self


Enforced = Literal["none", "schema", "labels"]


class Generation(Section):
    """How answers are generated: greedily, in batches."""

    max_new_tokens: Size = Field(40, description="an answer ends after so many tokens")
    enforce: Enforced = Field("none", description="what answers are held to as they are decoded; judged both ways")


class Engine(Section):
    """A server that runs elsewhere and holds the artefact: it is asked in place of one that is started here."""

    url: Endpoint | None = Field(None, description="its address before /chat/completions; null for none")
    name: Literal["llama.cpp", "vllm"] = Field("vllm", description="the engine that it is")
    model: Phrase | None = Field(None, description="the model's name there; null for the format's")
    key_variable: Variable | None = Field(None, description="environment variable that holds its key; null for none")


class Nf4(Section):
    """The artefact in 4-bit NormalFloat."""

    keep_in_16_bit: list[Phrase] = Field(
        [], description="linear layers that are not quantised: down_proj, model.layers.0 ...; the output layer never is"
    )
    double_quantisation: bool = Field(True, description="the scales are in 8 bit: 0.37 bit a weight less")
    calibrated: bool = Field(True, description="rounded by GPTQ for training rows; false: each weight to its nearest")


class Gguf(Section):
    """The artefact for llama.cpp."""

    type: Literal["F16", "Q8_0", "Q4_0"] = Field("Q8_0", description="of its matrices; for Q4_0 rows divide by 32")


class CompressedTensors(Section):
    """The artefact for vLLM: compressed-tensors; 4 bit by GPTQ on training rows, 8 bit to the nearest."""

    scheme: Literal["W8A8", "W4A16"] = Field(
        "W8A8", description="W8A8: weights and inputs in 8 bit; W4A16: weights in 4 bit, by groups of 128, 64 or 32"
    )


Format = Literal["merged", "nf4", "int8", "gguf", "compressed_tensors", "lora"]
FORMATS: tuple[str, ...] = get_args(Format)


class Quantize(Section):
    """The artefacts that merge_quantize writes, and the engine that serves and judges each."""

    formats: list[Format] = Field(
        ["merged", "nf4", "int8", "gguf"],
        description="what ships, merged always; one that is left out is neither written nor judged",
    )
    engines: dict[Format, Literal["transformers", "llama.cpp", "vllm"]] = Field(
        {}, description="FORMAT: the engine that serves it; transformers, and llama.cpp for gguf, where none is named"
    )
    nf4: Nf4 = Nf4()
    gguf: Gguf = Gguf()
    compressed_tensors: CompressedTensors = CompressedTensors()

    @model_validator(mode="after")
    def _can_be_made_and_served(self) -> Self:
        if "merged" not in self.formats or len({*self.formats}) < len(self.formats):
            raise ValueError("formats names each format once, and merged among them")
        wrong = [name for name, engine in self.engines.items() if (name == "gguf") != (engine == "llama.cpp")]
        if wrong:
            raise ValueError(f"engines: llama.cpp serves gguf and nothing else does; change that of {wrong[0]}")
        if self.engines.get("lora", "transformers") != "transformers":
            raise ValueError("engines: lora is judged by transformers, on its base; leave it out")
        return self
