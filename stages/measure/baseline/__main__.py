"""baseline: the untouched base model on hold-out and probes; its own stage, so that experiments never repeat it."""

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.core.run_notes import measured
from stages.model.answers import answer_rows
from stages.model.chat import task_chat
from stages.model.likelihood import likelihoods, with_likelihood
from stages.model.loading import Weights, load_tokenizer
from stages.model.questions import ask_probes
from stages.params import load_params
from stages.records.contract import Tasks
from stages.records.record import read_records, write_rows
from stages.scoring import score_row
from stages.scoring.summary import summarise


def main() -> None:
    params = load_params("generation", "probes", "scoring", "task")
    tasks = Tasks(params.task)
    holdout = read_records(paths.HOLDOUT)
    with measured("baseline") as notes:
        model = Weights(paths.BASE)
        chat = task_chat(load_tokenizer(paths.BASE), params.task)
        answers = answer_rows(model, chat, holdout, params.generation, "baseline")
        rows = with_likelihood(answers, likelihoods(model, chat, holdout))
        probes = ask_probes(model, chat, params.probes, params.generation, "probes")
        notes["generation"] = model.spent
    write_rows(paths.BASE_GENERATIONS, rows)
    write_rows(paths.BASE_PROBES, probes)
    write_json(paths.BASELINE_METRICS, {"base": summarise([score_row(row, tasks) for row in rows], params.scoring)})


if __name__ == "__main__":
    run(main)
