"""The model card: what is in the folder, what it can do, where it comes from, how to go on from here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclonedx.spdx import fixup_id
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from stages.core import paths
from stages.params.loader import Params
from stages.text.markdown import markdown_block, markdown_code, markdown_text


def model_card(params: Params, manifest: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The card in Markdown, with the front matter that model hubs read; `metrics` are those of the stages by name."""
    base, gates = metrics["baseline"]["base"], metrics["gates"]
    rows = [_row("base", "", "", None, base), _row("adapter", "", "", None, metrics["evaluate"]["adapter"])]
    for name, artefact in metrics["quantize"]["artefacts"].items():
        one = manifest["formats"][name]
        rows.append(_row(name, f"`{one['folder']}/`", one["engine"], artefact["bytes"], artefact["scores"]))
    train, name, licence = params.train, hub_name(params.model.source), fixup_id(params.model.licence)
    data = ModelCardData(
        base_model=name,
        base_model_relation="finetune",
        license=licence.lower() if licence else "other",  # hubs know the identifiers of SPDX in small letters
        license_name=None if licence else params.model.licence,
        pipeline_tag="text-generation",
        model_name=f"{name}-fine-tuned",
        eval_results=[*_results(manifest)],
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


def _results(manifest: dict[str, Any]) -> Iterator[EvalResult]:
    """Every score of every format on the hold-out, which its SHA-256 names."""
    revision = manifest["data"].get(paths.HOLDOUT.as_posix(), {}).get("sha256")
    for name, one in manifest["formats"].items():
        for metric, score in one["metrics"].items():
            yield EvalResult(
                task_type="text-generation",
                dataset_type="holdout",
                dataset_name="hold-out",
                dataset_revision=revision,
                metric_type=metric,
                metric_value=score["value"],
                metric_name=f"{metric} of {name} by {one['engine']}",
                metric_args={"low": score["low"], "high": score["high"], "confidence": one["confidence"]},
            )


def hub_name(source: str) -> str:
    """The base model's name in the characters that a hub takes: OWNER/NAME, a package or a folder, without version."""
    kind, _, rest = source.partition(":")
    name = Path(rest).name if kind == "path" else re.split("@|==", rest)[0]
    return re.sub("[^A-Za-z0-9/._-]+", "-", name).strip("-.") or "base"


def _row(name: str, folder: str, engine: str, size: int | None, scores: dict[str, Any]) -> str:
    exact, valid = scores["exact_match"], scores["valid"]["value"]
    megabytes = "" if size is None else f"{size / 1e6:.0f}"
    interval = f"{exact['low']:.1%} to {exact['high']:.1%}"
    return f"| {name} | {folder} | {engine} | {megabytes} | {exact['value']:.1%} | {interval} | {valid:.1%} |"
