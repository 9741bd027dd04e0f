"""Rows of Parquet files and of data sets that the `datasets` library opens: saved on disk, cloned, or on the hub."""

import atexit
import io
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from stages.core.errors import UserError, names
from stages.params.prepare import Source
from stages.prepare.clean.rejected_rows import Rejected, Row

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

_ROWS = 256  # as Python objects at once
_BUFFER = 1 << 20
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_DATA = re.compile(r"\.(jsonl|ndjson|csv|tsv|parquet)(\.gz|\.zst)?$")
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
_TEXT = ("csv", "json")
# What a README may say of text files: which they are, and what stands between columns, which is found.
_FILES = {"name", "version", "data_dir", "data_files", "description", "sep", "delimiter"}
_SAVED = ("state.json", "dataset_dict.json")  # mark a folder that save_to_disk made


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows as Arrow has them, before they are Python objects; `before` is how many rows come before them."""

    table: Any
    names: dict[str, list[str]]  # behind the numbers of ClassLabel columns
    before: int

    def rows(self, file: str) -> Iterator[Row]:
        for index, (values, said) in enumerate(_values(self.table)):
            named = with_class_names(values, self.names) if isinstance(values, dict) else values
            yield Row(file, self.before + index + 1, named, partial(_raw, self.table, index, said))

    def __reduce__(self) -> tuple[Callable[..., "Batch"], tuple[Any, ...]]:
        # Without this, the table would take along all that it is a part of. `datasets` adds types to those of Arrow.
        return _batch, (_stream(self.table), self.names, self.before, "datasets" in sys.modules)


def _batch(stream: bytes, names: dict[str, list[str]], before: int, with_datasets: bool) -> Batch:
    import pyarrow as pa

    if with_datasets:
        import_module("datasets")
    return Batch(pa.ipc.open_stream(stream).read_all(), names, before)


class TextFiles(NamedTuple):
    """The text files of a split, by their names in the data set, and the names behind the numbers of classes."""

    form: str
    files: dict[str, Path]
    names: dict[str, list[str]]


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` made this folder, of one split."""
    return (folder / _SAVED[0]).is_file()


def open_source(name: str, source: Source, raw: Path) -> "Dataset | TextFiles":
    """The split that `clean.sources.NAME` names: of the hub at a commit, or of a folder below `clean.raw`."""
    # Late: takes seconds, and most inputs are text.
    from datasets import disable_progress_bars, load_dataset, load_dataset_builder

    disable_progress_bars()
    at, folder = str(source.dataset), raw / str(source.dataset)
    pinned = _PINNED.fullmatch(at)
    if not pinned and (not folder.is_dir() or {"..", "/"} & {*Path(at).parts}):
        raise UserError(
            f"clean.sources.{name}: {at!r} is no folder below {raw} and not OWNER/NAME@COMMIT with all 40 hex digits "
            "of the commit"
        )
    if not pinned and any((folder / mark).is_file() for mark in _SAVED):
        return open_saved(folder if is_saved(folder) else folder / source.split)
    try:
        # A folder's files can change under one name, so what is made of them is not kept.
        atexit.register(shutil.rmtree, cache := tempfile.mkdtemp(), ignore_errors=True)
        found: dict[str, Any] = {"revision": pinned[2]} if pinned else {"cache_dir": cache}
        where = pinned[1] if pinned else str(folder), source.config
        builder = load_dataset_builder(*where, **found)
        if not pinned and builder.config.name == "default":  # of several formats it takes one, and of names some
            read = {Path(place).resolve() for places in builder.config.data_files.values() for place in places}
            left = [path.name for path in folder.rglob("*") if _DATA.search(path.name) and path.resolve() not in read]
            if left:
                print(f"clean: {at}: passed over, for no split has them: {names(sorted(left))}", file=sys.stderr)
        if builder.name in _TEXT:  # guessed types: 007 is 7, a date a time, 1 beside 1.5 is 1.0, and NA is nothing
            return _text_files(builder, source.split, pinned[2] if pinned else str(folder), bool(pinned))
        return load_dataset(*where, split=source.split, **found)
    except Exception as error:  # of many libraries, without a common class
        raise UserError(
            f"clean.sources.{name}: {at} cannot be opened ({error.__cause__ or error}); check its split and config, of "
            "a clone `git lfs pull`"
        ) from None


