"""`python -m stages.prepare.clean` as users meet it: exit codes, sentences, time and memory."""

import subprocess
import sys
from pathlib import Path

import pytest
from clean_project import GOOD, ROOT, CleanProject, raw_bytes, row

from stages.core import paths
from stages.prepare.clean.counts import Tally

TRAINING = {"torch", "transformers", "tokenizers", "datasets"}
HEAVY = TRAINING | {"numpy", "pandas", "pyarrow", "ftfy", "phonenumbers", "stdnum", "lingua"}


def refused(project: CleanProject) -> str:
    """The message of a run that must end with exit code 2 and without a traceback."""
    done = project.command()
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (project.folder / paths.CLEAN).exists()
    assert not (project.folder / paths.CLEAN_METRICS).exists()
    return done.stderr


def test_a_good_file_ends_well_and_quietly(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    project.write(b"\xef\xbb\xbf" + GOOD + b"\r\n" + row("Hello there"))
    done = project.command()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [record.origin for record in project.kept()] == ["raw.jsonl:1", "raw.jsonl:2"]
    assert project.rejected() == []


def test_no_folder(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    project.raw.rmdir()
    assert "data/raw is missing; put the raw files there or correct clean.raw" in refused(project)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "data/raw has no data; put files in .jsonl, .csv" in refused(CleanProject(tmp_path))


def test_an_empty_file(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    project.write(b"")
    assert "the raw files hold no rows" in refused(project)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    project.write(GOOD)
    project.write(b"[]", "rows.json")
    message = refused(project)
    assert "cannot read rows.json: data are files in .jsonl, .csv, .tsv or .parquet" in message
    assert "jq -c '.[]' FILE.json > FILE.jsonl" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_another_encoding(tmp_path: Path, encoding: str) -> None:
    project = CleanProject(tmp_path)
    bom = b"\xfe\xff" if encoding == "utf-16-be" else b""
    project.write(bom + GOOD.decode().encode(encoding))
    message = refused(project)
    assert "raw.jsonl is UTF-16 or UTF-32" in message
    assert "iconv" in message


def test_a_missing_schema(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    project.write(GOOD)
    (project.folder / "data" / "schema.json").unlink()
    assert "data/schema.json is missing; task.schema_file must name" in refused(project)


def test_a_bad_parameter(tmp_path: Path) -> None:
    project = CleanProject(tmp_path, max_line_byte=5)
    assert "clean.max_line_byte: unknown key; did you mean clean.max_line_bytes?" in refused(project)


def test_too_many_rejected_rows_are_told_in_a_table_and_can_be_looked_at(tmp_path: Path) -> None:
    project = CleanProject(tmp_path, max_rejected_share=0.5)
    project.write(b"\n".join([GOOD, row(priority=1), row(priority=2), b"{"]))
    message = refused(project)
    assert "3 of 4 raw rows rejected (75.0%); 50.0% are allowed (clean.max_rejected_share)" in message
    table = [line.split(maxsplit=3) for line in message.splitlines()[1:5]]
    assert table[0] == ["reason", "rows", "first", "at"]
    assert table[1][:3] == ["unknown_column", "2", "raw.jsonl:2:"]
    assert "'priority'" in table[1][3]
    assert table[2][0] == "raw.jsonl:3:"
    assert table[3][:3] == ["not_json", "1", "raw.jsonl:4:"]
    assert "data/rejected/clean.jsonl has them all" in message
    assert [row["line"] for row in project.rejected()] == [2, 3, 4]


def test_as_many_as_allowed_are_fine(tmp_path: Path) -> None:
    project = CleanProject(tmp_path, max_rejected_share=0.75)
    project.write(b"\n".join([GOOD, b"1", b"2", b"{"]))
    assert project.command().returncode == 0


def test_the_share_that_is_allowed_is_the_one_that_is_written() -> None:
    """In floats 0.29 * 100 is less than 29."""
    for rejected in range(100):
        tally = Tally()
        counts = [("kept", "", 100 - rejected), ("rejected", "x", rejected)]
        tally.add({"source": "s", "counts": counts, "left_out": {}, "raw": [], "doubts": [], "examples": []})
        tally.check(100, float(f"0.{rejected:02}"), "")


def test_nothing_left_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    project = CleanProject(tmp_path, max_rejected_share=1)
    project.write(b"1\n2\n")
    assert "2 of 2 raw rows rejected" in refused(project)


def test_a_refused_run_leaves_the_clean_rows_of_the_last_one(tmp_path: Path) -> None:
    project = CleanProject(tmp_path)
    project.write(GOOD)
    assert project.command().returncode == 0
    before = (tmp_path / paths.CLEAN).read_bytes()
    project.write(b"{")
    assert project.command().returncode == 2
    assert (tmp_path / paths.CLEAN).read_bytes() == before


def test_a_line_of_fifty_megabytes_is_kept_without_being_held(tmp_path: Path) -> None:
    """Peak memory is that of a small file, give or take a few pieces; the line can be read back."""
    peaks = {}
    for size in (10, 50_000_000):
        project = CleanProject(tmp_path / str(size))
        long_line = b'{"prompt": "' + b"\xffy" * (size // 2)
        project.write(GOOD + b"\n" + long_line + b"\n" + (GOOD + b"\n") * 8)
        peaks[size] = _peak_memory(project)
        (rejected,) = project.rejected()
        assert rejected["line"] == 2
        assert raw_bytes(rejected, project.raw) == long_line
        assert len(project.kept()) == 9
    assert rejected["reason"] == "line_too_long"
    assert (rejected["offset"], rejected["length"]) == (len(GOOD) + 1, len(long_line))
    assert (project.folder / paths.REJECTED_CLEAN).stat().st_size < 1000
    assert peaks[50_000_000] - peaks[10] < 16_000


def test_starting_loads_no_library_that_it_may_not_need() -> None:
    code = "import sys, stages.prepare.clean.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert HEAVY & set(loaded.split()) == set()


def _peak_memory(project: CleanProject) -> int:
    """Run the stage; its peak resident memory in kB."""
    code = (
        "import re; from pathlib import Path; from stages.prepare.clean.__main__ import main; main();"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)
