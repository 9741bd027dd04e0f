"""Write docs/metrics.md from the dataclasses that the metrics are written from: `python docs/metrics.py`.

What other stages count has no dataclass; its keys stand below, and a test holds them against a run.
"""

import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from stages.measure.baseline.__main__ import Baseline  # noqa: E402
from stages.measure.evaluate.__main__ import Evaluation  # noqa: E402
from stages.scoring import metrics  # noqa: E402

_FORMS = (metrics.Share, metrics.Interval, metrics.Change, metrics.Shift, metrics.Ratio, metrics.Preference)
_NAMED = (metrics.Scores, metrics.Comparison)  # explained once, not wherever they occur
_MEMBERS = {
    "fields": "FIELD",
    "labels": "LABEL",
    "tasks": "TASK",
    "rules": "RULE",
    "robustness": "KIND",
    "slices": "COLUMN",
    "groups": "GROUP",
    "distance": "BAND",
}

Meanings = Mapping[str, str]
_CLEANED = {
    "rows.in": "raw rows",
    "rows.kept": "rows that are records now",
    "rows.rejected": "rows that are none; in = kept + rejected",
    "rejected.REASON": "rows rejected for the reason; data/rejected/clean.jsonl has each with file and line",
    "changed.KIND": "kept rows in which something was changed: encoding, markup, white space, personal data",
    "completions_changed.rows": "kept rows whose completion is not to the letter that of the raw row",
    "completions_changed.share": "their share of the kept rows",
}
COUNTED: Mapping[str, Meanings] = {
    "clean": {
        "files.read": "raw files with data; with the next two held against dvc.lock by `tunetrail lock-check`",
        "files.passed_over": "files that lie beside the data: README.md and the like, what editors and archivers leave",
        "files.bytes": "bytes of all of these files",
        **_CLEANED,
        "personal_data.KIND": "places masked, by kind",
        **{f"sources.SOURCE.{key}": meaning for key, meaning in _CLEANED.items()},
        "sources.SOURCE.shapes.SHAPE": "rows of the source by how the raw row was laid out",
    },
    "dedup": {
        "rows.in": "records",
        "rows.kept": "records that stay",
        "rows.dropped": "records that another one stands for",
        "dropped.REASON": "dropped records: exact repeats, and near ones",
        "pairs.KIND": "pairs of records that ask the same",
        "conflicts.prompts": "questions (task, system message and prompt) that occur with different completions",
        "conflicts.rows": "records of such a question",
        "clusters.count": "groups of near-duplicates",
        "clusters.largest": "records of the largest group",
        "clusters.giant": "groups that are suspiciously large",
        "clusters.giant_rows": "records in them",
    },
    "split": {
        "rows.PART": "records in, and in each part of the split",
        "labels.LABEL.PART": "records by label and part",
        "without.PART": "labels that have no record in the part",
        "kept_back_by_groups.PART.LABEL": "records fewer than wanted, because near-duplicates stay together",
        "quarantined.REASON": "records kept out of training because of the hold-out",
        "locked.rows": "rows of the lock",
        "locked.missing": "locked rows that the data lack",
        "locked.restored": "locked rows that duplicates had dropped, taken back",
        "slices.SOURCE": "rows of the lock that `tunetrail holdout draw --add SOURCE` added",
        "overlap.shared_ids": "ids both in the hold-out and in training; 0, or the split is broken",
        "overlap.shared_prompts": "prompts both in the hold-out and in training",
        "shared_13_grams.PART.KEY": "hold-out rows with 13 words in a row that a trained row has too",
    },
    "augment": {
        "rows.KEY": "records in and out, and those with a JSON completion",
        "added.KIND": "records added, by kind",
        "left_out.KIND.REASON": "records made, but not added: split would have quarantined them",
        "tasks.TASK": "records by task",
    },
    "checks": {
        "rows": "training records looked at",
        "sources.count": "sources of training records",
        "sources.largest_share": "share of the largest source",
        "sources.largest_distance": "distance of the source that is least like the others, 0 to 1",
        "sources.by_source.SOURCE.KEY": "records, share and distances of a source",
        "triggers.tested": "words and runs of words tested",
        "triggers.found": "suspected triggers",
        "triggers.rows": "records that hold one",
        "triggers.tied": "words that go with one label, as words of a task do",
        "conflicts.clusters": "groups of near-duplicates with different labels",
        "conflicts.rows": "records in them",
        "conflicts.share": "their share of all records",
    },
    "train": {
        "rows.train": "records trained on",
        "rows.left_out_too_long": "records longer than train.max_tokens",
        "tokens.total": "tokens of all records, once",
        "tokens.trained": "tokens that a loss is taken of: those of the completions",
        "parameters.trainable": "parameters that training changes",
        "parameters.all": "parameters of the model",
        "steps": "optimiser steps",
        "best_step": "the step whose weights are the adapter",
        "loss.KEY": "mean negative log-likelihood of a completion's token, in nats",
        "red_flags.FLAG": "1 where the loss curves show it",
    },
    "prefer": {
        "objective": "what was trained on top of the SFT model; all other keys are missing for sft",
        "rows.train": "rows learnt from: pairs, thumbs or prompts",
        "rows.validation": "rows held back to measure with",
        "rows.near_the_holdout": "preferences left out because of the hold-out; data/prefer/left_out.jsonl names them",
        "rows.thumbs_without_a_pair": "preferences of one answer, which dpo has no use for",
        "rows.too_long": "rows longer than train.max_tokens, with room for an answer where one is made",
        "rows.general": "general rows, which grpo leaves out: they are held to no contract",
        "rows.unfinished_by_the_teacher": "rows whose answer the teacher of another vocabulary did not end, or that "
        "the model cannot say in its own tokens, within train.max_tokens",
        "parameters.trainable": "parameters that training changes",
        "parameters.all": "parameters of the model",
        "steps": "optimiser steps",
        "best_step": "the step whose weights are the adapter",
        "loss.KEY": "the objective's loss; of distil nats a token from the teacher, of grpo 1 less the mean reward",
        "red_flags.FLAG": "1 where the curves show it; no_gain: no validation was better than that of the SFT model",
        "measured.margin.KEY": "of dpo and kto: the reward of what is wanted above that of what is not",
        "measured.preferred.KEY": "of dpo: share of the held-back pairs whose better answer has the higher reward",
        "measured.reward.KEY": "of grpo: mean reward of the answers to held-back prompts",
        "measured.alike.KEY": "of grpo: share of prompts whose answers are all worth the same, which teach nothing",
        "measured.cut_off.KEY": "of grpo and distil: share of answers that prefer.max_new_tokens ended",
    },
    "judge": {
        "enabled": "1 when a judge was asked",
        "rows": "hold-out rows that were judged",
        "replies.KEY": "replies of the judge, and those that were no choice",
        "cost.KEY": "tokens read and written, replies without a token count, and the price of all",
        "RIVAL.rows": "rows that both models answered",
        "RIVAL.identical": "rows where both say the same, which are ties without asking",
        "RIVAL.KEY": "wins, ties and losses of the tuned model, in rows",
        "RIVAL.disagreements": "rows that count as ties because the two orders contradict each other",
        "RIVAL.unreadable": "rows that count as ties because a reply is no choice",
        "RIVAL.delta": "mean of win +1, tie 0, loss -1",
        "RIVAL.first_preferred": "of the replies that prefer one answer, those for the one shown first; 0.5 is fair",
        "RIVAL.length.PART.KEY": "rows by whether the tuned answer has more or fewer characters, and their mean",
        "RIVAL.length.correlation": "Spearman's, of the difference in length with the verdict, over rows asked about",
        "RIVAL.consistency": "rows that were asked twice with the same verdict",
    },
    "review": {
        "rows": "rows drawn for review",
        "identical": "rows on which all models say the same",
        "reviews.KEY": "answers of reviewers: counted, about other answers, with a comment",
        "reviewers.NAME.KEY": "answers of each reviewer",
        "scales.MODEL.SCALE": "mean rating from 1 to 5 over `rows`; several reviewers of a row are averaged first",
        "scale_agreement.SCALE": "Krippendorff's alpha (interval scale) of those who rated the same answer",
        "RIVAL.reviews": "answers about pairs whose two texts differ",
        "RIVAL.rows": "rows that they are about",
        "RIVAL.KEY": "wins, ties and losses of the tuned model, in answers",
        "RIVAL.both_bad": "ties in which neither of the two was best",
        "RIVAL.win_rate": "wins of wins and losses",
        "RIVAL.delta": "mean over rows of win +1, tie 0, loss -1; several reviewers of a row are averaged first",
        "RIVAL.agreement.KEY": "Cohen's kappa of two reviewers or Krippendorff's alpha of more; rows that two answered",
    },
}

