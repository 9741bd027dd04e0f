"""transformers' own `generate` in batches: slower, for models whose layers are not attention alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

_ROWS = 16


@torch.inference_mode()
def answers(causal: Any, prompts: Sequence[list[int]], stop_id: int, limit: int) -> Iterator[tuple[int, list[int]]]:
    """(index of the prompt, its answer's token ids and what pads them after the stop token)."""
    # Greedy, said in full: a model's generation_config.json may ask for sampling.
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=limit,
        eos_token_id=stop_id,
        pad_token_id=stop_id,
        use_cache=True,
    )
    for start in range(0, len(prompts), _ROWS):
        rows = prompts[start : start + _ROWS]
        width = max(map(len, rows))
        ids = torch.tensor([[stop_id] * (width - len(row)) + row for row in rows], device=causal.device)
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=causal.device)
        out = causal.generate(input_ids=ids, attention_mask=seen, generation_config=config)
        yield from enumerate(out[:, width:].tolist(), start)
