"""4-bit files of one model beside its merged one, row by row: bitsandbytes' NF4, and integers by group, three ways.

    python benchmarks/four_bit.py PROJECT [--rows 100] [--name sample]

PROJECT has run to the end, or has trained and been merged. W4A16 is written as merge_quantize writes it, rounded to
the nearest and by GPTQ on training rows; all are asked validation rows and the hold-out by transformers in this
process. `change` is in points, with its paired interval. The table goes to benchmarks/results/four_bit_NAME.md.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import torch

from stages.core import paths
from stages.core.files import files_under, remove
from stages.model.answers import rows_with_likelihood
from stages.model.chat import task_chat
from stages.model.loading import Weights, load_tokenizer
from stages.params.loader import check_params, read_params
from stages.records.record import read_records
from stages.scoring.intervals import mcnemar, paired_difference
from stages.scoring.rows import score_row
from stages.ship.merge_quantize.__main__ import calibration_rows, compress, merge, quantise
from stages.text.json_schema import Tasks

RESULTS = Path(__file__).resolve().parent / "results"
HEAD = "| file | MiB | s to make | rows | right | change (95 %) | won | lost | p | nats a token |"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("project", type=Path)
    given.add_argument("--rows", type=int, default=None)
    given.add_argument("--name", default="sample")
    options = given.parse_args()
    os.chdir(options.project)
    params = check_params(read_params())
    if not paths.MERGED.exists():
        merge(paths.BASE, paths.SFT, paths.MERGED, params.model.dtype)
    chat, tasks = task_chat(load_tokenizer(paths.BASE), params.task), Tasks(params.task)
    place = Path(".tunetrail/benchmark")
    remove(place)
    rows = {form: calibration_rows(params, form) for form in ("nf4", "compressed_tensors")}
    makers = {
        "merged, bf16": lambda target: None,
        "NF4, nearest": lambda target: quantise(paths.MERGED, target, "nf4", params.quantize.nf4),
        "NF4, GPTQ": lambda target: quantise(paths.MERGED, target, "nf4", params.quantize.nf4, rows["nf4"]),
        "W4A16, nearest": lambda target: compress(paths.MERGED, target, "W4A16"),
        "W4A16, GPTQ": lambda target: compress(paths.MERGED, target, "W4A16", rows["compressed_tensors"]),
    }
    sets = {"validation": read_records(paths.VALIDATION), "hold-out": read_records(paths.HOLDOUT)}
    lines, before = [HEAD, "|" + " --- |" * HEAD.count(" |")], dict[str, list[bool]]()
    for name, make in makers.items():
        target, start = place / name.replace(", ", "_"), time.perf_counter()
        make(target)
        seconds = time.perf_counter() - start
        folder = target if target.exists() else paths.MERGED
        mib = sum(file.stat().st_size for file in files_under(folder)) / 2**20
        for part, records in sets.items():
            said = rows_with_likelihood(Weights(folder), chat, records[: options.rows], params.generation, name)
            right = [score_row(row, tasks).exact_match for row in said]
            pairs = list(zip(before.setdefault(part, right), right, strict=True))
            both, won, lost = sum(a and b for a, b in pairs), sum(b > a for a, b in pairs), sum(a > b for a, b in pairs)
            n = len(pairs)
            low, high = paired_difference(both, won, lost, n - both - won - lost, 0.95)
            nats = sum(row["nats"] for row in said) / sum(row["reference_tokens"] for row in said)
            change = f"{100 * (won - lost) / n:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
            cells = [name, f"{mib:.1f}", f"{seconds:.0f}", part, f"{sum(right)} of {n}", change, str(won), str(lost)]
            lines.append(f"| {' | '.join([*cells, f'{mcnemar(won, lost):.3f}', f'{nats:.4f}'])} |")
            print(lines[-1], flush=True)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    note = f"{platform.machine()}, {os.cpu_count()} cores, {card}, torch {torch.__version__}."
    head = f"# 4-bit files: {options.name}\n\nMade by `benchmarks/four_bit.py`. {note}\n\n"
    (RESULTS / f"four_bit_{options.name}.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
