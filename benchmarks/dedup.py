"""Near-duplicate search against other libraries: one table from one run, the same rows, the same cores.

    python -m benchmarks.dedup --rows 20000 100000 1000000 --snips ../shared/data/snips/train.jsonl \\
        --contenders OTHER_VENV/bin/python --output benchmarks/results/dedup

Each contender runs in a process of its own. OTHER_VENV has datasketch, rensa, semhash and text-dedup, which want
libraries of their own; what is not there or fails is named. The pairs of `fuzz.ratio >= 90` are the truth: those of
rapidfuzz where it compared all pairs, else ours. --output writes .md and .json.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.prompts import make_prompts
from stages.text.normal_form import normalise

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "benchmarks" / "dedup_contenders.py"
OURS = "ours"
# From so many rows on a contender is not asked: it would take hours.
TOO_MANY = {"rapidfuzz": 50_000, "rapidfuzz_full": 50_000, "datasketch": 500_000, "text_dedup": 500_000}
CONTENDERS = [OURS, "rapidfuzz", "rapidfuzz_full", "rensa", "datasketch", "text_dedup", "semhash"]
REPEATED = 50_000  # up to so many rows the best of three runs of ours counts, for one is short beside the noise


class Case(NamedTuple):
    name: str
    texts: list[str]
    planted: list[tuple[int, int]]


def main() -> None:
    options = read_options()
    cases = [Case(f"{count:,} generated", *make_prompts(count)) for count in options.rows]
    if options.snips:
        lines = options.snips.read_text(encoding="utf-8").splitlines()
        prompts = dict.fromkeys(normalise(json.loads(line)["prompt"]) for line in lines)
        cases.insert(0, Case(f"{len(prompts):,} SNIPS", list(prompts), []))
    machine = describe_machine()
    rows, phases = [], {}
    for case in cases:
        rows += compare(case, options)
        if OURS in options.only:
            phases[case.name] = run_phases(case)
    result = {"machine": machine, "load_at_end": round(os.getloadavg()[0], 1), "rows": rows, "phases": phases}
    text = markdown(result)
    print(text)
    if options.output:
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")
        options.output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[20_000])
    parser.add_argument("--snips", type=Path, help="a JSONL file with prompts")
    parser.add_argument("--contenders", help="the Python that has the other libraries", default=sys.executable)
    parser.add_argument("--limit", type=float, default=1500, help="seconds for one contender on one set")
    parser.add_argument("--only", nargs="*", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--output", type=Path, help="results without suffix")
    return parser.parse_args()


def describe_machine() -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ":")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ("numba", "numpy", "rapidfuzz")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def compare(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of the table for each contender; rapidfuzz's pairs, or else ours, are the truth."""
    measured: dict[str, tuple[dict[str, Any], np.ndarray | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts.json")
        texts.write_text(json.dumps(case.texts), encoding="utf-8")
        for name in options.only:
            measured[name] = run(name, case, texts, options)
            print(case.name, name, measured[name][0], file=sys.stderr, flush=True)
    truth = next(
        (measured[name][1] for name in ("rapidfuzz", OURS) if measured.get(name, ({}, None))[1] is not None), None
    )
    ours = measured[OURS][0].get("cpu_seconds") if OURS in measured else None
    return [
        {"set": case.name, "rows": len(case.texts), "contender": name, **row, **judge(found, truth, case, row, ours)}
        for name, (row, found) in measured.items()
    ]


def run(name: str, case: Case, texts: Path, options: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray | None]:
    if len(case.texts) >= TOO_MANY.get(name, math.inf):
        return {"note": "not run: too many rows"}, None
    own = name in (OURS, "rapidfuzz", "rapidfuzz_full")
    python = sys.executable if own else options.contenders
    pairs = texts.with_name(f"{name}.npy")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    best: dict[str, Any] = {}
    for _ in range(3 if name == OURS and len(case.texts) <= REPEATED else 1):
        command = [python, str(WORKER), name, str(texts), str(pairs)]
        try:
            done = subprocess.run(
                command, env=environment, cwd=texts.parent, capture_output=True, text=True, timeout=options.limit
            )
        except subprocess.TimeoutExpired:
            return {"note": f"stopped after {options.limit:.0f} s"}, None
        if done.returncode:
            return {"note": "absent: " + done.stderr.strip().splitlines()[-1][:100]}, None
        row = json.loads(done.stdout.splitlines()[-1])
        best = min(best or row, row, key=lambda one: one["seconds"])
    return best, np.load(pairs)


def run_phases(case: Case) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as texts:
        json.dump(case.texts, texts)
        texts.flush()
        command = [sys.executable, "-m", "benchmarks.dedup_phases", texts.name]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def judge(
    found: np.ndarray | None, truth: np.ndarray | None, case: Case, row: dict[str, Any], ours: float | None
) -> dict[str, Any]:
    if found is None or truth is None:
        return {}
    true = encoded(truth)
    own = encoded(found)
    hits = len(np.intersect1d(true, own, assume_unique=True))
    judged: dict[str, Any] = {
        "pairs": len(own),
        "recall": hits / max(1, len(true)),
        "precision": hits / max(1, len(own)),
    }
    if case.planted:
        planted = np.intersect1d(encoded(np.array(case.planted)), true)
        judged["planted_recall"] = len(np.intersect1d(planted, own)) / max(1, len(planted))
    if ours:
        judged["times_ours"] = row["cpu_seconds"] / ours
    return judged


def encoded(pairs: np.ndarray) -> np.ndarray:
    ordered = np.sort(pairs.reshape(-1, 2).astype(np.int64), axis=1)
    return np.unique(ordered[:, 0] << 32 | ordered[:, 1])


def markdown(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        "# Near-duplicate search",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; Python {machine['python']}, "
        f"numba {machine['numba']}, numpy {machine['numpy']}, rapidfuzz {machine['rapidfuzz']}. Load average "
        f"{machine['load_at_start']} at the start, {result['load_at_end']} at the end: beyond {machine['cores']}, "
        "other programs had a part of the cores, and seconds say less than CPU seconds (all cores together, × ours).",
        "",
        "The truth are the pairs of rapidfuzz where it ran, else ours; planted are the copies that are still near.",
        "Ours counts the loading of numba (half a second), not the compilation, once a machine. rapidfuzz gives up a",
        "pair that cannot reach the threshold (`rapidfuzz_full` computes every distance to its end). The others have",
        "128 hashes of character 5-grams in 16 bands (text_dedup its defaults); they are taken by their word:",
        "rapidfuzz would have to check what they propose.",
        "",
        "| set | contender | seconds | CPU seconds | × ours | peak MiB | pairs | recall | precision | planted recall |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [table_row(row) for row in result["rows"]]
    lines += ["", *growth(result["rows"]), "", *where_the_time_goes(result["phases"])]
    return "\n".join(lines)


def table_row(row: dict[str, Any]) -> str:
    name = (
        f"{row['contender']} {row['version']}"
        if "version" in row and row["contender"][:4] != OURS
        else row["contender"]
    )
    if "note" in row:
        return f"| {row['set']} | {name} | {row['note']} | | | | | | | |"

    def cell(key: str, form: str) -> str:
        return format(row[key], form) if key in row else ""

    cells = [
        cell("seconds", ".2f"),
        cell("cpu_seconds", ".2f"),
        cell("times_ours", ".1f"),
        cell("peak_mib", ",d"),
        cell("pairs", ",d"),
    ]
    cells += [cell("recall", ".4f"), cell("precision", ".4f"), cell("planted_recall", ".4f")]
    return f"| {row['set']} | {name} | {' | '.join(cells)} |"


def growth(rows: list[dict[str, Any]]) -> list[str]:
    """The exponent of the time in the number of rows, between each size of the generated set and the next."""
    sizes = [row for row in rows if row["contender"] == OURS and "seconds" in row and "generated" in row["set"]]
    return [
        f"Ours from {small['rows']:,} to {large['rows']:,} rows: CPU seconds × "
        f"{large['cpu_seconds'] / small['cpu_seconds']:.0f}, which grows with the rows to the power of "
        f"{math.log(large['cpu_seconds'] / small['cpu_seconds']) / math.log(large['rows'] / small['rows']):.2f}."
        for small, large in pairwise(sizes)
    ]


def where_the_time_goes(phases: dict[str, dict[str, Any]]) -> list[str]:
    """Two tables, from benchmarks/dedup_phases.py: CPU seconds and pairs of each phase, and what was tried."""
    lines = [
        "## Where the time goes",
        "",
        "CPU seconds of ours on one thread and their share, and how many pairs are left by each bound (for bags and",
        "folded sketches of the largest set an estimate from every eighth tile). Preparation loads numba's code and",
        "makes bags and sketches; it grows with the rows, bags and sketches with their square, alignment with what",
        "they leave.",
        "",
        "| set | preparation | bags | sketches | alignment | lengths leave | bags leave | folded sketches leave "
        "| sketches leave | near |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    largest = max(phases.values(), key=lambda found: found["left"]["lengths"], default=None)
    nanoseconds = 1e9 * largest["seconds"]["bags"] / largest["left"]["lengths"] if largest else 0
    for name, found in phases.items():
        total = sum(found["seconds"].values())
        times = [
            f"{found['seconds'][phase]:.2f} ({found['seconds'][phase] / total:.0%})"
            for phase in ("preparation", "bags", "sketches", "alignment")
        ]
        left = [f"{found['left'].get(bound, 0):,}" for bound in ("lengths", "bags", "folded", "sketches", "near")]
        lines.append(f"| {name} | {' | '.join(times + left)} |")
    lines += [
        "",
        "## Tried and dropped",
        "",
        "Other ways to search exactly, by the share of the pairs within the length window that they would still have",
        f"to look at. Bags take {nanoseconds:.2f} ns a pair of the largest set, a look into an index many times that:",
        "only a share of a few percent would pay.",
        "",
        "- Rarest q-grams: an inverted index of those of which a near pair has one in common (prefix filter: Xiao et",
        "  al., Ed-Join, VLDB 2008).",
        "- Segments: an index of D + 1 parts of a text, of which one stands in the other text almost where it was",
        "  (PassJoin: Li et al., VLDB 2011).",
        "- Boxes: a k-d tree of bags with leaves of 64 texts; pairs of a text and a leaf (of those that the leaf's own",
        "  lengths allow) whose box is near enough.",
        "",
        "| set | rarest 2-grams | rarest 3-grams | rarest 5-grams | segments | boxes |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in phases.items():
        lines.append(f"| {name} | {' | '.join(f'{share:.0%}' for share in found['dropped'].values())} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
