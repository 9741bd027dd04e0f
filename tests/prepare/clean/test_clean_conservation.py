"""Nothing disappears: every raw line is a record, or can be read back byte for byte."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from clean_project import GOOD, ROOT, CleanProject, raw_bytes, row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError

PIECES = st.sampled_from(
    [GOOD, row("<b>x</b> a@example.com"), b"\n", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff", b"\x00", b"{}", b"{"]
)
CONTENT = st.lists(PIECES | st.binary(max_size=20)).map(b"".join)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> CleanProject:
    return CleanProject(tmp_path_factory.mktemp("conserve"), max_rejected_share=1, max_line_bytes=120)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(contents=st.lists(CONTENT, min_size=1, max_size=2))
def test_every_line_is_kept_or_can_be_read_back(project: CleanProject, contents: list[bytes]) -> None:
    expected = {}
    for old in project.raw.iterdir():
        old.unlink()
    for index, content in enumerate(contents):
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            content = b"x" + content  # UTF-16 is refused as a whole
        project.write(content, f"{index}.jsonl")
        lines = content.split(b"\n")
        lines = lines[:-1] if lines[-1] == b"" else lines
        expected.update({(f"{index}.jsonl", number): line for number, line in enumerate(lines, start=1)})

    (project.folder / "data" / "clean.jsonl").unlink(missing_ok=True)
    with contextlib.suppress(UserError):  # nothing kept; the rejected rows are there all the same
        project.clean()
    kept = project.kept() if (project.folder / "data" / "clean.jsonl").exists() else []
    rejected = {(row["file"], row["line"]): raw_bytes(row, project.raw) for row in project.rejected()}
    origins = [(file, int(number)) for file, _, number in (record.origin.partition(":") for record in kept)]

    assert len(set(origins)) == len(origins)
    assert sorted([*origins, *rejected]) == sorted(expected)
    assert all(rejected[place] == expected[place] for place in rejected)
    for record, place in zip(kept, origins, strict=True):
        line = json.loads(expected[place].decode("utf-8-sig"))
        assert record.completion == line["completion"]
    if kept:
        assert project.metrics()["rows"] == {"in": len(expected), "kept": len(kept), "rejected": len(rejected)}
        assert sum(project.metrics()["rejected"].values()) == len(rejected)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    outputs = []
    for name in ("one", "two"):
        project = CleanProject.of_the_sample(tmp_path / name)
        project.clean()
        files = ("data/clean.jsonl", "data/rejected/clean.jsonl", "metrics/clean.json")
        outputs.append([(project.folder / file).read_bytes() for file in files])
    assert outputs[0] == outputs[1]


SHAPED = [
    GOOD,
    b'{"instruction": "Where is it?", "output": "{}"}',
    b'{"conversations": [{"from": "human", "value": "Good morning"}, {"from": "gpt", "value": "{}"}]}',
    b'{"messages": [{"role": "user", "content": "<b>Hello</b> there"}, {"role": "assistant", "content": "{}"}]}',
    b'{"messages": [{"role": "user", "content": "Hello"}]}',
    b'{"prompt": "Which one?", "completion": "{}", "colour": "red"}',
    b"{",
]


@settings(max_examples=10)
@given(order=st.permutations(SHAPED))
def test_the_order_of_the_rows_changes_nothing_that_is_kept_or_counted(
    tmp_path_factory: pytest.TempPathFactory, order: list[bytes]
) -> None:
    found = []
    for number, lines in enumerate((SHAPED, order)):
        project = CleanProject(tmp_path_factory.mktemp("order") / str(number), max_rejected_share=1)
        project.write(b"\n".join(lines))
        project.clean()
        records = {(record.id, record.prompt, record.completion, record.context) for record in project.kept()}
        rejected = {(row["reason"], row["detail"], raw_bytes(row)) for row in project.rejected()}
        found.append((records, rejected, project.metrics()))
    assert found[0] == found[1]
    assert (len(found[0][0]), len(found[0][1])) == (4, 3)


def test_a_lost_row_stops_the_stage_also_without_assertions(tmp_path: Path) -> None:
    """`python -O` removes every `assert`; here a reader loses the last row of each file."""
    project = CleanProject(tmp_path)
    project.write(b"\n".join([GOOD, row("Hello there"), row("And another")]))
    losing = (
        "from stages.prepare.clean import __main__ as stage, shards; read = shards.read_unparsed;"
        "shards.read_unparsed = lambda *given: iter(list(read(*given))[:-1]); stage.run(stage.main)"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", losing],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: 3 raw rows, but 2 kept and 0 rejected; a raw file changed, run again" in done.stderr
    assert not (project.folder / "data" / "clean.jsonl").exists()
