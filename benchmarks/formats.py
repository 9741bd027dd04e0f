"""Formats and engines on one hold-out, free and held to the contract: size, exact match, agreement, tokens a second.

    python benchmarks/formats.py PROJECT [--rows 100]

PROJECT has run to the end. Its merged model is written as GGUF of each type and asked through llama.cpp's server; what
transformers gave for the other formats is read from the project. The table goes to benchmarks/results/formats.md.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.files import files_under, read_json
from stages.core.machine import machine_settings
from stages.engines.gguf_export import TYPES, write_gguf
from stages.model.chat import task_chat
from stages.model.loading import load_tokenizer
from stages.params.loader import Params, check_params, read_params
from stages.records.record import read_records, read_rows
from stages.scoring.intervals import proportion_interval
from stages.scoring.rows import score_row
from stages.ship.merge_quantize.served_answers import served_rows
from stages.text.json_schema import Tasks

RESULTS = Path(__file__).resolve().parent / "results" / "formats.md"
HEAD = "| format | engine | decoding | MiB | exact match (95 %) | schema valid | same as adapter | stopped | tokens/s |"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("project", type=Path)
    given.add_argument("--rows", type=int, default=100)
    given.add_argument("--enforce", default="schema", choices=["schema", "labels"])
    options = given.parse_args()
    os.chdir(options.project)
    params = check_params(read_params())
    spent = read_json(paths.ENVIRONMENT / "merge_quantize.json")["generation"]
    lines = [HEAD, "|" + " --- |" * HEAD.count(" |")]
    rows = list(read_rows(paths.ADAPTER_GENERATIONS))[: options.rows]
    lines.append(line("adapter", "transformers", "none", paths.ADAPTER, rows, rows, params, None))
    for name in ("merged", "nf4", "int8"):
        said = list(read_rows(paths.ARTEFACT_GENERATIONS / f"{name}.jsonl"))[: options.rows]
        speed = spent.get(name, {}).get("tokens_per_second")
        lines.append(line(name, "transformers", "none", paths.RELEASE / name, said, rows, params, speed))
    chat = task_chat(load_tokenizer(paths.MERGED), params.task)
    records = read_records(paths.HOLDOUT)[: options.rows]
    for kind in TYPES:
        folder = Path(".tunetrail/benchmark") / kind
        write_gguf(paths.MERGED, folder / f"{kind}.gguf", kind, chat.stop_id)
        for enforce in ("none", options.enforce):
            said, notes = served_rows(folder, "llama.cpp", chat, records, params, enforce)
            speed = notes.get("tokens_per_second")
            lines.append(line(f"gguf {kind}", "llama.cpp", enforce, folder, said, rows, params, speed))
            print(lines[-1], notes, flush=True)
    threads = machine_settings().engine_threads
    note = (
        f"\n{options.rows} rows of the hold-out; one request at a time; threads: {threads}; {os.cpu_count()} cores. "
        "Tokens a second are of answers, prompts included in the time; transformers answers most rows by the "
        "likelihood of their reference, so its figure is of the few that it generates.\n"
    )
    RESULTS.write_text("# Formats and engines\n\nMade by `benchmarks/formats.py`.\n\n" + "\n".join(lines) + "\n" + note)


def line(
    name: str, engine: str, decoding: str, folder: Path, said: Any, adapter: Any, params: Params, speed: float | None
) -> str:
    tasks = Tasks(params.task)
    scores = [score_row(row, tasks) for row in said]
    right, n = sum(one.exact_match for one in scores), len(scores)
    low, high = proportion_interval(right, n, 0.95)
    before = {row["id"]: row["output"] for row in adapter}
    size = sum(file.stat().st_size for file in files_under(folder)) / 2**20
    cells = [name, engine, decoding, f"{size:.1f}", f"{right / n:.3f} ({low:.3f} to {high:.3f})"]
    cells += [f"{sum(one.valid for one in scores) / n:.3f}", f"{sum(r['output'] == before[r['id']] for r in said)}/{n}"]
    cells += [f"{sum(row['stopped'] for row in said)}/{n}", "" if speed is None else f"{speed:.1f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
