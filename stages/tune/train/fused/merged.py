"""A small model's adapted layers as one matrix each, W' = W + scale BA, computed anew once an optimiser step.

A layer is then one product, and two on the way back, where the narrow A and B make it three and six; layers that read
the same input (queries, keys and values; gate and up) are one product together. That takes six operations a weight and
token instead of four, so it pays where products are too small to fill the card. Trained weights stay in float32, W' is
their 16-bit working copy (mixed precision: Micikevicius et al. 2018, arXiv 1710.03740). What goes back to W' is summed
in float32 over the micro-batches; once a step dA = scale B'dW' and dB = scale dW'A' follow from it.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear

from stages.tune.train.fused.buffers import Trained
from stages.tune.train.fused.layers import Copies, Forward, add_product, marked
from stages.tune.train.fused.private_names import SIBLINGS, PlainLora, plain_lora

MERGED_BYTES = 8  # a weight: W and W' beside each other in 16 bit, the sum of gradients in 32
_WIDEST = 1024  # of hidden states; see benchmarks/results/gpu_train.md


def worth_merging(model: Any) -> int:
    """Weights of the adapted layers of a model whose products are small; 0 for any other."""
    if model.config.get_text_config().hidden_size > _WIDEST:
        return 0
    return sum(lora.base.weight.numel() for group in _groups(model) for _, lora in group)


def _groups(model: Any) -> Iterator[list[tuple[Any, PlainLora]]]:
    """Dense adapted layers, those together that read the same input."""
    for parent in model.modules():
        children = {name: (child, plain_lora(child)) for name, child in parent.named_children()}
        dense = {
            name: (child, lora)
            for name, (child, lora) in children.items()
            if lora and lora.base.weight.is_floating_point()
        }
        for names in SIBLINGS:
            if group := [dense.pop(name) for name in names if name in dense]:
                yield group
        yield from ([alone] for alone in dense.values())


def _kinds(model: Any) -> list[list[list[tuple[Any, PlainLora]]]]:
    """Groups of the same shapes together, one of each decoder layer."""
    kinds: dict[Any, list[list[tuple[Any, PlainLora]]]] = {}
    for group in _groups(model):
        kinds.setdefault(tuple((*lora.shape(), lora.scale) for _, lora in group), []).append(group)
    return list(kinds.values())


def in_stacks(model: Any) -> list[Any]:
    """All trained weights; first A of one projection in all layers, then its B, and so on, as `Merged` needs them."""
    stacks = (parts for groups in _kinds(model) for place in zip(*groups, strict=True) for parts in _parts(place))
    rest = (weight for weight in model.parameters() if weight.requires_grad)
    return [*dict.fromkeys([*chain.from_iterable(stacks), *rest])]


def _parts(place: Sequence[tuple[Any, PlainLora]]) -> list[list[Any]]:
    """A and B of one projection in all layers."""
    return [[lora.down.weight for _, lora in place], [lora.up.weight for _, lora in place]]


class _Member(NamedTuple):
    """One projection in all layers: its rows of W'; copies of A and B, groups x A and x B, and their gradients."""

    rows: slice
    scale: float
    down: torch.Tensor
    up: torch.Tensor
    of_down: torch.Tensor
    of_up: torch.Tensor


class _Stack:
    """Groups of one shape, one of each layer; W, W' and the gradients are groups x outputs x inputs."""

    def __init__(self, groups: Sequence[Sequence[tuple[Any, PlainLora]]], copies: Copies) -> None:
        bases = [[lora.base for _, lora in group] for group in groups]
        precision = copies.values.dtype
        self.base = torch.stack([torch.cat([b.weight.detach() for b in group]) for group in bases]).to(precision)
        self.bias = [_bias(group) for group in bases]
        self.weights, self.gradients = self.base.clone(), torch.zeros_like(self.base, dtype=torch.float32)
        self.sizes = [b.out_features for b in bases[0]]
        self.members, start = [], 0
        for size, place in zip(self.sizes, zip(*groups, strict=True), strict=True):
            parts, rows, trained = _parts(place), slice(start, start + size), copies.trained
            both = [trained.stacked(buffer, part) for buffer in (copies.values, trained.gradients) for part in parts]
            self.members.append(_Member(rows, place[0][1].scale, *both))
            start += size

    def refresh(self) -> None:
        for one in self.members:
            rows = self.weights[:, one.rows]
            torch.baddbmm(self.base[:, one.rows], one.up, one.down, alpha=one.scale, out=rows)
        self.gradients.zero_()

    def collect(self) -> None:
        for one in self.members:
            gradient = self.gradients[:, one.rows].to(one.up.dtype)
            one.of_down.add_(_in_32_bit(one.up.mT, gradient), alpha=one.scale)
            one.of_up.add_(_in_32_bit(gradient, one.down.mT), alpha=one.scale)


