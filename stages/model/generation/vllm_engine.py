"""vLLM as the engine, where it is installed (`pip install 'tunetrail[vllm]'`): the same prompts, token for token."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from stages.core.errors import UserError
from stages.core.files import read_json
from stages.model.generation.weights import Weights
from stages.model.loading import compute_dtype

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_MEMORY_SHARE = 0.8  # of the card, and not all of it: likelihoods are computed beside it


def version() -> str:
    """The installed version. Raises UserError when there is none."""
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "generation.engine is vllm, which is not installed; run `pip install 'tunetrail[vllm]'` on a machine "
            "with a GPU, or set generation.engine to transformers"
        ) from None


def ask(weights: Weights, prompts: Sequence[list[int]], stop_id: int, limit: int) -> list[list[int]]:
    """Token ids of the greedy answers, in the order of `prompts`, with the stop token where one came."""
    from vllm import LLM, SamplingParams

    adapter = weights.adapter
    whole = adapter is not None and not (adapter / "adapter_config.json").is_file()
    options: dict[str, Any] = {
        "model": str(adapter if whole else weights.folder),
        "skip_tokenizer_init": True,
        "dtype": str(compute_dtype()).removeprefix("torch."),
        "generation_config": "vllm",  # not the model's own, which may sample
        "max_model_len": max(map(len, prompts)) + limit,
        "gpu_memory_utilization": _MEMORY_SHARE,
        "seed": 0,
    }
    lora = None
    if adapter is not None and not whole:
        from vllm.lora.request import LoRARequest

        options |= {"enable_lora": True, "max_lora_rank": _rank(read_json(adapter / "adapter_config.json"))}
        lora = LoRARequest("adapter", 1, str(adapter))
    greedy = SamplingParams(
        n=1,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        seed=0,
        stop=None,
        stop_token_ids=[stop_id],
        ignore_eos=True,  # the template's stop token ends an answer, as it does with the other engine
        min_tokens=0,
        max_tokens=limit,
        detokenize=False,
    )
    asked = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = LLM(**options).generate(asked, greedy, lora_request=lora, use_tqdm=True)
    return [_with_stop(output.outputs[0], stop_id) for output in outputs]


def _with_stop(said: Any, stop_id: int) -> list[int]:
    """vLLM keeps a stop token among the ids or not, by version and kind; `stop_reason` names it either way."""
    ids = list(said.token_ids)
    return [*ids, stop_id] if said.stop_reason == stop_id and ids[-1:] != [stop_id] else ids


def _rank(config: dict[str, Any]) -> int:
    """The smallest rank that vLLM allots and that holds the adapter's. Raises UserError for what it cannot serve."""
    rank = config["r"]
    if config["peft_type"] != "LORA" or config.get("use_dora") or rank > _RANKS[-1]:
        raise UserError(
            "vllm serves plain LoRA adapters up to rank 512 only; set generation.engine to transformers for this one"
        )
    return next(size for size in _RANKS if size >= rank)
