"""gates: the verdict that the stage `gates` wrote, as a table."""

from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import read_json
from stages.measure.gates import FAIL, MARGINAL, PASS, worst

FILES = (paths.GATES,)


def read_verdicts(root: Path) -> dict[str, dict[str, Any]]:
    """The gates and the verdict of each metrics file, by its path.

    Raises:
        UserError: when a file is missing or holds no verdict.
    """
    return {path.as_posix(): _read(root / path, path) for path in FILES}


def overall(verdicts: dict[str, dict[str, Any]]) -> str:
    return worst(str(content["verdict"]) for content in verdicts.values())


def require(verdict: str, strict: bool) -> None:
    """Raises Refusal on FAIL, and on MARGINAL when `strict`."""
    if verdict == FAIL:
        raise Refusal("the gates FAIL")
    if verdict == MARGINAL and strict:
        raise Refusal("the gates are MARGINAL, which --strict does not let pass")


def gate_table(verdicts: dict[str, dict[str, Any]]) -> str:
    """All gates in columns, then the verdict."""
    rows = [("gate", "state", "value", "threshold", "reason")]
    rows += [gate_row(name, gate) for content in verdicts.values() for name, gate in content["gates"].items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), f"verdict: {overall(verdicts)}"])


def gate_row(name: str, gate: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """Name, state, value with its interval, threshold and reason as text."""
    value = _number(gate.get("value"))
    if "low" in gate and "high" in gate:
        value += f" ({_number(gate['low'])} to {_number(gate['high'])})"
    sign = ">=" if gate.get("kind") == "minimum" else "<="
    advisory = "" if gate.get("required", True) else " (advisory)"
    threshold = f"{sign} {_number(gate.get('threshold'))}{advisory}"
    return name, str(gate.get("state")), value, threshold, str(gate.get("reason") or "")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "none"


def _read(file: Path, path: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
        verdict, gates = content["verdict"], content["gates"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro` to make it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} holds no verdict and gates; run `dvc repro` to make it anew") from None
    if verdict not in (PASS, MARGINAL, FAIL) or not isinstance(gates, dict):
        raise UserError(f"{path}: verdict {verdict!r} is not PASS, MARGINAL or FAIL; run `dvc repro` to make it anew")
    return {"verdict": verdict, "gates": gates}
