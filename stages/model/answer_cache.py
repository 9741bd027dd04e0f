"""Results by content: what the same weights, code and libraries computed once for the same input.

It lies outside DVC's outputs, so that it outlives a stage that runs again for another reason. A whole request is
remembered or nothing of it: a batch of other prompts could round otherwise, and an answer from here is the very
one that a fresh run would give.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.files import tree_digest
from stages.core.run_notes import library_versions

# Whatever of this folder decides which numbers come out.
_CODE = [Path(__file__).with_name(f"{name}.py") for name in ("answers", "likelihood", "loading", "prefix")]


def remember(request: dict[str, Any], compute: Callable[[], list[Any]]) -> tuple[list[Any], bool]:
    """What `compute` returns for this request, and whether it was known. Both are JSON values, `request` in full.

    A killed process leaves no half file under a name that is read, and processes with the same request do not
    disturb each other.
    """
    made_of = {**request, "code": [tree_digest(path) for path in _CODE], "libraries": library_versions()}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    path = paths.GENERATIONS_MEMORY / f"{key}.json"
    known = _read(path)
    if known is not None:
        return known, True
    result = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{key}.{os.getpid()}-{threading.get_ident()}.partial")
    with partial.open("w", encoding="utf-8") as handle:
        json.dump(result, handle, allow_nan=False)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
    return result, False


def _read(path: Path) -> list[Any] | None:
    """The list in the file; None when there is none, or one that no run of this code has written."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, list) else None
