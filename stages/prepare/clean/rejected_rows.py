"""The side file of rejected rows: each can be read back byte for byte."""

import base64
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from stages.prepare.clean.rows import Rejected, Row
from stages.records.record import row_line

_LONGEST_DETAIL = 300


def write_rejected(handle: IO[str], source: str, row: Row, rejected: Rejected) -> None:
    """Write one rejected row: its bytes as `raw`, or as `raw_base64` if they are no UTF-8 or over-long.

    `line` is the line on which the row begins; in binary formats the row, with its `group` (Parquet row group,
    Arrow record batch). Of a binary row the bytes are its columns as JSON, or an Arrow stream of this one row
    where JSON cannot say all of it.
    """
    head: dict[str, Any] = {"file": row.file, "line": row.number, "source": source, "reason": rejected.reason}
    if row.group is not None:
        head["group"] = row.group
    head["detail"] = short(rejected.detail)
    if row.long:
        _write_in_pieces(handle, row.raw(), head)
        return
    raw = b"".join(row.raw())
    try:
        head["raw"] = raw.decode("utf-8")
    except UnicodeDecodeError:
        head["raw_base64"] = base64.b64encode(raw).decode("ascii")
    handle.write(row_line(head))


def _write_in_pieces(handle: IO[str], pieces: Iterable[bytes], head: dict[str, Any]) -> None:
    """Write a row that may not fit into memory."""
    handle.write(json.dumps(head, ensure_ascii=False).removesuffix("}") + ', "raw_base64": "')
    for piece in _in_threes(pieces):
        handle.write(base64.b64encode(piece).decode("ascii"))
    handle.write('"}\n')


def _in_threes(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of which all but the last can be joined as base64."""
    rest = b""
    for piece in pieces:
        piece = rest + piece
        whole = len(piece) - len(piece) % 3
        rest = piece[whole:]
        yield piece[:whole]
    yield rest


def short(detail: str) -> str:
    return detail if len(detail) <= _LONGEST_DETAIL else detail[: _LONGEST_DETAIL - 1] + "…"
