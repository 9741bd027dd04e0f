"""canary: continue, stop or undecided, from what the front logged."""

import json
from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.ship.serve.canary_release import CONTINUE, STOP, UNDECIDED, judge_canary


def log(file: Path, old: dict[str, int], new: dict[str, int], **more: object) -> Path:
    """Requests of two versions: "n" of each, of which so many with each fault."""
    faults: dict[str, dict[str, object]] = {
        "failed": {"status": 502},
        "cut": {"stopped": False},
        "broken": {"valid": False},
        "slow": {"seconds": 9.0},
    }
    with file.open("w") as out:
        for canary, counts in ((False, old), (True, new)):
            rows: list[dict[str, object]] = [
                {"release": f"v{1 + canary}", "canary": canary, "status": 200, "seconds": 0.1}
                for _ in range(counts["n"])
            ]
            for number, row in enumerate(rows):
                row |= {"id": str(number), "stopped": True, "valid": True, **more}
            for name, fault in faults.items():
                for row in rows[: counts.get(name, 0)]:
                    row |= fault
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return file


@pytest.mark.parametrize(
    ("old", "new", "decision"),
    [
        ({"n": 5000, "cut": 10}, {"n": 1000, "cut": 2}, CONTINUE),
        ({"n": 5000}, {"n": 1000, "broken": 60}, STOP),
        ({"n": 5000}, {"n": 1000, "failed": 60}, STOP),
        ({"n": 5000}, {"n": 1000, "cut": 60}, STOP),
        ({"n": 5000}, {"n": 1000, "slow": 100}, STOP),
        ({"n": 5000}, {"n": 20}, UNDECIDED),
        ({"n": 90}, {"n": 10, "broken": 1}, UNDECIDED),
        ({"n": 50_000}, {"n": 10_000, "broken": 50}, CONTINUE),  # shown to be worse, by less than the margin
    ],
)
def test_the_decision(old: dict[str, int], new: dict[str, int], decision: str, tmp_path: Path) -> None:
    found, said = judge_canary(log(tmp_path / "log.jsonl", old, new), margin=0.02, confidence=0.95)
    assert found == decision, said
    assert said.splitlines()[0] == "canary v2, beside v1"
    assert said.splitlines()[-1] == decision


def test_full_logs_before_it_count(tmp_path: Path) -> None:
    file = log(tmp_path / "log.jsonl", {"n": 500}, {"n": 100, "broken": 9})
    whole = judge_canary(file, 0.02, 0.95)
    lines = file.read_text().splitlines(keepends=True)
    (tmp_path / "log-20260101T000000000001.jsonl").write_text("".join(lines[:200]))
    (tmp_path / "log-20260102T000000000001.jsonl").write_text("".join(lines[200:550]))
    file.write_text("".join(lines[550:]))
    (tmp_path / "log-book.jsonl").write_text("{")
    assert judge_canary(file, 0.02, 0.95) == whole


def test_what_was_not_logged_is_not_compared(tmp_path: Path) -> None:
    _, said = judge_canary(log(tmp_path / "log.jsonl", {"n": 50}, {"n": 50}, valid=None, stopped=None), 0.02, 0.95)
    assert [line.partition(" ")[0] for line in said.splitlines()[1:-1]] == ["failed", "over"]


def test_half_a_line_that_a_kill_left_is_passed_over(tmp_path: Path) -> None:
    file = log(tmp_path / "log.jsonl", {"n": 500}, {"n": 100, "broken": 9})
    whole = judge_canary(file, 0.02, 0.95)
    with file.open("ab") as out:
        out.write(b'\xff\n[]\n{"release": "v1", "canary": fal')
    assert judge_canary(file, 0.02, 0.95) == whole


@pytest.mark.parametrize("text", ["{", "", '{"canary": false, "release": "v1", "status": 200, "seconds": 1}'])
def test_a_log_that_says_nothing_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"log\.jsonl"):
        judge_canary(tmp_path / "log.jsonl", 0.02, 0.95)


@pytest.mark.parametrize(
    "odd", [{"status": None}, {"status": "200"}, {"seconds": None}, {"seconds": [1]}, {"release": {}}, {"canary": 1}]
)
def test_a_line_of_other_types_is_no_request(odd: dict[str, object], tmp_path: Path) -> None:
    file = log(tmp_path / "log.jsonl", {"n": 500}, {"n": 100, "broken": 9})
    whole = judge_canary(file, 0.02, 0.95)
    with file.open("a") as out:
        out.write(json.dumps({"release": "v2", "canary": True, "status": 200, "seconds": 0.1} | odd) + "\n")
    assert judge_canary(file, 0.02, 0.95) == whole


@pytest.mark.parametrize("prompt", ["\ud800", "a\u2028b", "deep"])
def test_a_request_counts_whatever_its_client_asked(prompt: object, tmp_path: Path) -> None:
    for _ in range(120) if prompt == "deep" else ():
        prompt = [prompt]
    plain, odd = tmp_path / "plain.jsonl", tmp_path / "odd.jsonl"
    log(plain, {"n": 500}, {"n": 100, "broken": 9}, request={})
    log(odd, {"n": 500}, {"n": 100, "broken": 9}, request=prompt)
    if prompt == "a\u2028b":  # as another writer of JSON leaves it
        odd.write_text(odd.read_text().replace("\\u2028", "\u2028"))
    assert judge_canary(odd, 0.02, 0.95) == judge_canary(plain, 0.02, 0.95)
