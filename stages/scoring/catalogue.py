"""Every number that a gate can name and two runs can be compared by: whose, which metric, which rows, against what."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.errors import UserError

Number = float | Mapping[str, Any]
_VALUES = ("value", "difference", "ratio")  # what an interval is around
_AGAINST = {f"against_{name}": name for name in ("linear", "sft", "previous")} | {"against_baseline": "base"}
_GROUPED = {"labels": "label", "fields": "field", "tasks": "task", "rules": "rule"}


@dataclass(frozen=True, slots=True)
class Key:
    """The name of a number.

    Attributes:
        model: base, linear, sft, adapter, previous, an artefact, judge, review, or the stage that counted it.
        metric: such as exact_match.
        against: whom the change is measured from; None for the number itself.
        of: (kind, name) of the rows, such as ("label", "refund"); None for all.
    """

    model: str
    metric: str
    against: str | None = None
    of: tuple[str, str] | None = None

    def __str__(self) -> str:
        of = f" of {self.of[0]} {self.of[1]}" if self.of else ""
        return f"{self.model} {self.metric}{of}" + (f" against {self.against}" if self.against else "")


Catalogue = dict[Key, Number]


def catalogue_of(files: Mapping[str, Any]) -> Catalogue:
    """The numbers of the metrics files, which come by their names without ending."""
    numbers: Catalogue = {}
    for key, number in _entries(files):
        if key in numbers:
            raise UserError(f"two metrics have the name {key}; rename one of the labels or columns behind them")
        numbers[key] = number
    return numbers


def models(files: Mapping[str, Any]) -> dict[str, Any]:
    """The SCORES of every model by its name, in the order in which they are made."""
    baseline, evaluate = files.get("baseline", {}), files.get("evaluate", {})
    found = {
        "base": baseline.get("base"),
        "linear": baseline.get("linear"),
        "previous": evaluate.get("previous", {}).get("scores"),
        "sft": evaluate.get("sft"),
        "adapter": evaluate.get("adapter"),
        **{name: artefact.get("scores") for name, artefact in _artefacts(files).items()},
    }
    return {name: scores for name, scores in found.items() if scores}


def comparisons(files: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """The COMPARISON of two models by their names: others to the adapter, then the adapter to each artefact."""
    evaluate = files.get("evaluate", {})
    found = {(before, "adapter"): evaluate.get(part) for part, before in _AGAINST.items()}
    found |= {("adapter", name): artefact.get("against_adapter") for name, artefact in _artefacts(files).items()}
    return {pair: comparison for pair, comparison in found.items() if comparison}


def _artefacts(files: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = files.get("quantize", {}).get("artefacts", {})
    return found


def _entries(files: Mapping[str, Any]) -> Iterator[tuple[Key, Number]]:
    for name, scores in models(files).items():
        yield from _of_model(name, scores)
    for (before, after), comparison in comparisons(files).items():
        yield from _of_model(after, comparison, before)
    for name, artefact in _artefacts(files).items():
        if "divergence" in artefact:
            yield Key(name, "divergence", "adapter"), artefact["divergence"]
    yield from _beyond(files.get("evaluate", {}))
    for name in ("judge", "review"):
        for part, node in files.get(name, {}).items():
            yield from _numbers(name, node, (), _AGAINST[part]) if part in _AGAINST else _numbers(name, node, (part,))
    for name in ("clean", "dedup", "split", "augment", "checks", "train", "prefer"):
        yield from _numbers(name, files.get(name, {}))


def _of_model(
    model: str, node: Mapping[str, Any], against: str | None = None, of: tuple[str, str] | None = None
) -> Iterator[tuple[Key, Number]]:
    """Scores or a comparison, as stages.scoring.metrics writes them."""
    for name, one in node.items():
        if is_number(one) or is_interval(one):
            yield Key(model, name, against, of), one
        elif name in _GROUPED and of:
            continue  # groups of groups have no name
        elif name in _GROUPED:
            for member, inner in one.items():
                if is_interval(inner):  # of a field or rule: it was met
                    yield Key(model, "exact_match", against, (_GROUPED[name], member)), inner
                else:
                    yield from _of_model(model, inner, against, (_GROUPED[name], member))
        elif name in ("macro", "weighted"):
            yield from ((Key(model, f"{name}_{key}", against, of), inner) for key, inner in one.items())
        elif isinstance(one, Mapping):  # classification, text
            yield from _of_model(model, one, against, of)


def _beyond(evaluate: Mapping[str, Any]) -> Iterator[tuple[Key, Number]]:
    """What was measured beyond the hold-out: general questions, safety, perturbed prompts, groups, triggers."""
    general, safety = evaluate.get("general", {}), evaluate.get("safety", {})
    for model in ("base", "adapter"):
        yield from ((Key(model, f"general_{name}"), one) for name, one in general.get(model, {}).items())
    for name, one in general.get("against_baseline", {}).items():
        yield Key("adapter", f"general_{name}", "base"), one
    for who, one in safety.get("refusals", {}).items():
        yield (Key("adapter", "refusals", "base") if who == "against_baseline" else Key(who, "refusals")), one
    yield from ((Key("adapter", name), one) for name, one in safety.items() if is_interval(one))
    for name, one in safety.get("canaries", {}).get("exposure", {}).items():
        yield Key("adapter", f"canary_exposure_{name}"), one
    for kind, one in evaluate.get("robustness", {}).items():
        yield from _of_model("adapter", one, None, ("perturbation", kind))
    for name, one in evaluate.get("slices", {}).items():
        yield Key("adapter", "gap", None, ("slice", name)), one["gap"]
    for band, one in evaluate.get("distance", {}).items():
        yield Key("adapter", "exact_match", None, ("distance", band)), one
    yield from ((Key("adapter", f"{name}_triggers"), one) for name, one in evaluate.get("triggers", {}).items())


def _numbers(
    name: str, node: Any, path: tuple[str, ...] = (), against: str | None = None
) -> Iterator[tuple[Key, Number]]:
    """The numbers of a stage's counts, named by the keys on the way to them."""
    if is_number(node) or is_interval(node):
        yield Key(name, ".".join(path), against), node
    elif isinstance(node, Mapping):
        for key, one in node.items():
            yield from _numbers(name, one, (*path, str(key)), against)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_interval(value: Any) -> bool:
    """A number with its interval."""
    return (
        isinstance(value, Mapping)
        and all(is_number(value.get(key)) for key in ("low", "high"))
        and any(is_number(value.get(key)) for key in _VALUES)
    )


def centre(number: Number) -> float:
    """The number itself, without its interval."""
    return float(next(number[key] for key in _VALUES if key in number) if isinstance(number, Mapping) else number)
