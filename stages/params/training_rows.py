"""`dedup`, `holdout`, `split`, `augment`, `checks`: which rows train, validate and judge."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Count, Few, FewOrNone, FileName, Section, Share

Ratio = Annotated[int, Field(ge=50, le=100)]


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
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="of the rows; not used where `tunetrail holdout draw --source NAME` takes a whole source"
    )
    max_rows: Count = Field(48, description="the hold-out has at most so many rows")


class Split(Section):
    """Training and validation rows, none of which leaks into the hold-out."""

    validation_share: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.08, description="of the rows outside the hold-out; for early stopping"
    )
    pair_threshold: Ratio = Field(
        80,
        description="rows with one completion that at most ten rows have are near from this ratio of their prompts",
    )
    max_train_rows: Count | None = Field(None, description="train on a seeded sample of this many rows; null for all")
    max_source_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1, description="no source has more than this share of the training rows; what is over stays out"
    )
    cross_validation: Annotated[int, Field(ge=2, le=100)] | None = Field(
        None, description="k: write k folds of the rows outside the hold-out to data/split/folds/"
    )
    fold: Count | None = Field(None, description="1 to k: train and validate on this fold")

    @model_validator(mode="after")
    def _a_fold_of_those(self) -> Self:
        if self.fold is not None and self.fold > (self.cross_validation or 0):
            raise ValueError(f"has fold {self.fold} of {self.cross_validation or 'none'}; set cross_validation to k")
        return self


class Augment(Section):
    """Rows added to the training rows."""

    value_swapped_per_row: Annotated[float, Field(ge=0, le=20)] = Field(
        0, description="rows with exchanged values (city, name ...) added for each row; 0 for none"
    )
    smallest_task_share: Share = Field(
        0, description="every tagged task has at least this share of the largest one's rows; 0 for as it is"
    )
    malformed_every: Count | None = Field(
        None, description="one row with a malformed prompt for so many rows; null for none"
    )
    malformed_completion: str = Field("", description="the right answer to a malformed prompt")
    structured_share: Share = Field(0, description="at least this share of rows has a JSON completion")
    replay_file: FileName = Field("data/replay.jsonl", description="general rows against forgetting")
    replay_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.04, description="of the final rows, at most as many as the file has; 0 for none"
    )
    canaries: FewOrNone = Field(
        0, description="secrets planted for an audit of memorisation; such a model is never released"
    )
    canary_repeats: Few = Field(4, description="how often each secret stands in the training rows")


class Checks(Section):
    """Signs of poisoning and bias: which n-grams are tested, the chance of any false alarm, which sources compare."""

    ngram_min_rows: Annotated[int, Field(ge=3, le=10**9)] = Field(
        5, description="an n-gram in fewer rows is not tested"
    )
    ngram_max_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05, description="an n-gram in more than this share of the rows is not tested"
    )
    error_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="chance of any false alarm among all n-grams"
    )
    source_min_rows: Count = Field(
        50, description="a source with fewer rows is listed, and its distances are not judged"
    )
