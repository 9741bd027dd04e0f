"""Lines of bytes: what splitting at line feeds gives, with bounded memory."""

import hashlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.prepare.clean import text_files
from stages.prepare.clean.shards import _in_one_piece
from stages.prepare.clean.text_files import Lines, count_lines, read_lines

CONTENT = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"a", b"\xff", b"\x00", b"\x0b", b"\xe2\x80\xa8", b"0123456789"])
).map(b"".join)


@given(content=CONTENT, max_bytes=st.integers(min_value=1, max_value=12), chunk=st.sampled_from([1, 3, 1 << 19]))
def test_lines_are_what_splitting_at_line_feeds_gives(content: bytes, max_bytes: int, chunk: int) -> None:
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_CHUNK", chunk)
        numbers = 0
        for line, text in zip(read_lines(BytesIO(content), max_bytes), expected, strict=True):
            numbers += 1
            assert (line.number, line.size) == (numbers, len(text))
            assert content[line.offset : line.offset + line.size] == text
            assert line.content == (text if len(text) <= max_bytes else text[: max_bytes + 1])
            assert line.sha256 == (hashlib.sha256(text).hexdigest() if len(text) > max_bytes else None)
        assert count_lines(BytesIO(content)) == len(expected) == numbers


@given(content=CONTENT, max_bytes=st.integers(min_value=1, max_value=12), start=st.integers(0, 3))
def test_lines_in_one_piece_are_the_same_lines(content: bytes, max_bytes: int, start: int) -> None:
    lines = list(read_lines(BytesIO(content), max_bytes))[start:]
    if lines:
        sent = _in_one_piece([*lines])
        assert [one for piece in sent for one in (piece if isinstance(piece, Lines) else [piece])] == lines
        assert (len(sent) == 1) == (len(lines) == 1 or all(line.sha256 is None for line in lines))
