"""Cleaning a million rows: how long it takes, and that its memory does not grow with the rows.

    python benchmarks/clean.py                    10,000, 100,000 and 1,000,000 rows of JSONL; 1,000,000 of the others
    python benchmarks/clean.py 10000 100000       other numbers of rows

Made-up rows with the lengths of instruction data: prompts log-normal with median 200 characters, completions that
are JSON for the sample's schema; of 100 rows two hold markup, one wrong encoding, three personal data, one is cut
off. Time and peak resident memory are those of a whole `python -m stages.prepare.clean` with the sample's parameters.
"""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
PIECE = 10_000  # rows written at once
WORDS = [
    "".join(random.Random(number).choices("aeioulnrstmdpkbgv", k=2 + number % 9)).capitalize() for number in range(2000)
]
COMPLETION = '{"intent": "tracking", "product": "lamp", "order": null, "urgent": false}'
DIRT: list[Callable[[str], str]] = [
    lambda text: f"<p>{text}</p><br><b>Thanks</b> &amp; bye",
    lambda text: f"<div>{text}</div>",
    lambda text: text + " â€™ CafÃ©",
    lambda text: text + " Write to jane.doe@example.com.",
    lambda text: text + " Call +1 202-555-0143.",
    lambda text: text + " From 192.0.2.44.",
]


def prompts(rows: int) -> Iterator[str]:
    draw = random.Random(17)
    for number in range(rows):
        length = int(200 * 2.718 ** draw.gauss(0, 0.6))
        text = " ".join(draw.choices(WORDS, k=max(2, length // 8)))[:1900]
        dirt = number % 100
        yield DIRT[dirt](text) if dirt < len(DIRT) else text


def write_lines(file: Path, rows: int) -> None:
    with gzip.open(file, "wb", 1) if file.suffix == ".gz" else file.open("wb") as handle:
        for number, prompt in enumerate(prompts(rows)):
            line = json.dumps({"prompt": prompt, "completion": COMPLETION, "label": "tracking"}, ensure_ascii=False)
            handle.write((line[:-9] if number % 100 == 99 else line).encode() + b"\n")


def write_csv(file: Path, rows: int) -> None:
    with file.open("w", encoding="utf-8", newline="") as handle:
        handle.write("prompt,completion,label\r\n")
        completion = COMPLETION.replace('"', '""')
        for number, prompt in enumerate(prompts(rows)):
            handle.write(f'"{prompt}"' + (f',"{completion}",tracking\r\n' if number % 100 != 99 else "\r\n"))


def write_parquet(file: Path, rows: int) -> None:
    schema = pa.schema({name: pa.string() for name in ("prompt", "completion", "label")})
    found = prompts(rows)
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 10 * PIECE):
            texts = [next(found) for _ in range(min(10 * PIECE, rows - start))]
            answers = [COMPLETION if n % 100 != 99 else None for n in range(len(texts))]
            writer.write_table(pa.table([texts, answers, ["tracking"] * len(texts)], schema=schema))


FORMATS: dict[str, Callable[[Path, int], None]] = {
    "jsonl": write_lines,
    "jsonl.gz": write_lines,
    "csv": write_csv,
    "parquet": write_parquet,
}


def clean(folder: Path) -> tuple[float, float, float, dict[str, int]]:
    """Seconds by the clock and of a processor, peak MiB, and the counts of rows of one run of the stage."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.prepare.clean"], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the stage failed in {folder}")
    counts: dict[str, int] = json.loads((folder / "metrics" / "clean.json").read_text(encoding="utf-8"))["rows"]
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, counts


def measure(form: str, rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("params.yaml", "data/schema.json"):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
        (folder / "data" / "raw").mkdir()
        raw = folder / "data" / "raw" / f"rows.{form}"
        FORMATS[form](raw, rows)
        seconds, busy, peak, counts = clean(folder)
        size = raw.stat().st_size / 2**20
        print(
            f"| {form:<8} | {rows:>9,} | {size:>6.0f} | {seconds:>7.1f} | {busy:>7.1f} | {1e6 * busy / rows:>6.0f} "
            f"| {peak:>8.0f} | {counts['kept']:>7} | {counts['rejected']:>8} |",
            flush=True,
        )


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [10_000, 100_000, 1_000_000]
    print("| format   |      rows |    MiB | seconds | CPU s   | µs/row | peak MiB |    kept | rejected |")
    print("|----------|-----------|--------|---------|---------|----------|---------|----------|")
    for size in sizes:
        measure("jsonl", size)
    for form in list(FORMATS)[1:]:
        measure(form, sizes[-1])


if __name__ == "__main__":
    main()
