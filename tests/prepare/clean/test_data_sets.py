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
from stages.prepare.clean.rejected_rows import Rejected
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


def values(folder: Path) -> list[Any]:
    """What the rows of the data set `set` hold, or why they hold nothing."""
    (found,) = find_files(folder, {"s": Source(dataset="set")})
    rows = list(read_rows(found, 1000))
    assert count_rows(found, 1000) == len(rows)
    return [row.values.reason if isinstance(row.values, Rejected) else row.values for row in rows]


def test_the_cells_of_a_csv_file_are_the_texts_that_they_are(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    cells = [("007", "1.10"), ("8", "NA"), *[("1", "")] * 10_000, ("A1", "true")]  # types would be guessed by parts
    text = "".join(f"{prompt},{completion}\n" for prompt, completion in [("prompt", "completion"), *cells])
    (tmp_path / "set" / "train.csv").write_text(text)
    assert values(tmp_path) == [{"prompt": one, "completion": two} for one, two in cells]
    (tmp_path / "set" / "train.csv").write_text("prompt,completion\n1,a,b\n2,c\n")
    assert values(tmp_path) == ["wrong_fields", {"prompt": "2", "completion": "c"}]
    (tmp_path / "set" / "train.csv").write_text("prompt,completion,completion\n1,a,b\n")
    with pytest.raises(UserError, match=r"set:train:train\.csv: the first line must name the columns, each once"):
        values(tmp_path)


def test_what_no_split_of_a_folder_reads_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several formats `datasets` takes the most frequent one, and no file whose name begins with a dot or `_`."""
    (tmp_path / "set").mkdir()
    for name in ("train-0.jsonl", "test.jsonl", "train-1.csv", "_more.jsonl.gz", "dataset_infos.json", "notes.txt"):
        (tmp_path / "set" / name).write_text("{}\n")
    assert values(tmp_path) == [{}]
    assert "clean: set: passed over, for no split has them: _more.jsonl.gz, train-1.csv\n" in capsys.readouterr().err


ODD = [
    {"prompt": "2024-01-02", "n": 1},
    {"prompt": "2024-01-02T03:04:05Z", "n": 1.0},
    {"prompt": "007", "n": 2**70},
    {"prompt": "NA", "n": None, "more": {"a": [{"b": 1}, {"c": "x"}]}},
    {"prompt": "x", "more": {"a": []}, "only_here": None},
    {"prompt": "y", "more": [1, "1", 1.5, True]},
]


@pytest.mark.parametrize("form", ["lines", "array", "one line"])
def test_the_values_of_a_json_file_are_what_it_says(form: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    texts = [json.dumps(row) for row in ODD]
    layouts = {"lines": "\n".join(texts), "array": f" [\n {' ,'.join(texts)}\n]\n", "one line": f"[{','.join(texts)}]"}
    for mark in ("", "\ufeff"):
        (tmp_path / "set" / "train.json").write_text(mark + layouts[form], encoding="utf-8")
        assert [json.dumps(row) for row in values(tmp_path)] == texts


def test_an_element_of_a_json_array_costs_itself_and_can_be_found_again(tmp_path: Path) -> None:
    project = CleanProject(tmp_path, sources={"s": {"dataset": "set"}}, max_rejected_share=1, max_line_bytes=90)
    (project.raw / "set").mkdir()
    good, big = {"prompt": "Where is K-4821? é", "completion": ANSWER}, {"prompt": "é" * 60, "completion": ANSWER}
    spaced = json.dumps(good, ensure_ascii=False, indent=1)
    elements = [json.dumps(good), '{"a": NaN}', '{"a": 1, "a": 2}', "[1]", json.dumps(big, ensure_ascii=False), spaced]
    file = project.raw / "set" / "train.json"
    file.write_text("[" + ",\n".join(elements) + "]", encoding="utf-8")
    project.clean()
    assert [record.origin for record in project.kept()] == ["set:train:train.json:1", "set:train:train.json:6"]
    *rows, long = project.rejected()
    assert [(row["line"], row["reason"], row["raw"]) for row in rows] == [
        (2, "not_json", elements[1]),
        (3, "not_json", elements[2]),
        (4, "not_an_object", elements[3]),
    ]
    assert file.read_bytes()[long["offset"] :][: long["length"]].decode() == elements[4]
    for broken in ("[", "[{},]", "[{} {}]", "[{}] x", "[{}", '["\udc80"]'):
        file.write_bytes(broken.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match="no whole JSON array"):
            project.clean()


def test_classes_have_their_names_in_text_files_too(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    names = "[{name: label, dtype: {class_label: {names: {'0': refund, '1': '7'}}}}, {name: prompt, dtype: string}]"
    (tmp_path / "set" / "README.md").write_text(f"---\ndataset_info: {{features: {names}}}\n---\n")
    (tmp_path / "set" / "train.csv").write_text("prompt,label\n0,0\n1,1\n2,-1\n3,refund\n4,7\n")
    named = ["refund", "7", None, "refund", "7"]
    assert values(tmp_path) == [{"prompt": str(n), "label": label} for n, label in enumerate(named)]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"dataset": "owner/name"}, "is no folder below .* and not OWNER/NAME@COMMIT with all 40 hex digits"),
        ({"dataset": "owner/name@main"}, "with all 40 hex digits of the commit"),
        ({"dataset": "owner/name@0123abc"}, "all 40 hex digits"),
        ({"dataset": "../elsewhere"}, "is no folder below"),
        ({"dataset": str(Path(__file__).parent)}, "is no folder below"),
        ({"dataset": "set", "split": "tset"}, r"set cannot be opened \(Unknown split \"tset\""),
        ({"dataset": "odd"}, "its README sets header, names; take its files below clean.raw"),
        ({"dataset": "lines", "split": "test"}, r'Unknown split "test". Should be one of .*train'),
        ({"dataset": "pointer"}, "git lfs pull"),
    ],
)
def test_a_data_set_that_cannot_be_opened_is_told(settings: dict[str, str], what: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    raw = tmp_path / "raw"
    clone(raw / "set")
    (raw / "lines").mkdir()
    (raw / "lines" / "train.jsonl").write_text("{}\n")
    (raw / "odd").mkdir()
    (raw / "odd" / "train.csv").write_text("1,a\n2,b\n")
    config = "{config_name: default, data_files: train.csv, header: null, names: [prompt, completion]}"
    (raw / "odd" / "README.md").write_text(f"---\nconfigs: [{config}]\n---\n")
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


def test_text_files_of_the_hub_are_fetched_and_named_by_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, build = tmp_path / COMMIT, datasets.load_dataset_builder
    (repository / "data" / "train").mkdir(parents=True)
    for number in (0, 1):
        row = {"prompt": f"question {number}", "completion": ANSWER, "day": "2024-01-02"}
        (repository / "data" / "train" / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config, revision: build(str(repository)))
    sources = {"mail": {"dataset": f"owner/name@{COMMIT}"}}
    project = CleanProject(tmp_path / "project", sources=sources, keep_columns=["day"])
    project.clean()
    at = f"owner/name@{COMMIT}:train:data/train"
    assert [record.origin for record in project.kept()] == [f"{at}/0.jsonl:1", f"{at}/1.jsonl:1"]
    assert {record.fields["day"] for record in project.kept()} == {"2024-01-02"}


def test_a_source_names_files_or_a_data_set(tmp_path: Path) -> None:
    for wrong in ({}, {"files": "*", "dataset": "set"}):
        project = CleanProject(tmp_path / str(len(wrong)), sources={"mail": wrong})
        with pytest.raises(UserError, match="either files or a dataset"):
            project.clean()
