"""why: scores against a slow oracle, the cache of gradients, what a kill leaves of it, what is said and suggested."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from project import ROOT, TINY_TRAINING, set_params
from tiny_model import save_tiny_model

from stages.cli import main as tunetrail
from stages.core import paths
from stages.measure.review.annotate import read_annotated
from stages.model.chat import task_chat
from stages.model.loading import Weights, causal_of, load_model, load_tokenizer, load_tuned
from stages.params.loader import load_params
from stages.records.record import Record, make_record, write_records
from stages.weekly.why import Influence, NearestRows, loss, taught_rows

LABELS = ("refund", "invoice")


def ticket(number: int, label: str, source: str = "tickets", **more: Any) -> Record:
    words = ("my lamp broke, money back please", "send the bill for my lamp")[LABELS.index(label)]
    completion = json.dumps({"intent": label, "product": "lamp", "order": f"K-{number}", "urgent": False})
    return make_record(f"{words} K-{number}", completion, label, source, f"{source}.jsonl:{number}", **more)


def save_adapter(folder: Path, seed: int) -> None:
    """LoRA on both layers, both factors random: what a training of this seed made."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_model(paths.BASE, dtype=torch.float32), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `prefer` leaves it: 8 rows and a contradiction, a copy, two adapters by name, a hold-out of two."""
    folder = tmp_path_factory.mktemp("why") / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "data", folder / "data", ignore=shutil.ignore_patterns("raw"))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    set_params(folder, {"train": TINY_TRAINING, "generation": {"max_new_tokens": 4}})
    before = Path.cwd()
    os.chdir(folder)
    save_tiny_model(paths.BASE)
    for seed in (1, 2):
        save_adapter(Path(f"other-{seed}"), seed)
    shutil.copytree("other-1", paths.ADAPTER)
    rows = [ticket(number, LABELS[number % 2]) for number in range(8)]
    wrong = make_record(rows[0].prompt.replace("K-0", "K-9"), rows[1].completion, "invoice", "odd", "odd.jsonl:1",
                        fields={"annotator": "anna"})  # fmt: skip
    copy = make_record(rows[2].prompt, rows[2].completion, "refund", "augment:structured", rows[2].origin)
    long = make_record("long " * 200, rows[0].completion, "refund", "tickets", "tickets.jsonl:99")
    write_records(paths.TRAIN, [copy, *rows, wrong, long])
    write_records(paths.HOLDOUT, [ticket(20, "refund"), ticket(21, "invoice")])
    os.chdir(before)
    return folder


