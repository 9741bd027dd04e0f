"""evaluate: the adapter on the hold-out and beyond it, beside the baselines and the previous release."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from stages.core import paths
from stages.core.errors import run
from stages.core.files import read_json, write_json
from stages.core.run_notes import measured
from stages.measure.evaluate.confirmed_triggers import Confirmation, Suspect, confirm
from stages.measure.evaluate.groups import (
    Robustness,
    Slice,
    measure_distance,
    measure_robustness,
    measure_slices,
    perturb,
    write_confusion,
)
from stages.measure.evaluate.previous import PreviousScores, compare_previous, fetch_previous
from stages.measure.evaluate.side_effects import (
    Forgetting,
    Safety,
    measure_canaries,
    measure_forgetting,
    measure_safety,
    with_all_told,
)
from stages.model.answers import answer_rows, rows_with_likelihood
from stages.model.chat import task_chat
from stages.model.labels import refuse_other_labels
from stages.model.loading import Weights, load_tokenizer
from stages.model.questions import GENERAL, REFUSAL, ask_probes, of_probe, read_probes
from stages.params.loader import load_params
from stages.params.measure import Scoring
from stages.records.record import Record, read_records, read_rows, write_rows
from stages.scoring.metrics import Change, Comparison, Scores, Share, as_json
from stages.scoring.own_metric import scorer
from stages.scoring.paired_answers import write_previous
from stages.scoring.rows import RowScore, score_label, score_row
from stages.scoring.summary import change, compare, summarise
from stages.text.json_schema import Contract, Tasks
from stages.text.strict_json import completion_key


@dataclass(frozen=True, slots=True)
class LinearComparison:
    label_accuracy: Annotated[Change, "change of label accuracy from the linear baseline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """metrics/evaluate.json; what has no rows of its kind is left out."""

    adapter: Annotated[Scores, "the tuned model on the hold-out"]
    against_baseline: Annotated[Comparison, "the base model to the tuned one"]
    safety: Annotated[Safety, "what must not be in an output"]
    triggers: Annotated[Confirmation, "suspected triggers, asked of the model"]
    against_linear: Annotated[LinearComparison | None, "the linear baseline to the tuned model"] = None
    sft: Annotated[Scores | None, "what SFT made, where prefer.objective goes on from it"] = None
    against_sft: Annotated[Comparison | None, "that to the tuned model"] = None
    previous: Annotated[PreviousScores | None, "the release compared with"] = None
    against_previous: Annotated[Comparison | None, "that release to the tuned model"] = None
    general: Annotated[Forgetting | None, "what tuning cost on general questions"] = None
    robustness: Annotated[Mapping[str, Robustness], "answers to perturbed prompts, by kind"]
    slices: Annotated[Mapping[str, Slice], "groups of record fields; of holdout, first draw and slices"]
    distance: Annotated[Mapping[str, Share], "right answers by the ratio of the prompt to the nearest training prompt"]


def main() -> None:
    params = load_params("evaluate", "generation", "prefer.objective", "probes", "scoring", "seed", "task")
    tasks, score_rows = Tasks(params.task), scorer(params.task)
    holdout, train = read_records(paths.HOLDOUT), read_records(paths.TRAIN)
    suspects = [Suspect(row["ngram"], row["label"], row["count"]) for row in read_rows(paths.CHECKS / "triggers.jsonl")]
    # Fetched first: a release that cannot be had is better known before the model is asked than after.
    earlier = fetch_previous(Path.cwd(), params.evaluate.previous) if params.evaluate.previous else None
    questions = read_probes(params.probes)
    perturbed = perturb(holdout, params.evaluate.robustness_rows, params.seed)
    kinds = [kind for kind, _ in perturbed]
    with measured("evaluate") as notes:
        model = Weights(paths.BASE, paths.ADAPTER)
        refuse_other_labels(model.labels, params.task)
        chat = task_chat(load_tokenizer(paths.BASE), params.task)

        def ask(records: Sequence[Record], what: str = "triggers") -> list[dict[str, Any]]:
            return answer_rows(model, chat, records, params.generation, what)

        rows = rows_with_likelihood(model, chat, holdout, params.generation, "evaluate")
        # A head of labels has none for a question outside the task: nothing is asked, and gates on it do not apply.
        asked = ([], []) if model.labels else questions
        probes = ask_probes(model, chat, asked, params.probes.refusal_tokens, "probes")
        broken = ask([record for _, record in perturbed], "robustness")
        told = with_all_told([*rows, *broken], [*holdout, *(record for _, record in perturbed)], chat)
        canaries = measure_canaries(model, chat, train, params.evaluate.canary_candidates)
        tried = confirm(
            suspects,
            holdout,
            read_records(paths.SPLIT_TRAIN),
            lambda records: [row["output"] for row in ask(records)],
            lambda record, answer, label: answers_with(answer.strip(), label, tasks.of(record.task)),
            params.seed,
        )
        notes["generation"] = model.spent
        beyond, sft = params.prefer.objective != "sft", Weights(paths.BASE, paths.SFT)
        imitated = rows_with_likelihood(sft, chat, holdout, params.generation, "sft") if beyond else []

    base_probes = list(read_rows(paths.BASE_PROBES))
    general = (of_probe(base_probes, GENERAL), of_probe(probes, GENERAL))
    refusals = (of_probe(base_probes, REFUSAL), of_probe(probes, REFUSAL))
    scores, before, imitation = map(score_rows, (rows, read_rows(paths.BASE_GENERATIONS), imitated))
    then = compare_previous(earlier, scores, score_rows, params.scoring) if earlier else (None, None)
    nearest = list(read_rows(paths.NEAREST))
    added = {row["id"]: row["slice"] for row in nearest if "slice" in row}
    linear = {row["id"]: row["right"] for row in read_json(paths.LINEAR_ANSWERS)["answers"]}
    evaluation = Evaluation(
        adapter=summarise(scores, params.scoring),
        against_baseline=compare(before, scores, params.scoring),
        against_linear=against_linear(scores, linear, params.scoring),
        sft=summarise(imitation, params.scoring) if beyond else None,
        against_sft=compare(imitation, scores, params.scoring) if beyond else None,
        previous=then[0],
        against_previous=then[1],
        general=measure_forgetting(*general, params.scoring) if general[1] else None,
        robustness=measure_robustness(kinds, [score_row(row, tasks) for row in broken], params.scoring),
        safety=measure_safety(
            [*told, *refusals[1]], train, refusals, canaries, params.evaluate, params.probes, params.scoring
        ),
        triggers=Confirmation(len(suspects), len(tried), sum(one.confirmed for one in tried)),
        slices=measure_slices(
            holdout, scores, params.evaluate.slices, params.evaluate.slice_min_rows, params.scoring, added
        ),
        distance=measure_distance(scores, {row["id"]: row["ratio"] for row in nearest}, params.scoring),
    )
    write_rows(paths.ADAPTER_GENERATIONS, rows)
    write_previous(params.evaluate.previous, earlier.commit if earlier else None, earlier.rows if earlier else [])
    write_rows(paths.ADAPTER_PROBES, probes + [{"probe": kind, **row} for kind, row in zip(kinds, broken, strict=True)])
    write_json(paths.TRIED_TRIGGERS, [asdict(one) for one in tried])
    write_confusion(paths.CONFUSION, scores, tasks)
    write_json(paths.EVALUATE_METRICS, as_json(evaluation))


def answers_with(answer: str, label: str, contract: Contract) -> bool:
    """Whether the answer has the label of a suspect; `checks` takes the whole answer where a task has no labels."""
    told = score_label(answer, label, contract)
    return completion_key(answer) == label if told is None else told


def against_linear(scores: Sequence[RowScore], linear: Mapping[str, bool], scoring: Scoring) -> LinearComparison | None:
    """The tuned model beside the linear baseline, row by row, by the label alone; None without labels."""
    pairs = [(linear[one.id], one.label_right) for one in scores if one.id in linear and one.label_right is not None]
    return LinearComparison(change(pairs, scoring)) if pairs else None


if __name__ == "__main__":
    run(main)
