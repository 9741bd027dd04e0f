"""Rows made to keep the clean stage busy: twice the text must not take much more than twice the time.

    python benchmarks/hostile_rows.py             rows of 25,000 and 50,000 characters
    python benchmarks/hostile_rows.py 100000      rows of 100,000 and 200,000

Each text repeats a piece at which an operator starts and finds no end. All limits of length are off, so that every
operator sees all of it; with the limits of params.yaml such rows are rejected before. The time is that of a
processor for one row, from its bytes to a record or a reason; `x` is how often the longer takes the shorter one's.
"""

import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stages.core.yaml_reader import load_yaml
from stages.params.prepare import Clean
from stages.params.task import Task
from stages.prepare.clean.cleaning import Kept, Rules, clean_row
from stages.prepare.clean.sources import RawFile
from stages.prepare.clean.text_files import csv_rows, jsonl_row, read_lines

ROOT = Path(__file__).parents[1]
KEY = "-----BEGIN " + "PRIVATE KEY-----"
LIMITS = ("max_line_bytes", "max_prompt_characters", "max_completion_characters")
PIECES = {
    "private keys without end": KEY,
    "private keys of one line": KEY + "A" * 40 + " ",
    "comments without end": "<!--",
    "scripts without end": "<script>",
    "fences of code": "```",
    "half tags": "<b ",
    "tags in pairs": "<b></b>",
    "references": "<p>&amp;lt;",
    "spaces and letters": " " * 50 + "x",
    "joiners": "\u200d",
    "combining marks": "\u0301",
    "mojibake": "Ã©",
    "addresses": "a@b.",
    "digits": "1 ",
    "account numbers": "DE89 ",
    "telephones": "(212) ",
    "network addresses": "1.1.1.1.",
    "tokens": "eyJaaaaaaaaaaa.",
    "one long word": "x",
}
CSV = {
    "a quote a line": b'"open\n',
    "quotes inside": b'"open\nx"y\n',
    "quotes in pairs": b'"x"y\n',
    "one column": b"\n",
}


def rules(folder: Path = ROOT) -> Rules:
    params = load_yaml((folder / "params.yaml").read_text(encoding="utf-8"))
    clean = {**params["clean"], **dict.fromkeys(LIMITS, 10**9), "ignore_columns": ["*"], "max_repetition": 1.0}
    task = {**params["task"], "schema_file": str(folder / "data/schema.json"), "kind": "text"}
    return Rules.of(Clean(**clean), Task(**task))


def rows(length: int) -> dict[str, dict[str, Any]]:
    texts = {name: (piece * (length // len(piece) + 1))[:length] for name, piece in PIECES.items()}
    found = {name: {"prompt": text, "completion": "yes"} for name, text in texts.items()}
    found |= {f"answer: {name}": {"prompt": "Why?", "completion": text} for name, text in list(texts.items())[:4]}
    pair = {"prompt": "Why?", "completion": "yes"}
    turns = [{"role": role, "content": "a", "x": 1} for _ in range(length // 60) for role in ("user", "assistant")]
    number = "4111111111111111"
    many = " ".join(f"{number[:-1]} jane{n}@example.com" for n in range(length // 40))
    return found | {
        "columns": pair | {f"column {n}": n for n in range(length // 15)},
        "turns": {"messages": turns},
        "a label": pair | {"label": KEY * (length // len(KEY))},
        "JSON: keys": pair | {"completion": json.dumps({f"key {n}": n for n in range(length // 15)})},
        "JSON: strings": pair | {"completion": json.dumps(["a@b.c"] * (length // 9))},
        "masked values": {"prompt": many, "completion": f"{number[1:]} " * (length // 17)},
    }


def one_row(row: dict[str, Any], of: Rules) -> str:
    (line,) = read_lines(io.BytesIO(json.dumps(row).encode()), 10**9)
    outcome = clean_row(
        jsonl_row("rows.jsonl", line), RawFile(Path("rows.jsonl"), "rows.jsonl", "jsonl", "mail", "auto"), of
    )
    return "kept" if isinstance(outcome, Kept) else outcome.reason


def csv_file(piece: bytes, length: int) -> str:
    content = io.BytesIO(b"prompt,completion\n" + piece * (length // len(piece)))
    return f"{sum(1 for _ in csv_rows(content, 'rows.csv', 10**9)):,} rows"


def report(name: str, *works: Callable[[], str]) -> None:
    times, outcome = [], ""
    for work in works:
        start = time.process_time()
        outcome = work()
        times.append(time.process_time() - start)
    print(
        f"| {name} | {times[0]:.3f} | {times[1]:.3f} | {times[1] / max(times[0], 0.001):.1f} | {outcome} |", flush=True
    )


def main() -> None:
    short = int(sys.argv[1]) if sys.argv[1:] else 25_000
    of, longer = rules(), rows(2 * short)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(
        f"| row | s for {short:,} characters | s for {2 * short:,} | x | outcome |\n| --- | ---: | ---: | ---: | --- |"
    )
    for name, row in rows(short).items():
        report(name, partial(one_row, row, of), partial(one_row, longer[name], of))
    for name, piece in CSV.items():
        report(f"CSV: {name}", partial(csv_file, piece, short), partial(csv_file, piece, 2 * short))


if __name__ == "__main__":
    main()
