"""Greedy decoding by its definition: the likeliest token, again and again, without a cache."""

from typing import Any

import torch


def one_by_one(model: Any, prompt: list[int], stop_id: int, limit: int) -> list[int]:
    said: list[int] = []
    while len(said) < limit and (not said or said[-1] != stop_id):
        with torch.inference_mode():
            said.append(int(model(torch.tensor([prompt + said], device=model.device)).logits[0, -1].argmax()))
    return said
