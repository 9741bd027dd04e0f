import itertools
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from deduplicated import deduplicated, near_prompts, nearness
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz

from stages.core.errors import Refusal, UserError
from stages.near_duplicates.nearness import SHARED_BY, distances, find_nearness, made_leaks, quarantine
from stages.params.prepare import Split
from stages.prepare.split.draw import draw_holdout
from stages.prepare.split.lock import Drawn, Lock, make_lock
from stages.prepare.split.partition import Partition, cap_sources, partition, restore_locked, sample_train
from stages.records.prompt import refuse_overlap
from stages.records.record import Record, make_record
from stages.text.normal_form import normalise, prompt_hash
from stages.text.strict_json import completion_key

HOW = Drawn(max_rows=1, rows=1, seed=1, share=0.5, threshold=90, unique_md5="")
SETTINGS = Split(
    validation_share=0.2, pair_threshold=80, max_train_rows=None, max_source_share=1, cross_validation=None, fold=None
)


def row(prompt: str, completion: str = "{}", label: str | None = None) -> Record:
    return make_record(prompt, completion, label, "raw", "raw.jsonl:1")


def split(raw: list[Record], lock: Lock, settings: Split = SETTINGS) -> Partition:
    """The data stages from the raw rows on; checks that no row is lost."""
    kept, duplicates = deduplicated(raw)
    restored = restore_locked(kept, duplicates, {entry.id for entry in lock.rows})
    data = kept + restored
    parts = partition(data, lock, find_nearness(data, near_prompts(raw), 80), settings, 17)
    out = parts.train + parts.validation + parts.holdout
    out += [rejected.record for rejected in parts.quarantined + parts.beyond_max]
    assert sorted(out, key=lambda r: r.id) == sorted(kept + restored, key=lambda r: r.id)
    return parts


def near(left: Record, right: Record, answers: Counter[str]) -> bool:
    """`answers` counts the completions of all rows."""
    alike = fuzz.ratio(normalise(left.prompt), normalise(right.prompt))
    if alike < 80 or alike >= 90:
        return alike >= 90
    key = completion_key(left.completion)
    return key == completion_key(right.completion) and answers[key] <= SHARED_BY


def refuse(seen: list[Record], lock: Lock) -> None:
    refuse_overlap("training", seen, {row.prompt_sha256: row.id for row in lock.rows})


def check_no_leak(parts: Partition, lock: Lock, raw: list[Record]) -> None:
    locked = {entry.id for entry in lock.rows}
    hashes = {entry.prompt_sha256 for entry in lock.rows}
    assert {record.id for record in parts.holdout} == locked & {record.id for record in raw}
    data = parts.train + parts.validation + parts.holdout
    data += [rejected.record for rejected in parts.quarantined + parts.beyond_max]
    answers = Counter(completion_key(record.completion) for record in data)
    for seen in parts.train + parts.validation:
        assert seen.id not in locked
        assert prompt_hash(seen.prompt) not in hashes
        assert not any(near(seen, record, answers) for record in parts.holdout)
    assert not any(near(left, right, answers) for left in parts.train for right in parts.validation)
    refuse(parts.train + parts.validation, lock)


PROMPTS = st.one_of(
    st.integers(0, 12).map(lambda n: "book a table for two at the corner" + "!" * n),
    st.integers(0, 9).map(lambda n: f"Where is my order number {n}, please tell me"),
    st.sampled_from(["Play some jazz now", "play  some jazz now", "play some jazz no", "plays some jazz now!"]),
    st.text("abc", min_size=3, max_size=12),
)
COMPLETIONS = st.sampled_from(["{}", "{}", "{}", "[]", "[1]"])
ROW = st.builds(row, PROMPTS, COMPLETIONS, st.sampled_from([None, "x", "y"]))
# What a week brings: new rows, the file in another order, a corrected answer, a reworded prompt, a row withdrawn.
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.lists(ROW, min_size=1, max_size=8)),
        st.tuples(st.just("shuffle"), st.randoms(use_true_random=False)),
        st.tuples(st.just("answer"), st.integers(0, 99)),
        st.tuples(st.just("reword"), st.integers(0, 99)),
        st.tuples(st.just("withdraw"), st.integers(0, 99)),
    ),
    min_size=1,
    max_size=6,
)


