"""llama.cpp's real server on a tiny model: what it is asked, what it says, and how it ends."""

import os
import select
import shutil
import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from held_answers import PROMPTS, check_held_answers, check_judged
from tiny_model import save_tiny_model

from stages.core.errors import UserError
from stages.engines import engine_server
from stages.engines.engine_server import (
    EngineError,
    Server,
    ask,
    call,
    healthy,
    prompt_ids,
    request,
    reserved_port,
    serving,
)
from stages.engines.gguf_export import write_gguf
from stages.model.answers import answer
from stages.model.chat import Chat, make_chat
from stages.model.loading import load_model, load_tokenizer
from stages.params.model import Generation
from stages.records.record import make_record

FEW = Generation(max_new_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("engine") / "model", seed=3)


@pytest.fixture(scope="module")
def chat(model: Path) -> Chat:
    return make_chat(load_tokenizer(model), "Answer.")


@pytest.fixture(scope="module")
def server(model: Path, chat: Chat) -> Iterator[Server]:
    file = model.with_name("model.gguf")
    write_gguf(model, file, "F16", chat.stop_id)
    with serving(file, "llama.cpp", name="tiny", context=256) as running:
        yield running
    assert running.process is not None
    assert running.process.poll() is not None
    assert not healthy(running.url.removesuffix("/v1"))


def test_a_reserved_port_goes_to_the_server_that_asks_for_it() -> None:
    port = reserved_port()
    with socket.socket() as other, pytest.raises(OSError, match="already in use"):
        other.bind(("127.0.0.1", port))  # as whoever is given a free port, or connects from one
    with socket.create_server(("127.0.0.1", port)) as server:
        assert server.getsockname()[1] == port


def test_it_says_what_transformers_says_to_the_same_tokens(server: Server, model: Path, chat: Chat) -> None:
    records = [make_record(prompt, "x", None, "s", f"s:{n}") for n, prompt in enumerate(PROMPTS)]
    conversations = [chat.messages(record) for record in records]
    assert [prompt_ids(server, one) for one in conversations] == [chat.prompt_ids(record) for record in records]
    ours = answer(load_model(model), chat, records, FEW, "tiny")
    theirs = ask(server, conversations, FEW)
    assert [(one.output, one.tokens, one.stopped) for one in theirs] == [
        (one.output, one.tokens, one.stopped) for one in ours
    ]


def test_an_answer_is_held_to_labels_and_to_a_schema(server: Server) -> None:
    check_held_answers(server)


def test_merge_quantize_judges_by_it_freely_and_held(
    server: Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gguf").mkdir()
    shutil.copy(model.with_name("model.gguf"), tmp_path / "gguf")
    check_judged(server, model, tmp_path / "gguf", tmp_path, monkeypatch)


def test_every_sampling_parameter_stands_in_the_request() -> None:
    for engine, off in (
        ("llama.cpp", {"top_k": 0, "repeat_penalty": 1.0}),
        ("vllm", {"top_k": 0, "repetition_penalty": 1.0}),
    ):
        body = request(Server("http://x/v1", "m", engine), [{"role": "user", "content": "a"}], FEW)
        common = {"temperature": 0.0, "seed": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 12, "presence_penalty": 0.0}
        assert body.items() >= (off | common).items()


def test_what_a_server_refuses_is_a_sentence_with_its_status(server: Server) -> None:
    with pytest.raises(EngineError, match="HTTP 400") as refused:
        ask(server, [[{"role": "user", "content": "word " * 300}]], FEW)
    assert refused.value.status == 400
    with pytest.raises(EngineError, match="HTTP 400"):
        call(server, "/v1/chat/completions", {"messages": 7})
    with pytest.raises(EngineError, match="cannot be asked"):
        call(Server("http://127.0.0.1:9/v1", "m", "vllm"), "/health", {})


def test_a_file_that_is_no_model_is_told_with_the_engine_s_own_words(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing")
    with (
        pytest.raises(UserError, match=r"the server of llama\.cpp ended; its last words"),
        serving(tmp_path / "broken.gguf", "llama.cpp"),
    ):
        pass


def test_a_server_ends_with_whoever_started_it(model: Path, server: Server) -> None:
    """Killed without a chance to stop it."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom stages.engines.engine_server import serving\n"
        f"with serving(Path({str(model.with_name('model.gguf'))!r}), 'llama.cpp', context=256) as running:\n"
        "    print(running.process.pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == -9
    descriptor = os.pidfd_open(int(child.stdout)) if Path(f"/proc/{int(child.stdout)}").exists() else None
    if descriptor is not None:
        assert select.select([descriptor], [], [], 30)[0]


def test_what_a_server_started_does_not_outlive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "_SECONDS_TO_STOP", 1.0)
    script = "(trap '' TERM; echo $BASHPID; exec sleep 600) & wait"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        left = os.pidfd_open(int(process.stdout.readline()))
        engine_server._stop(process)
        assert select.select([left], [], [], 30)[0]  # it has ended, though it heeds no SIGTERM


def test_vllm_without_its_environment_is_a_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNETRAIL_VLLM_PYTHON", raising=False)
    with pytest.raises(UserError, match="TUNETRAIL_VLLM_PYTHON"), serving(model, "vllm"):
        pass
    monkeypatch.setenv("TUNETRAIL_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(UserError, match="/nowhere/python is no program"), serving(model, "vllm"):
        pass


_OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("said", [b"", b"no HTTP\r\n\r\n", _OK + b"Content-Length: 90\r\n\r\n{", _OK + b"\r\n{"])
def test_a_reply_that_is_cut_or_no_http_is_an_engine_error_and_not_healthy(said: bytes) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.connection.recv(65536)
            self.wfile.write(said)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as stub:
        Thread(target=stub.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{stub.server_address[1]}"
        with pytest.raises(EngineError, match="cannot be asked"):
            call(Server(f"{base}/v1", "tiny", "llama.cpp", None), "/v1/chat/completions", {})
        assert healthy(base) == said.startswith(_OK)
        stub.shutdown()
