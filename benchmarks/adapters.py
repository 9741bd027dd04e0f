"""Several adapters on one base: memory and latency beside one merged model, by llama.cpp and vLLM.

    python benchmarks/adapters.py PROJECT [--rows 60] [--adapters 5] [--engines llama.cpp vllm]

PROJECT has run to the end. Its base is served with so many copies of its adapter, each loaded by itself, and its merged
model by itself; the hold-out's first rows are asked one at a time. The table goes to benchmarks/results/adapters.md.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from stages.core import paths
from stages.engines.engine_server import CHAT, LORA_GGUF, Server, call, held_to, prompt_ids, reply, request, serving
from stages.engines.gguf_export import write_gguf, write_gguf_lora
from stages.model.chat import Chat, task_chat
from stages.model.loading import load_tokenizer
from stages.params.loader import Params, check_params, read_params
from stages.records.record import Record, read_records, read_rows

RESULTS = Path(__file__).resolve().parent / "results" / "adapters.md"
HEAD = "| engine | served | asked | memory, MiB | p50, ms | p95, ms | tokens/s | same as adapter | stopped | up in, s |"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("project", type=Path)
    given.add_argument("--rows", type=int, default=60)
    given.add_argument("--adapters", type=int, default=5)
    given.add_argument("--engines", nargs="+", default=["llama.cpp", "vllm"], choices=["llama.cpp", "vllm"])
    given.add_argument("--output", type=Path, default=RESULTS)
    options = given.parse_args()
    output = options.output.absolute()
    os.chdir(options.project)
    params = check_params(read_params())
    chat, records = task_chat(load_tokenizer(paths.BASE), params.task), read_records(paths.HOLDOUT)[: options.rows]
    lines = [HEAD, "|" + " --- |" * HEAD.count(" |")]
    with tempfile.TemporaryDirectory() as work:
        for engine in options.engines:
            base, merged, adapters = models(engine, chat, Path(work), options.adapters)
            names = [*adapters]
            with serving(merged, engine, name="merged", context=512) as server:
                lines += [row(server, "merged", "it", [server.model], params, chat, records, "none")]
                lines += [
                    row(server, "merged", "it, held to the schema", [server.model], params, chat, records, "schema")
                ]
            with serving(base, engine, name="base", context=512, adapters=adapters) as server:
                served = f"base and {len(names)} adapters"
                lines += [row(server, served, "one of them", names[:1], params, chat, records, "none")]
                lines += [row(server, served, "each in turn", names, params, chat, records, "none")]
    size = sum(file.stat().st_size for file in paths.ADAPTER.iterdir()) / 2**20
    processor = next((one for one in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in one), "")
    note = (
        f"\n{len(records)} rows of the hold-out, one request at a time, after one of each that is not counted; an "
        f"adapter's file has {size:.1f} MiB. Memory is the proportional set size of the engine's processes after the "
        f"requests. Machine: {processor.partition(': ')[2]}, {os.cpu_count()} cores, other work beside it.\n"
    )
    output.write_text(
        "# Adapters on one base\n\nMade by `benchmarks/adapters.py`.\n\n" + "\n".join(lines) + "\n" + note
    )


def models(engine: str, chat: Chat, work: Path, count: int) -> tuple[Path, Path, Mapping[str, Path]]:
    """Base, merged model and adapters as the engine reads them."""
    adapters = {f"adapter-{number}": work / engine / f"adapter-{number}" for number in range(count)}
    for folder in adapters.values():
        shutil.copytree(paths.ADAPTER, folder)
        write_gguf_lora(paths.BASE, paths.ADAPTER, folder / LORA_GGUF)
    if engine == "vllm":
        return paths.BASE.absolute(), paths.MERGED.absolute(), adapters
    for name, folder in (("base", paths.BASE), ("merged", paths.MERGED)):
        write_gguf(folder, work / f"{name}.gguf", "F16", chat.stop_id)
    return work / "base.gguf", work / "merged.gguf", adapters


def row(
    server: Server,
    served: str,
    asked: str,
    names: Sequence[str],
    params: Params,
    chat: Chat,
    records: list[Record],
    enforce: str,
) -> str:
    known = {said["id"]: said["output"] for said in read_rows(paths.ADAPTER_GENERATIONS)}
    seconds, tokens, same, stopped = [], 0, 0, 0
    for number, record in enumerate([*records[: len(names)], *records]):
        messages = chat.messages(record)
        if number < len(names):
            assert prompt_ids(server, messages) == chat.prompt_ids(record)
        held: Any = held_to(enforce, params.task, record.task)
        body = request(replace(server, model=names[number % len(names)]), messages, params.generation, held)
        start = time.perf_counter()
        said = reply(call(server, CHAT, body))
        if number >= len(names):
            seconds.append(time.perf_counter() - start)
            tokens, same, stopped = (
                tokens + said.tokens,
                same + (said.output == known[record.id]),
                stopped + said.stopped,
            )
    assert server.process is not None
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    memory = sum(one.memory_full_info().pss for one in processes) / 2**20
    p50, p95 = (float(np.percentile(seconds, share)) * 1000 for share in (50, 95))
    n = len(records)
    cells = [server.engine, served, asked, f"{memory:.0f}", f"{p50:.0f}", f"{p95:.0f}", f"{tokens / sum(seconds):.1f}"]
    line = "| " + " | ".join([*cells, f"{same}/{n}", f"{stopped}/{n}", f"{server.seconds_to_start:.0f}"]) + " |"
    print(line, flush=True)
    return line


if __name__ == "__main__":
    main()
