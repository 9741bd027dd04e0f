"""collect: shapes of logs, why a request is kept, what is left out, in which order, and nothing personal."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from at_once import met
from hypothesis import given
from hypothesis import strategies as st

from stages.core import paths
from stages.core.errors import UserError
from stages.measure.review.annotate import Session
from stages.params.loader import Params
from stages.records import record
from stages.records.record import Record, make_record, write_records
from stages.weekly.collect import collect
from stages.weekly.logs import Served, _served, read_logs

SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["refund", "invoice"]}}, "required": ["intent"]}
GOOD, BAD = '{"intent": "refund"}', '{"intent": "sing"}'
CHAT = {"model": "m", "messages": [{"role": "system", "content": "Do it."}, {"role": "user", "content": "Refund me"}]}


def reply(text: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "r1",
        "created": 1758464000,
        "model": "tickets@1.0.0",
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}],
    }


TOKENS = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]}
SHAPES: dict[str, dict[str, Any]] = {
    "a proxy before vLLM or llama.cpp": {"request": CHAT, "response": reply(GOOD, logprobs=TOKENS)},
    "bodies as text": {"request": json.dumps(CHAT), "response": json.dumps(reply(GOOD, logprobs=TOKENS))},
    "a batch": {
        "custom_id": "7",
        "request": {"body": CHAT},
        "response": {"status_code": 200, "body": reply(GOOD, logprobs=TOKENS)},
    },
    "LiteLLM": {
        "id": "x",
        "startTime": 1758464000.5,
        "model": "tickets@1.0.0",
        "messages": CHAT["messages"],
        "response": reply(GOOD, logprobs=TOKENS),
    },
    "content in parts": {
        "request": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Refund me"}]}]},
        "response": reply(GOOD, logprobs=TOKENS),
    },
    "completions": {
        "request": {"prompt": "Refund me"},
        "response": {
            "created": 1758464000,
            "model": "tickets@1.0.0",
            "choices": [{"text": GOOD, "finish_reason": "stop", "logprobs": {"token_logprobs": [None, -0.5, -1.5]}}],
        },
    },
    "a flat line": {
        "prompt": "Refund me",
        "output": GOOD,
        "release": "tickets@1.0.0",
        "log_probability": -1.0,
        "time": "2025-09-21T14:13:20Z",
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps(SHAPES[shape]) + "\n")
    ((one,), left) = read_logs([file])
    assert left == []
    assert one.messages[-1].content == "Refund me"
    assert (one.output, one.release, one.log_probability) == (GOOD, "tickets@1.0.0", -1.0)
    assert one.time is not None
    assert one.time.date().isoformat() == "2025-09-21"
    assert one.place == "log.jsonl:1"


def test_rows_of_tunetrail_answer() -> None:
    """As stages/ship/serve/answer_file.py writes them: no log-probability and no time."""
    said = {"release": "tickets@1.0.0", "output": BAD, "tokens": 7, "stopped": False}
    context = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    one = _served(json.dumps({"prompt": "Refund me", "task": "t", "context": context, "answer": said}).encode(), "l:1")
    assert isinstance(one, Served)
    assert [message.content for message in one.messages] == ["Hello", "Hi", "Refund me"]
    assert (one.output, one.release, one.finish, one.task) == (BAD, "tickets@1.0.0", "length", "t")


@pytest.mark.parametrize(
    ("said", "thumb", "correction"),
    [
        ({"feedback": "thumbs_down"}, False, None),
        ({"feedback": {"score": -1}}, False, None),
        ({"metadata": {"rating": "positive"}}, True, None),
        ({"feedback": {"thumb": False, "correction": GOOD}}, False, GOOD),
        ({"feedback": None, "score": 0.7}, None, None),
        ({"thumb": 1}, True, None),
        ({"rating": 1}, None, None),  # one star of five, perhaps
        ({"feedback": {"rating": "1", "thumb": "down"}}, False, None),
    ],
)
def test_what_people_said(said: dict[str, Any], thumb: bool | None, correction: str | None) -> None:
    one = _served(json.dumps({"request": CHAT, "response": reply(GOOD)} | said).encode(), "l:1")
    assert isinstance(one, Served)
    assert (one.feedback, one.correction) == (thumb, correction)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_a_time_without_a_zone_is_the_same_on_every_machine(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        one = _served(json.dumps(asked("Refund me", time="2025-11-23T00:30:00")).encode(), "l:1")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert isinstance(one, Served)
    assert one.time == datetime(2025, 11, 23, 0, 30, tzinfo=UTC)


def test_logs_of_one_name_are_told_apart_and_one_that_is_named_twice_was_served_once(tmp_path: Path) -> None:
    for folder, text in (("a", "Refund me"), ("b", "Refund us")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "log.jsonl").write_text(json.dumps(asked(text)) + "\n")
    (tmp_path / "link").symlink_to("a")
    files = [tmp_path / name / "log.jsonl" for name in ("a", "b", "link", "a/../a")]
    assert [one.place for one in read_logs(files[:2])[0]] == ["a/log.jsonl:1", "b/log.jsonl:1"]
    assert [one.messages[-1].content for one in read_logs(files)[0]] == ["Refund me", "Refund us"]
    assert [one.place for one in read_logs(files[:1])[0]] == ["log.jsonl:1"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=True)
    | st.sampled_from([0, 1, -(10**400)])
    | st.text(st.characters(exclude_categories=()), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "prompt",
                    "choices",
                    "request",
                    "response",
                    "message",
                    "content",
                    "logprobs",
                    "feedback",
                    "time",
                    "output",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(json_values)
def test_any_line_is_an_answered_request_or_a_sentence(value: Any) -> None:
    found = _served(json.dumps(value).encode(), "l:1")
    assert isinstance(found, Served) or found.startswith("l:1: no ")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/schema.json").write_text(json.dumps(SCHEMA))
    write_records(paths.UNIQUE, [row("Please refund the blue kettle that I bought on Monday", 1)])
    write_records(paths.HOLDOUT, [row("Send me the invoice of order seven, it never came", 2)])
    return tmp_path


def row(prompt: str, line: int) -> Record:
    return make_record(prompt, GOOD, None, "raw.jsonl", f"raw.jsonl:{line}")


PARAMS = Params.model_validate(
    {"task": {"kind": "json", "instruction": "Do it."}, "model": {"source": "path:x", "licence": "MIT"}, "gates": {}}
)


def asked(text: str, said: str = BAD, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Do it."}, {"role": "user", "content": text}]
    return {"request": {"messages": messages}, "response": reply(said, **more.pop("choice", {})), **more}


def run(project: Path, *lines: dict[str, Any], limit: int = 100) -> tuple[str, list[dict[str, Any]]]:
    (project / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = collect([Path("log.jsonl")], PARAMS, limit, -0.1, "week")
    rows = [json.loads(line) for line in (project / "data/inbox/week.jsonl").read_text().splitlines() if line]
    return said, rows


def test_failures_alone_are_kept_each_with_its_reasons(project: Path) -> None:
    said, rows = run(
        project,
        asked("A sound answer to one thing", GOOD),
        asked("Something broke its contract here"),
        asked("A person gave this a thumb down", GOOD, feedback="down"),
        asked("Corrected by somebody who knows", BAD, correction=GOOD),
        asked("The answer was cut before its end", GOOD, choice={"finish_reason": "length"}),
        asked("Hardly sure of what it said there", GOOD, choice={"logprobs": TOKENS}),
    )
    assert {row["log"]: row["kept_because"] for row in rows} == {
        "log.jsonl:2": ["contract broken"],
        "log.jsonl:3": ["thumb down"],
        "log.jsonl:4": ["corrected", "contract broken"],
        "log.jsonl:5": ["cut off"],
        "log.jsonl:6": ["uncertain"],
    }
    assert {row["log"] for row in rows[:2]} == {"log.jsonl:3", "log.jsonl:4"}  # what people said comes first
    corrected = next(row for row in rows if row["log"] == "log.jsonl:4")
    assert (corrected["completion"], corrected["answer"], corrected["source"]) == (GOOD, BAD, "inbox-week")
    assert all(row["release"] == "tickets@1.0.0" and row["asked"].startswith("2025-09-21") for row in rows)
    assert all("context" not in row for row in rows)  # the task's own instruction is no part of a row
    assert said.splitlines()[0] == "6 answered requests, 1 of them sound"
    assert said.splitlines()[-1] == "5 of 5 rows in data/inbox/week.jsonl"


def test_what_is_known_held_out_or_repeated_is_left_out_by_name(project: Path) -> None:
    said, rows = run(
        project,
        asked("Please refund the blue kettle that I bought on Mondays"),
        asked("Send me the invoice of order seven, it never come"),
        asked("Where is the parcel with my green lamp today"),
        asked("Where is the parcel with my green lamp today?"),
        asked("Send me the invoice of order seven, it never came", feedback="down"),
    )
    assert [(row["log"], row["times"]) for row in rows] == [("log.jsonl:3", 2)]
    for sentence in (
        "log.jsonl:1 is near a known row, raw.jsonl:1",
        "log.jsonl:2 is near the hold-out, raw.jsonl:2",
        "log.jsonl:4 repeats log.jsonl:3",
        "log.jsonl:5 is near the hold-out, raw.jsonl:2",
    ):
        assert f"  left out: {sentence}" in said.splitlines()


def test_what_annotate_would_refuse_as_asked_twice_is_one_row(project: Path) -> None:
    line = {"prompt": "Sing me a song", "output": BAD}
    said, rows = run(project, {**line, "task": ""}, line)
    assert [row["times"] for row in rows] == [2], said
    Session(Path("data/inbox/week.jsonl"), "anna", [], 0, PARAMS)


def test_a_correction_of_a_known_question_stays(project: Path) -> None:
    """It says that the row which taught the answer is wrong."""
    _, rows = run(project, asked("Please refund the blue kettle that I bought on Monday", BAD, correction=GOOD))
    assert [row["kept_because"][0] for row in rows] == ["corrected"]


def test_the_new_comes_before_the_known_and_the_unsure_before_the_sure(project: Path) -> None:
    sure, unsure = ({"choice": {"logprobs": {"content": [{"logprob": value}]}}} for value in (-0.2, -3.0))
    _, rows = run(
        project,
        asked("Refund the kettle on Monday please, the blue one I mean", GOOD, **sure),
        asked("Zwölf Boxkämpfer jagen Viktor quer über Sylt", GOOD, **unsure),
        asked("Refund that blue kettle, bought Monday, or swap it", GOOD, **sure),
        limit=2,
    )
    assert len(rows) == 2
    assert rows[0]["log"] == "log.jsonl:2"


SECRETS = ["jane.doe@example.com", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "(212) 555-0187"]


@given(
    st.lists(st.sampled_from(SECRETS), min_size=1, max_size=3),
    st.sampled_from(["prompt", "answer", "correction", "release", "task"]),
)
def test_no_personal_data_reaches_the_inbox(secrets: list[str], place: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("data").mkdir()
        Path("data/schema.json").write_text(json.dumps(SCHEMA))
        write_records(paths.UNIQUE, [row("Please refund the blue kettle that I bought on Monday", 1)])
        write_records(paths.HOLDOUT, [row("Send me the invoice of order seven, it never came", 2)])
        said = f"Mine: {', '.join(secrets)}."
        texts = {"prompt": "Where is my lamp", "answer": BAD, "correction": GOOD} | {place: said}
        line = asked(texts.pop("prompt"), texts.pop("answer"), **texts)
        line["request"]["messages"].pop(0)  # a known instruction would say the task, whatever the line says
        printed, rows = run(Path(folder), line)
        written = Path("data/inbox/week.jsonl").read_text()
        assert len(rows) == 1
        assert not [secret for secret in secrets if secret in written + printed]


@pytest.mark.parametrize("release", ["tickets@v1.0.0", "support-tickets@v1.0.0-rc.beta", "tickets@v12.0.3-rc1"])
def test_the_name_of_a_release_is_kept_whatever_it_looks_like(project: Path, release: str) -> None:
    _, (row,) = run(project, asked("Where is my lamp", BAD, release=release))
    assert release in json.dumps(row)


def test_half_a_character_or_a_number_beyond_all_costs_its_own_line_at_most(project: Path) -> None:
    half = asked("Where is the parcel with \ud83d today"), asked("What of the yellow chairs", "\ude00")
    sound = asked("Refund my hat of last week", BAD)
    sound["response"]["choices"][0]["log_probability"] = 10**400
    said, rows = run(project, *half, sound)
    assert [row["prompt"] for row in rows] == ["Refund my hat of last week"]
    assert said.count("no UTF-8 text: it has an unpaired surrogate") == 2


@pytest.mark.parametrize("before", [["assistant"], ["user"], ["user", "assistant", "system"], ["system", "system"]])
def test_turns_that_no_record_can_hold_are_left_out_before_people_answer_them(project: Path, before: list[str]) -> None:
    odd = asked("Where is my lamp")
    odd["request"]["messages"] = [{"role": role, "content": "Well"} for role in [*before, "user"]]
    said, rows = run(project, odd, asked("What of the two yellow chairs", BAD))
    assert [row["prompt"] for row in rows] == ["What of the two yellow chairs"]
    assert "log.jsonl:1: no request in which user and assistant take turns" in said


@pytest.mark.parametrize("week", ["../../x", "a/b", "week 48", "x" * 91, "語" * 31, ".x"])
def test_a_week_is_a_name_that_append_takes_as_a_source(project: Path, week: str) -> None:
    (project / "log.jsonl").write_text(json.dumps(asked("Where is my lamp", BAD)))
    with pytest.raises(UserError, match="--week"):
        collect([Path("log.jsonl")], PARAMS, 100, -0.1, week)


def test_a_week_without_rows_is_not_written_and_one_line_of_a_wrong_clock_does_not_name_it(project: Path) -> None:
    log = project / "log.jsonl"
    for lines in ([], [asked("A sound answer to one thing", GOOD)]):
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert collect([log], PARAMS, 100, -0.1, "week").endswith("no row is kept, no file written")
    assert not (project / "data").exists() or not list((project / "data").rglob("week*"))
    tomorrow = datetime.now(UTC).timestamp() + 2 * 24 * 3600
    wrong = [asked(f"Whose {n} lamps are these?", time=n) for n in ("2099-01-01T00:00:00Z", tomorrow, tomorrow * 1000)]
    for line in wrong:
        line["response"]["created"] = line["time"]
    right = asked("What of the two yellow chairs", time="2025-11-24T00:30:00")
    log.write_text("".join(json.dumps(line) + "\n" for line in [*wrong, right]))
    assert collect([log], PARAMS, 100, -0.1, None).endswith("rows in data/inbox/2025-48.jsonl")
    rows = [json.loads(line) for line in (project / "data/inbox/2025-48.jsonl").read_text().splitlines()]
    assert {row["asked"] for row in rows} == {None, "2025-11-24T00:30:00+00:00"}


def test_of_two_that_collect_one_week_at_once_one_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer waits for the other, which gets as far only where no lock keeps it out."""
    monkeypatch.setattr(record, "write_rows", met(record.write_rows))
    (project / "log.jsonl").write_text(json.dumps(asked("Where is my lamp", BAD)))
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(collect, [Path("log.jsonl")], PARAMS, 100, -0.1, "week") for _ in range(2)]
    assert sorted("is there already" in str(one.exception()) for one in both) == [False, True]


def test_nothing_is_written_over_and_a_log_of_something_else_is_named(project: Path) -> None:
    run(project, asked("Where is the parcel with my green lamp today"))
    with pytest.raises(UserError, match="is there already"):
        run(project, asked("Where is the parcel with my green lamp today"))
    (project / "other.jsonl").write_text('{"level": "info"}\n')
    with pytest.raises(UserError, match="no line with a request and its answer"):
        collect([Path("other.jsonl")], PARAMS, 100, -0.1, "other")
    with pytest.raises(UserError, match="cannot be read"):
        collect([Path("none.jsonl")], PARAMS, 100, -0.1, "other")
