"""Training, validation and hold-out rows, the rows that stay out of training, and what all this came to in numbers.

Draws keep the shares of the labels and never part near-duplicates: the hold-out, validation and folds.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from stages.core.errors import UserError
from stages.near_duplicates.nearness import Nearness, near_groups, quarantine
from stages.params.prepare import Split
from stages.prepare.split.lock import Lock
from stages.records.prompt import asked, compared
from stages.records.record import Dropped, Record, copy_rank, rank
from stages.text.normal_form import normalise

_QUARANTINE = ("same_prompt", "near_prompt", "same_text", "near_pair")
_N = 13
_WORD = re.compile(r"\w+")

Label = str | None
Group = Sequence[Record]


@dataclass(frozen=True, slots=True)
class Stratum:
    """One label: its rows, the exact share of them that was wanted, the whole number aimed at, and the rows drawn."""

    label: Label
    rows: int
    ideal: Fraction
    quota: int
    drawn: int


def label_name(label: Label) -> str:
    return "(no label)" if label is None else label


def stratified_draw(
    groups: Sequence[Group], share: Fraction, seed: int, purpose: str
) -> tuple[list[Record], list[Stratum]]:
    """Draw `share` of the records by label and in whole groups: the records sorted by id, and a stratum a label.

    A label without near-duplicates is drawn to within one row of its share, and never whole: one row of it stays.
    Where `drawn` is below `quota`, no group that is left fits.
    """
    rows = Counter(record.label for group in groups for record in group)
    ideal = {label: count * share for label, count in rows.items()}
    quota = quotas(ideal, rows, seed, purpose)
    drawn = take_groups(groups, quota, seed, purpose)
    found = Counter(row.label for row in drawn)
    labels = sorted(rows, key=lambda label: (label is None, label or ""))
    return drawn, [Stratum(label, rows[label], ideal[label], quota[label], found[label]) for label in labels]


def quotas(ideal: Mapping[Label, Fraction], rows: Mapping[Label, int], seed: int, purpose: str) -> dict[Label, int]:
    """Whole numbers within one of `ideal`, whose sum is the rounded sum of `ideal` (largest remainders, Hamilton).

    Each is below `rows`, the label's number of rows; what a label cannot give for that, the next remainder gives.
    Equal remainders go by the seed, so that no label wins by its name.
    """
    whole = {label: int(amount) for label, amount in ideal.items()}
    left = int(sum(ideal.values()) + Fraction(1, 2)) - sum(whole.values())
    first = sorted(ideal, key=lambda label: (whole[label] - ideal[label], rank(seed, f"{purpose} label", repr(label))))
    for label in [label for label in first if whole[label] < ideal[label] and whole[label] + 1 < rows[label]][:left]:
        whole[label] += 1
    return whole


def take_groups(groups: Iterable[Group], quota: Mapping[Label, int], seed: int, purpose: str) -> list[Record]:
    """Take whole groups in a seeded order, each that fits into what is left of the quota of all its labels.

    A group's place is that of its first record, so the draw depends on no order and a new record moves few. No
    quota is exceeded, and none misses as many rows as the smallest group of its label alone that was not taken.
    """
    left = Counter(quota)
    taken: list[Record] = []
    for group in in_seeded_order(groups, seed, purpose):
        need = Counter(row.label for row in group)
        if all(left[label] >= count for label, count in need.items()):
            left.subtract(need)  # `-=` would look at every label
            taken += group
    return sorted(taken, key=lambda record: record.id)


def in_seeded_order(groups: Iterable[Group], seed: int, purpose: str) -> list[Group]:
    return sorted(groups, key=lambda group: min(rank(seed, purpose, row.id) for row in group))


def make_folds(groups: Sequence[Group], count: int, seed: int) -> list[list[Record]]:
    """Part the records into `count` folds of like shares of the labels, in whole groups."""
    most = max(Counter(row.label for group in groups for row in group).values(), default=0)
    if min(len(groups), most) < count:
        raise UserError(
            f"split.cross_validation is {count}, but outside the hold-out are {len(groups)} groups of near-duplicates, "
            f"and no label has more than {most} rows; lower it or add rows"
        )
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    ordered = in_seeded_order(groups, seed, "fold")
    rows = [row for group in ordered for row in group]
    group_of = [number for number, group in enumerate(ordered) for _ in group]
    labels = [repr(row.label) for row in rows]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # then some folds have no row of that label
        parts = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(rows, labels, group_of))
    return [sorted((rows[place] for place in places), key=lambda row: row.id) for _, places in parts]


@dataclass(frozen=True, slots=True)
class Partition:
    """Every row in exactly one place, each list sorted by id.

    `beyond_max` are rows that training leaves out for its own size or for that of their source. `folds` part the rows
    of training and validation once more, each fold the validation rows of one experiment.
    """

    train: list[Record]
    validation: list[Record]
    holdout: list[Record]
    quarantined: list[Dropped]
    beyond_max: list[Dropped]
    validation_strata: list[Stratum]
    folds: list[list[Record]]

    def fold(self, number: int) -> tuple[list[Record], list[Record]]:
        """Training and validation rows of a fold, counted from 1."""
        validation = self.folds[number - 1]
        taken = {record.id for record in validation}
        pool = sorted(self.train + self.validation, key=lambda record: record.id)
        return [record for record in pool if record.id not in taken], validation


def restore_locked(unique: Sequence[Record], duplicates: Iterable[Dropped], locked: Set[str]) -> list[Record]:
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
    others = [record for record in ordered if record.id not in locked]
    free, quarantined = quarantine(others, holdout, lock.prompts(), nearness)
    share = Fraction(str(settings.validation_share))
    validation, strata = stratified_draw(near_groups(free, nearness), share, seed, "validation")
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
        parts = replace(parts, train=train, validation=validation, validation_strata=[])
    return parts


def sample_train(records: Sequence[Record], max_rows: int | None, seed: int) -> tuple[list[Record], list[Dropped]]:
    """A seeded sample of at most `max_rows` records, and the rest."""
    if max_rows is None or max_rows >= len(records):
        return [*records], []
    kept = _sample(records, {"": max_rows}, lambda _: "", seed, "train")
    return _parted(records, kept, "beyond_max", f"training takes {max_rows} rows (split.max_train_rows)")


def cap_sources(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Dropped]]:
    """The most records of which no source has more than `share`, a seeded sample of each large source, and the rest."""
    sources = Counter(record.source for record in records)
    cap, most = Fraction(str(share)), max(sources.values(), default=0)
    # The largest number that each source may have and still be within its share of what then is left of all.
    while most > (allowed := int(cap * sum(min(count, most) for count in sources.values()))):
        most = allowed
    if records and not most:
        raise UserError(
            f"split.max_source_share is {share}, but the training rows come from {len(sources)} sources; raise it to "
            f"{1 / len(sources):.3g} at least, or add sources"
        )
    if most == max(sources.values(), default=0):
        return [*records], []
    kept = _sample(records, dict.fromkeys(sources, most), lambda record: record.source, seed, "source")
    detail = f"its source may have {most} rows, {share:g} of the training rows (split.max_source_share)"
    return _parted(records, kept, "beyond_source_cap", detail)


def _sample(
    records: Sequence[Record], room: Mapping[str, int], pool: Callable[[Record], str], seed: int, purpose: str
) -> set[str]:
    """The ids of the first records in a seeded order that each pool has room for, one of every label before all."""
    ordered = sorted(records, key=lambda record: rank(seed, purpose, record.id))
    left, kept, labels = Counter(room), set[str](), set[Label]()
    for every_label in (True, False):
        for record in ordered:
            if left[pool(record)] and record.id not in kept and not (every_label and record.label in labels):
                left[pool(record)] -= 1
                kept.add(record.id)
                labels.add(record.label)
    return kept


def _parted(records: Sequence[Record], kept: Set[str], reason: str, detail: str) -> tuple[list[Record], list[Dropped]]:
    rest = [Dropped(reason, detail, None, None, record) for record in records if record.id not in kept]
    return [record for record in records if record.id in kept], rest


def summarise(rows_in: int, parts: Partition, restored: int, lock: Lock) -> dict[str, Any]:
    """The metrics of the stage, as docs/metrics.md describes them.

    `shared_13_grams` is what Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C, call
    contaminated. Prompts and completions are looked at apart, for templated completions share such runs by design.
    """
    labels = {
        part: Counter(label_name(record.label) for record in records)
        for part, records in (("train", parts.train), ("validation", parts.validation), ("holdout", parts.holdout))
    }
    out = [rejected.record for rejected in parts.quarantined + parts.beyond_max]
    names = sorted({label_name(row.label) for row in out}.union(*labels.values()))
    seen = parts.train + parts.validation
    reasons = Counter(row.reason for row in parts.quarantined)
    held, held_prompts = {row.id for row in parts.holdout}, set(map(compared, parts.holdout))
    kept_back: Counter[str] = Counter()
    for one in (found for how in (lock.drawn, *lock.added) for found in how.labels):
        kept_back[label_name(one.label)] += one.quota - one.drawn
    slices = Counter(row.slice for row in lock.rows if row.slice)
    folds = {
        str(number): {"rows": len(fold), "labels": dict(sorted(Counter(label_name(r.label) for r in fold).items()))}
        for number, fold in enumerate(parts.folds, start=1)
    }
    places = ("train", "validation", "holdout", "quarantined", "beyond_max")
    return {
        "rows": {"in": rows_in, **{place: len(getattr(parts, place)) for place in places}},
        "labels": {label: {part: counts[label] for part, counts in labels.items()} for label in names},
        "without": {part: sum(not counts[label] for label in names) for part, counts in labels.items()},
        "kept_back_by_groups": {
            "holdout": dict(kept_back),
            "validation": {label_name(s.label): s.quota - s.drawn for s in parts.validation_strata},
        },
        "quarantined": {reason: reasons[reason] for reason in _QUARANTINE},
        "locked": {"rows": len(lock.rows), "missing": len(lock.rows) - len(parts.holdout), "restored": restored},
        # DVC shows no empty group.
        **({"folds": folds} if folds else {}),
        **({"slices": dict(sorted(slices.items()))} if slices else {}),
        "overlap": {
            "shared_ids": len({row.id for row in seen if row.id in held}),
            "shared_prompts": len({prompt for prompt in map(compared, seen) if prompt in held_prompts}),
        },
        "shared_13_grams": {
            "prompt": shared_runs(map(asked, seen), map(asked, parts.holdout)),
            "completion": shared_runs((row.completion for row in seen), (row.completion for row in parts.holdout)),
        },
    }


def shared_runs(seen: Iterable[str], holdout: Iterable[str]) -> dict[str, int]:
    """The hold-out rows that share a run of words with a seen row, those that have any, and the shared runs."""
    held = [set(runs(text)) for text in holdout]
    known = set().union(*held)
    found = {run for text in seen for run in known.intersection(runs(text))} if known else set()
    return {"rows": sum(bool(one & found) for one in held), "of": sum(map(bool, held)), "runs": len(found)}


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every 13 words in a row, case folded and without punctuation."""
    words = _WORD.findall(normalise(text))
    return zip(*(words[start:] for start in range(_N)), strict=False)
