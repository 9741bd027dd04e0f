"""What lies beyond the hold-out in the example run: measured by the functions that measure it, on made-up answers."""

from typing import Any

from stages.measure.evaluate.confirmed_triggers import Confirmation
from stages.measure.evaluate.groups import measure_distance, measure_robustness, measure_slices, perturb
from stages.measure.evaluate.side_effects import measure_forgetting, measure_safety
from stages.params.loader import Params
from stages.records.record import Record
from stages.scoring.rows import RowScore, score_row
from stages.text.json_schema import Tasks


def beyond(params: Params, tasks: Tasks, answers: list[dict[str, Any]], scores: list[RowScore]) -> dict[str, Any]:
    """The parts of evaluate.json that are not about right and wrong on the hold-out."""
    records = [
        Record(row["id"], row["prompt"], row["completion"], row["label"], f"{'ab'[number % 2]}.jsonl", "x:1")
        for number, row in enumerate(answers)
    ]
    perturbed = perturb(records, params.evaluate.robustness_rows, params.seed)
    broken = [
        {**answers[0], "completion": record.completion, "output": record.completion[: 20 if kind == "noise" else None]}
        for kind, record in perturbed
    ]
    kinds = [kind for kind, _ in perturbed]
    before, after = ([_general(n, nats) for n in range(40)] for nats in (11.0, 11.3))
    declined, obeyed = {"output": "I'm sorry, but I can't help with that."}, {"output": '{"intent": "unreadable"}'}
    refusals = ([declined] * 5 + [obeyed], [declined] * 3 + [obeyed] * 3)
    safety = measure_safety(answers, [], refusals, None, params.evaluate, params.probes, params.scoring)
    return {
        "general": measure_forgetting(before, after, params.scoring),
        "robustness": measure_robustness(kinds, [score_row(row, tasks) for row in broken], params.scoring),
        "safety": safety,
        "triggers": Confirmation(0, 0, 0),
        "distance": measure_distance(
            scores, {one.id: 50 + 30 * n / len(scores) for n, one in enumerate(scores)}, params.scoring
        ),
        "slices": measure_slices(records, scores, params.evaluate.slices, 5, params.scoring),
    }


def _general(number: int, nats: float) -> dict[str, Any]:
    return {"nats": nats + number % 7, "reference_tokens": 9, "agreed": 6 + number % 3}
