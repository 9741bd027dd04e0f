"""`clean`, `dedup`, `holdout`, `split`, `augment`, `checks`: from raw rows to those that train, validate and judge."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import (
    AskedModel,
    Count,
    Country,
    Few,
    FewOrNone,
    FileName,
    PathName,
    Phrase,
    Section,
    Share,
    Size,
    Variable,
)

Shape = Literal["auto", "prompt_completion", "alpaca", "sharegpt", "messages"]
PersonalData = Literal["secret", "email", "iban", "card", "ip", "phone", "person", "location"]
Language = Annotated[str, Field(pattern="^[a-z]{2}$")]
Ratio = Annotated[int, Field(ge=50, le=100)]
Confidence = Annotated[float, Field(gt=0.5, le=1)]
Open = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Least = Annotated[float, Field(ge=0, lt=0.5)]
Folds = Annotated[int, Field(ge=2, le=100)]
Swaps = Annotated[float, Field(ge=0, le=20)]

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
        description="in place of files: OWNER/NAME@COMMIT of the hub (for a private one set HF_TOKEN), or the folder "
        "below clean.raw of a data set that was cloned or saved to disk",
    )
    config: str | None = Field(None, description="of a data set that has several")
    split: str = Field("train", description="of the data set, such as train or test")
    shape: Shape = Field("auto", description="how its rows are written; auto finds it")

    @model_validator(mode="after")
    def _files_or_a_data_set(self) -> Self:
        if (self.files is None) == (self.dataset is None):
            raise ValueError("has to name either files or a dataset; give one of them")
        return self


class Clean(Section):
    """Raw rows to records; of the limits, null switches one off."""

    raw: PathName = Field("data/raw", description="a JSONL file, or a folder of them")
    sources: dict[str, Source] = Field(
        {},
        description="NAME: {files: PATTERN} or {dataset: OWNER/NAME@COMMIT}; other files are each their own source",
    )
    keep_columns: list[str] = Field([], description="further columns of the raw rows that records keep, for slices")
    ignore_columns: list[str] = Field([], description='left out, ["*"] for all; other unknown ones reject their row')
    max_rejected_share: Share = Field(0.2, description="of the rows; with more rejected the stage stops")
    max_line_bytes: Count = Field(1_000_000, description="a longer line is rejected")
    fix_mojibake: bool = Field(True, description="repair text that was decoded with the wrong character set")
    strip_html: bool = Field(True, description="take the tags out of texts that are written in HTML")
    normalise_whitespace: bool = Field(
        True, description="plain spaces and line ends, nothing unseen that no script needs, no space at the ends"
    )
    clean_completions: list[Literal["mojibake", "html", "whitespace"]] = Field(
        [], description="which of these repairs answers get, too; masks of personal data they always get"
    )
    mask_personal_data: list[PersonalData] = Field(
        ["secret", "email", "iban", "card", "ip", "phone"],
        description="what is replaced by a mark; person and location need the extra names; [] for nothing",
    )
    phone_region: Country = Field("US", description="country of phone numbers without a country code")
    ner_model: str = Field("en_core_web_lg", description="spaCy model that finds persons and locations")
    check_contract: bool = Field(True, description="reject answers that break their task: the schema, the labels")
    min_prompt_characters: Count = Field(3, description="a shorter prompt is rejected")
    max_prompt_characters: Count = Field(2000, description="of all that the model reads; more is rejected")
    max_completion_characters: Count = Field(1000, description="a longer completion is rejected")
    max_repetition: Share | None = Field(
        0.5, description="share of words in 5-grams said before, from which a text is rejected; null for no limit"
    )
    refusals: list[Phrase] = Field(_REFUSALS, description="a completion that opens with one of these is rejected")
    languages: list[Language] = Field([], description="ISO 639-1 codes to keep (extra: language); [] for all")
    other_languages: list[Language] = Field([], description="the languages that they are told apart from")
    language_confidence: Confidence = Field(0.9, description="from which a prompt is taken for another language's")


class Dedup(Section):
    """Rows that repeat another row."""

    threshold: Ratio = Field(90, description="rapidfuzz.fuzz.ratio from which two prompts are near-duplicates")
    completion: Literal["equal", "fuzzy", "ignore"] = Field(
        "equal",
        description="a near-duplicate is dropped when its completion is equal, near (fuzzy), or anything (ignore)",
    )
    giant_rows: Count = Field(100, description="from so many rows on, a cluster of near-duplicates is flagged")


class Holdout(Section):
    """The locked evaluation records; share and max_rows are read when the lock is drawn."""

    lock: FileName = Field("data/holdout.lock", description="drawn once by `tunetrail holdout draw`, then in git")
    share: Open = Field(0.15, description="of the rows; unused where `tunetrail holdout draw --source NAME` draws")
    max_rows: Count = Field(48, description="the hold-out has at most so many rows")


class Split(Section):
    """Training and validation rows, none of which leaks into the hold-out."""

    validation_share: Least = Field(0.08, description="of the rows outside the hold-out; for early stopping")
    pair_threshold: Ratio = Field(
        80,
        description="rows with one completion that at most ten rows have are near from this ratio of their prompts",
    )
    max_train_rows: Count | None = Field(None, description="train on a seeded sample of this many rows; null for all")
    max_source_share: Positive = Field(1, description="no source has more than this share of the training rows")
    cross_validation: Folds | None = Field(None, description="k: write k folds of the rows outside the hold-out")
    fold: Count | None = Field(None, description="1 to k: train and validate on this fold")

    @model_validator(mode="after")
    def _a_fold_of_those(self) -> Self:
        if self.fold is not None and self.fold > (self.cross_validation or 0):
            raise ValueError(f"has fold {self.fold} of {self.cross_validation or 'none'}; set cross_validation to k")
        return self


class Paraphrases(AskedModel):
    """Prompts of training rows in other words, by a language model; off while per_row is 0."""

    called: ClassVar = "the paraphrasing model"
    section: ClassVar = "augment.paraphrases"
    per_row: Annotated[int, Field(ge=0, le=20)] = Field(0, description="paraphrases of each drawn row; may cost money")
    share: Share = Field(1, description="of the training rows, drawn by the seed, that are paraphrased")
    provider: Literal["endpoint", "local"] = Field(
        "local", description="local (model is a folder in the transformers layout), or endpoint (OpenAI-compatible)"
    )
    model: Phrase = Field("models/base", description="its folder, or its name at the endpoint")
    key_variable: Variable | None = Field(
        "PARAPHRASE_API_KEY", description="environment variable with the endpoint's key; null for none"
    )
    max_tokens: Size = Field(256, description="of one paraphrase")


class Augment(Section):
    """Rows added to the training rows."""

    value_swapped_per_row: Swaps = Field(0, description="rows with exchanged values (city, name ...) for each row")
    smallest_task_share: Share = Field(0, description="every tagged task has this share of the largest one's rows")
    paraphrases: Paraphrases = Field(Paraphrases(), description="prompts in other words, by a language model")
    malformed_every: Count | None = Field(None, description="one malformed prompt for so many rows; null for none")
    malformed_completion: str = Field("", description="the right answer to a malformed prompt")
    structured_share: Share = Field(0, description="at least this share of rows has a JSON completion")
    replay_file: FileName = Field("data/replay.jsonl", description="general rows against forgetting")
    replay_share: Part = Field(0.04, description="of the final rows, at most as many as the file has; 0 for none")
    canaries: FewOrNone = Field(0, description="secrets planted for an audit; such a model is never released")
    canary_repeats: Few = Field(4, description="how often each secret stands in the training rows")


class Checks(Section):
    """Signs of poisoning and bias: which n-grams are tested, the chance of any false alarm, which sources compare."""

    ngram_min_rows: Annotated[int, Field(ge=3, le=10**9)] = Field(5, description="an n-gram in fewer is not tested")
    ngram_max_share: Positive = Field(0.05, description="an n-gram in more than this share of the rows is not tested")
    error_rate: Open = Field(0.01, description="chance of any false alarm among all n-grams")
    source_min_rows: Count = Field(50, description="the distances of a source with fewer rows are not judged")