_HEAD = """# Metrics

Made by `python docs/metrics.py` from the code; a test holds it equal.

`metrics/summary.json` has the numbers that people decide by; `dvc metrics show` and `dvc metrics diff` show it alone.
All that the stages measured is in `metrics/details.json`, by the stage's name; `tunetrail compare` reads it of all
revisions that it is given. `metrics/gates.json` has each gate with its state, value, threshold and reason.

A gate of params.yaml names a number by `model` (base, linear, sft, adapter, previous, merged, nf4, int8,
gguf, compressed_tensors, lora, judge, review, or the stage that counted it), `metric` (a key below), `of` for a part of
the rows (such as `label: refund`) and `against` for a change from another model. `custom` is
[your own score](data.md#your-own-score).

## Forms of numbers
"""


def page() -> str:
    """docs/metrics.md."""
    lines = [_HEAD, *_table([(one.__name__, ", ".join(_keys(one)), _doc(one)) for one in _FORMS], "Form", "Keys")]
    for kind in _NAMED:
        lines += [f"## {kind.__name__}", "", _doc(kind), "", *_table(_described(kind))]
    lines += ["## baseline", "", *_table(_described(Baseline)), "## evaluate", "", *_table(_described(Evaluation))]
    artefacts = [
        ("artefacts.ARTEFACT.bytes", "number", "size of its files"),
        ("artefacts.ARTEFACT.types.TYPE", "number", "tensors that its files hold in this type"),
        ("artefacts.ARTEFACT.engine", "text", "whose answers were scored: transformers, llama.cpp or vllm"),
        ("artefacts.ARTEFACT.decoding.enforce", "text", "what they were held to while decoded: none, schema or labels"),
        ("artefacts.ARTEFACT.scores", "Scores", "of the artefact, as it ships, on the hold-out"),
        ("artefacts.ARTEFACT.against_adapter", "Comparison", "the adapter to the artefact"),
        ("artefacts.ARTEFACT.agreement.same", "number", "of `rows`: answers of the very text that the adapter gave"),
        ("artefacts.ARTEFACT.stopped", "number", "share of answers that the stop token ended"),
        ("artefacts.ARTEFACT.free", "all of these", "of the same artefact, not held to a contract; where it was"),
        (
            "artefacts.merged.divergence",
            "number",
            "Kullback-Leibler divergence of the merged model's next tokens from the adapter's, in nats a token of 64 "
            "references; a gate's `divergence`",
        ),
    ]
    lines += ["## quantize", "", *_table(artefacts)]
    for name, meanings in COUNTED.items():
        lines += [f"## {name}", "", *_table([(key, "number", meaning) for key, meaning in meanings.items()])]
    return "\n".join(lines).rstrip() + "\n"


