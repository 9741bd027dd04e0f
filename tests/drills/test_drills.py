"""One try of every drill; `make drill` runs more, with a seed and a time limit."""

from pathlib import Path

import pytest
from drill import DRILLS, Tally, one, table
from scratch import ENVIRONMENT, Scratch
from small_project import make_small


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        return make_small(tmp_path_factory.mktemp("drill") / "template")


@pytest.mark.parametrize("kind", DRILLS)
def test_one_try_holds(kind: str, template: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    tally = Tally()
    one(kind, 1, 0, template, tally)
    if tally.skipped:
        pytest.skip(tally.skipped)
    assert tally.held == tally.tried == 1, table({kind: tally}, 1)
