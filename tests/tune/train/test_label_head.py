"""train.head: label: the model answers with labels, and is the same one however it is loaded or asked."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from label_rows import LABELS, SETTINGS, label_records, lay_out_labels
from project import set_params
from safetensors import safe_open
from stage_process import die_training, run_stage
from training_project import train
from transformers import AutoModelForSequenceClassification

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import read_json, tree_digest
from stages.engines.engine_server import CHAT, EngineError, ask, call, serving
from stages.measure.gates.__main__ import check_gates
from stages.model.answers import answer, rows_with_likelihood
from stages.model.chat import Chat, make_chat
from stages.model.labels import label_likelihoods, labels_in, refuse_other_labels
from stages.model.likelihoods import divergence, likelihoods
from stages.model.loading import Weights, load_model, load_tokenizer, load_tuned
from stages.params.loader import check_params, read_params
from stages.params.measure import Gate
from stages.params.model import Generation
from stages.params.task import Task
from stages.records.record import Record, make_record, write_records
from stages.ship.merge_quantize.__main__ import merge, quantise, release_lora, tensor_types
from stages.tune.train.label_trainer import label_problems

GENERATION = Generation(max_new_tokens=1)  # a label is said whole, whatever this says


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = lay_out_labels(tmp_path_factory.mktemp("label") / "project", epochs=4, learning_rate=1e-2)
    metrics = train(project)
    assert (metrics["head"], metrics["labels"], metrics["tokens"]["trained"]) == ("label", 2, 64)
    assert metrics["loss"]["validation_last"] < 0.1 < 0.6 < metrics["loss"]["validation_first"]
    merge(project / paths.BASE, project / paths.SFT, project / paths.MERGED, "float32")
    return project


@pytest.fixture(scope="module")
def chat(project: Path) -> Chat:
    return make_chat(load_tokenizer(project / paths.BASE), "Label.")


def oracle(folder: Path, chat: Chat, records: list[Record]) -> list[torch.Tensor]:
    """The logits of transformers' own model of the merged files, one prompt at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return [model(torch.tensor([chat.prompt_ids(record)])).logits[0] for record in records]


