"""What AdaLoRA needs beside the trainer's steps (Zhang et al. 2023, arXiv 2303.10512).

Its importance scores live in memory alone, and its rank schedule counts on the full number of steps. So an
AdaLoRA run neither resumes nor stops early; a killed one starts again.
"""

from typing import Any

import torch
from transformers import TrainerCallback

from stages.train.loss import CompletionTrainer


class AllocateRanks(TrainerCallback):  # type: ignore[misc]
    """Move the rank budget between layers after each optimiser step, while the gradients are still there."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)


class AdaLoraTrainer(CompletionTrainer):
    """Adds the orthogonality penalty (equation 4), which TRL's own loss leaves out of PEFT's."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return result
        # The trainer divides the loss of a step among its micro-batches by tokens; the penalty counts once a step.
        penalty = orthogonality_penalty(model) / self.current_gradient_accumulation_steps
        return (result[0] + penalty, result[1]) if return_outputs else result + penalty


def orthogonality_penalty(model: Any) -> torch.Tensor:
    """Mean over the factors P and Q of the Frobenius norm of P'P - I and QQ' - I, times its weight."""
    weight = model.peft_config["default"].orth_reg_weight
    norms = []
    for name, factor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            norms.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    penalty: torch.Tensor = weight * torch.stack(norms).mean()
    return penalty
