"""Data sets by name: a folder in the layout of the hub, one that was saved to disk, and the hub at a commit."""

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from clean_project import CleanProject, raw_bytes, read_rows

from stages.core.errors import UserError
from stages.params.prepare import Source
from stages.prepare.clean import data_sets
from stages.prepare.clean.sources import count_rows, find_files

ANSWER = '{"intent": "tracking"}'
COMMIT = "0123456789abcdef" * 2 + "01234567"
ROWS: dict[str, list[Any]] = {
    "prompt": ["Where is it?", "", "Give it back", "And now?"],
    "completion": [ANSWER] * 4,
    "label": [1, 0, 0, -1],
}
FEATURES = datasets.Features(
    prompt=datasets.Value("string"),
    completion=datasets.Value("string"),
    label=datasets.ClassLabel(names=["refund", "tracking"]),
)


def data() -> datasets.Dataset:
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(ROWS, features=FEATURES)


def clone(folder: Path) -> None:
    """What `git clone` leaves of a repository of the hub, with two splits."""
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "data").mkdir()
    data().to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    data().select([0]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")


def saved(folder: Path) -> None:
    datasets.DatasetDict(train=data(), test=data().select([0])).save_to_disk(folder)


@pytest.mark.parametrize("make", [clone, saved])
def test_every_row_of_a_split_is_kept_or_can_be_read_back(make: Any, tmp_path: Path) -> None:
    sources = {
        "mail": {"dataset": "intents", "split": "train"},
        "published": {"dataset": "intents", "split": "test", "shape": "prompt_completion"},
    }
    project = CleanProject(tmp_path, sources=sources, max_rejected_share=0.5)
    make(project.raw / "intents")
    project.clean()
    assert [(record.source, record.origin, record.label) for record in project.kept()] == [
        ("mail", "intents:train:1", "tracking"),
        ("mail", "intents:train:3", "refund"),
        ("mail", "intents:train:4", None),
        ("published", "intents:test:1", "tracking"),
    ]
    (rejected,) = project.rejected()
    assert (rejected["file"], rejected["line"], rejected["reason"]) == ("intents:train", 2, "prompt_too_short")
    assert json.loads(raw_bytes(rejected)) == {"prompt": "", "completion": ANSWER, "label": 0}
    assert project.metrics()["sources"]["mail"]["rows"] == {"in": 4, "kept": 3, "rejected": 1}
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in data().to_list()]
    digests = {
        name: hashlib.sha256("".join(rows).encode()).hexdigest()
        for name, rows in {"intents:train": lines, "intents:test": lines[:1]}.items()
    }
    assert project.metrics()["data_sets"] == digests


def test_a_changed_file_of_a_clone_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "set" / "train.jsonl"
    file.parent.mkdir()
    read = []
    for prompt in ("first one", "other one"):
        file.write_text(json.dumps({"prompt": prompt, "completion": ANSWER}) + "\n")
        os.utime(file, (1, 1))
        (found,) = find_files(tmp_path, {"s": Source(dataset="set")})
        assert count_rows(found, 100) == 1
        read += [row.values["prompt"] for row in read_rows(found, 100) if isinstance(row.values, dict)]
    assert read == ["first one", "other one"]


def test_the_cells_of_a_csv_file_are_the_texts_that_they_are(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    cells = [("007", "1.10"), ("8", "NA"), *[("1", "")] * 10_000, ("A1", "true")]  # types are guessed by parts
    text = "".join(f"{prompt},{completion}\n" for prompt, completion in [("prompt", "completion"), *cells])
    (tmp_path / "set" / "train.csv").write_text(text)
    (found,) = find_files(tmp_path, {"s": Source(dataset="set")})
    assert [row.values for row in read_rows(found, 100)] == [{"prompt": one, "completion": two} for one, two in cells]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"dataset": "owner/name"}, "is no folder below .* and not OWNER/NAME@COMMIT with all 40 hex digits"),
        ({"dataset": "owner/name@main"}, "with all 40 hex digits of the commit"),
        ({"dataset": "owner/name@0123abc"}, "all 40 hex digits"),
        ({"dataset": "../elsewhere"}, "is no folder below"),
        ({"dataset": str(Path(__file__).parent)}, "is no folder below"),
        ({"dataset": "set", "split": "tset"}, r"set cannot be opened \(Unknown split \"tset\""),
        ({"dataset": "bad"}, "text files with bad lines belong below"),
        ({"dataset": "pointer"}, "git lfs pull"),
        ({"dataset": "shifted"}, "more cells than its first line"),
    ],
)
def test_a_data_set_that_cannot_be_opened_is_told(settings: dict[str, str], what: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    raw = tmp_path / "raw"
    clone(raw / "set")
    (raw / "bad").mkdir()
    (raw / "bad" / "train.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n{\n")
    (raw / "shifted").mkdir()
    (raw / "shifted" / "train.csv").write_text("prompt,completion\n1,a,b\n2,c,d\n")
    (raw / "pointer").mkdir()
    (raw / "pointer" / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=what) as caught:
        data_sets.open_source("mail", Source.model_validate(settings), raw)
    assert str(caught.value).startswith("clean.sources.mail: ")


def test_the_hub_is_asked_for_the_commit_and_no_token_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, built = [], []

    def build(*arguments: Any, **options: Any) -> SimpleNamespace:
        built.append((arguments, options))
        return SimpleNamespace(name="parquet")

    def load(*arguments: Any, **options: Any) -> datasets.Dataset:
        asked.append((arguments, options))
        return data()

    monkeypatch.setenv("HF_TOKEN", "hf_" + "secret" * 6)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "load_dataset_builder", build)
    at = f"owner/name@{COMMIT}"
    project = CleanProject(tmp_path, sources={"mail": {"dataset": at, "config": "small"}}, max_rejected_share=0.5)
    project.clean()
    assert asked == [(("owner/name", "small"), {"split": "train", "revision": COMMIT})]
    assert built == [(("owner/name", "small"), {"revision": COMMIT})]
    assert project.kept()[0].origin == f"{at}:small:train:1"
    assert list(project.metrics()["data_sets"]) == [f"{at}:small:train"]
    written = [path.read_text(encoding="utf-8") for path in (tmp_path / "data").rglob("*.jsonl")]
    assert not any("hf_secret" in text for text in [*written, json.dumps(project.metrics())])


def test_a_source_names_files_or_a_data_set(tmp_path: Path) -> None:
    for wrong in ({}, {"files": "*", "dataset": "set"}):
        project = CleanProject(tmp_path / str(len(wrong)), sources={"mail": wrong})
        with pytest.raises(UserError, match="either files or a dataset"):
            project.clean()
