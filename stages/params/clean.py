"""`clean`: raw rows to records."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.params.section import Count, Country, PathName, Phrase, Section, Share

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
    """One source: the raw files whose path below `clean.raw` fits the pattern `files`, or a data set by its name."""

    files: PathName | None = Field(None, description="pattern of paths below clean.raw, such as tickets/*.jsonl")
    dataset: str | None = Field(
        None,
        description="in place of files: a data set of the hub, OWNER/NAME@COMMIT with the full commit (a private one "
        "needs HF_TOKEN in the environment), or the folder below clean.raw of one that was cloned or saved to disk",
    )
    config: str | None = Field(None, description="of a data set that has several")
    split: str = Field("train", description="of the data set, such as train or test")
    shape: Shape = Field("auto", description="how its rows are written; auto finds it")

    @model_validator(mode="after")
    def _files_or_a_data_set(self) -> "Source":
        if (self.files is None) == (self.dataset is None):
            raise ValueError("has to name either files or a dataset; give one of them")
        return self


class Clean(Section):
    """Raw rows to records; of the limits, null switches one off."""

    raw: PathName = Field("data/raw", description="a JSONL file, or a folder of them")
    sources: dict[str, Source] = Field(
        {},
        description="NAME: {files: PATTERN, shape: SHAPE} or NAME: {dataset: OWNER/NAME@COMMIT, split: SPLIT}; "
        "a file that none names is a source of its own",
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
    strip_html: bool = Field(True, description="take the tags out of texts that are written in HTML")
    normalise_whitespace: bool = Field(
        True, description="plain spaces and line ends, nothing unseen that no script needs, no space at the ends"
    )
    clean_completions: list[Literal["mojibake", "html", "whitespace"]] = Field(
        [], description="which of these repairs answers get, too; [] leaves answers as they are but for personal data"
    )
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
