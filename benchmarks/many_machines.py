"""clean, dedup and split by rows on one machine, and on Ray clusters of this machine's cores, beside each other.

    python -m benchmarks.many_machines workers --rows 100000 --output benchmarks/results/many_machines.md
    python -m benchmarks.many_machines growth --rows 100000 1000000 --output benchmarks/results/rows.md

Each stage is a process of its own. `workers`: with one, two and three workers of one core, and with two of which one is
killed, and another started, every --kill-every seconds for as long as it takes; every output must be that of one
machine. `growth`: seconds, CPU seconds and memory of the stages by rows, without Ray; `checks` up to --most-checked.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from dvc.utils.serialize import dumps_yaml

from benchmarks.dedup import describe_machine
from benchmarks.prompts import make_prompts
from stages.core import paths
from stages.core.yaml_reader import load_yaml

ROOT = Path(__file__).parents[1]
STAGES = ("clean", "dedup", "split")
INTENTS = ("tracking", "refund", "exchange", "cancel", "invoice")
# Of a hundred rows so many are dirty, so that every operator has work.
DIRT: list[Callable[[str], str]] = [
    lambda text: f"<p>{text}</p><br><b>Thanks</b> &amp; bye",
    lambda text: text + " â€™ CafÃ©",
    lambda text: text + " Write to jane.doe@example.com.",
    lambda text: text + " Call +1 202-555-0143.",
]
DRAW = "from stages.prepare.split.draw import draw; draw(redraw=False)"
MEMORY = {"object_store_memory": 200 * 2**20}


class Run(NamedTuple):
    """Of one process: seconds by the clock and of processors, and the most MiB that it and that a worker of it held."""

    seconds: float
    cpu: float
    peak: float
    worker: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("workers", "growth"))
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--locked", type=int, default=500)
    parser.add_argument("--kill-every", type=float, default=30.0)
    parser.add_argument("--most-checked", type=int, default=200_000)
    parser.add_argument("--measured", type=Path, help="of `growth`: what was measured, kept for a run that was cut")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # else workers yield to all others here
    os.environ.pop("TUNETRAIL_RAY", None)
    with tempfile.TemporaryDirectory() as folder:
        lines = (workers if options.what == "workers" else growth)(options, Path(folder))
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def workers(options: argparse.Namespace, folder: Path) -> list[str]:
    machine, (rows, *_) = describe_machine(), options.rows
    make_project(folder, rows, options.locked)
    warm(folder)
    runs = [("one machine, all cores", chain(folder, STAGES, draw=True), "")]
    expected = written(folder)
    with cluster() as (made, add):
        for count in (1, 2, 3):
            add()
            warm(folder)
            runs.append((f"Ray, {count} worker{'s' * (count > 1)}", chain(folder, STAGES), ""))
            check(folder, expected)
        made.remove_node(next(iter(made.worker_nodes)), allow_graceful=False)
        found, killed = chain_with_deaths(folder, made, add, options.kill_every)
        check(folder, expected)
        runs.append((f"Ray, 2 workers, one killed every {options.kill_every:g} s", found, str(killed)))
    runs.append(("one machine again", chain(folder, STAGES), ""))
    one = {stage: (runs[0][1][stage].seconds + runs[-1][1][stage].seconds) / 2 for stage in STAGES}
    single, three = ({stage: runs[n][1][stage].seconds for stage in STAGES} for n in (1, 3))
    speed = ", ".join(f"{stage} {single[stage] / three[stage]:.2f}" for stage in STAGES)
    efficiency = ", ".join(f"{stage} {single[stage] / three[stage] / 3:.0%}" for stage in STAGES)
    return [
        "# The data stages on Ray clusters",
        "",
        f"`python -m benchmarks.many_machines workers --rows {rows} --locked {options.locked}`: generated rows,",
        f"{options.locked} of them locked; {expected.count} files, {expected.size / 2**20:.0f} MiB, are the same.",
        f"Ray {version('ray')}, {machine['cpu']}, {machine['cores']} cores that other work shared (load",
        f"{machine['load_at_start']} before, {os.getloadavg()[0]:.1f} after). Each worker is a process of this machine",
        f"with one core in name only: driver and workers share {machine['cores']} cores, so more workers than that are",
        "not faster. The seconds of a stage include starting Python and connecting to the cluster.",
        "",
        f"| run | killed | {' | '.join(f'{stage} s, to one machine' for stage in STAGES)} |",
        "|---|---:" + "|---:" * len(STAGES) + "|",
        *(
            f"| {name} | {killed} | "
            + " | ".join(f"{run[stage].seconds:.1f}, {run[stage].seconds / one[stage]:.2f}" for stage in STAGES)
            + " |"
            for name, run, killed in runs
        ),
        "",
        f"Three workers against one, times as fast: {speed}; divided by three: {efficiency}.",
        "",
        "The most memory in MiB that a stage's process held, and that a worker of Ray held of its own:",
        "",
        f"| run | {' | '.join(f'{stage}, worker' for stage in STAGES)} |",
        "|---" * (1 + len(STAGES)) + "|",
        *(
            f"| {name} | " + " | ".join(f"{run[stage].peak:.0f}, {run[stage].worker:.0f}" for stage in STAGES) + " |"
            for name, run, _ in runs
        ),
    ]


def growth(options: argparse.Namespace, folder: Path) -> list[str]:
    machine, known = describe_machine(), dict[str, dict[int, Run]]()
    file = options.measured or folder / "measured"
    for line in file.read_text().splitlines() if file.is_file() else ():
        stage, rows, *run = json.loads(line)
        known.setdefault(stage, {})[rows] = Run(*run)
    for rows in options.rows:
        stages = (*STAGES, "checks") if rows <= options.most_checked else STAGES
        if all(rows in known.get(stage, {}) for stage in stages):
            continue
        place = folder / str(rows)
        make_project(place, rows, options.locked)
        warm(place)
        for stage in stages:
            if stage == "split":
                timed(place, "-c", DRAW)
            run = known.setdefault(stage, {})[rows] = timed(place, "-m", f"stages.prepare.{stage}")
            with file.open("a") as log:
                log.write(json.dumps([stage, rows, *run]) + "\n")
        shutil.rmtree(place)
    lines = []
    for stage, runs in known.items():
        before: tuple[int, Run] | None = None
        for rows, run in sorted(runs.items()):
            power = growing = ""
            if before:
                power = f"{math.log(run.cpu / before[1].cpu) / math.log(rows / before[0]):.2f}"
                growing = f"{(run.peak - before[1].peak) / (rows - before[0]) * 1e6:,.0f}"
            measured = f"{run.seconds:.0f} | {run.cpu:.0f} | {power} | {run.peak:,.0f} | {growing}"
            lines.append(f"| {stage} | {rows:,} | {measured} |")
            before = rows, run
    return [
        "# The data stages by rows",
        "",
        f"`python -m benchmarks.many_machines growth --rows {' '.join(map(str, options.rows))}",
        f"--locked {options.locked}`: generated rows, {options.locked} of them locked; {machine['cpu']},",
        f"{machine['cores']} cores that other work shared (load",
        f"{machine['load_at_start']} before, {os.getloadavg()[0]:.1f} after), so CPU seconds say more than seconds.",
        "The exponent is that of the CPU seconds from one number of rows to the next. Peak: the most memory that the",
        "process held, Python and libraries included; the last column is its growth.",
        "",
        "| stage | rows | seconds | CPU seconds | exponent | peak MiB | more MiB for a million rows |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *lines,
    ]


def make_project(folder: Path, rows: int, locked: int) -> None:
    (folder / "data" / "raw").mkdir(parents=True)
    params = load_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["holdout"] |= {"max_rows": locked}
    (folder / paths.PARAMS).write_text(dumps_yaml(params), encoding="utf-8")
    (folder / "data" / "schema.json").write_bytes((ROOT / "data" / "schema.json").read_bytes())
    with (folder / "data" / "raw" / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number, prompt in enumerate(make_prompts(rows).texts):
            dirt, intent = number % 100, INTENTS[number % len(INTENTS)]
            text = DIRT[dirt](prompt) if dirt < len(DIRT) else prompt
            answer = json.dumps({"intent": intent, "product": None, "order": None, "urgent": number % 7 == 0})
            line = json.dumps({"prompt": text, "completion": answer, "label": intent}, ensure_ascii=False)
            file.write((line[:-9] if dirt == 99 else line) + "\n")


def chain(folder: Path, stages: Sequence[str], draw: bool = False) -> dict[str, Run]:
    """Each stage after the other; with `draw` the hold-out before `split`."""
    found = {}
    for stage in stages:
        if draw and stage == "split":
            timed(folder, "-c", DRAW)
        found[stage] = timed(folder, "-m", f"stages.prepare.{stage}")
    return found


def timed(folder: Path, *command: str) -> Run:
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        own = worker = 0.0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            own = max(own, peak_of(process.pid))
            worker = max([worker, *worker_memory()])
            time.sleep(0.2)
        _, status, usage = ended
    if status:
        sys.exit(f"{command} failed: {(folder / 'said').read_text()}")
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, own, worker)


def peak_of(process: int) -> float:
    """MiB; `ru_maxrss` would be at least what this process held when it started the other."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def worker_memory() -> Iterator[float]:
    """MiB that each worker of Ray at work holds, without what it shares."""
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if (process.info["name"] or "").startswith(("ray::clean", "ray::near")):
                held = process.memory_info()
                yield (held.rss - held.shared) / 2**20


