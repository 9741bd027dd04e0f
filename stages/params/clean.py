"""`clean`: raw rows to records."""

from typing import Annotated, Literal

from pydantic import Field

from stages.params.section import Count, Country, Phrase, Section, Share

Shape = Literal["auto", "prompt_completion", "alpaca", "sharegpt", "messages"]
PersonalData = Literal["secret", "email", "iban", "card", "ip", "phone", "person", "location"]
Language = Annotated[str, Field(pattern="^[a-z]{2}$")]

_REFUSALS = [
    "i'm sorry, but i cannot",
    "i'm sorry, but i can't assist",
    "i'm sorry, but i can't help",
    "i can't assist with",
    "i cannot assist with",
    "as an ai language model",
]


class Source(Section):
    """Raw files of one source: those whose path below `clean.raw` fits the pattern `files`."""

    files: str = Field(description="pattern of paths below clean.raw, such as tickets/*.jsonl")
    shape: Shape = Field("auto", description="how its rows are written; auto finds it")


class Clean(Section):
    """Raw rows to records; of the limits, null switches one off."""

    raw: str = Field("data/raw", description="a JSONL file, or a folder of them")
    sources: dict[str, Source] = Field(
        {}, description="NAME: {files: PATTERN, shape: SHAPE}; a file that none names is a source of its own"
    )
    keep_columns: list[str] = Field([], description="further columns of the raw rows that records keep, for slices")
    ignore_columns: list[str] = Field(
        [], description='columns to leave out, ["*"] for all; any other unknown column rejects its row'
    )
    max_rejected_share: Share = Field(
        0.2, description="of the rows; with more rejected the stage stops, for the input is not what was meant"
    )
    max_line_bytes: Count = Field(1_000_000, description="a longer line is rejected")
    fix_mojibake: bool = Field(True, description="repair text that was decoded with the wrong character set")
    strip_html: bool = Field(True, description="take HTML tags out of prompts and completions")
    normalise_whitespace: bool = Field(True, description="one space where there are several, no space at the ends")
    mask_personal_data: list[PersonalData] = Field(
        ["secret", "email", "iban", "card", "ip", "phone"],
        description="what is replaced by a mark; person and location need the extra names; [] for nothing",
    )
    phone_region: Country = Field("US", description="country of phone numbers without a country code")
    ner_model: str = Field("en_core_web_lg", description="spaCy model that finds persons and locations")
    check_contract: bool = Field(
        True, description="reject answers that break their task: JSON that fits no schema, a label that is none"
    )
    min_prompt_characters: Count = Field(3, description="a shorter prompt is rejected")
    max_prompt_characters: Count = Field(2000, description="of all that the model reads; more is rejected")
    max_completion_characters: Count = Field(1000, description="a longer completion is rejected")
    max_tokens: Count | None = Field(None, description="of prompt and completion together; null for no limit")
    tokenizer_file: str = Field("models/base/tokenizer.json", description="counts the tokens for max_tokens")
    max_repetition: Share | None = Field(
        0.5, description="share of words in 5-grams said before, from which a text is rejected; null for no limit"
    )
    refusals: list[Phrase] = Field(
        _REFUSALS,
        description="a completion that opens with one of these teaches to refuse, and is rejected; [] for none",
    )
    languages: list[Language] = Field([], description="ISO 639-1 codes to keep (extra: language); [] for all")
    other_languages: list[Language] = Field([], description="the languages that they are told apart from")
    language_confidence: Annotated[float, Field(gt=0.5, le=1)] = Field(
        0.9, description="from which a prompt is taken for one of another language"
    )
