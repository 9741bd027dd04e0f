"""`compare` of many revisions and experiments, and of files of answers, on a repository made without DVC at work."""

import json
import re
from math import comb
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from page_check import Page
from scored import REFERENCE, ROOT, SCHEMA
from scratch import Answer, Scratch

from stages.core.dvc_lock import md5, object_path
from stages.records.record import Message, make_record, record_row, row_line

pytest_plugins = ["scratch_fixtures"]
WRONG = '{"intent": "cancel", "order": 7}'
EVIL = "Money | back\x1b[2J <script>alert(1)</script> @team"
RECORDS = [
    make_record(f"{EVIL if n == 1 else 'Money back'}, order {n}", REFERENCE, "refund", "t", f"t:{n}") for n in range(20)
]
FILE = "data/generations/adapter.jsonl"


def rows(right: set[int], **more: Any) -> list[dict[str, Any]]:
    said = [(record_row(record), REFERENCE if n in right else WRONG) for n, record in enumerate(RECORDS)]
    return [{**row, "output": one, "tokens": 3, "stopped": True, **more} for row, one in said]


def lines(content: list[dict[str, Any]]) -> str:
    return "".join(map(row_line, content))


def p_value(won: int, lost: int) -> float:
    """McNemar's exact test by counting: as extreme a split of won + lost tosses, or more so."""
    n = won + lost
    return float(min(1.0, sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(won - lost)) / 2**n))


