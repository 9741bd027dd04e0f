"""Every number that a gate can name and two runs can be compared by: whose, which metric, which rows, against what."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.errors import UserError

Number = float | Mapping[str, Any]
_VALUES = ("value", "difference", "ratio")  # what an interval is around
_AGAINST = {"against_baseline": "base", "against_linear": "linear", "against_previous": "previous"}
_AGAINST |= {"against_adapter": "adapter"}
_GROUPED = {"labels": "label", "fields": "field", "tasks": "task", "rules": "rule"}


@dataclass(frozen=True, slots=True)
class Key:
    """The name of a number.

    Attributes:
        model: base, linear, adapter, previous, an artefact, judge, review, or the stage that counted it.
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


class Catalogue:
    """The numbers of the metrics files, by the files' names without ending."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._numbers: dict[Key, Number] = {}
        for key, number in _entries(files):
            if key in self._numbers:
                raise UserError(f"two metrics have the name {key}; rename one of the labels or columns behind them")
            self._numbers[key] = number
        self._models = {key.model for key in self._numbers}
        self._pairs = {(key.model, key.against) for key in self._numbers}

    def items(self) -> Iterable[tuple[Key, Number]]:
        """All numbers by their names."""
        return self._numbers.items()

    def get(self, key: Key) -> Number | None:
        """The number, or None where the run has none of that name."""
        return self._numbers.get(key)

    def compared(self, model: str, against: str) -> bool:
        """Whether anything of this model was compared with the other."""
        return (model, against) in self._pairs

    def __contains__(self, model: object) -> bool:
        return model in self._models

    def look_up(self, what: str, key: Key) -> Number:
        """The number. Raises UserError that names the nearest one where there is none."""
        found = self._numbers.get(key)
        if found is None:
            known = {str(one): one for one in self._numbers}
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise UserError(f"{what}: {key} is not among the metrics; did you mean {near[0] if near else 'nothing'}?")
        return found


def _entries(files: Mapping[str, Any]) -> Iterator[tuple[Key, Number]]:
    evaluate = files.get("evaluate", {})
    baseline = files.get("baseline", {})
    yield from _of_model("base", baseline.get("base", {}))
    yield from _of_model("linear", baseline.get("linear", {}))
    yield from _of_model("adapter", evaluate.get("adapter", {}))
    yield from _of_model("previous", evaluate.get("previous", {}).get("scores", {}))
    for part, against in _AGAINST.items():
        yield from _of_model("adapter", evaluate.get(part, {}), against)
    for name, artefact in files.get("quantize", {}).get("artefacts", {}).items():
        yield from _of_model(name, artefact.get("scores", {}))
        yield from _of_model(name, artefact.get("against_adapter", {}), "adapter")
        if "divergence" in artefact:
            yield Key(name, "divergence", "adapter"), artefact["divergence"]
    yield from _beyond(evaluate)
    for name in ("judge", "review"):
        for part, node in files.get(name, {}).items():
            yield from _numbers(name, node, (), _AGAINST[part]) if part in _AGAINST else _numbers(name, node, (part,))
    for name in ("clean", "dedup", "split", "augment", "checks", "train"):
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
