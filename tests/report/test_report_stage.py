"""The stage as a whole: what it reads, what it writes, and that nobody's text can change the page."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml
from example_data import HOSTILE
from example_run import ROOT, make_run
from page_check import Page
from rapidfuzz import fuzz

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_json, write_json
from stages.core.yaml_reader import load_yaml
from stages.measure.gates.__main__ import check_gates
from stages.records.record import read_records, read_rows, write_rows
from stages.report import formats
from stages.report.__main__ import _some, main

ALWAYS_READ = [
    "data/generations/previous.jsonl",
    "data/changes/clean_examples.jsonl",
    "data/checks/conflicts.jsonl",
    "data/checks/tied.jsonl",
    "data/checks/triggers.jsonl",
    "data/generations/adapter.jsonl",
    "data/generations/artefacts/merged.jsonl",
    "data/generations/artefacts/nf4.jsonl",
    "data/generations/base.jsonl",
    "data/generations/training_samples.jsonl",
    "data/generations/triggers.json",
    "data/prefer/samples.jsonl",
    "data/rejected/duplicates.jsonl",
    "data/rejected/quarantine.jsonl",
    "data/schema.json",
    "metrics/confusion.csv",
    "metrics/curves/plots/metrics/train/loss.tsv",
    "metrics/details.json",
    "metrics/gates.json",
    "models/release/manifest.json",
]


@pytest.fixture
def finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path)
    return tmp_path


def report() -> tuple[str, str]:
    main()
    return paths.REPORT_HTML.read_text("utf-8"), paths.REPORT_MARKDOWN.read_text("utf-8")


def change(path: Path, **values: Any) -> None:
    write_json(path, {**read_json(path), **values})


def test_the_verdict_comes_first(finished_run: Path) -> None:
    page, markdown = report()
    header = Page(page).root.all("header")[0]
    assert header.all("h1")[0].text() == "≈ MARGINAL Not proven yet"
    count = len(read_json(paths.GATES)["gates"])
    said = f"Of {count} gates 2 required cannot be told from these rows: exact_match, schema_valid."
    assert said in header.text()
    assert "48 rows cannot show 0.9 either way" in header.text()
    assert "about 120 rows would show exact_match" in header.text()
    assert markdown.startswith(f"## ⚠️ MARGINAL: not proven yet\n\nOf {count} gates 2 required")


def test_what_every_reader_asks_is_answered_at_the_top(finished_run: Path) -> None:
    answers = Page(report()[0]).root.all("header")[0].all("dl")[0]
    told = dict(zip((one.text() for one in answers.all("dt")), answers.all("strong"), strict=True))
    assert {question: word.text() for question, word in told.items()} == {
        "Better than the base?": "Yes",
        "Better than the last release?": "First release",
        "Safe to ship?": "Not proven",
    }


def test_a_failed_artefact_fails_the_page(finished_run: Path) -> None:
    checked = read_json(paths.GATES)
    checked["gates"]["int8_drop"] |= {"state": "FAIL", "reason": "-0.3 is below -0.05"}
    write_json(paths.GATES, {**checked, "verdict": "FAIL", "reason": "1 required fails: int8_drop."})
    page, markdown = report()
    assert "1 required fails: int8_drop." in Page(page).root.all("header")[0].text()
    assert "-0.3 is below -0.05" in page[: page.index("<main")]
    assert markdown.startswith("## ❌ FAIL")


def test_same_inputs_same_bytes_in_any_order_of_rows(finished_run: Path) -> None:
    first = report()
    assert report() == first
    for file in (paths.BASE_GENERATIONS, paths.ADAPTER_GENERATIONS):
        write_rows(file, list(read_rows(file))[::-1])
    assert report() == first


@pytest.mark.parametrize("name", ALWAYS_READ)
def test_a_missing_file_is_named(finished_run: Path, name: str) -> None:
    Path(name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        main()
    assert not paths.REPORT_HTML.exists()


def test_a_broken_file_is_named(finished_run: Path) -> None:
    paths.DETAILS.write_text('{"rows":')
    with pytest.raises(UserError, match=r"metrics/details\.json: not JSON"):
        main()


def test_generations_of_other_rows_are_refused(finished_run: Path) -> None:
    rows = list(read_rows(paths.ADAPTER_GENERATIONS))
    write_rows(paths.ADAPTER_GENERATIONS, rows[1:])
    with pytest.raises(UserError, match=r"adapter\.jsonl and .*base\.jsonl answer different rows"):
        main()


def test_the_page_needs_no_network_and_no_script(finished_run: Path) -> None:
    root = Page(report()[0]).root
    assert not root.all("script", "link", "img", "iframe", "form", "object")
    assert all((link.attributes["href"] or "").startswith("#") for link in root.all("a"))
    assert "url(" not in root.all("style")[0].text()
    policy = [meta.attributes["content"] for meta in root.all("meta") if "http-equiv" in meta.attributes]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'")


def test_hostile_text_is_shown_and_never_read_as_markup(finished_run: Path) -> None:
    page, markdown = report()
    assert HOSTILE in Page(page).root.text()
    for text in (page, markdown):
        assert "<script" not in text
        assert "\u202e" not in text
    assert "⟨U+202E⟩" in page


def test_hostile_names_stay_inside_their_cell(finished_run: Path) -> None:
    checked = read_json(paths.GATES)
    change(paths.GATES, gates={f"{HOSTILE} | `a` **b** {name}": gate for name, gate in checked["gates"].items()})
    page, markdown = report()
    assert "<script" not in page
    rows = [line for line in markdown.splitlines() if "alert" in line and line.startswith("|")]
    assert len(rows) == 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in rows)


def test_the_short_version_can_be_kept_free_of_the_text_of_rows(finished_run: Path) -> None:
    """It is in git, where a text stays."""
    assert "Where is my keyboard? B-2557" in report()[1]
    set_params(pull_request_examples=0)
    markdown = report()[1]
    for row in read_rows(paths.ADAPTER_GENERATIONS):
        assert row["prompt"][:20] not in markdown
        assert row["completion"] not in markdown
    assert len(markdown) < 4500


def test_the_short_version_shows_a_few_flips_and_no_markup(finished_run: Path) -> None:
    lines = report()[1].splitlines()
    lost = lines.index("**Lost from adapter to nf4: 2 rows**")
    assert lines[lost + 2] == "| Prompt | Field | Expected | adapter | nf4 |"
    keyboard = "| `Where is my keyboard? B-2557 was due last Friday.` | urgent | `false` | ✓ `false` | ✕ `true` |"
    assert lines[lost + 4] == keyboard
    won = lines.index("**Won from base to adapter: 46 rows**, of which 3 here")
    assert not lines[won + 7]
    tables = [line for line in lines if line.startswith("|")]
    cells = [re.sub("(`+)(?!`).*?(?<!`)\\1(?!`)", "", line) for line in tables]
    assert not [line for line in cells if re.search("<[^ ]", line)]


def test_tasks_and_the_previous_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, previous=True, tasks=True)
    page, markdown = report()
    root = Page(page).root
    headings = [one.text() for one in root.all("h3")]
    assert [one for one in headings if one.startswith("Task")] == ["Task: mood", "Task: reply", "Task: untagged"]
    assert "previous to adapter: free text" in headings
    answers = root.all("header")[0].all("dl")[0]
    better, since = (" ".join(one.text().split()) for one in answers.all("dd")[:2])
    assert better.startswith("Yes mood: Exact match +66.7 points, better. reply: ROUGE-L +0.8698, better.")
    assert since.startswith("In part mood: Exact match +8.3 points, no change shown.")
    assert "compared on the 76 rows that both answered; 2 are new, 1 are gone." in page
    assert "| On the hold-out | base | previous | adapter | merged | nf4 | int8 |" in markdown


def test_seeds_are_shown_beside_the_interval_and_a_change_within_their_spread_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, previous=True)
    scores = read_json(paths.EVALUATE_METRICS)["adapter"]
    for number, value in enumerate((0.875, 0.9375, 1.0)):
        write_json(
            Path(f"metrics/seeds/{number}.json"),
            {"adapter": {**scores, "exact_match": {**scores["exact_match"], "value": value}}},
        )
        page, markdown = report()
        assert ("Over seeds" in page) == (number > 0)
    table = next(one for one in Page(page).root.all("table") if "differ in their seed alone" in one.text())
    cells = {row.all("th")[0].text(): [cell.text() for cell in row.all("td")] for row in table.all("tr")[1:]}
    assert cells["Exact match"][1:] == ["87.5 to 100.0 %", "6.2 %"]
    assert cells["Fits the schema"][-1] == "0.0 %"
    said = [line for line in markdown.splitlines() if "no more than other seeds change it" in line]
    assert [line.partition(":")[0] for line in said] == ["- previous to adapter"]
    assert "(3 runs)" in said[0]


def test_examples_agree_with_the_metrics(finished_run: Path) -> None:
    summaries = [" ".join(one.text().split()) for one in Page(report()[0]).root.all("summary")]
    artefacts = read_json(paths.QUANTIZE_METRICS)["artefacts"]
    assert artefacts["nf4"]["against_adapter"]["exact_match"]["lost"] == 2
    assert "Lost from adapter to nf4: 2 rows" in summaries
    assert "Won from base to adapter: 46 rows" in summaries
    assert "Where the adapter is wrong: 2 rows" in summaries


def test_only_fields_that_differ_are_shown(finished_run: Path) -> None:
    articles = Page(report()[0]).root.all("article")
    wrong = [one for one in articles if "Where the adapter is wrong" in (one.attributes["aria-label"] or "")]
    fields = [[cell.text() for cell in one.all("tr")[0].all("th")] for one in wrong]
    assert sorted(fields) == [["Who", "intent"], ["Who", "order"]]
    added = next(one for one in articles if "Lost from adapter to int8" in (one.attributes["aria-label"] or ""))
    assert [cell.text() for cell in added.all("td")] == ["(absent)", "✓ right: (absent)", '✕ wrong: "red"']


def test_beside_a_wrong_answer_stand_the_training_rows_of_the_most_alike_prompts(finished_run: Path) -> None:
    articles = [one for one in Page(report()[0]).root.all("article") if one.all("ul")]
    wrong = [one for one in read_rows(paths.ADAPTER_GENERATIONS) if one["output"] != one["completion"]]
    assert sorted(one.attributes["aria-label"] or "" for one in articles) == sorted(
        f"Where the adapter is wrong, row {row['id'][:12]}" for row in wrong
    )
    train = {row.id: row for row in read_records(paths.TRAIN)}.values()
    for row in wrong:
        article = next(one for one in articles if row["id"][:12] in (one.attributes["aria-label"] or ""))
        scores = sorted((fuzz.ratio(row["prompt"], one.prompt) for one in train), reverse=True)[:3]
        shown = [one.text() for one in article.all("li")]
        assert [f"({score:.0f}, " in text for score, text in zip(scores, shown, strict=True)] == [True] * 3
        assert f"tunetrail why {row['id'][:12]}" in article.text()


def test_what_a_run_took_stands_beside_what_was_estimated_and_outside_the_trail(finished_run: Path) -> None:
    spent = paths.ENVIRONMENT / "spent.html"
    first = report()
    assert "0 seconds in all" in Page(spent.read_text()).root.text()
    steps = read_json(paths.DETAILS)["train"]["steps"]
    write_json(paths.ENVIRONMENT / "train.json", {"seconds": 120.5, "peak_memory_mib": 900, "energy_kwh": 0.25})
    write_json(paths.ENVIRONMENT / "clean.json", {"seconds": 2.0})
    write_json(paths.ENVIRONMENT / "tracked_runs.json", {"a": "b"})
    (paths.ENVIRONMENT / "cut.json").write_text('{"seco')
    estimate = {"steps": steps, "training": 111.0, "energy_kwh": None}
    write_json(paths.ENVIRONMENT / "estimate.json", estimate)
    assert report() == first
    page = Page(spent.read_text()).root
    cells = [[cell.text() for cell in row.all("th") + row.all("td")] for row in page.all("tr")[1:]]
    assert cells == [["train", "120.5", "900", "0.25", "111", "–"], ["clean", "2", "–", "–", "–", "–"]]
    assert "122.5 seconds in all" in page.text()
    write_json(paths.ENVIRONMENT / "estimate.json", {**estimate, "steps": steps + 1})  # of another run
    report()
    assert "111" not in Page(spent.read_text()).root.text()


def test_a_run_without_quantised_artefacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, formats=("merged",))
    page, markdown = report()
    assert "nf4" not in page + markdown
    assert "merged" in page


def test_a_bare_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, opinions=False)
    (paths.CURVES / "plots/metrics/validation/loss.tsv").unlink()
    (paths.CURVES / "plots/metrics/train/loss.tsv").write_text("step\tloss\n1\tnan\n")
    paths.CONFUSION.write_text("actual,predicted\n")
    write_rows(paths.TRAINING_SAMPLES, [])
    for file in (paths.CLEAN_EXAMPLES, paths.DUPLICATES, paths.QUARANTINE):
        write_rows(file, [])
    details = read_json(paths.DETAILS)
    del details["train"]["best_step"]
    write_json(paths.DETAILS, details)
    write_json(paths.GATES, check_gates({}, {}))
    root = Page(report()[0]).root
    assert "No gates are set" in root.all("header")[0].text()
    assert len([one for one in root.all("svg") if one.attributes.get("role") == "img"]) == 1


def test_what_preferences_changed(finished_run: Path) -> None:
    assert "from preferences" not in report()[0]
    details, rows = read_json(paths.DETAILS), list(read_rows(paths.TRAINING_SAMPLES))
    details["prefer"] = {
        "objective": "dpo",
        "steps": 12,
        "rows": {"train": 30, "validation": 4, "near_the_holdout": 2},
        "red_flags": {"no_gain": 1},
        "measured": {"margin": {"first": 0.0, "last": 0.25}},
    }
    write_json(paths.DETAILS, details)
    write_rows(paths.PREFERENCE_SAMPLES, rows)
    text = Page(report()[0]).root.text()
    assert "dpo: 12 steps over 30 rows, 4 held back; margin 0 before, 0.25 after" in text
    assert "near the hold-out: 2 preferences" in text
    assert "while it learned from preferences" in text
    assert "No gain" in text


def test_what_judge_and_reviewers_say(finished_run: Path) -> None:
    page, markdown = report()
    section = next(one for one in Page(page).root.all("section") if one.attributes["aria-labelledby"] == "opinions")
    told = " ".join(section.text().split())
    judged = read_json(paths.JUDGE_METRICS)["against_baseline"]
    assert f"{judged['wins']} won by the tuned model" in told
    assert "1 with an unreadable reply" in told
    assert "the answer shown first won" in told
    assert "<b>grace: 12 answers, 36 to go" in told
    assert "Cohen’s kappa of the reviewers" in told
    rated = read_json(paths.REVIEW_METRICS)
    accuracy = rated["scales"]["tuned"]["accuracy"]
    assert f"tuned, from 1 to 5: accuracy {formats.number(accuracy['value'])} (" in told
    assert f"20 rows) Krippendorff's alpha on accuracy {formats.number(rated['scale_agreement']['accuracy'])} " in told
    assert f"Judged by a language model, base to adapter: {judged['wins']} won by the tuned model, " in markdown


def test_no_judge_and_no_reviewer_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, opinions=False)
    page, markdown = report()
    assert "The judge is off" in page
    assert "Nobody has reviewed these answers" in page
    assert "Judged by" not in markdown


def test_rare_reasons_are_among_the_examples(finished_run: Path) -> None:
    rows = [{"reason": "common", "line": number} for number in range(50)] + [{"reason": "rare", "line": 60}]
    write_rows(paths.DUPLICATES, rows)
    shown = _some(paths.DUPLICATES, 3)
    assert [(row["reason"], row["line"]) for row in shown] == [("common", 0), ("rare", 60), ("common", 1)]


def set_params(**values: int) -> None:
    params = load_yaml(Path("params.yaml").read_text("utf-8"))
    params["report"] |= values
    Path("params.yaml").write_text(dumps_yaml(params), "utf-8")


def test_no_examples_can_be_asked_for(finished_run: Path) -> None:
    set_params(examples=0)
    root = Page(report()[0]).root
    labels = [one.attributes["aria-label"] or "" for one in root.all("article")]
    assert [one for one in labels if not one.startswith("Answers while learning")] == []
    assert "Lost from adapter to nf4: 2 rows" in " ".join(root.text().split())


def test_the_stage_starts_without_the_heavy_libraries(finished_run: Path) -> None:
    code = (
        "import json, sys\n"
        "from stages.report.__main__ import main\n"
        "main()\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'scipy', 'sklearn', 'datasets'} & set(sys.modules))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_mistake_ends_in_one_sentence(finished_run: Path) -> None:
    paths.GATES.unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "stages.report"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == "error: metrics/gates.json is missing; run `dvc repro` to make it\n"
