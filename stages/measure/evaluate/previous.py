"""The answers of an earlier release, brought by DVC, so that the same rows can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.dvc_lock import parse_lock
from stages.core.errors import UserError
from stages.core.files import file_digest
from stages.core.git import LOCK, CommitTree, Repository
from stages.params import Scoring
from stages.records.contract import Tasks
from stages.records.record import read_rows
from stages.scoring import RowScore, score_row
from stages.scoring.comparison import compare
from stages.scoring.summary import summarise


@dataclass(frozen=True)
class Previous:
    """A release's tag, its commit, and what its tuned model said to each row of its hold-out."""

    release: str
    commit: str
    rows: list[dict[str, Any]]


def fetch_previous(root: Path, release: str) -> Previous:
    """The release's generations, named by the dvc.lock of its tag, from the DVC cache or else the remote.

    What stands under a tag does not change, so that the tag as a parameter is all that a stage depends on.

    Raises:
        UserError: when there is no such tag, its dvc.lock names no generations, or they cannot be fetched.
    """
    repository = Repository(root)
    commit = repository.tag_commit(release)
    if commit is None:
        raise UserError(
            f"evaluate.previous: there is no tag {release}; `git fetch --tags` brings those of the remote, "
            "`git tag` lists them, null compares with no release"
        )
    text = CommitTree(repository, commit).read(LOCK)
    try:
        outs = {out.path: out.md5 for _, out in parse_lock(text or b"").outs()}
    except ValueError as error:
        raise UserError(f"evaluate.previous: {LOCK} at tag {release} is unreadable ({error})") from None
    md5 = outs.get(paths.ADAPTER_GENERATIONS.as_posix())
    if md5 is None:
        raise UserError(f"evaluate.previous: {LOCK} at tag {release} names no {paths.ADAPTER_GENERATIONS}")
    return Previous(release, commit, list(read_rows(_fetch(root, md5, release))))


def compare_previous(previous: Previous, scores: Sequence[RowScore], tasks: Tasks, scoring: Scoring) -> dict[str, Any]:
    """{previous, against_previous} of the rows that both answered, paired by id and scored by today's rules.

    Raises:
        UserError: when there is no such row.
    """
    now, then = ({one.id: one for one in some} for some in (scores, [score_row(row, tasks) for row in previous.rows]))
    both = sorted(now.keys() & then.keys())
    if not both:
        raise UserError(
            f"evaluate.previous: {previous.release} answered none of the present hold-out rows, so that nothing can be "
            "compared; set it to null, or lock the hold-out of that release again"
        )
    before, after = [then[key] for key in both], [now[key] for key in both]
    counts = {"both": len(both), "only_now": len(now) - len(both), "only_then": len(then) - len(both)}
    return {
        "previous": {
            "release": previous.release,
            "commit": previous.commit,
            "rows": counts,
            "scores": summarise(before, scoring),
        },
        "against_previous": compare(before, after, scoring),
    }


def _fetch(root: Path, md5: str, release: str) -> Path:
    """The file in DVC's cache, brought there from the default remote where it was not yet."""
    from dvc.exceptions import DvcException  # late: it takes a second to import
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

    missing = f"evaluate.previous: {paths.ADAPTER_GENERATIONS} of {release} (MD5 {md5}) is not in DVC's cache"
    with Repo(str(root)) as repo:
        cache = repo.cache.local
        path = Path(cache.oid_to_path(md5))
        if not path.is_file():
            try:
                repo.cloud.pull([HashInfo("md5", md5)])
            except (DvcException, OSError) as error:
                raise UserError(f"{missing}, and cannot be fetched: {' '.join(str(error).split())}") from None
    if not path.is_file():
        raise UserError(f"{missing} nor in its remote; run `dvc push` where that release was made")
    if file_digest(path, "md5") != md5:
        raise UserError(f"{path} in DVC's cache is damaged; delete it and run again")
    return path
