"""`augment`, `checks`: rows added to the training rows, and signs of poisoning and bias in them."""

from typing import Annotated

from pydantic import Field

from stages.params.section import Count, Number, Section, Share


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
    replay_file: str = Field("data/replay.jsonl", description="general rows against forgetting")
    replay_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.04, description="of the final rows, at most as many as the file has; 0 for none"
    )
    canaries: Number = Field(
        0, description="secrets planted for an audit of memorisation; such a model is never released"
    )
    canary_repeats: Count = Field(4, description="how often each secret stands in the training rows")


class Checks(Section):
    """Signs of poisoning and bias: which n-grams are tested, the chance of any false alarm, which sources compare."""

    ngram_min_rows: Annotated[int, Field(ge=3)] = Field(5, description="an n-gram in fewer rows is not tested")
    ngram_max_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05, description="an n-gram in more than this share of the rows is not tested"
    )
    error_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="chance of any false alarm among all n-grams"
    )
    source_min_rows: Count = Field(
        50, description="a source with fewer rows is listed, and its distances are not judged"
    )
