"""`tunetrail annotate`: people write, on a page, the answers that collected rows should have had.

data/inbox/WEEK/NAME.jsonl, one row a line in the order of the rows' ids, for git to compare: the row of
data/inbox/WEEK.jsonl with `row` (the id of what is asked), `completion`, `annotator`, and, where there is no answer,
`skipped`: why not.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from stages.core.errors import UserError
from stages.core.files import changing
from stages.measure.review.__main__ import agreement
from stages.measure.review.reviews import MAX_COMMENT, Message, review_file
from stages.measure.review.reviews import Session as ReviewSession
from stages.measure.review.server import show
from stages.params.loader import Params
from stages.params.task import Task
from stages.records.record import Message as Turn
from stages.records.record import Record, make_record, rank, read_rows, write_rows
from stages.scoring.paired_answers import Answers
from stages.scoring.rows import ALONE, label_named, score_row
from stages.text.json_schema import Tasks
from stages.text.strict_json import BrokenContract, completion_key, parse_json, parsed

Rows = dict[str, dict[str, Any]]
_PAPERS = {"cohen_kappa": "Cohen's kappa (1960)", "krippendorff_alpha": "Krippendorff's alpha, nominal (2011)"}


class Draft(Message):
    number: int
    completion: str


class Annotation(Draft):
    skipped: str | None  # why there is no answer
    back: bool  # take back what is there


def annotate(inbox: Path, annotator: str | None, others: Sequence[str], overlap: int, port: int, params: Params) -> str:
    """Serve the page to an annotator, then say how far all are and how they agree; without a name say that alone.

    Raises UserError for rows that `collect` did not write, a name that is no file name, a port that is taken.
    """
    if annotator:
        show(Session(inbox, annotator, others, overlap, params), port, "annotate", "`tunetrail append` takes it")
    return said_by_all(inbox, params.task)


class Session:
    """The rows of one annotator: those that all get, then every n-th of the rest, in the order of the inbox."""

    files: ClassVar[dict[str, str]] = {**ReviewSession.files, "": "annotate.html", "page.js": "annotate.js"}

    def __init__(self, inbox: Path, annotator: str, others: Sequence[str], overlap: int, params: Params) -> None:
        names = sorted({annotator, *others})
        self.file, *_ = [review_file(inbox.with_suffix(""), name, "annotator") for name in (annotator, *names)]
        self._annotator, self._task, self._tasks = annotator, params.task, Tasks(params.task)
        every = read_annotated(inbox, inbox=True)
        shared = sorted(every, key=lambda key: rank(0, "overlap", key))[:overlap]  # whoever annotates gets the same
        rest = [key for key in every if key not in shared]
        mine = {*shared, *rest[names.index(annotator) :: len(names)]}
        self.rows = {key: every[key] for key in sorted(every, key=lambda key: key not in shared) if key in mine}
        self._keys = list(self.rows)
        read_annotated(self.file)  # a broken file is said before the first answer, not after it

    def messages(self) -> dict[str, tuple[type[BaseModel], Callable[..., Any]]]:
        return {"answer": (Annotation, self.save), "check": (Draft, self.check)}

    def state(self) -> dict[str, Any]:
        """All that the page shows; the draft is a correction that the log has, or else the model's answer."""
        done = read_annotated(self.file)
        rows = []
        for key, row in self.rows.items():
            asked, said = Answers(_record(row), {}), done.get(key)
            rows.append(
                {
                    "instruction": asked.instruction(self._task),
                    "prompt": asked.conversation(),
                    "answer": row.get("answer") or "",
                    "reasons": ", ".join(row.get("kept_because") or ()),
                    "draft": row.get("completion") or row.get("answer") or "",
                    "done": said and {"completion": said["completion"], "skipped": said.get("skipped")},
                }
            )
        return {"annotator": self._annotator, "rows": rows}

    def check(self, number: int, completion: str) -> dict[str, str | None]:
        """What `clean` would reject the answer for. Raises ValueError for a row that is not there."""
        return {"problem": problem(completion, self._row(number).get("task"), self._tasks)}

    def save(self, number: int, completion: str, skipped: str | None, back: bool) -> dict[str, str | None]:
        """Put down an answer, if it keeps the contract of its task, or why there is none; the reply is `check`'s.

        Raises ValueError for a row that is not there, or a reason that is empty or too long.
        """
        row = self._row(number)
        if skipped is not None and not 0 < len(skipped.strip()) <= MAX_COMMENT:
            raise ValueError("no reason, or too long a one")
        told = None if skipped or back else self.check(number, completion)["problem"]
        if told is None:
            with changing(self.file.parent):
                done = read_annotated(self.file)  # anew: git may have brought another
                done.pop(self._keys[number], None)
                if not back:
                    made = row | {"completion": "" if skipped else completion.strip(), "annotator": self._annotator}
                    done[self._keys[number]] = made | ({"skipped": skipped.strip()} if skipped else {})
                write_rows(self.file, ({"row": key} | done[key] for key in sorted(done)))
        return {"problem": told}

    def progress(self) -> str:
        done = read_annotated(self.file).keys() & self.rows.keys()
        return f"{len(done)} of {len(self.rows)} rows done by {self._annotator}"

    def _row(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self._keys):
            raise ValueError("no such row")
        return self.rows[self._keys[number]]


