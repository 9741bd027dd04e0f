"""Training on a CUDA card: what each setting gains, time to an adapter, memory, and the price of determinism.

    python benchmarks/gpu_train.py ladder jobs memory determinism        the tables named, or all of them
    python benchmarks/gpu_train.py small                                 a 135M model on short pairs, 64 to a step
    python benchmarks/gpu_train.py devices                               one card against all of this machine
    PEERS=FOLDER python benchmarks/gpu_train.py peers_llama peers_gemma  Unsloth and TRL, where installed, beside ours

Random weights of the Llama-3.2-1B, Gemma-3-1B and Llama-3.1-8B architectures; LoRA of rank 16 on all seven
projections; 2,000 pairs whose lengths are log-normal with median 176 and at most 1,024 tokens, half of each the
completion; 16 pairs to an optimiser step. Speed is in tokens of the pairs a second, padding not counted. Each
measurement is a process of its own.
"""

import gc
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from dvc.utils.serialize import dumps_yaml
from gpu_train_peers import CONTENDERS, contend
from random_models import LONGEST, examples, lengths, random_model, save_model, write_case
from workers import Table, Workers, machine

from stages.core.yaml_reader import load_yaml
from stages.model.chat import make_chat
from stages.params.model import Train
from stages.records.record import make_record, write_records
from stages.tune.train.callbacks import Progress
from stages.tune.train.engine import build_trainer
from stages.tune.train.examples import Examples
from tests.tiny_model import tiny_tokenizer

ROOT = Path(__file__).parents[1]
BATCH = 16
ONE_BILLION = ("Llama-3.2-1B", "Gemma-3-1B")
LADDER: dict[str, dict[str, Any]] = {
    "TRL, 4 rows at a time": {"engine": "trl", "micro_batch_tokens": 4 * LONGEST},
    "TRL, as much as fits": {"engine": "trl"},
    "fused, launched kernel by kernel": {"compile": "none"},
    "fused, CUDA graphs": {"compile": "graphs"},
}


def settings(**changes: Any) -> Train:
    """The train section of params.yaml with the guides' recipe."""
    values = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))["train"]
    recipe = {
        "rank": 16,
        "layers_to_transform": None,
        "learning_rate": 2e-4,
        "epochs": 3,
        "batch_size": BATCH,
        "max_tokens": LONGEST,
        "early_stopping_patience": None,
        "evaluate_every": 1_000_000,
    }
    return Train(**(values | recipe | changes))


def train_steps(architecture: str, steps: int, method: str = "lora", **speed: Any) -> dict[str, Any]:
    train = settings(method=method)
    return train_model(random_model(architecture, train), train, steps, lengths(), **speed)


def trainer_of(model: Any, train: Train, rows: Examples, folder: str, engine: str, **speed: Any) -> Any:
    """The stage's own trainer of an engine; `speed` are machine settings."""
    os.environ |= {f"TUNETRAIL_{name.upper()}": str(value) for name, value in speed.items()}
    return build_trainer(engine, model, train, 1, tiny_tokenizer(), rows, Examples([], []), Path(folder), [Progress()])


def train_model(
    model: Any, train: Train, steps: int, sizes: list[int], engine: str = "fused", **speed: Any
) -> dict[str, Any]:
    """Some optimiser steps of the stage's own trainer; speed is that of the second half."""
    torch.cuda.reset_peak_memory_stats()
    made = examples(model.config.vocab_size, sizes)
    with tempfile.TemporaryDirectory() as folder:
        one = trainer_of(model, train, made, folder, engine, **speed)
        one.args.max_steps = steps
        progress = next(c for c in one.callback_handler.callbacks if isinstance(c, Progress))
        start = time.perf_counter()
        one.train()
        torch.cuda.synchronize()
    rate = progress.steps_per_second()
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    norms = [entry["grad_norm"] for entry in one.state.log_history if "grad_norm" in entry]
    return {
        "tokens_per_second": round(rate * sum(sizes) / len(sizes) * train.batch_size) if rate else None,
        "seconds": round(time.perf_counter() - start, 1),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "finite": all(math.isfinite(value) for value in losses + norms),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "plan": {name: value for name, value in one.plan.described().items() if name != "why"},
        "digest": digest(model),
    }


