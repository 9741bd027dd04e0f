"""What several processes, one for each device, have to tell each other."""

import os

import torch
from torch import distributed

from stages.core.errors import UserError


def join() -> None:
    """Find the other processes, where there are any, and this process's card.

    Raises:
        UserError: when the machine has fewer CUDA cards than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            card, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if card >= cards:
                raise UserError(f"process {card + 1} is to train on a card of its own, but there are {cards} here")
            torch.cuda.set_device(card)
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """The number of this process, also before it has joined the others."""
    return distributed.get_rank() if distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor
