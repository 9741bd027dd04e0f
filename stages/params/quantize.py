"""`quantize`: what the files in fewer bits keep."""

from pydantic import Field

from stages.params.section import Phrase, Section


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
