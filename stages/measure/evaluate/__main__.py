"""evaluate: the adapter on the hold-out and beyond it, beside the baseline and the previous release.

metrics/evaluate.json; what has no rows of its kind is left out:

    adapter             SCORES (stages.scoring.summary)
    against_baseline    COMPARISON (stages.scoring.comparison)
    previous            {release, commit, rows: {both, only_now, only_then}, scores: SCORES of the rows in both}
    against_previous    COMPARISON; these two only where evaluate.previous names a release
    general             what tuning cost on general questions (stages.measure.evaluate.forgetting)
    robustness          spoiled prompts (stages.measure.evaluate.robustness)
    safety              personal_data, verbatim, forbidden, refusals (stages.measure.evaluate.safety) of all outputs,
                        and canaries (stages.measure.evaluate.audit) in an audit run
    slices              groups of record fields (stages.measure.evaluate.slices)
"""

from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.core.run_notes import measured
from stages.measure.evaluate.audit import measure_canaries
from stages.measure.evaluate.confusion import write_confusion
from stages.measure.evaluate.forgetting import measure_forgetting
from stages.measure.evaluate.previous import compare_previous, fetch_previous
from stages.measure.evaluate.robustness import measure_robustness, spoil
from stages.measure.evaluate.safety import measure_leaks, measure_refusals
from stages.measure.evaluate.slices import measure_slices
from stages.model.answers import answer_rows
from stages.model.chat import task_chat
from stages.model.likelihood import likelihoods, with_likelihood
from stages.model.loading import Weights, load_tokenizer
from stages.model.questions import GENERAL, REFUSAL, ask_probes, of_probe
from stages.params import Params, load_params
from stages.records.contract import Tasks
from stages.records.record import read_records, read_rows, write_rows
from stages.scoring import score_row
from stages.scoring.comparison import compare
from stages.scoring.summary import summarise

Rows = list[dict[str, Any]]


def main() -> None:
    params = load_params("evaluate", "generation", "probes", "scoring", "seed", "task")
    tasks, holdout, train = Tasks(params.task), read_records(paths.HOLDOUT), read_records(paths.TRAIN)
    # Fetched first: a release that cannot be had is better known before the model is asked than after.
    earlier = fetch_previous(Path.cwd(), params.evaluate.previous) if params.evaluate.previous else None
    spoiled = spoil(holdout, params.evaluate.robustness_rows, params.seed)
    with measured("evaluate") as notes:
        model = Weights(paths.BASE, paths.ADAPTER)
        chat = task_chat(load_tokenizer(paths.BASE), params.task)
        answers = answer_rows(model, chat, holdout, params.generation, "evaluate")
        rows = with_likelihood(answers, likelihoods(model, chat, holdout))
        probes = ask_probes(model, chat, params.probes, params.generation, "probes")
        broken = answer_rows(model, chat, [record for _, record in spoiled], params.generation, "robustness")
        canaries = measure_canaries(model, chat, train, params.evaluate.canary_candidates)
        notes["generation"] = model.spent

    scores = [score_row(row, tasks) for row in rows]
    before = [score_row(row, tasks) for row in read_rows(paths.BASE_GENERATIONS)]
    kinds = [kind for kind, _ in spoiled]
    leaks = measure_leaks([*rows, *broken, *of_probe(probes, REFUSAL)], train, params.evaluate, params.scoring)
    result = {
        "adapter": summarise(scores, params.scoring),
        "against_baseline": compare(before, scores, params.scoring),
        **(compare_previous(earlier, scores, tasks, params.scoring) if earlier else {}),
        **_beyond(probes, list(read_rows(paths.BASE_PROBES)), params, leaks, canaries),
        "robustness": measure_robustness(kinds, [score_row(row, tasks) for row in broken], params.scoring),
        "slices": measure_slices(
            holdout, scores, params.evaluate.slices, params.evaluate.slice_min_rows, params.scoring
        ),
    }
    write_rows(paths.ADAPTER_GENERATIONS, rows)
    write_rows(paths.PREVIOUS_GENERATIONS, earlier.rows if earlier else [])
    write_rows(paths.ADAPTER_PROBES, probes + [{"probe": kind, **row} for kind, row in zip(kinds, broken, strict=True)])
    write_confusion(paths.CONFUSION, scores, tasks)
    write_json(paths.EVALUATE_METRICS, {part: found for part, found in result.items() if found})


def _beyond(
    adapter: Rows, base: Rows, params: Params, leaks: dict[str, Any], canaries: dict[str, Any] | None
) -> dict[str, Any]:
    """The parts of the metrics that are not about the hold-out alone."""
    scoring, found, safety = params.scoring, {}, dict(leaks)
    if general := of_probe(adapter, GENERAL):
        found["general"] = measure_forgetting(of_probe(base, GENERAL), general, scoring)
    if refusals := of_probe(adapter, REFUSAL):
        safety["refusals"] = measure_refusals(of_probe(base, REFUSAL), refusals, params.probes, scoring)
    if canaries:
        safety["canaries"] = canaries
    return {**found, "safety": safety}


if __name__ == "__main__":
    run(main)
