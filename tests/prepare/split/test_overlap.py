import random

from hypothesis import given
from hypothesis import strategies as st

from stages.prepare.split.partition import runs, shared_runs
from stages.records.prompt import asked
from stages.records.record import Record, make_record

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=18).map(" ".join)


def row(prompt: str, completion: str = "{}") -> Record:
    return make_record(prompt, completion, None, "raw", "raw.jsonl:1")


def numbered(first: int, last: int) -> str:
    return " ".join(f"w{n}" for n in range(first, last))


def test_runs_of_thirteen_words_ignore_case_and_punctuation() -> None:
    assert list(runs(numbered(0, 12))) == []
    assert len(list(runs(numbered(0, 15)))) == 3
    assert list(runs(numbered(0, 13).upper().replace(" ", ", "))) == list(runs(numbered(0, 13)))


def test_a_planted_run_is_found_in_prompt_and_completion_apart() -> None:
    holdout = [
        row(f"Please {numbered(0, 13)} now"),
        row("too short", f'{{"text": "{numbered(50, 63)}"}}'),
        row(numbered(100, 120)),
    ]
    seen = [row(f"Something else: {numbered(0, 13)}!"), row("other", numbered(50, 63)), row(numbered(113, 125))]
    assert shared_runs(map(asked, seen), map(asked, holdout)) == {"rows": 1, "of": 2, "runs": 1}
    completions = [[row.completion for row in rows] for rows in (seen, holdout)]
    assert shared_runs(*completions) == {"rows": 1, "of": 1, "runs": 1}


@given(seen=st.lists(WORDS, max_size=6), held=st.lists(WORDS, max_size=6), shuffle=st.randoms(use_true_random=False))
def test_the_count_is_that_of_comparing_all_rows(seen: list[str], held: list[str], shuffle: random.Random) -> None:
    def shares(text: str) -> bool:
        words = text.split()
        parts = [" ".join(words[n : n + 13]) for n in range(len(words) - 12)]
        return any(f" {part} " in f" {other} " for part in parts for other in seen)

    found = shared_runs(seen, held)
    assert found["rows"] == sum(map(shares, held))
    assert found["of"] == sum(len(text.split()) >= 13 for text in held)