class Written(NamedTuple):
    count: int
    size: int
    digest: str


def written(folder: Path) -> Written:
    files = sorted(path for top in ("data", "metrics") for path in (folder / top).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return Written(len(files), sum(file.stat().st_size for file in files), digest.hexdigest())


def check(folder: Path, expected: Written) -> None:
    if written(folder) != expected:
        sys.exit("other outputs than those of one machine")


@contextmanager
def cluster() -> Iterator[tuple[Any, Callable[[], Any]]]:
    """A head on which no task runs; the second value adds a worker of one core."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY})
    os.environ["TUNETRAIL_RAY"] = made.address
    try:
        yield made, lambda: made.add_node(num_cpus=1, **MEMORY)
    finally:
        del os.environ["TUNETRAIL_RAY"]
        ray.shutdown()
        made.shutdown()


def warm(folder: Path) -> None:
    """numba's kernels are compiled, and a cluster, where there is one, has the package of `stages`."""
    timed(
        folder,
        "-c",
        "from stages.near_duplicates.pairs import near_pairs; near_pairs([str(n) for n in range(2000)], 90)",
    )


def chain_with_deaths(folder: Path, made: Any, add: Callable[[], Any], seconds: float) -> tuple[dict[str, Run], int]:
    """The oldest worker is killed and another started, again and again until the stages have ended; and how often."""
    killed = 0
    with ThreadPoolExecutor(1) as thread:  # Ray starts machines in the main thread alone
        running = thread.submit(chain, folder, STAGES)
        while wait([running], seconds).not_done:
            oldest = next(iter(made.worker_nodes))
            add()
            made.remove_node(oldest, allow_graceful=False)
            killed += 1
    return running.result(), killed


if __name__ == "__main__":
    main()
