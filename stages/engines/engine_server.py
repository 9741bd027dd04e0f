"""An engine's server, from start to stop, and the requests it is sent: each says how its answer is to be decoded."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, NamedTuple

from stages.core.errors import UserError
from stages.core.files import read_json
from stages.core.machine import machine_settings
from stages.core.run_notes import track
from stages.engines import llama_server
from stages.model.labels import labels_in
from stages.params.model import Generation
from stages.params.task import Task

_SECONDS_TO_START, _SECONDS_TO_STOP, _SECONDS_TO_ANSWER = 1200.0, 20.0, 600.0
_LOOPBACK = "127.0.0.1"
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
CHAT, LORA_GGUF = "/v1/chat/completions", "adapter_model.gguf"

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Attributes:
        url: base of the OpenAI-compatible API, which ends in /v1.
        model: the name that a request gives.
        engine: transformers, llama.cpp or vllm.
        api_key: what a request must bring, None where it need not.
        slots: how many requests it works on at once.
        adapters: names of the LoRA adapters on its model; a request gives one as `model`, see `addressed`.
        process: the server's process, None when it runs elsewhere.
        seconds_to_start: until it answered; 0.0 when it runs elsewhere.
    """

    url: str
    model: str
    engine: str
    api_key: str | None = None
    slots: int = 1
    process: "subprocess.Popen[bytes] | None" = None
    seconds_to_start: float = 0.0
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What an engine said: its text, how many tokens, and whether the stop token ended it."""

    output: str
    tokens: int
    stopped: bool


class EngineError(UserError):
    """What a server said in place of an answer; `status` is that of HTTP, None when there was no reply."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Start(NamedTuple):
    """What an engine is started with."""

    model: Path
    name: str
    port: int
    slots: int
    context: int
    adapters: Mapping[str, Path]
    api_key: str


@contextmanager
def serving(
    model: Path,
    engine: str,
    *,
    name: str = "",
    slots: int = 1,
    context: int = 2048,
    adapters: Mapping[str, Path] | None = None,
) -> Iterator[Server]:
    """The engine's own server on `model`, a folder or a GGUF file, until the block ends; on a free port of loopback.

    It holds `slots` requests at once of `context` tokens each. What is said beside others is rounded otherwise; with
    one slot, the same requests in the same order get the same answers. `adapters` are folders of LoRA adapters by the
    names that they are asked by: vLLM reads PEFT's files, llama.cpp the adapter_model.gguf beside them. llama.cpp and
    vLLM answer only to a key, which is drawn here. Raises UserError when the engine is not installed, cannot serve
    that, or does not come up: with its last words.
    """
    name, at, adapters = name or model.stem, time.perf_counter(), adapters or {}
    port = reserved_port()
    key = "" if engine == "transformers" else secrets.token_urlsafe()
    command, environment = _COMMANDS[engine](_Start(model, name, port, slots, context, adapters, key))
    with tempfile.TemporaryFile() as log:
        # A session of its own: whatever processes the engine starts end with it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            url = f"http://{_LOOPBACK}:{port}"
            _wait_until_up(url, engine, process, log)
            taken = time.perf_counter() - at
            yield Server(f"{url}/v1", name, engine, key or None, slots, process, taken, tuple(adapters))
        finally:
            _stop(process)


def _llama_cpp(start: _Start) -> tuple[list[str], dict[str, str]]:
    model, threads = start.model, machine_settings().engine_threads
    files = [model] if model.is_file() else sorted(model.glob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"llama.cpp serves one GGUF file, and {model} has {len(files)}; take another engine")
    loras = [folder / LORA_GGUF for folder in start.adapters.values()]
    if absent := [str(file) for file in loras if not file.is_file()]:
        raise UserError(f"llama.cpp serves an adapter from a GGUF file, and there is no {absent[0]}; take vllm")
    settings = {
        "model": str(files[0]),
        "name": start.name,
        "host": _LOOPBACK,
        "port": start.port,
        "slots": start.slots,
        "context": start.context,
        "threads": len(os.sched_getaffinity(0)) if threads == "auto" else threads,
        "adapters": [str(file) for file in loras],
    }
    environment = {llama_server.KEY_VARIABLE: start.api_key}
    return [sys.executable, "-m", llama_server.__name__, json.dumps(settings)], environment


