"""compare: what differs between revisions in parameters, gates, metrics and answers, and what a change does.

One table of what matters; what moved within its interval, and every gate, is folded away below it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.core import paths
from stages.core.dvc_lock import locked_bytes
from stages.core.errors import UserError, names
from stages.core.git import CommitTree, Repository, Tree, WorkingTree
from stages.params.loader import load_params
from stages.records.record import canonical, read_records, record_row
from stages.report import tables
from stages.report.changed_examples import Answer, Row, flips
from stages.report.data_difference import data_difference
from stages.report.formats import between, number, p_value, percent, plural, points, render
from stages.report.verdict import gate_table
from stages.scoring import summary
from stages.scoring.catalogue import Key, Number, catalogue_of, centre
from stages.scoring.metrics import as_json
from stages.scoring.rows import score_row
from stages.text.json_schema import Tasks

MOST = 12  # metrics that the first table shows; the others are folded
_REFUSED = "since its engine refused the row"
_MAIN = ("exact_match", "label_accuracy", "rougeL")  # metrics whose paired tests the first table shows


class _Row(NamedTuple):
    what: str
    cells: tuple[str, ...]  # one for each revision
    reading: str = ""


def compare(root: Path, revisions: Sequence[str], lock: str, form: str = "md") -> str:
    """Revisions and experiments against the first of them; one alone against it the working tree.

    `lock` says whether dvc.lock belongs to the working tree; `form` is md, html, or txt for a terminal. Raises
    UserError when a name is no revision and no experiment.
    """
    repository = Repository(root)
    trees: dict[str, Tree] = {name: CommitTree(repository, _commit(repository, name)) for name in revisions}
    if alone := len(trees) == 1:
        trees["now"] = WorkingTree(root)
    shown, (first, *others) = list(trees), trees
    gates = {name: tree.read_mapping(paths.GATES) for name, tree in trees.items()}
    moved, tests, rest, unseen = _compared(_measured(trees))
    differences = [(name, *data_difference(repository, trees[first], trees[name])) for name in others]
    headlines = {name: dict(_leaves(tree.read_mapping(paths.SUMMARY))) for name, tree in trees.items()}
    file = paths.ADAPTER_GENERATIONS.as_posix()
    answers = {name: locked_bytes(root, tree, file) for name, tree in trees.items()}
    known = {name: map(json.loads, one.splitlines()) for name, one in answers.items() if one is not None}
    view = {
        "names": shown,
        "lock": lock if alone else "",
        "data": [(name, said, groups.map("{:,}".format)) for name, said, groups in differences],
        "verdicts": {name: one["verdict"] for name, one in gates.items() if "verdict" in one},
        "changed": _frame([*_settings(trees), *moved[:MOST], *tests], shown),
        "hidden": max(0, len(moved) - MOST),
        "unseen": unseen,
        "rest": _frame([*moved[MOST:], *rest], shown),
        "summary": pd.DataFrame(headlines, dtype=object).map(_text).rename_axis("Metric"),
        "gates": gate_table(gates["now"]) if alone and gates["now"] else None,
        **_held(known if len(known) > 1 else {}),
    }
    if lacking := trees.keys() - known.keys():
        view["notes"].append(
            f"{names(sorted(lacking))}: answers are not compared row by row, since DVC's cache lacks {file} of the "
            "dvc.lock there; check it out and run `dvc fetch evaluate`."
        )
    return render(f"compare.{form}.j2", view)


def _commit(repository: Repository, name: str) -> str:
    """The commit of a revision, or of the experiment of that name, which needs no checkout."""
    refs = repository.git("for-each-ref", "--format=%(refname)", "refs/exps", check=False).split()
    tried = [ref for ref in refs if ref.count("/") == 4 and ref.endswith(f"/{name}")]
    commits = [commit for one in [name, *tried] if (commit := repository.resolve(one))]
    if not commits:
        said = f"{name!r} is no commit, branch or tag here; fetch it first: git fetch --all --tags"
        raise UserError(f"{said}. Nor is it an experiment here: dvc exp pull REMOTE {name}")
    if len(commits) > 1 and not repository.resolve(name):
        raise UserError(f"several experiments have the name {name!r}; give the commit of one: {names(commits)}")
    return commits[0]


def compare_files(files: Sequence[Path], form: str) -> str:
    """The answers of any tools to the hold-out, a file each, scored as `evaluate` does, against those of the first.

    Rows have "id", or "prompt" (with "task" and "context" where they tell rows apart), and the answer as "answer" (a
    text, or what `tunetrail answer` writes), "output" or "completion". What is not scored is named. Raises UserError
    naming the line that is no such row; when no row is answered in all files.
    """
    holdout = [record_row(record) for record in read_records(paths.HOLDOUT)]
    notes, said = [], dict[str, dict[str, str]]()
    for file in files:
        name = str(file) if file.name in said else file.name
        said[name], left_out = _read(file, holdout)
        left_out["without an answer in the file"] = [row["id"][:12] for row in holdout if row["id"] not in said[name]]
        notes += [f"{name}: {plural(len(n), 'row')} left out, {why}: {names(n)}." for why, n in left_out.items() if n]
    common = [row for row in holdout if all(row["id"] in one for one in said.values())]
    if not common:
        raise UserError(f"no row of {paths.HOLDOUT} is answered in all of {names(said)}. {' '.join(notes)}")
    notes.append(
        f"Scored: the {plural(len(common), 'row')}, of {len(holdout):,} of the hold-out, that all files answer."
    )
    blank = {"tokens": 0, "stopped": True}
    view = _held({n: [{**row, **blank, "output": one[row["id"]]} for row in common] for n, one in said.items()})
    return render(f"compare_answers.{form}.j2", {**view, "names": list(said), "notes": notes})


def _read(file: Path, holdout: Sequence[Row]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Answers by the id of their row; and the lines that are left out, by the reason."""
    known: dict[str, list[Row]] = {}
    for key, row in product(("id", "prompt"), holdout):
        known.setdefault(row[key], []).append(row)
    found, left_out = dict[str, str](), dict[str, list[str]]()
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    for place, line in ((place, line) for place, line in enumerate(lines, start=1) if line.strip()):
        try:
            row = json.loads(line)
            said = next(row[key] for key in ("answer", "output", "completion") if key in row)
            said = said.get("output", _REFUSED) if isinstance(said, dict) and "release" in said else said
            meant = known.get(row.get("id")) or known.get(canonical(row["prompt"]), [])
            if not isinstance(said, str):
                raise TypeError("no text")
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            raise UserError(f'{file}, line {place}: expected "id" or "prompt", and a text as "answer"') from None
        if len(meant) > 1:  # of one prompt
            meant = [one for one in meant if all((row.get(k) or None) == one.get(k) for k in ("task", "context"))]
        if len(meant) == 1 and said is not _REFUSED and meant[0]["id"] not in found:
            found[meant[0]["id"]] = said
        else:
            why = (
                "since they fit no row of the hold-out, or several" if len(meant) != 1 else "since the row came before"
            )
            left_out.setdefault(said if said is _REFUSED else why, []).append(f"line {place}")
    return found, left_out


