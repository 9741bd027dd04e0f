"""annotate: who gets which rows, what is saved and refused, agreement, and the page in headless Chromium."""

import contextlib
import errno
import fcntl
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from axe import violations
from browser import look
from dvc.utils.serialize import dumps_yaml
from hypothesis import given
from hypothesis import strategies as st
from project import ROOT
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from stages.core.errors import UserError
from stages.core.yaml_reader import load_yaml
from stages.measure.review.annotate import Session, annotate, problem
from stages.measure.review.server import Server
from stages.params.loader import Params, load_params
from stages.params.task import Task
from stages.records.record import write_rows
from stages.text.json_schema import Tasks

pytest_plugins = ["browser_fixtures"]

INBOX = Path("data/inbox/week.jsonl")
SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["refund", "invoice"]}}, "required": ["intent"]}
GOOD, OTHER, BAD = '{"intent": "refund"}', '{"intent": "invoice"}', '{"intent": "sing"}'
HOSTILE = '<img src=x onerror="document.title=1"></textarea><script>document.title=2</script>'


def inbox(count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"prompt": f"question {n}", "completion": "", "answer": BAD, "log": f"l:{n}"} for n in range(count)
    ]
    rows[0] |= {"prompt": HOSTILE, "completion": GOOD, "kept_because": ["corrected", "contract broken"]}
    return rows


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = load_yaml((ROOT / "params.yaml").read_bytes())
    values["task"] |= {"schema_file": "schema.json"}
    Path("params.yaml").write_text(dumps_yaml(values))
    Path("schema.json").write_text(json.dumps(SCHEMA))
    write_rows(INBOX, inbox(4))
    return tmp_path


def params() -> Params:
    return load_params("task")


def session(annotator: str, *others: str, overlap: int = 0) -> Session:
    return Session(INBOX, annotator, others, overlap, params())


def lines(annotator: str) -> list[dict[str, Any]]:
    file = INBOX.with_suffix("") / f"{annotator}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line] if file.exists() else []


@given(count=st.integers(1, 12), names=st.sets(st.sampled_from("abcd"), min_size=1), overlap=st.integers(0, 14))
def test_every_row_has_an_annotator_and_those_of_the_overlap_have_all(
    tmp_path_factory: pytest.TempPathFactory, count: int, names: set[str], overlap: int
) -> None:
    with contextlib.chdir(tmp_path_factory.mktemp("rows")):
        Path("schema.json").write_text(json.dumps(SCHEMA))
        write_rows(INBOX, inbox(count))
        task = {"kind": "json", "instruction": "Do it.", "schema_file": "schema.json"}
        made = Params.model_validate({"task": task, "model": {"source": "path:x", "licence": "MIT"}, "gates": {}})
        got = [set(Session(INBOX, name, sorted(names - {name}), overlap, made).rows) for name in sorted(names)]
    assert len(set().union(*got)) == count
    assert len(set.intersection(*got)) == (count if len(names) == 1 else min(overlap, count))
    assert sum(map(len, got)) == count + (len(names) - 1) * min(overlap, count)


def test_answers_lie_sorted_in_a_file_each_and_outlive_a_kill(project: Path) -> None:
    one = session("anna")
    for number in (3, 0, 1):
        assert one.save(number, f" {GOOD}\n", None, False) == {"problem": None}
    assert one.save(2, "", "cannot be told", False) == {"problem": None}
    rows = lines("anna")
    assert [row["row"] for row in rows] == sorted(row["row"] for row in rows)
    assert {(row["completion"], row.get("skipped"), row["annotator"]) for row in rows} == {
        (GOOD, None, "anna"),
        ("", "cannot be told", "anna"),
    }
    assert {row["log"] for row in rows} == {"l:0", "l:1", "l:2", "l:3"}  # what collect knew of it
    later = session("anna").state()["rows"]
    assert [row["done"]["skipped"] for row in later] == [None, None, "cannot be told", None]
    session("anna").save(2, "", None, True)
    assert len(lines("anna")) == 3
    assert session("anna").progress() == "3 of 4 rows done by anna"


