"""Training on a CUDA card: what each setting gains, time to an adapter, memory, and the price of determinism.

    python benchmarks/gpu_train.py ladder job memory deterministic      the tables named, or all of them
    python benchmarks/gpu_train.py devices                              one card against all of this machine

Random weights of the Llama-3.2-1B, Gemma-3-1B and Llama-3.1-8B architectures; LoRA of rank 16 on all seven
projections; 2,000 pairs whose lengths are log-normal with median 176 and at most 1,024 tokens, half of each the
completion; 16 pairs to an optimiser step. Speed is in tokens of the pairs a second, padding not counted. Each
measurement is a process of its own.
"""

import json
import math
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from stages.models import free_memory
from stages.params import Train
from stages.train import trainer
from stages.train.batches import Row
from stages.train.callbacks import Progress
from stages.train.plan import make_plan

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAIRS, BATCH, MEDIAN, LONGEST = 2000, 16, 176, 1024

LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "Llama-3.2-1B": lambda: transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=LLAMA_ROPE,
        tie_word_embeddings=True,
    ),
    "Gemma-3-1B": lambda: transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        query_pre_attn_scalar=256,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
    "Llama-3.1-8B": lambda: transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=LLAMA_ROPE | {"factor": 8.0},
    ),
}


def settings(**changes: Any) -> Train:
    """The train section of params.yaml with the guides' recipe."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["train"]
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


def lengths(pairs: int = PAIRS) -> list[int]:
    draw = random.Random(1)
    return [min(LONGEST, max(16, round(MEDIAN * math.exp(draw.gauss(0, 0.7))))) for _ in range(pairs)]


def rows(vocabulary: int, sizes: list[int]) -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for size in sizes:
        ids = torch.randint(0, vocabulary, (size,), generator=generator)
        predictors = torch.arange(size // 2, size - 1)
        made.append(Row(ids, predictors, ids[predictors + 1]))
    return made


def random_model(architecture: str, train: Train) -> Any:
    """The architecture with random weights and an adapter, on the card; NF4 weights for QLoRA."""
    transformers.set_seed(1)
    config = ARCHITECTURES[architecture]()
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if train.method == "qlora":
        quantise(model)
    return trainer.with_adapter(model, train, 1, 1000, torch.bfloat16)


def quantise(model: Any) -> None:
    """NF4 with double quantisation for every linear layer but the head, as loading for QLoRA does."""
    import bitsandbytes

    for parent in list(model.base_model.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, torch.nn.Linear):
                four = bitsandbytes.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                weight = bitsandbytes.nn.Params4bit(
                    linear.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                four.weight = weight
                setattr(parent, name, four.to("cuda"))
    model.is_loaded_in_4bit = True
    torch.cuda.empty_cache()


def train_steps(architecture: str, steps: int, sizes: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    """Some optimiser steps of the stage's own trainer; speed is that of the second half."""
    train = settings(**changes)
    sizes = sizes or lengths()
    model = random_model(architecture, train)
    torch.cuda.reset_peak_memory_stats()
    made = rows(model.config.vocab_size, sizes)
    whole = trainer.optimiser_steps(len(made), train)
    plan = make_plan(train, model, sizes, whole, free_memory())
    with tempfile.TemporaryDirectory() as folder:
        arguments = trainer.training_arguments(train, 1, Path(folder), whole, validate=False, adaptive=True)
        arguments.max_steps = steps
        progress = Progress()
        one = trainer.BatchTrainer(plan, made, [], train.batch_size, model=model, args=arguments, callbacks=[progress])
        one.remove_callback(transformers.PrinterCallback)
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


