"""The raw data: files found below `clean.raw` and data sets that `clean.sources` names, each with its source."""

import gzip
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from shutil import copyfileobj
from typing import IO, TYPE_CHECKING, Any, Optional, cast

from stages.core.errors import UserError
from stages.core.git import WorkingTree
from stages.params.prepare import Source
from stages.prepare.clean.data_sets import (
    Batch,
    TextFiles,
    count_parquet,
    data_set_batches,
    is_saved,
    open_saved,
    open_source,
    parquet_batches,
    with_class_names,
)
from stages.prepare.clean.rejected_rows import Rejected, Row
from stages.prepare.clean.text_files import Line, Lines, count_lines, csv_rows, json_rows, jsonl_row, read_lines

if TYPE_CHECKING:
    from datasets import Dataset

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".zst")
_NO_DATA = {".gitattributes", ".gitignore", "LICENSE", "README.md", "dataset_dict.json"}
_REPOSITORIES = (".dvc", ".git", ".hg")  # folders that DVC passes over
# What editors, notebooks, file managers and archivers leave behind.
_LEFT_BEHIND = re.compile(
    r"\..*|~.*|.*~|#.*#|__macosx|\$recycle\.bin|thumbs\.db|desktop\.ini|.*\.(?:bak|orig|tmp|swp|swo)", re.IGNORECASE
)
_IN_MEMORY = 1 << 24  # bytes of an unpacked file
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_KNOWN = "files in .jsonl, .csv, .tsv or .parquet, also with .gz or .zst, and data sets saved on disk"

Unparsed = Row | Line | Lines | Batch  # what is cheap to read and to send


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file or an opened data set (`data`) to read: `file` is the path below `clean.raw`, or the data set's name.

    `names` are those behind the numbers of classes, of the text files of a data set.
    """

    path: Path
    file: str
    format: str
    source: str
    shape: str
    data: Optional["Dataset"] = None
    names: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files that DVC hashes for `clean.raw`: those with data, those that are passed over, the bytes of all."""

    data: list[Path]
    passed_over: list[Path]
    size: int

    @property
    def left_behind(self) -> list[str]:
        """What is passed over, but for what is known to lie beside data."""
        return [str(path) for path in self.passed_over if not _is_company(path)]

    def metrics(self) -> dict[str, int]:
        return {"read": len(self.data), "passed_over": len(self.passed_over), "bytes": self.size}


def list_raw(raw: Path) -> Listing:
    """The file itself, or all files below a folder by name: exactly those that DVC hashes; any other is a UserError."""
    if not raw.exists():
        raise UserError(f"{raw} is missing; put the raw files there or correct clean.raw in params.yaml")
    tree = WorkingTree(Path())
    files: list[Path] = []
    passed_over: list[Path] = []
    for path in sorted(_walk(raw)) if raw.is_dir() else [raw]:
        if not str(path).isascii() and os.fsencode(path) != str(path).encode(errors="replace"):
            raise UserError(f"{raw}: the name of {os.fsencode(path)!r} is not UTF-8; rename it")
        if not path.is_file():
            raise UserError(f"{path} leads to no file (a broken link, a loop or a device); remove or mend it")
        is_data = not (_is_company(path) or any(_LEFT_BEHIND.fullmatch(part) for part in path.relative_to(raw).parts))
        if not tree.is_ignored(path.as_posix(), raw.as_posix()):
            (files if is_data else passed_over).append(path)
        elif is_data and _format(path):
            raise UserError(f"{path}: .dvcignore names it, so no hash would cover it; mend that or move the file")
    return Listing(files, passed_over, sum(path.stat().st_size for path in [*files, *passed_over]))


