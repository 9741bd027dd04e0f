"""gates: every threshold held against every metric; a change of a threshold runs nothing else again.

The stage succeeds whatever the verdict, or DVC would throw the experiment away: `tunetrail gates` is what fails.
"""

from stages.core import paths
from stages.core.errors import UserError, run
from stages.core.files import read_json, write_json
from stages.measure.gates import check_gates
from stages.params import Gate, Params, load_params

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


def main() -> None:
    params = load_params("gates", "judge", "review")
    judged = check_gates(asked(params), {path.stem: read_json(path) for path in _MEASURED})
    write_json(paths.GATES, judged)
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


if __name__ == "__main__":
    run(main)
