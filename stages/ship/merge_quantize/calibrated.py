"""Weights rounded so that a layer's outputs on training rows change least (GPTQ), in place of each to its nearest.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323), section 3 and algorithm 1; columns in the order of their inputs' energy, with scales that are fixed
before (the reference implementation's act-order with static groups), so that the file needs no order of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from stages.core.run_notes import track

_DAMPING = 0.01  # of the mean energy of the inputs (section 3.3, step 3)
_COLUMNS = 128  # between two updates of all columns to come (section 3.3, step 2)
_BYTES = 2 << 30  # of products of inputs in memory at once
_LOWEST, _HIGHEST = -8, 7  # of 4 bits
_SHRUNK = [1 - step / 20 for step in range(9)]  # scales that are tried: clipping a few weights can serve the others

Layers = Mapping[str, torch.nn.Linear]


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


def gptq(weight: torch.Tensor, products: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weights [out, in] on the grid of `scale` [out, groups], in float32, for inputs of `products` [in, in]."""
    order = products.diagonal().argsort(descending=True, stable=True)
    left = weight.float()[:, order]
    steps = scale.float().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)[:, order]
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
            rounded[:, i] = _nearest(left[:, i], steps[:, i])
            errors[:, i - start] = (left[:, i] - rounded[:, i]) / root[i, i]
            left[:, i:end] -= torch.outer(errors[:, i - start], root[i, i:end])
        left[:, end:] -= errors @ root[start:end, end:]
    torch.set_num_threads(threads)
    return rounded[:, order.argsort()]


def _nearest(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale).round().clamp(_LOWEST, _HIGHEST) * scale


def linear_layers(model: torch.nn.Module, kept: Sequence[str]) -> dict[str, torch.nn.Linear]:
    """By name, but for those that keep their type."""
    named = model.named_modules()
    return {name: one for name, one in named if isinstance(one, torch.nn.Linear) and name not in kept}


def gptq_rounded(
    model: torch.nn.Module, rows: Sequence[list[int]], kept: Sequence[str], group: int, dtype: torch.dtype
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By the name of a layer its weights on a grid of 4 bit, [out, in], and its scales, [out, in / group], as `dtype`.

    `rows` are token ids, read one by one, so that nothing pads them; each layer's inputs are those of the whole model.
    """
    layers = linear_layers(model, kept)

    @torch.inference_mode()
    def read() -> None:
        for ids in rows:
            model(input_ids=torch.tensor([ids], device=next(model.parameters()).device))

    found = {}
    for name, products in track(inputs_products(layers, read), len(layers), "GPTQ"):
        weight = layers[name].weight.detach()
        scale = scales(weight, group).to(dtype)  # rounded first: the weights lie on the grid that the file has
        found[name] = gptq(weight, products, scale.float()).to(dtype).cpu(), scale.cpu()
    return found
