"""What all sections of params.yaml share."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _path(text: str) -> str:
    if "\0" in text or any(len(part.encode()) > 255 for part in text.split("/")) or len(text.encode()) > 4000:
        raise ValueError("is no path: a name in it has at most 255 bytes, and no NUL")
    return text


def _file(text: str) -> str:
    if Path(_path(text)).is_dir():
        raise ValueError("is a folder; name a file")
    return text


# Every number has both bounds: a mistaken power of ten is a sentence and not a machine that runs out of memory.
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Number = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]  # of what stands in memory at once
Few = Annotated[int, Field(ge=1, le=1000)]
FewOrNone = Annotated[int, Field(ge=0, le=10_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Phrase = Annotated[str, Field(min_length=1)]
Phrases = Annotated[list[Phrase], Field(min_length=1)]
Country = Annotated[str, Field(pattern="^[A-Z]{2}$")]
PathName = Annotated[str, Field(min_length=1), AfterValidator(_path)]
FileName = Annotated[str, Field(min_length=1), AfterValidator(_file)]


class Section(BaseModel):
    """A section of params.yaml: no unknown keys, no changes after loading, each value of the type that YAML read.

    Strict, because DVC records what YAML read: a text that counts as a number or as true would be recorded as text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