def _walk(raw: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    for folder, folders, names in os.walk(raw, onerror=stop):
        folders[:] = [name for name in folders if name not in _REPOSITORIES]
        for path in (Path(folder, name) for name in folders + names):
            if path.is_dir() and path.is_symlink():
                raise UserError(f"{path} is a link to a folder, which DVC does not follow; copy the folder")
            if path.is_dir() and not any(path.iterdir()):
                raise UserError(f"{raw}: cannot read {path.name}: the folder is empty; fill or remove it")
            if not path.is_dir():
                yield path


def find_files(raw: Path, sources: Mapping[str, Source]) -> list[RawFile]:
    """The files and saved data sets of `clean.raw`, in the order of their names; then the data sets of `sources`.

    Each file belongs to the source whose pattern fits its path; without one, a file or a data set saved on disk is a
    source of its own, named by its path. UserError when something would be left unread, or two patterns fit.
    """
    named = {name: source for name, source in sources.items() if source.dataset}
    claimed = {raw / str(source.dataset) for source in named.values()}
    units: dict[Path, None] = {}
    unread = []
    for path in list_raw(raw).data:
        if claimed & {path, *path.parents}:
            continue
        # Beside the files of a saved data set lie rows of their own, such as those that `append` wrote.
        if _format(path):
            units[path] = None
        elif path.suffix in (".arrow", ".json") and path != raw and is_saved(path.parent):
            units[path.parent] = None
        else:
            unread.append(path.name)
    if unread:
        is_json = any(name.endswith(".json") for name in unread)
        hint = "; of a JSON array make lines: jq -c '.[]' FILE.json > FILE.jsonl" if is_json else ""
        raise UserError(
            f"{raw}: cannot read {', '.join(unread)}: data are {_KNOWN}; convert, move or remove the others, or name "
            f"the folder of a data set in clean.sources{hint}"
        )
    if not units and not named:
        raise UserError(f"{raw} has no data; put {_KNOWN} there, or correct clean.raw")
    files = [_raw_file(raw, unit, sources) for unit in units]
    return files + [file for name, source in named.items() for file in _data_set(raw, name, source)]


def refuse_unused(sources: Mapping[str, Source], files: list[RawFile]) -> None:
    """Raises UserError when a source that the parameters name has no file."""
    for name in sources.keys() - {file.source for file in files}:
        raise UserError(f"clean.sources.{name}: no file fits {sources[name].files!r}; correct or remove it")


def count_rows(file: RawFile, max_bytes: int) -> int:
    """How many rows are in what `read_unparsed` yields."""
    if file.data is not None:
        return len(file.data)
    if file.format in ("csv", "json"):
        return sum(1 for _ in read_unparsed(file, max_bytes))
    with _sound(file), _opened(file) as handle:
        return count_lines(handle) if file.format == "jsonl" else count_parquet(handle)


def read_unparsed(file: RawFile, max_bytes: int) -> Iterator[Unparsed]:
    """All of a file, in its order. Raises UserError when the file is damaged or its text is UTF-16."""
    with _sound(file):
        if file.data is not None:
            yield from data_set_batches(file.data)
            return
        with _opened(file) as handle:
            if file.format == "jsonl":
                yield from read_lines(handle, max_bytes)
            elif file.format == "json":
                yield from json_rows(handle, file.file, max_bytes)
            elif file.format == "csv":  # where a row ends is known when it is parsed
                yield from csv_rows(handle, file.file, max_bytes)
            else:
                yield from parquet_batches(handle, file.file)


def parsed(file: RawFile, unparsed: Unparsed) -> Iterable[Row]:
    if isinstance(unparsed, Batch):
        return unparsed.rows(file.file)
    lines = unparsed if isinstance(unparsed, Lines) else [unparsed]
    rows = (line if isinstance(line, Row) else jsonl_row(file.file, line) for line in lines)
    return (_with_names(row, file) for row in rows) if file.names else rows


def _with_names(row: Row, file: RawFile) -> Row:
    return row if isinstance(row.values, Rejected) else replace(row, values=with_class_names(row.values, file.names))


def _is_company(path: Path) -> bool:
    return path.name in _NO_DATA or path.suffix == ".dvc"


def _format(path: Path) -> str | None:
    return _FORMATS.get((path.with_suffix("") if path.suffix in _COMPRESSED else path).suffix)


def _raw_file(raw: Path, unit: Path, sources: Mapping[str, Source]) -> RawFile:
    name = unit.relative_to(raw if raw != unit else raw.parent).as_posix()
    fitting = [source for source, wanted in sources.items() if wanted.files and fnmatchcase(name, wanted.files)]
    if len(fitting) > 1:
        raise UserError(f"{name} fits clean.sources.{' and clean.sources.'.join(fitting)}; narrow one of the patterns")
    source, shape = (fitting[0], sources[fitting[0]].shape) if fitting else (name, "auto")
    form = _format(unit)
    return RawFile(unit, name, form or "data set", source, shape, None if form else open_saved(unit))


def _data_set(raw: Path, name: str, source: Source) -> list[RawFile]:
    at = ":".join(part for part in (source.dataset, source.config, source.split) if part)
    found = open_source(name, source, raw)
    if isinstance(found, TextFiles):
        files = found.files.items()
        return [RawFile(path, f"{at}:{of}", found.form, name, source.shape, names=found.names) for of, path in files]
    return [RawFile(raw / str(source.dataset), at, "data set", name, source.shape, found)]


@contextmanager
def _opened(file: RawFile) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed; Parquet is read from its end, for which compressed files are unpacked."""
    with _decompressed(file.path) as handle, tempfile.SpooledTemporaryFile(_IN_MEMORY) as unpacked:
        if file.format != "parquet" and cast(Any, handle).peek(2)[:2] in _WIDE_BOMS:
            raise UserError(f"{file.file} is UTF-16 or UTF-32; convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
        if file.format == "parquet" and file.path.suffix in _COMPRESSED:
            copyfileobj(handle, unpacked)
            unpacked.seek(0)
            yield unpacked
        else:
            yield handle


def _decompressed(path: Path) -> IO[bytes]:
    if path.suffix in _COMPRESSED and not path.stat().st_size:
        raise EOFError("it is empty, which no compressed file is")  # gzip takes it for a file without rows
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
    except Exception as error:
        of_a_library = type(error).__module__.partition(".")[0] in ("pyarrow", "backports")
        if not (of_a_library or isinstance(error, EOFError | OSError | zlib.error)):
            raise
        said = str(error) or type(error).__name__
        raise UserError(f"{file.file}: cannot be read ({said}); fetch or make it anew") from None
