"""The answers of an earlier release, brought by DVC, so that the same rows can be compared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from stages.core import paths
from stages.core.dvc_lock import cache_folder, md5, object_path, parse_lock
from stages.core.errors import UserError
from stages.core.git import LOCK, CommitTree, Repository
from stages.params.measure import Scoring
from stages.scoring.metrics import Comparison, Scores
from stages.scoring.own_metric import ScoreRows
from stages.scoring.rows import RowScore
from stages.scoring.summary import compare, summarise


@dataclass(frozen=True)
class Previous:
    """A release's tag, its commit, and what its tuned model said to each row of its hold-out."""

    release: str
    commit: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PairedRows:
    both: Annotated[int, "rows that both releases answered"]
    only_now: Annotated[int, "rows of the present hold-out alone"]
    only_then: Annotated[int, "rows of the earlier hold-out alone"]


@dataclass(frozen=True, slots=True)
class PreviousScores:
    release: Annotated[str, "the tag compared with"]
    commit: Annotated[str, "its commit"]
    rows: Annotated[PairedRows, "rows"]
    scores: Annotated[Scores, "of the earlier release, on the rows of both"]


def fetch_previous(root: Path, release: str) -> Previous:
    """The release's generations, named by the dvc.lock of its tag, from the DVC cache or else the default remote.

    What stands under a tag does not change, so that the tag as a parameter is all that a stage depends on. Raises
    UserError when there is no such tag, its dvc.lock names no generations, or they cannot be fetched.
    """
    import dvc.api  # late: it takes a second to import
    from dvc.exceptions import DvcException

    repository, file = Repository(root), paths.ADAPTER_GENERATIONS.as_posix()
    commit = repository.tag_commit(release)
    if commit is None:
        raise UserError(
            f"evaluate.previous: there is no tag {release}; `git fetch --tags` brings those of the remote, "
            "`git tag` lists them, null compares with no release"
        )
    try:
        content = dvc.api.read(file, repo=str(root), rev=commit, mode="rb")
        lock = parse_lock(CommitTree(repository, commit).read(LOCK) or b"")
    except (DvcException, OSError, ValueError) as error:
        raise UserError(
            f"evaluate.previous: {file} of {release} cannot be had ({' '.join(str(error).split())}); "
            "run `dvc push` where that release was made, and `dvc fetch --all-tags` here"
        ) from None
    recorded = next((out.md5 for _, out in lock.outs() if out.path == file), None)
    if md5(content) != recorded:
        damaged = object_path(cache_folder(root), recorded or "")
        raise UserError(f"evaluate.previous: {file} of {release} is damaged; delete {damaged} and run again")
    return Previous(release, commit, [json.loads(line) for line in content.splitlines()])


def compare_previous(
    previous: Previous, scores: Sequence[RowScore], score_rows: ScoreRows, scoring: Scoring
) -> tuple[PreviousScores, Comparison]:
    """The rows that both answered, paired by id and scored by today's rules.

    Raises UserError when there is no such row.
    """
    now, then = ({one.id: one for one in some} for some in (scores, score_rows(previous.rows)))
    both = sorted(now.keys() & then.keys())
    if not both:
        raise UserError(
            f"evaluate.previous: {previous.release} answered none of the present hold-out rows, so that nothing can be "
            "compared; set it to null, or lock the hold-out of that release again"
        )
    before, after = [then[key] for key in both], [now[key] for key in both]
    counts = PairedRows(len(both), len(now) - len(both), len(then) - len(both))
    scored = PreviousScores(previous.release, previous.commit, counts, summarise(before, scoring))
    return scored, compare(before, after, scoring)
