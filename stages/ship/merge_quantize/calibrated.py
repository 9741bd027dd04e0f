"""Weights rounded so that a layer's outputs on training rows change least (GPTQ), in place of each to its nearest.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323), section 3 and algorithm 1; columns in the order of their inputs' energy, with scales that are fixed
before (the reference implementation's act-order with static groups), so that the file needs no order of its own. The
grid is W4A16's of whole numbers, or NF4's, whose scales are those that bitsandbytes finds without it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from stages.core.run_notes import track

_DAMPING = 0.01  # of the mean energy of the inputs (section 3.3, step 3)
_COLUMNS = 128  # between two updates of all columns to come (section 3.3, step 2)
_BYTES = 2 << 30  # of products of inputs in memory at once
_LOWEST, _HIGHEST = -8, 7  # of 4 bits
_SHRUNK = [1 - step / 20 for step in range(9)]  # scales that are tried: clipping a few weights can serve the others

Layers = Mapping[str, torch.nn.Linear]
Nearest = Callable[[torch.Tensor, int | slice], torch.Tensor]  # columns of weights, and which; the same on the grid


def inputs_products(layers: Layers, run: Callable[[], None]) -> Iterator[tuple[str, torch.Tensor]]:
    """For each layer the sum over tokens of x x^T of its inputs x, [in, in] in float32; `run` lets all tokens through.

    It runs once for as many layers as fit in memory.
    """
    left = list(layers)
    while left:
        sums: dict[str, torch.Tensor] = {}
        while left and sum(one.nbytes for one in sums.values()) < _BYTES:
            layer = layers[left[0]]
            sums[left.pop(0)] = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device)
        hooks = [layers[name].register_forward_pre_hook(_adding(total)) for name, total in sums.items()]
        run()
        for hook in hooks:
            hook.remove()
        yield from sums.items()


def _adding(total: torch.Tensor) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        x = given[0].reshape(-1, total.shape[0]).float()
        total.addmm_(x.T, x)

    return add


def scales(weight: torch.Tensor, group: int) -> torch.Tensor:
    """The scale of each group of `group` inputs, [out, in / group]: of those tried, that of the least squared error."""
    groups = weight.float().view(weight.shape[0], -1, group)
    widest = (groups.abs().amax(-1) / ((_HIGHEST - _LOWEST) / 2)).clamp(min=torch.finfo(torch.bfloat16).tiny)
    tried = torch.stack([widest * share for share in _SHRUNK])
    errors = torch.stack([(_nearest(groups, s[..., None]) - groups).square().sum(-1) for s in tried])
    return tried.gather(0, errors.argmin(0, keepdim=True))[0]


def whole_numbers(scale: torch.Tensor, inputs: int) -> Nearest:
    """The grid of 4-bit whole numbers times `scale` [out, groups]."""
    steps = scale.float().repeat_interleave(inputs // scale.shape[1], dim=1)
    return lambda column, place: _nearest(column, steps[:, place])


def normal_floats(decoded: torch.Tensor, code: torch.Tensor, block: int) -> Nearest:
    """The grid of `code` (16 values from -1 to 1) times the scales of blocks of `block` inputs in `decoded` [out, in].

    `decoded` is what quantising each weight to its nearest gives. The largest of each block stays as it is there: the
    scale follows from it, and must be found again.
    """
    blocks = decoded.view(decoded.shape[0], -1, block)
    scale = blocks.abs().amax(-1, keepdim=True).expand_as(blocks).reshape(decoded.shape)
    largest, borders = decoded.abs() == scale, (code[1:] + code[:-1]) / 2

    def nearest(column: torch.Tensor, place: int | slice) -> torch.Tensor:
        steps = scale[:, place]
        found = code[torch.bucketize(column / steps, borders)] * steps
        return torch.where(largest[:, place], decoded[:, place], found)  # all of a block of zeros, too

    return nearest


def gptq(weight: torch.Tensor, products: torch.Tensor, nearest: Nearest) -> torch.Tensor:
    """The weights [out, in] on the grid, in float32, for inputs of `products` [in, in].

    An output that each weight's nearest gives with the smaller squared error on these inputs gets that.
    """
    order = products.diagonal().argsort(descending=True, stable=True)
    weight = weight.float()
    left, places = weight[:, order], order.tolist()
    energy = products[order][:, order].double()
    energy.diagonal().add_(_DAMPING * energy.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    root = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(energy)), upper=True).float()
    rounded = torch.empty_like(left)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a column is too little to share out: threads would wait for each other
    for start in range(0, left.shape[1], _COLUMNS):
        end = min(start + _COLUMNS, left.shape[1])
        errors = torch.empty_like(left[:, start:end])
        for i in range(start, end):
            rounded[:, i] = nearest(left[:, i], places[i])
            errors[:, i - start] = (left[:, i] - rounded[:, i]) / root[i, i]
            left[:, i:end] -= torch.outer(errors[:, i - start], root[i, i:end])
        left[:, end:] -= errors @ root[start:end, end:]
    torch.set_num_threads(threads)
    rounded, plain = rounded[:, order.argsort()], nearest(weight, slice(None))
    by_gptq, by_nearest = (
        ((one - weight) @ products * (one - weight)).sum(1, keepdim=True) for one in (rounded, plain)
    )
    return torch.where(by_gptq <= by_nearest, rounded, plain)


def _nearest(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale).round().clamp(_LOWEST, _HIGHEST) * scale


def linear_layers(model: torch.nn.Module, kept: Sequence[str]) -> dict[str, torch.nn.Linear]:
    """By name, but for those that keep their type."""
    named = model.named_modules()
    return {name: one for name, one in named if isinstance(one, torch.nn.Linear) and name not in kept}


def _reading(model: torch.nn.Module, rows: Sequence[list[int]]) -> Callable[[], None]:
    """Lets rows of token ids through the model one by one, so that nothing pads them."""

    @torch.inference_mode()
    def read() -> None:
        for ids in rows:
            model(input_ids=torch.tensor([ids], device=next(model.parameters()).device))

    return read


def gptq_rounded(
    model: torch.nn.Module, rows: Sequence[list[int]], kept: Sequence[str], group: int, dtype: torch.dtype
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By the name of a layer its weights on a grid of 4 bit, [out, in], and its scales, [out, in / group], as `dtype`.

    `rows` are token ids; each layer's inputs are those of the whole model.
    """
    layers, found = linear_layers(model, kept), {}
    for name, products in track(inputs_products(layers, _reading(model, rows)), len(layers), "GPTQ"):
        weight = layers[name].weight.detach()
        scale = scales(weight, group).to(dtype)  # rounded first: the weights lie on the grid that the file has
        rounded = gptq(weight, products, whole_numbers(scale, weight.shape[1]))
        found[name] = rounded.to(dtype).cpu(), scale.cpu()
    return found


def calibrate_nf4(quantised: torch.nn.Module, model: torch.nn.Module, rows: Sequence[list[int]]) -> None:
    """Round anew, for `rows` of token ids, the 4-bit layers of `quantised`, made of `model`, which is not.

    A layer whose rows of weights are no whole blocks stays as it is.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed: dict[str, Any] = {
        name: layer.weight
        for name, layer in quantised.named_modules()
        if (state := getattr(getattr(layer, "weight", None), "quant_state", None))
        and layer.in_features % state.blocksize == 0
    }
    layers = {name: one for name, one in linear_layers(model, []).items() if name in packed}
    for name, products in track(inputs_products(layers, _reading(model, rows)), len(layers), "GPTQ"):
        weight, state = packed[name], packed[name].quant_state
        grid = normal_floats(dequantize_4bit(weight.data, state).float(), state.code.float(), state.blocksize)
        rounded = gptq(layers[name].weight.detach(), products, grid)
        weight.data, weight.quant_state = quantize_4bit(
            rounded, blocksize=state.blocksize, compress_statistics=state.nested, quant_type=state.quant_type
        )
        weight.quant_state.dtype = state.dtype
