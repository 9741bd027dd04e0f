"""The side file of rejected lines: each can be read back byte for byte."""

import base64
import json
from typing import IO, Any

from stages.clean.lines import Line
from stages.clean.rows import Rejected
from stages.records import row_line

_LONGEST_DETAIL = 300


def write_rejected(handle: IO[str], line: Line, rejected: Rejected) -> None:
    """Write one rejected line: its text as `raw`, or as `raw_base64` if it is no UTF-8 or over-long."""
    row: dict[str, Any] = {
        "file": line.path.name,
        "line": line.number,
        "reason": rejected.reason,
        "detail": short(rejected.detail),
    }
    if line.content is None:
        _write_in_pieces(handle, line, row)
        return
    try:
        row["raw"] = line.content.decode("utf-8")
    except UnicodeDecodeError:
        row["raw_base64"] = base64.b64encode(line.content).decode("ascii")
    handle.write(row_line(row))


def _write_in_pieces(handle: IO[str], line: Line, row: dict[str, Any]) -> None:
    """Write a line that may not fit into memory."""
    handle.write(json.dumps(row, ensure_ascii=False).removesuffix("}") + ', "raw_base64": "')
    for chunk in line.chunks():
        handle.write(base64.b64encode(chunk).decode("ascii"))
    handle.write('"}\n')


def short(detail: str) -> str:
    return detail if len(detail) <= _LONGEST_DETAIL else detail[: _LONGEST_DETAIL - 1] + "…"
