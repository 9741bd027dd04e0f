"""Which training rows taught an answer: gradients of the weights that were trained, a sketch of each row's kept.

A step along the gradient of a training row changes the loss of an answer by their dot product, to first order: TracIn
at the last checkpoint (Pruthi et al. 2020, arXiv:2002.08484, section 3), here as the cosine, or rows of high loss would
lead every list (Xia et al. 2024, arXiv:2402.04333, section 3). benchmarks/results/why.md has what else was tried.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.core import paths
from stages.core.files import atomic, remove, tree_digest
from stages.core.run_notes import library_versions, track
from stages.model.loading import Weights, causal_of, head_is_plain

WIDTH = 8192  # numbers that are kept of a row's gradient
_BYTES = 1 << 30  # of all rows together: many rows have a coarser sketch each
_LAYERS = 4  # the last ones, whose gradients are taken
_FOLDER = Path(".tunetrail/influence")

Pair = tuple[list[int], list[int]]  # token ids of a prompt and of its completion


class Influence:
    """Gradients of one tuned model; `rows` are those of its training rows, one pass over them the first time."""

    def __init__(self, weights: Weights, pairs: Sequence[Pair], width: int = WIDTH) -> None:
        self._weights, self._pairs = weights, pairs
        self._width = min(width, _BYTES // 4 // max(1, len(pairs)))

    @cached_property
    def rows(self) -> torch.Tensor:
        """The sketch of each row's gradient, float32 (rows, width); kept by the content of model, rows and this code.

        What is kept is written whole or not at all, and that of other models goes.
        """
        made_of = [self._weights.identity, self._pairs, self._width, tree_digest(Path(__file__)), library_versions()]
        name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        file = paths.of_checkout(_FOLDER) / f"{name}.safetensors"
        with suppress(FileNotFoundError, SafetensorError, KeyError):
            return load_file(file)["gradients"]
        found = [self._sketch(self._gradient(pair)) for pair in track(self._pairs, len(self._pairs), "gradients")]
        gradients = torch.stack(found).cpu()
        with atomic(file) as partial:
            save_file({"gradients": gradients}, partial)
        for other in file.parent.glob("*.safetensors"):
            if other != file:
                remove(other)
        return gradients

    def scores(self, answer: Pair) -> torch.Tensor:
        """For each row the cosine of its gradient to the answer's, from -1 to 1; above 0 it taught the answer."""
        asked = self.asked(answer)
        lengths = torch.linalg.vector_norm(self.rows, dim=1) * torch.linalg.vector_norm(asked)
        found: torch.Tensor = self.rows @ asked / lengths.clamp_min(1e-12)
        return found

    def asked(self, answer: Pair) -> torch.Tensor:
        """The sketch of the answer's gradient, float32 (width)."""
        return self._sketch(self._gradient(answer)).cpu()

    @cached_property
    def _chosen(self) -> list[torch.Tensor]:
        """The trained weights of the last layers; of LoRA the factor B, on which the answer depends in the first place.

        Zhu et al. 2024, "Asymmetry in low-rank adapters", arXiv:2402.16842, section 4.
        """
        model = self._weights.model.requires_grad_(False)
        named = dict(model.named_parameters())
        layer_of = {name: int(found[1]) for name in named if (found := re.search(r"\.(\d+)\.", name))}
        adapted = {name: layer for name, layer in layer_of.items() if "lora_B" in name} or layer_of
        first = sorted(set(adapted.values()))[-_LAYERS:][0]
        return [named[name].requires_grad_(True) for name, layer in adapted.items() if layer >= first]

    def _gradient(self, pair: Pair) -> torch.Tensor:
        """Of the completion's negative log-likelihood, all chosen weights in one row."""
        chosen = self._chosen  # before the graph is made
        found = torch.autograd.grad(loss(causal_of(self._weights.model), *pair), chosen)
        return torch.cat([part.flatten().float() for part in found])

    @cached_property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of each weight its place in the sketch and its sign, drawn by a fixed seed; None where all weights fit."""
        size, draw = sum(weight.numel() for weight in self._chosen), torch.Generator().manual_seed(0)
        if size <= self._width:
            return None
        places = torch.randint(self._width, (size,), generator=draw)
        signs = torch.randint(2, (size,), generator=draw).float() * 2 - 1
        device = self._chosen[0].device
        return places.to(device), signs.to(device)

    def _sketch(self, gradient: torch.Tensor) -> torch.Tensor:
        """Signed sums, whose dot products are those of the gradients in the mean; the gradient itself where it fits.

        Weinberger et al. 2009, "Feature hashing for large scale multitask learning", arXiv:0902.2206, section 2.
        """
        if self._places is None:
            return gradient
        places, signs = self._places
        return gradient.new_zeros(self._width).index_add_(0, places, gradient * signs)


def loss(causal: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Negative log-likelihood of the completion after the prompt, in nats, with its graph."""
    ids = torch.tensor([prompt + completion], device=causal.device)
    if head_is_plain(causal):  # positions of the prompt never reach the vocabulary
        states, head = (
            causal.base_model(input_ids=ids, use_cache=False).last_hidden_state,
            causal.get_output_embeddings(),
        )
    else:
        states, head = causal(input_ids=ids, use_cache=False).logits, torch.nn.Identity()
    said = head(states[0, len(prompt) - 1 : -1]).float()
    return torch.nn.functional.cross_entropy(said, ids[0, len(prompt) :], reduction="sum")
