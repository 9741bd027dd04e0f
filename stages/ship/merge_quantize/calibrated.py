"""Weights rounded so that a layer's outputs on training rows change least (GPTQ), in place of each to its nearest.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323), section 3 and algorithm 1; columns in the order of their inputs' energy, with scales that are fixed
before (the reference implementation's act-order with static groups), so that the file needs no order of its own. The
grid is W4A16's of whole numbers, or NF4's, whose scales are those that bitsandbytes finds without it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from stages.core.run_notes import track

_DAMPING = 0.01  # of the mean energy of the inputs (section 3.3, step 3)
_COLUMNS = 32  # between two updates of all columns to come (section 3.3, step 2, which has 128 for a card)
_PRODUCTS, _WEIGHTS = 1 << 30, 1 << 28  # bytes of what is in memory at once: products of inputs, layers being rounded
_TOKENS = 2048  # that run through the model at once
_LOWEST, _HIGHEST = -8, 7  # of 4 bits
_SHRUNK = [1 - step / 20 for step in range(9)]  # scales that are tried: clipping a few weights can serve the others

Layers = Mapping[str, torch.nn.Linear]


@dataclass(frozen=True, slots=True)
class Grid:
    """What weights can become: `nearest` of some, given the same places of `parts`, which are shaped as the weights."""

    nearest: Callable[..., torch.Tensor]
    parts: tuple[torch.Tensor, ...]


def inputs_products(
    layers: Layers, model: torch.nn.Module, rows: Sequence[list[int]]
) -> Iterator[dict[str, torch.Tensor]]:
    """For each of the model's `layers` the sum over the tokens of `rows` of x x^T of its inputs x, [in, in] in float32.

    The rows run through the model once for as many layers as fit in memory.
    """
    left = list(layers)
    while left:
        sums: dict[str, torch.Tensor] = {}
        while left and sum(one.nbytes for one in sums.values()) < _PRODUCTS:
            layer = layers[left[0]]
            sums[left.pop(0)] = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device)
        batches = list(_batches(rows, 1 if any(".experts." in f".{name}" for name in layers) else _TOKENS))
        for ids, real in track(batches, len(batches), "GPTQ, batches of rows"):
            last: list[torch.Tensor] = []
            hooks = [layers[name].register_forward_pre_hook(_adding(one, real, last)) for name, one in sums.items()]
            with torch.inference_mode():
                model(input_ids=ids.to(next(model.parameters()).device))
            for hook in hooks:
                hook.remove()
        yield sums


def _batches(rows: Sequence[list[int]], tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids of rows of similar length, and which are real: filler at a row's end is seen by no token before it.

    At most so many `tokens`, one row at least. An expert gets tokens of which nobody knows whether they are filler, so
    a model with experts reads row by row.
    """
    ordered = sorted(rows, key=len, reverse=True)
    while ordered:
        some = ordered[: max(1, tokens // max(1, len(ordered[0])))]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in some], batch_first=True)
        yield ids, torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in some])[:, None]
        ordered = ordered[len(some) :]


def _adding(
    total: torch.Tensor, real: torch.Tensor, last: list[torch.Tensor]
) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    """`last` has the last inputs and their product: the three projections of an attention, say, get the same."""

    def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if not last or last[0] is not given[0]:
            x = given[0].reshape(-1, total.shape[0]).float()
            if len(x) == real.numel():
                x = x[real.flatten().to(total.device)]
            last[:] = [given[0], x.T @ x]
        total.add_(last[1])

    return add


def scales(weight: torch.Tensor, group: int) -> torch.Tensor:
    """The scale of each group of `group` inputs, [out, in / group]: of those tried, that of the least squared error."""
    groups = weight.float().view(weight.shape[0], -1, group)
    widest = (groups.abs().amax(-1) / ((_HIGHEST - _LOWEST) / 2)).clamp(min=torch.finfo(torch.bfloat16).tiny)
    tried = torch.stack([widest * share for share in _SHRUNK])
    errors = torch.stack([(_nearest(groups, s[..., None]) - groups).square().sum(-1) for s in tried])
    return tried.gather(0, errors.argmin(0, keepdim=True))[0]


