"""Releases of a tiny model to serve, and engines that are no more than an HTTP server of this process."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tiny_model import save_tiny_model

from stages.core import paths
from stages.core.files import write_json
from stages.engines.engine_server import CHAT, Server, ask, serving
from stages.engines.gguf_export import write_gguf
from stages.model.chat import task_chat
from stages.model.loading import load_tokenizer
from stages.params.model import Generation
from stages.params.task import Task
from stages.records.record import make_record, write_records, write_rows
from stages.ship.serve.front import Target
from stages.ship.serve.served_version import Version

HELLO = [{"role": "user", "content": "secret words"}]
TASK = {"instruction": "Answer.", "kind": "text", "max_words": 50}
TOKENS = 8


def make_version(
    tree: Path, name: str, *, seed: int = 0, task: dict[str, Any] | None = None, engine: str = ""
) -> Version:
    """A release in `tree` whose golden answers are those of llama.cpp, or of a stub where that is the engine's name."""
    release, task = tree / paths.RELEASE, task or TASK
    merged = save_tiny_model(release / "merged", seed=seed)
    chat = task_chat(load_tokenizer(merged), Task.model_validate(task))
    records = [make_record(f"order {n} is late «{name}»", "x", None, "s", f"s:{n}") for n in range(5)]
    write_records(tree / paths.HOLDOUT, records)
    if engine == "stub":
        outputs = [f"{name}: {record.prompt}" for record in records]
    else:
        (release / "gguf").mkdir()
        write_gguf(merged, release / "gguf" / "model.gguf", "F16", chat.stop_id)
        with serving(release / "gguf", "llama.cpp") as server:
            asked = ask(server, [chat.messages(record) for record in records], Generation(max_new_tokens=TOKENS))
        outputs = [one.output for one in asked]
    rows = [{"id": record.id, "output": output} for record, output in zip(records, outputs, strict=True)]
    write_rows(tree / paths.ARTEFACT_GENERATIONS / "gguf.jsonl", rows)
    write_json(tree / "data/schema.json", {"type": "object"})
    files: dict[str, Any] = {"merged/config.json": {}, "gguf/model.gguf": {}}
    formats = {"merged": {"engine": "transformers"}, "gguf": {"engine": "llama.cpp"}}
    params = {"task": task, "generation": {"max_new_tokens": TOKENS}}
    write_json(release / "manifest.json", {"format": 2, "files": files, "formats": formats, "params": params})
    return Version(name, release, tree, "gguf", "llama.cpp")


class Stub(ThreadingHTTPServer):
    """An engine that says its name and what it was asked; it keeps the bodies of requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str, fault: str = "", seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.fault, self.seconds = name, fault, seconds
        self.asked: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def server_for(self, name: str = "") -> Server:
        return Server(f"http://127.0.0.1:{self.server_port}/v1", name or self.name, "llama.cpp")

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        if self.path == "/health":
            self._say(503 if self.server.fault == "health" else 200, {})
        else:
            self._say(200, {"data": [{"id": "another" if self.server.fault == "model" else self.server.name}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        time.sleep(self.server.seconds)
        if body.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in ("data: one\n\n", "data: [DONE]\n\n"):
                self.wfile.write(piece.encode())
                self.wfile.flush()
            return
        messages = body["messages"]
        said = messages[-1]["content"] if isinstance(messages, list) else ""
        if (not isinstance(messages, list) and self.server.fault != "malformed") or (
            len(said) > 10_000 and self.server.fault != "over-length"
        ):
            self._say(400, {"error": {"message": "no"}})
            return
        if self.server.fault == "concurrent" and len(self.server.asked) > 6:
            self._say(500, {"error": {"message": "no"}})
            return
        output = f"{'other' if self.server.fault == 'golden prompts' else self.server.name}: {said}"
        choice = {"message": {"content": output}, "finish_reason": "stop"}
        self._say(200, {"model": self.server.name, "choices": [choice], "usage": {"completion_tokens": 3}})

    def _say(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def stubbed(version: Version, fault: str = "", seconds: float = 0.0) -> Iterator[tuple[Stub, Target]]:
    stub = Stub(version.id, fault, seconds)
    try:
        yield stub, Target(version, stub.server_for(), stub.close)
    finally:
        stub.close()


def post(url: str, body: Any, path: str = CHAT, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, parsed reply and headers."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, sent, {"Content-Type": "application/json", **given})
    reply = connection.getresponse()
    said = reply.read()
    connection.close()
    try:
        return reply.status, json.loads(said), dict(reply.headers)
    except ValueError:
        return reply.status, said, dict(reply.headers)


def get(url: str, path: str) -> Any:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", path)
    said = json.loads(connection.getresponse().read())
    connection.close()
    return said


def rows_of(log: Path) -> list[Any]:
    return [json.loads(line) for line in log.read_text().splitlines()]
