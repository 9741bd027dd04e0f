"""Layers of a model in fewer kernels while it trains: frozen linear layers with their LoRA adapter, and RMSNorm.

PEFT computes Wx, then BAx, scales it and adds it: two more passes over the largest tensors of the model, each way.
Here the scale goes to the narrow Ax, and the product with B adds into Wx as it is computed; the same for what goes
back to x. (Hu et al. 2021, arXiv 2106.09685; that the order of the products is free is what Unsloth's kernels use.)

transformers writes RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) as single operations, some eight forward and a
dozen back, each of which reads and writes a tensor of the width of the model. torch has one kernel each way.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import rms_norm

from stages.tune.train.fused.private_names import PlainLora, dense_weight, norm_epsilon, plain_lora

Forward = Callable[..., torch.Tensor]


def fuse(model: Any, precision: torch.dtype) -> int:
    """Let each plain LoRA layer, and in 16 bit each frozen RMSNorm, compute so in training; returns how many do."""
    forwards: list[tuple[Any, Forward]] = []
    for module in model.modules():
        if lora := plain_lora(module):
            forwards.append((module, _adapted(module, lora, module.forward)))
        elif precision == torch.bfloat16 and is_frozen_norm(module) and (offset := norm_offset(module)) is not None:
            forwards.append((module, _normed(module, offset, module.forward)))
    for module, forward in forwards:
        module.forward = forward
    return len(forwards)


def unfuse(model: Any) -> None:
    """Let each layer compute as its own class does."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "fused", False):
            del module.forward


class _Adapted(torch.autograd.Function):
    """x: n x inputs; A (`down`): rank x inputs, B (`up`): outputs x rank, both trained; the layer itself is frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: Any, down: torch.Tensor, up: torch.Tensor, scale: float
    ) -> torch.Tensor:
        weight = dense_weight(layer)
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
            of_x = gradient @ dense_weight(ctx.layer)
            of_x.addmm_(back, down.to(x.dtype))
        return of_x, None, (back.T @ x).to(down.dtype), (gradient.T @ narrow).to(up.dtype), None


def _adapted(module: Any, lora: PlainLora, unfused: Forward) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return unfused(x)
        out: torch.Tensor = _Adapted.apply(x.flatten(0, -2), lora.base, lora.down.weight, lora.up.weight, lora.scale)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], out.shape[-1])

    return _marked(forward)


def is_frozen_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("RMSNorm")
        and weight is not None
        and not weight.requires_grad
        and norm_epsilon(module) is not None
    )


def norm_offset(module: Any) -> int | None:
    """0 for a norm that multiplies by its weight, 1 for one more (Gemma), None for another kind; found by trying."""
    weight = module.weight
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-4, 1e-2, 1.0, 100.0])[:, None]  # the small ones tell another epsilon
    x = (torch.randn(4, len(weight), generator=generator) * sizes).to(weight)
    with torch.no_grad():
        expected = module(x).float()
        for offset in (0, 1):
            error = (_norm(module, offset, x).float() - expected).norm(dim=1)
            if bool((error <= 0.01 * expected.norm(dim=1)).all()):
                return offset
    return None


def _norm(module: Any, offset: int, x: torch.Tensor) -> torch.Tensor:
    scale = module.weight.float() + offset
    return rms_norm(x.float(), scale.shape, scale, norm_epsilon(module)).to(x.dtype)


def _normed(module: Any, offset: int, unfused: Forward) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return _norm(module, offset, x) if module.training else unfused(x)

    return _marked(forward)


def _marked(forward: Forward) -> Forward:
    forward.fused = True  # type: ignore[attr-defined]
    return forward