def read_annotated(path: Path, inbox: bool = False) -> Rows:
    """The rows of an inbox or of an annotator, who need not have begun, by the id of what they ask.

    Raises UserError with file and line for what is no such row, as after a merge gone wrong.
    """
    rows: Rows = {}
    if inbox and not (path.is_file() and path.suffix == ".jsonl"):
        raise UserError(f"{path} is no file of rows that ends in .jsonl; `tunetrail collect` writes one")
    for number, row in enumerate(read_rows(path, parse_json, "mend it") if path.is_file() else (), start=1):
        try:
            key, texts = _record(row).id, (row.get(name) for name in ("answer", "completion", "task"))
            texts_there = [text for text in texts if text is not None]
            "".join([*texts_there, *(row.get("kept_because") or ()), "" if inbox else row["completion"]])  # all are
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path}, line {number}: no row of `tunetrail collect`; restore the file") from None
        if key in rows:
            raise UserError(f"{path}, line {number}: asks the same as an earlier line; keep one of the two")
        rows[key] = row
    return rows


def _record(row: Mapping[str, Any]) -> Record:
    """What the row asks, without an answer."""
    context = [Turn(**turn) for turn in row.get("context", ())]
    return make_record(row["prompt"], "", None, "inbox", "inbox", task=row.get("task"), context=context)


def problem(completion: str, tag: str | None, tasks: Tasks) -> str | None:
    """Why an answer breaks the contract of its task, in words; None where it keeps it."""
    contract = tasks.of(tag)
    if contract.settings.kind == "json":
        try:
            return contract.schema.problem(parse_json(completion))
        except BrokenContract as error:
            return f"no JSON: {error}"
    score = score_row({**ALONE, "output": completion, "task": tag}, tasks)
    if contract.settings.kind == "classification":
        return None if score.valid else f"none of the labels {', '.join(contract.settings.labels)}"
    broken = [rule for rule, holds in score.rules.items() if not holds]
    return None if score.valid else f"breaks {', '.join(broken)}" if broken else "empty"


def said_by_all(inbox: Path, task: Task) -> str:
    """How many rows each annotator has answered and skipped, and how those agree who answered the same rows."""
    files = sorted(inbox.with_suffix("").glob("*.jsonl"))
    done = {file.stem: read_annotated(file) for file in files}
    every = len(read_annotated(inbox, inbox=True))
    lines = [f"{inbox}: {every} rows, {len(set().union(*done.values()))} of them done"]
    for name, rows in done.items():
        skipped = sum("skipped" in row for row in rows.values())
        lines.append(f"  {name}: {len(rows) - skipped} answered, {skipped} skipped")
    answers: dict[str, dict[str, str]] = {}
    for name, rows in done.items():
        for key, row in rows.items():
            if "skipped" not in row:
                answers.setdefault(key, {})[name] = row["completion"]
    shared = [said for said in answers.values() if len(said) > 1]
    if shared:
        same = sum(len({completion_key(text) for text in said.values()}) == 1 for said in shared)
        lines.append(f"answered by several: {len(shared)} rows, {same} of them with one answer")
    field = task.label_field if task.kind == "json" else ""
    labels = [{name: _category(text, field) for name, text in said.items()} for said in shared]
    if found := agreement(labels).get("agreement"):
        of = f"on {field!r}" if field else "on the answer"
        lines += [f"  {_PAPERS[name]} {of}: {value:.2f}" for name, value in found.items() if name in _PAPERS]
    return "\n".join(lines)


def _category(completion: str, label_field: str) -> str:
    """The label of a JSON answer, else the whole answer: what agreement beyond chance is counted on."""
    named = label_named(parsed(completion), label_field)
    return completion_key(completion) if named is None else named
