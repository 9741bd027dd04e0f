"""The whole pipeline with the tiny model, made again by `tunetrail reproduce`: the same bytes, on the same machine.

No stage is forked here, as those of the pipeline were that it is held against, and no answer is remembered.
"""

from pathlib import Path

from project import run

from stages.core.git import Repository
from stages.ship.release.registry import write_tag
from stages.ship.release.reproduce import reproduce


def test_a_release_of_the_tiny_model_is_made_again(copy: Path) -> None:
    head = run(copy, "git", "rev-parse", "HEAD").stdout.strip()
    run(copy, "git", "config", "user.name", "Tester")
    run(copy, "git", "config", "user.email", "tester@example.com")
    write_tag(Repository(copy), "support-tickets@v1.0.0", head, {"format": 1, "commit": head})
    said = reproduce(copy, "1.0.0")
    assert said.startswith("PASSED: support-tickets@v1.0.0 was made again, and all ")
