"""Of a model that others made, nothing runs and nothing beside it is read: each way in has a sentence instead."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import save_tiny_model

from stages.core.errors import UserError
from stages.core.files import read_json, write_json
from stages.params.model import Model
from stages.tune.base.base_model import materialise
from stages.tune.base.model_source import fetch

CODE = "from pathlib import Path\nPath({!r}).touch()\nclass Own: pass\n"


def own_code(model: Path, ran: Path) -> None:
    """A kind of model that transformers lacks, with a file of Python."""
    (model / "own.py").write_text(CODE.format(str(ran)))
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    write_json(model / "config.json", {"model_type": "own", "auto_map": names})


def own_tokenizer(model: Path, ran: Path) -> None:
    (model / "own.py").write_text(CODE.format(str(ran)))
    changed = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    write_json(model / "tokenizer_config.json", read_json(model / "tokenizer_config.json") | changed)
    write_json(model / "config.json", read_json(model / "config.json") | {"model_type": "own2"})


class Runs:
    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return Path.touch, (self.ran,)


def pickled(file: Path, ran: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(Runs(ran)))


def beside_a_decoy(model: Path, ran: Path) -> None:
    (model / "model.safetensors").rename(model / "x.safetensors")
    pickled(model / "pytorch_model.bin", ran)


def by_an_index(name: str) -> Callable[[Path, Path], None]:
    def change(model: Path, ran: Path) -> None:
        weights = load_file(model / "model.safetensors")
        (model / "model.safetensors").rename(model / "x.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        write_json(model / "model.safetensors.index.json", index)
        pickled(model / name, ran)

    return change


def by_the_config(model: Path, ran: Path) -> None:
    pickled(model.parent / "elsewhere" / "w.safetensors", ran)
    changed = {"transformers_weights": "../elsewhere/w.safetensors"}
    write_json(model / "config.json", read_json(model / "config.json") | changed)


def named_safetensors(model: Path, ran: Path) -> None:
    pickled(model / "model.safetensors", ran)


def torn(model: Path, ran: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def an_adapter(model: Path, ran: Path) -> None:
    other = save_tiny_model(model.parent / "other", seed=5)
    write_json(model / "adapter_config.json", {"base_model_name_or_path": str(other), "peft_type": "LORA"})


def no_object(file: str, content: Any) -> Callable[[Path, Path], None]:
    def write(model: Path, ran: Path) -> None:
        (model / file).write_text(json.dumps(content))

    return write


HOSTILE = {
    "code of its own": (own_code, "code of its own, which is not run"),
    "a tokenizer of its own": (own_tokenizer, "transformers cannot load|code of its own"),
    "a pickle beside a decoy": (beside_a_decoy, "transformers cannot load"),
    "a pickle of an index": (by_an_index("pytorch_model.bin"), "names pytorch_model.bin, .* pickled weights"),
    "a pickle by another name": (by_an_index("w.json"), r"names w\.json, .* pickled weights"),
    "an index out of the folder": (by_an_index("../pickled/pytorch_model.bin"), r"names \.\./pickled"),
    "safetensors out of the folder": (by_an_index("../pickled/w.safetensors"), "not in the folder"),
    "weights that the configuration names": (by_the_config, "not in the folder"),
    "a pickle that is called safetensors": (named_safetensors, "transformers cannot load"),
    "safetensors cut short": (torn, "transformers cannot load"),
    "another model": (an_adapter, "is an adapter on another model"),
    "a list for a configuration": (no_object("config.json", [1]), "no JSON object"),
    "numbers for names": (no_object("model.safetensors.index.json", {"weight_map": {"a": 1}}), "no JSON object"),
    "no weights in the index": (no_object("model.safetensors.index.json", {"weight_map": []}), "no JSON object"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_of_a_model_runs_and_nothing_beside_it_is_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, sentence = HOSTILE[kind]
    model, ran = save_tiny_model(tmp_path / "model"), tmp_path / "ran"
    change(model, ran)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match=rf"^model\.source: .*({sentence})"):
        materialise(model, tmp_path / "base", "float32", "")
    assert not ran.exists()
    assert not (tmp_path / "base").exists()


def test_names_of_code_are_not_handed_on(tmp_path: Path) -> None:
    """transformers has this kind itself, so its code is never asked for; whoever loads the release might be."""
    model = save_tiny_model(tmp_path / "model")
    for file in ("config.json", "tokenizer_config.json"):
        write_json(model / file, read_json(model / file) | {"auto_map": {"AutoModelForCausalLM": "own.Own"}})
    materialise(model, tmp_path / "base", "float32", "")
    assert not any("auto_map" in file.read_text() for file in (tmp_path / "base").glob("*.json"))
    assert torch.equal(*(load_file(at / "model.safetensors")["model.norm.weight"] for at in (model, tmp_path / "base")))


@pytest.mark.parametrize(
    "source",
    [
        "hub:../../etc@" + "0" * 40,
        "hub:a/b/c@" + "0" * 40,
        "hub:a/../b@" + "0" * 40,
        "hub:-a/b@" + "0" * 40,
        "hub:a/b@" + "main" * 10,
        "package:--index-url=http://x/==1",
        "package:../wheel==1",
        "package:a==1 --pre",
        "package:a @ http://x/y==1",
    ],
)
def test_a_source_that_is_no_name_is_refused_before_anything_is_fetched(source: str) -> None:
    with pytest.raises(ValueError, match="must be package:NAME==VERSION"):
        Model(source=source, licence="MIT")


def test_a_name_as_the_hub_has_them_is_taken() -> None:
    for source in ("hub:HuggingFaceTB/SmolLM2-135M@" + "a1" * 20, "hub:gpt2@" + "0" * 40, "package:a_b[c]==1.0+cpu"):
        assert Model(source=source, licence="MIT").source == source


def test_a_folder_of_pickles_alone_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        fetch(Model(source=f"path:{tmp_path}", licence="MIT"), tmp_path)
