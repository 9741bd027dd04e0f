"""What training without a card saves: a beginning that rows share computed once, log-probabilities at once, no casts.

    python benchmarks/train_cpu.py PROJECT [--turns 4] [--steps 5] [--name sample]

PROJECT has run up to `augment` and `base`. The stage's own trainer computes loss and gradients of the same optimiser
batches with and without each, in turns; seconds a step are medians of the turns, CPU seconds of all cores their sum.
The table goes to benchmarks/results/train_cpu_NAME.md.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from stages.core import paths
from stages.model.chat import task_chat
from stages.model.loading import load_tokenizer
from stages.params.loader import check_params, read_params
from stages.records.record import read_records
from stages.tune.train.adapters import load_trainable
from stages.tune.train.engine import build_trainer
from stages.tune.train.examples import make_examples, optimiser_steps
from stages.tune.train.plan import choose_precision

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = {
    "as TRL does": (False, False, False),
    "the beginning once": (True, False, False),
    "log-probabilities at once": (False, True, False),
    "nothing cast there and back": (False, False, True),
    "all three, as `train` does": (True, True, True),
}
HEAD = "| | tokens a step | seconds a step | times | CPU seconds | loss of the first step |"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("project", type=Path)
    given.add_argument("--turns", type=int, default=4)
    given.add_argument("--steps", type=int, default=5)
    given.add_argument("--name", default="sample")
    options = given.parse_args()
    os.chdir(options.project)
    params = check_params(read_params())
    chat = task_chat(load_tokenizer(paths.BASE), params.task)
    files = (paths.TRAIN, paths.VALIDATION)
    rows, held = (make_examples(chat, read_records(file), params.train.max_tokens) for file in files)
    precision, steps = choose_precision(params.train), optimiser_steps(len(rows), params.train.batch_size, 1)
    model = load_trainable(paths.BASE, params.train, precision, params.seed, steps, sharding=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = build_trainer(
            "trl", model, params.train, params.seed, chat.tokenizer, rows, held, Path(folder), []
        )
    trainer.model.train()
    trainer.accelerator.prepare(trainer.model)  # autocast, as `train` has it
    at_once, adapted, sizes = utils._ChunkedLogProbFunction, trainer._adapted, list[int]()
    assert at_once is not ChunkedLogProbFunction
    trainer.model.get_input_embeddings().register_forward_hook(lambda *given: sizes.append(given[2].shape[1]))
    loader = iter(trainer.get_train_dataloader())
    batches = [next(loader) for _ in range(options.steps)]
    found: dict[str, dict[str, Any]] = {name: {"walls": [], "cpu": 0.0} for name in WAYS}
    for turn in range(options.turns + 1):
        for name, (shares, whole, uncast) in WAYS.items():
            trainer._shares, utils._ChunkedLogProbFunction = shares, at_once if whole else ChunkedLogProbFunction
            trainer._adapted = adapted if uncast else []
            for layer in adapted:
                layer.cast_input_dtype_enabled = True
            sizes.clear()
            wall, cpu = time.perf_counter(), time.process_time()
            losses = [one_step(trainer, batch) for batch in batches]
            if turn:  # the first one warms up
                found[name]["walls"].append((time.perf_counter() - wall) / len(batches))
                found[name]["cpu"] += time.process_time() - cpu
            found[name] |= {"loss": losses[0], "tokens": statistics.mean(sizes)}
    first = statistics.median(found["as TRL does"]["walls"])
    lines = [HEAD, "|" + " --- |" * HEAD.count(" |")]
    for name, one in found.items():
        seconds = statistics.median(one["walls"])
        cells = (f"{one['tokens']:.0f}", f"{seconds:.3f}", f"{seconds / first:.2f}", f"{one['cpu']:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {one['loss']:.4f} |")
    text = (
        f"# Training without a card: {options.name}\n\n`python benchmarks/train_cpu.py PROJECT --turns {options.turns} "
        f"--steps {options.steps} --name {options.name}`, {platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, {str(precision).removeprefix('torch.')};\nthe same {len(batches)} optimiser batches of "
        f"{params.train.batch_size} rows in each turn.\n\n" + "\n".join(lines) + "\n"
    )
    print(text)
    (RESULTS / f"train_cpu_{options.name}.md").write_text(text, encoding="utf-8")


def one_step(trainer: Any, batch: dict[str, Any]) -> float:
    """Loss and gradients of an optimiser batch; the optimiser's own step is left out."""
    trainer.model.zero_grad()
    count = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    loss.backward()
    return float(loss.detach())


if __name__ == "__main__":
    main()
