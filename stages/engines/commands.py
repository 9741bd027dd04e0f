"""How each engine's own OpenAI-compatible server is started on a folder, or a GGUF file, of this machine."""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from stages.core.errors import UserError
from stages.core.machine import machine_settings
from stages.engines import llama_server

EngineName = Literal["transformers", "llama.cpp", "vllm"]
ENGINES: tuple[str, ...] = get_args(EngineName)


@dataclass(frozen=True)
class Launch:
    """A command, what it reads first, and what its environment has besides."""

    command: Sequence[str]
    stdin: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a server listens and what it holds: `slots` requests at once, `context` tokens each."""

    model: Path
    name: str
    host: str
    port: int
    api_key: str | None
    slots: int
    context: int


def launch(engine: str, place: Place) -> Launch:
    """The command for `engine`. Raises UserError when the engine is not installed, or cannot serve that."""
    return {"transformers": _transformers, "llama.cpp": _llama_cpp, "vllm": _vllm}[engine](place)


def _llama_cpp(place: Place) -> Launch:
    files = [place.model] if place.model.is_file() else sorted(place.model.glob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"llama.cpp serves one GGUF file, and {place.model} has {len(files)}; take another engine")
    threads = machine_settings().engine_threads
    settings = {
        "model": str(files[0]),
        "name": place.name,
        "host": place.host,
        "port": place.port,
        "api_key": place.api_key,
        "slots": place.slots,
        "context": place.context,
        "threads": len(os.sched_getaffinity(0)) if threads == "auto" else threads,
    }
    # Threads that spin while they wait make each other wait, as soon as another program wants the cores as well.
    passive = {"OMP_WAIT_POLICY": "passive"}
    return Launch([sys.executable, "-m", llama_server.__name__], json.dumps(settings) + "\n", passive)


def _vllm(place: Place) -> Launch:
    python = machine_settings().vllm_python
    if not python or not shutil.which(python):
        raise UserError(
            "vLLM wants an environment of its own: set TUNETRAIL_VLLM_PYTHON (or vllm_python in machine.yaml) to the "
            f"Python of that environment{f'; {python} is no program' if python else ''}; or set engine.url to a "
            "server that runs elsewhere"
        )
    # fmt: off
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(place.model),
        "--served-model-name", place.name, "--host", place.host, "--port", str(place.port),
        "--max-model-len", str(place.context), "--max-num-seqs", str(place.slots),
        "--generation-config", "vllm",  # else a file of the model's decides how answers are sampled
    ]
    # fmt: on
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}
    return Launch(command, environment=environment | ({"VLLM_API_KEY": place.api_key} if place.api_key else {}))


def _transformers(place: Place) -> Launch:
    program = shutil.which("transformers", path=str(Path(sys.executable).parent))
    if not program:
        raise UserError(f"there is no `transformers` command beside {sys.executable}")
    if place.api_key:
        raise UserError("`transformers serve` knows no API key, so it serves this machine alone; take another engine")
    command = [program, "serve", str(place.model), "--host", place.host, "--port", str(place.port)]
    return Launch(command, environment={"HF_HUB_OFFLINE": "1"})