def knows_no_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network file systems; others, such as that of the temporary folder, know them."""
    flock = fcntl.flock

    def refused(descriptor: int, operation: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(folder):
            raise OSError(errno.ENOLCK, "No locks available")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.mark.parametrize("locks", [True, False])
def test_no_answer_is_lost_where_one_annotator_has_two_pages(
    project: Path, locks: bool, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes: nothing but the file is common to them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("elsewhere")))
    if not locks:
        knows_no_locks(Path.cwd(), monkeypatch)

    def slowly(file: Path, rows: Iterable[dict[str, Any]]) -> None:
        made = list(rows)
        time.sleep(0.05)  # long enough for the other to have read what was there before
        write_rows(file, made)

    monkeypatch.setattr("stages.measure.review.annotate.write_rows", slowly)
    pages = [session("anna"), session("anna")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: pages[number % 2].save(number, GOOD, None, False), range(4)))
    assert len(lines("anna")) == 4
    if not locks:
        monkeypatch.setattr(tempfile, "tempdir", str(Path.cwd()))
        with pytest.raises(UserError, match="can be locked; set TMPDIR"):
            pages[0].save(0, GOOD, None, True)


@pytest.mark.parametrize("completion", [BAD, "{", "", '{"intent": "refund", "intent": "refund"}'])
def test_what_breaks_the_contract_is_said_and_not_saved(project: Path, completion: str) -> None:
    assert session("anna").save(0, completion, None, False)["problem"]
    assert lines("anna") == []


def test_contracts_of_other_tasks() -> None:
    classes = Task.model_validate({"kind": "classification", "labels": ["a", "b"], "instruction": "x"})
    words = Task.model_validate({"kind": "text", "max_words": 2, "instruction": "x"})
    with contextlib.chdir(ROOT):
        assert problem("c", None, Tasks(classes)) == "none of the labels a, b"
        assert problem(" a ", None, Tasks(classes)) is None
        assert problem("one two three", None, Tasks(words)) == "breaks max_words"
        assert problem(" ", None, Tasks(words)) == "empty"


@pytest.mark.parametrize(("number", "skipped"), [(4, None), (-1, None), (0, "  "), (0, "x" * 2001)])
def test_a_message_that_cannot_be_is_refused(project: Path, number: int, skipped: str | None) -> None:
    with pytest.raises(ValueError, match=r"no such row|reason"):
        session("anna").save(number, GOOD, skipped, False)
    assert lines("anna") == []


def test_agreement_is_counted_on_the_label(project: Path) -> None:
    said = {"anna": [GOOD, OTHER, GOOD, OTHER], "ben": [GOOD, OTHER, OTHER, OTHER], "cleo": [GOOD] * 4}
    for name in ("anna", "ben"):
        for number, completion in enumerate(said[name]):
            session(name, overlap=4).save(number, completion, None, False)
    told = annotate(INBOX, None, [], 0, 0, params()).splitlines()
    assert told == [
        "data/inbox/week.jsonl: 4 rows, 4 of them done",
        "  anna: 4 answered, 0 skipped",
        "  ben: 4 answered, 0 skipped",
        "answered by several: 4 rows, 3 of them with one answer",
        "  Cohen's kappa (1960) on 'intent': 0.50",
    ]
    for number, completion in enumerate(said["cleo"]):
        session("cleo", overlap=4).save(number, completion, None, False)
    assert "Krippendorff's alpha, nominal (2011) on 'intent'" in annotate(INBOX, None, [], 0, 0, params())


def test_what_is_no_inbox_is_a_sentence(project: Path) -> None:
    with pytest.raises(UserError, match=r"annotator '\.\./x': use a to z"):
        session("../x")
    with pytest.raises(UserError, match=r"none\.jsonl is no file of rows that ends in \.jsonl; `tunetrail"):
        annotate(Path("none.jsonl"), None, [], 0, 0, params())
    write_rows(Path("data/inbox/rows"), inbox(1))  # answers would lie in a folder of this very name
    with pytest.raises(UserError, match="data/inbox/rows is no file of rows"):
        Session(Path("data/inbox/rows"), "anna", [], 0, params())
    write_rows(INBOX, [{"question": 1}])
    with pytest.raises(UserError, match=r"week\.jsonl, line 1: no row of `tunetrail collect`"):
        session("anna")
    write_rows(INBOX, [{"prompt": "a"}, {"prompt": "a"}])
    with pytest.raises(UserError, match="line 2: asks the same"):
        session("anna")


def test_what_is_no_text_in_a_row_is_named(project: Path) -> None:
    for wrong in ({"task": ["t"]}, {"answer": 5}, {"completion": [""]}, {"kept_because": 5}, {"kept_because": [1]}):
        write_rows(INBOX, [{"prompt": "a", "kept_because": None}, {"prompt": "b"} | wrong])
        with pytest.raises(UserError, match="line 2: no row"):
            session("anna")
    write_rows(INBOX, [{"prompt": "a", "kept_because": None}])
    assert session("anna").state()["rows"][0]["reasons"] == ""
    for line in ('{"prompt": "a"}', '{"prompt": "a", "completion": null}', '{"prompt": "a", "completion": NaN}'):
        (INBOX.with_suffix("") / "anna.jsonl").parent.mkdir(exist_ok=True)
        (INBOX.with_suffix("") / "anna.jsonl").write_text(line)
        with pytest.raises(UserError, match=r"anna\.jsonl, line 1: "):
            session("anna")


@contextlib.contextmanager
def serving(annotator: str) -> Iterator[Server]:
    with Server(session(annotator), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_long_answer_is_saved_whole(project: Path) -> None:
    long = json.dumps({"intent": "refund", "note": "é" * 100_000})
    said = {"number": 1, "completion": long, "skipped": None, "back": False}
    with serving("anna") as server:
        headers = {"Content-Type": "application/json", "Origin": server.address.rsplit("/", 2)[0]}
        with urlopen(Request(f"{server.address}answer", json.dumps(said).encode(), headers), timeout=10) as reply:
            assert json.load(reply) == {"problem": None}
    assert [row["completion"] for row in lines("anna")] == [long]


def press(page: Chrome, *keys: str) -> None:
    for key in keys:
        ActionChains(page).send_keys(key).perform()


def save(page: Chrome) -> None:
    ActionChains(page).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()


def shows(page: Chrome, name: str, words: str) -> None:
    WebDriverWait(page, 10).until(lambda _: page.find_element(By.ID, name).text.startswith(words))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_row_is_corrected_another_skipped_by_keyboard_and_it_goes_on_after_a_kill(
    chromium: Chrome, project: Path, width: int, scheme: str
) -> None:
    page = chromium
    look(page, width=width, scheme=scheme)
    with serving("anna") as server:
        page.get(server.address)
        shows(page, "row", "Row 1 of 4")
        shows(page, "problem", "Keeps the contract")  # the draft is the correction of the log
        assert page.find_element(By.ID, "prompt").text == HOSTILE
        assert page.find_elements(By.CSS_SELECTOR, "main img, main script") == []
        assert violations(page) == []
        press(page, "e", "x")
        shows(page, "problem", "no JSON")
        assert page.find_element(By.ID, "editor").get_attribute("aria-invalid") == "true"
        assert violations(page) == []
        save(page)
        shows(page, "status", "Not saved")
        assert lines("anna") == []
        press(page, Keys.BACKSPACE)
        shows(page, "problem", "Keeps the contract")
        save(page)
        shows(page, "row", "Row 2 of 4")
        assert [row["completion"] for row in lines("anna")] == [GOOD]
        press(page, "s", Keys.ENTER)
        shows(page, "status", "Skipping needs a reason")
        press(page, "unclear", Keys.ENTER)
        shows(page, "row", "Row 3 of 4")
        assert sorted(row.get("skipped", "") for row in lines("anna")) == ["", "unclear"]
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert page.title == "Tunetrail annotate: anna"
    server.server_close()
    page.find_element(By.ID, "skip").click()
    press(page, "s", "later", Keys.ENTER)
    shows(page, "status", "Not saved: is tunetrail annotate still running?")
    with serving("anna") as again:
        page.get(again.address)
        shows(page, "row", "Row 3 of 4")
        shows(page, "count", "2 of 4 rows done")
        press(page, Keys.ARROW_LEFT)
        shows(page, "row", "Row 2 of 4")
        assert page.find_element(By.ID, "reason").get_property("value") == "unclear"
        page.find_element(By.ID, "back").click()
        shows(page, "status", "Taken back")
        assert len(lines("anna")) == 1
