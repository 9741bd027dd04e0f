"""compare: what a change does to parameters, metrics and gates, as Markdown for a pull request."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.core.errors import UserError
from stages.core.git import Repository
from stages.ship.release.lock_check import lock_check
from stages.ship.release.tag import read_gates

_SHORT = 10


def compare(root: Path, base: str) -> str:
    """The working tree against the revision `base`.

    Raises:
        UserError: when `base` is no revision.
    """
    commit = Repository(root).resolve(base)
    if commit is None:
        raise UserError(f"{base!r} is no commit, branch or tag here; fetch it first: git fetch origin")
    commit = commit[:_SHORT]
    return "\n\n".join(
        [
            f"## Tunetrail: against `{base}`",
            "### dvc.lock\n\n" + _lock(root),
            "### Gates\n\n" + _gates(root),
            "### Metrics\n\n" + _difference(root, "metrics", commit),
            "### Parameters\n\n" + _difference(root, "params", commit),
        ]
    )


def _difference(root: Path, what: str, commit: str) -> str:
    """`dvc metrics diff` or `dvc params diff` as a Markdown table, or the reason why there is none."""
    command = [sys.executable, "-m", "dvc", what, "diff", "--md", commit]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        return "Could not be compared: " + " ".join(done.stderr.split())
    table = done.stdout.strip()
    return table if table.count("\n") > 1 else "No change."


def _lock(root: Path) -> str:
    try:
        return lock_check(root) + "."
    except UserError as error:
        return str(error).replace("\n  ", "\n- ").replace("\n", "\n\n", 1)


def _gates(root: Path) -> str:
    try:
        judged = read_gates(root)
    except UserError as error:
        return f"No verdict: {error}"
    rows = [(name, str(gate["state"]), str(gate.get("reason") or "")) for name, gate in judged["gates"].items()]
    return "\n".join([f"Verdict: **{judged['verdict']}**", "", *_table(rows)])


def _table(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    yield "| Gate | State | Reason |"
    yield "|---|---|---|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
