"""Whatever the format: the same rows give the same records, and what is damaged is told."""

import base64
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from clean_project import ROOT, CleanProject, read_rows
from hypothesis import given
from hypothesis import strategies as st
from raw_formats import jsonl, parquet, separated, write_all

from stages.core.errors import UserError
from stages.params.prepare import Source
from stages.prepare.clean.rejected_rows import Rejected, write_rejected
from stages.prepare.clean.sources import RawFile, count_rows, find_files, list_raw
from stages.records.record import Record

FILES = ["r.jsonl", "r.csv", "r.tsv", "r.parquet", "r.arrow", "r.jsonl.gz", "r.csv.gz", "r.jsonl.zst", "r.parquet.zst"]
SNIPS = ROOT.parent / "shared" / "data" / "snips" / "train.jsonl"
COMPLETION = '{"intent": "tracking"}'
PAIRS = [
    {
        "prompt": f'Where is "K-{number}"?\nIt was due, they say; <b>today</b>.\tCafé',
        "completion": COMPLETION,
        "label": "x",
    }
    for number in range(1000, 1010)
]
TALKS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Hello, {number}"},
            {"role": "assistant", "content": "Hello. What is it?"},
            {"role": "user", "content": "My order, please"},
            {"role": "assistant", "content": COMPLETION},
        ]
    }
    for number in range(7)
]


def contents(records: list[Record]) -> list[Any]:
    return [(record.id, record.prompt, record.completion, record.label, record.context) for record in records]


@pytest.mark.parametrize("rows", [PAIRS, TALKS], ids=["pairs", "conversations"])
def test_the_same_rows_give_the_same_records_in_every_format(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    files = write_all(project.raw, rows)
    project.clean()
    found = project.kept()
    assert len(found) == len(files) * len(rows)
    by_source: dict[str, list[Record]] = {}
    for record in found:
        by_source.setdefault(record.source, []).append(record)
    assert sorted(by_source) == sorted(file.name for file in files)
    expected = contents(by_source["rows.jsonl"])
    for records in by_source.values():
        assert contents(records) == expected
    assert {source["rows"]["kept"] for source in project.metrics()["sources"].values()} == {len(rows)}


@pytest.mark.skipif(not SNIPS.is_file(), reason=f"{SNIPS} is not there")
def test_real_rows_give_the_same_records_in_every_format(tmp_path: Path) -> None:
    with SNIPS.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::40]
    project = CleanProject(tmp_path)
    files = write_all(project.raw, rows)
    project.clean()
    by_source: dict[str, list[Record]] = {}
    for record in project.kept():
        by_source.setdefault(record.source, []).append(record)
    expected = contents(by_source["rows.jsonl"])
    assert len(expected) == len(rows) > 300
    assert [len(by_source[file.name]) for file in files] == [len(rows)] * len(files)
    assert all(contents(records) == expected for records in by_source.values())