def _held(rows: Mapping[str, Iterable[Row]]) -> dict[str, Any]:
    """What templates show of generations: the scores of each, and its change against the first on the rows of both."""
    view: dict[str, Any] = {"text_table": tables.table_text, "notes": [], "flips": [], "in_git": 0, "paired": None}
    if not rows:
        return view
    params = load_params("report", "scoring", "task")
    tasks, scoring = Tasks(params.task), params.scoring
    answers = {name: {row["id"]: Answer(row, score_row(row, tasks)) for row in some} for name, some in rows.items()}
    scores = {n: as_json(summary.summarise([a.score for a in one.values()], scoring)) for n, one in answers.items()}
    first, *others = answers
    changed = {}
    for name in others:
        pair = answers[first], answers[name]
        both = sorted(pair[0].keys() & pair[1].keys())
        if len(both) < max(map(len, pair)):
            counts = f"{len(both):,} of its {len(pair[1]):,} rows are among the {len(pair[0]):,} of {first}"
            view["notes"].append(f"{name}: {counts}, and only they are compared.")
        if both:
            before, after = ([side[key].score for key in both] for side in pair)
            raw = as_json(summary.compare(before, after, scoring))
            found = tables.changes_of(raw, scoring.confidence)
            changed[name] = {c.metric.name: f"{c.symbol} {c.amount}, {c.reading} ({c.evidence})" for c in found}
            view["flips"] += flips((first, name), *pair, tasks, params.report.examples)
    order = [one.name for one in tables.METRICS if any(one.name in column for column in changed.values())]
    table = tables.metric_table(tables.Measured("", tables.main_metric(scores[first]), scores, [])).droplevel(0)
    view["scores"] = table.drop("Mean tokens an answer").map(lambda cell: cell.brief)
    view["paired"] = pd.DataFrame(changed, order, dtype=object).fillna(tables.ABSENT).rename_axis("Metric")
    return {**view, "in_git": params.report.pull_request_examples}


