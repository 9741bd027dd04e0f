"""`transformers serve`, a real OpenAI-compatible server, with a tiny model; and the same model as a local judge."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from asked_servers import Proxy, reply
from judge_project import judge_params, make_judge_project
from test_judge_stage import judge
from tiny_model import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.core import paths
from stages.core.files import read_json
from stages.measure.gates.__main__ import check_gates

PAIRS = [("wrong", "RIGHT"), ("RIGHT", "wrong"), ("same", "same"), ("a", "b")]
SECONDS_TO_START = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers B whatever it is asked: a judge of places."""
    folder = save_tiny_model(tmp_path_factory.mktemp("judge") / "model")
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    answer = [*tokenizer("B", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    end = tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"] + answer
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        length = int(torch.randint(16, 400, (1,), generator=generator))
        asked = torch.randint(2, len(tokenizer), (4, length), generator=generator)
        ids = torch.cat([asked, torch.tensor(end).expand(4, -1)], dim=1)
        logits = network(ids).logits[:, -len(answer) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -len(answer) :].flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[int]:
    """The port of the running server, which is stopped afterwards."""
    program = shutil.which("transformers", path=str(Path(sys.executable).parent))
    assert program
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    log = model.with_name("log.txt")
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=handle,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not _is_up(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def _is_up(port: int) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return bool(requests.get(f"http://127.0.0.1:{port}/health", timeout=5, proxies={"http": ""}).ok)
    return False


def test_the_server_and_the_local_judge_say_the_same_and_are_seen_through(
    server: int, model: Path, tmp_path: Path
) -> None:
    served = make_judge_project(tmp_path / "served", PAIRS, model=str(model), endpoint=f"http://127.0.0.1:{server}/v1")
    local = make_judge_project(tmp_path / "local", PAIRS, provider="local", model=str(model))
    assert judge(served)[0] == 0
    assert judge(local)[0] == 0
    metrics = read_json(served / paths.JUDGE_METRICS)
    assert metrics == read_json(local / paths.JUDGE_METRICS)
    found = metrics["against_baseline"]
    assert (found["rows"], found["identical"], found["ties"], found["disagreements"]) == (4, 1, 4, 3)
    assert (found["first_preferred"]["value"], found["consistency"]["value"]) == (0.0, 1.0)
    assert check_gates(judge_params().gates, {"judge": metrics})["verdict"] == "FAIL"
    assert metrics["replies"] == {"count": 12, "unreadable": 0}
    assert metrics["cost"]["input_tokens"] > 12 * 500
    assert (metrics["cost"]["output_tokens"], metrics["cost"]["uncounted"]) == (24, 0)
    before = (local / paths.JUDGE_METRICS).read_bytes()
    assert judge(local)[0] == 0
    assert (local / paths.JUDGE_METRICS).read_bytes() == before


def test_a_connection_cut_in_the_middle_of_a_reply_changes_nothing(server: int, model: Path, tmp_path: Path) -> None:
    whole = make_judge_project(tmp_path / "whole", PAIRS, model=str(model), endpoint=f"http://127.0.0.1:{server}/v1")
    proxy = Proxy(server)
    # Two questions are asked at once, and all five faults could meet one of them.
    cut = make_judge_project(tmp_path / "cut", PAIRS, model=str(model), endpoint=proxy.endpoint, attempts=6)
    proxy.faults = [None, 300, None, 150, 10, 0, reply("429 Too Many Requests", Retry_After="0")]
    assert judge(whole)[0] == judge(cut)[0] == 0
    proxy.close()
    assert proxy.connections == 12 + 5
    assert (cut / paths.JUDGE_METRICS).read_bytes() == (whole / paths.JUDGE_METRICS).read_bytes()


def test_a_model_that_the_server_refuses_is_a_sentence(server: int, tmp_path: Path) -> None:
    folder = make_judge_project(tmp_path, PAIRS, model="another", endpoint=f"http://127.0.0.1:{server}/v1")
    code, said = judge(folder)
    assert code == 2
    assert f"error: the judge at http://127.0.0.1:{server}/v1 refuses the request with HTTP 4" in said
    assert "Traceback" not in said
