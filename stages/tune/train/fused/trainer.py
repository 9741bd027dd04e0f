"""The fused engine: TRL's trainer around passes over each optimiser batch that are our own."""

import functools
import gc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from stages.core.errors import UserError
from stages.tune.train import devices
from stages.tune.train.completion_trainer import OUT_OF_MEMORY, CompletionTrainer
from stages.tune.train.examples import Examples, SeededBatches
from stages.tune.train.fused.batches import Row, make_rows
from stages.tune.train.fused.layers import fuse, unfuse
from stages.tune.train.fused.steps import GraphSteps, Steps
from stages.tune.train.plan import Plan


class Gradients:
    """The gradients of an optimiser batch, side by side in one buffer that stays where it is.

    It is cleared by one kernel and summed over devices by one call, and CUDA graphs may write to it.
    """

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        # The last element carries the loss along to the other devices.
        self._buffer = torch.zeros(sum(sizes) + 1, dtype=torch.float32, device=parameters[0].device)
        pieces = torch.split(self._buffer[:-1], sizes)
        self._views = [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]

    def clear(self) -> None:
        self._buffer.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view

    def add_up(self, loss: torch.Tensor) -> torch.Tensor:
        """Sum gradients and loss over all devices; returns the loss of the whole optimiser batch."""
        self._buffer[-1] = loss
        total: torch.Tensor = devices.add_up(self._buffer)[-1].clone()
        return total


class FusedTrainer(CompletionTrainer):
    """Takes whole optimiser batches from its loader and cuts them into micro-batches by tokens itself.

    Each device gets its share of the rows, and the gradients are summed.
    """

    def __init__(
        self, train: Examples, validation: Examples, batches: SeededBatches, plan: Plan, **options: Any
    ) -> None:
        super().__init__(train, validation, batches, plan, **options)
        self.rows, self._validation = make_rows(train), make_rows(validation)
        fuse(self.model, plan.precision)
        self._gradients = Gradients([p for p in self.model.parameters() if p.requires_grad])
        self._longest, self._out_of_memory = max(map(len, self.rows)), False
        self.agreement: dict[str, float] = {}
        self._use(plan)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # No wrapper of accelerate's around the model: precision and sharing are seen to here.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

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
        fuse(self.model, self.plan.precision)

    def answering(self) -> AbstractContextManager[None]:
        return self._steps.plain()

    def clear_gradients(self) -> None:
        self._gradients.clear()

    def get_train_dataloader(self) -> DataLoader[Row]:
        return DataLoader(self.rows, batch_sampler=self.batches, collate_fn=list)  # type: ignore[arg-type]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Row]:
        return DataLoader(self._validation, batch_size=None)  # type: ignore[arg-type]

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> torch.Tensor:
        self.model.train()
        self._gradients.clear()
        return self._gradients.add_up(self._pass(inputs))

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The mean loss over all completion tokens of the validation rows."""
        self.model.eval()
        loss = devices.add_up(self._steps.loss(self._validation))
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss.item()}, len(self._validation))

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting them walks over all parameters in each step

    def _use(self, plan: Plan) -> None:
        self.plan = plan
        if plan.compile == "graphs":
            self._steps: Steps = GraphSteps(self.model, plan, self._longest, self.batches.batch_size)
        else:
            self._steps = Steps(self.model, plan)

    def _pass(self, rows: list[Row]) -> torch.Tensor:
        try:
            return self._steps(rows)
        except torch.OutOfMemoryError:
            if self._out_of_memory:
                raise UserError(OUT_OF_MEMORY) from None
        self._out_of_memory = True
        plan = self.plan.smaller()
        print(f"memory ran out: going on with {plan.micro_batch_tokens} tokens at once, layers recomputed")
        self._steps.restore()
        del self._steps
        gc.collect()
        torch.cuda.empty_cache()
        self._use(plan)
        self._gradients.clear()
        return self._pass(rows)
