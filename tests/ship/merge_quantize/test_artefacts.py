"""What ships is what was trained: merging against arithmetic, quantising against the merged model."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_model import save_tiny_model
from transformers import GenerationConfig

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import read_json, tree_digest
from stages.model.chat import make_chat
from stages.model.likelihoods import divergence
from stages.model.loading import compute_dtype, load_model, load_tokenizer, nf4_config
from stages.params.loader import Params
from stages.params.model import Generation, Model, Nf4, Train
from stages.params.task import Task
from stages.records.record import make_record, write_records
from stages.scoring.own_metric import scorer
from stages.ship.merge_quantize.__main__ import (
    compress,
    merge,
    merge_best,
    quantise,
    refuse_other_tokenizer,
    release_lora,
    tensor_types,
)
from stages.tune.train.adapters import save_trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/base and an adapter on it whose weights are random, not PEFT's zeros."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "base", seed=1)
    model = get_peft_model(
        load_model(folder / "base", dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    save_trained(model, None, folder / "adapter")
    return folder


def test_merged_weights_are_base_plus_scaled_product_rounded_once(trained: Path, tmp_path: Path) -> None:
    merge(trained / "base", trained / "adapter", tmp_path / "merged", "bfloat16")
    base = load_file(trained / "base" / "model.safetensors")
    adapter = load_file(trained / "adapter" / "adapter_model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == base.keys()
    for name, weight in base.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        expected = weight
        if f"{stem}.lora_A.weight" in adapter:
            expected = weight + 8 / 4 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
        torch.testing.assert_close(merged[name], expected.to(torch.bfloat16), rtol=2**-8, atol=1e-6)


def test_what_ships_ends_an_answer_where_the_base_does(trained: Path, tmp_path: Path) -> None:
    """transformers' trainer puts the tokenizer's own end token before it in what full fine-tuning saves."""
    tuned = shutil.copytree(trained / "base", tmp_path / "tuned")
    GenerationConfig(eos_token_id=[0, 1]).save_pretrained(tuned)
    merge(trained / "base", tuned, tmp_path / "merged", "bfloat16")
    quantise(tmp_path / "merged", tmp_path / "nf4", "nf4")
    folders = [trained / "base", tmp_path / "merged", tmp_path / "nf4"]
    assert len({(folder / "generation_config.json").read_bytes() for folder in folders}) == 1


def test_rows_are_compared_together_as_each_alone(trained: Path) -> None:
    from stages.model.loading import load_tuned

    chat = make_chat(load_tokenizer(trained / "base"), "Answer.")
    records = [make_record("order " * n, f'{{"n": {"9" * n}}}', None, "s", f"s:{n}") for n in (1, 9, 4, 2)]
    models = load_model(trained / "base"), load_tuned(trained / "base", trained / "adapter")
    alone = []
    for record in records:
        prompt, completion = chat.prompt_ids(record), chat.completion_ids(record.completion)
        with torch.inference_mode():
            logits = [
                one(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] for one in models
            ]
        first, second = (one.double().log_softmax(-1) for one in logits)
        alone += torch.nn.functional.kl_div(second, first, reduction="none", log_target=True).sum(-1).tolist()
    assert divergence(*models, chat, records) == pytest.approx(sum(alone) / len(alone), rel=1e-4)
    assert sum(alone) > 0


def test_a_merge_that_is_not_the_adapter_diverges_from_it(trained: Path, tmp_path: Path) -> None:
    """Half the adapter, or one of its layers lost, says the same words as yet and other numbers."""
    from stages.model.loading import load_tuned

    merge(trained / "base", trained / "adapter", tmp_path / "merged", "bfloat16")
    chat = make_chat(load_tokenizer(trained / "base"), "Answer.")
    records = [make_record(f"order {number}", f'{{"n": {number}}}', None, "s", f"s:{number}") for number in range(4)]
    tuned = load_tuned(trained / "base", trained / "adapter")
    merged = load_model(tmp_path / "merged", dtype=torch.float32)
    rounding = divergence(tuned, merged, chat, records)
    assert 0 < rounding < 1e-4
    layers = [module for module in tuned.modules() if isinstance(getattr(module, "scaling", None), dict)]
    for wrong, of in ((0.5, layers), (0.0, layers[:1]), (2.0, layers)):
        for layer in of:
            layer.scaling["default"] *= wrong
        assert divergence(tuned, merged, chat, records) > 3 * rounding
        for layer in of:
            layer.scaling["default"] = 2.0


@pytest.mark.parametrize(("form", "size"), [("nf4", 0.45), ("int8", 0.6)])
def test_quantised_weights_are_small_and_near(trained: Path, tmp_path: Path, form: str, size: float) -> None:
    merge(trained / "base", trained / "adapter", tmp_path / "merged", "float32")
    quantise(tmp_path / "merged", tmp_path / form, form)  # type: ignore[arg-type]
    bytes_of = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("merged", form)}
    assert bytes_of[form] < size * bytes_of["merged"]
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        exact = load_model(tmp_path / "merged")(ids).logits.float().softmax(-1)
        near = load_model(tmp_path / form)(ids).logits.float().softmax(-1)
    assert (exact - near).abs().max() < 0.02


def test_layers_that_nf4_keeps_come_back_exactly_and_the_others_rounded(trained: Path, tmp_path: Path) -> None:
    merge(trained / "base", trained / "adapter", tmp_path / "merged", "bfloat16")
    quantise(tmp_path / "merged", tmp_path / "nf4", "nf4", Nf4(keep_in_16_bit=["down_proj", "model.layers.1"]))
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    stored = load_file(tmp_path / "nf4" / "model.safetensors")
    linear = {name for name in merged if name.endswith("_proj.weight")}
    kept = {name for name in linear if "down_proj" in name or ".layers.1." in name}
    assert kept
    assert linear > kept
    assert {name for name in linear if stored[name].dtype == torch.uint8} == linear - kept
    assert all(torch.equal(stored[name], merged[name]) for name in merged.keys() - (linear - kept))
    model = load_model(tmp_path / "nf4")
    layers = [layer for layer in model.modules() if hasattr(layer, "compute_dtype")]
    assert len(layers) == len(linear - kept)
    assert {layer.compute_dtype for layer in layers} == {compute_dtype()}
    again = model.state_dict()
    assert all(torch.equal(again[name].bfloat16(), merged[name]) for name in kept)


def test_nf4_that_is_calibrated_is_nearer_on_such_rows_and_of_the_same_size(trained: Path, tmp_path: Path) -> None:
    merge(trained / "base", trained / "adapter", tmp_path / "merged", "bfloat16")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 60, (30,), generator=generator).tolist() for _ in range(24)]
    kept = Nf4(keep_in_16_bit=["model.layers.1"])
    quantise(tmp_path / "merged", tmp_path / "nearest", "nf4", kept)
    quantise(tmp_path / "merged", tmp_path / "calibrated", "nf4", kept, rows)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("nearest", "calibrated"))
    assert one.keys() == other.keys()
    numbers = [name for name in one if "quant_state" not in name]  # which is JSON
    assert all((one[name].shape, one[name].dtype) == (other[name].shape, other[name].dtype) for name in numbers)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed
    assert all(".layers.1." not in name for name in changed)
    exact = load_model(tmp_path / "merged")
    states: dict[str, list[torch.Tensor]] = {"nearest": [], "calibrated": []}
    with torch.inference_mode():
        for name, errors in states.items():
            model = load_model(tmp_path / name)
            for ids in rows:
                given = torch.tensor([ids])
                errors.append((model(given).logits - exact(given).logits).float().square().mean())
    assert sum(states["calibrated"]) < 0.9 * sum(states["nearest"])


def test_a_saved_adapter_loads_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    from stages.model.loading import load_tuned

    save_trained(load_tuned(trained / "base", trained / "adapter", dtype=torch.float32), None, tmp_path / "again")
    names = {file.name for file in (trained / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    weights = load_file(trained / "adapter" / "adapter_model.safetensors")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_weight_that_overflows_float16_stops_the_merge(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = load_file(trained / "base" / "model.safetensors")
    weights["model.norm.weight"][0] = 1e6
    base = tmp_path / "base"
    save_tiny_model(base, seed=1)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match="the merged model holds NaN or infinity"):
        merge(base, trained / "adapter", tmp_path / "merged", "float16")
    assert not (tmp_path / "merged").exists()


ROWS = [list(range(3, 40)), [5, 9, 2, 7]]  # token ids to calibrate on


@pytest.mark.parametrize(
    ("scheme", "size", "away", "rows"),
    [("W8A8", 0.45, 0.002, ROWS), ("W4A16", 0.4, 0.02, []), ("W4A16", 0.4, 0.02, ROWS)],
)
def test_compressed_tensors_are_small_near_and_computed_whole(
    trained: Path, tmp_path: Path, scheme: str, size: float, away: float, rows: list[list[int]]
) -> None:
    """Near to the merged model and not equal to it; its layers called alone, as likelihoods are, say the same."""
    merge(trained / "base", trained / "adapter", tmp_path / "merged", "float32")
    compress(tmp_path / "merged", tmp_path / "small", scheme, rows)
    assert set(tensor_types(tmp_path / "small")) == ({"F32", "I8"} if scheme == "W8A8" else {"F32", "I32", "I64"})
    bytes_of = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("merged", "small")}
    assert bytes_of["small"] < size * bytes_of["merged"]
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        model = load_model(tmp_path / "small")
        alone = model.lm_head(model.model(ids).last_hidden_state).softmax(-1)
        near = model(ids).logits.softmax(-1)
        exact = load_model(tmp_path / "merged")(ids).logits.softmax(-1)
    assert torch.equal(near, alone)
    assert 0 < (exact - near).abs().max() < away


def test_compressed_tensors_without_their_package_are_a_sentence(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.model.loading.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tunetrail\[compressed\]"):
        compress(trained / "base", tmp_path / "small", "W8A8")


def test_the_lora_that_ships_is_the_adapter_and_names_its_base(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.model.loading import load_tuned

    (tmp_path / "models").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    release_lora("hub:someone/model@" + "0" * 40, Path("lora"))
    base, shipped = trained / "base", tmp_path / "lora"
    for file in (trained / "adapter").iterdir():
        assert (shipped / file.name).read_bytes() == file.read_bytes()
    refuse_other_tokenizer(Path("lora"))
    named = read_json(shipped / "base_model.json")
    assert named == {"source": "hub:someone/model@" + "0" * 40, "tree_sha256": tree_digest(base)}
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(load_tuned(base, shipped)(ids).logits, load_tuned(base, trained / "adapter")(ids).logits)
    (shipped / "tokenizer.json").write_text("{}")
    with pytest.raises(Refusal, match=r"tokenizer\.json is not the file that training read"):
        refuse_other_tokenizer(Path("lora"))


def test_qlora_is_merged_onto_what_it_trained_on_or_onto_the_base_as_validation_says(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    for name in ("base", "adapter"):
        (tmp_path / "models" / name).symlink_to(trained / name)
    monkeypatch.chdir(tmp_path)
    task = Task.model_validate({"kind": "text", "instruction": "Answer."})
    sections: dict[str, Any] = {
        "model": Model(source="path:models", licence="Apache-2.0", dtype="float32"),
        "train": Train(method="qlora"),
        "generation": Generation(max_new_tokens=4),
        "task": task,
    }
    params = Params.model_construct(**sections)
    write_records(paths.VALIDATION, [make_record(f"order {n}", "shipped", None, "s", f"s:{n}") for n in range(3)])
    Path("data/schema.json").write_text("{}", encoding="utf-8")
    found = merge_best(params, scorer(task))
    nats = {onto: found[onto]["nats"] for onto in ("base", "dequantised")}
    assert found["onto"] == min(nats, key=lambda onto: nats[onto])
    assert nats["base"] != nats["dequantised"]
    assert {found[onto]["rows"] for onto in nats} == {3}
    assert f"Ships: onto {found['onto']}." in capsys.readouterr().out
    assert not list((tmp_path / ".tunetrail/merged").glob("*"))
    # The dequantised base is what a 4-bit layer multiplies by; the product of the factors is added to that.
    merge(paths.BASE, paths.ADAPTER, tmp_path / "onto", "float32", "dequantised")
    name = "model.layers.0.self_attn.q_proj"
    from bitsandbytes.functional import dequantize_4bit

    four = load_model(paths.BASE, quantization_config=nf4_config(torch.float32), dtype=torch.float32)
    adapter = load_file(paths.ADAPTER / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
    weight = four.get_submodule(name).weight
    # A layer's own product is in bfloat16 on processors that have it.
    expected = dequantize_4bit(weight.data, weight.quant_state).float() + 2 * b @ a
    torch.testing.assert_close(load_file(tmp_path / "onto" / "model.safetensors")[f"{name}.weight"], expected)
    shipped = load_file(paths.MERGED / "model.safetensors")[f"{name}.weight"]
    assert torch.equal(shipped, load_file(tmp_path / "onto" / "model.safetensors")[f"{name}.weight"]) == (
        found["onto"] == "dequantised"
    )
    params.train.__dict__["method"] = "lora"
    assert merge_best(params, scorer(task)) == {"onto": "base"}
