"""What was measured, of all rows and of the rows of each task: scores by model, and comparisons between models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.comparisons import Change, Comparison, compare
from stages.report.metrics import Metric, main_metric

Raw = tuple[str, str, Mapping[str, Any]]


@dataclass(frozen=True)
class Measured:
    """`task` is the tag, empty for all rows; `main` the metric that speaks for the model on these rows."""

    task: str
    main: Metric
    scores: dict[str, Any]
    compared: list[Comparison]

    @property
    def changes(self) -> list[tuple[str, Change]]:
        """The change of the main metric by the names of the models."""
        return [(one.title, one.main) for one in self.compared if one.main]


def measured(metrics: Mapping[str, Any], scores: Mapping[str, Any], confidence: float) -> list[Measured]:
    """All rows; then each task, where the rows have several."""
    raw = list(_raw(metrics))
    tags = scores["adapter"].get("tasks", {})
    return [_measured("", scores, raw, confidence), *(_of_task(tag, scores, raw, confidence) for tag in tags)]


def _raw(metrics: Mapping[str, Any]) -> list[Raw]:
    """Base to adapter, the previous release to the adapter where there is one, and the adapter to each artefact."""
    evaluate, artefacts = metrics["evaluate"], metrics["quantize"]["artefacts"]
    earlier = {"base": "against_baseline", "previous": "against_previous"}
    pairs = [(before, "adapter", evaluate[key]) for before, key in earlier.items() if key in evaluate]
    return pairs + [("adapter", name, artefact["against_adapter"]) for name, artefact in artefacts.items()]


def _of_task(tag: str, scores: Mapping[str, Any], raw: list[Raw], confidence: float) -> Measured:
    inner = {name: one["tasks"][tag] for name, one in scores.items() if tag in one.get("tasks", {})}
    pairs = [(before, after, one["tasks"][tag]) for before, after, one in raw if tag in one.get("tasks", {})]
    return _measured(tag, inner, pairs, confidence)


def _measured(task: str, scores: Mapping[str, Any], raw: list[Raw], confidence: float) -> Measured:
    main = main_metric(scores["adapter"])
    return Measured(task, main, dict(scores), [compare(*one, main, confidence) for one in raw])
