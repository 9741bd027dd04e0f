"""estimate: what the run that params.yaml describes will take here, from a few timed steps of it; and prices.

Nothing that a run writes is touched: the steps are taken on a copy of the model in memory, and forgotten.
"""

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_json
from stages.core.run_notes import energy_used, peak_bytes
from stages.core.yaml_reader import load_yaml
from stages.params.loader import load_params

_WARM_UP = 2  # steps that pay for kernels, caches and first allocations


@dataclass(frozen=True, slots=True)
class Prices:
    """What the user pays, in `currency`: a million tokens of prompts and of answers, an hour of a run, a kWh."""

    currency: str
    prompt_million_tokens: float
    answer_million_tokens: float
    run_hour: float
    kilowatt_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one run.

    Seconds: `training` with its interval of two standard errors of the timed steps; `other_stages` as the last run on
    this machine took them, None before the first. `memory_mib` is the most that the steps took, of the card where there
    is one. `energy_kwh` is of the training, None where the machine cannot be read.
    """

    engine: str
    devices: int
    steps: int
    timed_steps: int
    seconds_a_step: float
    training: float
    training_low: float
    training_high: float
    validations: int
    seconds_a_validation: float
    other_stages: float | None
    memory_mib: int
    energy_kwh: float | None
    on_card: bool

    @property
    def hours(self) -> float:
        return (self.training + (self.other_stages or 0.0)) / 3600


def estimate(timed: int) -> Estimate:
    """Take `timed` optimiser steps, and one validation, of the run that params.yaml describes, on this machine.

    Raises UserError when the base model or the rows are not there yet, or the run itself could not begin.
    """
    for place, stage in ((paths.TRAIN, "augment"), (paths.VALIDATION, "split"), (paths.BASE, "base")):
        if not place.exists():
            raise UserError(f"{place} is not there; `dvc repro {stage}` writes it")
    import torch

    from stages.records.record import read_records
    from stages.tune.train import devices
    from stages.tune.train.adapters import load_trainable
    from stages.tune.train.engine import build_trainer, fused_obstacle
    from stages.tune.train.examples import make_examples, optimiser_steps
    from stages.tune.train.plan import choose_precision
    from stages.tune.train.preflight import check, checked_chat

    params = load_params("seed", "task.instruction", "task.instructions", "train")
    settings = params.train
    chat = checked_chat(params.task)
    train = make_examples(chat, read_records(paths.TRAIN), settings.max_tokens)
    validation = make_examples(chat, read_records(paths.VALIDATION), settings.max_tokens)
    check(chat, settings, train, validation)
    steps = optimiser_steps(len(train), settings.batch_size, settings.epochs)
    timed = min(timed + _WARM_UP, steps)
    model = load_trainable(paths.BASE, settings, choose_precision(settings), params.seed, steps, False)
    fused = settings.engine != "trl" and torch.cuda.is_available() and fused_obstacle(settings, model, False) is None
    quiet = settings.model_copy(update={"early_stopping_patience": None, "evaluate_every": steps + 1})
    clock = _clock(timed)
    with tempfile.TemporaryDirectory() as scratch:
        engine, folder = "fused" if fused else "trl", Path(scratch)
        trainer = build_trainer(engine, model, quiet, params.seed, chat.tokenizer, train, validation, folder, [clock])
        with energy_used() as energy:
            trainer.train()
        start = time.perf_counter()
        if len(validation):
            trainer.evaluate()
        validating = time.perf_counter() - start
    lasted = clock.seconds[_WARM_UP:] or clock.seconds
    validations = math.ceil(steps / settings.evaluate_every) if len(validation) else 0
    step, error = mean(lasted), 2 * (stdev(lasted) / math.sqrt(len(lasted)) if len(lasted) > 1 else 0.0)
    beside = validations * validating
    others = [seconds for stage, seconds in seconds_of_last_run().items() if stage != "train"]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Estimate(
        engine=engine,
        devices=devices.count(),
        steps=steps,
        timed_steps=len(lasted),
        seconds_a_step=step,
        training=steps * step + beside,
        training_low=steps * max(0.0, step - error) + beside,
        training_high=steps * (step + error) + beside,
        validations=validations,
        seconds_a_validation=validating,
        other_stages=sum(others) if others else None,
        memory_mib=(peak or peak_bytes()) // 2**20,
        energy_kwh=None if (spent := energy.kilowatt_hours) is None else spent / len(clock.seconds) * steps,
        on_card=torch.cuda.is_available(),
    )


def seconds_of_last_run() -> dict[str, float]:
    """Of each stage on this machine, by metrics/env."""
    notes = {file.stem: read_json(file) for file in paths.ENVIRONMENT.glob("*.json")}
    return {stage: note["seconds"] for stage, note in notes.items() if isinstance(note, Mapping) and "seconds" in note}


def _clock(steps: int) -> Any:
    """A callback that times each optimiser step, and ends the training after `steps` of them."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._last = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._last = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            import torch

            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a card computes on after the call
            self.seconds.append(time.perf_counter() - self._last)
            control.should_training_stop = len(self.seconds) >= steps

    return Clock()


def sentences(found: Estimate, prices: Prices | None) -> list[str]:
    """The estimate for a reader."""
    minutes = [f"{seconds / 60:,.1f}" for seconds in (found.training_low, found.training_high)]
    device = "card" if found.on_card else "process"
    lines = [
        f"training: {found.training / 60:,.1f} minutes ({minutes[0]} to {minutes[1]}) for {found.steps:,} steps of "
        f"{found.seconds_a_step:.2f} s by {found.engine} and {found.validations} validations of "
        f"{found.seconds_a_validation:.1f} s; {found.timed_steps} steps were timed",
        f"memory: {found.memory_mib:,} MiB of {'the card' if found.on_card else 'this machine'} at most in these steps",
    ]
    if found.other_stages is None:
        lines.append("other stages: no run on this machine has timed them yet; the sums below are of the training")
    else:
        lines.append(f"other stages: {found.other_stages / 60:,.1f} minutes, as in the last run on this machine")
    lines.append(f"in all: {found.hours:.2f} hours, {found.hours * found.devices:.2f} {device} hours")
    if found.energy_kwh is not None:
        lines.append(f"energy: {found.energy_kwh:.3f} kWh for the training, by what the hardware says of itself")
    else:
        lines.append("energy: not measured: that needs pip install 'tunetrail[energy]' and hardware that tells it")
    if prices:
        power = (found.energy_kwh or 0.0) * prices.kilowatt_hour
        cost = found.hours * found.devices * prices.run_hour + power
        lines.append(f"price: {cost:,.2f} {prices.currency}")
    return lines


def as_json(found: Estimate) -> dict[str, Any]:
    return {**asdict(found), "hours": found.hours}


def read_prices(file: Path) -> Prices:
    """Prices from the user's own YAML file; none are built in.

    Raises UserError when it cannot be read, or a price is missing, unknown or no number of at least 0.
    """
    try:
        given = load_yaml(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as YAML: {error}") from None
    wanted = ("prompt_million_tokens", "answer_million_tokens", "run_hour")
    known = {"currency", *wanted, "kilowatt_hour"}
    if not isinstance(given, Mapping) or not {*given} <= known or not {"currency", *wanted} <= {*given}:
        raise UserError(f"{file}: must have currency, {', '.join(wanted)}, and kilowatt_hour if you like; no more")
    for name in (*wanted, "kilowatt_hour"):
        price = given.get(name, 0.0)
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < math.inf:
            raise UserError(f"{file}: {name} is {price!r}; it must be a number of at least 0")
    return Prices(**{**given, "currency": str(given["currency"])})
