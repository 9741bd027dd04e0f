"""The loss of a completion, without projecting to the vocabulary what does not count."""

from typing import Any

import torch
from trl import SFTTrainer

from stages.train.examples import IGNORED

# A model that scales or caps its logits is left to TRL, which knows all of these.
_SCALED_HEAD = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer; on a CPU, the same loss for less.

    There, TRL scores every position, those of prompts and padding too, and computes entropy and accuracy that
    nobody reads: with 49,152 tokens in the vocabulary of a 135M model, that is more work than half the model.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        config = causal.config.get_text_config()
        if causal.device.type != "cpu" or return_outputs or any(getattr(config, name, None) for name in _SCALED_HEAD):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        hidden = causal.base_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state
        return completion_loss(hidden, inputs["labels"], causal.get_output_embeddings(), num_items_in_batch)


def completion_loss(hidden: torch.Tensor, labels: torch.Tensor, head: Any, count: Any = None) -> torch.Tensor:
    """Mean negative log-likelihood, in nats, of the tokens that `labels` does not ignore.

    `hidden` is rows x positions x width, `labels` rows x positions; each position predicts the next. `count`
    stands for the number of tokens where a batch is a part of an optimiser step.
    """
    labels = labels[:, 1:]
    counted = labels != IGNORED
    logits = head(hidden[:, :-1][counted]).float()
    total = torch.nn.functional.cross_entropy(logits, labels[counted], reduction="sum")
    return total / (counted.sum() if count is None else count)
