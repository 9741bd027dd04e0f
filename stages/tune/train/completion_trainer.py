"""TRL's trainer over our rows: the portable engine, and what the fused one has to agree with."""

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import SFTTrainer

from stages.core.errors import UserError
from stages.model.loading import causal_of
from stages.tune.train import devices
from stages.tune.train.adapters import orthogonality_penalty
from stages.tune.train.examples import Examples, SeededBatches
from stages.tune.train.fused.attention import sees_all_before
from stages.tune.train.fused.private_names import casting_layers, write_logits_out
from stages.tune.train.plan import Plan

OUT_OF_MEMORY = (
    "memory ran out; lower the machine setting micro_batch_tokens or train.max_tokens, set the machine setting "
    "checkpointing to true, or train with train.method: qlora"
)


class SeededRows(Trainer):  # type: ignore[misc]
    """A trainer over rows in the seeded order."""

    batches: SeededBatches

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            sampler=list(itertools.chain.from_iterable(self.batches)),
            collate_fn=self.data_collator,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def training_step(self, *inputs: Any, **options: Any) -> torch.Tensor:
        try:
            loss: torch.Tensor = super().training_step(*inputs, **options)
        except torch.OutOfMemoryError:
            raise UserError(OUT_OF_MEMORY) from None
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """The release writes one, about what was measured; TRL's, with each checkpoint, would ask all trackers."""


class CompletionTrainer(SeededRows, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with the rows in the seeded order.

    The loss of a step is the mean over all completion tokens of the optimiser batch, however the batch is cut and on
    however many devices; that of a validation the mean over all completion tokens of the validation rows.
    """

    def __init__(
        self, train: Examples, validation: Examples, batches: SeededBatches, plan: Plan, **options: Any
    ) -> None:
        model, arguments = options["model"], options["args"]
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.batches, self.plan, self._validation_tokens = batches, plan, validation.trained_tokens
        rows = devices.count() * arguments.per_device_eval_batch_size
        super().__init__(
            train_dataset=train.dataset(),
            eval_dataset=validation.filled_up(rows).dataset() if len(validation) else None,
            **options,
        )
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:  # TRL rounds the adapter on a 4-bit base to bfloat16
                parameter.data = trained[name]
        self._validation_batches = -(-len(validation) // rows) * devices.count()
        self._counted: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None
        self._shares = plan.packing and sees_all_before(model.config.get_text_config()) and not self.aux_loss_enabled
        # DoRA takes its norms in the type of what enters.
        dora = getattr(getattr(model, "active_peft_config", None), "use_dora", False)
        self._adapted = [] if dora else casting_layers(model)
        if self.accelerator.device.type == "cpu":
            write_logits_out()
            causal_of(model).base_model.register_forward_pre_hook(self._begin_forward, with_kwargs=True)
            causal_of(model).base_model.register_forward_hook(self._keep_counted)

    def answering(self) -> AbstractContextManager[None]:
        """The model as generation expects it, for the time of the block."""
        return nullcontext()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        training = self.model.training
        if not training:
            # The trainer takes the mean over micro-batches of equally many rows, TRL multiplies by the processes.
            num_items_in_batch = self._validation_tokens * devices.count() / self._validation_batches
        loss = super().compute_loss(model, self._shortened(inputs), return_outputs, num_items_in_batch)
        if training and getattr(self.model, "peft_type", None) == "ADALORA":
            loss = loss + orthogonality_penalty(self.model) / self.current_gradient_accumulation_steps
        return loss

    def _shortened(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What TRL computes twice without a card is left out: a beginning that rows share, such as the instruction,
        and logits of positions that predict nothing."""
        if inputs["labels"].device.type != "cpu":
            return inputs
        if self._shares and (inputs.get("position_ids", torch.ones(1)) == 0).sum() > 1:
            inputs, self._seen = with_prefix_once(inputs)
        labels = inputs["labels"]
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
        counted = (targets != -100).nonzero().flatten()
        # TRL takes the last position, and the first label, for those that predict, or are predicted by, nothing.
        self._counted = torch.cat([counted, counted.new_zeros(1)])
        return inputs | {"labels": torch.cat([targets.new_full((1,), -100), targets[counted]])[None]}

    def _begin_forward(self, decoder: Any, arguments: Any, options: dict[str, Any]) -> Any:
        for layer in self._adapted:  # PEFT casts what enters an adapter to float32, which autocast then casts back
            layer.cast_input_dtype_enabled = not torch.is_autocast_enabled("cpu")
        if self._seen is not None:
            options["attention_mask"], self._seen = self._seen, None
        return arguments, options

    def _keep_counted(self, decoder: Any, arguments: Any, output: Any) -> Any:
        if self._counted is not None:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[self._counted][None]
            self._counted = None
        return output


def with_prefix_once(inputs: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Rows end to end (1 x tokens), with the tokens that all of them begin with once; and who then sees whom.

    That is a mask, 1 x 1 x tokens x tokens, True where a query sees a key: each row sees the beginning and itself. So
    states, losses and gradients are those of whole rows, but that dropout draws once for the beginning. It ends before
    the last token of the shortest prompt, which predicts. None where the rows begin differently.
    """
    ids, labels, positions = (inputs[name][0] for name in ("input_ids", "labels", "position_ids"))
    starts = (positions == 0).nonzero().flatten()
    row_of = (positions == 0).cumsum(0) - 1
    # Up to where each row still has a token before its completion.
    ends = torch.cat([starts[1:], starts.new_tensor([len(ids)])])
    trained = torch.where(labels != -100, torch.arange(len(ids)), len(ids))
    prompts = torch.stack([trained[a:b].min().clamp(max=b) - a for a, b in zip(starts, ends, strict=True)])
    most = max(0, int(prompts.min()) - 1)
    same = (ids[starts[:, None] + torch.arange(most)] == ids[:most]).all(0)
    length = int(same.long().cumprod(0).sum())
    if not length:
        return inputs, None
    kept = (row_of == 0) | (positions >= length)
    row_of = torch.where(positions < length, -1, row_of)[kept]
    seen = ((row_of[:, None] == row_of) | (row_of == -1)).tril()
    shorter = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return inputs | {name: one[kept][None] for name, one in shorter.items()}, seen[None, None]
