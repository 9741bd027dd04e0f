"""Rotary positions, and the gate of a feed-forward layer, in one kernel each way; for a card, and in Triton.

transformers writes rotary positions (Su et al. 2021, arXiv 2104.09864) as some ten operations forward and more back,
and silu(gate) * up (Shazeer 2020, arXiv 2002.05202) as two and four, each of which reads and writes whole tensors.
Here sums are in float32 and rounded once.
"""

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _rotate_heads(
    source, target, cos1, cos2, sin1, sin2, token, of_token, of_head,
    HEADS: tl.constexpr, SOME: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    heads, lanes = tl.arange(0, SOME)[:, None], tl.arange(0, LANES)[None, :]
    inside = (heads < HEADS) & (lanes < HALF)
    read = source + token * of_token + heads * of_head + lanes
    write = target + token * (HEADS * 2 * HALF) + heads * (2 * HALF) + lanes
    first = tl.load(read, mask=inside).to(tl.float32)
    second = tl.load(read + HALF, mask=inside).to(tl.float32)
    kind = target.dtype.element_ty
    tl.store(write, (first * cos1 - second * sin1).to(kind), mask=inside)
    tl.store(write + HALF, (second * cos2 + first * sin2).to(kind), mask=inside)


@triton.jit
def _rotate(
    q, k, q_out, k_out, cos, sin, q_token, q_head, k_token, k_head, cos_token, sin_token,
    Q: tl.constexpr, K: tl.constexpr, Q_SOME: tl.constexpr, K_SOME: tl.constexpr,
    HALF: tl.constexpr, LANES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)[None, :]
    inside = lanes < HALF
    cos1 = tl.load(cos + token * cos_token + lanes, mask=inside).to(tl.float32)
    cos2 = tl.load(cos + token * cos_token + HALF + lanes, mask=inside).to(tl.float32)
    sin1 = tl.load(sin + token * sin_token + lanes, mask=inside).to(tl.float32)
    sin2 = tl.load(sin + token * sin_token + HALF + lanes, mask=inside).to(tl.float32)
    if BACK:  # the transpose of the rotation
        sin1, sin2 = -sin2, -sin1
    _rotate_heads(q, q_out, cos1, cos2, sin1, sin2, token, q_token, q_head, Q, Q_SOME, HALF, LANES)
    _rotate_heads(k, k_out, cos1, cos2, sin1, sin2, token, k_token, k_head, K, K_SOME, HALF, LANES)


class _Rotated(torch.autograd.Function):
    """q and k: 1 x heads x tokens x width; cos and sin: 1 x tokens x width."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        return _rotated(q, k, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return *_rotated(gradients[0], gradients[1], cos, sin, back=True), None, None


def _rotated(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool) -> Any:
    q, k, cos, sin = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, cos, sin))
    tokens, width = q.shape[2], q.shape[3]
    outs = [part.new_empty(1, tokens, part.shape[1], width) for part in (q, k)]
    _rotate[(tokens,)](
        q, k, *outs, cos, sin, q.stride(2), q.stride(1), k.stride(2), k.stride(1), cos.stride(1), sin.stride(1),
        q.shape[1], k.shape[1], triton.next_power_of_2(q.shape[1]), triton.next_power_of_2(k.shape[1]),
        width // 2, triton.next_power_of_2(width // 2), back,
    )  # fmt: skip
    return tuple(out.transpose(1, 2) for out in outs)


def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of one packed row, turned by their positions."""
    rotated: tuple[torch.Tensor, torch.Tensor] = _Rotated.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
    return rotated


@triton.jit
def _gate(gate, up, out, of_gate, of_up, width, BLOCK: tl.constexpr):
    row, lanes = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < width
    g = tl.load(gate + row * of_gate + lanes, mask=inside).to(tl.float32)
    u = tl.load(up + row * of_up + lanes, mask=inside).to(tl.float32)
    tl.store(out + row * width + lanes, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate_back(gate, up, gradient, out, of_gate, of_up, of_gradient, width, BLOCK: tl.constexpr):
    row, lanes = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < width
    g = tl.load(gate + row * of_gate + lanes, mask=inside).to(tl.float32)
    u = tl.load(up + row * of_up + lanes, mask=inside).to(tl.float32)
    d = tl.load(gradient + row * of_gradient + lanes, mask=inside).to(tl.float32)
    s = tl.sigmoid(g)
    write = out + row * 2 * width + lanes
    tl.store(write, (d * u * s * (1 + g * (1 - s))).to(out.dtype.element_ty), mask=inside)
    tl.store(write + width, (d * g * s).to(out.dtype.element_ty), mask=inside)


_BLOCK = 512


class _Gated(torch.autograd.Function):
    """silu(gate) * up, each n x width; what goes back to both lies side by side, as their joint product wants it."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = _rows(gate), _rows(up)
        ctx.save_for_backward(gate, up)
        out = gate.new_empty(gate.shape)
        rows, width = gate.shape
        _gate[(rows, triton.cdiv(width, _BLOCK))](gate, up, out, gate.stride(0), up.stride(0), width, _BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gate, up = ctx.saved_tensors
        gradient = _rows(gradients[0])
        rows, width = gate.shape
        out = gate.new_empty(rows, 2 * width)
        _gate_back[(rows, triton.cdiv(width, _BLOCK))](
            gate, up, gradient, out, gate.stride(0), up.stride(0), gradient.stride(0), width, _BLOCK
        )
        return out[:, :width], out[:, width:]


def _rows(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up."""
    out: torch.Tensor = _Gated.apply(gate.flatten(0, -2), up.flatten(0, -2))  # type: ignore[no-untyped-call]
    return out.view(gate.shape)


@triton.jit(do_not_specialize_on_alignment=["targets", "count"])  # parts of one buffer: one build serves all
def _cross_entropy(logits, targets, count, losses, of_row, width, BLOCK: tl.constexpr, UNSEEN: tl.constexpr):
    row, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    logits += row * of_row
    target = tl.load(targets + row)
    seen = target != UNSEEN
    wanted = tl.load(logits + tl.where(seen, target, 0)).to(tl.float32)  # read before anything is written
    most, total = float("-inf"), 0.0
    for start in range(0, width, BLOCK):
        x = tl.load(logits + start + lanes, mask=start + lanes < width, other=float("-inf")).to(tl.float32)
        more = tl.maximum(most, tl.max(x, 0))
        total = total * tl.exp(most - more) + tl.sum(tl.exp(x - more), 0)
        most = more
    whole = most + tl.log(total)
    tl.store(losses + row, tl.where(seen, whole - wanted, 0.0))
    share = tl.where(seen, 1.0 / tl.load(count).to(tl.float32), 0.0)
    for start in range(0, width, BLOCK):
        inside = start + lanes < width
        x = tl.load(logits + start + lanes, mask=inside).to(tl.float32)
        back = tl.exp(x - whole) - tl.where(start + lanes == target, 1.0, 0.0)
        tl.store(logits + start + lanes, (back * share).to(logits.dtype.element_ty), mask=inside)


_WIDE = 4096


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, count: torch.Tensor, unseen: int) -> torch.Tensor:
    """The sum of the negative log-likelihoods, in nats, of `targets` (n) over `count`; without those `unseen`.

    `logits`, n x vocabulary, are left as what goes back to them. The sum over a vocabulary is taken while its largest
    is still unknown (Milakov and Gimelshein 2018, arXiv 1805.02867), so logits are read twice and written once.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    rows, width = logits.shape
    _cross_entropy[(rows,)](logits, targets, count, losses, logits.stride(0), width, _WIDE, unseen)
    return losses.sum() / count
