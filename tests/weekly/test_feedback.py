"""feedback: what the judge says in both orders becomes a pair with its provenance; all else is counted."""

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asked_servers import Rule, judging
from project import ROOT, set_params
from tiny_model import save_tiny_model

from stages.cli import main
from stages.core import paths
from stages.core.errors import UserError
from stages.params.loader import load_params
from stages.params.measure import Judge
from stages.params.section import Price
from stages.records.record import make_record, read_rows, write_records, write_rows
from stages.tune.prefer.preference_rows import read_preferences
from stages.weekly.preferences import read_principles, write_feedback

PRINCIPLES = "# of the shop\n\nSay please.\nPromise nothing.\n"
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "indigo")
LOCKED = "where is the parcel that I sent on Monday"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight rows to train on, two to validate on, of which one is near the locked one; two answers to each."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    prompts = [f"{word} {hashlib.sha256(word.encode()).hexdigest()[:20]}" for word in WORDS]
    records = [make_record(prompt, "{}", None, "shop", "shop:1") for prompt in [*prompts, f"{LOCKED}s"]]
    write_records(paths.SPLIT_TRAIN, records[:8])
    write_records(paths.VALIDATION, records[8:])
    write_records(paths.HOLDOUT, [make_record(LOCKED, "{}", None, "shop", "shop:1")])
    write_rows(Path("one.jsonl"), [{"id": row.id, "output": f"please {row.prompt}"} for row in records])
    write_rows(Path("two.jsonl"), [{"id": row.id, "output": f"no {row.prompt}"} for row in records])
    Path("shop ü.txt").write_text(PRINCIPLES, encoding="utf-8")
    return tmp_path


def judge(server: type[Rule]) -> dict[str, Any]:
    endpoint = f"http://127.0.0.1:{server.port}/v1"
    return Judge(endpoint=endpoint, key_variable=None, price=Price(input=10.0), attempts=1).model_dump()


def ask(server: type[Rule], rows: int = 50) -> str:
    set_params(Path(), {"judge": judge(server)})
    params = load_params("dedup.threshold", "generation", "judge", "prefer.temperature", "seed", "task")
    return write_feedback(Path("shop ü.txt"), [Path("one.jsonl"), Path("two.jsonl")], params, "may", rows)


def polite(question: dict[str, str]) -> str:
    letter = "A" if question["answer A"].startswith("please") else "B"
    return f"1. Answer {letter} says please.\n2. Neither promises.\n{letter}"


def test_a_pair_has_principles_judge_row_and_what_was_criticised(project: Path) -> None:
    written = paths.PREFERENCES / "may.jsonl"
    with judging(polite) as server:
        said = ask(server)
        assert said.startswith(f"9 pairs of 9 rows in {written}\n  1 rows near the hold-out were not shown\n")
        assert (
            "18 replies, 18 of them asked for now: input tokens 1,800, output tokens 36, uncounted 0, price 0.018"
            in said
        )
        asked = [body["messages"][1]["content"] for _, body in server.seen]
        assert len(asked) == 18
        assert "=== end " in asked[0]
        assert asked[0].endswith(
            "The principles:\n1. Say please.\n2. Promise nothing.\nWhich answer keeps to them better: A, B or TIE?"
        )
        assert server.seen[0][1]["max_tokens"] == 512
        assert not any(LOCKED in text for text in asked)
        rows, first = list(read_rows(written)), written.read_bytes()
        written.unlink()
        assert "0 of them asked for now" in ask(server)  # none is paid twice
        assert len(server.seen) == 18
    assert written.read_bytes() == first
    assert [row["row"] for row in rows] == sorted(row["row"] for row in rows)
    for row in rows:
        assert (row["chosen"], row["rejected"]) == (f"please {row['prompt']}", f"no {row['prompt']}")
        assert row["principles"] == hashlib.sha256(PRINCIPLES.encode()).hexdigest()
        assert (row["source"], row["judge"]) == ("principles:may", "endpoint:judge")
        assert row["answers"] == ["one.jsonl", "two.jsonl"]
        assert row["critique"].startswith("1. Answer A says please.")
    assert len(read_preferences(paths.PREFERENCES)) == 9


