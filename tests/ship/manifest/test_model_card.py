"""The model card says what each task was told."""

from scored import ROOT

from stages.params import Task, read_params
from stages.ship.manifest.model_card import instructions


def test_each_task_has_its_instruction() -> None:
    task = read_params(ROOT / "params.yaml")["task"]
    assert instructions(Task.model_validate(task)) == f"> {task['instruction']}"
    tags = {"tone": {"instruction": "Name the tone.", "kind": "classification", "labels": ["kind", "rude"]}}
    said = instructions(Task.model_validate({**task, "tags": tags}))
    assert said == f"> {task['instruction']}\n\nTasks tagged `tone`:\n\n> Name the tone."