def whole_numbers(scale: torch.Tensor, inputs: int) -> Grid:
    """The grid of 4-bit whole numbers times `scale` [out, groups]."""
    return Grid(_nearest, (scale.float().repeat_interleave(inputs // scale.shape[1], dim=1),))


def normal_floats(decoded: torch.Tensor, code: torch.Tensor, block: int) -> Grid:
    """The grid of `code` (16 values from -1 to 1) times the scales of blocks of `block` inputs in `decoded` [out, in].

    `decoded` is what quantising each weight to its nearest gives. The largest of each block stays as it is there: the
    scale follows from it, and must be found again.
    """
    blocks = decoded.view(decoded.shape[0], -1, block)
    scale = blocks.abs().amax(-1, keepdim=True).expand_as(blocks).reshape(decoded.shape)
    nearest = partial(_nearest_of, code, (code[1:] + code[:-1]) / 2)
    return Grid(nearest, (scale, decoded, decoded.abs() == scale))


def _nearest_of(
    code: torch.Tensor,
    borders: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    decoded: torch.Tensor,
    largest: torch.Tensor,
) -> torch.Tensor:
    found = code[torch.bucketize(weight / scale, borders)] * scale
    return torch.where(largest, decoded, found)  # all of a block of zeros, too


def gptq(weight: torch.Tensor, products: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The weights [layers, out, in] on the grid, in float32, for inputs of `products` [layers, in, in].

    An output that each weight's nearest gives with the smaller squared error on these inputs gets that.
    """
    weight = weight.float()
    order = products.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    # [layers, in, out]: a column lies in one piece then
    left, *parts = (_placed(one.mT, order) for one in (weight, *grid.parts))
    root = torch.stack([_root(one[at][:, at]) for one, at in zip(products, order, strict=True)])
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[1], _COLUMNS):
        end = min(start + _COLUMNS, left.shape[1])
        errors = torch.empty_like(left[:, start:end])
        for i in range(start, end):
            rounded[:, i] = grid.nearest(left[:, i], *(part[:, i] for part in parts))
            errors[:, i - start] = (left[:, i] - rounded[:, i]) / root[:, i, i, None]
            left[:, i + 1 : end] -= root[:, i, i + 1 : end, None] * errors[:, i - start, None]
        left[:, end:] -= root[:, start:end, end:].mT @ errors
    rounded, plain = _placed(rounded, order.argsort(dim=1)).mT, grid.nearest(weight, *grid.parts)
    by_gptq, by_nearest = (
        ((one - weight) @ products * (one - weight)).sum(2, keepdim=True) for one in (rounded, plain)
    )
    return torch.where(by_gptq <= by_nearest, rounded, plain)


def _placed(columns: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return columns.gather(1, order[..., None].expand_as(columns))


def _root(energy: torch.Tensor) -> torch.Tensor:
    """The upper triangular U whose U^T U is the inverse of these products [in, in] after damping.

    It is the inverse of an upper triangular factor of the products, which Cholesky's method gives from their end.
    """
    energy = energy.double()
    energy.diagonal().add_(_DAMPING * energy.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    upper = torch.linalg.cholesky(energy.flip(0, 1)).flip(0, 1)
    whole = torch.eye(len(energy), dtype=energy.dtype, device=energy.device)
    root: torch.Tensor = torch.linalg.solve_triangular(upper, whole, upper=True)
    return root.float()


def _nearest(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale).round().clamp(_LOWEST, _HIGHEST) * scale


def linear_layers(model: torch.nn.Module, kept: Sequence[str]) -> dict[str, torch.nn.Linear]:
    """By name, but for those that keep their type."""
    named = model.named_modules()
    return {name: one for name, one in named if isinstance(one, torch.nn.Linear) and name not in kept}


def round_layers(
    model: torch.nn.Module, layers: Layers, rows: Sequence[list[int]], grid_of: Callable[[str], Grid]
) -> Iterator[tuple[str, torch.Tensor]]:
    """GPTQ of each of the model's `layers` for `rows` of token ids: name and weights; the inputs are the whole model's.

    Layers of one shape are rounded together: a column of one layer is too little work for a processor of any kind.
    """
    decoder: Any = model.base_model  # the output layer is not rounded
    for products in inputs_products(layers, decoder, rows):
        yield from track(_rounded(layers, products, grid_of), len(products), "GPTQ, layers")


def _rounded(
    layers: Layers, products: Mapping[str, torch.Tensor], grid_of: Callable[[str], Grid]
) -> Iterator[tuple[str, torch.Tensor]]:
    for alike in _alike(layers, products):
        energies = torch.stack([products[names[0]] for names in alike])
        weights = torch.stack([torch.cat([layers[name].weight.detach() for name in names]) for names in alike])
        grids = [[grid_of(name) for name in names] for names in alike]
        parts = zip(*(map(torch.cat, zip(*(one.parts for one in some), strict=True)) for some in grids), strict=True)
        rounded = gptq(weights, energies, Grid(grids[0][0].nearest, tuple(map(torch.stack, parts))))
        for names, together in zip(alike, rounded, strict=True):
            yield from zip(names, together.split([layers[name].out_features for name in names]), strict=True)


def _alike(layers: Layers, products: Mapping[str, torch.Tensor]) -> Iterator[list[list[str]]]:
    """What is rounded at once: of one shape, as many as fit, each the names of layers with the same inputs."""
    siblings: list[list[str]] = []
    for name, product in products.items():
        if siblings and torch.equal(products[siblings[-1][0]], product):
            siblings[-1].append(name)
        else:
            siblings.append([name])
    by_shape: dict[tuple[int, int], list[list[str]]] = {}
    for names in siblings:
        outputs = sum(layers[name].out_features for name in names)
        by_shape.setdefault((outputs, layers[names[0]].in_features), []).append(names)
    for (outputs, inputs), some in by_shape.items():
        most = max(1, _WEIGHTS // (4 * inputs * (outputs + inputs)))
        yield from (some[start : start + most] for start in range(0, len(some), most))


def gptq_rounded(
    model: torch.nn.Module, rows: Sequence[list[int]], kept: Sequence[str], group: int, dtype: torch.dtype
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By the name of a layer its weights on a grid of 4 bit, [out, in], and its scales, [out, in / group], as `dtype`.

    `rows` are token ids.
    """
    layers = linear_layers(model, kept)
    # Rounded first: the weights lie on the grid that the file has.
    found = {name: scales(layer.weight.detach(), group).to(dtype) for name, layer in layers.items()}
    grids = {name: partial(whole_numbers, scale, layers[name].in_features) for name, scale in found.items()}
    rounded = round_layers(model, layers, rows, lambda name: grids[name]())
    return {name: (weight.to(dtype).cpu(), found[name].cpu()) for name, weight in rounded}


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

    def grid_of(name: str) -> Grid:
        weight, state = packed[name], packed[name].quant_state
        return normal_floats(dequantize_4bit(weight.data, state).float(), state.code.float(), state.blocksize)

    layers = {name: one for name, one in linear_layers(model, []).items() if name in packed}
    for name, rounded in round_layers(model, layers, rows, grid_of):
        weight, state = packed[name], packed[name].quant_state
        weight.data, weight.quant_state = quantize_4bit(
            rounded.contiguous(),
            blocksize=state.blocksize,
            compress_statistics=state.nested,
            quant_type=state.quant_type,
        )
        weight.quant_state.dtype = state.dtype
