"""The trail of a file in a scratch repository, as `tunetrail trace --json` tells it."""

import json
from pathlib import Path
from typing import Any

from scratch import Scratch

MODEL = "models/release/nf4/model.safetensors"
KEYS = {"file", "stage", "data", "params", "metrics", "base", "tracked_run", "code", "commit"}


def trace(scratch: Scratch, name: str, cwd: Path | None = None) -> tuple[int, dict[str, Any]]:
    answer = scratch.tunetrail("trace", name, "--json", cwd=cwd)
    return answer.code, json.loads(answer.out)


def broken(scratch: Scratch, name: str = MODEL) -> str:
    """The sentences of a trail that must be broken."""
    code, trail = trace(scratch, name)
    assert code == 1
    assert trail["file"]["trail"]["complete"] is False
    return "\n".join(trail["file"]["trail"]["broken"])


def whole(scratch: Scratch, name: str = MODEL) -> dict[str, Any]:
    """The trail that must be complete."""
    code, trail = trace(scratch, name)
    assert trail["file"]["trail"]["broken"] == []
    assert code == 0
    return trail


def head(scratch: Scratch) -> str:
    return scratch.git("rev-parse", "HEAD")


def second_run(scratch: Scratch) -> str:
    scratch.replace("params.yaml", "1e-3", "2e-3")
    scratch.dvc("repro")
    return scratch.commit("Run B")
