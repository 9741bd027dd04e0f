"""gates: every threshold held against every metric; a change of a threshold runs nothing else again.

The stage succeeds whatever the verdict, or DVC would throw the experiment away: `tunetrail gates` is what fails.
It gathers the numbers, too: metrics/summary.json is what people decide by, the one file that `dvc metrics` shows;
metrics/details.json has all that the stages measured, in git, so that two revisions compare without a cache.
"""

from typing import Any

from stages.core import paths
from stages.core.errors import UserError, run
from stages.core.files import read_json, write_json
from stages.measure.gates.judging import check_gates, weight
from stages.params.gates import Gate
from stages.params.loader import Params, load_params
from stages.scoring.catalogue import Catalogue, Key, catalogue_of, centre
from stages.scoring.metrics import FAIL, MARGINAL

_MEASURED = (
    paths.CLEAN_METRICS,
    paths.DEDUP_METRICS,
    paths.SPLIT_METRICS,
    paths.CHECKS_METRICS,
    paths.AUGMENT_METRICS,
    paths.BASELINE_METRICS,
    paths.TRAIN_METRICS,
    paths.EVALUATE_METRICS,
    paths.QUANTIZE_METRICS,
    paths.JUDGE_METRICS,
    paths.REVIEW_METRICS,
)
_MODELS, _ARTEFACTS = ("base", "adapter"), ("merged", "nf4", "int8", "gguf")


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


def summary(catalogue: Catalogue, gates: dict[str, Any]) -> dict[str, Any]:
    """At most 25 numbers that people decide by, nested for `dvc metrics`; what a run does not have is left out.

    The verdict is FAIL where a gate failed, else MARGINAL where one is unproven. Seconds are not among them: the same
    inputs must give the same bytes, so they stand in metrics/env/.
    """
    weights = [weight(gate) for gate in gates.values()]
    found: dict[str, Any] = {"gates": {"failed": weights.count(FAIL), "unproven": weights.count(MARGINAL)}}
    for model in _MODELS:
        found[model] = _with_bounds(catalogue, model, "exact_match")
    for model in _ARTEFACTS:  # their drop has a gate
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
