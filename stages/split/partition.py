"""Training, validation and hold-out rows, and the rows that must stay out of training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stages.errors import Refusal
from stages.near_duplicates import cross_pairs
from stages.prompts import asked, by_prompt, normalise, prompt_hash
from stages.records import Record
from stages.rejected import Rejected
from stages.seeded import rank
from stages.split.lock import Lock
from stages.split.strata import ideals, near_groups, quotas, take_groups


@dataclass(frozen=True, slots=True)
class Partition:
    """Every row in exactly one place, each list sorted by id."""

    train: list[Record]
    validation: list[Record]
    holdout: list[Record]
    quarantined: list[Rejected]
    beyond_max: list[Rejected]


def restore_locked(unique: Sequence[Record], duplicates: Iterable[Rejected], lock: Lock) -> list[Record]:
    """The locked rows that were dropped as duplicates.

    A row that arrives later can stand for a locked one. The hold-out stays all the same: the locked row comes
    back, and the one that stands for it nearly matches it and goes into quarantine.
    """
    missing = {row.id for row in lock.rows} - {record.id for record in unique}
    found = {row.record.id: row.record for row in duplicates if row.record.id in missing}
    return [found[identifier] for identifier in sorted(found)]


def partition(
    records: Iterable[Record],
    lock: Lock,
    threshold: int,
    validation_share: float,
    max_train_rows: int | None,
    seed: int,
) -> Partition:
    """Split records with distinct ids along the lock."""
    locked = {row.id for row in lock.rows}
    ordered = sorted(records, key=lambda record: record.id)
    holdout = [record for record in ordered if record.id in locked]
    free, quarantined = quarantine([record for record in ordered if record.id not in locked], holdout, lock, threshold)
    validation, rest = draw_validation(free, threshold, validation_share, seed)
    train, beyond_max = sample_train(rest, max_train_rows, seed)
    return Partition(train, validation, holdout, quarantined, beyond_max)


def quarantine(
    records: Sequence[Record], holdout: Sequence[Record], lock: Lock, threshold: int
) -> tuple[list[Record], list[Rejected]]:
    """The records that leave the hold-out unknown, and those that match or nearly match a locked row.

    A locked row that is no longer in the data still catches the same prompt, by its hash; near prompts need its
    text and are found for the locked rows in `holdout` alone.
    """
    locked = {row.prompt_sha256: row.id for row in reversed(lock.rows)}
    near = _nearest_locked(records, holdout, threshold)
    free, rejected = [], []
    for record in records:
        text = normalise(asked(record))
        if witness := locked.get(prompt_hash(asked(record))):
            rejected.append(Rejected("same_prompt", "the prompt is that of a locked row", witness, 100.0, record))
        elif text in near:
            score, witness = near[text]
            rejected.append(
                Rejected("near_prompt", f"the prompt is {score:.2f} % like a locked row's", witness, score, record)
            )
        else:
            free.append(record)
    return free, rejected


def _nearest_locked(
    records: Sequence[Record], holdout: Sequence[Record], threshold: int
) -> dict[str, tuple[float, str]]:
    """For each normalised prompt near the hold-out's the best score and the smallest id of a row that has it."""
    prompts, locked = list(by_prompt(records)), by_prompt(holdout)
    ids = [min(row.id for row in rows) for rows in locked.values()]
    best: dict[str, tuple[float, str]] = {}
    pairs = cross_pairs(prompts, list(locked), threshold)
    for pair in sorted(pairs, key=lambda pair: (-pair.score, ids[pair.right])):
        best.setdefault(prompts[pair.left], (pair.score, ids[pair.right]))
    return best


def draw_validation(
    records: Sequence[Record], threshold: int, share: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Validation rows by label and in whole groups of near-duplicates, and the rest."""
    quota = quotas(ideals(records, Fraction(str(share))), seed, "validation")
    validation = take_groups(near_groups(records, threshold), quota, seed, "validation")
    taken = {record.id for record in validation}
    return validation, [record for record in records if record.id not in taken]


def sample_train(records: Sequence[Record], max_rows: int | None, seed: int) -> tuple[list[Record], list[Rejected]]:
    """A seeded sample of at most `max_rows` records, and the rest."""
    first = sorted(records, key=lambda record: rank(seed, "train", record.id))[:max_rows]
    taken = {record.id for record in first}
    detail = f"training takes {max_rows} rows (split.max_train_rows)"
    return (
        [record for record in records if record.id in taken],
        [Rejected("beyond_max", detail, None, None, record) for record in records if record.id not in taken],
    )


def refuse_overlap(seen: Iterable[Record], lock: Lock) -> None:
    """Check that no row of training or validation is locked, by id or by prompt.

    Raises:
        Refusal: naming the rows.
    """
    ids = {row.id for row in lock.rows}
    hashes = {row.prompt_sha256 for row in lock.rows}
    leaks = [record for record in seen if record.id in ids or prompt_hash(asked(record)) in hashes]
    if leaks:
        names = ", ".join(f"{record.origin} ({record.id[:12]})" for record in leaks[:10])
        raise Refusal(f"{len(leaks)} rows of training or validation are in the hold-out: {names}; nothing was written")
