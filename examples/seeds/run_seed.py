"""Train and evaluate with another seed: `python examples/seeds/run_seed.py SEED`, in the repository's root.

As for a fold of examples/cross_validation, the stages run in a folder of their own, .tunetrail/seeds/SEED, and all that
they only read is linked there. The adapter is not kept: what is wanted is how far the figures of such runs lie apart.
"""

import shutil
import sys
from pathlib import Path

from dvc.utils.serialize import dumps_yaml

from stages.core.dependencies import held
from stages.core.yaml_reader import load_yaml

sys.path.append(str(Path(__file__).parents[1] / "cross_validation"))
from train_fold import linked, run_stages

_READ = ("data/checks", "data/metric", "data/preferences", "data/split", "data/train.jsonl", "models/base")
_ANSWERS = tuple(f"data/generations/{name}" for name in ("base.jsonl", "base_probes.jsonl", "linear.json"))


def main(seed: str) -> None:
    root = Path.cwd()
    work, target = root / ".tunetrail/seeds" / seed, root / f"metrics/seeds/{seed}.json"
    linked(root, work, *_READ, *_ANSWERS)
    params = load_yaml((root / "params.yaml").read_bytes())
    params |= {"seed": int(seed), "evaluate": {**params["evaluate"], "previous": None}}
    (work / "params.yaml").unlink()
    (work / "params.yaml").write_text(dumps_yaml(params), encoding="utf-8")
    run_stages(work, "tune.train", "tune.prefer", "measure.evaluate")
    target.parent.mkdir(exist_ok=True)
    shutil.move(work / "metrics/evaluate.json", target)
    shutil.rmtree(work)


if __name__ == "__main__":
    with held(Path(__file__).relative_to(Path.cwd()).as_posix()):
        main(*sys.argv[1:])