def profile(architecture: str, **changes: Any) -> dict[str, Any]:
    """Where the card's time goes: milliseconds a step by kernel, for the batches of one size."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    train = settings(**changes)
    model = random_model(architecture, train)
    made = rows(model.config.vocab_size, [230] * 160)
    plan = make_plan(train, model, lengths(), 1000, free_memory())
    with tempfile.TemporaryDirectory() as folder:
        arguments = trainer.training_arguments(train, 1, Path(folder), 1000, validate=False, adaptive=True)
        one = trainer.BatchTrainer(plan, made, [], train.batch_size, model=model, args=arguments)
        one.training_step(model, made[:16])
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            one.training_step(model, made[:16])
        torch.cuda.synchronize()
        step = (time.perf_counter() - start) * 100
        with profiled(activities=[ProfilerActivity.CUDA]) as result:
            one.training_step(model, made[:16])
            torch.cuda.synchronize()
    kernels = sorted(result.key_averages(), key=lambda event: -event.self_device_time_total)
    return {
        "step_ms": round(step, 1),
        "kernels_ms": round(sum(event.self_device_time_total for event in kernels) / 1000, 1),
        "launches": sum(event.count for event in kernels),
        "top": [(event.key[:90], event.count, round(event.self_device_time_total / 1000, 2)) for event in kernels[:22]],
    }


def digest(model: Any) -> str:
    import hashlib

    trained = [p.detach().float().cpu().numpy().tobytes() for p in model.parameters() if p.requires_grad]
    return hashlib.sha256(b"".join(trained)).hexdigest()[:12]


class Workers:
    """Processes that have imported all they need and wait for work; each does one piece and ends."""

    def __init__(self, ahead: int = 3) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._idle = [self._start() for _ in range(ahead)]

    def do(self, seconds: int, function: Callable[..., dict[str, Any]], *args: Any, **options: Any) -> dict[str, Any]:
        """The function's answer, or what became of it."""
        process, pipe = self._idle.pop(0)
        self._idle.append(self._start())
        pipe.send((function, args, options))
        answer = pipe.recv() if pipe.poll(seconds) else {"error": f"nothing within {seconds} s"}
        process.kill()
        process.join()
        return dict(answer)

    def close(self) -> None:
        for process, _ in self._idle:
            process.kill()

    def _start(self) -> tuple[Any, Any]:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs,), daemon=True)
        process.start()
        return process, mine


def work(pipe: Any) -> None:
    function, args, options = pipe.recv()
    try:
        pipe.send(function(*args, **options))
    except BaseException as error:
        traceback.print_exc()
        pipe.send({"error": f"{type(error).__name__}: {str(error)[:300]}"})


def show(title: str, answer: dict[str, Any]) -> None:
    print(f"{title}: {json.dumps(answer)}", flush=True)


LADDER = {
    "padded, 4 rows at a time": {"packing": False, "compile": "none", "micro_batch_tokens": 4 * MEDIAN},
    "padded, as much as fits": {"packing": False, "compile": "none"},
    "packed": {"compile": "none"},
    "packed, CUDA graphs": {"compile": "graphs"},
    "packed, compiled, CUDA graphs": {"compile": "full"},
}


def profiles(workers: Workers) -> None:
    for architecture in ("Llama-3.2-1B", "Gemma-3-1B"):
        answer = workers.do(60, profile, architecture, compile="graphs")
        for line in answer.pop("top", []):
            print("   ", *line, flush=True)
        show(architecture, answer)


def quick(workers: Workers) -> None:
    for architecture in ("Llama-3.2-1B", "Gemma-3-1B"):
        for method in ("lora", "qlora"):
            show(
                f"{architecture} {method}",
                workers.do(60, train_steps, architecture, 100, method=method, compile="graphs"),
            )
    for changes in list(LADDER.values())[:2]:
        show(f"Gemma-3-1B qlora {changes}", workers.do(60, train_steps, "Gemma-3-1B", 12, method="qlora", **changes))


def ladder(workers: Workers, steps: int = 40) -> None:
    for architecture in ("Llama-3.2-1B", "Gemma-3-1B"):
        for method in ("lora", "qlora"):
            for name, changes in LADDER.items():
                if method == "qlora" and changes["compile"] == "full":
                    continue
                answer = workers.do(100, train_steps, architecture, steps, method=method, **changes)
                show(f"{architecture} {method} {name}", answer)


def main() -> None:
    workers = Workers()
    for name in sys.argv[1:] or ["ladder"]:
        {"ladder": ladder, "profiles": profiles, "quick": quick}[name](workers)
    workers.close()


if __name__ == "__main__":
    main()
