"""The same rows in every format that the clean stage reads."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

Rows = Sequence[dict[str, Any]]


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def separated(rows: Rows, delimiter: str = ",") -> bytes:
    """CSV; what is no text is written as JSON, as a spreadsheet would hold it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()} for row in rows
    )
    return text.getvalue().encode()


def parquet(rows: Rows, group: int = 3) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=group)
    return sink.getvalue()


def write_all(folder: Path, rows: Rows) -> list[Path]:
    """The rows in every format, each in a file or a saved data set of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "rows.jsonl": jsonl(rows),
        "rows.csv": separated(rows),
        "rows.tsv": separated(rows, "\t"),
        "semicolons.csv": b"\xef\xbb\xbf" + separated(rows, ";"),
        "rows.parquet": parquet(rows),
    }
    files = {**plain}
    files |= {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}
    files |= {f"{name}.zst": zstd.compress(content) for name, content in plain.items()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(list(rows)).save_to_disk(folder / "saved", num_shards=2)
    return [*(folder / name for name in files), folder / "saved"]