def change(raw: list[Record], kind: str, value: object) -> list[Record]:
    if isinstance(value, list):
        return raw + value
    if isinstance(value, random.Random):
        return value.sample(raw, len(raw))
    assert isinstance(value, int)
    if not raw:
        return raw
    place = value % len(raw)
    old = raw[place]
    new = {
        "answer": [row(old.prompt, old.completion + " ", old.label)],
        "reword": [row(old.prompt.upper() + "?", old.completion, old.label)],
        "withdraw": [],
    }[kind]
    return raw[:place] + new + raw[place + 1 :]


@settings(max_examples=200, deadline=None)
@given(first=st.lists(ROW, min_size=5, max_size=25), changes=CHANGES)
def test_no_change_of_the_data_leaks_or_moves_the_holdout(
    first: list[Record], changes: list[tuple[str, object]]
) -> None:
    drawn, _ = draw_holdout(deduplicated(first)[0], nearness(first), 0.4, 10, 17)
    if not drawn:
        return
    lock = make_lock(drawn, HOW)
    raw = first
    check_no_leak(split(raw, lock), lock, raw)
    for kind, value in changes:
        raw = change(raw, kind, value)
        check_no_leak(split(raw, lock), lock, raw)


def test_a_thousand_changes_leave_the_holdout_alone() -> None:
    """One hold-out, drawn once; locked rows are withdrawn, come back, and are imitated."""
    rng = random.Random(17)
    raw = [_imitation("", rng) for _ in range(60)]
    drawn, _ = draw_holdout(deduplicated(raw)[0], nearness(raw), 0.3, 9, 17)
    lock = make_lock(drawn, HOW)
    seen: Counter[str] = Counter()
    for _ in range(1000):
        kind = rng.choice(["grow", "shuffle", "answer", "reword", "withdraw"])
        arrived = [_imitation(rng.choice(["", rng.choice(drawn).prompt]), rng), rng.choice(drawn)]
        raw = change(raw, kind, {"grow": arrived, "shuffle": rng}.get(kind, rng.randrange(99)))
        if len(raw) > 50:
            raw = rng.sample(raw, 40)
        parts = split(raw, lock)
        check_no_leak(parts, lock, raw)
        seen.update(rejected.reason for rejected in parts.quarantined)
        seen["whole"] += len(parts.holdout) == len(drawn)
    assert all(seen[what] > 20 for what in ("same_prompt", "near_prompt", "near_pair", "whole")), seen


