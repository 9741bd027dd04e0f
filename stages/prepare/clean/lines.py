"""The lines of a stream of bytes, split on line feeds alone, with bounded memory."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO

_CHUNK = 1 << 19


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line feed.

    `number` counts from 1. `content` is None for a line longer than the limit, which lies in the file `spool`
    until the next line is asked for.
    """

    number: int
    size: int
    content: bytes | None
    spool: IO[bytes] | None = None

    def pieces(self) -> Iterator[bytes]:
        """The line's bytes."""
        if self.spool is None:
            yield self.content or b""
            return
        self.spool.seek(0)
        while piece := self.spool.read(_CHUNK):
            yield piece


def count_lines(handle: IO[bytes]) -> int:
    """How many lines `read_lines` yields; an empty remainder after the last line feed is none."""
    count, last = 0, b"\n"
    while chunk := handle.read(_CHUNK):
        count += chunk.count(b"\n")
        last = chunk[-1:]
    return count + (last != b"\n")


def read_lines(handle: IO[bytes], max_bytes: int) -> Iterator[Line]:
    """Yield the lines; never more than `max_bytes` of one are held in memory."""
    number = 0
    while piece := handle.readline(max_bytes + 1):
        number += 1
        if len(piece) <= max_bytes or piece.endswith(b"\n"):
            content = piece.removesuffix(b"\n")
            yield Line(number, len(content), content)
            continue
        with closing(tempfile.TemporaryFile()) as spool:
            size = spool.write(piece)
            while not piece.endswith(b"\n") and (piece := handle.readline(_CHUNK)):
                size += spool.write(piece.removesuffix(b"\n"))
            yield Line(number, size, None, spool)
