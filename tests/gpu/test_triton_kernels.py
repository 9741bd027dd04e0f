"""Kernels of the fused path against the operations that they take the place of, forward and back."""

from typing import Any

import pytest
import torch
from torch.nn.functional import silu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA card: run `make test-gpu` on a machine with one"
    ),
]
DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 0.01)]


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def assert_same(ours: Any, theirs: Any, joint: torch.Tensor, tolerance: float) -> None:
    """Outputs, and what goes back to what both read, of two functions of one tensor."""
    weights = [drawn(*their.shape, dtype=their.dtype) for their in theirs]
    backs = [torch.autograd.grad(list(some), joint, weights)[0] for some in (ours, theirs)]
    for mine, other in (*zip(ours, theirs, strict=True), backs):
        assert (mine - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("heads", "keys", "width", "tokens"), [(9, 3, 64, 4200), (4, 1, 256, 70), (15, 5, 80, 33)])
def test_heads_are_turned_as_transformers_does(
    heads: int, keys: int, width: int, tokens: int, dtype: torch.dtype, tolerance: float
) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from stages.tune.train.fused.triton_kernels import rotate

    joint = drawn(1, tokens, (heads + 2 * keys) * width, dtype=dtype).requires_grad_()
    parts = torch.split(joint, [heads * width, keys * width, keys * width], -1)
    q, k = (part.view(1, tokens, -1, width).transpose(1, 2) for part in parts[:2])
    cos, sin = drawn(2, 1, tokens, width, dtype=dtype).unbind()
    assert_same(rotate(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin), joint, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(4200, 1536), (33, 600), (1, 8192)])
def test_gates_are_those_of_transformers(tokens: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    from stages.tune.train.fused.triton_kernels import gated

    joint = drawn(1, tokens, 2 * width, dtype=dtype).requires_grad_()
    gate, up = torch.split(joint, width, -1)
    assert_same([gated(gate, up)], [silu(gate) * up], joint, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("tokens", "vocabulary"), [(700, 49152), (33, 5000), (1, 97)])
def test_the_loss_and_what_goes_back_are_those_of_torch(
    tokens: int, vocabulary: int, dtype: torch.dtype, tolerance: float
) -> None:
    from stages.tune.train.fused.triton_kernels import cross_entropy

    logits = (drawn(tokens, vocabulary, dtype=dtype) * 4).requires_grad_()
    targets = torch.arange(tokens, device="cuda") * 7 % vocabulary
    targets[tokens // 2 :: 5] = -100 if tokens > 1 else 3
    theirs = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum") / 9
    (back,) = torch.autograd.grad(theirs, logits)
    ours = logits.detach().clone()
    loss = cross_entropy(ours, targets, torch.tensor([1, 9], device="cuda")[1], -100)
    torch.testing.assert_close(loss, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert (ours - back).norm() <= tolerance * back.norm()
