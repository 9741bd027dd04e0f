"""The fused path trains only where it computes what TRL's trainer does; what it does not know, TRL trains."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from project import TINY_TRAINING, set_params
from safetensors.torch import load_file
from stage_process import die_training, run_stage
from tiny_model import SMALL, tiny_tokenizer
from training_project import curve, lay_out, train
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MixtralConfig, Qwen3Config

from stages.core import paths
from stages.core.files import remove
from stages.params.model import Train
from stages.tune.train import engine
from stages.tune.train.adapters import with_adapter
from stages.tune.train.engine import build_trainer, fused_obstacle
from stages.tune.train.examples import Examples
from stages.tune.train.fused.trainer import TOLERANCES, disagreement, relative_errors
from stages.tune.train.plan import Plan, make_plan

CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "gemma": Gemma3TextConfig(**SMALL, sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
    "qwen": Qwen3Config(**SMALL),
}


def examples(rows: int = 12) -> Examples:
    generator = torch.Generator().manual_seed(3)
    sizes = [12 + 7 * row % 40 for row in range(rows)]
    ids = [torch.randint(0, 258, (size,), generator=generator).tolist() for size in sizes]
    return Examples(ids, [[0] * (size // 2) + [1] * (size - size // 2) for size in sizes])


def fused(kind: str, folder: Path, **changes: Any) -> Any:
    settings = Train(**(TINY_TRAINING | {"batch_size": 8, "early_stopping_patience": None} | changes))
    torch.manual_seed(0)
    half = settings.precision == "bfloat16" and settings.method != "full"
    base = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[kind]), dtype=torch.bfloat16 if half else torch.float32)
    model = with_adapter(base, settings, 1, 10)
    return build_trainer("fused", model, settings, 1, tiny_tokenizer(), examples(), Examples([], []), folder, [])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_are_those_of_trl(kind: str, method: str, precision: str, tmp_path: Path) -> None:
    trainer = fused(kind, tmp_path, method=method, precision=precision, dropout=0.1 if kind == "qwen" else 0.0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    errors = relative_errors(trainer)
    print(kind, method, precision, errors)
    for error, allowed in zip(errors.values(), TOLERANCES[trainer.plan.precision], strict=True):
        assert error <= allowed / 2, errors
    assert errors["gradient"] > 0, "two orders of the same sums are never the same to the bit"
    assert disagreement(trainer) is None
    assert all(map(torch.equal, before, trainer.model.parameters())), "the model is as it was"
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_layers_give_the_loss_and_gradients_of_trl(
    kind: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "make_plan", merged_plan)
    trainer = fused(kind, tmp_path, precision=precision, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"])
    errors = relative_errors(trainer)
    for error, allowed in zip(errors.values(), TOLERANCES[trainer.plan.precision], strict=True):
        assert error <= allowed / 2, errors
    assert disagreement(trainer) is None


def merged_plan(*args: Any, **options: Any) -> Plan:
    return replace(make_plan(*args, **options), merged=True)


def wrong_window(attention: Any) -> None:
    """Examples see those before them."""
    right = attention.segments
    attention.AttentionInterface.register(
        attention.SEGMENTS, lambda *a, segment_ends, **k: right(*a, **k, segment_ends=segment_ends[-1:])
    )


def wrong_backward(layers: Any) -> None:
    """The gradient of A lacks its scale."""
    backward = layers._Adapted.backward

    def unscaled(ctx: Any, *gradients: Any) -> Any:
        ctx.in_place = False
        of_x, none, down, *others = backward(ctx, *gradients)
        return of_x, none, down * 1.5, *others

    layers._Adapted.backward = staticmethod(unscaled)


def break_attention() -> None:
    from stages.tune.train import engine
    from stages.tune.train.fused import attention

    wrong_window(attention)
    engine.on_a_card = lambda: True


def break_adapter() -> None:
    from stages.tune.train import engine
    from stages.tune.train.fused import layers

    wrong_backward(layers)
    engine.on_a_card = lambda: True


def pretend_a_card() -> None:
    from stages.tune.train import engine

    engine.on_a_card = lambda: True


def merge() -> None:
    from stages.tune.train import engine

    engine.on_a_card, engine.make_plan = lambda: True, merged_plan  # type: ignore[attr-defined]


def break_merged() -> None:
    from stages.tune.train.fused import merged

    merge()
    merged._Stack.collect = lambda self: None  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def trl_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    project = lay_out(tmp_path_factory.mktemp("trl") / "project", engine="trl", epochs=1)
    train(project)
    return curve(project)


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (break_attention, "the loss"),
        (break_adapter, "the gradient"),
        (pretend_a_card, None),
        (break_merged, "the gradient"),
        (merge, None),
    ],
)
def test_auto_steps_aside_where_a_kernel_is_broken(
    broken: Any, what: str | None, tmp_path: Path, trl_losses: list[float]
) -> None:
    project = lay_out(tmp_path / "project", epochs=1)
    code, text = run_stage(project, "train", broken)
    assert code == 0, text
    if what:
        assert f"steps aside and TRL trains, since it computes something else: {what} of one batch is off" in text
        assert "train.engine: trl" in text
    else:
        assert "train.engine: fused" in text
    assert curve(project) == pytest.approx(trl_losses, rel=1e-4)


def merge_and_die() -> None:
    merge()
    die_training()


@pytest.mark.parametrize("elsewhere", [merge, None])
def test_a_killed_run_with_merged_adapters_goes_on_and_ends_the_same(elsewhere: Any, tmp_path: Path) -> None:
    """On such a card, and on a machine without one, where TRL trains."""
    alone, project = lay_out(tmp_path / "alone"), lay_out(tmp_path / "project")
    assert run_stage(alone, "train", merge)[0] == 0
    assert run_stage(project, "train", merge_and_die)[0] < 0
    code, text = run_stage(project, "train", elsewhere)
    assert (code, "going on from" in text) == (0, True), text
    assert f"train.engine: {'fused' if elsewhere else 'trl'}" in text
    assert curve(project) == pytest.approx(curve(alone), rel=0 if elsewhere else 1e-3)
    adapters = [load_file(at / paths.SFT / "adapter_model.safetensors") for at in (project, alone)]
    for name, theirs in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], theirs, rtol=0, atol=0 if elsewhere else 1e-3)


def test_a_broken_fused_path_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    project = lay_out(tmp_path / "project", engine="fused")
    code, text = run_stage(project, "train", break_adapter)
    assert code == 1
    assert "the fused engine does not compute what TRL's trainer does" in text
    assert "Traceback" not in text


def test_a_mixture_of_experts_is_trained_by_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MixtralConfig(**(SMALL | {"pad_token_id": 1}), num_local_experts=4, num_experts_per_tok=2)
    project = lay_out(tmp_path / "project", target_modules=["q_proj", "v_proj"], learning_rate=1e-2)
    remove(project / paths.BASE / "model.safetensors")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(project / paths.BASE)
    losses = []
    for tokens in (1, 10_000):
        monkeypatch.setenv("TUNETRAIL_MICRO_BATCH_TOKENS", json.dumps(tokens))
        code, text = run_stage(project, "train", pretend_a_card)
        assert code == 0, text
        assert "TRL trains, since the model chooses experts row by row" in text
        losses.append(curve(project))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (CONFIGS["llama"], {}, None),
        (CONFIGS["llama"], {"adapter": "dora"}, "no dora"),
        (CONFIGS["llama"], {"adapter": "adalora", "early_stopping_patience": None}, "no adalora"),
        (CONFIGS["llama"], {"adapter": "dora", "method": "full"}, None),
        (LlamaConfig(**SMALL, attention_dropout=0.1), {}, "drops attention scores"),
        (LlamaConfig(**SMALL, attn_logit_softcapping=50.0), {}, "capped attention"),
        (MixtralConfig(**SMALL), {}, "experts"),
    ],
)
def test_what_the_fused_path_does_not_know_has_a_reason(config: Any, changes: Any, words: str | None) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    obstacle = fused_obstacle(Train(**(TINY_TRAINING | changes)), model, sharding=False)
    assert (obstacle is None) if words is None else words in str(obstacle)


def test_settings_of_an_engine_that_does_not_exist_are_refused(tmp_path: Path) -> None:
    project = lay_out(tmp_path / "project")
    set_params(project, {"train": {"engine": "unsloth"}})
    code, text = run_stage(project, "train")
    assert code == 2
    assert "train.engine: 'unsloth' is not allowed" in text
