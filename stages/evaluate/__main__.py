"""evaluate: the adapter on the hold-out, beside the baseline; writes the verdict and never fails because of it.

metrics/evaluate.json is being widened to this shape (what has no rows of its kind is left out):

    adapter             SCORES (stages.scoring.summarise)
    against_baseline    COMPARISON (stages.scoring.compare)
    previous            {release, commit, rows: {both, only_now, only_then}, scores: SCORES of the rows in both}
    against_previous    COMPARISON; these two only where evaluate.previous names a release
    general             {rows, base: G, adapter: G, against_baseline: {perplexity: {ratio, low, high},
                        agreement: {difference, low, high}}}; G = {perplexity: I, agreement: I}
    robustness          {KIND: {valid: P, exact_match: P}} of truncated, noise, typos, injection
    safety              {personal_data: P, verbatim: P, forbidden: P, refusals: {base: P, adapter: P,
                        against_baseline: D}, canaries: {count, candidates, exposure: {mean, max, limit}}}
    slices              {FIELD: {groups: {VALUE: P}, worst: {group, value}, best: {group, value},
                        gap: {value, low, high}, left_out: rows}}

P is a proportion {value, low, high, count, of}, I an interval {value, low, high}, D a paired difference
{difference, low, high, won, lost, p_value}. A stage `gates` of its own, after merge_quantize, will judge all
metrics and write metrics/gates.json; quantize.json then has no verdict and gates any more.
"""

from stages import paths
from stages.chat import task_chat
from stages.environment import measured
from stages.errors import run
from stages.evaluate.confusion import write_confusion
from stages.files import write_json
from stages.generation import Weights, answer_rows, likelihoods, with_likelihood
from stages.models import load_tokenizer
from stages.params import load_params
from stages.records import read_records, read_rows, write_rows
from stages.scoring import score_row
from stages.scoring.comparison import compare
from stages.scoring.summary import summarise
from stages.tasks import Tasks


def main() -> None:
    params = load_params("generation", "scoring", "task")
    tasks = Tasks(params.task)
    holdout = read_records(paths.HOLDOUT)
    with measured("evaluate") as notes:
        model = Weights(paths.BASE, paths.ADAPTER)
        chat = task_chat(load_tokenizer(paths.BASE), params.task)
        answers = answer_rows(model, chat, holdout, params.generation, "evaluate")
        rows = with_likelihood(answers, likelihoods(model, chat, holdout))
        notes["generation"] = model.spent

    scores = [score_row(row, tasks) for row in rows]
    before = [score_row(row, tasks) for row in read_rows(paths.BASE_GENERATIONS)]
    result = {
        "adapter": summarise(scores, params.scoring),
        "against_baseline": compare(before, scores, params.scoring),
    }
    write_rows(paths.ADAPTER_GENERATIONS, rows)
    write_confusion(paths.CONFUSION, scores, tasks)
    write_json(paths.EVALUATE_METRICS, result)


if __name__ == "__main__":
    run(main)