def _bias(group: Sequence[Any]) -> torch.Tensor | None:
    if all(base.bias is None for base in group):
        return None
    return torch.cat([base.weight.new_zeros(base.out_features) if base.bias is None else base.bias for base in group])


def _in_32_bit(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right).float()


class Merged(Copies):
    """The copies of a model whose dense adapted layers are computed so; others have copies of A and B."""

    def __init__(self, model: Any, precision: torch.dtype, trained: Trained) -> None:
        super().__init__(precision, trained)
        kinds = _kinds(model)
        self._stacks = [_Stack(groups, self) for groups in kinds]
        self.sums = [stack.gradients for stack in self._stacks]
        self._shared = {
            module: (shared, place)
            for groups, stack in zip(kinds, self._stacks, strict=True)
            for index, group in enumerate(groups)
            for shared in [_Shared(stack, index, group[0][1].down.weight)]
            for place, (module, _) in enumerate(group)
        }

    def refresh(self) -> None:
        super().refresh()
        with torch.no_grad():
            for stack in self._stacks:
                stack.refresh()

    def collect(self) -> None:
        with torch.no_grad():
            for stack in self._stacks:
                stack.collect()

    def merged(self, module: Any) -> Forward | None:
        if module not in self._shared:
            return None
        (shared, place), unfused = self._shared[module], module.forward
        return marked(lambda x: shared.output(x, place) if module.training else unfused(x))


class _Shared:
    """The outputs of layers that read the same input: computed for all when the first is called."""

    def __init__(self, stack: _Stack, index: int, trained: Any) -> None:
        self.weight, self.gradient = stack.weights[index], stack.gradients[index]
        self.bias, self.sizes = stack.bias[index], stack.sizes
        self._trained = trained
        self._x: torch.Tensor | None = None
        self._left: dict[int, torch.Tensor] = {}

    def output(self, x: torch.Tensor, place: int) -> torch.Tensor:
        if x is not self._x or place not in self._left:
            outputs = _Product.apply(x.flatten(0, -2), self, self._trained)  # type: ignore[no-untyped-call]
            self._x, self._left = x, dict(enumerate(outputs))
        out = self._left.pop(place)
        if not self._left:
            self._x = None
        return out.view(*x.shape[:-1], out.shape[-1])


class _Product(torch.autograd.Function):
    """x: n x inputs. `trained`, a weight, lets gradients come here where x needs none; its own goes into the sum."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layers: _Shared, trained: torch.Tensor) -> Any:
        x = x.to(layers.weight.dtype)
        ctx.save_for_backward(x)
        ctx.layers = layers
        return linear(x, layers.weight, layers.bias).split_with_sizes(layers.sizes, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,), layers = ctx.saved_tensors, ctx.layers
        gradient = _side_by_side([one.to(x.dtype) for one in gradients])
        add_product(layers.gradient, gradient.T, x)
        return gradient @ layers.weight if ctx.needs_input_grad[0] else None, None, None


def _side_by_side(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Parts, each n x its width, in one tensor; without a copy where they lie so already."""
    width, place = sum(part.shape[1] for part in parts), parts[0].data_ptr()
    for part in parts:
        if part.stride() != (width, 1) or part.data_ptr() != place:
            return torch.cat(list(parts), dim=1)
        place += part.shape[1] * part.element_size()
    return parts[0].as_strided((len(parts[0]), width), (width, 1))