def _vllm(start: _Start) -> tuple[list[str], dict[str, str]]:
    if labels_in(start.model):
        raise UserError(f"{start.model} has a classification head (train.head: label), which transformers serves")
    python = machine_settings().vllm_python
    if not python or not shutil.which(python):
        raise UserError(
            "vLLM wants an environment of its own: set TUNETRAIL_VLLM_PYTHON (or vllm_python in machine.yaml) to the "
            f"Python of that environment{f'; {python} is no program' if python else ''}; `make vllm` makes one for a "
            "CPU, .venv-vllm/bin/python; or set engine.url to a server that runs elsewhere"
        )
    # fmt: off
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(start.model),
        "--served-model-name", start.name, "--host", _LOOPBACK, "--port", str(start.port),
        "--max-model-len", str(start.context), "--max-num-seqs", str(start.slots),
        "--generation-config", "vllm",  # else a file of the model's decides how answers are sampled
    ]
    # fmt: on
    if start.adapters:
        ranks = [read_json(folder / "adapter_config.json")["r"] for folder in start.adapters.values()]
        largest = next((rank for rank in _VLLM_RANKS if rank >= max(ranks)), max(ranks))
        command += ["--enable-lora", "--max-loras", str(len(ranks)), "--max-lora-rank", str(largest)]
        command += ["--lora-modules", *(f"{name}={folder}" for name, folder in start.adapters.items())]
    memory = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": memory, "HF_HUB_OFFLINE": "1"}
    # It compiles its model, which stages.core.errors switches off for what runs in this process.
    return command, environment | {"VLLM_API_KEY": start.api_key, "TORCHDYNAMO_DISABLE": "0"}


def _transformers(start: _Start) -> tuple[list[str], dict[str, str]]:
    if start.adapters:
        raise UserError("`transformers serve` serves no adapters beside each other; take llama.cpp or vllm")
    if labels_in(start.model):  # of which `transformers serve` knows nothing
        settings = {"model": str(start.model), "host": _LOOPBACK, "port": start.port}
        return [sys.executable, "-m", "stages.engines.label_server", json.dumps(settings)], {"HF_HUB_OFFLINE": "1"}
    program = shutil.which("transformers", path=str(Path(sys.executable).parent))
    if not program:
        raise UserError(f"there is no `transformers` command beside {sys.executable}")
    command = [program, "serve", str(start.model), "--host", _LOOPBACK, "--port", str(start.port)]
    return command, {"HF_HUB_OFFLINE": "1"}


_COMMANDS = {"transformers": _transformers, "llama.cpp": _llama_cpp, "vllm": _vllm}


def reserved_port() -> int:
    """A port that for a minute goes to a server alone that asks for it: closed from this side, it is in TIME_WAIT.

    One that is merely free may be gone before an engine has loaded its model.
    """
    with socket.create_server((_LOOPBACK, 0), backlog=1, reuse_port=True) as server:
        with socket.create_connection(server.getsockname()) as client:
            server.accept()[0].close()
            client.recv(1)
        return int(server.getsockname()[1])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server and all that it started: vLLM's engine outlives the server that it answers by a moment."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_STOP)
            break
    until = time.monotonic() + _SECONDS_TO_STOP / 4
    with suppress(ProcessLookupError):  # nothing is left
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()


