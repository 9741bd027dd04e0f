"""append: annotated rows join the raw data, each source as a file of its own below `clean.raw`.

What is written is what `clean` made of a row, so that the stage takes it as it is. Left out, each by name, are rows
without an answer, rows on which annotators differ, rows that the data have, and all that is near the hold-out.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import atomic, changing
from stages.near_duplicates.pairs import cross_pairs
from stages.params.loader import Params
from stages.params.task import Task
from stages.records.prompt import Question, compared, question
from stages.records.record import Record, read_rows, record_row, row_line
from stages.scoring.rows import label_named
from stages.text.strict_json import EMPTY, completion_key, parse_json, parsed
from stages.weekly.collect import read_of_stage, require_plain

Clean = Callable[[dict[str, Any], str], Record | str]
_COLUMNS = ("prompt", "completion", "context", "task", "label", "source", "annotator")
_NO_PROVENANCE = {*_COLUMNS, "row", "skipped"}


@dataclass(frozen=True)
class Answered:
    """A row with its answer: where it stands, the columns that are written, and the record that `clean` makes of it."""

    place: str
    row: dict[str, Any]
    record: Record


def append(files: Sequence[Path], params: Params, clean: Clean) -> str:
    """Write the rows, and say how many of each source, label and annotator there are, and what is left out.

    Raises UserError for a file that cannot be read, a row without a source, a `clean.raw` that is no folder, and where
    the data that rows are held against are not here.
    """
    raw = Path(params.clean.raw)
    if raw.exists() and not raw.is_dir():
        raise UserError(f"clean.raw is the file {raw}; a source of its own needs a folder: name the folder it is in")
    known, locked = read_of_stage(paths.UNIQUE), read_of_stage(paths.HOLDOUT)
    answered, left = _answered(files, params.task, clean)
    answered, differ = _agreed(answered)
    near = {
        pair.left: locked[pair.right]
        for pair in cross_pairs(
            [compared(one.record) for one in answered], list(map(compared, locked)), params.dedup.threshold
        )
    }
    left += differ + [f"{answered[at].place} is near the hold-out, {row.origin}" for at, row in sorted(near.items())]
    asked = {question(row): row for row in known}
    notes, new = list[str](), defaultdict[Path, list[Answered]](list)
    with changing(raw):
        ids = {row.id: row.origin for row in known}
        for target in sorted(raw.glob("*.jsonl")) if answered else ():  # also what no `dvc repro` has read yet
            among = b"" if target.stem in {one.record.source for one in answered} else b'"provenance": {'
            ids |= dict.fromkeys(_ids(target, clean, among), target.name)
        for number, one in enumerate(answered):
            if one.record.id in ids:
                left.append(f"{one.place} is in the data already, {ids[one.record.id]}")
            elif number not in near:
                new[raw / f"{one.record.source}.jsonl"].append(one)
                if old := asked.get(question(one.record)):
                    notes.append(
                        f"{one.place} asks what {old.origin} answers otherwise; mend that line, or both are taught"
                    )
        for target, rows in new.items():
            before = target.read_bytes() if target.is_file() else b""
            before += b"" if before.endswith(b"\n") or not before else b"\n"
            with atomic(target) as partial:
                partial.write_bytes(before + "".join(row_line(one.row) for one in rows).encode())
    written = [f"{len(rows)} rows in {target}: {_counts(rows)}" for target, rows in new.items()]
    said = [*(f"left out: {one}" for one in left), *(f"note: {one}" for one in notes), *(written or ["no row is new"])]
    return "\n".join(said + ["commit what is new, or `dvc add` it; then run `dvc repro`"] * bool(written))


def _answered(files: Sequence[Path], task: Task, clean: Clean) -> tuple[list[Answered], list[str]]:
    found, left = [], []
    for file in files:
        for number, row in enumerate(read_rows(file, parse_json, "mend it"), start=1):
            place, source = f"{file.parent.name}/{file.name}:{number}", str(row.get("source") or "")
            require_plain(source, 100, f"{file}, line {number}: the source")
            said = {name: value for name, value in row.items() if value not in EMPTY}
            columns = {name: said[name] for name in _COLUMNS if name in said}
            if "skipped" in said or not str(said.get("completion", "")).strip():
                why = " ".join(str(said.get("skipped", "")).split())
                left.append(f"{place} has no answer{why and ': ' + why}")
                continue
            record = clean(columns, source)
            if isinstance(record, str):
                left.append(f"{place}: {record}")
                continue
            if "label" not in columns and (label := label_of(record.completion, task, record.task)):
                columns["label"] = label
            cleaned = record_row(record)
            columns |= {name: cleaned[name] for name in ("prompt", "completion", "context") if name in cleaned}
            columns["provenance"] = {name: said[name] for name in said if name not in _NO_PROVENANCE}
            found.append(Answered(place, columns, record))
    return found, left


def label_of(completion: str, task: Task, tag: str | None) -> str | None:
    """What the answer names as its label; None in a text task."""
    contract = task.contract(tag)
    if contract.kind == "classification":
        return completion.strip()
    return label_named(parsed(completion), contract.label_field) if contract.kind == "json" else None


def _agreed(answered: Sequence[Answered]) -> tuple[list[Answered], list[str]]:
    """One row for each question: that of all its annotators, or of more than half of them, by the first by name."""
    groups = defaultdict[Question, list[Answered]](list)
    for one in answered:
        groups[question(one.record)].append(one)
    agreed, differ = [], []
    for group in groups.values():
        # Who is named twice, or whose file is, has one voice.
        voices = {(str(one.row.get("annotator") or one.place), completion_key(one.record.completion)) for one in group}
        said = Counter(answer for _, answer in voices)
        answer, count = said.most_common(1)[0]
        if 2 * count <= said.total() and len(said) > 1:
            differ.append(f"{' and '.join(one.place for one in group)} answer one question differently")
            continue
        same = [one for one in group if completion_key(one.record.completion) == answer]
        first = min(same, key=lambda one: (str(one.row.get("annotator")), one.place))
        names = sorted({str(one.row["annotator"]) for one in same if one.row.get("annotator")})
        provenance = first.row["provenance"] | ({"annotators": names} if len(names) > 1 else {})
        agreed.append(replace(first, row=first.row | {"provenance": provenance}))
    return agreed, differ


def _ids(target: Path, clean: Clean, among: bytes) -> Iterator[str]:
    """The ids of the records that `clean` makes of a file's rows with `among`; what it rejects has none."""
    for line in target.read_bytes().split(b"\n"):
        with suppress(ValueError):
            row = parse_json(line.decode("utf-8-sig")) if among in line else None
            if isinstance(row, dict) and isinstance(record := clean(row, target.stem), Record):
                yield record.id


def _counts(rows: Sequence[Answered]) -> str:
    counts = {name: Counter(str(one.row.get(name, "none")) for one in rows) for name in ("label", "annotator")}
    said = ([f"{value} {count}" for value, count in sorted(found.items())] for found in counts.values())
    return "; ".join(f"{name} {', '.join(one)}" for name, one in zip(counts, said, strict=True))