class Runs(Scratch):
    def run(self, name: str, ref: str, right: set[int], rate: str) -> None:
        """A commit with its answers in DVC's cache, known by a ref alone."""
        text = lines(rows(right))
        object_ = object_path(self.root / ".dvc/cache", md5(text.encode()))
        object_.parent.mkdir(parents=True, exist_ok=True)
        object_.write_text(text)
        out = {"path": FILE, "hash": "md5", "md5": md5(text.encode()), "size": len(text)}
        self.write("dvc.lock", dumps_yaml({"schema": "2.0", "stages": {"evaluate": {"cmd": "x", "outs": [out]}}}))
        params = (ROOT / "params.yaml").read_text().replace("learning_rate: 3e-3", f"learning_rate: {rate}")
        self.write("params.yaml", params)
        share = len(right) / 20
        accuracy = {"value": share, "low": share - 0.01, "high": share + 0.01, "count": len(right), "n": 20}
        gate = {"state": "PASS" if share > 0.4 else "FAIL", "reason": f"{share} of 20 rows"}
        self.write("metrics/details.json", json.dumps({"evaluate": {"adapter": {"exact_match": accuracy}}}))
        self.write("metrics/gates.json", json.dumps({"verdict": gate["state"], "gates": {"exact": gate}}))
        self.write("metrics/summary.json", json.dumps({"adapter": {"exact_match": share}}))
        self.git("update-ref", ref, self.commit(name))
        self.git("reset", "--quiet", "--hard", "HEAD~1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, quiet_git: None) -> Runs:
    made = Runs(tmp_path_factory.mktemp("many") / "repository")
    made.write("params.yaml", (ROOT / "params.yaml").read_text())
    made.write("dvc.yaml", "stages: {}\n")
    made.write("data/schema.json", json.dumps(SCHEMA))
    made.write("data/split/holdout.jsonl", lines([record_row(record) for record in RECORDS]))
    made.git("init", "--quiet", "--initial-branch=main")
    made.write(".gitignore", ".dvc/\n*.out\n")
    made.commit("Nothing ran")
    head = made.git("rev-parse", "HEAD")
    made.run("first", "refs/tags/first", {0, 1, 2, 3}, "1e-4")
    made.run("faster", f"refs/exps/{head[:2]}/{head[2:]}/faster", {*range(2, 12)}, "1e-2")
    made.run("slower", f"refs/exps/{head[:2]}/{head[2:]}/slower", {0, 1, 2, 3, 4}, "1e-5")
    return made


def said(runs: Runs, *words: str) -> str:
    answer = runs.tunetrail("compare", *words)
    assert answer.code == 0, answer.err
    return answer.out


def test_revisions_and_experiments_that_are_only_refs(runs: Runs) -> None:
    text = said(runs, "first", "faster", "slower")
    assert text.startswith("## Tunetrail: `faster`, `slower` against `first`\n")
    assert "| `train.learning_rate` | 0.0001 | 0.01 | 0.00001 | parameter |" in text.replace("1e-05", "0.00001")
    assert "| `exact` | FAIL | PASS | FAIL | gate: faster: 0.5 of 20 rows |" in text
    moved = "faster: ▲ beyond the interval; slower: ▲ beyond the interval"
    wide = "20.0 % (19.0 to 21.0 %) | 50.0 % (49.0 to 51.0 %) | 25.0 % (24.0 to 26.0 %)"
    assert f"| `adapter exact_match` | {wide} | {moved} |" in text
    assert "| `adapter.exact_match` | 0.2 | 0.5 | 0.25 |" in text
    assert "Verdicts: `first` FAIL, `faster` PASS, `slower` FAIL." in text
    row = next(line for line in text.splitlines() if line.startswith("| Exact match |"))
    for won, lost in ((8, 2), (1, 0)):
        assert f"({won} won, {lost} lost, p = {p_value(won, lost):.3f}" in row
    assert "**Lost from first to faster: 2 rows**" in text
    assert "**Won from first to slower: 1 row**" in text


def test_the_same_on_a_page_and_for_a_terminal(runs: Runs) -> None:
    page = said(runs, "first", "faster", "--format", "html")
    assert "<script>" not in page
    assert "//" not in page.split("</style>")[1].replace("&lt;", "")
    root = Page(page).root
    assert "faster against first" in root.all("h1")[0].text()
    assert {"Headline metrics", "Answers to the same rows, paired, against first"} <= {
        one.text().strip() for one in root.all("caption")
    }
    assert "Lost from first to faster: 2 rows" in root.text()
    text = said(runs, "first", "faster", "--format", "txt")
    assert "Lost from first to faster: 2 rows" in text
    assert "\x1b" not in text
    assert "train.learning_rate" in text


def test_two_are_the_case_of_two(runs: Runs) -> None:
    """Named in full or as the working tree, and then with its gates."""
    text = said(runs, "first", "faster")
    assert (
        "| `adapter exact_match` | 20.0 % (19.0 to 21.0 %) | 50.0 % (49.0 to 51.0 %) | ▲ beyond the interval |" in text
    )
    assert "| `exact` | FAIL | PASS | gate: 0.5 of 20 rows |" in text
    assert "Verdict: **PASS**, before FAIL." in text
    shown = re.sub("<details>.*?</details>\n", "", text, flags=re.DOTALL)
    assert "paired" not in shown
    alone = said(runs, "first")
    assert alone.startswith("## Tunetrail: against `first`\n")
    assert "No verdict: metrics/gates.json is missing" in alone


def test_what_the_cache_lacks_is_named_and_the_rest_is_shown(runs: Runs, tmp_path: Path) -> None:
    copy = Runs(runs.copy(tmp_path / "copy").root)
    text = lines(rows({0, 1, 2, 3, 4}))
    object_path(copy.root / ".dvc/cache", md5(text.encode())).write_text(f"{text}\n")  # damaged is as good as absent
    told = said(copy, "first", "faster", "slower")
    assert f"slower: answers are not compared row by row, since DVC's cache lacks {FILE} of the dvc.lock there" in told
    assert "**Lost from first to faster: 2 rows**" in told
    assert "Won from first to slower" not in told
    assert "| `adapter.exact_match` | 0.2 | 0.5 | 0.25 |" in told


def test_names_that_are_none_or_several(runs: Runs, tmp_path: Path) -> None:
    assert "'nix' is no commit, branch or tag here; fetch it first" in refused(
        runs.tunetrail("compare", "first", "nix")
    )
    assert "name revisions to compare, or files" in refused(runs.tunetrail("compare"))
    assert "name revisions to compare, or files" in refused(runs.tunetrail("compare", "first", "--answers", "a.out"))
    copy = Runs(runs.copy(tmp_path / "copy").root)
    copy.git("update-ref", f"refs/exps/ab/{'c' * 38}/faster", "first")
    assert "several experiments have the name 'faster'" in refused(copy.tunetrail("compare", "first", "faster"))
    copy.git("branch", "faster", "first")  # a branch of that name is meant, then
    assert said(copy, "first", "faster")


def refused(answer: Answer) -> str:
    assert answer.code == 2
    return answer.err


def answers(runs: Runs, *files: str) -> str:
    for number, text in enumerate(files):
        runs.write(f"{number}.out", text)
    return said(runs, "--answers", *(str(runs.root / f"{number}.out") for number in range(len(files))))


def test_answers_of_any_tool(runs: Runs) -> None:
    """By id or prompt. Rows of ours and of `tunetrail answer` have the reference, too, which is not what counts."""
    ours = lines(rows({0, 1, 2, 3}))
    by_id = lines([{"id": row["id"], "completion": row["output"]} for row in rows({*range(2, 12)})])
    by_prompt = lines([{"prompt": row["prompt"], "answer": row["output"]} for row in rows({*range(2, 12)})])
    released = [{**record_row(one), "answer": {"release": "r", "output": REFERENCE}} for one in RECORDS]
    told = answers(runs, ours, by_id, by_prompt, lines(released))
    right = [line for line in told.splitlines() if line.startswith("| Exact match |")]
    shares = [cell.split(" (")[0].strip() for cell in right[0].split("|")[2:6]]
    assert shares == ["20.0 %", "50.0 %", "50.0 %", "100.0 %"]
    assert f"(8 won, 2 lost, p = {p_value(8, 2):.3f}" in right[1]
    assert p_value(16, 0) < 0.001
    assert "(16 won, 0 lost, p &lt; 0.001" in right[1]
    assert "Scored: the 20 rows, of 20 of the hold-out, that all files answer." in told
    assert "left out" not in told
    assert "**Lost from 0.out to 1.out: 2 rows**" in told


def test_rows_that_are_unknown_doubled_missing_or_refused_are_named(runs: Runs) -> None:
    made = [{"id": row["id"], "answer": row["output"]} for row in rows({*range(20)})]
    short = [*made[:17], made[0], {"prompt": "never asked", "answer": "x"}]
    short.append({"id": made[17]["id"], "answer": {"release": "r", "error": "too long"}})
    told = answers(runs, lines(made), lines(short))
    assert "1.out: 1 row left out, since the row came before: line 18." in told
    assert "1.out: 1 row left out, since they fit no row of the hold-out, or several: line 19." in told
    assert "1.out: 1 row left out, since its engine refused the row: line 20." in told
    missing = ", ".join(row["id"][:12] for row in made[17:])
    assert f"1.out: 3 rows left out, without an answer in the file: {missing}." in told
    assert "Scored: the 17 rows, of 20 of the hold-out" in told


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", '{"id": 1}', '{"answer": "x"}', '{"prompt": "x", "answer": 7}', '"answer"']
)
def test_a_line_that_is_no_answer_is_named(runs: Runs, line: str) -> None:
    runs.write("0.out", f"\n{line}\n")
    message = refused(runs.tunetrail("compare", "--answers", str(runs.root / "0.out")))
    assert '0.out, line 2: expected "id" or "prompt", and a text as "answer"' in message


