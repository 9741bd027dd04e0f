"""Several specialists on one base: each by its name and with its own trail, and a router by keywords before them."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from served import TASK, TOKENS, post
from tiny_model import save_tiny_model, tiny_tokenizer

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import tree_digest, write_json
from stages.engines.engine_server import CHAT, LORA_GGUF, ask, serving
from stages.engines.gguf_export import write_gguf, write_gguf_lora
from stages.model.chat import task_chat
from stages.model.loading import load_model, load_tokenizer
from stages.params.model import Generation
from stages.params.task import Task
from stages.records.record import make_record, write_records, write_rows
from stages.ship.serve.front import Front
from stages.ship.serve.served_version import Version, version_of
from stages.ship.serve.serving_loop import start_adapters

EXAMPLE = Path(__file__).parents[3] / "examples" / "specialists"
HELLO = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "My kettle is broken"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("specialists") / paths.BASE, seed=5)


@pytest.fixture(scope="module")
def versions(base: Path) -> dict[str, Version]:
    """Two releases of a project each, which ship an adapter; their golden answers are those of llama.cpp."""
    chat = task_chat(load_tokenizer(base), Task.model_validate(TASK))
    records = [make_record(f"order {n} is late", "x", None, "s", f"s:{n}") for n in range(3)]
    folders = {}
    for seed, name in enumerate(("returns", "billing")):
        torch.manual_seed(seed)
        tuned = get_peft_model(load_model(base), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        for parameter, weight in tuned.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=3.0)
        folder = folders[name] = base.parents[1] / name / paths.RELEASE / "lora"
        tuned.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder.with_name("merged"))
        write_gguf_lora(base, folder, folder / LORA_GGUF)
        write_json(folder / "base_model.json", {"source": "path:tiny", "tree_sha256": tree_digest(base)})
        params = {"task": TASK, "generation": {"max_new_tokens": TOKENS}}
        forms = {"merged": {"engine": "transformers"}, "lora": {"engine": "transformers"}}
        write_json(folder.with_name("manifest.json"), {"format": 2, "files": {}, "formats": forms, "params": params})
    write_gguf(base, base.parents[1] / "base.gguf", "F16", chat.stop_id)
    found = {}
    with serving(base.parents[1] / "base.gguf", "llama.cpp", adapters=folders) as server:
        for name, folder in folders.items():
            tree = folder.parents[2]
            write_records(tree / paths.HOLDOUT, records)
            write_json(tree / "data/schema.json", {"type": "object"})
            said = ask(
                replace(server, model=name), [chat.messages(r) for r in records], Generation(max_new_tokens=TOKENS)
            )
            rows = [{"id": record.id, "output": one.output} for record, one in zip(records, said, strict=True)]
            write_rows(tree / paths.ARTEFACT_GENERATIONS / "lora.jsonl", rows)
            found[name] = version_of(f"{name}@v1.0.0", folder.parent, tree, None, adapter=True)
    return found


@pytest.fixture(scope="module")
def front(versions: dict[str, Version], base: Path) -> Iterator[tuple[Front, str]]:
    adapters = start_adapters(versions, base, 512)  # each has passed its smoke test
    running = Front(adapters["returns"], None, base.parents[1] / "requests.jsonl")
    running.adapters = adapters
    with running.answering() as url:
        yield running, url
    for target in running.targets:
        target.close()
    process = running.target.server.process
    assert process is not None
    assert process.poll() is not None


def test_a_specialist_answers_by_its_name_with_its_own_release(front: tuple[Front, str]) -> None:
    said = {}
    for name in ("returns", "billing"):
        status, body, headers = post(front[1], {"model": name, "messages": HELLO})
        assert (status, body["model"], headers["X-Release"]) == (200, f"{name}@v1.0.0", f"{name}@v1.0.0")
        said[name] = body["choices"][0]["message"]["content"]
    assert said["returns"] != said["billing"]
    for nobody in ({}, {"model": "nobody"}, {"model": ["returns"]}):
        status, body, _ = post(front[1], {"messages": HELLO, **nobody})
        assert (status, "returns, billing" in body["error"]["message"]) == (404, True)


def test_the_router_sends_a_request_to_the_specialist_of_its_keywords(
    front: tuple[Front, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setenv("SPECIALISTS", front[1])
    client = testclient.TestClient(importlib.import_module("router").app)
    for words, model, release in (
        ("My kettle is BROKEN!", "auto", "returns@v1.0.0"),
        ("Where is my invoice?", None, "billing@v1.0.0"),
        ("hello", "auto", "returns@v1.0.0"),
        ("Where is my invoice?", "returns", "returns@v1.0.0"),
    ):
        reply = client.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": words}]})
        assert (reply.status_code, reply.json()["model"], reply.headers["X-Release"]) == (200, release, release)
    assert client.post(CHAT, json={"model": "nobody", "messages": HELLO}).status_code == 404
    mistakes: tuple[Any, ...] = ([], {}, {"messages": []}, {"messages": 7})
    for wrong in mistakes:
        assert client.post(CHAT, json=wrong).status_code == 400
    monkeypatch.setenv("SPECIALISTS", "http://127.0.0.1:9")
    assert client.post(CHAT, json={"messages": HELLO}).status_code == 502
    sys.modules.pop("router")


def test_an_adapter_of_another_base_is_refused(versions: dict[str, Version], base: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "project" / paths.BASE, seed=6)
    with pytest.raises(Refusal, match=r"--adapter returns was trained on path:tiny, and .* is another model"):
        start_adapters(versions, other)
    with pytest.raises(UserError, match="which is not there; `dvc checkout`"):
        start_adapters(versions, tmp_path / "none")


def test_what_was_judged_with_a_contract_is_not_served_without_one(
    versions: dict[str, Version], tmp_path: Path
) -> None:
    params = {"task": TASK, "generation": {"max_new_tokens": TOKENS, "enforce": "schema"}}
    forms = {"merged": {"engine": "transformers"}, "lora": {"engine": "transformers"}}
    write_json(tmp_path / "manifest.json", {"format": 2, "files": {}, "formats": forms, "params": params})
    for engine in (None, "transformers"):
        with pytest.raises(Refusal, match=r"held to its schema .* take --engine llama\.cpp or vllm"):
            version_of("a@v1.0.0", tmp_path, tmp_path, engine)
    assert version_of("a@v1.0.0", tmp_path, tmp_path, "vllm").form == "merged"
    with pytest.raises(UserError, match=r"llama\.cpp wants gguf"):
        version_of("a@v1.0.0", tmp_path, tmp_path, "llama.cpp")
