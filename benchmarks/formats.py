"""Formats and engines on one hold-out, free and held to the contract: what each is worth and what it takes.

    python benchmarks/formats.py PROJECT [--rows 100] [--engines transformers llama.cpp vllm] [--name sample]

PROJECT has run to the end with train.method lora or qlora. Out of its merged model and adapter all formats are made in
PROJECT/.tunetrail/benchmark, and asked: by transformers in this process, by llama.cpp's server, and by vLLM's where
TUNETRAIL_VLLM_PYTHON names the Python of its environment. The answers are held to the schema or, of a classification
task, to the labels. The table goes to benchmarks/results/formats_NAME.md.
"""

import argparse
import importlib
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from stages.core import paths
from stages.core.files import files_under, remove
from stages.core.machine import machine_settings
from stages.engines.gguf_export import TYPES, write_gguf
from stages.engines.in_process import cost, in_process_rows
from stages.model.chat import Chat, task_chat
from stages.model.loading import Weights, load_tokenizer
from stages.params.loader import Params, check_params, read_params
from stages.records.record import Record, read_records, read_rows
from stages.scoring.intervals import proportion_interval
from stages.scoring.rows import score_row
from stages.ship.merge_quantize.__main__ import calibration_rows, compress, quantise, release_lora
from stages.ship.merge_quantize.served_answers import contracts, served_rows
from stages.text.json_schema import Tasks

RESULTS = Path(__file__).resolve().parent / "results"
HEAD = (
    "| format | engine | decoding | MiB | exact match (95 %) | valid | same as adapter | stopped | tokens/s | load s "
    "| peak MiB |"
)
Asked = tuple[str, Path]  # a format and its folder


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("project", type=Path)
    given.add_argument("--rows", type=int, default=100)
    given.add_argument("--name", default="sample")
    engines = ["transformers", "llama.cpp", "vllm"]
    given.add_argument("--engines", nargs="+", default=engines[:2], choices=engines)
    options = given.parse_args()
    for library in ("transformers.generation", "peft", "bitsandbytes", "compressed_tensors"):
        importlib.import_module(library)  # no part of what it takes to load the first format of each kind
    os.chdir(options.project)
    params = check_params(read_params())
    enforce = "labels" if params.task.kind == "classification" else "schema"
    chat, records = task_chat(load_tokenizer(paths.MERGED), params.task), read_records(paths.HOLDOUT)[: options.rows]
    before = {row["id"]: row["output"] for row in read_rows(paths.ADAPTER_GENERATIONS)}
    lines = [HEAD, "|" + " --- |" * HEAD.count(" |")]
    for engine in options.engines:
        for name, folder in made(engine, params, chat):
            for decoding in ("none", enforce):
                said, took = asked(name, folder, engine, chat, records, params, decoding)
                lines.append(line(f"{name} | {engine} | {decoding}", folder, said, before, params, took))
                print(lines[-1], flush=True)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    threads = machine_settings().engine_threads
    note = (
        f"{len(records)} rows of the hold-out. {platform.machine()}, {os.cpu_count()} cores, {card}; "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}, threads of llama.cpp: {threads}. Tokens a "
        "second are of answers, prompts included in the time: transformers answers the first 8 rows at once, llama.cpp "
        "one after the other, vLLM 32 at once. Load: until the first request can be answered; of a server, its start "
        "included. Peak: of the process that has the model, with its libraries; on a card, memory there is not in it.\n"
    )
    file = RESULTS / f"formats_{options.name}.md"
    head = f"# Formats and engines: {options.name}\n\nMade by `benchmarks/formats.py`.\n\n"
    file.write_text(head + "\n".join(lines) + "\n\n" + note, encoding="utf-8")


def made(engine: str, params: Params, chat: Chat) -> Iterator[Asked]:
    """The formats that this engine serves, made anew, and each kind of those that have kinds."""
    place = Path(".tunetrail/benchmark")
    if engine == "llama.cpp":
        for kind in TYPES:
            remove(place / kind)
            write_gguf(paths.MERGED, place / kind / f"model-{kind}.gguf", kind, chat.stop_id)
            yield f"gguf {kind}", place / kind
        return
    yield "merged", paths.MERGED
    if engine == "transformers":
        release_lora(params.model.source, place / "lora")
        yield "lora", place / "lora"
        quantise(paths.MERGED, place / "nf4", "nf4", params.quantize.nf4, calibration_rows(params, "nf4"))
        yield "nf4", place / "nf4"
        quantise(paths.MERGED, place / "int8", "int8")
        yield "int8", place / "int8"
    for scheme in ("W8A8", "W4A16"):
        compress(paths.MERGED, place / scheme, scheme, calibration_rows(params, "compressed_tensors"))
        yield f"compressed_tensors {scheme}", place / scheme


def asked(
    name: str, folder: Path, engine: str, chat: Chat, records: Sequence[Record], params: Params, enforce: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and what they took, as merge_quantize has them."""
    if engine != "transformers":
        return served_rows(folder, engine, chat, records, params, enforce)
    weights = Weights(paths.BASE, folder) if name == "lora" else Weights(folder)
    held = contracts(records, params, enforce)
    took = cost(weights, chat, records, params.generation, held)
    return in_process_rows(weights, chat, records, params.generation, held, f"{name}, {enforce}"), took


def line(
    head: str,
    folder: Path,
    said: Sequence[dict[str, Any]],
    before: dict[str, str],
    params: Params,
    took: dict[str, Any],
) -> str:
    tasks = Tasks(params.task)
    scores = [score_row(row, tasks) for row in said]
    right, n = sum(one.exact_match for one in scores), len(scores)
    low, high = proportion_interval(right, n, params.scoring.confidence)
    size = sum(file.stat().st_size for file in files_under(folder)) / 2**20
    cells = [head, f"{size:.1f}", f"{right / n:.3f} ({low:.3f} to {high:.3f})"]
    cells += [f"{sum(one.valid for one in scores) / n:.3f}"]
    cells += [f"{sum(row['output'] == before[row['id']] for row in said)}/{n}"]
    cells += [f"{sum(row['stopped'] for row in said)}/{n}"]
    cells += [str(took.get(key, "")) for key in ("tokens_per_second", "seconds_to_load", "peak_memory_mib")]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
