"""baseline: the untouched base model on hold-out and probes; its own stage, so that experiments never repeat it."""

from stages import paths
from stages.chat import task_chat
from stages.environment import measured
from stages.errors import run
from stages.files import write_json
from stages.generation import Weights, answer_rows, likelihoods, with_likelihood
from stages.models import load_tokenizer
from stages.params import load_params
from stages.probes import ask_probes
from stages.records import read_records, write_rows
from stages.scoring import score_row
from stages.scoring.summary import summarise
from stages.tasks import Tasks


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
