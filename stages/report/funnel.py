"""Where the rows went: from the raw files to the rows that were trained on, as bars whose lengths add up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.report.formats import words

WIDTH = 1000  # of a bar that holds the most rows there ever are, in units of the SVG's viewBox


@dataclass(frozen=True)
class Part:
    """Rows of a bar: those that go on (kept, and added by the step before), are put aside or dropped."""

    kind: str
    name: str
    rows: int
    start: float
    width: float


@dataclass(frozen=True)
class Step:
    """A step of the data: `rows` come to it, those of the parts `kept` and `added` are what the next step gets."""

    name: str
    rows: int
    parts: list[Part]

    @property
    def on(self) -> float:
        """How far the rows that go on reach."""
        return round(sum(part.width for part in self.of("kept", "added")), 1)

    def of(self, *kinds: str) -> list[Part]:
        return [part for part in self.parts if part.kind in kinds]


def funnel(metrics: Mapping[str, Any]) -> list[Step]:
    """The steps in their order; each step's rows are those that the one before it kept, and those that came in."""
    bars = list(_bars(metrics))
    scale = WIDTH / max([1, *(sum(count for _, _, count in parts) for _, parts in bars)])
    return [_step(name, parts, scale) for name, parts in bars]


def _bars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, int]]]]:
    clean, dedup, split, augment, train = (metrics[n] for n in ("clean", "dedup", "split", "augment", "train"))
    rows, restored = split["rows"], split["locked"]["restored"]
    yield "Raw rows", [_kept(clean["rows"]["kept"]), *_each("dropped", clean["rejected"])]
    yield "Clean", [_kept(dedup["rows"]["kept"]), *_each("dropped", dedup["dropped"], " duplicate")]
    yield (
        "Without duplicates",
        [
            _kept(rows["train"]),
            ("aside", "validation", rows["validation"]),
            ("aside", "hold-out", rows["holdout"] - restored),
            *_each("dropped", split["quarantined"], " as in the hold-out"),
            ("dropped", "beyond the maximum", rows["beyond_max"]),
        ],
    )
    yield "Training split", [_kept(rows["train"]), *_each("added", augment["added"])]
    yield (
        "With added rows",
        [_kept(train["rows"]["train"]), ("dropped", "too long", train["rows"]["left_out_too_long"])],
    )
    yield "Trained on", [_kept(train["rows"]["train"])]


def _step(name: str, parts: list[tuple[str, str, int]], scale: float) -> Step:
    drawn, at = [], 0.0
    for kind, part, count in parts:
        if count or kind == "kept":
            drawn.append(Part(kind, part, count, round(at, 1), round(count * scale, 1)))
            at += count * scale
    return Step(name, sum(part.rows for part in drawn if part.kind != "added"), drawn)


def _kept(count: int) -> tuple[str, str, int]:
    return "kept", "go on", count


def _each(kind: str, counts: Mapping[str, int], suffix: str = "") -> list[tuple[str, str, int]]:
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(kind, words(name) + suffix, count) for name, count in most_first]
