"""What all sections of params.yaml share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Phrase = Annotated[str, Field(min_length=1)]
Country = Annotated[str, Field(pattern="^[A-Z]{2}$")]


class Section(BaseModel):
    """A section of params.yaml: no unknown keys, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
