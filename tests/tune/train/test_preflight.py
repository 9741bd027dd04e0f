"""Each thing that spoils a run is found before it starts, and has its sentence."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from project import run
from tiny_model import CHAT_TEMPLATE, save_tiny_model, tiny_config, tiny_tokenizer

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_json, write_json
from stages.core.yaml_reader import load_yaml
from stages.limits import main
from stages.model.chat import make_chat
from stages.params.loader import load_params
from stages.records.record import make_record, read_records, write_records
from stages.tune.train.examples import make_examples, show_example

ROOT = Path(__file__).parents[3]
PAIRS = [(f"Where is order {number}?", f'{{"order": "{number}"}}') for number in range(20)]
GENERATES = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
WRONG = {
    "no template": (None, "models/base: the tokenizer has no chat template"),
    "not rendered": ("{{ raise_exception('only for Mondays') }}", "cannot be rendered: only for Mondays"),
    "no syntax": ("{% for message in %}", "cannot be rendered"),
    "no prompt": (CHAT_TEMPLATE.replace("{{ message['content'] }}", ""), "does not show the model what the user says"),
    "no stop token": (CHAT_TEMPLATE.replace("<|im_end|>", ""), "without a stop token"),
    "another prompt in training": (
        CHAT_TEMPLATE.replace(GENERATES, GENERATES.replace("{% endif %}", "<think></think>{% endif %}")),
        "would not match generation",
    ),
    "no turn of the assistant": (CHAT_TEMPLATE.replace(GENERATES, ""), "would not match generation"),
    "doubled BOS": ("<|im_start|>" + CHAT_TEMPLATE, "20 rows begin with the token '<|im_start|>' twice"),
}


def lay_out(
    folder: Path, template: str | None = CHAT_TEMPLATE, pairs: Any = PAIRS, answer_tokens: int = 60, **train: Any
) -> None:
    """A folder where base and augment have run; parameters as the project's but for `train`."""
    params = load_yaml((ROOT / "params.yaml").read_text())
    params["train"] |= {"max_tokens": 400, "layers_to_transform": None} | train
    params["generation"] = {"max_new_tokens": answer_tokens}
    (folder / "params.yaml").write_text(dumps_yaml(params))
    tokenizer = tiny_tokenizer(template or "")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder / paths.BASE)
    config = tiny_config(tokenizer)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder / paths.BASE)
    records = [make_record(prompt, completion, None, "s", "s:1") for prompt, completion in pairs]
    write_records(folder / paths.TRAIN, records)
    write_records(folder / paths.VALIDATION, records[:4])


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(text: str) -> list[str]:
    first, *rest = text.splitlines()
    return [line.strip() for line in rest] if first.startswith("preflight found") else [first]


def test_a_sound_run_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path)
    main()
    told = capsys.readouterr().out
    chat = make_chat(tiny_tokenizer(), load_params("task").task.instruction)
    records = [make_record(prompt, completion, None, "s", "s:1") for prompt, completion in PAIRS]
    trained = sum(len(chat.completion_ids(record.completion)) for record in records)
    tokens = trained + sum(len(chat.prompt_ids(record)) for record in records)
    assert "20 rows to train on, 4 to validate on" in told
    assert f"tokens: {tokens} to train on, of which the loss sees {trained} ({trained / tokens:.1%})" in told
    assert "left out of training, longer than 400 tokens: 0 rows, 0 tokens (0.0%)" in told
    assert 'assistant\n⟦{"order": "0"}<|im_end|>⟧' in told
    assert "nothing found" in told


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_template_is_found(tmp_path: Path, kind: str) -> None:
    template, sentence = WRONG[kind]
    lay_out(tmp_path, template)
    with pytest.raises(UserError) as caught:
        main()
    (problem,) = problems(str(caught.value))
    assert sentence in problem
    if kind != "doubled BOS":
        assert problem.endswith("model.chat_template can name another template")


def test_rows_left_out_are_counted_in_rows_and_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = [("Why? " * 60, "{}"), ("Why? " * 80, "{}")]
    lay_out(tmp_path, pairs=PAIRS + long, max_left_out_share=0.1)
    main()
    chat = make_chat(tiny_tokenizer(), load_params("task").task.instruction)
    examples = make_examples(chat, [make_record(prompt, "{}", None, "s", "s:1") for prompt, _ in long], 10_000)
    assert f"longer than 400 tokens: 2 rows, {examples.tokens} tokens" in capsys.readouterr().out

    lay_out(tmp_path, pairs=PAIRS + long, max_left_out_share=0.05)
    with pytest.raises(UserError) as caught:
        main()
    (problem,) = problems(str(caught.value))
    longest = max(map(len, examples.input_ids))
    assert "2 rows of data/train.jsonl (9.1%) exceed train.max_tokens = 400" in problem
    assert f"a train.max_tokens of {longest} would keep them all" in problem


def test_no_rows_are_a_problem_where_rows_are_needed(tmp_path: Path) -> None:
    lay_out(tmp_path, pairs=[])
    with pytest.raises(UserError) as caught:
        main()
    told = problems(str(caught.value))
    assert told[0] == "data/train.jsonl has no row to train on"
    assert "train.early_stopping_patience needs rows in data/split/validation.jsonl" in told[1]
    lay_out(tmp_path, early_stopping_patience=None)
    write_records(paths.VALIDATION, [])
    main()


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    pairs = [*PAIRS, ("Why? " * 100, "{}"), ("Why? " * 101, "{}")]
    lay_out(tmp_path, "<|im_start|>" + CHAT_TEMPLATE, pairs, max_tokens=600, max_left_out_share=0.0)
    with pytest.raises(UserError) as caught:
        main()
    told = problems(str(caught.value))
    assert len(told) == 3
    assert "2 rows of data/train.jsonl" in told[0]
    assert "twice" in told[1]
    assert "train.max_tokens = 600, but the model has 512 positions" in told[2]


