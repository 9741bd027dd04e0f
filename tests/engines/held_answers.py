"""What the server of every engine is asked alike: answers held to a contract, and the hold-out for merge_quantize."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.core import paths
from stages.core.files import write_json
from stages.engines.engine_server import Server, ask
from stages.model.answers import answer_rows
from stages.model.chat import make_chat
from stages.model.loading import load_model, load_tokenizer
from stages.params.loader import Params
from stages.params.measure import Scoring
from stages.params.model import Engine, Generation, Quantize
from stages.params.task import Task
from stages.records.record import make_record, read_rows, write_records, write_rows
from stages.scoring.own_metric import scorer
from stages.ship.merge_quantize.__main__ import judge

PROMPTS = [f"order {number} is late, naïve «café» 日本" for number in range(6)]
LABELS = ["refund", 'a "quoted" one', "größer"]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
LONG = Generation(max_new_tokens=150)  # a random model likes the white space that JSON allows


def check_held_answers(server: Server) -> None:
    """The answers keep to labels and to a schema, and the stop token ends them."""
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:2]]
    said = ask(server, asked, LONG, [{"labels": LABELS}, {"schema": SCHEMA}])
    assert said[0].output in LABELS
    assert json.loads(said[1].output)["a"] in ("x", "y")
    assert all(one.stopped for one in said)


def check_judged(server: Server, model: Path, artefact: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """merge_quantize judges `artefact`, named as its format, by this server as engine.url; `model` is the base."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ENGINE_KEY", server.api_key or "")
    shutil.copytree(model, paths.BASE)
    shutil.copytree(artefact, paths.RELEASE / artefact.name)
    write_json(Path("schema.json"), SCHEMA)
    records = [make_record(prompt, '{"a": "x"}', None, "s", f"s:{n}") for n, prompt in enumerate(PROMPTS[:3])]
    where = {"url": server.url, "model": server.model}
    sections: dict[str, Any] = {
        "task": Task(kind="json", instruction="Answer.", schema_file="schema.json", label_field=""),
        "generation": Generation(max_new_tokens=LONG.max_new_tokens, enforce="schema"),
        "engine": Engine.model_validate({**where, "name": server.engine, "key_variable": "ENGINE_KEY"}),
        "quantize": Quantize.model_validate({"engines": {artefact.name: server.engine}}),
        "scoring": Scoring(),
    }
    chat = make_chat(load_tokenizer(model), "Answer.")
    write_records(paths.HOLDOUT, records)
    write_rows(paths.ADAPTER_GENERATIONS, answer_rows(load_model(model), chat, records, LONG, "tiny"))
    spent: dict[str, Any] = {}
    found = judge(paths.RELEASE / artefact.name, Params.model_construct(**sections), scorer(sections["task"]), spent)
    assert (found["engine"], found["decoding"], found["free"]["decoding"]) == (
        server.engine, {"enforce": "schema"}, {"enforce": "none"},
    )  # fmt: skip
    assert found["scores"].schema_valid.value >= found["free"]["scores"].schema_valid.value
    assert found["scores"].schema_valid.count == sum(row["stopped"] for row in rows_of(artefact.name))
    free = ask(server, [chat.messages(record) for record in records], LONG)
    assert [row["output"] for row in rows_of(f"{artefact.name}_free")] == [one.output for one in free]
    assert {one["engine"] for one in spent.values()} == {server.engine}


def rows_of(label: str) -> list[dict[str, Any]]:
    return list(read_rows(paths.ARTEFACT_GENERATIONS / f"{label}.jsonl"))
