"""The measured numbers as tables of pandas: models beside each other, and what the rows show to have changed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from jinja2.filters import do_filesizeformat

from stages.report.formats import between, excerpt, number, p_value, percent, plural, points, render, signed

BETTER, WORSE, SAME, UNSHOWN, CHANGED = "better", "worse", "nothing changed", "no change shown", "changed"
ABSENT = "–"
_ALL_CLASSES = 12  # up to this many, the confusion table shows every value


@dataclass(frozen=True)
class Metric:
    """A metric as SCORES name it (stages.scoring). `better` is 1 for more, -1 for less, 0 for neither.

    `share` is a proportion, to be shown in per cent. A `brief` metric is in the short version too.
    A COMPARISON has its change under the same path.
    """

    path: str
    name: str
    group: str
    better: int = 1
    share: bool = True
    brief: bool = False

    def form(self, value: float) -> str:
        return percent(value) if self.share else number(value)


ALL = "All answers"
_JSON, _CLASSES, _TEXT = "Structured answers", "Classification", "Text"
METRICS = (  # those of a group together
    Metric("exact_match", "Exact match", ALL, brief=True),
    Metric("label_accuracy", "Label right", ALL, brief=True),
    Metric("valid", "Keeps the contract of its task", ALL),
    Metric("perplexity", "Perplexity of the references", ALL, better=-1, share=False, brief=True),
    Metric("custom", "Your own score (task.metric)", ALL, brief=True),
    Metric("output_tokens", "Mean tokens an answer", ALL, better=0, share=False),
    Metric("schema_valid", "Fits the schema", _JSON, brief=True),
    Metric("json_valid", "Valid JSON", _JSON),
    Metric("field_match", "Fields right", _JSON),
    Metric("classification.accuracy", "Accuracy", _CLASSES),
    Metric("classification.macro.f1", "F1, mean of the classes", _CLASSES, brief=True),
    Metric("classification.macro.precision", "Precision, mean of the classes", _CLASSES),
    Metric("classification.macro.recall", "Recall, mean of the classes", _CLASSES),
    Metric("classification.weighted.f1", "F1, weighted by class", _CLASSES),
    Metric("classification.weighted.precision", "Precision, weighted by class", _CLASSES),
    Metric("classification.weighted.recall", "Recall, weighted by class", _CLASSES),
    Metric("text.rougeL", "ROUGE-L", _TEXT, share=False, brief=True),
    Metric("text.rouge1", "ROUGE-1", _TEXT, share=False),
    Metric("text.rouge2", "ROUGE-2", _TEXT, share=False),
    Metric("text.bleu", "BLEU", _TEXT, share=False),
    Metric("text.chrf", "chrF", _TEXT, share=False),
    Metric("text.rules.max_words", "Keeps the word limit", _TEXT),
    Metric("text.rules.required_phrases", "Has the required phrases", _TEXT),
    Metric("text.rules.forbidden_phrases", "Has no forbidden phrase", _TEXT),
    Metric("text.readability", "Readability", _TEXT, better=0, share=False),
    Metric("text.words", "Mean words an answer", _TEXT, better=0, share=False),
)
_BY_PATH = {metric.path: metric for metric in METRICS}


@dataclass(frozen=True)
class Change:
    """One metric from one model to another.

    `reading` is BETTER or WORSE (CHANGED where neither is good) when the rows show it at the confidence asked,
    UNSHOWN when they do not, SAME when nothing changed at all. `p` is the McNemar test's; `interval` the paired
    bootstrap's; either may be missing. `rises` says which way the number went.
    """

    metric: Metric
    amount: str
    interval: str
    won: int | None
    lost: int | None
    p: str
    reading: str
    rises: bool

    @property
    def symbol(self) -> str:
        return {SAME: "=", UNSHOWN: "≈"}.get(self.reading, "▲" if self.rises else "▼")

    @property
    def tone(self) -> str:
        return {BETTER: "good", WORSE: "bad"}.get(self.reading, "soft")

    @property
    def rows(self) -> str:
        """The rows that changed sides, as "46 won, 0 lost"; empty for what is no right or wrong."""
        return "" if self.won is None else f"{self.won:,} won, {self.lost:,} lost"

    @property
    def evidence(self) -> str:
        """The numbers behind the reading."""
        return ", ".join(text for text in (self.rows, self.p, self.interval) if text)


class Note(NamedTuple):
    """A line below a value, in a colour."""

    text: str
    tone: str = ""
    symbol: str = ""


class Cell(NamedTuple):
    """A value of a table with the lines below it."""

    value: str
    notes: Sequence[Note] = ()

    @property
    def brief(self) -> str:
        return f"{self.value} ({self.notes[0].text})" if self.notes else self.value


@dataclass(frozen=True)
class Comparison:
    """All that changed from model `before` to model `after`; `main` is the change that speaks for the model."""

    before: str
    after: str
    changes: list[Change]
    main: Change | None

    @property
    def title(self) -> str:
        return f"{self.before} to {self.after}"


@dataclass(frozen=True)
class Measured:
    """Scores by model and comparisons between models, of all rows (`task` is empty) or of the rows of one task.

    `main` is the metric that speaks for the model on these rows.
    """

    task: str
    main: Metric
    scores: dict[str, Any]
    compared: list[Comparison]


def measured(
    scores: Mapping[str, Any], comparisons: Mapping[tuple[str, str], Any], confidence: float
) -> list[Measured]:
    """All rows; then each task, where the rows have several. `comparisons` are by the names of the two models."""
    found = [_measured("", scores, comparisons, confidence)]
    for tag in scores["adapter"].get("tasks", {}):
        inner = {name: one["tasks"][tag] for name, one in scores.items() if tag in one.get("tasks", {})}
        pairs = {pair: one["tasks"][tag] for pair, one in comparisons.items() if tag in one.get("tasks", {})}
        found.append(_measured(tag, inner, pairs, confidence))
    return found


def main_metric(scores: Mapping[str, Any]) -> Metric:
    """The metric that speaks for the model: the share of right answers, or ROUGE-L where all is free text."""
    only_text = "text" in scores and "classification" not in scores and "schema_valid" not in scores
    return _BY_PATH["text.rougeL" if only_text else "exact_match"]


def look_up(node: Any, path: str) -> Any:
    """What is at the dotted path of a METRICS entry, or None."""
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def read_change(metric: Metric, raw: Mapping[str, Any], confidence: float) -> Change:
    """A difference {difference, low, high, won, lost, p_value} or a ratio {ratio, low, high} of a metrics file.

    A p-value decides where there is one; else the interval, which must leave out "no change".
    """
    ratio = "ratio" in raw
    amount, none = (raw["ratio"], 1.0) if ratio else (raw["difference"], 0.0)
    shown = raw["p_value"] < 1 - confidence if "p_value" in raw else raw["low"] > none or raw["high"] < none
    form: Callable[[float], str] = _times if ratio else points if metric.share else signed
    return Change(
        metric=metric,
        amount=form(amount),
        interval=between(form, raw["low"], raw["high"]) if "low" in raw else "",
        won=raw.get("won"),
        lost=raw.get("lost"),
        p=p_value(raw["p_value"]) if "p_value" in raw else "",
        reading=_reading(metric, amount - none, shown, same=amount == none and not raw.get("won")),
        rises=amount > none,
    )


def say_change(change: Change, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """One sentence: from which value to which, and on what evidence; `before` and `after` are SCORES."""
    metric = change.metric
    values = (look_up(scores, metric.path) for scores in (before, after))
    old, new = (metric.form(one["value"] if isinstance(one, Mapping) else one) for one in values)
    on = f" on {plural(after['rows'], 'row')}" if "rows" in after else ""
    return f"{metric.name} {old} → {new}{on}: {change.evidence or change.amount}."


def metric_table(found: Measured, *, shared: bool = False) -> pd.DataFrame:
    """(group, metric) by model; `shared` are the metrics of every task."""
    rows = []
    for metric in METRICS:
        values = [look_up(one, metric.path) for one in found.scores.values()]
        if any(value is not None for value in values) and (metric.group == ALL or not shared):
            rows.append(((metric.group, metric.name), *(value_cell(value, metric.form) for value in values)))
    return frame(rows, list(found.scores), "Metric")


def brief_table(parts: Sequence[Measured]) -> pd.DataFrame:
    """The brief metrics by model as plain text: of all rows, then of each task."""
    rows, brief = [], {metric.name for metric in METRICS if metric.brief}
    for part in parts:
        table = metric_table(part, shared=len(parts) > 1 and not part.task)
        for (_, name), cells in zip(table.index, table.itertuples(index=False, name=None), strict=True):
            if name in brief:
                shown = f"{part.task}: {name}" if part.task else name
                rows.append((shown, *(cell.brief for cell in cells)))
    return frame(rows, list(parts[0].scores), "On the hold-out")


def format_table(artefacts: Mapping[str, Any]) -> pd.DataFrame:
    """The formats as they were asked: by which engine, held to what; one held to a contract also without it, below."""
    rows = []
    for name, one in artefacts.items():
        types = ", ".join(f"{count} {kind}" for kind, count in one["types"].items())
        facts = [one["engine"], do_filesizeformat(one["bytes"]), types]
        for asked in (one, *([one["free"]] if "free" in one else [])):
            shares = [value_cell(asked["scores"][key]) for key in ("exact_match", "valid")]
            same = f"{asked['agreement']['same']:,} of {asked['agreement']['rows']:,}"
            cells = [*facts, asked["decoding"]["enforce"], *shares, same, percent(asked["stopped"])]
            rows.append((name if asked is one else f"{name}, free", *cells))
    columns = ["Engine", "Size", "Tensors", "Held to", "Exact match", "Valid", "As the adapter", "Ended by stop token"]
    return frame(rows, columns, "Format")


def change_table(compared: Sequence[Comparison]) -> pd.DataFrame:
    """(models, metric) by what a paired test says of the change."""
    rows = []
    for one in compared:
        for change in one.changes:
            won, lost = (ABSENT if n is None else f"{n:,}" for n in (change.won, change.lost))
            reading = Cell("", [Note(change.reading, change.tone, change.symbol)])
            name = one.title, change.metric.name
            rows.append((name, change.amount, change.interval or ABSENT, won, lost, change.p or ABSENT, reading))
    return frame(rows, ["Change", "Interval", "Won", "Lost", "Test", "Reading"], "Metric")


def part_table(scores: Mapping[str, Any], part: str, first: str, inner: str = "") -> pd.DataFrame:
    """A proportion for each field or label of the adapter: `part` names the group, `inner` the key in it."""
    rows = []
    for key in scores["adapter"].get(part, {}):
        found = [one.get(part, {}).get(key) for one in scores.values()]
        cells = [value_cell(value.get(inner) if inner and value else value) for value in found]
        rows.append((excerpt(key, 80), *cells))
    return frame(rows, list(scores), first)


def confusion_table(pairs: pd.DataFrame) -> dict[str, Any] | None:
    """Counts by actual (rows) and predicted (columns) value; None without rows. Large tables keep the mistaken ones.

    {"counts": the table, "rows", "right": how many are on the diagonal, "left_out": values without a mistake}
    """
    if pairs.empty:
        return None
    wrong = pairs[pairs["actual"] != pairs["predicted"]]
    every, mistaken = (sorted({*one["actual"], *one["predicted"]}) for one in (pairs, wrong))
    shown = every if len(every) <= _ALL_CLASSES else mistaken
    counts = pd.crosstab(pairs["actual"], pairs["predicted"]).reindex(index=shown, columns=shown, fill_value=0)
    names = [excerpt(value, 40) if value else "(empty)" for value in shown]
    counts = counts.set_axis(names).set_axis(names, axis="columns")
    return {
        "counts": counts,
        "rows": len(pairs),
        "right": len(pairs) - len(wrong),
        "left_out": len(every) - len(shown),
    }


def plain_lines(table: pd.DataFrame) -> list[str]:
    """The rows for a terminal, in columns."""
    wide = table.map(str).apply(lambda cells: cells.str.ljust(max(map(len, cells), default=0)))
    return [] if wide.empty else [line.rstrip() for line in wide.to_string(index=False, header=False).splitlines()]


def table_text(table: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """A table with its headings for a terminal, and notes below it."""
    flat = table.reset_index()
    return "\n".join([*plain_lines(pd.concat([flat.columns.to_frame().T, flat])), *notes])


def table_page(table: pd.DataFrame, notes: Sequence[str], title: str, caption: str, form: str = "html") -> str:
    """A page of one table, in HTML that needs no network or, with `form` md, in Markdown."""
    return render(f"page.{form}.j2", {"frame": table, "notes": notes, "title": title, "caption": caption})


def value_cell(found: Any, form: Callable[[float], str] = percent) -> Cell:
    """A value with its interval and its count, where it has them."""
    if not isinstance(found, Mapping):
        return Cell(ABSENT if found is None else number(found))
    notes = [Note(between(form, found["low"], found["high"]))]
    return Cell(form(found["value"]), [*notes, *([Note(count(found))] if "count" in found else [])])


def count(found: Mapping[str, Any]) -> str:
    return f"{found['count']:,} of {found['n']:,}"


def frame(rows: Sequence[tuple[Any, ...]], columns: Sequence[str], first: str) -> pd.DataFrame:
    """Rows that begin with their name, or with (group, name); `first` heads the names."""
    names = [row[0] for row in rows]
    grouped = bool(rows) and isinstance(names[0], tuple)
    index = pd.MultiIndex.from_tuples(names) if grouped else pd.Index(names, dtype=object)
    index.names = ["", first] if grouped else [first]
    return pd.DataFrame([row[1:] for row in rows], index, list(columns), dtype=object)


def _measured(task: str, scores: Mapping[str, Any], pairs: Mapping[Any, Any], confidence: float) -> Measured:
    main = main_metric(scores["adapter"])
    compared = []
    for (before, after), raw in pairs.items():
        changes = list(changes_of(raw, confidence))
        only = changes[0] if len(changes) == 1 else None  # a linear model has labels alone
        compared.append(Comparison(before, after, changes, next((c for c in changes if c.metric is main), only)))
    return Measured(task, main, dict(scores), compared)


def changes_of(raw: Mapping[str, Any], confidence: float) -> Iterator[Change]:
    for metric in METRICS:
        found = look_up(raw, metric.path)
        if isinstance(found, Mapping) and ("difference" in found or "ratio" in found):
            yield read_change(metric, found, confidence)


def _reading(metric: Metric, amount: float, shown: bool, same: bool) -> str:
    if same:
        return SAME
    if not shown:
        return UNSHOWN
    return CHANGED if metric.better == 0 else BETTER if amount * metric.better > 0 else WORSE


def _times(ratio: float) -> str:
    return f"× {number(ratio)}"
