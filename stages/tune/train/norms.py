"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) in few kernels.

transformers writes it as single operations, some eight forward and a dozen back, each of which reads and writes a
tensor of the width of the model. torch has one kernel each way, for numbers of one precision.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import rms_norm


def fuse_norms(model: Any) -> int:
    """Let each frozen RMSNorm of the model compute this way while it trains; returns how many do."""
    fused = 0
    for module in model.modules():
        if _is_frozen_norm(module) and (offset := _offset(module)) is not None:
            module.forward = _forward(module, offset, module.forward)
            fused += 1
    return fused


def _is_frozen_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("RMSNorm")
        and weight is not None
        and not weight.requires_grad
        and _epsilon(module) is not None
    )


def _epsilon(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _offset(module: Any) -> int | None:
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
    return rms_norm(x.float(), scale.shape, scale, _epsilon(module)).to(x.dtype)


def _forward(
    module: Any, offset: int, written_out: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return _norm(module, offset, x) if module.training else written_out(x)

    return forward
