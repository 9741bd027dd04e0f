"""Answers on a CPU: this project's way against one-by-one `generate`, in time and in text.

    python benchmarks/generation.py --pairs FILE.jsonl [--model models/base] [--adapter models/adapter]

The rows of FILE have a `prompt`. One by one, only a sample is asked, half of it before and half after the others, so
that a busy machine does not favour either. Processor seconds are those of all threads; other processes do not count.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from os import chdir
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from stages.model.answers import answer, in_batches, tokens_at_once
from stages.model.chat import Chat, make_chat
from stages.model.loading import Weights, causal_of, load_tokenizer
from stages.params.model import Generation
from stages.records.record import make_record

Said = dict[int, list[int]]


def one_by_one(model: Any, prompts: dict[int, list[int]], stop: int, limit: int) -> Said:
    config = transformers.GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=stop, pad_token_id=stop)
    said = {}
    for index, prompt in prompts.items():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        said[index] = out[0, len(prompt) :].tolist()
    return said


def batched(model: Any, prompts: dict[int, list[int]], stop: int, limit: int) -> Said:
    causal, order = causal_of(model), sorted(prompts, key=lambda i: (-len(prompts[i]), prompts[i]))
    said = in_batches(causal, [prompts[i] for i in order], stop, limit, tokens_at_once(causal))
    return {order[place]: ids for place, ids in said}


def timed(ask: Callable[..., Said], *arguments: Any) -> tuple[Said, float, float]:
    """What was said, seconds, processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    said = ask(*arguments)
    return said, time.perf_counter() - wall, time.process_time() - processor


def spoken(said: Said, stop: int) -> int:
    return sum(len(ids[: ids.index(stop) + 1] if stop in ids else ids) for ids in said.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/base"))
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--instruction", default="Give the intent and the slots of the utterance as JSON.")
    parser.add_argument("--limit", type=int, default=72)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--slow-rows", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = Weights(options.model.absolute(), options.adapter.absolute() if options.adapter else None)
    chat = make_chat(load_tokenizer(options.model), options.instruction)
    texts = [json.loads(line)["prompt"] for line in options.pairs.read_text(encoding="utf-8").splitlines()]
    texts = texts[:: max(1, len(texts) // options.rows)][: options.rows]
    records = [make_record(text, "", None, "", "") for text in texts]
    compare(weights, chat, records, options)


def compare(weights: Weights, chat: Chat, records: list[Any], options: argparse.Namespace) -> None:
    model, stop, limit = weights.model, chat.stop_id, options.limit
    prompts = {index: chat.prompt_ids(record) for index, record in enumerate(records)}
    sample = list(prompts)[:: max(1, len(prompts) // options.slow_rows)][: options.slow_rows]
    one_by_one(model, {0: prompts[0]}, stop, 4)  # libraries load
    half = len(sample) // 2
    first, *spent = timed(one_by_one, model, {i: prompts[i] for i in sample[:half]}, stop, limit)
    fast, *fast_spent = timed(batched, model, prompts, stop, limit)
    last, *more = timed(one_by_one, model, {i: prompts[i] for i in sample[half:]}, stop, limit)
    slow = first | last
    rows = [
        ("one by one, `generate`", slow, [a + b for a, b in zip(spent, more, strict=True)]),
        ("batches by length, a row leaves when it ends", fast, fast_spent),
    ]
    base = [spoken(slow, stop) / seconds for seconds in rows[0][2]]
    print(f"\n{options.threads} threads of {platform.machine()}, torch {torch.__version__}, {model.dtype}\n")
    print(
        "| way | answers | tokens | seconds | tokens/s | times | processor seconds | times by these |\n"
        + "|---" * 8
        + "|"
    )
    for what, said, (wall, processor) in rows:
        tokens = spoken(said, stop)
        gains = f"{tokens / wall / base[0]:.1f} | {processor:.1f} | {tokens / processor / base[1]:.1f}"
        print(f"| {what} | {len(said)} | {tokens} | {wall:.1f} | {tokens / wall:.1f} | {gains} |")
    same = sum(chat.text(slow[i]) == chat.text(fast[i]) for i in slow)
    print(f"\nsame text: {same} of {len(slow)} one by one")
    remembered(weights, chat, records[:16], limit)


def remembered(weights: Weights, chat: Chat, records: list[Any], limit: int) -> None:
    """The second time, by the same files; the model is not even loaded."""
    generation = Generation(max_new_tokens=limit)
    with tempfile.TemporaryDirectory() as folder:
        chdir(folder)
        first = answer(weights, chat, records, generation, "first")
        start = time.perf_counter()
        again = answer(Weights(weights.folder, weights.adapter), chat, records, generation, "again")
        print(f"again, hashing the files included: {time.perf_counter() - start:.2f} s, same: {again == first}")


if __name__ == "__main__":
    main()
