"""judge: a language model compares the tuned model's answers with the others'; off by default."""

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.core.run_notes import measured
from stages.measure.judge.asking import ask_about, ask_all, sample
from stages.measure.judge.verdicts import OFF, summarise
from stages.params.loader import load_params
from stages.scoring.paired_answers import RIVALS, read_answers


def main() -> None:
    params = load_params("judge", "scoring", "seed", "task")
    if not params.judge.enabled:
        write_json(paths.JUDGE_METRICS, OFF)
        print("the judge is off (judge.enabled in params.yaml)")
        return
    rows = sample(read_answers(), params.judge.rows, params.seed)
    questions = ask_about(rows, params.judge, params.task, params.seed)
    with measured("judge") as notes:
        replies = ask_all(questions, params.judge, notes)
    result = summarise(rows, replies, params.judge.price, params.scoring)
    write_json(paths.JUDGE_METRICS, result)
    for against in result.keys() & RIVALS.keys():
        found = result[against]
        print(f"{against}: {found['wins']} wins, {found['ties']} ties, {found['losses']} losses")


if __name__ == "__main__":
    run(main)
