"""A frozen linear layer and its LoRA adapter in the fewest kernels.

PEFT computes Wx, then BAx, scales it and adds it: two more passes over the largest tensors of the model, each way.
Here the scale goes to the narrow Ax, and the product with B adds into Wx as it is computed; the same for what goes
back to x. (Hu et al. 2021, arXiv 2106.09685; that the order of the products is free is what Unsloth's kernels use.)
"""

from collections.abc import Callable
from typing import Any

import torch


class _Adapted(torch.autograd.Function):
    """x: n x inputs; A (`down`): rank x inputs, B (`up`): outputs x rank, both trained; the layer itself is frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Any, down: torch.Tensor, up: torch.Tensor, scale: float
    ) -> torch.Tensor:
        weight = _weight(layer)
        x = x.to(weight.dtype)
        narrow = (x @ down.to(x.dtype).T).mul_(scale)
        out = x @ weight.T if layer.bias is None else torch.addmm(layer.bias, x, weight.T)
        out.addmm_(narrow, up.to(x.dtype).T)
        ctx.save_for_backward(x, narrow, down, up)
        ctx.layer, ctx.scale = layer, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, narrow, down, up = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype)
        back = (gradient @ up.to(x.dtype)).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ _weight(ctx.layer)
            of_x.addmm_(back, down.to(x.dtype))
        return of_x, None, (back.T @ x).to(down.dtype), (gradient.T @ narrow).to(up.dtype), None


def _weight(layer: Any) -> torch.Tensor:
    """The dense weight, outputs x inputs; a 4-bit one is written out anew each time and kept by nobody."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        weight: torch.Tensor = layer.weight
        return weight
    from bitsandbytes.functional import dequantize_4bit

    dense: torch.Tensor = dequantize_4bit(layer.weight.data, state)
    return dense


def fuse(model: Any) -> int:
    """Let each plain LoRA layer of the model compute this way while it trains; returns how many do."""
    layers = [module for module in model.modules() if _is_plain(module)]
    for module in layers:
        module.forward = _forward(module, module.forward)
    return len(layers)


def _forward(module: Any, unfused: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    layer, name = module.base_layer, module.active_adapters[0]

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return unfused(x)
        down, up = module.lora_A[name].weight, module.lora_B[name].weight
        out: torch.Tensor = _Adapted.apply(x.flatten(0, -2), layer, down, up, module.scaling[name])  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], out.shape[-1])

    return forward


def _is_plain(module: Any) -> bool:
    """A linear layer, dense or in 4 bit, with one adapter that is LoRA and nothing more."""
    adapters = getattr(module, "lora_A", None)
    if not adapters or len(adapters) != 1 or type(module.base_layer).__name__ not in ("Linear", "Linear4bit"):
        return False
    name = next(iter(adapters))
    up, dropout = module.lora_B[name], module.lora_dropout[name]
    return (
        type(module).__name__ in ("Linear", "Linear4bit")
        and not module.lora_variant
        and isinstance(dropout, torch.nn.Identity)
        and up.bias is None
        and not module.base_layer.weight.requires_grad
    )
