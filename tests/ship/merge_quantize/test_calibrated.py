"""GPTQ: on the grid of the file, never worse for the rows' own outputs than the nearest, in any order of columns."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from stages.ship.merge_quantize import calibrated
from stages.ship.merge_quantize.calibrated import Grid, inputs_products, normal_floats, scales, whole_numbers
from stages.ship.merge_quantize.calibrated import linear_layers as layers_of


def gptq(weight: torch.Tensor, products: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Of one layer."""
    return calibrated.gptq(weight[None], products[None], Grid(grid.nearest, tuple(one[None] for one in grid.parts)))[0]


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
    rounded, expected = gptq(weight, x.T @ x, whole_numbers(scale, inputs)), slow(weight, x.T @ x, scale)
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
    rounded = gptq(weight, x.T @ x, whole_numbers(scale, 128))
    by_gptq, by_nearest = (((x @ (one - weight).T).square().sum()) for one in (rounded, nearest))
    assert by_gptq < 0.7 * by_nearest


def test_layers_of_one_shape_are_rounded_together_as_each_alone() -> None:
    torch.manual_seed(1)
    weights = torch.randn(3, 24, 96)
    products = torch.stack([x.T @ x for x in torch.randn(3, 300, 96) @ torch.randn(3, 96, 96)])
    grids = [whole_numbers(scales(weight, 32), 96) for weight in weights]
    together = calibrated.gptq(weights, products, Grid(grids[0].nearest, (torch.stack([g.parts[0] for g in grids]),)))
    for alone, one in zip(map(gptq, weights, products, grids), together, strict=True):
        assert torch.allclose(alone, one, atol=1e-5)


def test_inputs_that_are_always_zero_and_weights_of_zero_are_no_fault() -> None:
    weight = torch.randn(8, 64)
    weight[0] = 0
    x = torch.randn(50, 64)
    x[:, 5:40] = 0
    for products in (x.T @ x, torch.zeros(64, 64)):
        rounded = gptq(weight, products, whole_numbers(scales(weight, 32), 64))
        assert torch.isfinite(rounded).all()
        assert not rounded[0].any()


@given(seed=st.integers(0, 999), outputs=st.integers(1, 9), blocks=st.integers(1, 4), nested=st.booleans())
@settings(deadline=None, max_examples=60)
def test_bitsandbytes_finds_the_very_grid_of_normal_floats_again(
    seed: int, outputs: int, blocks: int, nested: bool
) -> None:
    """Scales and all: what is rounded is what the file gives back, but for scales in 8 bit that are rounded anew."""
    torch.manual_seed(seed)
    weight, x = torch.randn(outputs, 64 * blocks), torch.randn(200, 64 * blocks) @ torch.randn(64 * blocks, 64 * blocks)
    weight *= torch.randint(0, 3, (outputs, blocks, 1)).expand(-1, -1, 64).reshape(weight.shape)  # blocks of zeros, too
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type="nf4")
    decoded = dequantize_4bit(packed, state)
    rounded = gptq(weight, x.T @ x, normal_floats(decoded, state.code, 64))
    again = dequantize_4bit(*quantize_4bit(rounded, blocksize=64, compress_statistics=nested, quant_type="nf4"))
    assert torch.isfinite(rounded).all()
    assert (again - rounded).norm() <= (0.01 if nested else 1e-6) * rounded.norm()
    by_gptq, by_nearest = ((x @ (one - weight).T).square().sum() for one in (rounded, decoded))
    assert by_gptq <= 1.001 * by_nearest


@pytest.mark.parametrize("bytes_at_once", [1, 1 << 30])
@pytest.mark.parametrize("tokens_at_once", [1, 16, 1000])
def test_products_are_the_sums_over_all_tokens_however_few_fit(
    bytes_at_once: int, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrated, "_PRODUCTS", bytes_at_once)
    monkeypatch.setattr(calibrated, "_TOKENS", tokens_at_once)
    torch.manual_seed(0)
    model = LlamaModel(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    ).eval()
    rows = [torch.randint(0, 50, (size,)).tolist() for size in (3, 7, 1, 7, 5)]
    layers, inputs = layers_of(model, []), dict[str, list[torch.Tensor]]()
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.setdefault(name, []).append(given[0][0]))
    with torch.inference_mode():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    expected = {name: torch.cat(some) for name, some in inputs.items()}
    found = {name: one for some in inputs_products(layers, model, rows) for name, one in some.items()}
    assert found.keys() == layers.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.allclose(found[name], x.T @ x, atol=1e-4), name


class Routed(torch.nn.Module):
    """A gate that reads all tokens in one row, and two experts that read some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gate = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 2)
        self.experts = torch.nn.ModuleList([torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)])

    def forward(self, input_ids: torch.Tensor) -> None:
        tokens = self.embedding(input_ids).flatten(0, 1)
        chosen = self.gate(tokens).argmax(1)
        for number, expert in enumerate(self.experts):
            expert(tokens[chosen == number])


def test_an_expert_is_rounded_for_the_tokens_that_it_gets_and_no_filler() -> None:
    torch.manual_seed(0)
    model, rows = Routed(), [torch.randint(0, 50, (size,)).tolist() for size in (9, 3, 6)]
    found = next(inputs_products(layers_of(model, []), model, rows))
    tokens = model.embedding(torch.tensor([token for row in rows for token in row])).detach()
    chosen = model.gate(tokens).argmax(1)
    for name, x in (("gate", tokens), ("experts.0", tokens[chosen == 0]), ("experts.1", tokens[chosen == 1])):
        assert torch.allclose(found[name], x.T @ x, atol=1e-4), name
    del model.experts[:]
    found = next(inputs_products({"gate": model.gate}, model, rows))  # in one batch, with filler
    assert torch.allclose(found["gate"], tokens.T @ tokens, atol=1e-4)


def test_the_layers_of_a_model_are_rounded_for_their_own_inputs() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2
    )
    model, rows = LlamaForCausalLM(config).eval(), [torch.randint(0, 50, (30,)).tolist() for _ in range(9)]
    layers = layers_of(model, ["lm_head"])
    found = calibrated.gptq_rounded(model, rows, ["lm_head"], 32, torch.float32)
    products = {name: one for some in inputs_products(layers, model.model, rows) for name, one in some.items()}
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        scale = scales(layer.weight.detach(), 32)
        alone = gptq(layer.weight.detach(), products[name], whole_numbers(scale, layer.in_features))
        assert torch.equal(found[name][1], scale)
        assert (found[name][0] - alone).abs().lt(1e-4).float().mean() > 0.99, name  # as above, of half a step
