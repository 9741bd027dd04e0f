"""collect: from the requests that a release answered to the rows that are worth a person's time.

Kept is what went wrong, or may have: a broken contract, a cut answer, a thumb down, a correction, a low probability.
Left out is what would teach nothing, or too much: known questions, repeated ones, and all that is near the hold-out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from gto.constants import semver

from stages.core import paths
from stages.core.errors import UserError
from stages.near_duplicates.pairs import cross_pairs, near_pairs
from stages.near_duplicates.rule import ask_the_same
from stages.params.loader import Params
from stages.params.task import Task
from stages.records.prompt import asked, compared, components, lines, question
from stages.records.record import Record, make_record, read_records, write_new
from stages.scoring.rows import ALONE, score_row
from stages.text.json_schema import Tasks
from stages.text.personal_data import masker
from stages.weekly.logs import Served, read_logs

INBOX = Path("data/inbox")
_CERTAIN = ("corrected", "thumb down")  # what a person said comes before what is guessed


@dataclass(frozen=True)
class Kept:
    """A request to annotate: the record's completion is the correction, or empty."""

    record: Record
    served: Served
    answer: str
    reasons: tuple[str, ...]
    times: int = 1


def collect(logs: Sequence[Path], params: Params, limit: int, lowest: float, week: str | None) -> str:
    """Write data/inbox/WEEK.jsonl, and say in sentences what was kept and what was left out, and why.

    Raises:
        UserError: when a log has no answered request, or the data that rows are held against are not here.
    """
    served, unread = read_logs(logs)
    name = week or _week(served)
    require_plain(name, 90, "--week")
    file = INBOX / f"{name}.jsonl"
    known, locked = read_of_stage(paths.UNIQUE), read_of_stage(paths.HOLDOUT)
    kept, counts = _failures(served, params, lowest)
    kept, left = _new_ones(kept, known, locked, params.dedup.threshold)
    ranked = _by_what_they_teach(kept, known)
    if ranked:
        write_new(file, [inbox_row(one, name) for one in ranked[:limit]], "--week")
    said = [
        f"{len(served)} answered requests, {counts['sound']} of them sound",
        *(f"  {number} {reason}" for reason, number in counts.most_common() if reason not in ("kept", "sound")),
        *(f"  left out: {reason}" for reason in left),
        *(f"  left out: {reason}" for reason in unread[:20]),
        *([f"  left out: {len(unread) - 20} more lines that are no answered requests"] if len(unread) > 20 else []),
        f"{min(limit, len(ranked))} of {len(ranked)} rows in {file}" if ranked else "no row is kept, no file written",
    ]
    return "\n".join(said)


def require_plain(name: str, most: int, what: str) -> None:
    """Raises UserError for what cannot stand in the source of rows and name their file, in `most` bytes."""
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > most:
        raise UserError(f"{what} {name!r} must be a plain name, such as 2026-48, in {most} bytes")


def read_of_stage(path: Path) -> list[Record]:
    if not path.is_file():
        raise UserError(f"{path} is missing; run `dvc pull dedup split`, so that requests can be held against it")
    return read_records(path)


def _failures(served: Iterable[Served], params: Params, lowest: float) -> tuple[list[Kept], Counter[str]]:
    mask = masker(params.clean.mask_personal_data, params.clean.phone_region, params.clean.ner_model)
    tasks = Tasks(params.task)
    kept, counts = [], Counter[str]()
    for one in served:
        record = record_of_request(one, params.task, mask)
        reasons = tuple(_reasons(one, record, tasks, lowest))
        counts.update(reason.partition(":")[0] for reason in reasons)
        counts["kept" if reasons else "sound"] += 1
        if reasons:
            ours = re.fullmatch(rf"[a-z][\w-]*@v{semver}", one.release or "", re.ASCII)  # like an address
            named = one if ours else replace(one, release=one.release and mask(one.release))
            kept.append(Kept(record, named, mask(one.output), reasons))
    return kept, counts


def record_of_request(one: Served, task: Task, mask: Any) -> Record:
    """What was asked, without the task's own instruction and without personal data."""
    instructions = {**{text: tag for tag, text in task.instructions.items()}, task.instruction: None}
    *context, last = one.messages
    tag = one.task if one.task in {*task.tags, *task.instructions} else one.task and mask(one.task)
    if context and context[0].role == "system" and context[0].content in instructions:
        tag = instructions[context.pop(0).content]
    context = [type(last)(message.role, mask(message.content)) for message in context]
    completion = mask(one.correction) if one.correction else ""
    return make_record(mask(last.content), completion, None, "inbox", one.place, task=tag, context=context)


