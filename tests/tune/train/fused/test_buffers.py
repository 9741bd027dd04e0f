"""Weights side by side are trained as weights apart are, by the same optimiser, and its checkpoints are exchanged."""

import io
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from stages.tune.train.fused.buffers import BufferedAdamW, Trained

SHAPES = [(3, 4), (5,), (2, 2), (7,), (4, 3)]


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def groups(some: list[Any]) -> list[dict[str, Any]]:
    """As transformers makes them: matrices decay, vectors do not."""
    return [
        {"params": [weight for weight in some if weight.dim() == 2], "weight_decay": 0.1},
        {"params": [weight for weight in some if weight.dim() == 1], "weight_decay": 0.0},
    ]


def plain(some: list[Any], fused: bool) -> AdamW:
    return AdamW(groups(some), lr=0.01, betas=(0.8, 0.9), eps=1e-6, fused=fused)


def buffered(some: list[Any], fused: bool) -> tuple[BufferedAdamW, Trained]:
    trained = Trained(sorted(some, key=lambda weight: (weight.dim() == 1, -weight.numel())))
    return BufferedAdamW(plain(some, fused).param_groups, trained), trained


def train(some: list[Any], optimizer: AdamW, steps: range, trained: Trained | None = None) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01 / (1 + step)  # as schedules do
        for weight in some:
            weight.grad = None
        if trained:
            trained.clear()
        for weight in some:
            gradient = torch.randn(weight.shape, generator=generator)
            if trained:
                weight.grad.add_(gradient)
            else:
                weight.grad = gradient
        optimizer.step()


def saved(optimizer: AdamW) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(ours: list[Any], theirs: list[Any]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_a_run_is_that_of_torch_and_goes_on_from_a_checkpoint_of_either(fused: bool) -> None:
    theirs, ours = weights(), weights()
    their_optimizer, (our_optimizer, trained) = plain(theirs, fused), buffered(ours, fused)
    train(theirs, their_optimizer, range(4))
    train(ours, our_optimizer, range(4), trained)
    assert_equal(ours, theirs)
    states = saved(our_optimizer), saved(their_optimizer)
    for mine, other in zip(states[0]["state"].values(), states[1]["state"].values(), strict=True):
        assert_equal([mine[name] for name in other], list(other.values()))
    train(theirs, their_optimizer, range(4, 8))
    for state in states:
        for kind in (plain, buffered):
            anew = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
            made = kind(anew, fused)
            optimizer, again = made if isinstance(made, tuple) else (made, None)
            optimizer.load_state_dict(deepcopy(state))  # plain ones go on in the tensors given
            train(anew, optimizer, range(4, 8), again)
            assert_equal(anew, theirs)


def test_weights_that_were_put_elsewhere_come_back() -> None:
    some = weights()
    trained = Trained(some)
    some[2].data = torch.full((2, 2), 9.0)  # as a checkpoint may
    trained.settle()
    assert some[2].tolist() == [[9, 9], [9, 9]]
    trained.values.zero_()
    assert not any(weight.any() for weight in some)


def test_a_run_has_no_other_weights_in_it() -> None:
    some = weights()
    trained = Trained(some)
    assert trained.run([some[2], some[1]]) == slice(12, 21)
    with pytest.raises(ValueError, match="between"):
        trained.run([some[0], some[2]])


def test_gradients_are_clipped_as_torch_does() -> None:
    theirs, ours = weights(), weights()
    trained = Trained(ours)
    for largest in (0.5, 100.0):
        trained.clear()
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.grad is not None
            mine.grad.add_(mine.detach())
            other.grad = other.detach().clone()
        assert_equal([trained.clip(largest)], [torch.nn.utils.clip_grad_norm_(theirs, largest)])
        assert_equal([weight.grad for weight in ours], [weight.grad for weight in theirs])
