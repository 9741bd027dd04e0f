"""The raw files: found below `clean.raw`, each with its source, counted and read whatever their format."""

import gzip
import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any, cast

from stages.core.errors import UserError
from stages.params import Source
from stages.prepare.clean.arrow_files import arrow_rows, count_arrow, count_parquet, parquet_rows
from stages.prepare.clean.csv_files import csv_rows
from stages.prepare.clean.jsonl import jsonl_rows
from stages.prepare.clean.lines import count_lines
from stages.prepare.clean.rows import Row

_TEXT = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
_FORMATS = _TEXT | {".parquet": "parquet"}
_COMPRESSED = (".gz", ".zst")
_SAVED = "state.json"  # marks a folder that the `datasets` library saved with save_to_disk
_NO_DATA = {".gitattributes", ".gitignore", "LICENSE", "README.md", "dataset_dict.json"}
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_KNOWN = "files in .jsonl, .csv, .tsv or .parquet, also with .gz or .zst, and data sets saved on disk"


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file to read. `file` is its path below `clean.raw`, `source` the name of its source, `shape` of its rows."""

    path: Path
    file: str
    format: str
    source: str
    shape: str


def find_files(raw: Path, sources: Mapping[str, Source]) -> list[RawFile]:
    """The file itself, or the files of a folder and its folders in the order of their names.

    Each belongs to the source whose pattern fits its path; without one, a file or a data set saved on disk is a
    source of its own, named by its path.

    Raises:
        UserError: when there is nothing to read, something that would be left unread, or two patterns fit.
    """
    if not raw.exists():
        raise UserError(f"{raw} is missing; put the raw files there or correct clean.raw in params.yaml")
    units, others = list(_units(raw)), list(_others(raw))
    if others:
        hint = "; of a JSON array make lines: jq -c '.[]' FILE.json > FILE.jsonl" if _has_json(others) else ""
        raise UserError(
            f"{raw}: cannot read {', '.join(others)}: data are {_KNOWN} (README.md, LICENSE, .gitignore and "
            f".dvc files may lie beside them); convert, move or remove the others{hint}"
        )
    if not units:
        raise UserError(f"{raw} has no data; put {_KNOWN} there, or correct clean.raw")
    return [file for unit in units for file in _files(raw, unit, sources)]


def refuse_unused(sources: Mapping[str, Source], files: list[RawFile]) -> None:
    """Raises UserError when a source that the parameters name has no file."""
    for name in sources.keys() - {file.source for file in files}:
        raise UserError(f"clean.sources.{name}: no file fits {sources[name].files!r}; correct or remove it")


def count_rows(file: RawFile, max_bytes: int) -> int:
    """How many rows `read_rows` yields."""
    with _sound(file):
        if file.format == "arrow":
            return count_arrow(file.path)
        with _opened(file) as handle:
            if file.format == "jsonl":
                return count_lines(handle)
            if file.format == "csv":
                return sum(1 for _ in csv_rows(handle, file.file, max_bytes))
            return count_parquet(handle)


def read_rows(file: RawFile, max_bytes: int) -> Iterator[Row]:
    """Yield every row of a file, in its order.

    Raises:
        UserError: when the file is damaged or cut off, or its text is UTF-16 or UTF-32, whose lines are no lines
            of bytes.
    """
    with _sound(file):
        if file.format == "arrow":
            yield from arrow_rows(file.path, file.file)
            return
        with _opened(file) as handle:
            if file.format == "jsonl":
                yield from jsonl_rows(handle, file.file, max_bytes)
            elif file.format == "csv":
                yield from csv_rows(handle, file.file, max_bytes)
            else:
                yield from parquet_rows(handle, file.file)


def _units(folder: Path) -> Iterator[Path]:
    """Data files and saved data sets below a folder, or the one that it is itself."""
    if folder.is_file():
        yield from [folder] if _format(folder) else []
    elif (folder / _SAVED).is_file():
        yield folder
    else:
        for path in sorted(folder.iterdir()):
            yield from _units(path)


def _others(raw: Path) -> Iterator[str]:
    """What would stay unread, an empty folder included."""
    if raw.is_file():
        yield from [] if _format(raw) else [raw.name]
    elif not (raw / _SAVED).is_file():
        for path in sorted(raw.iterdir()):
            if path.is_dir() and not any(path.iterdir()):
                yield path.name
            elif path.name not in _NO_DATA and path.suffix != ".dvc":
                yield from _others(path)


def _has_json(names: list[str]) -> bool:
    return any(name.endswith(".json") for name in names)


def _format(path: Path) -> str | None:
    return _FORMATS.get(_plain(path).suffix)


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in _COMPRESSED else path


def _files(raw: Path, unit: Path, sources: Mapping[str, Source]) -> Iterator[RawFile]:
    top = raw if raw != unit else raw.parent
    name = unit.relative_to(top).as_posix()
    fitting = [source for source, wanted in sources.items() if fnmatchcase(name, wanted.files)]
    if len(fitting) > 1:
        raise UserError(f"{name} fits clean.sources.{' and clean.sources.'.join(fitting)}; narrow one of the patterns")
    source, shape = (fitting[0], sources[fitting[0]].shape) if fitting else (name, "auto")
    if form := _format(unit):
        yield RawFile(unit, name, form, source, shape)
        return
    for path in _saved_files(unit):
        yield RawFile(path, path.relative_to(top).as_posix(), "arrow", source, shape)


def _saved_files(folder: Path) -> list[Path]:
    state = folder / _SAVED
    try:
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state} does not list the files of a saved data set ({error!r}); save it anew") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which its {_SAVED} lists; save it anew")
    return [folder / name for name in names]


@contextmanager
def _opened(file: RawFile) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed; Parquet is read from its end, for which compressed files are unpacked."""
    with _decompressed(file.path) as handle:
        if file.format != "parquet":
            if cast(Any, handle).peek(2)[:2] in _WIDE_BOMS:
                raise UserError(
                    f"{file.file} is UTF-16 or UTF-32; convert it to UTF-8: iconv -f UTF-16 -t UTF-8 "
                    f"{file.path.name} > new{_plain(file.path).suffix}"
                )
            yield handle
        elif file.path.suffix not in _COMPRESSED:
            yield handle
        else:
            with tempfile.TemporaryFile() as unpacked:
                copyfileobj(handle, unpacked)
                unpacked.seek(0)
                yield unpacked


def _decompressed(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix == ".zst":
        from backports import zstd

        return cast(IO[bytes], zstd.open(path))
    return path.open("rb")


@contextmanager
def _sound(file: RawFile) -> Iterator[None]:
    """Turn what the libraries raise for a damaged file into a sentence. All say "truncated" in their own way."""
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(file, error) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("pyarrow", "backports"):
            raise
        raise _damaged(file, error) from None


def _damaged(file: RawFile, error: Exception) -> UserError:
    return UserError(f"{file.file}: cannot be read ({str(error) or type(error).__name__}); fetch or make it anew")