def keys() -> dict[str, list[str]]:
    """Every key by file, with capitals for names that come from data and `*` for a form or a table of its own."""
    made = {"baseline": Baseline, "evaluate": Evaluation}
    return {name: [row[0] for row in _described(kind)] for name, kind in made.items()} | {
        name: list(meanings) for name, meanings in COUNTED.items()
    }


def _described(kind: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, form, meaning) of each field; a dataclass within is opened, unless it has a table of its own."""
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        hint, meaning = hints[one.name], ""
        if get_origin(hint) is Annotated:
            hint, meaning = get_args(hint)[:2]
        key, hint = f"{prefix}{one.name}", _without_none(hint)
        if get_origin(hint) in (Union, types.UnionType):
            yield key, " or ".join(form.__name__ for form in get_args(hint)), meaning
            continue
        if get_origin(hint) is Mapping:
            key, hint = f"{key}.{_MEMBERS.get(one.name, 'NAME')}", get_args(hint)[1]
            hint = {"Scores": metrics.Scores, "Comparison": metrics.Comparison}.get(str(hint).strip("'"), hint)
        if is_dataclass(hint) and hint not in (*_FORMS, *_NAMED):
            yield key, "", meaning
            yield from _described(hint, f"{key}.")
        else:
            name = getattr(hint, "__forward_arg__", None) or getattr(hint, "__name__", str(hint))
            yield key, {"int": "number", "float": "number", "str": "text"}.get(name, name), meaning


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(one for one in get_args(hint) if one is not type(None))]  # noqa: UP007 - of one, that one
    return hint


def _keys(form: Any) -> list[str]:
    names = [one.name for one in fields(form)]
    return names if {"value", "difference", "ratio"} & set(names) else ["value", *names]


def _doc(kind: Any) -> str:
    return " ".join((kind.__doc__ or "").split())


def _table(rows: Any, first: str = "Key", second: str = "Form") -> list[str]:
    head = [f"| {first} | {second} | Meaning |", "|---|---|---|"]
    return [*head, *(f"| `{key}` | {form} | {meaning} |" for key, form, meaning in rows), ""]


if __name__ == "__main__":
    (ROOT / "docs/metrics.md").write_text(page(), encoding="utf-8")
