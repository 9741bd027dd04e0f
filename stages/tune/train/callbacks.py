"""What happens beside the optimiser's steps: curves, sample answers, progress, whole checkpoints."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from stages.core import paths
from stages.core.errors import Refusal
from stages.model.answers import answer_rows
from stages.model.chat import Chat
from stages.params.model import Generation
from stages.records.record import Record, read_rows, write_rows

_SECONDS_BETWEEN_LINES = 10.0
_SAMPLES = "samples.jsonl"

# The trainer's name of a value, and the curve that shows it.
_CURVES = {
    "loss": "train/loss",
    "grad_norm": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "validation/loss",
}


class Curves(TrainerCallback):  # type: ignore[misc]
    """Loss curves for `dvc plots`, written while training runs."""

    _live: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        from dvclive import Live

        # DVCLive would else write a dvc.yaml of its own and save an experiment within the experiment.
        self._live = Live(str(paths.CURVES), dvcyaml=None, save_dvc_exp=False)
        for entry in state.log_history:  # a resumed run first repeats the curve up to its checkpoint
            self._log(entry)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live:
            self._log(state.log_history[-1])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live:
            self._live.end()

    def _log(self, entry: dict[str, Any]) -> None:
        self._live.step = entry["step"]
        for name, curve in _CURVES.items():
            if name in entry:
                self._live.log_metric(curve, entry[name], timestamp=False)
        self._live.sync()


class Samples(TrainerCallback):  # type: ignore[misc]
    """At each validation, the model's answers to the same few prompts, to see it learn; a checkpoint keeps its own."""

    def __init__(self, chat: Chat, records: Sequence[Record]) -> None:
        self._chat, self.records = chat, records
        self.rows: list[dict[str, Any]] = []
        # As long as the longest reference: what an evaluation allows would make training depend on it.
        limit = max((len(chat.completion_ids(record.completion)) for record in records), default=1)
        self._generation = Generation(max_new_tokens=limit)
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext  # in which the model can answer

    def go_on_from(self, checkpoint: Path) -> None:
        self.rows = list(read_rows(checkpoint / _SAMPLES))

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.records or not state.is_world_process_zero:
            return
        with self.around():
            answers = answer_rows(model, self._chat, self.records, self._generation, "samples")
        self.rows += [{"step": state.global_step, **row} for row in answers]

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_rows(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _SAMPLES, self.rows)


class Progress(TrainerCallback):  # type: ignore[misc]
    """A line now and then: step, losses, time left."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first, self._start, self._last = state.global_step, time.monotonic(), 0.0
        self._logged: list[tuple[int, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        now, logs = time.monotonic(), logs or {}
        self._logged.append((state.global_step, now))
        if "eval_loss" in logs:
            what = f"validation loss {logs['eval_loss']:.4f}"
        elif "loss" in logs and now - self._last >= _SECONDS_BETWEEN_LINES:
            what = f"loss {logs['loss']:.4f}"
        else:
            return
        self._last = now
        if state.is_world_process_zero:
            left = (now - self._start) / max(state.global_step - self.first, 1) * (state.max_steps - state.global_step)
            line = f"train: step {state.global_step} of {state.max_steps}, {what}, about {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def steps_per_second(self) -> float | None:
        """In the second half of the run, past start-up and compilation; None for a run too short to tell."""
        half = self._logged[len(self._logged) // 2 :]
        if len(half) < 2 or half[-1][0] == half[0][0]:
            return None
        return (half[-1][0] - half[0][0]) / (half[-1][1] - half[0][1])


class StopsAtNaN(TrainerCallback):  # type: ignore[misc]
    """Ends a run once its numbers are none, before they reach a checkpoint."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._rows = rows  # token ids

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any) -> None:
        wrong = [name for name in _CURVES if not math.isfinite((logs or {}).get(name, 0.0))]
        if wrong:
            raise Refusal(
                f"training stopped at step {state.global_step} of {state.max_steps}: {wrong[0]} is {logs[wrong[0]]}. "
                "Try a lower train.learning_rate, a lower train.alpha or train.precision: float32"
                + self._zero_tokens(model)
            )

    def _zero_tokens(self, model: Any) -> str:
        """A norm divides by the length of what it is given, so the gradient of a zero vector grows with each norm."""
        used = torch.tensor(sorted({token for row in self._rows for token in row}))
        embedding = model.get_input_embeddings().weight
        zero = used[(embedding[used.to(embedding.device)] == 0).all(1).cpu()].tolist()
        also = f". The training rows hold tokens whose embedding is zero, which makes gradients overflow, too: {zero}"
        return also if zero else ""
