"""Fixtures around the scratch repository; a test module asks for them by `pytest_plugins = ["scratch_fixtures"]`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scratch import ENVIRONMENT, Scratch, make_scratch


@pytest.fixture(scope="session")
def quiet_git() -> Iterator[None]:
    """Git with a name of its own and without the configuration of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def scratch_template(tmp_path_factory: pytest.TempPathFactory, quiet_git: None) -> Scratch:
    return make_scratch(tmp_path_factory.mktemp("scratch") / "repository")


@pytest.fixture
def scratch(scratch_template: Scratch, tmp_path: Path) -> Scratch:
    """A copy of the repository that the test may change."""
    return scratch_template.copy(tmp_path / "repository")
