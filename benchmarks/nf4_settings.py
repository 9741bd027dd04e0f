"""Which layers of the sample's model must keep 16 bit for its NF4 file to answer as the merged model does.

    python benchmarks/nf4_settings.py --model models/release/merged [--tickets 200] [VARIANT ...]

The linear layers are rounded to NF4 by bitsandbytes' own functions and put back in float32, so that a variant takes a
forward pass and no file; block sizes that `from_pretrained` cannot ask for are tried as well. The tickets are drawn
by the sample's generator with a seed of their own: the pipeline never saw them, and none is of the hold-out. A ticket
counts as right when every token of its reference, the stop token included, is the model's first choice, which is when
greedy decoding gives the reference. The size is that of the weights in the file: 16 bit, or 4 bit and the scales.

The table goes to benchmarks/results/nf4_settings.md.
"""

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from support_ticket_writer import Writer
from transformers.quantizers.quantizers_utils import should_convert_module

from stages.core.yaml_reader import load_yaml
from stages.model.chat import task_chat
from stages.model.likelihoods import likelihoods
from stages.model.loading import load_model, load_tokenizer
from stages.params.loader import load_params
from stages.records.record import Record, make_record
from stages.scoring.intervals import proportion_interval

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "nf4_settings.md"
SEED = 99  # of the tickets; the generator's own is another
DOUBLE_BLOCK = 256  # scales of blocks that share one float32, where scales are quantised to 8 bit


@dataclass(frozen=True, slots=True)
class Variant:
    """How the linear layers are stored. `keep` names those that stay in 16 bit, as transformers reads such names."""

    keep: tuple[str, ...] = ()
    block: int = 64
    double: bool = True
    nothing: bool = False  # no layer is quantised


def layers(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{number}" for number in range(first, last + 1))


VARIANTS = {
    "all in 16 bit": Variant(nothing=True),
    "NF4, scales in 8 bit": Variant(),
    "NF4": Variant(double=False),
    "blocks of 32": Variant(block=32, double=False),
    "blocks of 32, scales in 8 bit": Variant(block=32),
    "first 3 layers kept": Variant(layers(0, 2)),
    "last 3 layers kept": Variant(layers(27, 29)),
    "layers 20 to 29 kept": Variant(layers(20, 29)),
    "down_proj kept": Variant(("down_proj",)),
    "v_proj kept": Variant(("v_proj",)),
    "v_proj, o_proj kept": Variant(("v_proj", "o_proj")),
    "attention kept": Variant(("q_proj", "k_proj", "v_proj", "o_proj")),
    "gate_proj, up_proj kept": Variant(("gate_proj", "up_proj")),
}


def tickets(count: int) -> list[Record]:
    phrases = load_yaml((ROOT / "data" / "support_ticket_phrases.yaml").read_text(encoding="utf-8"))
    writer = Writer(phrases, random.Random(SEED))
    drawn = [writer.ticket(intent) for _ in range(-(-count // 8)) for intent in phrases["intents"]][:count]
    return [
        make_record(ticket.clean, json.dumps(ticket.completion, ensure_ascii=False), None, "drawn", f"drawn:{number}")
        for number, ticket in enumerate(drawn, start=1)
    ]


def rounded(weight: torch.Tensor, variant: Variant) -> torch.Tensor:
    """The weight as the file gives it back, in its own type and shape."""
    codes, state = quantize_4bit(
        weight.bfloat16(), blocksize=variant.block, compress_statistics=variant.double, quant_type="nf4"
    )
    return dequantize_4bit(codes, state).to(weight.dtype)


def store(model: Any, originals: dict[str, torch.Tensor], variant: Variant) -> int:
    """Give every linear layer the variant's weights; the bytes of the whole model in the file."""
    head = model.get_output_embeddings().weight
    numbers = {id(parameter): parameter.numel() for parameter in model.parameters()}  # tied weights stand there once
    numbers[id(head)] = head.numel()
    size = 2 * sum(numbers.values())
    for name, weight in originals.items():
        target = model.get_submodule(name).weight
        if variant.nothing or not should_convert_module(name, list(variant.keep)):
            target.data.copy_(weight)
            continue
        target.data.copy_(rounded(weight, variant))
        blocks = -(-weight.numel() // variant.block)
        scales = blocks + 4 * -(-blocks // DOUBLE_BLOCK) if variant.double else 4 * blocks
        size += weight.numel() // 2 + scales - 2 * weight.numel()
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="the merged model")
    parser.add_argument("--tickets", type=int, default=200)
    parser.add_argument("--to", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    arguments = parser.parse_args()
    model = load_model(arguments.model, dtype=torch.float32)
    chat = task_chat(load_tokenizer(arguments.model), load_params("task").task)
    asked = tickets(arguments.tickets)
    head = model.get_output_embeddings()
    originals = {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = ["| stored | right | nats a token | bits a weight | MB |", "|---|---:|---:|---:|---:|"]
    for name in arguments.variants or VARIANTS:
        size = store(model, originals, VARIANTS[name])
        scored = likelihoods(model, chat, asked)
        right = sum(one.agreed == one.tokens for one in scored)
        low, high = proportion_interval(right, len(scored), 0.95)
        nats = sum(one.nats for one in scored) / sum(one.tokens for one in scored)
        share = f"{right} of {len(scored)} ({100 * low:.1f} to {100 * high:.1f} %)"
        lines.append(f"| {name} | {share} | {nats:.4f} | {8 * size / count:.2f} | {size / 1e6:.1f} |")
        print(lines[-1], flush=True)
    title = f"# NF4 on the sample's model\n\n`python benchmarks/nf4_settings.py`, {time.strftime('%Y-%m-%d')}.\n\n"
    arguments.to.write_text(title + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
