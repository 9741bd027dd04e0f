"""Where the seconds of the whole loop go, from raw rows to three judged artefacts: import, load and work by stage.

    python benchmarks/loop.py                                                  the sample, as params.yaml says
    python benchmarks/loop.py --params examples/snips/params-gpu.yaml --data FOLDER --holdout validate.jsonl

Every stage of dvc.yaml runs in its order, as `tunetrail repro` would run it, in a copy of the project that nothing was
computed in; FOLDER is copied to where `clean.raw` says. `--holdout` draws the hold-out first, from that source. The
table goes to benchmarks/results/loop.md, or to the file that `--to` names.

    import  seconds in which a module was being imported, wherever the `import` stands
    load    seconds in the functions `load_*` of stages/model/loading.py: weights, tokenizer, adapter, and the first
            use of the card; imports among them are counted as such
    work    all the rest, from the start of the process to its end
"""

import argparse
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "loop.md"
LOADING = "stages.model.loading"
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "bitsandbytes")
# What a stage may read, and nothing that a stage wrote.
PROJECT = (
    "stages",
    "examples",
    "reviews",
    "dvc.yaml",
    "pyproject.toml",
    "params.yaml",
    "constraints",
)
LAST_ARTEFACT = "merge_quantize"  # after it the three artefacts are judged; gates, manifest and report follow


@dataclass
class Clock:
    """Seconds of one process, by what it was doing; the innermost of nested imports and loads counts."""

    seconds: dict[str, float] = field(default_factory=lambda: {"import": 0.0, "load": 0.0})
    _doing: list[str] = field(default_factory=list)
    _since: float = 0.0

    def timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to `what`."""

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*args, **options)  # the main thread's time is the process's
            self._turn()
            self._doing.append(what)
            try:
                return function(*args, **options)
            finally:
                self._turn()
                self._doing.pop()

        return call

    def _turn(self) -> None:
        """Book the time since the last turn on what was being done."""
        now = time.perf_counter()
        if self._doing:
            self.seconds[self._doing[-1]] += now - self._since
        self._since = now


def run_timed(module: str, arguments: list[str], result: Path) -> None:
    """Run a module as `python -m` does, and write what its seconds went to."""
    clock = Clock()
    # Every import of a module that is not there yet goes through this function, in C and in Python.
    machinery: Any = sys.modules["_frozen_importlib"]
    find = clock.timed("import", machinery._find_and_load)

    def find_and_load(name: str, *args: Any) -> ModuleType:
        found: ModuleType = find(name, *args)
        if name == LOADING:
            loading = sys.modules[LOADING]
            for public in [public for public in vars(loading) if public.startswith("load_")]:
                setattr(loading, public, clock.timed("load", getattr(loading, public)))
        return found

    machinery._find_and_load = find_and_load
    sys.path[0] = str(Path.cwd())  # as `python -m`: this folder has modules of names that a stage could mean
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        result.write_text(json.dumps(clock.seconds), encoding="utf-8")


def make_project(folder: Path, params: Path, data: Path | None) -> None:
    """A copy of the repository before any stage ran."""
    for name in PROJECT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    (folder / "data").mkdir()
    outputs = {name for stage in stages().values() for name in stage["outs"]}
    for source in (ROOT / "data").iterdir():
        if source.is_file() and f"data/{source.name}" not in outputs:
            shutil.copy(source, folder / "data")
    shutil.copy(params, folder / "params.yaml")
    raw = folder / read_yaml(params)["clean"]["raw"]
    shutil.copytree(data or ROOT / "data" / "raw", raw)


def stages() -> dict[str, dict[str, list[str]]]:
    """The command and the outputs of every stage of dvc.yaml, in its order."""
    found = {}
    for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items():
        outs = [out if isinstance(out, str) else next(iter(out)) for out in stage.get("outs", [])]
        found[name] = {"cmd": stage["cmd"].split(), "outs": outs}
    return found


def read_yaml(file: Path) -> Any:
    from stages.core.yaml_reader import load_yaml

    return load_yaml(file.read_text(encoding="utf-8"))


def measure(folder: Path, module: str, arguments: list[str]) -> dict[str, float]:
    """Run a stage in a process of its own. Raises CalledProcessError when it fails."""
    result = folder / "seconds.json"
    start = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--run", str(result), module, *arguments], cwd=folder, check=True)
    total = time.perf_counter() - start
    seconds: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return {"total": total, **seconds, "work": total - sum(seconds.values())}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown: a line a stage, the sum up to the judged artefacts and of all."""
    columns = ("total", "import", "load", "work")
    lines = ["| stage | seconds | import | load | work |", "|---|---:|---:|---:|---:|"]

    def line(name: str, parts: list[dict[str, float]]) -> str:
        return "| " + " | ".join([name, *(f"{sum(part[column] for part in parts):.1f}" for column in columns)]) + " |"

    lines += [line(name, [row]) for name, row in rows.items()]
    names = list(rows)
    if LAST_ARTEFACT in names:
        to_artefacts = [rows[name] for name in names[: names.index(LAST_ARTEFACT) + 1]]
        lines.append(line("**to three judged artefacts**", to_artefacts))
    return "\n".join([*lines, line("**all**", list(rows.values()))])


def machine() -> str:
    """What it ran on, in a sentence; asked after the stages, so that the card is theirs alone."""
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{where}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def version(library: str) -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(library)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="raw rows; default: data/raw")
    parser.add_argument("--holdout", metavar="SOURCE", help="draw all rows of this source as the hold-out")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="these alone; default: all")
    parser.add_argument("--to", type=Path, default=RESULT, metavar="FILE")
    arguments = parser.parse_args()
    from stages.repro import libraries_read_ahead

    commands = stages()
    wanted = arguments.stages or list(commands)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as beside:
        folder = Path(name).resolve()
        make_project(folder, arguments.params, arguments.data)
        beside.enter_context(libraries_read_ahead(folder))
        for stage in wanted:
            if stage == "split" and arguments.holdout:
                draw = ["holdout", "draw", "--redraw", "--source", arguments.holdout]
                rows["holdout draw"] = measure(folder, "stages.cli", draw)
            module = commands[stage]["cmd"][2]  # python -m MODULE
            rows[stage] = measure(folder, module, commands[stage]["cmd"][3:])
            print(
                f"loop: {stage}: {json.dumps({key: round(value, 1) for key, value in rows[stage].items()})}", flush=True
            )
            arguments.to.write_text(table(rows) + "\n", encoding="utf-8")  # what there is, should a later one fail
    page = f"# The whole loop, by stage\n\n{machine()}, {time.strftime('%Y-%m-%d')}.\n\n    {' '.join(command())}\n\n"
    arguments.to.write_text(page + table(rows) + "\n", encoding="utf-8")
    print(table(rows))


def command() -> list[str]:
    """How this was called, without the folders of this machine."""
    return ["python", "benchmarks/loop.py", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:])]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_timed(sys.argv[3], sys.argv[4:], Path(sys.argv[2]))
    else:
        main()
