"""Rows of Parquet files and of the Arrow files of a Hugging Face data set saved on disk."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from stages.core.errors import UserError
from stages.prepare.clean.rows import Rejected, Row

_ROWS = 256  # as Python objects at once
_BUFFER = 1 << 20


def parquet_rows(handle: IO[bytes], file: str) -> Iterator[Row]:
    import pyarrow.parquet as pq  # late, as below: most inputs are text

    parquet = pq.ParquetFile(handle, buffer_size=_BUFFER, pre_buffer=False)
    names = _class_names(parquet.schema_arrow, file)
    number = 0
    for group in range(parquet.num_row_groups):
        for batch in parquet.iter_batches(_ROWS, row_groups=[group], use_threads=False):
            yield from _batch_rows(batch, names, file, number, group)
            number += batch.num_rows


def count_parquet(handle: IO[bytes]) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(handle).metadata.num_rows)


def arrow_rows(path: Path, file: str) -> Iterator[Row]:
    import pyarrow as pa

    with pa.OSFile(str(path)) as handle, pa.ipc.open_stream(handle) as stream:
        names = _class_names(stream.schema, file)
        number = 0
        for group, batch in enumerate(stream):
            for start in range(0, batch.num_rows, _ROWS):
                part = batch.slice(start, _ROWS)
                yield from _batch_rows(part, names, file, number, group)
                number += part.num_rows


def count_arrow(path: Path) -> int:
    import pyarrow as pa

    with pa.memory_map(str(path)) as handle, pa.ipc.open_stream(handle) as stream:
        return sum(batch.num_rows for batch in stream)


def _class_names(schema: Any, file: str) -> dict[str, list[str]]:
    """The names behind the numbers of ClassLabel columns, as the `datasets` library keeps them in the schema."""
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise UserError(f"{file} has the column {twice[0]!r} twice; rename one")
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {column: feature["names"] for column, feature in features.items() if "names" in feature}
    except (KeyError, ValueError, TypeError, AttributeError):  # not written by that library, or in a way to come
        return {}


def _batch_rows(batch: Any, names: dict[str, list[str]], file: str, before: int, group: int) -> Iterator[Row]:
    for index, values in enumerate(_values(batch)):
        raw = partial(_raw, batch, index, values)
        named = _named(values, names) if isinstance(values, dict) else values
        yield Row(file, before + index + 1, named, raw, group=group)


def _named(values: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """The values with class numbers as names; -1 stands for no class."""
    given = {column: values[column] for column in names if isinstance(values.get(column), int)}
    return values | {
        column: names[column][number] if 0 <= number < len(names[column]) else None for column, number in given.items()
    }


def _values(batch: Any) -> Iterator[dict[str, Any] | Rejected]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # one text spoils the whole list
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield Rejected("not_utf8", f"a text holds byte 0x{error.object[error.start]:02x}, which is not UTF-8")


def _raw(batch: Any, index: int, values: dict[str, Any] | Rejected) -> Iterator[bytes]:
    """The row as JSON where that says all of it, else as an Arrow stream of one row."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        if json.loads(text) == values:
            yield text.encode()
            return
    except (TypeError, ValueError):
        pass
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch.slice(index, 1))
    yield sink.getvalue()
