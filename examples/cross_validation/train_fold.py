"""Augment and train one fold: `python examples/cross_validation/train_fold.py NUMBER`, in the repository's root.

Stages read and write fixed places. So each fold has a folder of its own, .tunetrail/folds/NUMBER, in which the fold's
rows are the split and links lead to all else; what is trained there ends in models/folds/ and metrics/folds/. What the
fold reads is held against dvc.lock here, in the root: by that file the split in the fold's folder would be a wrong one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from stages.core.dependencies import held

_OWN = {".dvc", ".git", ".tunetrail", "data", "dvc.lock", "metrics", "models"}


def main(number: str) -> None:
    root = Path.cwd()
    rows = root / "data/split/folds" / number
    if not rows.is_dir():
        raise SystemExit(f"{rows.relative_to(root)} is missing; set split.cross_validation and run `dvc repro split`")
    work = root / ".tunetrail/folds" / number
    linked(root, work, "models/base")
    shutil.copytree(rows, work / "data/split")
    for name in ("holdout", "locked"):
        shutil.copy(root / f"data/split/{name}.jsonl", work / "data/split")
    run_stages(work, "prepare.augment", "tune.train")
    for made, place in (
        ("models/sft", f"models/folds/{number}"),
        ("metrics/train.json", f"metrics/folds/{number}.json"),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(root / place, ignore_errors=True)
        shutil.move(work / made, root / place)


def linked(root: Path, work: Path, *read: str) -> None:
    """Make `work` anew, with links to the code and settings of `root`, to its files of data in git, and to `read`."""
    shutil.rmtree(work, ignore_errors=True)
    shared = [path for path in root.iterdir() if path.name not in _OWN]
    shared += [path for path in (root / "data").iterdir() if path.is_file() and path.name != "train.jsonl"]
    for path in [*shared, *(root / name for name in read)]:
        place = work / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)


def run_stages(work: Path, *stages: str) -> None:
    for stage in stages:
        words = [sys.executable, "-m", f"stages.{stage}"]
        subprocess.run(words, cwd=work, env=os.environ | {"PYTHONPATH": str(work)}, check=True)


if __name__ == "__main__":
    with held(Path(__file__).relative_to(Path.cwd()).as_posix()):
        main(*sys.argv[1:])
