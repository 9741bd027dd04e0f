"""Layers of a model in fewer kernels while it trains: frozen linear layers with their LoRA adapter, and RMSNorm.

PEFT computes Wx, then BAx, scales it and adds it: two more passes over the largest tensors of the model, each way.
Here the scale goes to the narrow Ax, and the product with B adds into Wx as it is computed; the same for what goes
back to x. (Hu et al. 2021, arXiv 2106.09685; that the order of the products is free is what Unsloth's kernels use.)

transformers writes RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) as single operations, some eight forward and a
dozen back, each of which reads and writes a tensor of the width of the model. torch has one kernel each way.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.functional import cross_entropy, rms_norm

from stages.tune.train.fused.buffers import Trained
from stages.tune.train.fused.private_names import (
    PlainLora,
    dense_weight,
    is_gated,
    norm_epsilon,
    plain_lora,
    rotary_function,
    with_rotary_function,
)

Forward = Callable[..., torch.Tensor]


class Copies:
    """16-bit copies of trained float32 weights: made once an optimiser batch, not in each pass through each layer."""

    sums: Sequence[torch.Tensor] = ()  # what passes add to beside gradients

    def __init__(self, precision: torch.dtype, trained: Trained) -> None:
        self.trained, self._precision = trained, precision

    @cached_property
    def values(self) -> torch.Tensor:
        """All, which stay where they are."""
        return self.trained.values.to(self._precision, copy=True)

    def refresh(self) -> None:
        if "values" in vars(self):  # where whole weights are trained, no layer asks for them
            self.values.copy_(self.trained.values)

    def collect(self) -> None:
        """After the passes of a step: add to the gradients what is not in them yet."""

    def merged(self, module: Any) -> Forward | None:
        """How a layer computes with a weight that its adapter was added to; None where it does not."""
        return None


def fuse(model: Any, precision: torch.dtype, copies: Copies | None = None) -> int:
    """Let each plain LoRA layer, and in 16 bit each frozen RMSNorm, compute so in training; returns how many do.

    On a card with Triton, rotary positions and the gate of feed-forward layers, too.

    With `copies` a LoRA layer reads these for its weights, and adds its gradients to those that the weights hold.
    """
    forwards: list[tuple[Any, Forward]] = []
    kernels = card_kernels(next(model.parameters()).device, precision)
    for module in model.modules():
        if copies and (merged := copies.merged(module)):
            forwards.append((module, merged))
        elif lora := plain_lora(module):
            forwards.append((module, _adapted(module, lora, module.forward, copies)))
        elif precision == torch.bfloat16 and is_frozen_norm(module) and (offset := norm_offset(module)) is not None:
            forwards.append((module, _normed(module, offset, module.forward)))
        elif kernels and (forward := _with_kernels(module, kernels)):
            forwards.append((module, forward))
    for module, forward in forwards:
        module.forward = forward
    return len(forwards)


def unfuse(model: Any) -> None:
    """Let each layer compute as its own class does."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "fused", False):
            del module.forward


