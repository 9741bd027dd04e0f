"""What all sections of params.yaml share, and the section of a language model that a stage asks."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


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


def plain_endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be the http or https address before /chat/completions, such as https://HOST/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must hold no user, password or query; key_variable names the variable with the key")
    return url.rstrip("/")


# Words in capitals, with digits behind them; short ones as they like. No key that a provider gives out looks so.
_WORD = "(?:[A-Z0-9]{1,4}|[A-Z]+[0-9]{0,4})"


def variable_name(name: str) -> str:
    if len(name) > 64 or not re.fullmatch(f"(?![0-9])_*{_WORD}(?:_+{_WORD})*", name):
        raise ValueError("must be the name of an environment variable in capitals, such as JUDGE_API_KEY, not a key")
    return name


Endpoint = Annotated[str, AfterValidator(plain_endpoint)]
Variable = Annotated[str, AfterValidator(variable_name)]
Money = Annotated[float, Field(ge=0, le=1_000_000)]


class Price(Section):
    """Of one million tokens, in whatever currency."""

    input: Money = Field(0.0, description="of one million tokens that it reads")
    output: Money = Field(0.0, description="of one million tokens that it writes")


class AskedModel(Section):
    """What `stages.engines.asked_models` asks by; `called` and `section` are the words of its sentences."""

    called: ClassVar[str]
    section: ClassVar[str]
    provider: Literal["endpoint", "local"] = Field(
        "endpoint", description="endpoint (OpenAI-compatible), or local (model is a folder in the transformers layout)"
    )
    endpoint: Endpoint = Field("http://127.0.0.1:8000/v1", description="the address before /chat/completions")
    model: Phrase = Field(description="its name at the endpoint, or its folder")
    key_variable: Variable | None = Field(None, description="environment variable with the key; null for none")
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(0.0, description="of its sampling")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="of its sampling")
    max_tokens: Size = Field(16, description="of one reply")
    parallel: Annotated[int, Field(ge=1, le=64)] = Field(4, description="requests under way at once")
    timeout: Seconds = Field(60.0, description="seconds for one reply")
    attempts: Few = Field(6, description="for one reply, before the stage gives up")
    longest_wait: Seconds = Field(60.0, description="seconds between two attempts")
    price: Price = Field(Price(), description="of one million tokens, in whatever currency")

    @model_validator(mode="after")
    def _local_is_greedy(self) -> Self:
        if self.provider == "local" and self.temperature != 0:
            raise ValueError("a local model decodes greedily; set temperature to 0")
        return self