def test_files_that_have_no_row_in_common(runs: Runs) -> None:
    made = [{"id": row["id"], "answer": row["output"]} for row in rows(set())]
    runs.write("0.out", lines(made[:2]))
    runs.write("1.out", lines(made[2:4]))
    files = [str(runs.root / name) for name in ("0.out", "1.out")]
    assert "is answered in all of 0.out, 1.out" in refused(runs.tunetrail("compare", "--answers", *files))
    assert "cannot be read" in refused(runs.tunetrail("compare", "--answers", str(runs.root / "none.out")))


def test_rows_of_one_prompt_are_told_apart_by_their_context(runs: Runs, tmp_path: Path) -> None:
    copy = Runs(runs.copy(tmp_path / "copy").root)
    texts = [REFERENCE.replace("7", n) for n in "12"]
    contexts: list[list[Message]] = [[], [Message("system", "B")]]
    tagged = [make_record("Same", text, None, "t", "t:1", context=c) for text, c in zip(texts, contexts, strict=True)]
    copy.write("data/split/holdout.jsonl", lines([record_row(one) for one in tagged]))
    given: list[dict[str, Any]] = [{"prompt": "Same", "answer": tagged[0].completion}]
    given.append({"prompt": "Same", "context": [{"role": "system", "content": "B"}], "answer": tagged[1].completion})
    told = answers(copy, lines(given))
    assert "| Exact match | 100.0 %" in told
    assert "Scored: the 2 rows" in told
