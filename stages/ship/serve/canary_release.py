"""canary: is the new version, by what the front logged, worse than the one before, or shown not to be?"""

import glob
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.errors import UserError
from stages.scoring.intervals import independent_difference

CONTINUE, STOP, UNDECIDED = "continue", "stop", "undecided"

Row = dict[str, Any]
_ROW = (("canary", bool), ("release", str), ("status", int), ("seconds", (int, float)))


def judge_canary(log: Path, margin: float, confidence: float) -> tuple[str, str]:
    """The decision, and a table of what it rests on.

    Each line is the share of requests that went wrong in one way, of the canary less that of the version beside it,
    with Newcombe's interval; all lines together hold with the confidence (Bonferroni). Stop: one is shown to be worse,
    and may be by more than the margin. Continue: all are shown to be worse by the margin at most. Raises UserError when
    the log has no requests of two versions.
    """
    rows = _read(log)
    canaries = [row for row in rows if row["canary"]]
    if not canaries:
        raise UserError(f"{log} has no request of a canary; `tunetrail serve --canary VERSION=10%` makes some")
    beside = [row for row in rows if not row["canary"] and row["release"] != canaries[-1]["release"]]
    if not beside:
        raise UserError(f"{log} has no request of a version beside the canary")
    sides = [[row for row in rows if row["release"] == one[-1]["release"]] for one in (canaries, beside)]
    answered = [row["seconds"] for row in sides[1] if row["status"] == 200]
    slow = float(np.percentile(answered, 95)) if answered else 0.0
    ways: dict[str, tuple[Callable[[Row], bool], Callable[[Row], bool]]] = {
        "failed": (lambda row: True, lambda row: not 0 < row["status"] < 500),
        "cut off": (lambda row: row.get("stopped") is not None, lambda row: not row["stopped"]),
        "broke the contract": (lambda row: row.get("valid") is not None, lambda row: not row["valid"]),
        f"over {slow:.2f} s": (lambda row: row["status"] == 200, lambda row: row["seconds"] > slow),
    }
    lines, decisions = [f"canary {canaries[-1]['release']}, beside {beside[-1]['release']}"], []
    for name, (asked, bad) in ways.items():
        counts = [[bad(row) for row in side if asked(row)] for side in sides]
        (canary, n), (other, other_n) = ((sum(found), len(found)) for found in counts)
        if not n and not other_n and name != "failed":
            continue  # the log has nothing of that kind, such as a contract
        low, high = -1.0, 1.0
        if n and other_n:
            low, high = independent_difference(canary, n, other, other_n, 1 - (1 - confidence) / len(ways))
        decisions.append(CONTINUE if high <= margin else STOP if low > 0 else UNDECIDED)
        lines.append(f"{name:<20} {canary}/{n} against {other}/{other_n}: {low:+.1%} to {high:+.1%}  {decisions[-1]}")
    decision = next((one for one in (STOP, UNDECIDED) if one in decisions), CONTINUE)
    return decision, "\n".join([*lines, decision])


def _read(log: Path) -> Sequence[Row]:
    """The lines of the log, after those of the full ones before it."""
    full = sorted(log.parent.glob(f"{glob.escape(log.stem)}-[0-9]*T[0-9]*{log.suffix}"))
    try:
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in (*full, log)]
    except OSError as error:
        raise UserError(f"{log} cannot be read as the log of `tunetrail serve`: {error}") from None
    rows = []
    for line in "\n".join(texts).split("\n"):
        with suppress(ValueError, RecursionError):  # half a line, as a kill leaves one; a prompt may be odder still
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in _ROW) else []
    return rows