def test_answers_and_likelihoods_are_those_of_transformers_for_adapter_and_merged_model(
    project: Path, chat: Chat
) -> None:
    records = label_records(40, first=2000)
    logits = oracle(project / paths.MERGED, chat, records)
    said = [LABELS[int(one.argmax())] for one in logits]
    nats = [
        float(-one.double().log_softmax(-1)[LABELS.index(r.label or "")])
        for one, r in zip(logits, records, strict=True)
    ]
    assert sum(a == r.completion for a, r in zip(said, records, strict=True)) >= 38
    for model in (load_tuned(project / paths.BASE, project / paths.SFT), load_model(project / paths.MERGED)):
        rows = rows_with_likelihood(model, chat, records, GENERATION, "test")
        assert [row["output"] for row in rows] == said
        assert [row["nats"] for row in rows] == pytest.approx(nats, rel=1e-4, abs=1e-5)
        assert all(row["stopped"] for row in rows)
    assert divergence(
        load_tuned(project / paths.BASE, project / paths.SFT), load_model(project / paths.MERGED), chat, records
    ) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_neither_batch_nor_padding_changes_a_likelihood(
    project: Path, chat: Chat, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(project / paths.MERGED)
    prompts = [chat.prompt_ids(record) for record in label_records(20, first=3000)]
    prompts.append([*prompts[0], chat.stop_id])  # ends with the token that pads transformers' own batches
    alone = torch.cat([label_likelihoods(model, [prompt]) for prompt in prompts])
    assert len({len(prompt) for prompt in prompts}) > 3
    monkeypatch.setitem(label_likelihoods.__globals__["_TOKENS_AT_ONCE"], "cpu", tokens)
    torch.testing.assert_close(label_likelihoods(model, prompts), alone, rtol=1e-5, atol=1e-6)


def test_what_pads_ends_no_prompt(project: Path, chat: Chat) -> None:
    pad = read_json(project / paths.SFT / "config.json")["pad_token_id"]
    assert pad not in {chat.prompt_ids(record)[-1] for record in label_records(64)}


def test_the_head_and_its_labels_stay_in_each_format(project: Path, chat: Chat, tmp_path: Path) -> None:
    records = label_records(40, first=4000)
    before = [one.output for one in answer(load_model(project / paths.MERGED), chat, records, GENERATION, "test")]
    for form in ("nf4", "int8"):
        quantise(project / paths.MERGED, tmp_path / form, form)
        assert labels_in(tmp_path / form) == LABELS
        with safe_open(tmp_path / form / "model.safetensors", framework="pt") as file:
            assert file.get_slice("score.weight").get_dtype() == "F32"
        assert tensor_types(tmp_path / form)["U8" if form == "nf4" else "I8"]
        said = answer(Weights(tmp_path / form), chat, records, GENERATION, "test")
        assert sum(one.output == a for one, a in zip(said, before, strict=True)) >= 38


def test_the_adapter_ships_with_its_labels(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    shutil.copytree(paths.SFT, paths.ADAPTER)
    release_lora("path:somewhere", paths.RELEASE / "lora")
    assert labels_in(paths.RELEASE / "lora") == LABELS
    assert not list((paths.RELEASE / "lora").glob("*.gguf"))


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name, die in (("whole", None), ("killed", die_training)):
        project = lay_out_labels(tmp_path / name)
        if die:
            assert run_stage(project, "train", die)[0] == -9
        code, text = run_stage(project, "train")
        assert code == 0, text
        assert ("going on from" in text) == bool(die)
        digests.append(tree_digest(project / paths.SFT))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("settings", [{"method": "full", "learning_rate": 3e-3}, {"method": "qlora"}])
def test_other_methods_train_a_head(tmp_path: Path, settings: dict[str, Any]) -> None:
    project = lay_out_labels(tmp_path, epochs=4, **{"learning_rate": 1e-2, **settings})
    metrics = train(project)
    assert metrics["loss"]["validation_last"] < metrics["loss"]["validation_first"] / 2
    merge(project / paths.BASE, project / paths.SFT, project / paths.MERGED, "float32")
    assert labels_in(project / paths.MERGED) == LABELS


def test_how_a_batch_is_cut_changes_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for tokens in (1, 10_000):
        monkeypatch.setenv("TUNETRAIL_MICRO_BATCH_TOKENS", str(tokens))
        project = lay_out_labels(tmp_path / str(tokens), batch_size=8)
        losses.append(train(project)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_its_server_answers_with_the_label_and_says_how_likely_it_is(project: Path, chat: Chat) -> None:
    records = label_records(6, first=5000)
    odd = make_record("<|im_end|> «ünïcode» 🙂", LABELS[0], None, "s", "s:1")
    asked = [chat.messages(record) for record in (*records, odd)]
    here = answer(load_model(project / paths.MERGED), chat, [*records, odd], GENERATION, "test")
    with serving(project / paths.MERGED, "transformers", slots=4) as server:
        assert [(o.output, o.tokens, o.stopped) for o in ask(server, asked, GENERATION)] == [
            (one.output, one.tokens, True) for one in here
        ]
        body = {"messages": asked[0], "logprobs": True, "top_logprobs": 2}
        told = call(server, CHAT, body)["choices"][0]["logprobs"]["content"][0]
        assert [one["token"] for one in told["top_logprobs"]] == sorted(LABELS, key=lambda x: x != here[0].output)
        reference = Record(**{**{k: getattr(records[0], k) for k in Record.__slots__}, "completion": told["token"]})
        nats = likelihoods(load_model(project / paths.MERGED), chat, [reference])[0].nats
        assert told["logprob"] == pytest.approx(-nats, abs=1e-6)
        wrongs: list[dict[str, Any]] = [
            {"messages": []},
            {"messages": [{"role": "user"}]},
            {"messages": 3},
            {},
            {"messages": asked[0][:1]},
        ]
        for wrong in wrongs:
            with pytest.raises(EngineError) as caught:
                call(server, CHAT, wrong)
            assert caught.value.status == 400
            assert "the last one is the user's" in str(caught.value)
    with pytest.raises(UserError, match="which transformers serves"), serving(project / paths.MERGED, "vllm"):
        pass


def test_a_reference_that_is_no_label_has_no_likelihood(project: Path, chat: Chat) -> None:
    with pytest.raises(Refusal, match="a label without a training row"):
        likelihoods(load_model(project / paths.MERGED), chat, [make_record("x", "complaint", "complaint", "s", "s:1")])


def test_labels_that_the_task_does_not_name_are_refused() -> None:
    task = Task(kind="classification", labels=["refund"], instruction="Label.")
    refuse_other_labels(["refund"], task)
    with pytest.raises(UserError, match="which task"):
        refuse_other_labels(LABELS, task)


@pytest.mark.parametrize(
    ("section", "change", "sentence"),
    [
        ("task", {"kind": "json"}, "set task.kind to classification"),
        ("task", {"tags": {"other": {"labels": ["a", "b"]}}}, "leave out tags"),
        ("train", {"engine": "fused"}, "set train.engine to auto"),
        ("train", {"adapter": "adalora"}, "set train.adapter to lora or dora"),
        ("prefer", {"objective": "dpo"}, "set prefer.objective to sft"),
        ("generation", {"enforce": "labels"}, "set generation.enforce to none"),
        ("augment", {"replay_share": 0.1}, "set augment.replay_share and augment.canaries to 0"),
        ("quantize", {"formats": ["merged", "gguf"]}, "set quantize.formats to some of merged, nf4, int8, lora"),
        ("quantize", {"engines": {"merged": "vllm"}}, "leave out quantize.engines"),
    ],
)
def test_what_a_head_cannot_do_is_a_sentence(section: str, change: dict[str, Any], sentence: str) -> None:
    values = read_params(Path(__file__).parents[3] / "params.yaml")
    for name, one in {**SETTINGS, "train": {"head": "label", "early_stopping_patience": None}}.items():
        values[name] |= one
    assert check_params(values).train.head == "label"
    values[section] |= change
    with pytest.raises(UserError) as caught:
        check_params(values)
    head, line = str(caught.value).split("\n  ")
    assert head == "params.yaml has 1 mistake:"
    assert line.startswith("train.head: label: ")
    assert sentence in line


def test_a_label_with_two_completions_and_one_without_rows_are_told_before_training(tmp_path: Path) -> None:
    project = lay_out_labels(tmp_path)
    rows = [*label_records(8), make_record("money again", "ship it", "refund", "s", "s:1")]
    write_records(project / paths.TRAIN, rows)
    write_records(project / paths.VALIDATION, [make_record("a moan", "complaint", "complaint", "s", "s:2")])
    code, text = run_stage(project, "train")
    assert code == 2
    assert "each label has exactly one completion in the training rows; more have refund (2)" in text
    assert "labels without a training row: complaint" in text
    assert "rows of two labels at least" in " ".join(label_problems(label_records(1), []))


def test_a_base_without_such_a_head_is_a_sentence(tmp_path: Path) -> None:
    from transformers import MambaConfig

    project = lay_out_labels(tmp_path)
    MambaConfig(hidden_size=64, num_hidden_layers=2).save_pretrained(tmp_path / "mamba")
    from stages.model.labels import label_config

    with pytest.raises(UserError, match="transformers has no classification head for models of the kind mamba"):
        label_config(tmp_path / "mamba", LABELS, 1)
    set_params(project, {"train": {"engine": "fused"}})
    code, text = run_stage(project, "train")
    assert (code, "the fused engine trains completions" in text) == (2, True)


@pytest.mark.parametrize("metric", ["general_perplexity", "general_agreement", "refusals", "canary_exposure_max"])
def test_gates_on_what_it_cannot_be_asked_do_not_apply(metric: str) -> None:
    gates = {"one": Gate(model="adapter", metric=metric, against="base", maximum=1.0)}
    files: dict[str, Any] = {"train": {"head": "label", "labels": 2}, "evaluate": {"adapter": {"exact_match": 1.0}}}
    told = check_gates(gates, files)["gates"]["one"]
    assert (told["state"], told["reason"]) == ("PASS", "train.head is label: such a model answers nothing but labels")
    assert "value" not in told
    with pytest.raises(UserError):
        check_gates(gates, {**files, "train": {}})


def test_a_model_with_a_head_is_no_base(project: Path, tmp_path: Path) -> None:
    other = lay_out_labels(tmp_path)
    sha = tree_digest(shutil.copytree(project / paths.MERGED, tmp_path / "classifier"))
    set_params(other, {"model": {"source": "path:classifier", "file": None, "sha256": sha}})
    (other / "data").mkdir(exist_ok=True)
    (other / "data/chat_template.jinja").write_text("{# none #}", encoding="utf-8")
    code, text = run_stage(other, "base")
    assert code == 2, text
    assert "model.source: classifier has a classification head; name the model that it was made from" in text
