import time
from collections.abc import Iterator

import pytest

from stages.core.run_notes import track


def test_what_was_there_at_once_is_forgotten_in_the_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)

    def items() -> Iterator[int]:
        nonlocal clock
        for number in range(100):
            clock += 10 if number >= 90 else 0  # ninety of a run that was killed, then ten seconds each
            yield number

    assert list(track(items(), 100, "tiles")) == list(range(100))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tiles: ")]
    assert lines[1:] == [f"tiles: {done} of 100, about {10 * (100 - done)} s left" for done in (93, 95, 97, 99)]
