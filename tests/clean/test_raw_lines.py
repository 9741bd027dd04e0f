"""Raw files and their lines."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.clean import lines
from stages.clean.lines import count_lines, raw_files, read_lines
from stages.errors import UserError

CONTENT = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"a", b"\xff", b"\x00", b"\x0b", b"\xe2\x80\xa8", b"0123456789"])
).map(b"".join)


@given(content=CONTENT, max_bytes=st.integers(min_value=1, max_value=12), chunk=st.sampled_from([3, 6, 3 << 18]))
def test_lines_are_what_splitting_at_line_feeds_gives(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, max_bytes: int, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "raw.jsonl"
    path.write_bytes(content)
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_CHUNK", chunk)
        found = list(read_lines(path, max_bytes))
        assert [line.number for line in found] == list(range(1, len(expected) + 1))
        assert [b"".join(line.chunks()) for line in found] == expected
        for line, text in zip(found, expected, strict=True):
            assert line.content == (text if len(text) <= max_bytes else None)
            assert line.size == len(text)
        assert count_lines(path) == len(expected)


def test_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "README.md", ".gitignore", "a.jsonl.dvc"):
        (tmp_path / name).touch()
    assert [path.name for path in raw_files(tmp_path)] == ["a.jsonl", "b.jsonl"]
    assert raw_files(tmp_path / "b.jsonl") == [tmp_path / "b.jsonl"]


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", ".DS_Store", "rows.jsonl.gz"])
def test_a_file_that_would_stay_unread_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"only files that end in \.jsonl are data") as caught:
        raw_files(tmp_path)
    assert name in str(caught.value)


def test_a_folder_in_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot read more\.jsonl"):
        raw_files(tmp_path)