def _text_files(builder: "DatasetBuilder", split: str, root: str, fetch: bool) -> TextFiles:
    """What the library would read. Raises ValueError where it would not read it as it stands."""
    from datasets import DownloadManager

    said, plain = builder.config, type(builder.config)()
    if odd := [key for key in vars(plain) if key not in _FILES and getattr(said, key) != getattr(plain, key)]:
        raise ValueError(f"its README sets {', '.join(odd)}; take its files below clean.raw as they should be read")
    if split not in said.data_files:
        raise ValueError(f'Unknown split "{split}". Should be one of {[*map(str, said.data_files)]}')
    loader, files = DownloadManager(), dict[str, Path]()
    for place in said.data_files[split]:
        name = str(place).partition(f"{root}/")[2] or str(place)
        paths = [*loader.iter_files(loader.download_and_extract(place))] if fetch else [place]
        of_archive = (f"{name}/{number}" for number in range(1, len(paths) + 1))
        files |= zip([name] if len(paths) == 1 else of_archive, map(Path, paths), strict=True)
    return TextFiles(builder.name, files, _class_names(builder.info.features or {}))


def open_saved(folder: Path) -> "Dataset":
    """A data set of one split that `save_to_disk` wrote. Raises UserError when it is damaged."""
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except Exception as error:  # as above
        raise UserError(f"{folder} has a {_SAVED[0]}, but is no whole saved data set ({error})") from None


def data_set_batches(data: "Dataset") -> Iterator[Batch]:
    names = _class_names(data.features)
    number = 0
    for table in data.with_format("arrow").iter(_ROWS):
        yield Batch(table, names, number)
        number += table.num_rows


def parquet_batches(handle: IO[bytes], file: str) -> Iterator[Batch]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(handle, buffer_size=_BUFFER, pre_buffer=False)
    schema = parquet.schema_arrow
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise UserError(f"{file} has the column {twice[0]!r} twice; rename one")
    names: dict[str, list[str]] = {}
    if b"huggingface" in (schema.metadata or {}):  # written by the library, with the names of its classes
        from datasets import Features

        names = _class_names(Features.from_arrow_schema(schema))
    number = 0
    for group in range(parquet.num_row_groups):  # one after the other, so that one is in memory
        for batch in parquet.iter_batches(_ROWS, row_groups=[group], use_threads=False):
            yield Batch(batch, names, number)
            number += batch.num_rows


def count_parquet(handle: IO[bytes]) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(handle).metadata.num_rows)


def _class_names(features: Any) -> dict[str, list[str]]:
    """The names behind the numbers of ClassLabel columns."""
    from datasets import ClassLabel

    return {column: feature.names for column, feature in features.items() if isinstance(feature, ClassLabel)}


def with_class_names(values: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """The values with class numbers, also those of CSV, as names; -1 stands for no class."""
    said = {column: str(values[column]) for column in names if column in values and values[column] not in names[column]}
    given = {column: int(text) for column, text in said.items() if _INTEGER.fullmatch(text)}
    return values | {
        column: names[column][number] if 0 <= number < len(names[column]) else None for column, number in given.items()
    }


def _values(batch: Any) -> Iterator[tuple[dict[str, Any] | Rejected, Any]]:
    """Each row's values, and those again if JSON may say all of them."""
    try:
        yield from ((values, values) for values in batch.to_pylist())
        return
    except Exception:  # of many libraries: one value spoils the whole list
        pass
    for index in range(batch.num_rows):
        try:
            yield {name: _value(name, batch.column(name)[index]) for name in batch.schema.names}, None
        except Rejected as rejected:
            yield rejected, None


def _value(column: str, scalar: Any) -> Any:
    """A value, or its number and type as text where it is a time that Python cannot hold or of an unknown zone."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise Rejected("not_utf8", f"a text holds byte 0x{byte:02x}, which is not UTF-8") from None
    except Exception as error:
        if isinstance(number := getattr(scalar, "value", None), int):
            return f"{number} {scalar.type}"
        raise Rejected(
            "unreadable_value", f"{column!r} holds what Python cannot ({error or type(error).__name__})"
        ) from None


def _raw(batch: Any, index: int, values: dict[str, Any] | None) -> bytes:
    """The row as JSON where that says all of it, else as an Arrow stream of one row."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        if values is not None and json.loads(text) == values:
            return text.encode()
    except (TypeError, ValueError):
        pass
    return _stream(batch.slice(index, 1))


def _stream(table: Any) -> bytes:
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write(table)
    return sink.getvalue()