def _imitation(prompt: str, rng: random.Random) -> Record:
    """A prompt of its own where none is given, else one with letters changed: near, less near or unlike."""
    letters = list(prompt) or rng.choices("abcdefgh ", k=30)
    for place in rng.sample(range(len(letters)), rng.randrange(len(letters) // 3)):
        letters[place] = rng.choice("xyz")
    return row("".join(letters), rng.choice(["{}", "{}", "[]", "[1]", "[2]"]), rng.choice([None, "x", "y"]))


def test_straight_after_a_draw_nothing_is_quarantined() -> None:
    raw = [row(f"Where is my order number {n}, please tell me", "{}" * n) for n in range(9)]
    raw += [row(word, label="x") for word in ("refund", "hello", "cancel", "another one")]
    lock = make_lock(draw_holdout(raw, nearness(raw), 0.5, 99, 17)[0], HOW)
    parts = split(raw, lock)
    assert parts.quarantined == []
    assert len(parts.holdout) >= 2


def test_a_row_that_stands_for_a_locked_one_does_not_take_its_place() -> None:
    locked, longer = row("Where is my order 12345, please"), row("Where is my order 12345, please?")
    lock = make_lock([locked], HOW)
    kept, duplicates = deduplicated([locked, longer])
    assert kept == [longer]
    assert [rejected.record for rejected in duplicates] == [locked]
    parts = split([locked, longer], lock)
    assert parts.holdout == [locked]
    assert [(r.reason, r.witness, r.record) for r in parts.quarantined] == [("near_prompt", locked.id, longer)]


def test_a_quarantined_row_names_the_nearest_locked_row() -> None:
    text = "Where is my order number 12345, please"
    locked = [row(text + "!!"), row(text + "?")]
    new = row(text + "?!", "[]")
    parts = split([*locked, new], make_lock(locked, HOW))
    (rejected,) = parts.quarantined
    assert rejected.witness == locked[1].id
    assert rejected.score is not None
    assert rejected.score == pytest.approx(fuzz.ratio(normalise(new.prompt), normalise(locked[1].prompt)), abs=0.01)


def test_a_locked_row_with_a_corrected_answer_leaves_but_still_guards_its_prompt() -> None:
    old, new, other = row("Where is my order?", "{}"), row("where is MY order?", "[]"), row("something else")
    lock = make_lock([old, other], HOW)
    parts = split([new, other], lock)
    assert parts.holdout == [other]
    assert [(r.reason, r.witness, r.score) for r in parts.quarantined] == [("same_prompt", old.id, 100.0)]


SHARED = "the ferry to the islands left at seven"
MADE = st.builds(
    row,
    st.one_of(PROMPTS, st.builds("{}\n{}".format, st.sampled_from(["Where to?", "How late?"]), st.just(SHARED))),
    st.sampled_from(["[1]", "[2]", "{}"]),
)


@settings(max_examples=200, deadline=None)
@given(data=st.lists(MADE | ROW, min_size=4, max_size=25), made=st.lists(MADE, max_size=14), drawn=st.randoms())
def test_no_choice_of_made_rows_has_one_that_the_split_would_take_out(
    data: list[Record], made: list[Record], drawn: random.Random
) -> None:
    data, known = deduplicated(data)[0], {record.id for record in data}
    made = list({record.id: record for record in made if record.id not in known}.values())
    held = drawn.sample(data, len(data) // 3 + 1)
    lock = make_lock(held, HOW)
    leaks = made_leaks(made, data, held, lock.prompts(), 90, 80)
    for chosen in (made, [record for record in made if record.id not in leaks], *([record] for record in made)):
        every = data + chosen
        near_all = find_nearness(every, near_prompts(every), 80)
        _, taken_out = quarantine(chosen, held, lock.prompts(), near_all)
        assert {dropped.record.id for dropped in taken_out} <= leaks.keys()
    answers = Counter(completion_key(record.completion) for record in data)
    for record in made:
        lines = {line for line in record.prompt.split("\n") if len(line) >= 20}
        shared = any(line in one.prompt for one in held for line in lines)
        is_near = any(near(record, one, answers) for one in held)
        assert (record.id in leaks) <= (is_near or shared)


def test_made_rows_do_not_make_a_completion_that_of_a_class() -> None:
    data = [row("Weather in Lima on this very long day", "{1}"), row("Order a taxi to the station", "{2}")]
    made = [row(f"{data[0].prompt}{'!' * n}", "{1}") for n in range(9, 19)]
    assert len(made) == SHARED_BY  # with the held row they are more
    leaks = made_leaks(made, data, data[:1], {}, 90, 80)
    assert {leaks[record.id].reason for record in made} == {"near_pair"}


@settings(max_examples=60)
@given(made=st.lists(PROMPTS, max_size=8), held=st.lists(PROMPTS, max_size=8), threshold=st.sampled_from([60, 90, 100]))
def test_made_rows_near_a_held_prompt_are_those_of_all_pairs(made: list[str], held: list[str], threshold: int) -> None:
    """By rapidfuzz's own ratio; no completion of theirs is held."""
    rows, kept_apart = [row(prompt, "[1]") for prompt in made], [row(prompt, "[2]") for prompt in held]
    leaks = made_leaks(rows, kept_apart, kept_apart, {}, threshold, 100)
    for one in rows:
        scores = [fuzz.ratio(normalise(one.prompt), normalise(prompt)) for prompt in held]
        assert (one.id in leaks) == (max(scores, default=0) >= threshold)
        if one.id in leaks:
            found = leaks[one.id]
            assert found.witness in {
                other.id for other, score in zip(kept_apart, scores, strict=True) if score == max(scores)
            }
            assert found.reason == ("same_prompt" if max(scores) == 100 else "near_prompt")


def test_a_locked_row_that_left_the_data_keeps_its_prompt_from_made_rows() -> None:
    rows = [row("plays some jazzy", "[1]"), row("Stop the music", "[1]")]
    leaks = made_leaks(rows, [], [], {prompt_hash("STOP  the music"): "f" * 64}, 90, 80)
    assert [(one.record, one.witness, one.score) for one in leaks.values()] == [(rows[1], "f" * 64, 100.0)]


def test_an_exact_tie_at_the_threshold_is_quarantined() -> None:
    locked, tie, below = row("a" * 9), row("a" * 11, "[]"), row("a" * 7, "[]")
    parts = split([locked, tie, below], make_lock([locked], HOW))
    assert [r.record for r in parts.quarantined] == [tie]


def test_the_same_completion_for_other_words_is_quarantined_at_pair_level() -> None:
    locked = row("put some jazz on for me", "[1]")
    same, other = row("play some jazz for me", "[ 1 ]"), row("play some jazz for me", "[2]")
    assert 80 <= fuzz.ratio(same.prompt, locked.prompt) < 90
    parts = split([locked, same, other], make_lock([locked], HOW))
    assert [(r.reason, r.witness, r.record) for r in parts.quarantined] == [("near_pair", locked.id, same)]
    assert "the completion is a locked row's, and the prompt is 81.81 %" in parts.quarantined[0].detail


@pytest.mark.parametrize("rows", [SHARED_BY, SHARED_BY + 1])
def test_a_completion_of_more_rows_is_the_answer_of_a_class(rows: int) -> None:
    """Rows of one class resemble each other; beyond ten rows of an answer only near prompts are leaks."""
    locked, alike = row("put some jazz on for me", "jazz"), row("play some jazz for me", "jazz")
    others = [row(f"{random.Random(n).getrandbits(160):040x}", "jazz") for n in range(rows - 2)]
    near_prompt = row("put some jazz on for me!", "rock")
    parts = split([locked, alike, near_prompt, *others], make_lock([locked], HOW))
    assert len([locked, alike, *others]) == rows
    quarantined = {r.record.id: r.reason for r in parts.quarantined}
    assert quarantined.pop(near_prompt.id) == "near_prompt"
    assert quarantined == ({alike.id: "near_pair"} if rows <= SHARED_BY else {})


@settings(max_examples=50, deadline=None)
@given(holdout=st.lists(ROW, max_size=6), train=st.lists(ROW, max_size=12))
def test_the_distance_is_that_to_the_nearest_of_all_training_prompts(
    holdout: list[Record], train: list[Record]
) -> None:
    found = distances(holdout, train)
    assert [entry["id"] for entry in found] == [record.id for record in holdout]
    for entry, record in zip(found, holdout, strict=True):
        ratios = {other.id: fuzz.ratio(normalise(other.prompt), normalise(record.prompt)) for other in train}
        best = max(ratios.values(), default=None)
        assert entry["ratio"] == (None if best is None else pytest.approx(best, abs=0.0101))
        assert entry["nearest_id"] == min((name for name, ratio in ratios.items() if ratio == best), default=None)


def test_short_prompts_with_one_long_answer_are_not_near() -> None:
    answer = '{"intent": "greeting", "product": null, "order": null, "urgent": false}'
    locked, other = row("hello", answer), row("good day", answer)
    parts = split([locked, other], make_lock([locked], HOW))
    assert parts.quarantined == []


def test_rows_beyond_the_maximum_are_a_seeded_sample_that_grows_by_one() -> None:
    rows = [row(f"{n}") for n in range(30)]
    small, beyond = sample_train(rows, 10, 17)
    large, _ = sample_train(rows[::-1], 11, 17)
    assert len(small) == 10
    assert len(beyond) == 20
    assert len({r.id for r in large} - {r.id for r in small}) == 1
    assert {r.reason for r in beyond} == {"beyond_max"}
    assert sample_train(rows, None, 17) == (rows, [])
    assert sample_train(rows, 10, 18)[0] != small


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    share=st.integers(1, 20).map(lambda n: n / 20),
    shuffle=st.randoms(use_true_random=False),
)
def test_no_source_has_more_than_its_share_and_no_more_rows_could_stay(
    sizes: list[int], share: float, shuffle: random.Random
) -> None:
    rows = [make_record(f"{s} {n}", "{}", None, f"s{s}", "r:1") for s, size in enumerate(sizes) for n in range(size)]
    best = max(
        (sum(choice) for choice in itertools.product(*(range(size + 1) for size in sizes[:3])) if _fair(choice, share)),
        default=0,
    )
    rows = [record for record in rows if record.source in ("s0", "s1", "s2")]
    try:
        kept, rejected = cap_sources(rows, share, 17)
    except UserError:
        assert best == 0
        return
    assert len(kept) == best
    assert _fair(list(Counter(record.source for record in kept).values()), share)
    assert sorted([*kept, *(r.record for r in rejected)], key=lambda r: r.id) == sorted(rows, key=lambda r: r.id)
    moved, _ = cap_sources(shuffle.sample(rows, len(rows)), share, 17)
    assert {record.id for record in moved} == {record.id for record in kept}


def _fair(counts: Sequence[int], share: float) -> bool:
    return max(counts) <= Fraction(str(share)) * sum(counts)


def test_a_source_over_its_share_is_cut_and_the_rows_are_named() -> None:
    prompts = [f"{random.Random(n).getrandbits(160):040x}" for n in range(41)]
    rows = [make_record(text, "{}", None, "scraped" if n % 4 else "ours", f"r:{n}") for n, text in enumerate(prompts)]
    lock = make_lock(rows[:1], HOW)
    parts = split(rows, lock, SETTINGS.model_copy(update={"max_source_share": 0.5, "validation_share": 0}))
    sources = Counter(record.source for record in parts.train)
    assert sources == {"scraped": 10, "ours": 10}
    assert {(r.reason, r.record.source) for r in parts.beyond_max} == {("beyond_source_cap", "scraped")}
    with pytest.raises(UserError, match=r"max_source_share is 0\.4, but .* 2 sources.*raise it to 0\.5"):
        split(rows, lock, SETTINGS.model_copy(update={"max_source_share": 0.4}))


def test_overlap_is_refused_and_named() -> None:
    locked = row("Where is my order?")
    lock = make_lock([locked], HOW)
    with pytest.raises(Refusal, match=r"1 rows .*raw\.jsonl:1 \(" + locked.id[:12]):
        refuse([row("other"), locked], lock)
    with pytest.raises(Refusal, match="1 rows"):
        refuse([row("WHERE is  my order?", "[]")], lock)
    refuse([row("other")], lock)


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=2, max_size=30),
    most=st.none() | st.integers(1, 8),
    cap=st.sampled_from([0.5, 0.6, 1]),
    seed=st.integers(0, 5),
)
def test_training_keeps_a_row_of_every_label_that_the_holdout_leaves(
    labels: list[str | None], most: int | None, cap: float, seed: int
) -> None:
    prompts = [f"{random.Random(n).getrandbits(160):040x}" for n in range(len(labels))]
    rows = [
        make_record(text, "{}", label, f"s{n % 2}", f"r:{n}")
        for n, (text, label) in enumerate(zip(prompts, labels, strict=True))
    ]
    drawn, _ = draw_holdout(rows, nearness(rows), 0.3, 99, seed)
    free = {record.label for record in rows if record not in drawn}
    assert free == set(labels), "no label is wholly held out"
    lock = make_lock(drawn or rows[:1], HOW)
    left = {record.label for record in rows if record.id not in {entry.id for entry in lock.rows}}
    parts = split(rows, lock, SETTINGS.model_copy(update={"max_train_rows": most}))
    trained = {record.label for record in parts.train}
    assert len(trained) == min(len(left), most or len(left))
    sampled, _ = cap_sources(rows, cap, seed)
    room = len(sampled) // 2  # in one source, at the least
    assert len({record.label for record in sampled}) >= min(len(set(labels)), room)