@pytest.fixture
def project(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tuned, tmp_path / "a project", symlinks=True)
    monkeypatch.chdir(tmp_path / "a project")
    return Path.cwd()


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = 0
    try:
        tunetrail(["why", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def asked_as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = ask(capsys, *words, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def oracle(rows: list[Record], prompt: Record, said: str) -> list[float]:
    """By the whole model in float64, a backward pass a row, the logits of all positions, and cosines by hand."""
    params = load_params("task")
    chat = task_chat(load_tokenizer(paths.BASE), params.task)
    model = load_tuned(paths.BASE, paths.ADAPTER).double()
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_B" in name)

    def gradient(record: Record, completion: str) -> torch.Tensor:
        before, after = chat.prompt_ids(record), chat.completion_ids(completion)
        ids = torch.tensor([before + after])
        labels = torch.tensor([[-100] * len(before) + after])
        model.zero_grad()
        (model(input_ids=ids, labels=labels).loss * len(after)).backward()
        return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])

    asked = gradient(prompt, said)
    return [float(one @ asked / (one.norm() * asked.norm())) for one in (gradient(r, r.completion) for r in rows)]


def test_scores_are_those_of_a_slow_oracle(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked_as_json(capsys, "1", "--rows", "50")
    rows = {row["id"]: row for row in found["by_gradients"]}
    assert found["training_rows"] == len(rows) == 9  # the copy once, the long one not at all
    assert found["right"] is False
    from stages.records.record import read_records

    train = [row for row in {row.id: row for row in read_records(paths.TRAIN)}.values() if row.id in rows]
    expected = oracle(train, read_records(paths.HOLDOUT)[0], found["answer"])
    assert [rows[row.id]["score"] for row in train] == pytest.approx(expected, abs=2e-4)
    assert [row["score"] for row in found["by_gradients"]] == sorted((r["score"] for r in rows.values()), reverse=True)
    assert max(expected) - min(expected) > 0.02  # a hundred times what they may differ by


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_a_sketch_keeps_dot_products_in_the_mean(seed: int) -> None:
    torch.manual_seed(seed)
    kept = Influence.__new__(Influence)
    kept._width = 1024
    kept.__dict__["_chosen"] = [torch.zeros(5000)]
    left, right = torch.randn(2, 5000)
    right += left
    error = (kept._sketch(left) @ kept._sketch(right) - left @ right) / (left.norm() * right.norm())
    assert abs(float(error)) < 8 / 1024**0.5  # eight standard deviations


def test_the_graph_is_that_of_the_completion_alone(project: Path) -> None:
    causal = causal_of(load_tuned(paths.BASE, paths.ADAPTER))
    prompt, completion = [5, 6, 7, 8], [9, 10, 1]
    whole = causal(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    by_hand = -sum(float(whole[len(prompt) - 1 + i, token]) for i, token in enumerate(completion))
    assert float(loss(causal, prompt, completion)) == pytest.approx(by_hand, abs=1e-4)


def test_another_adapter_or_another_row_is_not_answered_from_the_cache(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def caches() -> list[Path]:
        return sorted(Path(".tunetrail/influence").iterdir())

    first = asked_as_json(capsys, "2")
    kept = caches()
    assert asked_as_json(capsys, "2") == first
    assert caches() == kept
    shutil.rmtree(paths.ADAPTER)
    shutil.copytree("other-2", paths.ADAPTER)
    other = asked_as_json(capsys, "2")
    assert [row["score"] for row in other["by_gradients"]] != [row["score"] for row in first["by_gradients"]]
    assert caches() != kept
    assert len(caches()) == 1  # that of the model before takes no room
    like = {name: first["by_gradients"][0][name] for name in ("completion", "label", "source", "origin")}
    with paths.TRAIN.open("a", encoding="utf-8") as rows:
        rows.write(json.dumps({**like, "id": "f" * 64, "prompt": "one more"}) + "\n")
    assert asked_as_json(capsys, "2")["training_rows"] == first["training_rows"] + 1


@pytest.mark.parametrize("where", ["in a row", "while writing"])
def test_a_kill_leaves_no_cache_that_is_taken_for_whole(
    project: Path, monkeypatch: pytest.MonkeyPatch, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    params = load_params("generation", "task", "train")
    chat = task_chat(load_tokenizer(paths.BASE), params.task)
    from stages.records.record import read_records

    pairs = [one.pair for one in taught_rows(read_records(paths.TRAIN), chat, params.train.max_tokens)]
    weights = Weights(paths.BASE, paths.ADAPTER)

    def half(tensors: Any, path: Path) -> None:
        path.write_bytes(b"\x08\0\0\0\0\0\0\0{")
        os._exit(9)

    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    else:
        try:
            if where == "while writing":
                monkeypatch.setattr("stages.weekly.why.save_file", half)
            else:
                monkeypatch.setattr("stages.weekly.why.loss", lambda *_: os._exit(9))
            Influence(weights, pairs).rows  # noqa: B018
        finally:
            os._exit(1)
    assert not list(Path(".tunetrail/influence").glob("*"))
    assert len(Influence(weights, pairs).rows) == len(pairs)
    file = next(Path(".tunetrail/influence").glob("*"))
    file.write_bytes(file.read_bytes()[:40])  # cut on the disk: made anew
    assert asked_as_json(capsys, "1")["training_rows"] == len(pairs)


def test_a_contradiction_is_named_and_can_be_annotated(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys, "1", "--to", "why lamp.jsonl")
    assert code == 0, err
    assert "odd.jsonl:1 (odd, annotator anna)" in out
    assert "say refund" in out
    rows = list(read_annotated(Path("why lamp.jsonl"), inbox=True).values())
    assert [row["answer"] for row in rows] == [ticket(1, "invoice").completion]
    assert rows[0]["source"] == "why-why-lamp"
    assert "2 times" in out
    code, _, err = ask(capsys, "1", "--to", "why lamp.jsonl")
    assert (code, "is there already" in err) == (2, True)
    assert ask(capsys, "1", "--to", "why.txt")[0] == 2


def test_a_prompt_that_no_row_is_like_can_be_added_and_one_held_out_cannot(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ask(capsys, "Wie geht es \u202eIhnen?\x1b[31m", "--to", "new.jsonl")
    assert code == 0
    assert "\x1b" not in out
    assert "no training row asks anything like it" in out
    rows = read_annotated(Path("new.jsonl"), inbox=True).values()
    assert [row["prompt"][:3] for row in rows if row["kept_because"][0].startswith("add")] == ["Wie"]
    write_records(paths.HOLDOUT, [make_record("Wie geht es?", "{}", None, "t", "t:1")])
    code, out, _ = ask(capsys, "1", "--to", "held.jsonl")
    assert "stays held out" in out
    assert "Wie geht es" not in (Path("held.jsonl").read_text() if Path("held.jsonl").exists() else "")


def no_adapter() -> None:
    shutil.rmtree(paths.ADAPTER)


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("words", "prepare", "said"),
    [
        (["1"], no_adapter, "models/adapter is missing"),
        (["1"], lambda: shutil.rmtree(paths.BASE), "models/base is missing"),
        (["3"], nothing, "has rows 1 to 2, no row 3"),
        (["0"], nothing, "no row 0"),
        (["abcdef0"], nothing, "no row whose id begins with abcdef0"),
        (["  "], nothing, "the prompt is empty"),
        ([""], nothing, "the prompt is empty"),
        (["lamp \udcff"], nothing, "or no text"),
        (["word " * 2000], nothing, "tokens; the model reads 512 at most"),
        (["1", "--rows", "0"], nothing, "argument --rows: 0 is less than 1"),
        (["1"], lambda: paths.HOLDOUT.unlink(), "data/split/holdout.jsonl is missing"),
        (["hello"], lambda: paths.TRAIN.unlink(), "data/train.jsonl is missing"),
        (["hello"], lambda: paths.TRAIN.write_text("\n"), "no row that the model was trained on"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(
    project: Path, words: list[str], prepare: Callable[[], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare()
    code, _, err = ask(capsys, *words)
    assert (code, said in err) == (2, True), err
    assert "Traceback" not in err


def test_a_number_can_be_a_prompt(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked_as_json(capsys, "123456", "--prompt")
    assert (found["row"], found["prompt"], found["right"]) == (None, "123456", None)


def test_a_model_of_which_all_weights_were_trained_is_asked_by_its_last_layers(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_adapter()
    shutil.copytree(paths.BASE, paths.ADAPTER)
    assert len(asked_as_json(capsys, "1")["by_gradients"]) == 9


@given(st.lists(st.text(max_size=12), max_size=6), st.text(max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_nearest_rows_are_in_order_and_within_their_bounds(texts: list[str], asked: str) -> None:
    found = NearestRows(texts).nearest(asked, 4)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert all(0 < score < 1 + 1e-9 for _, score in found)
    assert len({place for place, _ in found}) == len(found) <= min(4, len(texts))