def test_origins_name_the_line_in_text_and_the_row_in_binary_files(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    write_all(project.raw, PAIRS)
    project.clean()
    origins: dict[str, list[int]] = {}
    for record in project.kept():
        file, _, number = record.origin.rpartition(":")
        origins.setdefault(file, []).append(int(number))
    assert origins["rows.jsonl"] == origins["rows.parquet.gz"] == list(range(1, 11))
    assert origins["rows.csv.zst"] == list(range(2, 22, 2))  # a header, and a line feed in each record
    assert origins["saved"] == list(range(1, 11))


def test_a_rejected_binary_row_says_where_it_lies_and_all_that_it_held(tmp_path: Path) -> None:
    project = CleanProject(tmp_path, max_rejected_share=0.9)
    (project.raw / "rows.parquet").write_bytes(parquet([*PAIRS, {**PAIRS[0], "prompt": ""}]))
    table = pa.table({"prompt": ["good enough", "a"], "completion": [COMPLETION] * 2, "label": [b"\x00", b"\xff"]})
    pq.write_table(table, project.raw / "bytes.parquet")
    project.clean()
    first, second, third = project.rejected()
    for number, row in enumerate((first, second)):
        assert (row["file"], row["line"], row["reason"]) == ("bytes.parquet", number + 1, "wrong_type")
        with pa.ipc.open_stream(io.BytesIO(base64.b64decode(row.get("raw_base64") or row["raw"].encode()))) as stream:
            assert stream.read_all().equals(table.slice(number, 1))
    assert (third["line"], third["reason"]) == (11, "prompt_too_short")
    assert json.loads(third["raw"]) == {**PAIRS[0], "prompt": ""}


def test_a_text_of_a_binary_file_that_is_not_utf8_spoils_its_own_row_alone(tmp_path: Path) -> None:
    texts = [b"good enough", b"caf\xe9", b"good as well"]
    prompts = pa.Array.from_buffers(pa.string(), 3, pa.array(texts, pa.binary()).buffers())
    (tmp_path / "rows.parquet").write_bytes(b"")
    pq.write_table(pa.table({"prompt": prompts, "completion": [COMPLETION] * 3}), tmp_path / "rows.parquet")
    (file,) = find_files(tmp_path, {})
    rows = list(read_rows(file, 10**6))
    assert [isinstance(row.values, dict) for row in rows] == [True, False, True]
    assert getattr(rows[1].values, "reason", None) == "not_utf8"


HUGE = 2**62
ODD_TIMES: dict[str, tuple[Any, list[Any]]] = {
    "date": (pa.date32(), [0, 2**31 - 1, -(2**31)]),
    "date64": (pa.date64(), [0, 86_400_000 * 10**8, -86_400_000 * 10**8]),
    "seconds": (pa.timestamp("s"), [0, 10**13, -(10**13)]),
    "milliseconds": (pa.timestamp("ms", tz="UTC"), [0, HUGE, -HUGE]),
    "duration": (pa.duration("s"), [0, HUGE, -HUGE]),
    "unknown zone": (pa.timestamp("us", tz="Mars/Olympus_Mons"), [0, 1, None]),
}


@pytest.mark.parametrize("kind", ODD_TIMES)
@pytest.mark.parametrize("use", ["ignore_columns", "keep_columns", None])
def test_a_time_that_python_cannot_hold_costs_no_row_but_its_own(kind: str, use: str | None, tmp_path: Path) -> None:
    form, numbers = ODD_TIMES[kind]
    integers = pa.int32() if kind == "date" else pa.int64()
    prompts = [f"question {number}" for number in range(3)]
    times = pa.array(numbers, integers).cast(form) if kind != "date64" else pa.array(numbers, integers).view(form)
    table = pa.table({"prompt": prompts, "completion": [COMPLETION] * 3, "at": times})
    project = CleanProject(tmp_path, max_rejected_share=1, mask_personal_data=[], **({use: ["at"]} if use else {}))
    pq.write_table(table, project.raw / "rows.parquet")
    written = pq.read_table(project.raw / "rows.parquet")
    if use is None:
        with pytest.raises(UserError, match="3 of 3 raw rows rejected"):
            project.clean()
        for number, row in enumerate(project.rejected()):
            assert row["reason"] == "unknown_column"
            raw = base64.b64decode(row.get("raw_base64") or row["raw"].encode())
            if raw[:1] != b"{":
                with pa.ipc.open_stream(io.BytesIO(raw)) as stream:
                    assert stream.read_all().column("at").equals(written.slice(number, 1).column("at"))
        return
    project.clean()
    assert [record.prompt for record in project.kept()] == prompts
    if use == "keep_columns" and kind != "unknown zone":
        integer = written.column("at")[1].value
        assert project.kept()[1].fields["at"].startswith(f"{integer} ")


def test_numbered_classes_have_the_names_that_the_data_set_gives_them(tmp_path: Path) -> None:
    features = datasets.Features(
        prompt=datasets.Value("string"),
        completion=datasets.Value("string"),
        label=datasets.ClassLabel(names=["refund", "tracking"]),
    )
    rows = {"prompt": ["first", "second", "third"], "completion": [COMPLETION] * 3, "label": [1, 0, -1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    project = CleanProject(tmp_path)
    datasets.disable_progress_bars()
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(project.raw)
    data.to_parquet(project.raw / "rows.parquet")
    project.clean()
    labels: dict[str, list[str | None]] = {}
    for record in project.kept():
        labels.setdefault(record.source, []).append(record.label)
    assert labels == {"train": ["tracking", "refund", None], "test": ["refund"], "rows.parquet": labels["train"]}


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.zst", "rows.jsonl.zst", "rows.parquet", "rows.parquet.gz"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "emptied"])
def test_a_damaged_file_is_told_and_never_half_read(name: str, damage: str, tmp_path: Path) -> None:
    rows = [{**row, "prompt": row["prompt"] + str(number) * 50} for number, row in enumerate(PAIRS * 50)]
    content = {"jsonl": jsonl, "csv": separated, "parquet": parquet}[name.split(".")[1]](rows)
    if (name, damage) == ("rows.parquet", "garbage"):
        pytest.skip("a Parquet file's first bytes say nothing")
    pack: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd.compress}
    packed = pack.get(name.split(".")[-1], bytes)(content)
    damaged = {"cut": packed[:-9], "garbage": b"\x00\x01" + packed[2:], "emptied": b""}
    (tmp_path / name).write_bytes(damaged[damage])
    (file,) = find_files(tmp_path / name, {})
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        list(read_rows(file, 10**6))
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        count_rows(file, 10**6)


HEAD = st.sampled_from([b"", b"a,b\n", b"caf\xe9,b\n", b'"a\nb",c\n', b"{}\n"])


@given(
    content=st.builds(bytes.__add__, HEAD, st.binary(max_size=200)), name=st.sampled_from(FILES), packed=st.booleans()
)
def test_no_bytes_end_in_anything_but_rows_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, packed: bool
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}
    path = folder / name
    path.write_bytes(pack.get(path.suffix, bytes)(content) if packed else content)
    if path.suffix == ".arrow":
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    rows, rejected = 0, io.StringIO()
    try:
        (file,) = find_files(folder, {})
        for row in read_rows(file, 50):
            rows += 1
            values = row.values if isinstance(row.values, Rejected) else Rejected("fine", "".join(row.values))
            write_rejected(rejected, "source", row, values)
    except UserError:
        return
    assert count_rows(file, 50) == rows == rejected.getvalue().encode().count(b"\n")


def test_compressed_text_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(jsonl(PAIRS).decode().encode("utf-16")))
    with pytest.raises(UserError, match="is UTF-16 or UTF-32"):
        list(read_rows(find_files(tmp_path, {})[0], 10**6))


