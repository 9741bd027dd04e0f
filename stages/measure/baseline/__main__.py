"""baseline: the untouched base model on hold-out and probes, and a linear model of the same training rows."""

from dataclasses import dataclass
from typing import Annotated

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.core.run_notes import measured
from stages.measure.baseline.linear import LinearScores, linear_answers, linear_scores
from stages.model.answers import rows_with_likelihood
from stages.model.chat import task_chat
from stages.model.loading import Weights, load_tokenizer
from stages.model.questions import ask_probes, read_probes
from stages.params.loader import load_params
from stages.records.record import REPLAY, read_records, write_rows
from stages.scoring.metrics import Scores, as_json
from stages.scoring.rows import score_row
from stages.scoring.summary import summarise
from stages.text.json_schema import Tasks


@dataclass(frozen=True, slots=True)
class Baseline:
    """metrics/baseline.json."""

    base: Annotated[Scores, "the untouched base model on the hold-out"]
    linear: Annotated[LinearScores | None, "a linear model of the labels, where there are labels"] = None


def main() -> None:
    params = load_params("generation", "probes", "scoring", "task")
    tasks, holdout = Tasks(params.task), read_records(paths.HOLDOUT)
    train = [row for row in read_records(paths.TRAIN) if row.source != REPLAY]
    questions = read_probes(params.probes)
    with measured("baseline") as notes:
        model = Weights(paths.BASE)
        chat = task_chat(load_tokenizer(paths.BASE), params.task)
        rows = rows_with_likelihood(model, chat, holdout, params.generation, "baseline")
        probes = ask_probes(model, chat, questions, params.probes.refusal_tokens, "probes")
        linear = linear_answers(train, holdout)
        notes["generation"] = model.spent
    base = summarise([score_row(row, tasks) for row in rows], params.scoring)
    write_rows(paths.BASE_GENERATIONS, rows)
    write_rows(paths.BASE_PROBES, probes)
    write_json(paths.LINEAR_ANSWERS, {"answers": linear})
    scores = Baseline(base, linear_scores(train, linear, params.scoring.confidence))
    write_json(paths.BASELINE_METRICS, as_json(scores))


if __name__ == "__main__":
    run(main)
