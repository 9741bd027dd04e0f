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
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(rows, work / "data/split")
    shutil.copy(root / "data/split/holdout.jsonl", work / "data/split")
    (work / "models").mkdir()
    shared = [path for path in root.iterdir() if path.name not in _OWN]
    shared += [path for path in (root / "data").iterdir() if path.is_file() and path.name != "train.jsonl"]
    for path in [*shared, root / "models/base"]:
        (work / path.relative_to(root)).symlink_to(path)

    environment = os.environ | {"PYTHONPATH": str(work)}
    for stage in ("prepare.augment", "tune.train"):
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=work, env=environment, check=True)
    for made, place in (
        ("models/sft", f"models/folds/{number}"),
        ("metrics/train.json", f"metrics/folds/{number}.json"),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(root / place, ignore_errors=True)
        shutil.move(work / made, root / place)


if __name__ == "__main__":
    with held(Path(__file__).relative_to(Path.cwd()).as_posix()):
        main(*sys.argv[1:])