def test_special_tokens_as_text_are_counted_and_teach_neither_to_stop_nor_a_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(tmp_path, pairs=[*PAIRS, ("Say it", "a <|im_end|> within"), ("<|im_end|>\n<|im_start|>assistant", "{}")])
    main()
    assert (
        "2 rows of training hold the text of a special token, which is encoded as plain text" in capsys.readouterr().out
    )
    chat = make_chat(tiny_tokenizer(), "")
    train = make_examples(chat, read_records(paths.TRAIN), 400)
    for ids, mask in zip(train.input_ids, train.completion_mask, strict=True):
        answer = ids[mask.index(1) :]
        assert (answer.count(chat.stop_id), answer[-1]) == (1, chat.stop_id)


def test_rows_that_the_model_could_not_learn_as_they_are_are_counted_and_named(tmp_path: Path) -> None:
    fussy = "{% if 'twice' in messages[-1]['content'] %}{{ raise_exception('never twice') }}{% endif %}"
    shorter = CHAT_TEMPLATE.replace("message['content']", "message['content'].replace('secret', '')")
    lay_out(tmp_path, fussy + shorter, [*PAIRS, ("Say it twice", "{}"), ("a secret word", "{}"), ("the secret", "{}")])
    ids = {record.prompt: record.id for record in read_records(paths.TRAIN)}
    with pytest.raises(UserError) as caught:
        main()
    told = problems(str(caught.value))
    assert len(told) == 2
    assert "1 rows of data/train.jsonl have turns of which the chat template cannot be rendered: never twice" in told[0]
    assert ids["Say it twice"] in told[0]
    assert "2 rows of data/train.jsonl are not shown to the model in full" in told[1]
    assert f"{ids['a secret word']}, {ids['the secret']}" in told[1]


NAMES = "its layers have down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"target_modules": ["wrong_proj"]}, f"the base model has none of wrong_proj; {NAMES}"),
        ({"target_modules": ["q_proj", "w1", "w2"]}, f"the base model has none of w1, w2; {NAMES}"),
        ({"target_modules": ["q_proj", "norm"]}, f"the base model has none of norm; {NAMES}"),
        ({"target_modules": ["all-linear"]}, "the base model has none of all-linear"),
        ({"target_modules": ["proj"]}, "the base model has none of proj;"),
        ({"target_modules": ["layers.0.mlp.up_proj"], "layers_to_transform": "1-1"}, "up_proj in layers 1-1; its"),
        ({"target_modules": ["lm_head", "q_proj"]}, "lm_head shares its weight with model.embed_tokens"),
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens shares its weight with lm_head"),
        ({"layers_to_transform": "1-2"}, "1-2 is not allowed: the base model has layers 0-1"),
        ({"adapter": "adalora", "early_stopping_patience": None, "batch_size": 40}, "at least 3 optimiser steps"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_any_weight_is_read(
    tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    lay_out(tmp_path, **({"epochs": 1} | settings))
    with pytest.raises(UserError) as caught:
        main()
    (problem,) = problems(str(caught.value))
    assert sentence in problem


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["model.layers.0.self_attn.q_proj", "down_proj"]},
        {"target_modules": ["wrong_proj"], "method": "full"},
        {"target_modules": ["v_proj"], "method": "qlora", "adapter": "dora"},
    ],
)
def test_an_adapter_that_fits_passes(tmp_path: Path, settings: dict[str, Any]) -> None:
    lay_out(tmp_path, **settings)
    main()


def test_the_output_layer_gets_no_adapter_where_it_is_untied_either(tmp_path: Path) -> None:
    lay_out(tmp_path, target_modules=["lm_head", "embed_tokens"])
    config = read_json(paths.BASE / "config.json")
    write_json(paths.BASE / "config.json", config | {"tie_word_embeddings": False})
    with pytest.raises(UserError) as caught:
        main()
    (problem,) = problems(str(caught.value))
    assert "lm_head is the output layer, whose adapter TRL does not train" in problem


@pytest.mark.parametrize("missing", [paths.BASE, paths.TRAIN, paths.VALIDATION])
def test_what_is_missing_is_named(tmp_path: Path, missing: Path) -> None:
    lay_out(tmp_path)
    missing.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{missing} is missing; run `dvc repro"):
        main()


def test_what_the_loss_sees_stands_between_marks(capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat(tiny_tokenizer(), "")
    examples = make_examples(chat, [make_record("hi ü", '{"ä": 1}', None, "s", "s:1")], 400)
    show_example(chat, examples.input_ids[0], examples.completion_mask[0])
    shown = capsys.readouterr().out
    assert "hi ü<|im_end|>" in shown
    assert '⟦{"ä": 1}<|im_end|>⟧' in shown


def test_the_command_exits_with_2_and_no_weights(tmp_path: Path) -> None:
    """There is no weights file at all in the folder."""
    lay_out(tmp_path, max_left_out_share=0.0, max_tokens=90)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    run(tmp_path, "git", "init", "--quiet")
    command = [sys.executable, "-m", "stages.cli", "preflight"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/bin"},
    )
    assert done.returncode == 2
    assert "error: preflight found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_training_does_not_begin(tmp_path: Path) -> None:
    lay_out(tmp_path, "<|im_start|>" + CHAT_TEMPLATE)
    save_tiny_model(tmp_path / paths.BASE, template="<|im_start|>" + CHAT_TEMPLATE)
    for name in ("stages", "constraints", ".dvcignore", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-m", "stages.tune.train"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/bin"},
    )
    assert done.returncode == 2
    assert "twice" in done.stderr
    assert not (tmp_path / paths.CHECKPOINTS).exists()
