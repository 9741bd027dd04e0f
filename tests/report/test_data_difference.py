"""What `compare` says of rows and hold-out, held against counting by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scratch import Scratch

from stages.core.dvc_lock import md5
from stages.core.git import CommitTree, Repository, Tree, WorkingTree
from stages.report.data_difference import Row, _table, data_difference

pytest_plugins = ["scratch_fixtures"]

rows = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.sampled_from(["l", "m"])), max_size=12)


class Files(Tree):
    def __init__(self, files: dict[str, str]) -> None:
        self.files, self.label = files, "files"

    def read(self, path: str) -> bytes | None:
        return self.files[path].encode() if path in self.files else None

    def md5s(self, path: str) -> dict[str, str]:
        return {p[len(path) + 1 :]: md5(t.encode()) for p, t in self.files.items() if p.startswith(f"{path}/")}


def raw(*content: dict[str, Any] | str) -> str:
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in content)


def lock(*ids: str) -> str:
    return json.dumps({"rows": [{"id": one} for one in ids]})


def said(then: dict[str, str], now: dict[str, str]) -> tuple[list[str], dict[str, list[int]]]:
    sentences, table = data_difference(Repository(Path()), Files(then), Files(now))
    return sentences, {str(name): list(map(int, row)) for name, row in zip(table.index, table.to_numpy(), strict=True)}


@given(rows, rows)
def test_every_row_is_added_removed_changed_or_the_same(then: Any, now: Any) -> None:
    made = [[Row(asked, asked + answer, (("label", label),)) for asked, answer, label in side] for side in (then, now)]
    table = _table(*made)
    before, after = (Counter(row.said for row in side) for side in made)
    if before == after:
        assert table.empty
        return
    old, new, added, removed, changed = table.loc["all rows"]
    assert (old, new) == (len(then), len(now))
    assert added + changed == (after - before).total()
    # A row that went and has no changed row for its prompt was removed, and no other.
    asked_now = {key[0] for key in after - before}
    assert removed == sum(n for key, n in (before - after).items() if key[0] not in asked_now)
    labels = [name for name in table.index if name.startswith("label ")]
    assert table.loc[labels, ["added", "removed", "changed"]].sum().tolist() == [added, removed, changed]


def test_rows_of_labels_sources_and_annotators() -> None:
    one = {"prompt": "a", "completion": "1", "label": "x"}
    then = {"data/raw/old.jsonl": raw(one, {"prompt": "b", "completion": "1", "label": "y"}, "no json {")}
    new = {"prompt": "c", "completion": "1", "label": "x", "annotator": "ann"}
    now = {
        "data/raw/old.jsonl": raw(one, {"prompt": "b", "completion": "2", "label": "y"}),
        "data/raw/week.jsonl": raw(new),
    }
    sentences, groups = said(then, now)
    assert sentences[1] == "Data: 1 row added, 1 removed, 1 changed, of 3."
    assert groups == {
        "all rows": [3, 3, 1, 1, 1],
        "annotator ann": [0, 1, 1, 0, 0],
        "label x": [1, 2, 1, 0, 0],
        "label y": [1, 1, 0, 0, 1],
        "source old.jsonl": [3, 2, 0, 1, 1],
        "source week.jsonl": [0, 1, 1, 0, 0],
    }


def test_names_that_are_half_a_character_are_counted_and_groups_stand_in_order() -> None:
    rows = [{"prompt": "a", "completion": "1", "label": "\ud800"}, {"prompt": "b", "completion": "1", "label": "x"}]
    _, groups = said({"data/raw/a.jsonl": raw(rows[0])}, {"data/raw/a.jsonl": raw(rows[0], *rows)})
    assert list(groups.items()) == [
        ("all rows", [1, 3, 2, 0, 0]),
        ("label ?", [1, 2, 1, 0, 0]),
        ("label x", [0, 1, 1, 0, 0]),
        ("source a.jsonl", [1, 3, 2, 0, 0]),
    ]


def test_a_line_nested_beyond_all_measure_is_a_row_like_others() -> None:
    (_, data), _ = said({"data/raw/a.jsonl": raw("[" * 100_000)}, {"data/raw/a.jsonl": raw("[" * 100_000, {"n": 1})})
    assert data.startswith("Data: 1 row added, 0 removed")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (lock("a", "b"), lock("b", "a"), "Hold-out: the same 2 rows."),
        (lock("a"), lock("a", "b"), "Hold-out: 1 row added to 1."),
        (lock("a"), '{"rows": [{"id": "a"}, {"id": "b", "slice": "w"}]}', "Hold-out: 1 row added to 1, a slice of w."),
        (lock("a", "b"), lock("b", "c"), "Hold-out: REDRAWN, 1 of 2 rows are others; scores before and after"),
        (lock("a"), "{", "Hold-out: REDRAWN, 1 of 1 rows are others"),
    ],
)
def test_holdout(before: str, after: str, words: str) -> None:
    sentences, _ = said({"data/holdout.lock": before}, {"data/holdout.lock": after})
    assert sentences[0].startswith(words)


def test_raw_data_outside_git_are_compared_by_the_rows_in_the_cache(scratch: Scratch) -> None:
    """And where the cache has them not, the comment says which command brings them, in place of a number."""
    scratch.write("data/raw/a.jsonl", '{"n": 1}\n{"n": 4}\n')
    records = [
        {"id": str(n), "prompt": f"p{n}", "completion": "c", "label": "l", "source": "a", "origin": "a:1"}
        for n in (1, 2, 3)
    ]
    scratch.write("params.yaml", (scratch.root / "params.yaml").read_text() + "clean:\n  raw: elsewhere\n")
    cache = scratch.root / ".dvc/cache/files/md5"
    name = "data/clean.jsonl"
    lock_text = (scratch.root / "dvc.lock").read_text()
    old = next(line.split()[-1] for line in lock_text.split(f"path: {name}")[1].splitlines() if "md5:" in line)
    names = []
    for text in (raw(*records[:2]), raw(*records)):
        names.append(md5(text.encode()))
        (cache / names[-1][:2]).mkdir(exist_ok=True)
        (cache / names[-1][:2] / names[-1][2:]).write_text(text)
    scratch.write("dvc.lock", lock_text.replace(old, names[0]))
    first = scratch.commit("Raw data elsewhere")
    scratch.write("dvc.lock", lock_text.replace(old, names[1]))
    repository = Repository(scratch.root)
    trees = CommitTree(repository, first), WorkingTree(scratch.root)
    assert data_difference(repository, *trees)[0][1] == "Data: 1 row added, 0 removed, 0 changed, of 3."
    scratch.forget_cache()
    assert "`dvc fetch clean`" in data_difference(repository, *trees)[0][1]


@pytest.mark.parametrize("damaged", ['{"rows": 3}', '{"rows": [3]}', '{"rows": [{}]}', '{"rows": null}'])
def test_a_damaged_lock_is_told(damaged: str) -> None:
    for then, now in ((damaged, lock("a")), (lock("a"), damaged)):
        files = ({"data/holdout.lock": text} for text in (then, now))
        assert said(*files)[0][0].startswith("Hold-out: which rows differ is not known")
