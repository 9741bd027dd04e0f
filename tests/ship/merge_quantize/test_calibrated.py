"""GPTQ: on the grid of the file, never worse for the rows' own outputs than the nearest, in any order of columns."""

import pytest
import torch

from stages.ship.merge_quantize.calibrated import gptq, inputs_products, scales
from stages.ship.merge_quantize.calibrated import linear_layers as layers_of


def slow(weight: torch.Tensor, products: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Optimal brain quantisation as section 2 of the paper has it: the inverse anew after each column."""
    left, n = weight.double().clone(), weight.shape[1]
    steps = scale.double().repeat_interleave(n // scale.shape[1], dim=1)
    energy = products.double() + torch.eye(n, dtype=torch.double) * 0.01 * products.double().diagonal().mean()
    open_ = products.diagonal().argsort(descending=True, stable=True).tolist()
    done = torch.zeros_like(left)
    while open_:
        inverse = torch.linalg.inv(energy[open_][:, open_])
        first = open_[0]
        done[:, first] = (left[:, first] / steps[:, first]).round().clamp(-8, 7) * steps[:, first]
        error = (left[:, first] - done[:, first]) / inverse[0, 0]
        left[:, open_] -= torch.outer(error, inverse[0])
        open_ = open_[1:]
    return done


@pytest.mark.parametrize("inputs", [32, 160, 320])
def test_the_blocks_do_what_column_by_column_does(inputs: int) -> None:
    torch.manual_seed(inputs)
    weight, x = torch.randn(24, inputs), torch.randn(400, inputs) @ torch.randn(inputs, inputs)
    scale = scales(weight, 32)
    rounded, expected = gptq(weight, x.T @ x, scale), slow(weight, x.T @ x, scale)
    # Where a weight lies half way between two steps, float32 may take the other one, and what follows with it.
    assert (rounded - expected).abs().lt(1e-4).float().mean() > 0.97
    steps = rounded / scale.repeat_interleave(32, dim=1)
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert steps.min() >= -8.001
    assert steps.max() <= 7.001


def test_outputs_change_less_than_by_the_nearest() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 128), torch.randn(600, 128) @ torch.randn(128, 128)
    scale = scales(weight, 64)
    wide = scale.repeat_interleave(64, dim=1)
    nearest = (weight / wide).round().clamp(-8, 7) * wide
    by_gptq, by_nearest = (((x @ (one - weight).T).square().sum()) for one in (gptq(weight, x.T @ x, scale), nearest))
    assert by_gptq < 0.7 * by_nearest


def test_inputs_that_are_always_zero_and_weights_of_zero_are_no_fault() -> None:
    weight = torch.randn(8, 64)
    weight[0] = 0
    x = torch.randn(50, 64)
    x[:, 5:40] = 0
    for products in (x.T @ x, torch.zeros(64, 64)):
        rounded = gptq(weight, products, scales(weight, 32))
        assert torch.isfinite(rounded).all()
        assert not rounded[0].any()


def test_products_are_the_sums_over_all_tokens_however_few_layers_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.ship.merge_quantize.calibrated._BYTES", 1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    rows = [torch.randn(3, 4), torch.randn(5, 4)]
    asked = []

    def run() -> None:
        asked.append(1)
        for row in rows:
            model(row[None])

    with torch.inference_mode():
        found = dict(inputs_products(layers_of(model, []), run))
        inner = torch.cat([torch.relu(model[0](row)) for row in rows])
        assert torch.allclose(found["0"], torch.cat(rows).T @ torch.cat(rows), atol=1e-5)
        assert torch.allclose(found["2"], inner.T @ inner, atol=1e-5)
    assert len(asked) == 2
    assert layers_of(model, ["0"]).keys() == {"2"}
