"""A frozen base model spread over the devices, for one that does not fit on each.

FSDP (Zhao et al. 2023, arXiv 2304.11277; torch's `fully_shard`) over the frozen weights of each layer alone: they
are gathered when the layer computes and let go. The adapter stays whole everywhere, so gradients, checkpoints and
the optimiser are those of an unsharded run.
"""

from pathlib import Path
from typing import Any

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from stages.core.errors import UserError
from stages.model.loading import causal_of, device
from stages.params import Train
from stages.tune.train import processes

_FITS = 0.7  # of the free memory, that a model's weights may take to leave room for training


def choose_sharding(train: Train, base: Path, memory: int | None) -> bool:
    """Whether to shard: where several devices train an adapter on dense weights that leave one too little room.

    Raises:
        UserError: when it is asked for and there is nothing to shard, or nobody to share with.
    """
    possible = processes.count() > 1 and train.method == "lora" and train.adapter == "lora"
    if train.sharding == "auto":
        weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        return possible and memory is not None and weights > _FITS * memory
    if train.sharding and not possible:
        raise UserError(
            "train.sharding: true needs several devices (TUNETRAIL_PROCESSES), train.method: lora and "
            "train.adapter: lora; write auto or false"
        )
    return train.sharding


def shard(model: Any) -> None:
    """Spread the frozen weights of the layers, which are on the CPU; what lies outside layers goes to each device."""
    causal = causal_of(model)
    layers = causal.base_model.layers
    mesh = init_device_mesh(device().type, (processes.count(),))
    for layer in layers:
        adapter = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        for parameter in adapter:
            parameter.data = parameter.data.to(device())
        # Let go after each forward pass: else all layers pile up, and a device that saves falls out of step.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapter)
    for part in (*causal.base_model.children(), causal.get_output_embeddings()):
        if part is not layers:
            part.to(device())