def _wait_until_up(url: str, engine: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    until = time.monotonic() + _SECONDS_TO_START
    while not healthy(url):
        if process.poll() is not None or time.monotonic() > until:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip().splitlines()
            # vLLM says why in a line of a process of its own, long before it ends.
            said = [line for line in said if re.search(r"\w(Error|Exception): \S", line)] or said
            how = "ended" if process.poll() is not None else f"did not answer within {_SECONDS_TO_START:.0f} seconds"
            raise EngineError(
                f"the server of {engine} {how}; its last words:\n  " + "\n  ".join(dict.fromkeys(said[-5:]))
            )
        time.sleep(0.1)


def healthy(url: str) -> bool:
    """Whether the server, by its address without /v1, says that it answers."""
    with suppress(OSError, HTTPException), _opener().open(f"{url}/health", timeout=30) as response:
        return bool(response.status == 200)
    return False


def _opener() -> urllib.request.OpenerDirector:
    """Without a proxy: what goes to an engine goes to no one else."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(server: Server, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """POST `body` to a path such as /v1/chat/completions, or GET it; the reply. Raises EngineError for all else."""
    headers = {"Content-Type": "application/json"}
    if server.api_key:
        headers["Authorization"] = f"Bearer {server.api_key}"
    address = server.url.removesuffix("/v1") + path
    request = urllib.request.Request(address, None if body is None else json.dumps(body).encode(), headers)
    try:
        with _opener().open(request, timeout=_SECONDS_TO_ANSWER) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode("utf-8", "replace")
        raise EngineError(f"the server at {server.url} answers with HTTP {error.code}: {said}", error.code) from None
    except (OSError, HTTPException, ValueError) as error:
        raise EngineError(f"the server at {server.url} cannot be asked: {error}") from None


def request(
    server: Server, messages: Messages, generation: Generation, enforce: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body of a request for a greedy answer: nothing is left to what the engine, or a file of the model's, has.

    `enforce` is {"schema": JSON Schema} or {"labels": [...]}, which the answer is held to while it is decoded. Raises
    UserError when the engine cannot hold an answer to that.
    """
    body: dict[str, Any] = {
        **addressed(server),
        "messages": messages,
        "max_tokens": generation.max_new_tokens,
        "temperature": 0.0,
        "seed": 0,
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "n": 1,
        "stream": False,
    }
    if server.engine == "llama.cpp":
        body |= {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0, "dry_multiplier": 0.0}
        body |= {"xtc_probability": 0.0, "mirostat": 0, "cache_prompt": True}
    if server.engine == "vllm":
        body |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    return body | (_enforced(server.engine, enforce) if enforce else {})


def addressed(server: Server) -> dict[str, Any]:
    """The fields of a request that say who answers: the server's model, or the adapter on it that has its name."""
    if server.engine == "llama.cpp" and server.adapters:
        scales = [{"id": number, "scale": float(name == server.model)} for number, name in enumerate(server.adapters)]
        return {"model": server.model, "lora": scales}
    return {"model": server.model}


def held_to(enforce: str, task: Task, tag: str | None) -> dict[str, Any] | None:
    """What an answer to a row with this tag is held to while it is decoded: {"schema"}, {"labels"}, or nothing.

    `enforce` is generation.enforce; a row whose contract is of another kind is answered freely.
    """
    contract = task.contract(tag)
    if enforce == "labels" and contract.kind == "classification":
        return {"labels": contract.labels}
    if enforce != "schema" or contract.kind != "json":
        return None
    schema = json.loads(Path(task.schema_file).read_text(encoding="utf-8"))
    if contract.schema_at == "#":
        return {"schema": schema}
    return {
        "schema": {"$ref": contract.schema_at, **{k: v for k, v in schema.items() if k in ("$defs", "definitions")}}
    }


def _enforced(engine: str, enforce: Mapping[str, Any]) -> dict[str, Any]:
    if engine == "transformers":
        raise UserError("generation.enforce: `transformers serve` cannot hold an answer to a contract; set it to none")
    if "schema" in enforce:
        wanted = {"name": "answer", "schema": enforce["schema"], "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": wanted}}
    if engine == "vllm":
        return {"structured_outputs": {"choice": list(enforce["labels"])}}
    return {"grammar": "root ::= " + " | ".join(json.dumps(label, ensure_ascii=False) for label in enforce["labels"])}


def ask(
    server: Server,
    conversations: Sequence[Messages],
    generation: Generation,
    enforce: Sequence[Mapping[str, Any] | None] | None = None,
    what: str = "answers",
) -> list[Reply]:
    """Greedy answers in the order of `conversations`, as many at once as the server has slots.

    Raises EngineError when one cannot be had.
    """
    held = enforce or [None] * len(conversations)
    bodies = [request(server, m, generation, one) for m, one in zip(conversations, held, strict=True)]
    with ThreadPoolExecutor(server.slots) as pool:
        found = pool.map(lambda body: reply(call(server, CHAT, body)), bodies)
        return list(track(found, len(bodies), what))


def reply(body: Any) -> Reply:
    """The answer in what a server replied. Raises EngineError when there is none."""
    try:
        choice, used = body["choices"][0], body["usage"]["completion_tokens"]
        return Reply(choice["message"]["content"] or "", int(used), choice["finish_reason"] == "stop")
    except (KeyError, IndexError, TypeError) as error:
        raise EngineError(f"the server replied without {error}: {str(body)[:300]}") from None


def prompt_ids(server: Server, messages: Messages) -> list[int]:
    """The token ids that the engine's own template and tokenizer make of a conversation, up to the answer."""
    if server.engine == "llama.cpp":
        shown = call(server, "/apply-template", {"messages": messages})["prompt"]
        body = {"content": shown, "add_special": True, "parse_special": True}
        return list(call(server, "/tokenize", body)["tokens"])
    if server.engine == "vllm":
        return list(call(server, "/tokenize", {"model": server.model, "messages": messages})["tokens"])
    raise UserError("`transformers serve` does not tell the ids of a prompt; it renders what training rendered")
