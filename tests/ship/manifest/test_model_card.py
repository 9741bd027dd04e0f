"""The model card says what each task was told."""

from scored import ROOT

from stages.params.loader import read_params
from stages.params.task import Task
from stages.ship.manifest.model_card import instructions


def test_each_task_has_its_instruction() -> None:
    task = read_params(ROOT / "params.yaml")["task"]
    assert instructions(Task.model_validate(task)) == f"> {task['instruction']}"
    said = instructions(Task.model_validate({**task, "instructions": {"tone": "Name the tone."}}))
    assert said == f"> {task['instruction']}\n\nRows tagged `tone`:\n\n> Name the tone."