def _reasons(one: Served, record: Record, tasks: Tasks, lowest: float) -> Iterable[str]:
    if one.correction is not None and one.correction.strip() != one.output.strip():
        yield "corrected"
    if one.feedback is False:
        yield "thumb down"
    if one.finish == "length":
        yield "cut off"
    score = score_row({**ALONE, "output": one.output, "task": record.task}, tasks)
    if not score.valid:
        broken = [rule for rule, holds in score.rules.items() if not holds]
        yield f"contract broken: {', '.join(broken)}" if broken else "contract broken"
    if one.log_probability is not None and one.log_probability < lowest:
        yield "uncertain"


def _new_ones(
    kept: list[Kept], known: Sequence[Record], locked: Sequence[Record], threshold: int
) -> tuple[list[Kept], list[str]]:
    """Without what is near a row that is held out or known; of near ones among themselves the first, with how many.

    A correction of a known question stays: it says that the row which taught the answer is wrong.
    """
    texts, left, gone = [compared(one.record) for one in kept], list[str](), set[int]()
    for rows, what in ((locked, "the hold-out"), (known, "a known row")):
        near: dict[int, Record] = {}
        for pair in cross_pairs(texts, [compared(row) for row in rows], threshold):
            if rows is locked or _same(kept[pair.left].record, rows[pair.right]):
                near.setdefault(pair.left, rows[pair.right])
        for index, row in sorted(near.items()):
            if index not in gone and (rows is locked or not _said(kept[index])):
                gone.add(index)
                left.append(f"{kept[index].served.place} is near {what}, {row.origin}")
    stay = [one for index, one in enumerate(kept) if index not in gone]
    pairs = near_pairs([compared(one.record) for one in stay], threshold)
    same = [(pair.left, pair.right) for pair in pairs if _same(stay[pair.left].record, stay[pair.right].record)]
    found = {}
    for group in components(range(len(stay)), same):
        first = min(group, key=lambda i: (not _said(stay[i]), i))  # the one that a person has spoken on
        found[first] = replace(stay[first], times=len(group))
        left += [f"{stay[i].served.place} repeats {stay[first].served.place}" for i in sorted(group) if i != first]
    return [found[index] for index in sorted(found)], left


def _same(one: Record, other: Record) -> bool:
    """Whether two records with near prompts are one question to the model, as `dedup` has it."""
    left, right = question(one), question(other)
    shared_line = bool(lines([one]) & lines([other]))
    return left[:2] == right[:2] and ask_the_same(left.text, right.text, shared_line)


def _said(one: Kept) -> bool:
    return bool(set(_CERTAIN) & set(one.reasons))


def _by_what_they_teach(kept: list[Kept], known: Sequence[Record]) -> list[Kept]:
    """What people spoke on first; then by the mean of two ranks, novelty and uncertainty.

    Novelty is one minus the highest cosine to a known prompt, by TF-IDF of characters; uncertainty the mean
    log-probability, the lower the more (Lewis and Gale 1994, "A sequential algorithm for training text classifiers",
    section 3.1); answers without one stand in the middle.
    """
    if not kept:
        return []
    from scipy.stats import rankdata
    from sklearn.feature_extraction.text import TfidfVectorizer

    new, old = [asked(one.record) for one in kept], [asked(row) for row in known]
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit([*old, *new])
    there = vectors.transform(old).T.tocsc()
    closest = [(vectors.transform([text]) @ there).max() if old else 0.0 for text in new]
    sure = np.array([one.served.log_probability if one.served.log_probability is not None else np.nan for one in kept])
    unsure = np.nan_to_num(rankdata(-sure, nan_policy="omit") / max(1, np.isfinite(sure).sum()), nan=0.5)
    score = (rankdata(-np.array(closest)) / len(kept) + unsure) / 2
    return [kept[i] for i in sorted(range(len(kept)), key=lambda i: (not _said(kept[i]), -score[i], i))]


def _week(served: Sequence[Served]) -> str:
    """The ISO week of the latest request."""
    latest = max((one.time for one in served if one.time), default=datetime.now(UTC))
    return f"{latest:%G-%V}"


def inbox_row(one: Kept, week: str) -> dict[str, Any]:
    record, served = one.record, one.served
    row: dict[str, Any] = {"prompt": record.prompt, "completion": record.completion, "answer": one.answer}
    if record.context:
        row["context"] = [{"role": message.role, "content": message.content} for message in record.context]
    row |= {"task": record.task} if record.task else {}
    return row | {
        "source": f"inbox-{week}",
        "kept_because": list(one.reasons),
        "times": one.times,
        "log": served.place,
        "release": served.release,
        "asked": served.time.isoformat() if served.time else None,
        "log_probability": served.log_probability,
    }