class _Adapted(torch.autograd.Function):
    """x: n x inputs; A (`down`): rank x inputs, B (`up`): outputs x rank, both trained; the layer itself is frozen.

    `copies` are these in the layer's type; with them, the gradients of A and B are added to those that A and B hold.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layer: Any,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        copies: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        weight = dense_weight(layer)
        x = x.to(weight.dtype)
        a, b = copies or (down.to(x.dtype), up.to(x.dtype))
        narrow = x @ a.T
        out = x @ weight.T if layer.bias is None else torch.addmm(layer.bias, x, weight.T)
        out.addmm_(narrow, b.T, alpha=scale)
        ctx.save_for_backward(x, narrow, down, up, a, b)
        ctx.layer, ctx.scale, ctx.in_place = layer, scale, copies is not None
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, narrow, down, up, a, b = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype)
        back = gradient @ b
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ dense_weight(ctx.layer)
            of_x.addmm_(back, a, alpha=ctx.scale)
        of_trained: list[torch.Tensor | None] = [None, None]
        for place, (weight, left, right) in enumerate(((down, back.T, x), (up, gradient.T, narrow))):
            if ctx.in_place:
                add_product(weight.grad, left, right, ctx.scale)
            else:
                of_trained[place] = (left @ right).to(weight.dtype).mul_(ctx.scale)
        return of_x, None, *of_trained, None, None


def add_product(gradient: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> None:
    """Add scale * left @ right to the gradient."""
    if left.is_cuda and gradient.dtype != left.dtype:  # one kernel; a CPU has none of mixed types
        torch.addmm(gradient, left, right, alpha=scale, out_dtype=gradient.dtype, out=gradient)
    else:
        gradient.add_(left @ right, alpha=scale)


def _adapted(module: Any, lora: PlainLora, unfused: Forward, copies: Copies | None) -> Forward:
    down, up = lora.down.weight, lora.up.weight
    in_16_bit = tuple(copies.trained.of(copies.values, weight) for weight in (down, up)) if copies else None

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return unfused(x)
        out: torch.Tensor = _Adapted.apply(x.flatten(0, -2), lora.base, down, up, lora.scale, in_16_bit)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], out.shape[-1])

    return marked(forward)


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
    scale, epsilon = module.weight.detach().float() + offset, norm_epsilon(module)
    exact = torch.equal(scale.bfloat16().float(), scale)  # as weights that were kept in 16 bit are, but 1 + them
    scale = scale.bfloat16() if exact else scale

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return unfused(x)
        if x.dtype == scale.dtype:  # the kernel's sums are in float32 all the same
            return rms_norm(x, scale.shape, scale, epsilon)
        return rms_norm(x.float(), scale.shape, scale.float(), epsilon).to(x.dtype)

    return marked(forward)


def card_kernels(device: torch.device, precision: torch.dtype) -> Any:
    """`triton_kernels` on a card that computes in 16 bit and has Triton; else None."""
    if device.type != "cuda" or precision != torch.bfloat16 or not find_spec("triton"):
        return None
    from stages.tune.train.fused import triton_kernels

    return triton_kernels


def loss_kernel(device: torch.device, precision: torch.dtype) -> Any:
    """`triton_kernels.cross_entropy` on such a card; else None."""
    kernels = card_kernels(device, precision)

    def theirs(logits: torch.Tensor) -> Any:
        logits = logits.requires_grad_()
        loss = cross_entropy(logits.float(), targets, ignore_index=unseen, reduction="sum") / count
        return loss[None], *torch.autograd.grad(loss, logits)

    def ours(logits: torch.Tensor) -> Any:
        back = logits.detach().clone()
        return kernels.cross_entropy(back, targets, count, unseen)[None], back

    if not kernels:
        return None
    unseen, count = -100, torch.tensor(7, device=device)
    targets = torch.tensor([3, unseen, 95, 0, 17], device=device)
    return kernels.cross_entropy if _agree(theirs, ours, (5, 96)) else None


def _with_kernels(module: Any, kernels: Any) -> Forward | None:
    """An attention or feed-forward layer with our kernel, where that computes what the layer's own code does."""
    unfused = module.forward
    if is_gated(module):
        if not _agree(lambda gate, up: module.act_fn(gate) * up, kernels.gated, (5, 96), (5, 96)):
            return None
        gate, up, down = module.gate_proj, module.up_proj, module.down_proj
        return marked(lambda x: down(kernels.gated(gate(x), up(x))) if module.training else unfused(x))
    if rotary := rotary_function(module):

        def rotate(q: Any, k: Any, cos: Any, sin: Any, *more: Any, **others: Any) -> Any:
            plain = len(q) == 1 and not more and not others
            return kernels.rotate(q, k, cos, sin) if plain else rotary(q, k, cos, sin, *more, **others)

        # With the layer's own heads, so that a kernel is built once.
        config = getattr(module, "config", None)
        heads, keys = getattr(config, "num_attention_heads", 3), getattr(config, "num_key_value_heads", 2)
        width = getattr(module, "head_dim", 64)
        if _agree(rotary, rotate, (1, heads, 5, width), (1, keys, 5, width), (1, 5, width), (1, 5, width)):
            fused = with_rotary_function(module, rotate)
            return marked(lambda *args, **given: (fused if module.training else unfused)(*args, **given))
    return None


def _agree(theirs: Forward, ours: Forward, *shapes: tuple[int, ...]) -> bool:
    """By trying; no kernel is built where there is no C compiler, and functions of one name need not be the same."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for shape in shapes]
    try:
        pairs = zip(ours(*drawn), theirs(*drawn), strict=True)
        return all(bool((our - their).norm() <= 0.01 * their.norm()) for our, their in pairs)
    except Exception:
        return False


def marked(forward: Forward) -> Forward:
    forward.fused = True  # type: ignore[attr-defined]
    return forward
