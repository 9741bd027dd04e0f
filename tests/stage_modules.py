"""Which module runs a stage, as dvc.yaml has it."""

from functools import cache
from pathlib import Path

from stages.core.yaml_reader import load_yaml

ROOT = Path(__file__).parents[1]


@cache
def module_of(stage: str) -> str:
    """The dotted name after `python -m` in the stage's command."""
    stages = load_yaml((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return str(stages[stage]["cmd"]).removeprefix("python -m ")
