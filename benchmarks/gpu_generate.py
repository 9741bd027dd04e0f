"""Answers on a CUDA card: what each way of asking gains, and whether the texts are those of one-by-one `generate`.

    python benchmarks/gpu_generate.py speed                   random weights of the Llama-3.2-1B architecture
    python benchmarks/gpu_generate.py texts --model FOLDER --pairs FILE [--adapter FOLDER]
    python benchmarks/gpu_generate.py texts --tokenizer FOLDER --pairs FILE --train FILE

`texts` compares the answers to the prompts of a JSONL file, by a model that was tuned for them or by a small one that
is first trained for a minute on the rows of --train. Both print a table; the results kept here name the machine.
"""

import argparse
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from stages.model.answers import in_batches, tokens_at_once
from stages.model.chat import Chat, make_chat
from stages.model.loading import causal_of, device, load_model, load_tokenizer, load_tuned
from stages.records.record import make_record

INSTRUCTION = "Give the intent and the slots of the utterance as JSON."
LIMIT = 72
RARE = 0  # stands for the stop token where random weights speak, which hardly ever say it
Ask = Callable[[list[list[int]]], list[list[int]]]


def one_by_one(model: Any, stop: int) -> Ask:
    def ask(prompts: list[list[int]]) -> list[list[int]]:
        config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=LIMIT, eos_token_id=stop, pad_token_id=stop
        )
        said = []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            with torch.inference_mode():
                out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
            said.append(out[0, len(prompt) :].tolist())
        return said

    return ask


def batches(model: Any, stop: int, tokens: int | None = None) -> Ask:
    """What the stages do: `generate` in batches of at most so many tokens, sorted by length."""

    def ask(prompts: list[list[int]]) -> list[list[int]]:
        causal = causal_of(model)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
        longest_first = [prompts[i] for i in order]
        answers = in_batches(causal, longest_first, stop, LIMIT, tokens or tokens_at_once(causal))
        said = {order[i]: ids for i, ids in answers}
        return [said[i] for i in range(len(prompts))]

    return ask


def continuous_batching(model: Any, stop: int) -> Ask:
    def ask(prompts: list[list[int]]) -> list[list[int]]:
        config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=LIMIT, eos_token_id=stop, pad_token_id=stop
        )
        before = model.config._attn_implementation
        found = model.generate_batch(inputs=prompts, generation_config=config)
        model.set_attn_implementation(before)
        by_prompt = {tuple(one.prompt_ids): one.generated_tokens for one in found.values()}
        return [by_prompt[tuple(prompt)] for prompt in prompts]

    return ask


def speed(options: argparse.Namespace) -> None:
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=options.layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    )
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(0)
        with torch.device(device()):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        prompts = random_prompts(options.rows, config.vocab_size)
        name = str(dtype).removeprefix("torch.")
        ways: list[tuple[str, Ask, int]] = [
            ("one by one, `generate`", one_by_one(model, RARE), options.slow_rows),
            *(
                (f"batches of {tokens} tokens", batches(model, RARE, tokens), options.rows)
                for tokens in (16384, 32768, 65536, 131072)
            ),
        ]
        if dtype == torch.bfloat16:
            ways.append(("transformers' `generate_batch`", continuous_batching(model, RARE), options.rows))
        base = 0.0
        for what, ask, count in ways:
            with limited(what, options.seconds):
                ask(prompts[:2])  # libraries load, kernels are chosen
                seconds, said = timed(ask, prompts[:count])
                tokens = sum(map(len, said)) / seconds
                base = base or tokens
                rows.append([name, what, count, round(seconds, 2), round(tokens), round(tokens / base, 1)])
                print(rows[-1], flush=True)
        del model, ways, ask
        torch.cuda.empty_cache()
    print_table(["precision", "way", "answers", "seconds", "tokens/s", "times one by one"], rows)


