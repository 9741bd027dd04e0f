"""A model named by its files: known by their content, loaded only when something must be computed."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stages.core.files import tree_digest
from stages.model.loading import compute_dtype, load_model, load_tuned


class Weights:
    """A model in `folder`, with `adapter` on it where one is named.

    `spent` collects, for each call that used the model, what it took: for metrics/env/.
    """

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        self.folder, self.adapter = folder, adapter
        self.spent: dict[str, dict[str, Any]] = {}

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """What decides the model's answers: the hashes of all its files, and how this machine computes."""
        return {
            "model": tree_digest(self.folder),
            "adapter": tree_digest(self.adapter) if self.adapter else None,
            "precision": str(compute_dtype()),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }

    @cached_property
    def model(self) -> Any:
        return load_tuned(self.folder, self.adapter) if self.adapter else load_model(self.folder)