def digest(model: Any) -> str:
    trained = [p.detach().float().cpu().numpy().tobytes() for p in model.parameters() if p.requires_grad]
    return hashlib.sha256(b"".join(trained)).hexdigest()[:12]


def profile(architecture: str, pairs: int = BATCH, size: int = 230, rank: int = 16, **speed: Any) -> dict[str, Any]:
    """Where the card's time goes: milliseconds a step by kernel, for batches of `pairs` pairs of one size."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    train = settings(batch_size=pairs, rank=rank)
    model = random_model(architecture, train)
    made = examples(model.config.vocab_size, [size] * 10 * pairs)
    with tempfile.TemporaryDirectory() as folder:
        one = trainer_of(model, train, made, folder, "fused", **speed)
        one.training_step(model, one.rows[:pairs])
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            one.training_step(model, one.rows[:pairs])
        torch.cuda.synchronize()
        step = (time.perf_counter() - start) * 100
        with profiled(activities=[ProfilerActivity.CUDA]) as result:
            one.training_step(model, one.rows[:pairs])
            torch.cuda.synchronize()
    kernels = sorted(result.key_averages(), key=lambda event: -event.self_device_time_total)
    return {
        "step_ms": round(step, 1),
        "kernels_ms": round(sum(event.self_device_time_total for event in kernels) / 1000, 1),
        "launches": sum(event.count for event in kernels),
        "top": [(event.key[:90], event.count, round(event.self_device_time_total / 1000, 2)) for event in kernels[:22]],
    }


def job(architecture: str, cards: int = 1, **changes: Any) -> dict[str, Any]:
    """From nothing but files to an adapter: `python -m stages.tune.train` as `dvc repro` runs it, imports included."""
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        tokens = make_project(project, architecture, settings(**changes))
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "stages.tune.train"],
            cwd=project,
            env=os.environ | {"TUNETRAIL_PROCESSES": str(cards)},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            return {"error": done.stderr[-600:]}
        notes = json.loads((project / "metrics/env/train.json").read_text())
        losses = json.loads((project / "metrics/train.json").read_text())["loss"]
    return {
        "seconds_to_adapter": round(seconds, 1),
        "training_seconds": notes["seconds"],
        "tokens": tokens,
        "late_tokens_per_second": notes.get("late_tokens_per_second"),
        "peak_gib": round(notes["peak_card_memory_mib"] / 1024, 2),
        "loss": losses["train_last"],
        "plan": {name: value for name, value in notes["computed"].items() if name != "why"},
    }


def make_project(project: Path, architecture: str, train: Train) -> int:
    """What the train stage reads: code, parameters, rows of the lengths drawn, the base model; returns the tokens."""
    for name in ("stages", "constraints"):
        (project / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "dvc.yaml", project)
    params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["train"] = train.model_dump()
    (project / "params.yaml").write_text(dumps_yaml(params), encoding="utf-8")
    chat = make_chat(tiny_tokenizer(), params["task"]["instruction"])
    overhead = len(chat.prompt_ids(make_record("x", "y", None, "s", "s:1")))  # a token a byte
    records, tokens = [], 0
    for number, length in enumerate(lengths()):
        answer = max(8, min(length // 2, length - overhead - 8))
        question = max(8, length - answer - overhead)
        records.append(make_record("p" * question, "c" * answer, None, "s", f"s:{number}"))
        tokens += overhead + question + answer
    (project / "data" / "split").mkdir(parents=True)
    write_records(project / "data" / "train.jsonl", records)
    write_records(project / "data" / "split" / "validation.jsonl", [])
    save_model(project / "models" / "base", architecture)
    return tokens


def in_memory(architecture: str, gib: float) -> dict[str, Any]:
    """QLoRA of rows of 1,024 tokens on a card of so much memory; what is chosen is chosen for that."""
    train = settings(method="qlora")
    model = random_model(architecture, train)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    return train_model(model, train, 6, [LONGEST] * 64)


def deterministic(architecture: str, on: bool) -> dict[str, Any]:
    if on:
        from stages.tune.train.run import make_deterministic

        make_deterministic()
    return train_steps(architecture, 60, compile="graphs")


def ladder(workers: Workers, table: Table) -> None:
    for architecture in ONE_BILLION:
        for name, changes in LADDER.items():
            steps = 80 if changes.get("compile") == "graphs" else 20 if "micro_batch_tokens" in changes else 40
            table.add(f"{architecture}, {name}", workers.do(150, train_steps, architecture, steps, **changes))
        for name in ("TRL, as much as fits", "fused, CUDA graphs"):
            answer = workers.do(100, train_steps, architecture, 80, "qlora", **LADDER[name])
            table.add(f"{architecture}, QLoRA, {name}", answer)


def jobs(workers: Workers, table: Table) -> None:
    for architecture in ONE_BILLION:
        for method in ("lora", "qlora"):
            table.add(f"{architecture}, {method}", workers.do(300, job, architecture, method=method))


def peers_llama(workers: Workers, table: Table) -> None:
    beside_ours("Llama-3.2-1B", workers, table)


def peers_gemma(workers: Workers, table: Table) -> None:
    beside_ours("Gemma-3-1B", workers, table)


def beside_ours(architecture: str, workers: Workers, table: Table) -> None:
    """The same job by others (gpu_train_peers.py) and by ours, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        case = Path(name)
        table.add("the pairs", workers.do(150, write_case, case, architecture))
        for contender in CONTENDERS:
            table.add(contender, contend(contender, case))
    for method in ("lora", "qlora"):
        table.add(f"ours, {method}", workers.do(150, job, architecture, method=method))


