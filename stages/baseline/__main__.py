"""baseline: the untouched base model on the hold-out; its own stage, so that experiments never repeat it."""

from pathlib import Path

from stages import paths
from stages.chat import make_chat
from stages.completions import Schema
from stages.environment import measured
from stages.errors import run
from stages.files import write_json
from stages.generation import Weights, answer_rows, perplexity
from stages.models import load_tokenizer
from stages.params import load_params
from stages.records import read_records, write_rows
from stages.scoring import score_row, summarise


def main() -> None:
    params = load_params("generation", "scoring", "task")
    schema = Schema(Path(params.task.schema_file))
    holdout = read_records(paths.HOLDOUT)
    with measured("baseline") as notes:
        model = Weights(paths.BASE)
        chat = make_chat(load_tokenizer(paths.BASE), params.task.instruction)
        rows = answer_rows(model, chat, holdout, params.generation, "baseline")
        surprise = perplexity(model, chat, holdout)
        notes["generation"] = model.spent
    write_rows(paths.BASE_GENERATIONS, rows)
    scores = [score_row(row, schema) for row in rows]
    write_json(paths.BASELINE_METRICS, {"base": summarise(rows, scores, surprise, params.scoring.confidence)})


if __name__ == "__main__":
    run(main)
