"""The raw data: files found below `clean.raw` and data sets that `clean.sources` names, each with its source."""

import gzip
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from shutil import copyfileobj
from typing import IO, TYPE_CHECKING, Any, Optional, cast

from stages.core.errors import UserError
from stages.params.clean import Source
from stages.prepare.clean.data_sets import (
    count_parquet,
    data_set_rows,
    is_saved,
    open_saved,
    open_source,
    parquet_rows,
)
from stages.prepare.clean.rejected_rows import Row
from stages.prepare.clean.text_files import count_lines, csv_rows, jsonl_rows

if TYPE_CHECKING:
    from datasets import Dataset

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".zst")
_NO_DATA = {".gitattributes", ".gitignore", "LICENSE", "README.md", "dataset_dict.json"}
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_KNOWN = "files in .jsonl, .csv, .tsv or .parquet, also with .gz or .zst, and data sets saved on disk"


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file or an opened data set (`data`) to read.

    `file` is the path below `clean.raw`, or the data set and its split; `source` the name of its source, `shape` that
    of its rows.
    """

    path: Path
    file: str
    format: str
    source: str
    shape: str
    data: Optional["Dataset"] = None


def find_files(raw: Path, sources: Mapping[str, Source]) -> list[RawFile]:
    """The file itself, or the files of a folder and its folders in the order of their names; then the data sets.

    Each file belongs to the source whose pattern fits its path; without one, a file or a data set saved on disk is a
    source of its own, named by its path.

    Raises:
        UserError: when there is nothing to read, something that would be left unread, or two patterns fit.
    """
    if not raw.exists():
        raise UserError(f"{raw} is missing; put the raw files there or correct clean.raw in params.yaml")
    named = {name: source for name, source in sources.items() if source.dataset}
    claimed = {raw / str(source.dataset) for source in named.values()}
    units, others = list(_units(raw, claimed)), list(_others(raw, claimed))
    if others:
        hint = "; of a JSON array make lines: jq -c '.[]' FILE.json > FILE.jsonl" if _has_json(others) else ""
        raise UserError(
            f"{raw}: cannot read {', '.join(others)}: data are {_KNOWN} (README.md, LICENSE, .gitignore and "
            f".dvc files may lie beside them); convert, move or remove the others, or name the folder of a data set "
            f"in clean.sources{hint}"
        )
    if not units and not named:
        raise UserError(f"{raw} has no data; put {_KNOWN} there, or correct clean.raw")
    files = [_raw_file(raw, unit, sources) for unit in units]
    return files + [_data_set(raw, name, source) for name, source in named.items()]


def refuse_unused(sources: Mapping[str, Source], files: list[RawFile]) -> None:
    """Raises UserError when a source that the parameters name has no file."""
    for name in sources.keys() - {file.source for file in files}:
        raise UserError(f"clean.sources.{name}: no file fits {sources[name].files!r}; correct or remove it")


def count_rows(file: RawFile, max_bytes: int) -> int:
    """How many rows `read_rows` yields."""
    if file.data is not None:
        return len(file.data)
    with _sound(file), _opened(file) as handle:
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
        if file.data is not None:
            yield from data_set_rows(file.data, file.file)
            return
        with _opened(file) as handle:
            if file.format == "jsonl":
                yield from jsonl_rows(handle, file.file, max_bytes)
            elif file.format == "csv":
                yield from csv_rows(handle, file.file, max_bytes)
            else:
                yield from parquet_rows(handle, file.file)


def _units(folder: Path, claimed: Collection[Path]) -> Iterator[Path]:
    """Data files and saved data sets below a folder, or the one that it is itself, but for `claimed` folders."""
    if folder in claimed:
        return
    if folder.is_file():
        yield from [folder] if _format(folder) else []
    elif is_saved(folder):
        yield folder
    else:
        for path in sorted(folder.iterdir()):
            yield from _units(path, claimed)


def _others(raw: Path, claimed: Collection[Path]) -> Iterator[str]:
    """What would stay unread, an empty folder included."""
    if raw in claimed:
        return
    if raw.is_file():
        yield from [] if _format(raw) else [raw.name]
    elif not is_saved(raw):
        for path in sorted(raw.iterdir()):
            if path.is_dir() and not any(path.iterdir()):
                yield path.name
            elif path.name not in _NO_DATA and path.suffix != ".dvc":
                yield from _others(path, claimed)


def _has_json(names: list[str]) -> bool:
    return any(name.endswith(".json") for name in names)


def _format(path: Path) -> str | None:
    return _FORMATS.get(_plain(path).suffix)


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in _COMPRESSED else path


def _raw_file(raw: Path, unit: Path, sources: Mapping[str, Source]) -> RawFile:
    name = unit.relative_to(raw if raw != unit else raw.parent).as_posix()
    fitting = [source for source, wanted in sources.items() if wanted.files and fnmatchcase(name, wanted.files)]
    if len(fitting) > 1:
        raise UserError(f"{name} fits clean.sources.{' and clean.sources.'.join(fitting)}; narrow one of the patterns")
    source, shape = (fitting[0], sources[fitting[0]].shape) if fitting else (name, "auto")
    form = _format(unit)
    return RawFile(unit, name, form or "data set", source, shape, None if form else open_saved(unit))


def _data_set(raw: Path, name: str, source: Source) -> RawFile:
    at = ":".join(part for part in (source.dataset, source.config, source.split) if part)
    return RawFile(raw / str(source.dataset), at, "data set", name, source.shape, open_source(name, source, raw))


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