@pytest.mark.parametrize("seed", range(6))
def test_only_what_both_orders_say_is_a_preference(project: Path, seed: int) -> None:
    """Against an oracle: replies by row and by which answer came first, drawn at random."""
    draw = random.Random(seed)
    replies = {(word, first): draw.choice(["A", "B", "TIE", "no idea"]) for word in WORDS for first in ("please", "no")}
    replies["amber", "please"], replies["amber", "no"] = "A", "B"  # one pair at least

    def rule(question: dict[str, str]) -> str:
        first, word = question["answer A"].split()[:2]
        return replies[word, first]

    with judging(rule) as server:
        said = ask(server)
    expected, left_out = {}, Counter[str]()
    for word in WORDS:
        one, other = replies[word, "please"], replies[word, "no"]
        if "no idea" in (one, other):
            left_out["a reply without a choice"] += 1
        elif (one, other) in (("A", "B"), ("B", "A")):
            expected[word] = "please" if one == "A" else "no"
        else:
            left_out["a tie" if one == other == "TIE" else "the two orders disagree"] += 1
    found = {row["prompt"].split()[0]: row["chosen"].split()[0] for row in read_rows(paths.PREFERENCES / "may.jsonl")}
    assert found == expected
    assert {line.strip() for line in said.splitlines() if "left out" in line} == {
        f"{count} left out: {why}" for why, count in left_out.items()
    }
    assert len(found) + left_out.total() == len(WORDS)


def test_a_judge_that_likes_what_comes_first_teaches_nothing(project: Path) -> None:
    with (
        judging(lambda question: "A") as server,
        pytest.raises(UserError, match=r"prefers no answer in both orders(.|\n)*3 left out: the two orders disagree"),
    ):
        ask(server, rows=3)
    assert not paths.PREFERENCES.exists()


def test_equal_and_empty_answers_are_not_asked_about(project: Path) -> None:
    rows = list(read_rows(Path("one.jsonl")))
    other = [row | {"output": f" {row['output']}\n"} for row in rows[:3]]
    write_rows(Path("two.jsonl"), [*other, rows[3] | {"output": " "}, *(row | {"output": "no"} for row in rows[4:])])
    with judging(polite) as server:
        said = ask(server)
        assert len(server.seen) == 10
    assert "4 left out: the two answers are the same, or one is empty" in said


def test_answers_are_sampled_from_the_tuned_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(paths.BASE, seed=1)
    save_tiny_model(paths.ADAPTER, seed=2)
    Path("dvc.yaml").write_text("stages: {}\n")
    with judging(lambda question: "A" if question["answer A"] > question["answer B"] else "B") as server:
        set_params(Path(), {"judge": judge(server), "generation": {"max_new_tokens": 6}})
        for name in ("one", "two"):
            main(["feedback", "--principles", "shop ü.txt", "--name", name, "--rows", "4"])
    one, two = ([*read_rows(paths.PREFERENCES / f"{name}.jsonl")] for name in ("one", "two"))
    assert one
    assert [row | {"source": ""} for row in one] == [row | {"source": ""} for row in two]
    assert {row["answers"] for row in one} == {"sampled"}
    assert all(row["chosen"] > row["rejected"] for row in one)
    assert "of 4 rows in data/preferences/two.jsonl" in capsys.readouterr().out


def broken(change: Callable[[], object]) -> str:
    change()
    with judging(polite) as server, pytest.raises(UserError) as caught:
        ask(server)
    assert not server.seen
    return str(caught.value)


def test_mistakes_are_sentences_and_cost_nothing(project: Path) -> None:
    file, two = Path("shop ü.txt"), Path("two.jsonl")
    assert "has no principle; write one a line" in broken(lambda: file.write_text("# only this\n\n"))
    assert "name a text file of a principle a line" in broken(lambda: file.write_bytes(b"\xff\xfe\x00"))
    assert "name a text file of a principle a line" in broken(file.unlink)
    file.write_text(PRINCIPLES)
    assert "two.jsonl, line 1: expected id and output" in broken(lambda: write_rows(two, [{"id": 3}]))
    other = [{"id": "of the hold-out", "output": "no"}]
    assert "no training or validation row" in broken(lambda: write_rows(two, other))
    paths.PREFERENCES.mkdir(parents=True)
    assert "is there already" in broken(lambda: (paths.PREFERENCES / "may.jsonl").write_text("{}"))


def test_a_principle_a_line(project: Path) -> None:
    Path("crlf.txt").write_bytes("\ufeff First. \r\n\r\n# no\r\nZweitens: höflich.\r\n".encode())
    assert read_principles(Path("crlf.txt")) == ["First.", "Zweitens: höflich."]


def test_the_context_and_task_of_a_row_come_with_it(project: Path) -> None:
    row: dict[str, Any] = json.loads(paths.SPLIT_TRAIN.read_text(encoding="utf-8").splitlines()[0])
    turn = {"role": "assistant", "content": "What is it?"}
    write_rows(paths.SPLIT_TRAIN, [{**row, "task": "tone", "context": [turn]}])
    for name, output in (("one", "please"), ("two", "no")):
        write_rows(Path(f"{name}.jsonl"), [{"id": row["id"], "output": output}])
    with judging(polite) as server:
        ask(server)
        assert "assistant: What is it?\n" in server.seen[0][1]["messages"][1]["content"]
    (pair,) = read_rows(paths.PREFERENCES / "may.jsonl")
    assert (pair["task"], pair["context"]) == ("tone", [turn])
