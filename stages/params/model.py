"""`model`, `generation`, `quantize`: the base model, how it is asked for answers, and how it is made smaller."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stages.params.section import Count, Phrase, Section


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

    source: Annotated[str, AfterValidator(_known_source)] = Field(
        description="package:NAME==VERSION (a GGUF file in a Python package), hub:NAME@COMMIT or path:FOLDER"
    )
    file: str | None = Field(None, description="the GGUF file inside the package; null for hub and path")
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = Field(
        "", description="what the file or folder must hash to; empty for no check"
    )
    licence: str = Field(description="of the base model; the model card repeats it")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="number format of models/base and of the merged model"
    )
    chat_template: str = Field(
        "data/chat_template.jinja",
        description="file in place of the model's own chat template; a comment alone for that",
    )


class Generation(Section):
    """How answers are generated: greedily, in batches."""

    max_new_tokens: Count = Field(40, description="an answer ends after so many tokens")


class Nf4(Section):
    """The artefact in 4-bit NormalFloat."""

    keep_in_16_bit: list[Phrase] = Field(
        [],
        description="linear layers that are not quantised, as transformers names them: down_proj, model.layers.0 ...; "
        "the output layer never is",
    )
    double_quantisation: bool = Field(
        True, description="the scales of the blocks are themselves in 8 bit: 0.37 bit a weight less"
    )


class Quantize(Section):
    """The artefacts that merge_quantize writes."""

    nf4: Nf4 = Nf4()
