"""A small copy of the project to run: its code and pipeline, a tiny model, a few rows, one git repository."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml
from stage_server import programs
from tiny_model import save_tiny_model

from stages.core.files import tree_digest
from stages.core.yaml_reader import load_yaml

ROOT = Path(__file__).parents[1]
# A training of seconds, of the tiny model.
TINY_TRAINING: dict[str, Any] = {
    "rank": 4,
    "alpha": 8,
    "learning_rate": 1e-3,
    "layers_to_transform": None,
    "batch_size": 4,
    "epochs": 1,
    "max_tokens": 400,
    "evaluate_every": 4,
    "sample_prompts": 1,
}
_COPIED = [
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitignore",
    "constraints/data.txt",
    "constraints/engines.txt",
    "constraints/model.txt",
    "constraints/release.txt",
    "constraints/tools.txt",
    "data/.gitignore",
    "data/chat_template.jinja",
    "data/general.jsonl",
    "data/metric/README.md",
    "data/preferences/README.md",
    "data/refusals.jsonl",
    "data/replay.jsonl",
    "data/schema.json",
    "dvc.yaml",
    "metrics/.gitignore",
    "metrics/seeds/README.md",
    "models/.gitignore",
    "params.yaml",
    "reviews/README.md",
]
_INTENTS = ("refund", "tracking", "invoice", "account")
_WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "haven",
    "indigo",
    "juniper",
    "kelp",
    "lotus",
    "maple",
    "nectar",
    "onyx",
    "pearl",
]


def make_project(folder: Path) -> Path:
    """Everything but outputs, committed; the base model lies beside the repository."""
    repository = folder / "project"
    for name in _COPIED:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repository / name)
    # With what Python compiled of it, but for what it is writing now.
    shutil.copytree(ROOT / "stages", repository / "stages", ignore=shutil.ignore_patterns("*.pyc.*"))
    model = save_tiny_model(folder / "tiny-model")
    set_params(
        repository,
        {
            "model": {"source": "path:../tiny-model", "file": None, "sha256": tree_digest(model), "dtype": "float32"},
            "clean": {"max_rejected_share": 0.5},
            "holdout": {"share": 0.2, "max_rows": 12},
            "split": {"validation_share": 0.2},
            "augment": {"malformed_every": 20, "replay_share": 0.05},
            "train": TINY_TRAINING,
            "generation": {"max_new_tokens": 8},
            "quantize": {"formats": ["merged", "nf4", "int8", "gguf", "compressed_tensors", "lora"]},
        },
    )
    write_raw(repository, rows=64)
    run(repository, "git", "init", "--quiet", "--initial-branch=main")
    return repository


def write_raw(repository: Path, rows: int) -> None:
    """Rows with a known share of repeats: every eighth row occurs twice, and one line is no JSON."""
    lines = []
    for number in range(rows):
        intent = _INTENTS[number % len(_INTENTS)]
        order = f"K-{1000 + 137 * number}"
        values = {"intent": intent, "product": None, "order": order, "urgent": bool(number % 3)}
        # Words drawn by the row's number, so that no two prompts are near-duplicates of each other.
        words = hashlib.sha256(str(number).encode()).digest()[:6]
        prompt = f"{intent} {order}: " + " ".join(_WORDS[byte % len(_WORDS)] for byte in words)
        line = json.dumps({"prompt": prompt, "completion": json.dumps(values), "label": intent})
        lines += [line] * (2 if number % 8 == 0 else 1)
    lines.append('{"prompt": "cut in the midd')
    raw = repository / "data" / "raw" / "tickets.jsonl"
    raw.parent.mkdir(exist_ok=True)
    raw.write_text("\n".join(lines) + "\n", encoding="utf-8")


def set_params(repository: Path, changes: dict[str, Any]) -> None:
    """Change keys of params.yaml; sections are merged, values replaced."""
    file = repository / "params.yaml"
    params = load_yaml(file.read_text(encoding="utf-8"))
    for section, values in changes.items():
        if isinstance(values, dict):
            params[section].update(values)
        else:
            params[section] = values
    file.write_text(dumps_yaml(params), encoding="utf-8")


def run(repository: Path, *command: str, check: bool = True, served: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository with this environment's programs; show its output when it fails.

    `dvc` and the stages are forked from a process that has their libraries loaded, unless `served` is False.
    """
    # Reading commands, too, write below .git and .dvc/tmp, which other processes may be copying.
    assert not repository.parent.with_suffix(".done").exists(), "no command runs in the shared pipeline"
    folders = [*([programs()] if served and command[0] != "git" else []), Path(sys.executable).parent]
    environment = os.environ | {
        "PATH": os.pathsep.join([*map(str, folders), os.environ["PATH"]]),
        "PYTHONPATH": "",  # the repository's own stages, found from its folder, not those under test beside it
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _IDENTITY.items()},
    }
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


_IDENTITY = {"NAME": "Tester", "EMAIL": "tester@example.com"}


def commit(repository: Path, message: str) -> str:
    """Commit all that git does not ignore; return the commit's id."""
    run(repository, "git", "add", "--all")
    run(repository, "git", "commit", "--quiet", "--message", message)
    return run(repository, "git", "rev-parse", "HEAD").stdout.strip()


def stage_outputs(repository: Path, stage: str) -> dict[str, str]:
    """SHA-256 of every output of a stage, by its path."""
    entry = load_yaml((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    items = [item for kind in ("outs", "metrics", "plots") for item in entry.get(kind, [])]
    places = [next(iter(item)) if isinstance(item, dict) else item for item in items]
    return {place: tree_digest(repository / place) for place in places}