def changes(then: Tree, now: Tree) -> list[tuple[str, str, str, str]]:
    """What differs from one state to another in parameters, gates and metrics: what, then, now, and how to read it.

    Of the metrics, those that left their interval, and the main ones of the adapter with or without.
    """
    trees = {"then": then, "now": now}
    moved, _, rest, _ = _compared(_measured(trees))
    main = [row for row in rest if row.what in {f"adapter {name}" for name in _MAIN}]
    return [(row.what, row.cells[0], row.cells[1], row.reading) for row in (*_settings(trees), *main, *moved)]


def _settings(trees: Mapping[str, Tree]) -> Iterator[_Row]:
    params = [dict(_leaves(tree.read_mapping(paths.PARAMS))) for tree in trees.values()]
    for name in _differing(params):
        cells = (json.dumps(one[name], ensure_ascii=False) if name in one else "" for one in params)
        yield _Row(name, tuple(cells), "parameter")
    gates = {name: tree.read_mapping(paths.GATES).get("gates", {}) for name, tree in trees.items()}
    states = [{name: gate["state"] for name, gate in one.items()} for one in gates.values()]
    for gate in _differing(states):
        changed = [state.get(gate) != states[0].get(gate) for state in states]
        reasons = (one[gate]["reason"] if gate in one else "no longer set" for one in gates.values())
        said = {name: reason for name, reason, now in zip(gates, reasons, changed, strict=True) if now}
        yield _Row(gate, tuple(one.get(gate, "") for one in states), f"gate: {_readings(said, len(gates))}")


def _readings(said: Mapping[str, str], revisions: int) -> str:
    """What is said of each revision; of two, nobody needs to be told which."""
    return "; ".join(text if revisions == 2 else f"{name}: {text}" for name, text in said.items())


def _differing(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values differ, or that one of the states lacks."""
    known = dict.fromkeys(chain.from_iterable(reversed(states)))
    found = {name: [(name in one, one.get(name)) for one in states] for name in known}
    return [name for name, values in found.items() if any(value != values[0] for value in values)]


def _measured(trees: Mapping[str, Tree]) -> dict[str, Mapping[Key, Number]]:
    return {name: catalogue_of(tree.read_mapping(paths.DETAILS)) for name, tree in trees.items()}


def _compared(numbers: Mapping[str, Mapping[Key, Number]]) -> tuple[list[_Row], list[_Row], list[_Row], int]:
    """Metrics that moved beyond their interval, those of all rows first; paired tests of main metrics; the rest; and
    how many differ in digits alone that are not shown, as another processor rounds them.
    """
    unseen = 0
    groups, moved, tests, rest = (list[_Row]() for _ in range(4))
    for key in dict.fromkeys(chain.from_iterable(reversed(list(numbers.values())))):
        old, *others = (one.get(key) for one in numbers.values())
        row = _Row(str(key), tuple(map(_text, (old, *others))))
        beyond = {n: _beyond(old, new) for n, new in zip(list(numbers)[1:], others, strict=True) if not key.against}
        reading = _readings({name: text for name, text in beyond.items() if text}, len(numbers))
        if key.against and key.metric in _MAIN and not key.of and any(new is not None for new in others):
            tests.append(row._replace(reading="paired test on the same rows"))
        elif len(set(row.cells)) == 1:
            unseen += any(new != old for new in others)
        elif reading:
            (groups if key.of else moved).append(row._replace(reading=reading))
        else:
            rest.append(row)
    return moved + groups, tests, rest, unseen


def _beyond(old: Number | None, new: Number | None) -> str:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or old["low"] <= new["value"] <= old["high"]:
        return ""
    return f"{'▲' if new['value'] > old['value'] else '▼'} beyond the interval"


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters by their dotted names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, node


def _text(found: Any) -> str:
    """A metric for a reader: a share in per cent, a change of one in points with the rows and the test."""
    if not isinstance(found, Mapping):
        return "" if found is None else number(round(found, 9) + 0.0) if isinstance(found, float) else str(found)
    value, low, high = centre(found), found["low"], found["high"]
    if "won" in found:
        return f"{points(value)} ({found['won']} won, {found['lost']} lost, {p_value(found['p_value'])})"
    if "count" in found:
        return f"{percent(value)} ({between(percent, low, high)})"
    return f"{'× ' if 'ratio' in found else ''}{number(value)} ({number(low)} to {number(high)})"


def _frame(rows: Sequence[_Row], revisions: Sequence[str]) -> pd.DataFrame:
    cells = [(row.what, *row.cells, row.reading) for row in rows]
    return pd.DataFrame(cells, columns=["What", *revisions, "Reading"], dtype=object).set_index("What")