def memory(workers: Workers, table: Table) -> None:
    for architecture, gib in (*((name, 6) for name in ONE_BILLION), ("Llama-3.1-8B", 16)):
        table.add(f"{architecture} in {gib} GiB", workers.do(150, in_memory, architecture, gib))


def determinism(workers: Workers, table: Table) -> None:
    for on in (False, False, True, True):
        table.add(f"deterministic: {on}", workers.do(100, deterministic, "Llama-3.2-1B", on))


def devices(workers: Workers, table: Table) -> None:
    many = torch.cuda.device_count()
    for batch, cards in ((64, many), (64, 1), (16, many), (16, 1)):
        epochs = 4 if batch == 64 else 3  # enough steps to repay a capture
        answer = workers.do(300, job, "Llama-3.2-1B", cards, batch_size=batch, epochs=epochs)
        table.add(f"{cards} card(s), batches of {batch}", answer)


def profiles(workers: Workers, table: Table) -> None:
    for architecture in ONE_BILLION:
        table.add(architecture, workers.do(100, profile, architecture, compile="graphs"))


def small(workers: Workers, table: Table) -> None:
    table.add("SmolLM2-135M", workers.do(150, short_pairs))
    answer = workers.do(100, profile, "SmolLM2-135M", pairs=64, size=66, rank=64, compile="graphs")
    table.add("SmolLM2-135M, a step", answer)


def short_pairs() -> dict[str, Any]:
    """400 steps of pairs as short as a question and its record, some 66 tokens (those of SNIPS have as many)."""
    train, draw = settings(rank=64, alpha=128, batch_size=64), random.Random(1)
    sizes = [max(20, min(200, round(draw.gauss(66, 18)))) for _ in range(4000)]
    return train_model(random_model("SmolLM2-135M", train), train, 400, sizes, compile="graphs")


def main() -> None:
    every = (ladder, jobs, peers_llama, peers_gemma, memory, determinism, devices, profiles, small)
    tables = {function.__name__: function for function in every}
    apart = ("devices", "peers_llama", "peers_gemma")
    workers = Workers()
    described = workers.do(100, machine)
    print(json.dumps(described), flush=True)
    for name in sys.argv[1:] or [name for name in tables if name not in apart]:
        table = Table(f"gpu_train_{name}")
        tables[name](workers, table)
        table.write(described)
    workers.close()


if __name__ == "__main__":
    main()
