"""The fused engine: TRL's trainer around passes over each optimiser batch that are our own.

Before it trains, it shows on one batch that it computes the loss and the gradients of TRL's trainer.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from stages.core.errors import UserError
from stages.tune.train import devices
from stages.tune.train.completion_trainer import OUT_OF_MEMORY, CompletionTrainer
from stages.tune.train.examples import Examples, SeededBatches
from stages.tune.train.fused.batches import Row, make_rows, planned_widths
from stages.tune.train.fused.buffers import BufferedAdamW, Trained
from stages.tune.train.fused.layers import Copies, fuse, unfuse
from stages.tune.train.fused.merged import Merged, in_stacks
from stages.tune.train.fused.steps import GraphSteps, Steps
from stages.tune.train.plan import Plan


class FusedTrainer(CompletionTrainer):
    """Takes whole optimiser batches from its loader and cuts them into micro-batches by tokens itself.

    Each device gets its share of the rows, and the gradients are summed.
    """

    def __init__(
        self, train: Examples, validation: Examples, batches: SeededBatches, plan: Plan, **options: Any
    ) -> None:
        super().__init__(train, validation, batches, plan, **options)
        self.rows, self._validation = make_rows(train), make_rows(validation)
        # As the optimiser groups them, so that each group is one run.
        decayed = {self.model.get_parameter(name) for name in self.get_decay_parameter_names(self.model)}
        self._trained = Trained(sorted(in_stacks(self.model), key=lambda weight: weight not in decayed))
        self._copies: Copies | None = None
        if plan.merged:
            self._copies = Merged(self.model, plan.precision, self._trained)
        elif plan.precision != torch.float32:
            self._copies = Copies(plan.precision, self._trained)
        self._fuse()
        self._settled = False
        self.agreement: dict[str, float] = {}
        if plan.compile == "graphs":
            planned = planned_widths(self.rows, self.batches, devices.count(), plan.micro_batch_tokens)
            longest, segments = max(map(len, self.rows)), self.batches.batch_size
            sums = self._copies.sums if self._copies else ()
            self._steps: Steps = GraphSteps(self.model, plan, longest, segments, planned=planned, sums=sums)
        else:
            self._steps = Steps(self.model, plan)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # No wrapper of accelerate's around the model: precision and sharing are seen to here.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.accelerator.clip_grad_norm_ = lambda parameters, largest: self._trained.clip(largest)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Training; the walk over all modules with which gradients are cleared is not made, since the buffer is.

        For a small model such walks, each step, take longer than its passes on the card.
        """
        self.model.zero_grad = lambda set_to_none=True: None
        self._settled = False
        try:
            return super().train(*args, **kwargs)
        finally:
            del self.model.zero_grad

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = super().create_optimizer(model)
        if type(made) is torch.optim.AdamW:
            self.optimizer = made = BufferedAdamW(made.param_groups, self._trained)
        return made

    def _fuse(self) -> None:
        fuse(self.model, self.plan.precision, self._copies)

    def unfuse(self) -> None:
        """Leave the model as it was."""
        self._steps.restore()
        unfuse(self.model)

    @contextmanager
    def unfused(self) -> Iterator[None]:
        """The model as transformers and PEFT compute it, for the time of the block."""
        unfuse(self.model)
        with self._steps.plain():
            yield
        self._fuse()

    def answering(self) -> AbstractContextManager[None]:
        return self._steps.plain()

    def clear_gradients(self) -> None:
        self._trained.clear()

    def get_train_dataloader(self) -> DataLoader[Row]:
        return DataLoader(self.rows, batch_sampler=self.batches, collate_fn=list)  # type: ignore[arg-type]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Row]:
        return DataLoader(self._validation, batch_size=None)  # type: ignore[arg-type]

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> torch.Tensor:
        if not self.model.training:  # `train` walks over all modules, too
            self.model.train()
        if not self._settled:  # a checkpoint may have been loaded
            self._trained.settle()
            self._settled = True
        self._trained.clear()
        if self._copies:
            self._copies.refresh()
        try:
            loss = self._steps(inputs)
            if self._copies:
                self._copies.collect()
            return self._trained.add_up(loss)
        except torch.OutOfMemoryError:
            raise UserError(OUT_OF_MEMORY) from None

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The mean loss over all completion tokens of the validation rows."""
        self.model.eval()
        loss = devices.add_up(self._steps.loss(self._validation))
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss.item()}, len(self._validation))

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting them walks over all parameters in each step


# What is rounding: relative errors of the loss, of all gradients together (norm of the difference over TRL's norm),
# and the largest of one weight's gradient. Models of two layers on a CPU had at most 1e-7, 4e-7 and 5e-7 in float32,
# and 3e-5, 0.014 and 0.023 in bfloat16, whose roundings add up with depth; a gradient without its scale has 0.3.
TOLERANCES = {torch.float32: (1e-5, 1e-4, 1e-3), torch.bfloat16: (1e-2, 0.1, 0.3)}
_ROWS, _ROWS_AT_ONCE = 8, 2


def disagreement(trainer: FusedTrainer) -> str | None:
    """What the fused path computes otherwise, in words; None where it agrees on the run's first rows."""
    trainer.agreement = relative_errors(trainer)
    for (what, error), allowed in zip(trainer.agreement.items(), TOLERANCES[trainer.plan.precision], strict=True):
        if not error <= allowed:  # NaN is no agreement
            return f"the {what} of one batch is off by a share of {error:.2g}, where {allowed:.2g} is rounding"
    return None


