"""The lines of the raw files: found, counted and read with bounded memory, split on line feeds alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.errors import UserError

_CHUNK = 3 << 18  # divisible by three, so that pieces of base64 can be joined
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_NO_DATA = {".gitignore", "README.md"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a raw file, without its line feed.

    `number` counts from 1. `content` is None for a line longer than the limit; `chunks` still reads it.
    """

    path: Path
    number: int
    offset: int
    size: int
    content: bytes | None

    def chunks(self) -> Iterator[bytes]:
        """The line's bytes, in pieces whose length is a multiple of three (but for the last)."""
        with self.path.open("rb") as handle:
            handle.seek(self.offset)
            left = self.size
            while left:
                chunk = handle.read(min(left, _CHUNK))
                yield chunk
                left -= len(chunk)


def raw_files(raw: Path) -> list[Path]:
    """The JSONL file itself, or the JSONL files of a folder in the order of their names.

    Raises:
        UserError: when there is nothing to read, or something that would be left unread.
    """
    if raw.is_file():
        return [raw]
    if not raw.is_dir():
        raise UserError(f"{raw} is missing; put the raw JSONL files there or correct clean.raw in params.yaml")
    files, others = [], []
    for path in sorted(raw.iterdir()):
        if path.is_file() and path.suffix == ".jsonl":
            files.append(path)
        elif path.name not in _NO_DATA and path.suffix != ".dvc":
            others.append(path.name)
    if others:
        raise UserError(
            f"{raw}: cannot read {', '.join(others)}: only files that end in .jsonl are data (README.md, .gitignore "
            "and .dvc files may lie beside them); convert, move or remove the others"
        )
    if not files:
        raise UserError(f"{raw} has no .jsonl file; put one there with a JSON object a line, or correct clean.raw")
    return files


def count_lines(path: Path) -> int:
    """How many lines `read_lines` yields; an empty remainder after the last line feed is none.

    Raises:
        UserError: when the file is UTF-16 or UTF-32, whose line ends are not bytes.
    """
    count, last = 0, b"\n"
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            if handle.tell() == len(chunk) and chunk.startswith(_WIDE_BOMS):
                raise UserError(
                    f"{path} is UTF-16 or UTF-32; convert it to UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > new.jsonl"
                )
            count += chunk.count(b"\n")
            last = chunk[-1:]
    return count + (last != b"\n")


def read_lines(path: Path, max_bytes: int) -> Iterator[Line]:
    """Yield the lines of a file; never more than `max_bytes` of one are held."""
    number = offset = 0
    with path.open("rb") as handle:
        while piece := handle.readline(max_bytes + 1):
            number += 1
            start, offset = offset, offset + len(piece)
            if len(piece) <= max_bytes or piece.endswith(b"\n"):
                content = piece.removesuffix(b"\n")
                yield Line(path, number, start, len(content), content)
                continue
            while not piece.endswith(b"\n") and (piece := handle.readline(_CHUNK)):
                offset += len(piece)
            yield Line(path, number, start, offset - start - piece.endswith(b"\n"), None)
