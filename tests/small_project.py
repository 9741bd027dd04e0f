"""A pipeline of three quick stages on the real stages/core: each output says which bytes and parameters made it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scratch import ENVIRONMENT, Scratch

from stages.core.dvc_lock import Lock, cache_folder, cached_listing, parse_lock
from stages.core.files import file_digest

ROOT = Path(__file__).parents[1]
STAGE = """
import hashlib, json, sys, time
from pathlib import Path
from stages.core.errors import run
from stages.core.files import write_text
from stages.core.yaml_reader import load_yaml

def main():
    read = {{name: hashlib.md5(Path(name).read_bytes()).hexdigest() for name in {reads}}}
    params = load_yaml(Path("params.yaml").read_bytes())["{stage}"]
    for name in {writes}:
        time.sleep(params["seconds"])
        receipt = {{"name": name, "read": read, "params": params, "ballast": params["seed"] * params["ballast"]}}
        write_text(Path(name), json.dumps(receipt))
    for edit in Path("edits").glob("*"):  # as a person would while the stage runs
        name, _, text = edit.read_text().partition("\\n")
        Path(name).write_text(text)

if __name__ == "__main__":
    run(main)
"""
READS = {
    "first": ["raw.txt"],
    "second": ["out/one.txt", "out/folder/a", "out/in_git.txt"],
    "third": ["out/folder/b", "out/two.txt"],
}
WRITES = {
    "first": ["out/one.txt", "out/folder/a", "out/folder/b", "out/in_git.txt"],
    "second": ["out/two.txt"],
    "third": ["out/three.txt"],
}
FILES = {
    "stages/__init__.py": "",
    **{f"stages/{s}.py": STAGE.format(stage=s, reads=READS[s], writes=WRITES[s]) for s in READS},
    "params.yaml": """
first: {seed: a, seconds: 0, ballast: 10}
second: {seed: a, seconds: 0, ballast: 10, file: out/folder/a}
third: {seed: a, seconds: 0, ballast: 10}
""",
    "raw.txt": "raw",
    ".dvcignore": "__pycache__/\n",
    ".gitignore": "__pycache__/\n.tunetrail/\n/out/*\n!/out/in_git.txt\n",
    "dvc.yaml": """
stages:
  first:
    cmd: python -m stages.first
    deps: [raw.txt, stages/first.py]
    params: [first]
    outs: [out/one.txt, out/folder, {out/in_git.txt: {cache: false}}]
  second:
    cmd: python -m stages.second
    deps: [out/one.txt, "${second.file}", out/in_git.txt, stages]
    params: [second]
    outs: [out/two.txt]
  third:
    cmd: python -m stages.third
    deps: [out/folder, out/two.txt]
    params: [third]
    outs: [out/three.txt]
""",
}


def make_small(folder: Path) -> Scratch:
    """The repository after `dvc repro`, committed."""
    small = Scratch(folder)
    shutil.copytree(ROOT / "stages/core", folder / "stages/core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("cli.py", "commands.py", "repro.py"):
        shutil.copy(ROOT / "stages" / name, folder / "stages" / name)
    for name, text in FILES.items():
        small.write(name, text)
    small.git("init", "--quiet", "--initial-branch=main")
    small.dvc("init")
    small.dvc("repro")
    small.commit("Run A")
    return small


def command(small: Scratch, *words: str) -> tuple[int, str]:
    """Exit code and what was said on both streams."""
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(words, cwd=small.root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def by_hand(small: Scratch, stage: str) -> tuple[int, str]:
    return command(small, sys.executable, "-m", f"stages.{stage}")


def set_param(small: Scratch, stage: str, key: str, value: object) -> None:
    """Change a parameter of a stage, as a person does in an editor."""
    lines = (small.root / "params.yaml").read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith(f"{stage}:"))
    head, _, rest = lines[number].partition(f"{key}: ")
    end = min(rest.index(mark) for mark in ",}" if mark in rest)
    lines[number] = f"{head}{key}: {value}{rest[end:]}"
    small.write("params.yaml", "\n".join(lines) + "\n")


def lock_of(small: Scratch) -> Lock:
    return parse_lock((small.root / "dvc.lock").read_bytes())


def untruths(small: Scratch) -> list[str]:
    """Where dvc.lock says of an output another origin than the output says of itself; empty where the trail is true."""
    cache, found = cache_folder(small.root), []
    for stage in lock_of(small).stages.values():
        recorded = {dep.path: dep.md5 for dep in stage.deps}
        for dep in stage.deps:
            if dep.is_folder and (listing := cached_listing([cache], str(dep.md5))):
                recorded |= {f"{dep.path}/{name}": md5 for name, md5 in listing.items()}
        written = {out.path: out.md5 for out in stage.outs}
        for name in WRITES[stage.name]:
            receipt = json.loads((small.root / name).read_bytes())
            if name in written and file_digest(small.root / name, "md5") != written[name]:
                found.append(f"{name} is not what dvc.lock says that {stage.name} wrote")
            if receipt["params"] != stage.params["params.yaml"][stage.name]:
                found.append(f"{name} was made with other parameters")
            found += [f"{name} read another {dep}" for dep, md5 in receipt["read"].items() if recorded.get(dep) != md5]
    return found


def digests(small: Scratch) -> dict[str, str]:
    """SHA-256 of each output and of dvc.lock."""
    names = [name for names in WRITES.values() for name in names if (small.root / name).is_file()]
    return {name: hashlib.sha256((small.root / name).read_bytes()).hexdigest() for name in (*names, "dvc.lock")}
