"""data/holdout.lock: which records are the hold-out, across all iterations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import UserError
from stages.core.files import write_text
from stages.records.prompt import asked
from stages.records.record import Record
from stages.text.normal_form import NORMALISER_VERSION, prompt_hash
from stages.text.strict_json import parse_json

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

_REMEDY = "restore it with git, or draw one with `tunetrail holdout draw`, anew with --redraw"

# An id is that of the cleaned texts.
_WHY_MISSING = (
    "each was taken out, or has another id since a repair, mask or contract of `clean` was changed, and is trained on "
    "as that; if so, change it back, or draw on purpose with `tunetrail holdout draw --redraw`"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LockedRow(_Strict):
    """One hold-out record: its id, its label, the SHA-256 of its normalised prompt, and the slice that it is of.

    `slice` is the source that was added; None for a row of the first draw.
    """

    id: Digest
    label: str | None
    prompt_sha256: Digest
    slice: str | None = None


class DrawnLabel(_Strict):
    """One label in the data at the draw: its rows, the number aimed at, and the rows that whole groups allowed."""

    label: str | None
    rows: int
    quota: int
    drawn: int


class Drawn(_Strict):
    """How the hold-out was drawn: the parameters of that time, and MD5 (DVC's name), rows and labels of the data."""

    labels: list[DrawnLabel] = []
    max_rows: int
    pair_threshold: int | None = None
    rows: int
    seed: int
    share: float
    threshold: int
    unique_md5: str


class Added(Drawn):
    """How a slice was drawn: from the rows of `source` alone, and `rows` are those that could be drawn."""

    source: str


class WholeSource(_Strict):
    """The source whose rows are the hold-out, its labels, and the MD5 and rows of the data at that time."""

    labels: list[DrawnLabel]
    rows: int
    source: str
    unique_md5: str


class Lock(_Strict):
    added: list[Added] = []
    drawn: Drawn | WholeSource
    format: Literal[1]
    normaliser_version: int
    rows: Annotated[list[LockedRow], Field(min_length=1)]

    def prompts(self) -> dict[str, str]:
        """The ids by the hashes of the prompts; of one prompt the first id."""
        return {row.prompt_sha256: row.id for row in reversed(self.rows)}


def make_lock(records: list[Record], drawn: Drawn | WholeSource) -> Lock:
    rows = [LockedRow(id=row.id, label=row.label, prompt_sha256=prompt_hash(asked(row))) for row in records]
    ordered = sorted(rows, key=lambda row: row.id)
    return Lock(drawn=drawn, format=1, normaliser_version=NORMALISER_VERSION, rows=ordered)


def with_slice(lock: Lock, records: list[Record], added: Added) -> Lock:
    """The lock with further rows; those that are there stay as they are."""
    new = [row.model_copy(update={"slice": added.source}) for row in make_lock(records, added).rows]
    rows = sorted([*lock.rows, *new], key=lambda row: row.id)
    return lock.model_copy(update={"added": [*lock.added, added], "rows": rows})


def write_lock(path: Path, lock: Lock) -> None:
    """Write JSON with sorted keys and one row a line, so that a diff shows the rows that came and went."""
    values = lock.model_dump(exclude_defaults=True)  # a lock without slices is as it was before there were any
    head = [
        f" {json.dumps(key)}: {json.dumps(values[key], sort_keys=True)}," for key in sorted(values) if key != "rows"
    ]
    rows = [f"  {json.dumps(row, ensure_ascii=False, sort_keys=True)}" for row in values["rows"]]
    write_text(path, "\n".join(["{", *head, ' "rows": [', ",\n".join(rows), " ]", "}"]) + "\n")


def read_lock(path: Path) -> Lock:
    """Read and check the lock. Raises UserError when it is missing, no lock, or of another normaliser."""
    try:
        text = path.read_text(encoding="utf-8")
        parse_json(text)  # pydantic takes a key that stands twice, as after a merge, and believes the last
        lock = Lock.model_validate_json(text)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_REMEDY}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is no hold-out lock ({where}: {first['msg']}); {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no hold-out lock ({error}); {_REMEDY}") from None
    if lock.normaliser_version != NORMALISER_VERSION:
        raise UserError(
            f"{path} has prompt hashes of normaliser {lock.normaliser_version}, this code has {NORMALISER_VERSION}; "
            "draw it anew with `tunetrail holdout draw --redraw`"
        )
    if len({row.id for row in lock.rows}) < len(lock.rows):
        raise UserError(f"{path} names a row more than once; {_REMEDY}")
    drawn = sum(one.drawn for how in (lock.drawn, *lock.added) for one in how.labels)
    if lock.drawn.labels and drawn != len(lock.rows):  # a row that is gone from it would be trained on
        raise UserError(f"{path} has {len(lock.rows)} rows, but {drawn} were drawn; {_REMEDY}")
    return lock


def said_of_missing(missing: int, rows: int) -> str:
    return f"warning: {missing} of {rows} locked rows are no longer in the data: {_WHY_MISSING}"


def check_holdout(path: Path, lock: Lock, holdout: Sequence[Record]) -> None:
    """Raises UserError when no locked row is in the data, or a hash in the lock was changed by hand."""
    if not holdout:
        raise UserError(f"none of the {len(lock.rows)} rows of {path} is in the data: {_WHY_MISSING}")
    hashes = {row.id: row.prompt_sha256 for row in lock.rows}
    wrong = [record.id for record in holdout if hashes[record.id] != prompt_hash(asked(record))]
    if wrong:
        raise UserError(f"{path} has another prompt_sha256 than the data for row {wrong[0]}; {_REMEDY}")
