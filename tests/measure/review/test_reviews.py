"""The reviewers' files, what of them counts, and what it amounts to."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project import ROOT
from review_project import make_review_project

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import read_json
from stages.measure.gates.__main__ import check_gates
from stages.measure.review.__main__ import main, summarise
from stages.measure.review.reviews import (
    Review,
    Session,
    cards,
    is_of,
    output_hashes,
    read_review_file,
    review_file,
    write_review_file,
)
from stages.params.loader import load_params
from stages.params.measure import Gate
from stages.records.record import make_record
from stages.scoring.paired_answers import Answers

SCORING = load_params("scoring", path=ROOT / "params.yaml").scoring
TEXTS = st.text(st.characters(codec="utf-8"))


def row(number: int, base: str = "wrong", tuned: str = "right") -> Answers:
    return Answers(make_record(f"question {number}", "right", None, "test", ""), {"base": base, "tuned": tuned})


def review(of: Answers, *best: str, comment: str = "") -> Review:
    return Review(row=of.id, outputs=output_hashes(of), shown=("base", "tuned"), best=best, comment=comment)


def reviews(*answers: Review) -> dict[str, Review]:
    return {answer.row: answer for answer in answers}


def test_wins_ties_and_losses_of_one_reviewer() -> None:
    rows = [row(n) for n in range(6)] + [row(6, "same", "same")]
    said = reviews(
        review(rows[0], "tuned"),
        review(rows[1], "tuned", comment="shorter"),
        review(rows[2], "base"),
        review(rows[3], "base", "tuned"),
        review(rows[4]),
    )
    found = summarise(rows, {"anna": said}, SCORING)
    assert (found["rows"], found["identical"]) == (7, 1)
    assert found["reviewers"] == {"anna": {"counted": 5, "stale": 0, "left": 1}}
    assert found["reviews"] == {"counted": 5, "stale": 0, "comments": 1}
    one = found["against_baseline"]
    assert (one["reviews"], one["rows"], one["wins"], one["ties"], one["losses"], one["both_bad"]) == (5, 5, 2, 2, 1, 1)
    assert (one["win_rate"]["value"], one["win_rate"]["n"]) == (pytest.approx(2 / 3), 3)
    assert one["delta"] == {**one["delta"], "value": pytest.approx(0.2), "n": 5}
    assert "agreement" not in one


def test_ratings_are_means_over_rows_and_reviewers_agree_or_not() -> None:
    rows = [row(n) for n in range(3)]

    def rated(of: Answers, **accuracy: int) -> Review:
        scales = {model: {"accuracy": rating} for model, rating in accuracy.items()}
        return Review.model_validate(review(of, "tuned").model_dump() | {"scales": scales})

    anna = reviews(rated(rows[0], tuned=5, base=1), rated(rows[1], tuned=4), review(rows[2], "tuned"))
    ben = reviews(rated(rows[0], tuned=3, base=1))
    found = summarise(rows, {"anna": anna, "ben": ben}, SCORING)
    assert found["scales"]["tuned"]["accuracy"]["value"] == pytest.approx(4)
    assert found["scales"]["tuned"]["accuracy"]["rows"] == 2
    assert found["scales"]["base"]["accuracy"]["value"] == 1
    assert found["scale_agreement"] == {"accuracy": pytest.approx(1 - 3 * 8 / 88)}  # of 5, 3 and of 1, 1
    assert "scales" not in summarise(rows, {"anna": reviews(review(rows[0], "tuned"))}, SCORING)
    for wrong in (0, 6, 2.5):
        with pytest.raises(ValueError, match="accuracy"):
            rated(rows[0], tuned=wrong)  # type: ignore[arg-type]


def test_nobody_reviewed_yet() -> None:
    found = summarise([row(1)], {}, SCORING)
    assert found["against_baseline"]["delta"] == {"value": 0.0, "low": -1.0, "high": 1.0, "n": 0}
    assert "reviewers" not in found


def test_answers_about_other_outputs_do_not_count() -> None:
    before, now = row(1), row(1, tuned="another")
    gone = row(2)
    found = summarise([now], {"anna": reviews(review(before, "tuned"), review(gone, "tuned"))}, SCORING)
    assert found["reviewers"] == {"anna": {"counted": 0, "stale": 2, "left": 1}}
    assert found["against_baseline"]["reviews"] == 0


def test_a_release_to_compare_with_makes_earlier_answers_stale() -> None:
    two = row(1)
    three = Answers(two.record, {**two.outputs, "previous": "before"})
    assert is_of(review(two, "tuned"), two)
    assert not is_of(review(two, "tuned"), three)


def test_of_three_answers_the_best_beats_both_others() -> None:
    one = Answers(row(1).record, {"base": "wrong", "previous": "right", "tuned": "right, and clear"})
    two = Answers(row(2).record, {"base": "wrong", "previous": "right", "tuned": "right"})
    said = reviews(review(one, "previous"), review(two, "previous", "tuned"))
    found = summarise([one, two], {"anna": said}, SCORING)
    earlier, base = found["against_previous"], found["against_baseline"]
    assert (earlier["reviews"], earlier["losses"], earlier["both_bad"]) == (1, 1, 0)
    assert (base["reviews"], base["wins"], base["ties"], base["both_bad"]) == (2, 1, 1, 1)


def test_reviewers_of_one_row_count_as_one_row() -> None:
    rows = [row(n) for n in range(4)]
    anna = reviews(*[review(one, "tuned") for one in rows])
    ben = reviews(review(rows[0], "tuned"), review(rows[1], "base"), review(rows[2], "tuned"))
    one = summarise(rows, {"anna": anna, "ben": ben}, SCORING)["against_baseline"]
    assert (one["reviews"], one["rows"], one["delta"]["n"]) == (7, 4, 4)
    assert one["delta"]["value"] == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert one["agreement"] == {"cohen_kappa": pytest.approx(0.0), "rows": 3}
    cleo = reviews(review(rows[0], "base"), review(rows[3], "tuned"))
    three = summarise(rows, {"anna": anna, "ben": ben, "cleo": cleo}, SCORING)["against_baseline"]
    assert three["agreement"]["rows"] == 4
    assert -1 < three["agreement"]["krippendorff_alpha"] < 1


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.sampled_from(["anna", "ben"]))
def test_cards_hold_every_text_once(base: str, tuned: str, previous: str, reviewer: str) -> None:
    one = Answers(make_record("q", "r", None, "test", ""), {"base": base, "tuned": tuned, "previous": previous})
    shown = cards(one, reviewer, 17)
    assert sorted(card.text for card in shown) == sorted({base, tuned, previous})
    assert sorted(model for card in shown for model in card.models) == ["base", "previous", "tuned"]
    assert shown == cards(one, reviewer, 17)


def test_the_order_of_cards_tells_nothing_of_the_models() -> None:
    """Of 300 rows either model comes first about as often, for each reviewer, and reviewers see other orders."""
    rows = [row(n) for n in range(300)]
    first = {name: [cards(one, name, 17)[0].models == ("tuned",) for one in rows] for name in ("anna", "ben")}
    for said in first.values():
        assert 115 < sum(said) < 185  # four standard deviations
    assert 115 < sum(a == b for a, b in zip(first["anna"], first["ben"], strict=True)) < 185


@given(st.dictionaries(TEXTS, TEXTS, max_size=4))
def test_a_file_is_read_as_it_was_written_in_one_order(tmp_path_factory: Any, comments: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("reviews") / "anna.jsonl"
    one = review(row(1), "base")
    answers = {name: one.model_copy(update={"row": name, "comment": text}) for name, text in comments.items()}
    write_review_file(path, answers)
    before = path.read_bytes()
    assert read_review_file(path) == answers
    write_review_file(path, dict(reversed(answers.items())))
    assert path.read_bytes() == before
    assert before.count(b"\n") == max(1, len(answers))


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "Anna", "a" * 41, "a\n", "é", "-x"])
def test_a_reviewer_is_a_plain_name(name: str) -> None:
    with pytest.raises(UserError, match="reviewer"):
        review_file(Path("reviews"), name)


@pytest.mark.parametrize(
    "line",
    [
        "<<<<<<< HEAD",
        "[]",
        '{"row": "1"}',
        '{"row": "1", "outputs": [], "shown": [], "best": [], "comment": ""}',
        '{"row": "1", "outputs": {}, "shown": [], "best": ["tuned"], "comment": ""}',
        '{"row": "1", "outputs": {}, "shown": [], "best": [], "comment": 3}',
        '{"row": "1", "outputs": {}, "shown": [], "best": [], "comment": "", "more": 1}',
    ],
)
def test_a_file_that_a_merge_broke_is_a_sentence(tmp_path: Path, line: str) -> None:
    path = tmp_path / "anna.jsonl"
    good = json.dumps({"row": "0", "outputs": {}, "shown": [], "best": [], "comment": ""})
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=r"anna\.jsonl, line 2"):
        read_review_file(path)
    path.write_text(f"{good}\n{good}\n")
    with pytest.raises(UserError, match="line 2: a second answer"):
        read_review_file(path)


def test_a_sitting_saves_resumes_and_takes_back(tmp_path: Path) -> None:
    folder = make_review_project(tmp_path, [("wrong", "right"), ("same", "same"), ("a", "b")])
    with contextlib.chdir(folder):
        session = Session("anna", review_file(paths.REVIEWS, "anna"), load_params("review", "seed", "task"))
        state = session.state()
        assert (len(state["rows"]), session.progress()) == (2, "0 of 2 rows answered by anna")
        assert not {"base", "tuned", "id"} & set(str(state).replace("'", " ").split())
        session.save(0, [0], "clearer", [{"style": 5}, {"style": 2, "accuracy": 1}])
        session.save(1, [], "")
        again = Session("anna", session.file, load_params("review", "seed", "task"))
        assert [one["answer"] for one in again.state()["rows"]] == [
            {"best": [0], "comment": "clearer", "scales": [{"style": 5}, {"style": 2, "accuracy": 1}]},
            {"best": [], "comment": "", "scales": [{}, {}]},
        ]
        lines = [json.loads(line) for line in session.file.read_text().splitlines()]
        assert [line["row"] for line in lines] == sorted(line["row"] for line in lines)
        again.save(1, None, "")
        assert again.progress() == "1 of 2 rows answered by anna"
        assert "scales" in session.file.read_text().splitlines()[0] + session.file.read_text().splitlines()[-1]
        with pytest.raises(ValueError, match="no such"):
            again.save(0, [0], "", [{}])
        for bad in ((2, [0], ""), (-1, [0], ""), (0, [2], ""), (0, [-1], ""), (0, [0], "x" * 2001)):
            with pytest.raises(ValueError, match="no such"):
                again.save(*bad)
        assert again.progress() == "1 of 2 rows answered by anna"


def test_the_stage_counts_what_was_saved_and_judges_it(tmp_path: Path) -> None:
    folder = make_review_project(tmp_path, [("wrong", f"right {n}") for n in range(30)])
    gates = {"people_prefer": Gate(model="review", metric="delta", against="base", minimum=0.0)}
    (folder / "reviews").mkdir()
    with contextlib.chdir(folder):
        main()
        assert check_gates(gates, {"review": read_json(paths.REVIEW_METRICS)})["verdict"] == "MARGINAL"
        session = Session("anna", review_file(paths.REVIEWS, "anna"), load_params("review", "seed", "task"))
        for number, one in enumerate(session.state()["rows"]):
            session.save(number, [one["cards"].index(next(t for t in one["cards"] if t != "wrong"))], "")
        main()
        found = read_json(paths.REVIEW_METRICS)
        assert found["against_baseline"]["wins"] == found["reviewers"]["anna"]["counted"] == 30
        assert check_gates(gates, {"review": found})["verdict"] == "PASS"
        before = paths.REVIEW_METRICS.read_bytes()
        main()
        assert paths.REVIEW_METRICS.read_bytes() == before
