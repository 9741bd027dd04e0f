"""Fused against TRL for LoRA, QLoRA and full tuning of three shapes; artefacts; one card against two."""

import gc
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA card: run `make test-gpu` on a machine with one"
    ),
]

# Few layers and words, of the widths that the models of that name have.
SHAPES: dict[str, Any] = {
    "Llama-3.2-1B": LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
    ),
    "Gemma-3-1B": Gemma3TextConfig(
        vocab_size=32000, hidden_size=1152, intermediate_size=6912, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=128, query_pre_attn_scalar=256, pad_token_id=None,
        tie_word_embeddings=True,
    ),
    "Qwen3-0.6B": Qwen3Config(
        vocab_size=32000, hidden_size=1024, intermediate_size=3072, num_hidden_layers=6, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "SmolLM2-135M": LlamaConfig(
        vocab_size=32000, hidden_size=576, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
}  # fmt: skip
STEPS = 24
MANY_SHORT = "SmolLM2-135M"  # whose batches are many short rows, of widths that are planned


def say(*words: Any) -> None:
    print(f"{time.strftime('%H:%M:%S')}", *words, file=sys.__stderr__, flush=True)


@pytest.fixture
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer in this process takes the first card alone, as the stage sees to."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tiny_model import tiny_tokenizer

    made = {}
    for name, config in SHAPES.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        with torch.device("cuda"):
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(made[name])
        tiny_tokenizer().save_pretrained(made[name])
    return made


def batch_of(shape: str) -> int:
    return 64 if shape == MANY_SHORT else 16


def examples(shape: str) -> Any:
    from stages.tune.train.examples import Examples

    draw, rows = random.Random(1), STEPS * batch_of(shape)
    sizes = [min(512, max(16, round(150 * 2 ** draw.gauss(0, 1)))) for _ in range(rows)]
    if shape == MANY_SHORT:
        sizes = [min(110, max(20, round(draw.gauss(66, 18)))) for _ in range(rows)]
    ids = [[draw.randrange(32000) for _ in range(size)] for size in sizes]
    return Examples(ids, [[0] * (size // 2) + [1] * (size - size // 2) for size in sizes])


def trainer_of(engine: str, shape: str, base: Path, method: Any, folder: Path) -> Any:
    from tiny_model import tiny_tokenizer

    from stages.params.model import Train
    from stages.tune.train.adapters import load_trainable
    from stages.tune.train.callbacks import Progress
    from stages.tune.train.engine import build_trainer
    from stages.tune.train.examples import Examples

    settings = Train(
        method=method, batch_size=batch_of(shape), epochs=1, max_tokens=512, learning_rate=1e-4,
        early_stopping_patience=None, evaluate_every=10_000,
    )  # fmt: skip
    model = load_trainable(base, settings, torch.bfloat16, 1, STEPS, sharding=False)
    return build_trainer(
        engine, model, settings, 1, tiny_tokenizer(), examples(shape), Examples([], []), folder, [Progress()]
    )


def losses_and_speed(trainer: Any, shape: str) -> tuple[list[float], int]:
    from stages.tune.train.callbacks import Progress

    trainer.train()
    torch.cuda.synchronize()
    progress = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Progress))
    made = examples(shape)
    speed = (progress.steps_per_second() or 0) * batch_of(shape) * made.tokens / len(made)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], round(speed)


@pytest.mark.usefixtures("one_card")
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fused_path_computes_what_trl_does(
    shape: str,
    method: str,
    bases: dict[str, Path],
    tmp_path: Path,
    table: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from stages.tune.train.fused.trainer import disagreement

    monkeypatch.setenv("TUNETRAIL_COMPILE", "graphs")
    row: dict[str, Any] = {"what": f"{shape}, {method}", "result": "failed"}
    table.append(row)
    fused = trainer_of("fused", shape, bases[shape], method, tmp_path)
    assert (fused.plan.attention, fused.plan.compile) == ("varlen", "graphs")
    wrong = disagreement(fused)
    loss, gradient, weight = (f"{error:.1e}" for error in fused.agreement.values())
    row |= {"loss": loss, "gradient": gradient, "one weight": weight}
    say(row["what"], "proof:", fused.agreement)
    ours, row["fused tokens/s"] = losses_and_speed(fused, shape)
    del fused
    gc.collect()
    torch.cuda.empty_cache()
    monkeypatch.setenv("TUNETRAIL_COMPILE", "auto")
    theirs, row["TRL tokens/s"] = losses_and_speed(trainer_of("trl", shape, bases[shape], method, tmp_path), shape)
    say(row["what"], "fused", ours, row["fused tokens/s"], "TRL", theirs, row["TRL tokens/s"])
    gc.collect()
    torch.cuda.empty_cache()
    assert wrong is None
    assert ours == pytest.approx(theirs, rel=5e-3)
    row["result"] = "same"


@pytest.mark.usefixtures("one_card")
def test_artefacts_load_and_answer_without_noise(
    bases: dict[str, Path], tmp_path: Path, table: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    from stages.model.answers import answer_rows
    from stages.model.chat import make_chat
    from stages.model.loading import load_model, load_tokenizer
    from stages.params.model import Generation
    from stages.records.record import make_record
    from stages.ship.merge_quantize.__main__ import merge, quantise
    from stages.tune.train.adapters import save_trained

    row = {"what": "merged, nf4 and int8 of Llama-3.2-1B load and answer", "result": "failed"}
    table.append(row)
    base = bases["Llama-3.2-1B"]
    model = trainer_of("trl", "Llama-3.2-1B", base, "lora", tmp_path / "run").model
    for name, weight in model.named_parameters():
        if ".lora_B." in name:  # zero before training, and an adapter that changes nothing is refused
            torch.nn.init.normal_(weight, std=0.01)
    save_trained(model, None, tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged", "bfloat16")
    quantise(tmp_path / "merged", tmp_path / "nf4", "nf4")
    quantise(tmp_path / "merged", tmp_path / "int8", "int8")
    records = [make_record(f"order {number}", "{}", None, "s", f"s:{number}") for number in range(8)]
    capfd.readouterr()
    for name in ("merged", "nf4", "int8"):
        chat = make_chat(load_tokenizer(tmp_path / name), "Answer.")
        answers = answer_rows(load_model(tmp_path / name), chat, records, Generation(max_new_tokens=24), name)
        assert len(answers) == 8
        assert all(answer["tokens"] for answer in answers)
    printed = "".join(capfd.readouterr())
    with capfd.disabled():
        say("artefacts answered; they printed:", printed or "nothing")
    assert "without CUDA graphs" not in printed
    assert "Warning" not in printed
    row["result"] = "quiet"


def stage(project: Path, **machine: str) -> tuple[str, dict[str, Any]]:
    """The stage from nothing but files, as `dvc repro` runs it; what it printed, and its losses."""
    from stages.core.files import read_json

    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "stages.tune.train"],
        cwd=project,
        env={**os.environ, **{f"TUNETRAIL_{name.upper()}": value for name, value in machine.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    notes = read_json(project / "metrics/env/train.json")
    say(f"the stage took {time.monotonic() - start:.1f} s, of which training {notes['seconds']} s", machine)
    losses: dict[str, Any] = read_json(project / "metrics/train.json")["loss"]
    return done.stdout + done.stderr, losses


def test_the_stage_takes_the_fused_path_and_two_cards_learn_what_one_does(
    tmp_path: Path, table: list[dict[str, Any]]
) -> None:
    from training_project import lay_out

    row = {"what": "the stage on one card", "result": "failed"}
    table.append(row)
    project = lay_out(tmp_path / "project", early_stopping_patience=None, batch_size=8)
    printed, one = stage(project)
    assert "train.engine: fused" in printed
    assert re.search(r"attention: varlen", printed)
    row["result"] = "fused"
    if torch.cuda.device_count() < 2:
        table.append({"what": "two cards", "result": "skipped: one card here"})
        return
    both = {"what": "two cards learn what one does", "result": "failed"}
    table.append(both)
    _, two = stage(project, processes="2")
    assert two == pytest.approx(one, rel=1e-2)
    both["result"] = "same"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_spread_over_two_cards_learns_what_one_does(
    tmp_path: Path, table: list[dict[str, Any]], tied: bool
) -> None:
    from training_project import lay_out

    if tied and Version(torch.__version__) < Version("2.13"):
        pytest.skip("FSDP of tied embeddings needs torch 2.13")
    row = {"what": f"sharded over two cards, embeddings {'' if tied else 'not '}tied", "result": "failed"}
    table.append(row)
    recipe: dict[str, Any] = {"tied": tied, "early_stopping_patience": None, "batch_size": 8}
    _, one = stage(lay_out(tmp_path / "one", **recipe))
    printed, sharded = stage(lay_out(tmp_path / "sharded", **recipe), processes="2", sharding="true")
    assert "sharding: True" in printed
    assert sharded == pytest.approx(one, rel=1e-2)
    row["result"] = "same"
