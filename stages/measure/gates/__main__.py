"""gates: every threshold held against every metric; a change of a threshold runs nothing else again.

The stage succeeds whatever the verdict, or DVC would throw the experiment away: `tunetrail gates` is what fails.
It gathers the numbers, too: metrics/summary.json is what people decide by, the one file that `dvc metrics` shows;
metrics/details.json has all that the stages measured, in git, so that two revisions compare without a cache.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from stages.core import paths
from stages.core.errors import UserError, run
from stages.core.files import read_json, write_json
from stages.params.loader import Params, load_params
from stages.params.measure import Gate
from stages.params.model import FORMATS
from stages.scoring.catalogue import Catalogue, Key, catalogue_of, centre
from stages.scoring.metrics import FAIL, MARGINAL, PASS, WORST_FIRST

_MEASURED = (
    paths.CLEAN_METRICS,
    paths.DEDUP_METRICS,
    paths.SPLIT_METRICS,
    paths.CHECKS_METRICS,
    paths.AUGMENT_METRICS,
    paths.BASELINE_METRICS,
    paths.TRAIN_METRICS,
    paths.PREFER_METRICS,
    paths.EVALUATE_METRICS,
    paths.QUANTIZE_METRICS,
    paths.JUDGE_METRICS,
    paths.REVIEW_METRICS,
)
_BEYOND_LABELS = ("general_", "refusals", "canary_")  # what a classification head cannot be asked
_RELATION = {
    ("minimum", True): "at least",
    ("minimum", False): "below",
    ("maximum", True): "at most",
    ("maximum", False): "above",
}


def main() -> None:
    params = load_params("gates", "judge", "review")
    details = {path.stem: read_json(path) for path in _MEASURED}
    judged = check_gates(asked(params), details)
    write_json(paths.GATES, judged)
    write_json(paths.DETAILS, details)
    write_json(paths.SUMMARY, summary(catalogue_of(details), judged["gates"]))
    print(f"verdict: {judged['verdict']}. {judged['reason']}")


def asked(params: Params) -> dict[str, Gate]:
    """All gates; those on the judge only where it is enabled. Raises UserError when two have one name."""
    sections = {"gates": params.gates, "review.gates": params.review.gates}
    if params.judge.enabled:
        sections["judge.gates"] = params.judge.gates
    found: dict[str, Gate] = {}
    for section, gates in sections.items():
        if twice := found.keys() & gates.keys():
            raise UserError(f"{section}: {min(twice)} is the name of another gate too; rename one")
        found |= gates
    return found


def check_gates(gates: Mapping[str, Gate], files: Mapping[str, Any]) -> dict[str, Any]:
    """Judge every gate against the metrics files, by their names without ending.

    A metric with an interval is judged by what the interval can show, unless the gate's evidence is `value`. With
    evidence `for`, PASS is when the whole interval keeps the threshold, FAIL when none of it does, MARGINAL between;
    with `against`, FAIL is when no part of it does, else PASS when the value does and MARGINAL when it does not. A
    plain number passes or fails; what is no finite number fails. An advisory gate can make the verdict MARGINAL, never
    FAIL. A gate against the previous release where there is none is PASS without a value.

    Returns:
        {"verdict": state, "reason": sentence, "gates": {name: gate}}, as metrics/gates.json holds them.

    Raises UserError when a gate names a metric that is not there.
    """
    catalogue = catalogue_of(files)
    checked = {name: _check(name, gate, catalogue) for name, gate in gates.items()}
    verdict = worst(weight(gate) for gate in checked.values())
    return {"verdict": verdict, "reason": _summary(checked), "gates": checked}


def worst(states: Iterable[str]) -> str:
    """The worst of the states; PASS when there are none."""
    return min(states, key=WORST_FIRST.index, default=PASS)


def weight(gate: Mapping[str, Any]) -> str:
    """What a checked gate contributes to the verdict: an advisory one can warn but not fail."""
    if gate["required"]:
        return str(gate["state"])
    return MARGINAL if gate["state"] == FAIL else PASS


def _summary(checked: Mapping[str, Mapping[str, Any]]) -> str:
    """Which gates do not pass, in one sentence."""
    if not checked:
        return "No gates are set."
    said = []
    for state, words in ((FAIL, "fail"), (MARGINAL, "cannot be told from these rows")):
        for required, kind in ((True, "required"), (False, "advisory")):
            names = [name for name, gate in checked.items() if (gate["state"], gate["required"]) == (state, required)]
            if names:
                said.append(f"{len(names)} {kind} {words}: {', '.join(names)}")
    if said:
        return f"Of {len(checked)} gates {'; '.join(said)}."
    return f"All {len(checked)} gates hold." if len(checked) > 1 else "The one gate holds."


def _check(name: str, gate: Gate, catalogue: Catalogue) -> dict[str, Any]:
    kind = "maximum" if gate.minimum is None else "minimum"
    threshold = next(one for one in (gate.minimum, gate.maximum) if one is not None)
    missing = _not_there(gate, catalogue)
    of = next(((str(part), member) for part, member in gate.of.items()), None)
    key = Key(gate.model, gate.metric, gate.against, of)
    metric = None if missing else catalogue.get(key)
    if metric is None and not missing:
        near = difflib.get_close_matches(str(key), map(str, catalogue), n=1, cutoff=0) or ["nothing"]
        raise UserError(f"gate {name}: {key} is not among the metrics; did you mean {near[0]}?")
    numbers: dict[str, float] = {}
    if metric is not None:
        numbers["value"] = centre(metric)
        if isinstance(metric, Mapping):
            numbers |= {"low": metric["low"], "high": metric["high"]}
    if missing:
        state, reason = PASS, missing
    elif not all(map(math.isfinite, numbers.values())):
        state, reason, numbers = FAIL, "not a finite number: the measurement broke", {}
    elif isinstance(metric, Mapping) and gate.evidence != "value":
        state, reason = _judge_interval(numbers, kind, threshold, gate.evidence, *_rows(metric))
    else:
        state, reason = _judge_number(numbers["value"], kind, threshold)
    return {
        "state": state,
        **gate.model_dump(include={"model", "metric", "against", "of"}),
        **numbers,
        "kind": kind,
        "threshold": threshold,
        "evidence": gate.evidence,
        "required": gate.required,
        "reason": reason,
    }


def _not_there(gate: Gate, catalogue: Catalogue) -> str | None:
    """Why there is nothing to compare with, where that is no mistake."""
    models, pairs = {key.model for key in catalogue}, {(key.model, key.against) for key in catalogue}
    if gate.model in FORMATS and gate.model not in models:
        return f"{gate.model} is not among quantize.formats: it was not made"
    if gate.model == "adapter" and Key("train", "labels") in catalogue and gate.metric.startswith(_BEYOND_LABELS):
        return "train.head is label: such a model answers nothing but labels"
    known = any((key.model, key.metric) == (gate.model, gate.metric) for key in catalogue)  # else it is misspelt
    # The adapter is compared with all that there is, other models with the adapter alone.
    absent = gate.model == "adapter" or gate.against not in models
    if absent and gate.against and gate.model in models and (gate.model, gate.against) not in pairs:
        if gate.against == "previous" and known:
            return "first release: there is no previous one to compare with"
        if gate.against == "sft" and known:
            return "prefer.objective is sft: the adapter is what SFT made"
        if gate.against == "linear":
            return "no linear baseline: rows or answers have no labels to compare"
    return None


def _rows(metric: Mapping[str, Any]) -> tuple[str, str]:
    """What the numbers rest on: as it goes on from them, and as the subject of a sentence."""
    if "won" in metric:
        return f", won {metric['won']}, lost {metric['lost']}", "these rows"
    return (f" of {metric['n']} rows", f"{metric['n']} rows") if "n" in metric else ("", "these rows")


def _judge_number(value: float, kind: str, threshold: float) -> tuple[str, str]:
    kept = value >= threshold if kind == "minimum" else value <= threshold
    return PASS if kept else FAIL, f"{value:.4g} is {_RELATION[kind, kept]} {threshold:g}"


def _judge_interval(
    numbers: Mapping[str, float], kind: str, threshold: float, evidence: str, of_rows: str, rows: str
) -> tuple[str, str]:
    value, low, high = numbers["value"], numbers["low"], numbers["high"]
    measured = f"{value:.3f} ({low:.3f} to {high:.3f}){of_rows}"
    sign = 1 if kind == "minimum" else -1
    nearest, farthest = (low, high) if kind == "minimum" else (high, low)
    if sign * (farthest - threshold) < 0:
        return FAIL, f"{measured}: {_RELATION[kind, False]} {threshold:g} over the whole interval"
    if sign * (nearest - threshold) >= 0:
        return PASS, f"{measured}: {_RELATION[kind, True]} {threshold:g} over the whole interval"
    if evidence == "for":
        return MARGINAL, f"{measured}: {rows} cannot show {threshold:g} either way"
    if sign * (value - threshold) >= 0:
        return PASS, f"{measured}: {_RELATION[kind, True]} {threshold:g}"
    return MARGINAL, f"{measured}: {_RELATION[kind, False]} {threshold:g}, but {rows} cannot show that it is"


def summary(catalogue: Catalogue, gates: dict[str, Any]) -> dict[str, Any]:
    """At most 25 numbers that people decide by, nested for `dvc metrics`; what a run does not have is left out.

    The verdict is FAIL where a gate failed, else MARGINAL where one is unproven. Seconds are not among them: the same
    inputs must give the same bytes, so they stand in metrics/env/.
    """
    weights = [weight(gate) for gate in gates.values()]
    found: dict[str, Any] = {"gates": {"failed": weights.count(FAIL), "unproven": weights.count(MARGINAL)}}
    for model in ("base", "adapter"):
        found[model] = _with_bounds(catalogue, model, "exact_match")
    for model in FORMATS:  # their drop has a gate
        found[model] = _plain(catalogue, "exact_match", Key(model, "exact_match"))
    found["linear"] = _with_bounds(catalogue, "linear", "label_accuracy")
    for name in ("schema_valid", "perplexity"):
        found["adapter"] |= _plain(catalogue, name, Key("adapter", name))
    found |= _plain(catalogue, "forgetting", Key("adapter", "general_perplexity", "base"))
    out = [Key("clean", "rows.rejected"), Key("dedup", "rows.dropped"), Key("split", "rows.quarantined")]
    dropped = [centre(number) for key in out if (number := catalogue.get(key)) is not None]
    found["rows"] = _plain(catalogue, "used", Key("train", "rows.train")) | {"dropped": int(sum(dropped))}
    return {name: one for name, one in found.items() if one != {}}


def _with_bounds(catalogue: Catalogue, model: str, metric: str) -> dict[str, float]:
    number = catalogue.get(Key(model, metric))
    if not isinstance(number, dict):
        return {}
    return {metric: number["value"], "low": number["low"], "high": number["high"]}


def _plain(catalogue: Catalogue, name: str, key: Key) -> dict[str, float]:
    number = catalogue.get(key)
    return {} if number is None else {name: centre(number)}


if __name__ == "__main__":
    run(main)