def test_files_come_in_the_order_of_their_names_and_folders_are_searched(tmp_path: Path) -> None:
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "a.csv.gz", "README.md", ".gitignore", "a.csv.dvc", "more/c.parquet", "more/deep/d.tsv"):
        (tmp_path / name).touch()
    expected = ["a.csv.gz", "b.jsonl", "more/c.parquet", "more/deep/d.tsv"]
    found = find_files(tmp_path, {})
    assert [file.file for file in found] == [file.source for file in found] == expected
    assert {file.shape for file in found} == {"auto"}
    alone = find_files(tmp_path / "b.jsonl", {})
    assert alone == [RawFile(tmp_path / "b.jsonl", "b.jsonl", "jsonl", "b.jsonl", "auto")]


def test_a_source_has_the_files_that_its_pattern_fits_and_its_shape(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("shards/1.parquet", "shards/2.parquet", "b.jsonl"):
        (tmp_path / name).touch()
    sources = {"mail": Source(files="shards/*", shape="alpaca")}
    found = [(file.file, file.source, file.shape) for file in find_files(tmp_path, sources)]
    assert found == [
        ("b.jsonl", "b.jsonl", "auto"),
        ("shards/1.parquet", "mail", "alpaca"),
        ("shards/2.parquet", "mail", "alpaca"),
    ]
    with pytest.raises(UserError, match=r"b\.jsonl fits clean\.sources\.x and clean\.sources\.y"):
        find_files(tmp_path, {name: Source(files="b*", shape="auto") for name in ("x", "y")})


def test_a_source_without_a_file_is_an_error(tmp_path: Path) -> None:
    project = CleanProject(tmp_path, sources={"mail": {"files": "mial.jsonl", "shape": "auto"}})
    project.write(jsonl(PAIRS), "mail.jsonl")
    assert "clean.sources.mail: no file fits 'mial.jsonl'" in project.command().stderr


@pytest.mark.parametrize("name", ["rows.json", "rows.xlsx", "rows.jsonl.bz2", "rows", "state.json"])
def test_a_file_that_would_stay_unread_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "more" / "b.jsonl").touch()
    (tmp_path / ("more" if name != "state.json" else "") / name).write_text("{}")
    with pytest.raises(UserError, match=r"cannot read|is no whole saved data set") as caught:
        find_files(tmp_path, {})
    assert name in str(caught.value)


