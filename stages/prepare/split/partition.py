"""Training, validation and hold-out rows, and the rows that must stay out of training."""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction

from stages.core.errors import UserError
from stages.params import Split
from stages.prepare.split.folds import make_folds
from stages.prepare.split.lock import Lock
from stages.prepare.split.nearness import Nearness, near_groups, near_prompts, near_same_completion
from stages.prepare.split.strata import Stratum, draw
from stages.records.content_order import rank
from stages.records.dropped import Rejected, copy_rank
from stages.records.record import Record
from stages.text.normal_form import asked, normalise, prompt_hash
from stages.text.strict_json import completion_key


@dataclass(frozen=True, slots=True)
class Partition:
    """Every row in exactly one place, each list sorted by id; `validation_strata` says how validation was drawn.

    `beyond_max` are rows that training leaves out for its own size or for that of their source.

    `folds` part the rows of training and validation once more, each fold the validation rows of one experiment.
    """

    train: list[Record]
    validation: list[Record]
    holdout: list[Record]
    quarantined: list[Rejected]
    beyond_max: list[Rejected]
    validation_strata: list[Stratum]
    folds: list[list[Record]]

    def fold(self, number: int) -> tuple[list[Record], list[Record]]:
        """Training and validation rows of a fold, counted from 1."""
        validation = self.folds[number - 1]
        taken = {record.id for record in validation}
        pool = sorted(self.train + self.validation, key=lambda record: record.id)
        return [record for record in pool if record.id not in taken], validation


def restore_locked(unique: Sequence[Record], duplicates: Iterable[Rejected], locked: Set[str]) -> list[Record]:
    """The rows with `locked` ids that were dropped as duplicates, of copies the best, sorted by id.

    A row that arrives later can stand for a locked one. The hold-out stays all the same: the locked row comes
    back, and the one that stands for it nearly matches it and goes into quarantine.
    """
    missing = locked - {record.id for record in unique}
    found: dict[str, Record] = {}
    for record in sorted((row.record for row in duplicates if row.record.id in missing), key=copy_rank):
        found.setdefault(record.id, record)
    return [found[identifier] for identifier in sorted(found)]


def partition(records: Iterable[Record], lock: Lock, nearness: Nearness, settings: Split, seed: int) -> Partition:
    """Split records with distinct ids along the lock."""
    locked = {row.id for row in lock.rows}
    ordered = sorted(records, key=lambda record: record.id)
    holdout = [record for record in ordered if record.id in locked]
    free, quarantined = quarantine([record for record in ordered if record.id not in locked], holdout, lock, nearness)
    share = Fraction(str(settings.validation_share))
    validation, strata = draw(near_groups(free, nearness), share, seed, "validation")
    taken = {record.id for record in validation}
    rest = [record for record in free if record.id not in taken]
    sampled, beyond_max = sample_train(rest, settings.max_train_rows, seed)
    train, beyond_cap = cap_sources(sampled, settings.max_source_share, seed)
    beyond_max += beyond_cap
    folds = []
    if settings.cross_validation:
        folds = make_folds(near_groups(train + validation, nearness), settings.cross_validation, seed)
    parts = Partition(train, validation, holdout, quarantined, beyond_max, strata, folds)
    if settings.fold:
        train, validation = parts.fold(settings.fold)
        parts = Partition(train, validation, holdout, quarantined, beyond_max, [], folds)
    return parts


def quarantine(
    records: Sequence[Record], holdout: Sequence[Record], lock: Lock, nearness: Nearness
) -> tuple[list[Record], list[Rejected]]:
    """The records that leave the hold-out unknown, and those that match or nearly match a locked row.

    A locked row that is no longer in the data still catches the same prompt, by its hash; near rows need its
    text and are found for the locked rows in `holdout` alone.
    """
    locked = {row.prompt_sha256: row.id for row in reversed(lock.rows)}
    prompts = near_prompts(records, holdout, nearness.prompt)
    pairs = near_same_completion(records, holdout, nearness.pair)
    free, rejected = [], []
    for record in records:
        text = normalise(asked(record))
        if witness := locked.get(prompt_hash(asked(record))):
            rejected.append(Rejected("same_prompt", "the prompt is that of a locked row", witness, 100.0, record))
        elif near := prompts.get(text):
            detail = f"the prompt is {near.score:.2f} % like a locked row's"
            rejected.append(Rejected("near_prompt", detail, near.witness, near.score, record))
        elif near := pairs.get((text, completion_key(record.completion))):
            detail = f"the completion is a locked row's, and the prompt is {near.score:.2f} % like its"
            rejected.append(Rejected("near_pair", detail, near.witness, near.score, record))
        else:
            free.append(record)
    return free, rejected


def sample_train(records: Sequence[Record], max_rows: int | None, seed: int) -> tuple[list[Record], list[Rejected]]:
    """A seeded sample of at most `max_rows` records, and the rest."""
    first = sorted(records, key=lambda record: rank(seed, "train", record.id))[:max_rows]
    taken = {record.id for record in first}
    detail = f"training takes {max_rows} rows (split.max_train_rows)"
    return (
        [record for record in records if record.id in taken],
        [Rejected("beyond_max", detail, None, None, record) for record in records if record.id not in taken],
    )


def cap_sources(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Rejected]]:
    """The most records of which no source has more than `share`, a seeded sample of each large source, and the rest.

    Raises:
        UserError: when there are too few sources for that.
    """
    sources = Counter(record.source for record in records)
    cap, most = Fraction(str(share)), max(sources.values(), default=0)
    # The largest number that each source may have and still be within its share of what then is left of all.
    while most > (allowed := int(cap * sum(min(count, most) for count in sources.values()))):
        most = allowed
    if records and not most:
        raise UserError(
            f"split.max_source_share is {share}, but the training rows come from {len(sources)} sources, of which one "
            f"must have more; raise it to {1 / len(sources):.3g} at least, or add sources"
        )
    left = Counter(dict.fromkeys(sources, most))
    kept = set()
    for record in sorted(records, key=lambda record: rank(seed, "source", record.id)):
        if left[record.source]:
            left[record.source] -= 1
            kept.add(record.id)
    detail = f"its source may have {most} rows, {share:g} of the training rows (split.max_source_share)"
    return (
        [record for record in records if record.id in kept],
        [Rejected("beyond_source_cap", detail, None, None, record) for record in records if record.id not in kept],
    )