def relative_errors(trainer: FusedTrainer) -> dict[str, float]:
    """Of the loss, of all gradients together and of one weight's gradient; the largest of all processes."""
    model, rows = trainer.model, next(iter(trainer.batches))[:_ROWS]
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _fit_to_compare(model, parameters):
        with trainer.unfused():
            their_loss = _trl_loss(trainer, rows)
        theirs = [p.grad.to("cpu", copy=True) for p in parameters]
        our_loss = trainer.training_step(model, [trainer.rows[row] for row in rows])
        apart = [(p.grad.cpu() - their).norm() for p, their in zip(parameters, theirs, strict=True)]
    norms = torch.stack([their.norm() for their in theirs])
    whole = norms.norm()
    errors = torch.stack(
        [
            ((our_loss - their_loss) / their_loss).abs().cpu(),
            torch.stack(apart).norm() / whole,
            # A weight whose gradient is tiny beside the others is all rounding.
            (torch.stack(apart) / norms.clamp(min=1e-2 * whole / len(norms) ** 0.5)).max(),
        ]
    )
    if devices.count() > 1:
        errors = trainer.accelerator.gather(errors[None].to(trainer.accelerator.device)).amax(0)
    model.zero_grad()  # the trainer moves the model to its device, and gradients that are there would leave the buffer
    return dict(zip(("loss", "gradient", "gradient of one weight"), errors.tolist(), strict=True))


def _trl_loss(trainer: FusedTrainer, rows: list[int]) -> torch.Tensor:
    """TRL's loss of the rows, some at a time, padded; its gradients are left in the parameters."""
    device = trainer.accelerator.device
    half = torch.autocast(device.type, torch.bfloat16, enabled=trainer.plan.precision == torch.bfloat16)
    examples = [trainer.train_dataset[row] for row in rows]
    count = sum(label != -100 for example in examples for label in example["labels"][1:])
    total = torch.zeros((), device=device)
    trainer.clear_gradients()
    trainer.model.train()
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        inputs = {
            name: part.to(device)
            for name, part in trainer.data_collator(examples[start : start + _ROWS_AT_ONCE]).items()
        }
        with half:
            loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(count, device=device))
        loss = loss / devices.count()  # by which TRL multiplies it
        loss.backward()
        total += loss.detach()
    return total


@contextmanager
def _fit_to_compare(model: Any, parameters: list[Any]) -> Iterator[None]:
    """Without dropout, and with what starts at zero drawn instead: B of LoRA, which else hides the gradients of A."""
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    zeros = [parameter for parameter in parameters if not parameter.any()]
    generator = torch.Generator(parameters[0].device).manual_seed(0)
    for module, _ in dropouts:
        module.p = 0.0
    with torch.no_grad():
        for parameter in zeros:
            parameter.normal_(0, 0.02, generator=generator)
    try:
        yield
    finally:
        for module, p in dropouts:
            module.p = p
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()
