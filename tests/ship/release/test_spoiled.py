"""No command says yes to what is not so: a few of the ways of spoiled.py; the drill tries them all."""

from pathlib import Path

from scratch import Scratch
from spoiled import WAYS, drill

pytest_plugins = ["scratch_fixtures"]


def test_spoiled_releases_get_no_yes(scratch: Scratch, tmp_path: Path) -> None:
    assert scratch.tunetrail("release", "1.0.0").code == 0  # an untouched one gets its yes
    assert drill(scratch, tmp_path / "drill", seed=1, ways=WAYS[::9]) == []
