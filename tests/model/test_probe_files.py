"""The files of probes are the user's: what is wrong with them is said with the key of params.yaml, before any model."""

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.model.questions import read_probes
from stages.params.measure import Probes

GENERAL = '{"prompt": "Where is Rome?", "completion": "In Italy."}'


def read(folder: Path, content: bytes | None = None, name: str = "general.jsonl") -> int:
    refusals = folder / "refusals.jsonl"
    refusals.write_text('{"prompt": "Do harm."}\n')
    if content is not None:
        (folder / name).write_bytes(content)
    general, declined = read_probes(Probes(general_file=str(folder / name), refusal_file=str(refusals)))
    assert [one.prompt for one in declined] == ["Do harm."]
    return len(general)


@pytest.mark.parametrize("name", ["missing.jsonl", "missing/general.jsonl", "refusals.jsonl/x", "n" * 200 + "/x"])
def test_a_file_that_cannot_be_read_is_named_with_its_key(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"probes.general_file: .* cannot be read .*must name a JSONL file") as caught:
        read(tmp_path, None, name)
    assert "dvc repro" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["", "a\0b", "n" * 5000])
def test_what_is_no_file_name_is_refused_with_its_key(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"general_file\n.*(is a folder; name a file|is no path)"):
        read(tmp_path, None, name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff", "cannot be read"),
        (b"{", "line 1: not JSON"),
        (b"\n{}\n", "line 2: expected an object of texts with completion and prompt"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b'{"prompt": "a", "completion": 1}', "line 1: expected"),
        (b'{"prompt": "a", "completion": " "}', "line 1: expected"),
        (b'{"prompt": "a", "completion": "b", "prompt": "c"}', "occurs more than once"),
        (b"7", "line 1: expected"),
    ],
)
def test_a_line_that_is_no_probe_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, content)
    assert "dvc repro" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "count"),
    [("", 0), ("\n", 0), (GENERAL, 1), (f"\ufeff{GENERAL}\r\n\n{GENERAL}\n", 1)],
)
def test_what_editors_leave_in_a_file_does_no_harm(tmp_path: Path, content: str, count: int) -> None:
    assert read(tmp_path, content.encode()) == count
