"""transformers' trainer, set up from the parameters; the passes over each optimiser batch are our own."""

import functools
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput

from stages.core import paths
from stages.core.errors import UserError
from stages.model.chat import Chat
from stages.model.loading import free_memory
from stages.params import Params, Train
from stages.tune.train import processes
from stages.tune.train.adalora import AllocateRanks, orthogonality_penalty
from stages.tune.train.adapters import adapter_config, load_trainable
from stages.tune.train.batches import Row, SeededBatches, make_rows
from stages.tune.train.callbacks import Curves, Progress, Samples, StopsAtNaN, WholeCheckpoints
from stages.tune.train.examples import Examples, assert_stop_token_trained
from stages.tune.train.fused import fuse
from stages.tune.train.gradients import Gradients
from stages.tune.train.norms import fuse_norms
from stages.tune.train.plan import Plan, choose_precision, make_plan
from stages.tune.train.sharding import choose_sharding, shard
from stages.tune.train.steps import GraphSteps, Steps

_LOG_EVERY = 5  # optimiser steps between the points of the training curve


class BatchTrainer(Trainer):  # type: ignore[misc]
    """Takes whole optimiser batches from its loader and cuts them into micro-batches itself.

    The loss of a step is the sum over all completion tokens of the batch by their number, however the batch is
    cut and on however many devices: each gets its share of the rows, and the gradients are summed.
    """

    def __init__(self, plan: Plan, train: list[Row], validation: list[Row], batch_size: int, **options: Any) -> None:
        super().__init__(train_dataset=train, eval_dataset=validation or None, **options)
        self._batches = SeededBatches(len(train), batch_size, self.args.data_seed, self._epoch)
        self._gradients = Gradients([p for p in self.model.parameters() if p.requires_grad])
        self._segments, self._longest = batch_size, max(map(len, train))
        self._out_of_memory = False
        self._use(plan)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # No wrapper of accelerate's around the model: precision and sharing are seen to here.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """It is there already."""

    def get_train_dataloader(self) -> DataLoader[Row]:
        return DataLoader(self.train_dataset, batch_sampler=self._batches, collate_fn=list)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Row]:
        return DataLoader(self.eval_dataset, batch_size=None)

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> torch.Tensor:
        self.model.train()
        self._gradients.clear()
        loss = self._pass(inputs) + self.penalty()
        return self._gradients.add_up(loss)

    def penalty(self) -> torch.Tensor | float:
        """What is added to the loss once a step; its gradient is added here, too."""
        return 0.0

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The mean loss over all completion tokens of the validation rows."""
        rows: list[Row] = self.eval_dataset
        self.model.eval()
        loss = processes.add_up(self._steps.loss(rows))
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss.item()}, len(rows))

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting them walks over all parameters in each step

    @contextmanager
    def answering(self) -> Iterator[None]:
        """The model as generation expects it, for the time of the block."""
        with self._steps.plain():
            self.model.eval()
            yield
            self.model.train()

    @property
    def plan(self) -> Plan:
        return self._steps.plan

    def late_steps_per_second(self) -> float | None:
        """In the second half of the run, past start-up and captures."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Progress)).steps_per_second()

    def _use(self, plan: Plan) -> None:
        self._steps = (
            Steps(self.model, plan)
            if plan.compile == "none"
            else GraphSteps(self.model, plan, self._longest, self._segments)
        )

    def _epoch(self) -> int:
        return int(self.state.global_step // len(self._batches))

    def _pass(self, rows: list[Row]) -> torch.Tensor:
        try:
            return self._steps(rows)
        except torch.OutOfMemoryError:
            if self._out_of_memory or self.plan.sharding:  # the others could not know of a second try
                raise UserError(
                    "memory ran out; lower train.micro_batch_tokens or train.max_tokens, "
                    "set train.checkpointing to true, or train with train.method: qlora"
                ) from None
        self._out_of_memory = True
        plan = self.plan.smaller()
        print(f"memory ran out: going on with {plan.micro_batch_tokens} tokens at once, layers recomputed")
        del self._steps
        gc.collect()
        torch.cuda.empty_cache()
        self._use(plan)
        self._gradients.clear()
        return self._pass(rows)


class AdaLoraTrainer(BatchTrainer):
    """Adds the orthogonality penalty of AdaLoRA to each step, on one device."""

    def penalty(self) -> torch.Tensor | float:
        if processes.rank():
            return 0.0
        penalty = orthogonality_penalty(self.model)
        penalty.backward()  # type: ignore[no-untyped-call]
        return penalty.detach()


def make_trainer(
    params: Params, chat: Chat, train: Examples, validation: Examples, folder: Path, samples: Samples
) -> BatchTrainer:
    """A trainer whose rows are checked to teach the stop token.

    Raises:
        UserError: when no row is left to train or to validate on, the stop token is masked out, or a setting is not
            possible with this model or on this machine.
    """
    settings = params.train
    assert_stop_token_trained(train, chat.stop_id)
    rows = make_rows(train)
    adaptive = settings.method != "full" and settings.adapter == "adalora"
    steps = optimiser_steps(len(train), settings)
    precision = choose_precision(settings)
    sharding = choose_sharding(settings, paths.BASE, free_memory())
    model = load_trainable(paths.BASE, settings, precision, sharding)
    model = with_adapter(model, settings, params.seed, steps, precision)
    if sharding:
        shard(model)
        samples.leave_out()
    plan = make_plan(settings, model, [len(row) for row in rows], steps, free_memory(), sharding)
    callbacks: list[TrainerCallback] = [samples, Curves(), Progress(), StopsAtNaN(rows), WholeCheckpoints()]
    if settings.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.early_stopping_patience))
    if adaptive:
        callbacks.append(AllocateRanks())
    trainer = (AdaLoraTrainer if adaptive else BatchTrainer)(
        plan,
        rows,
        make_rows(validation),
        settings.batch_size,
        model=model,
        args=training_arguments(settings, params.seed, folder, steps, bool(len(validation)), adaptive),
        processing_class=chat.tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    samples.around = trainer.answering
    return trainer


def with_adapter(model: Any, settings: Train, seed: int, steps: int, precision: torch.dtype) -> Any:
    """The loaded model with its adapter, if any; all that is trained is in float32."""
    config = adapter_config(settings, model.config.get_text_config().num_hidden_layers, steps)
    if config is None:
        return model
    set_seed(seed)  # the adapter's first weights are drawn
    model = get_peft_model(model, config)
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = precision == torch.float32  # autocast casts to less, and once
    fuse(model)
    if precision == torch.bfloat16:
        fuse_norms(model)
    return model


def optimiser_steps(rows: int, settings: Train) -> int:
    """Steps of the whole run; the last step of an epoch may have fewer rows."""
    return math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)


def training_arguments(
    settings: Train, seed: int, folder: Path, steps: int, validate: bool, adaptive: bool
) -> TrainingArguments:
    """transformers' settings for `steps` optimiser steps; an adaptive adapter keeps no checkpoints."""
    measure = {"eval_strategy": "steps", "eval_steps": settings.evaluate_every} if validate else {"eval_strategy": "no"}
    stop_early = settings.early_stopping_patience is not None
    keep: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": settings.evaluate_every,
        "save_total_limit": 2,  # the best and the last
        "load_best_model_at_end": stop_early,
        "metric_for_best_model": "eval_loss" if stop_early else None,
        "greater_is_better": False if stop_early else None,
        "restore_callback_states_from_checkpoint": True,
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=round(steps * settings.warmup_share),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        logging_steps=_LOG_EVERY,
        logging_nan_inf_filter=False,  # a loss that is not a number must show
        disable_tqdm=True,
        report_to="none",
        **measure,
        **({"save_strategy": "no"} if adaptive else keep),
    )
    if processes.count() == 1:
        _ = arguments.n_gpu  # which sets it; more than one would put torch's DataParallel around the model
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