def test_what_lies_beside_the_files_of_a_saved_data_set_is_read_or_named(tmp_path: Path) -> None:
    """As what `tunetrail append` writes below a `clean.raw` that is such a folder itself."""
    datasets.disable_progress_bars()
    for folder in (tmp_path, tmp_path / "more"):
        datasets.Dataset.from_list(PAIRS).save_to_disk(folder)
    (tmp_path / "inbox.jsonl").touch()
    assert {file.path for file in find_files(tmp_path, {})} == {tmp_path / name for name in ("", "inbox.jsonl", "more")}
    (tmp_path / "more" / "rows.xlsx").touch()
    with pytest.raises(UserError, match=r"cannot read rows\.xlsx"):
        find_files(tmp_path, {})


def test_a_saved_data_set_that_lacks_a_file_is_an_error(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(PAIRS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match=r"saved has a state.json, but is no whole .*data-00000-of-00001\.arrow"):
        find_files(tmp_path, {})


def test_what_dvc_would_not_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other, raw = Path("other"), Path("data/raw")
    other.mkdir()
    (other / "b.jsonl").write_bytes(jsonl(PAIRS))
    makers: dict[str, Callable[[Path], None]] = {
        "is a link to a folder": lambda path: path.symlink_to(other.resolve()),
        "leads to no file": lambda path: path.symlink_to("nowhere"),
        r"leads to no file \(a broken link, a loop": lambda path: path.symlink_to(path.name),
        "leads to no file .* or a device": os.mkfifo,
        "is not UTF-8": lambda path: Path(os.fsdecode(os.fsencode(path) + b"\xff.jsonl")).touch(),
        "folder is empty": lambda path: path.mkdir(),
    }
    for number, (problem, make) in enumerate(makers.items()):
        folder = raw / str(number)
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_bytes(jsonl(PAIRS))
        make(folder / "rows.jsonl")
        with pytest.raises(UserError, match=problem):
            list_raw(folder)
        for alone in folder.glob("rows*") if number not in (0, 5) else ():  # as `tunetrail data check FILE` is given it
            with pytest.raises(UserError, match="is missing" if alone.is_symlink() else problem):
                list_raw(alone)
    Path(".dvcignore").write_text("*.partial\nb.*\n")
    (raw / "0" / "rows.jsonl").unlink()
    (raw / "0" / "c.jsonl.partial").touch()
    assert list_raw(raw / "0").metrics() == {"read": 1, "passed_over": 0, "bytes": len(jsonl(PAIRS))}
    (raw / "0" / "b.jsonl").touch()
    with pytest.raises(UserError, match=r"b\.jsonl: \.dvcignore names it, so no hash would cover it"):
        list_raw(raw / "0")


LEFT = [".DS_Store", "._a.jsonl", "a.jsonl~", ".a.jsonl.swp", "#a.jsonl#", "Thumbs.db", "desktop.ini", "a.csv.bak"]
LEFT += ["~$a.csv", ".~lock.a.csv#", ".ipynb_checkpoints/a-checkpoint.jsonl", "__MACOSX/a.jsonl", ".cache/a.csv"]


def test_what_programs_leave_behind_is_no_data_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = CleanProject(tmp_path)
    project.write(jsonl(PAIRS))
    project.write(b"about", "README.md")
    for name in LEFT:
        (project.raw / name).parent.mkdir(exist_ok=True)
        project.write(jsonl(PAIRS), name)
    project.clean()
    said = capsys.readouterr().err
    assert [name for name in [*LEFT, "raw.jsonl", "README.md"] if f"data/raw/{name}" in said] == LEFT
    size = len(jsonl(PAIRS)) * (len(LEFT) + 1) + len(b"about")
    assert project.metrics()["files"] == {"read": 1, "passed_over": len(LEFT) + 1, "bytes": size}
    assert project.metrics()["rows"]["in"] == len(PAIRS)


def test_files_and_bytes_are_counted_as_dvc_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo
    from dvc_data.hashfile.build import build

    monkeypatch.chdir(tmp_path)
    raw = Path("data/raw")
    for name in ("a.jsonl", "more/b.csv", "more/.git/HEAD", ".DS_Store", "README.md", "c.jsonl.partial", "x/d.csv.dvc"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_text(name)
    (raw / "link.jsonl").symlink_to("a.jsonl")
    Repo.init(no_scm=True)
    Path(".dvcignore").write_text("*.partial\n")
    with Repo() as repo:
        cache = repo.cache.local
        _, meta, _ = build(cache, str(raw.resolve()), cache.fs, "md5", dry_run=True, ignore=repo.dvcignore)
    listing = list_raw(raw)
    assert (meta.nfiles, meta.size) == (len(listing.data) + len(listing.passed_over), listing.size)
