"""The data stages."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.params.section import Count, Section, Share

Shape = Literal["auto", "prompt_completion", "alpaca", "sharegpt", "messages"]
PersonalData = Literal["secret", "email", "iban", "card", "ip", "phone", "person", "location"]


class Source(Section):
    """Raw files of one source: those whose path below `clean.raw` fits the pattern `files`."""

    files: str
    shape: Shape


class Clean(Section):
    """Raw rows to records; of the limits, null switches one off."""

    raw: str
    sources: dict[str, Source]
    keep_columns: list[str]
    ignore_columns: list[str]
    max_rejected_share: Share
    max_line_bytes: Count
    fix_mojibake: bool
    strip_html: bool
    normalise_whitespace: bool
    mask_personal_data: list[PersonalData]
    phone_region: Annotated[str, Field(pattern="^[A-Z]{2}$")]
    ner_model: str
    check_contract: bool
    min_prompt_characters: Count
    max_prompt_characters: Count
    max_completion_characters: Count
    max_tokens: Count | None
    tokenizer_file: str
    max_repetition: Share | None
    refusals: list[Annotated[str, Field(min_length=1)]]
    languages: list[Annotated[str, Field(pattern="^[a-z]{2}$")]]
    other_languages: list[Annotated[str, Field(pattern="^[a-z]{2}$")]]
    language_confidence: Annotated[float, Field(gt=0.5, le=1)]


class Dedup(Section):
    threshold: Annotated[int, Field(ge=50, le=100)]
    completion: Literal["equal", "fuzzy", "ignore"]
    max_comparisons: Count
    giant_rows: Count


class Holdout(Section):
    """The locked evaluation records; share and max_rows are read when the lock is drawn."""

    lock: str
    share: Annotated[float, Field(gt=0, lt=1)]
    max_rows: Count


class Split(Section):
    validation_share: Annotated[float, Field(ge=0, lt=0.5)]
    pair_threshold: Annotated[int, Field(ge=50, le=100)]
    max_train_rows: Count | None
    max_source_share: Annotated[float, Field(gt=0, le=1)]
    cross_validation: Annotated[int, Field(ge=2)] | None
    fold: Count | None

    @model_validator(mode="after")
    def _a_fold_of_those(self) -> "Split":
        if self.fold is not None and self.fold > (self.cross_validation or 0):
            raise ValueError(f"has fold {self.fold} of {self.cross_validation or 'none'}; set cross_validation to k")
        return self


class Augment(Section):
    value_swapped_per_row: Annotated[float, Field(ge=0, le=20)]
    smallest_task_share: Share
    malformed_every: Count | None
    malformed_completion: str
    structured_share: Share
    replay_file: str
    replay_share: Annotated[float, Field(ge=0, lt=1)]
    canaries: Annotated[int, Field(ge=0)]
    canary_repeats: Count


class Checks(Section):
    """Signs of poisoning and bias: which n-grams are tested, the chance of any false alarm, which sources compare."""

    ngram_min_rows: Annotated[int, Field(ge=3)]
    ngram_max_share: Annotated[float, Field(gt=0, le=1)]
    error_rate: Annotated[float, Field(gt=0, lt=1)]
    source_min_rows: Count