def texts(options: argparse.Namespace) -> None:
    pairs = [json.loads(line) for line in options.pairs.read_text(encoding="utf-8").splitlines()]
    chat = make_chat(load_tokenizer(options.model or options.tokenizer), options.instruction)
    trained = None if options.model else train(options, chat)
    rows, notes = [], []
    for dtype in (torch.bfloat16, torch.float32):
        if trained is not None:
            model = trained.to(dtype)
        elif options.adapter:
            model = load_tuned(options.model, options.adapter, dtype=dtype)
        else:
            model = load_model(options.model, dtype=dtype)
        prompts = [chat.prompt_ids(make_record(pair["prompt"], "", None, "", "")) for pair in pairs][: options.rows]
        step = max(1, len(prompts) // options.slow_rows)
        sample = range(0, len(prompts), step)
        name = str(dtype).removeprefix("torch.")
        batches(model, chat.stop_id)(prompts[:2])
        seconds, said = timed(batches(model, chat.stop_id), prompts)
        slow_seconds, slow = asked_in_turn(
            one_by_one(model, chat.stop_id), [prompts[i] for i in sample], options.seconds
        )
        gain = slow_seconds / len(slow) / (seconds / len(said))
        different = [i for i, one in zip(sample, slow, strict=False) if chat.text(one) != chat.text(said[i])]
        right = sum(chat.text(ids) == pair["completion"] for ids, pair in zip(said, pairs, strict=False)) / len(said)
        same = len(slow) - len(different)
        rows.append([name, len(said), round(seconds, 2), len(slow), round(slow_seconds, 1), round(gain, 1)])
        rows[-1] += [f"{same} of {len(slow)}", f"{same / len(slow):.2%}", f"{right:.1%}"]
        print(rows[-1], flush=True)
        by_index = dict(zip(sample, slow, strict=False))
        notes += [f"{name}: {difference(model, chat, prompts[i], by_index[i], said[i])}" for i in different]
    head = ["precision", "answers", "seconds", "one by one", "seconds", "times faster", "same text", "share", "exact"]
    print_table(head, rows)
    print("\n".join(["Differences:", *notes]) if notes else "No difference.")


def difference(model: Any, chat: Chat, prompt: list[int], slow: list[int], fast: list[int]) -> str:
    """Where two answers part, and how far apart the model holds the two tokens."""
    place = next((i for i, (a, b) in enumerate(zip(slow, fast, strict=False)) if a != b), min(len(slow), len(fast)))
    if place == min(len(slow), len(fast)):
        return f"one answer ends at token {place}, the other goes on"
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + slow[:place]], device=model.device)).logits[0, -1].float()
    a, b = slow[place], fast[place]
    words = [chat.tokenizer.decode([token]) for token in (a, b)]
    return f"token {place}: {words[0]!r} or {words[1]!r}, logits {logits[a]:.4f} and {logits[b]:.4f}"


def train(options: argparse.Namespace, chat: Chat) -> Any:
    """A small model that has learnt its task from nothing, so that its answers are as sure as a tuned model's."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(chat.tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    with torch.device(device()):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    pairs = [json.loads(line) for line in options.train.read_text(encoding="utf-8").splitlines()]
    rows = []
    for pair in pairs:
        record = make_record(pair["prompt"], pair["completion"], None, "", "")
        rows.append((chat.prompt_ids(record), chat.completion_ids(record.completion)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.01)
    start, step, loss = time.perf_counter(), 0, torch.tensor(0.0)
    generator = torch.Generator().manual_seed(0)
    while (done := (time.perf_counter() - start) / options.train_seconds) < 1:
        batch = [rows[i] for i in torch.randint(len(rows), (64,), generator=generator).tolist()]
        width = max(len(p) + len(c) for p, c in batch)
        ids = torch.tensor([p + c + [chat.stop_id] * (width - len(p) - len(c)) for p, c in batch], device=model.device)
        labels = torch.tensor(
            [[-100] * len(p) + c + [-100] * (width - len(p) - len(c)) for p, c in batch], device=model.device
        )
        for group in optimiser.param_groups:
            group["lr"] = 6e-4 * min(1.0, step / 100) * (1 - done)
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
    print(f"trained {step} steps, last loss {loss.item():.4f}", flush=True)
    return model.eval()


def random_prompts(count: int, vocabulary: int) -> list[list[int]]:
    """A common beginning of 24 tokens and 16 to 80 of each prompt's own."""
    generator = torch.Generator().manual_seed(1)
    common = torch.randint(10, vocabulary, (24,), generator=generator).tolist()
    lengths = torch.randint(16, 81, (count,), generator=generator).tolist()
    return [common + torch.randint(10, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def timed(ask: Ask, prompts: list[list[int]]) -> tuple[float, list[list[int]]]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    said = ask(prompts)  # lists: the card has been waited for
    return time.perf_counter() - start, said


def asked_in_turn(ask: Ask, prompts: list[list[int]], seconds: int) -> tuple[float, list[list[int]]]:
    """One prompt after the other, as many as the time allows."""
    took, said = 0.0, []
    for prompt in prompts:
        if took > seconds:
            break
        one, answers = timed(ask, [prompt])
        took, said = took + one, said + answers
    return took, said


@contextmanager
def limited(what: str, seconds: int) -> Iterator[None]:
    """One way that fails or takes too long does not cost the others."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    finally:
        signal.alarm(0)


def print_table(head: list[str], rows: list[list[Any]]) -> None:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(f"\n{card}, Python {platform.python_version()}, torch {torch.__version__}, {transformers.__version__=}\n")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "texts"])
    parser.add_argument("--rows", type=int, default=512, help="answers of the fast ways")
    parser.add_argument("--slow-rows", type=int, default=8, help="answers of one-by-one `generate`")
    parser.add_argument("--seconds", type=int, default=40, help="limit of each way")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--instruction", default=INSTRUCTION, help="task.instruction that the model was tuned with")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--train-seconds", type=int, default=40)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    {"speed": speed, "texts": texts}[options.what](options)


if __name__ == "__main__":
    main()
