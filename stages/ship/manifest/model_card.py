"""The model card: what is in the folder, what it can do, where it comes from, how to go on from here."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from stages.params.loader import Params
from stages.text.markdown import markdown_block, markdown_code, markdown_text


def model_card(params: Params, manifest: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The card in Markdown, with the front matter that model hubs read; `metrics` are those of the stages by name."""
    base, gates = metrics["baseline"]["base"], metrics["gates"]
    rows = [_row("base", "", None, base), _row("adapter", "", None, metrics["evaluate"]["adapter"])]
    for name, artefact in metrics["quantize"]["artefacts"].items():
        rows.append(_row(name, f"`{name}/`", artefact["bytes"], artefact["scores"]))
    train = params.train
    data = ModelCardData(
        base_model=hub_name(params.model.source),
        base_model_relation="finetune",
        license=params.model.licence,
        pipeline_tag="text-generation",
    )
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("model_card.md.j2")),
        block=markdown_block,
        code=markdown_code,
        text=markdown_text,
        base=params.model.source.partition(":")[2],
        licence=params.model.licence,
        sha256=manifest["base"]["sha256"],
        method=train.method if train.method == "full" else f"{train.method}, {train.adapter}",
        trained=metrics["train"]["rows"]["train"],
        task=params.task,
        holdout=base["rows"],
        percent=f"{params.scoring.confidence:.0%}".rstrip("%"),
        rows=rows,
        verdict=gates["verdict"],
        reason=gates["reason"],
    )
    return f"{card}\n"


def hub_name(source: str) -> str:
    """The base model's name in the characters that a hub takes: OWNER/NAME, a package or a folder, without version."""
    kind, _, rest = source.partition(":")
    name = Path(rest).name if kind == "path" else re.split("@|==", rest)[0]
    return re.sub("[^A-Za-z0-9/._-]+", "-", name).strip("-.") or "base"


def _row(name: str, folder: str, size: int | None, scores: dict[str, Any]) -> str:
    exact, valid = scores["exact_match"], scores["valid"]["value"]
    megabytes = "" if size is None else f"{size / 1e6:.0f}"
    interval = f"{exact['low']:.1%} to {exact['high']:.1%}"
    return f"| {name} | {folder} | {megabytes} | {exact['value']:.1%} | {interval} | {valid:.1%} |"
