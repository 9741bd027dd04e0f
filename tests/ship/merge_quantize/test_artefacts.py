"""What ships is what was trained: merging against arithmetic, quantising against the merged model."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_model import save_tiny_model

from stages.core.errors import Refusal
from stages.model.answers import divergence
from stages.model.chat import make_chat
from stages.model.loading import compute_dtype, load_model, load_tokenizer
from stages.params.model import Nf4
from stages.records.record import make_record
from stages.ship.merge_quantize.__main__ import merge, quantise
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


def test_a_merge_that_is_not_the_adapter_diverges_from_it(trained: Path, tmp_path: Path) -> None:
    """Half the adapter, or one of its layers lost, says the same words as yet and other numbers."""
    from stages.model.loading import load_tuned

    merge(trained / "base", trained / "adapter", tmp_path / "merged", "bfloat16")
    chat = make_chat(load_tokenizer(trained / "base"), "Answer.")
    records = [make_record(f"order {number}", f'{{"n": {number}}}', None, "s", f"s:{number}") for number in range(4)]
    tuned, merged = load_tuned(trained / "base", trained / "adapter"), load_model(tmp_path / "merged")
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
