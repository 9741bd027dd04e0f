"""Each objective trains on top of the SFT model; sft hands it on; a killed run ends as one that was not killed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from preferred_project import lay_out_sft, prefer, preferences, save_teacher_of_one_word
from project import set_params
from rapidfuzz import fuzz
from safetensors.torch import load_file
from stage_process import die_training, run_stage
from tiny_model import save_tiny_model, tiny_tokenizer
from training_project import training_records

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_json, tree_digest, write_json
from stages.model.chat import make_chat
from stages.model.likelihoods import divergence
from stages.model.loading import load_model, load_tuned
from stages.records.record import read_dropped, read_rows, write_rows
from stages.tune.prefer.beyond_imitation import go_beyond
from stages.tune.train.callbacks import run_key, run_state


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out_sft(tmp_path_factory.mktemp("tuned") / "project")


@pytest.fixture
def project(tuned: Path, tmp_path: Path) -> Path:
    shutil.copytree(tuned, tmp_path / "project")
    return tmp_path / "project"


def weights(project: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(project / paths.ADAPTER / "adapter_model.safetensors")
    return found


def test_sft_hands_on_the_very_bytes_without_a_model(project: Path) -> None:
    code, text = run_stage(project, "prefer", _forbid_models)
    assert code == 0, text
    assert tree_digest(project / paths.ADAPTER) == tree_digest(project / paths.SFT)
    assert read_json(project / paths.PREFER_METRICS) == {"objective": "sft"}
    assert list(read_rows(project / paths.PREFERENCE_SAMPLES)) == []


def _forbid_models() -> None:
    """Whatever makes a tensor or reads weights fails."""
    import torch

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("sft needs no model")

    torch.nn.Module.__init__ = forbidden  # type: ignore[method-assign]


def test_dpo_raises_the_margin_on_pairs_that_are_held_back(project: Path) -> None:
    metrics = prefer(project, objective="dpo", epochs=2)
    assert metrics["rows"] == {
        "train": 16,
        "validation": 4,
        "near_the_holdout": 0,
        "thumbs_without_a_pair": 4,
        "too_long": 0,
    }
    assert metrics["measured"]["margin"]["first"] == pytest.approx(0, abs=1e-5)
    assert metrics["measured"]["margin"]["last"] > 0.1
    assert metrics["measured"]["preferred"]["last"] == 1
    assert metrics["red_flags"]["no_gain"] == 0
    saved = weights(project)
    assert saved.keys() == load_file(project / paths.SFT / "adapter_model.safetensors").keys()
    assert sorted(file.name for file in (project / paths.ADAPTER).iterdir()) == sorted(
        file.name for file in (project / paths.SFT).iterdir()
    )
    assert {row["step"] for row in read_rows(project / paths.PREFERENCE_SAMPLES)} >= {0, metrics["steps"]}
    assert (project / paths.PREFER / "curves/plots/metrics/validation/margin.tsv").is_file()


def test_kto_learns_from_thumbs(project: Path) -> None:
    metrics = prefer(project, objective="kto")
    assert metrics["rows"]["train"] + metrics["rows"]["validation"] == 2 * 20 + 4
    assert metrics["loss"]["validation_last"] < metrics["loss"]["validation_first"]


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_a_killed_run_goes_on_and_ends_the_same(project: Path, tmp_path: Path, objective: str) -> None:
    """GRPO draws its answers: the state of the random numbers goes on, too."""
    settings = {"objective": objective, "epochs": 3 if objective == "dpo" else 0.6}
    set_params(project, {"task": _SHORT_TEXT} if objective == "grpo" else {})
    alone = tmp_path / "alone"
    shutil.copytree(project, alone)
    whole = prefer(alone, **settings)
    set_params(project, {"prefer": settings})
    assert run_stage(project, "prefer", die_training)[0] < 0
    resumed = prefer(project)
    assert "going on from" in resumed["printed"]
    ours, theirs = weights(project), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any(
        not torch.equal(theirs[n], w) for n, w in load_file(alone / paths.SFT / "adapter_model.safetensors").items()
    )
    for file in (paths.PREFERENCE_SAMPLES, paths.PREFER_METRICS):
        assert (project / file).read_text() == (alone / file).read_text()
    assert whole["steps"] > 8
    assert not list((project / paths.CHECKPOINTS).glob("*"))


# One word at most: the tiny model, which says random bytes, meets this now and then.
_SHORT_TEXT = {"kind": "text", "max_words": 1}


def test_grpo_raises_the_reward_of_the_contract(project: Path) -> None:
    set_params(project, {"task": _SHORT_TEXT})
    settings = {"batch_size": 32, "generations": 8, "max_new_tokens": 12, "learning_rate": 3e-2, "evaluate_every": 10}
    metrics = prefer(project, objective="grpo", epochs=1, early_stopping_patience=None, **settings)
    reward = metrics["measured"]["reward"]
    assert 0 < reward["first"] < reward["last"]
    assert metrics["loss"]["validation_first"] == pytest.approx(1 - reward["first"])


def test_distil_comes_nearer_to_a_teacher_of_the_same_vocabulary(project: Path) -> None:
    teacher = save_tiny_model(project / "teacher", seed=5)
    settings = {"teacher": "teacher", "teacher_sha256": tree_digest(teacher), "epochs": 2}
    prefer(project, objective="distil", **settings)
    chat = make_chat(tiny_tokenizer(), "")
    far = [
        divergence(
            load_model(teacher), load_tuned(project / paths.BASE, project / place), chat, training_records(8, 1000)
        )
        for place in (paths.SFT, paths.ADAPTER)
    ]
    assert far[1] < far[0]


def test_a_teacher_of_another_vocabulary_gives_its_answers(project: Path) -> None:
    teacher = save_teacher_of_one_word(project / "teacher")
    settings = {"teacher": "teacher", "teacher_sha256": tree_digest(teacher)}
    metrics = prefer(project, objective="distil", **settings)
    assert metrics["rows"] == {
        "train": 40,
        "validation": 4,
        "general": 0,
        "too_long": 0,
        "unfinished_by_the_teacher": 0,
    }
    assert metrics["loss"]["validation_last"] < metrics["loss"]["validation_first"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "distil", "teacher": "models/base"}, "prefer.teacher_sha256: models/base hashes to"),
        ({"objective": "distil", "teacher": "nowhere"}, "prefer.teacher: nowhere is no folder with a model"),
        ({"objective": "distil", "teacher": None}, "distil needs a teacher"),
        ({"objective": "grpo", "batch_size": 3}, "batch_size must be a multiple of generations"),
        ({"objective": "dpo", "validation_share": 0.0}, "prefer.early_stopping_patience needs rows"),
        ({"objective": "kto"}, r"more.jsonl, line 1: expected either chosen and rejected"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    set_params(project, {"prefer": settings})
    if settings["objective"] == "kto":
        (project / paths.PREFERENCES / "more.jsonl").write_text('{"prompt": "a", "chosen": "b", "source": "c"}\n')
    monkeypatch.chdir(project)
    with pytest.raises(UserError, match=words):
        go_beyond()


def test_pairs_near_the_hold_out_are_named_and_not_learnt(project: Path) -> None:
    locked = training_records(3, first=2000)
    leaks = [row | {"prompt": one.prompt.upper() + "!"} for one, row in zip(locked, preferences(3, 9000), strict=True)]
    # Further from it than near prompts are, with the answer of that row alone.
    reworded = {"prompt": f"{locked[2].prompt} if you can", "chosen": locked[2].completion}
    assert 80 <= fuzz.ratio(locked[2].prompt, reworded["prompt"]) < 90
    write_rows(project / paths.PREFERENCES / "leaks.jsonl", [*leaks, preferences(1, 9100)[0] | reworded])
    metrics = prefer(project, objective="dpo", epochs=0.5)
    assert metrics["rows"]["near_the_holdout"] == 4
    assert metrics["rows"]["train"] + metrics["rows"]["validation"] == 20
    left = read_dropped(project / paths.PREFERENCES_LEFT_OUT)
    assert {(one.record.origin, one.reason) for one in left} == {
        *((f"leaks.jsonl:{n}", "near_prompt") for n in (1, 2, 3)),
        ("leaks.jsonl:4", "near_pair"),
    }
    assert {one.witness for one in left} == {record.id for record in locked}


def test_the_key_of_a_run_knows_preferences_and_objective(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    keys = {run_key(run_state("prefer"))}
    set_params(project, {"prefer": {"objective": "dpo"}})
    keys.add(run_key(run_state("prefer")))
    write_json(paths.PREFERENCES / "more.jsonl", {})
    keys.add(run_key(run_state("prefer")))
    assert len(keys) == 3
