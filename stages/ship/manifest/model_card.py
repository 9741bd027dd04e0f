"""The model card: what is in the folder, what it can do, where it comes from, how to go on from here."""

from typing import Any

from stages.core import paths
from stages.core.files import read_json
from stages.params.loader import Params
from stages.params.task import Task

_TEMPLATE = """\
---
base_model: {base}
license: {licence}
pipeline_tag: text-generation
---

# {base}, fine-tuned

Base model: `{base}` (SHA-256 `{sha256}`), licence {licence}. Trained with `{method}` on {rows} rows.

Every prompt is given in the tokenizer's chat template after this instruction:

{instructions}

Decode greedily and stop at the template's end-of-turn token; the numbers below hold for that.

## Measured on the hold-out ({holdout} rows never trained on)

| model | folder | MB | exact match | {percent} % interval | valid |
|---|---|---:|---:|---|---:|
{table}

Verdict of the gates: {verdict}. {reason}

## Trail

`manifest.json` has the hashes of these files and of the data, parameters, code and metrics that made them.
`tunetrail trace FILE` names the commit that recorded a file; `tunetrail verify` checks the folder.
"""


def model_card(params: Params, manifest: dict[str, Any]) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    evaluate, quantize, gates = (
        read_json(path) for path in (paths.EVALUATE_METRICS, paths.QUANTIZE_METRICS, paths.GATES)
    )
    base = read_json(paths.BASELINE_METRICS)["base"]
    rows = [_row("base", "", None, base), _row("adapter", "", None, evaluate["adapter"])]
    for name, artefact in quantize["artefacts"].items():
        rows.append(_row(name, f"`{name}/`", artefact["bytes"], artefact["scores"]))
    return _TEMPLATE.format(
        base=params.model.source.partition(":")[2],
        licence=params.model.licence,
        sha256=manifest["base"]["sha256"],
        method=params.train.method
        if params.train.method == "full"
        else f"{params.train.method}, {params.train.adapter}",
        rows=read_json(paths.TRAIN_METRICS)["rows"]["train"],
        instructions=instructions(params.task),
        holdout=base["rows"],
        percent=f"{params.scoring.confidence:.0%}".rstrip("%"),
        table="\n".join(rows),
        verdict=gates["verdict"],
        reason=gates["reason"],
    )


def instructions(task: Task) -> str:
    """The instruction as a quotation; those of tagged rows below it, each with its tag."""
    tagged = [f"Rows tagged `{tag}`:\n\n> {text}" for tag, text in task.instructions.items()]
    return "\n\n".join([f"> {task.instruction}", *tagged])


def _row(name: str, folder: str, size: int | None, scores: dict[str, Any]) -> str:
    exact, valid = scores["exact_match"], scores["valid"]["value"]
    megabytes = "" if size is None else f"{size / 1e6:.0f}"
    interval = f"{exact['low']:.1%} to {exact['high']:.1%}"
    return f"| {name} | {folder} | {megabytes} | {exact['value']:.1%} | {interval} | {valid:.1%} |"
