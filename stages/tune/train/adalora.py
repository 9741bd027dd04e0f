"""What AdaLoRA needs beside the trainer's steps (Zhang et al. 2023, arXiv 2303.10512).

Its importance scores live in memory alone, and its rank schedule counts on the full number of steps. So an
AdaLoRA run neither resumes nor stops early; a killed one starts again.
"""

from typing import Any

import torch
from transformers import TrainerCallback


class AllocateRanks(TrainerCallback):  # type: ignore[misc]
    """Move the rank budget between layers after each optimiser step, while the gradients are still there."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)


def orthogonality_penalty(model: Any) -> torch.Tensor:
    """Equation 4: the mean over P and Q of the Frobenius norm of P'P - I and QQ' - I, times its weight."""
    weight = model.peft_config["default"].orth_reg_weight
    norms = []
    for name, factor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            norms.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    penalty: torch.Tensor = weight * torch.stack(norms).mean()
    return penalty
