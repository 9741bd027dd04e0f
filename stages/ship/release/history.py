"""history: which release was live in which stage, from when to when, and what it was worth."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.git import Repository, WorkingTree
from stages.ship.release.finding import record_fault
from stages.ship.release.registry import Live, Registry, artifact_name, parse_stage


def history(root: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """A row for each time that a stage had a release, by stage and time; without `stage` also for releases never live.

    Returns:
        {"stage", "from", "until", "assigned_by", "reason"} (None for a release that was never live; "until" also for
        what is live now; times in ISO 8601, UTC), {"version", "commit", "released", "released_by", "verdict",
        "accepted_marginal", "manifest_sha256"}, "scores" of the adapter as metrics/details.json has them, and "fault":
        why the tag is not to be believed, or None.

    Raises:
        UserError: for a stage that never had a release.
    """
    repository = Repository(root)
    registry = Registry(repository, artifact_name(WorkingTree(root)))
    if stage is not None and parse_stage(stage) not in registry.stages:
        known = ", ".join(registry.stages) or "none; `tunetrail release VERSION --stage STAGE` assigns one"
        raise UserError(f"stage {stage} never had a release of {registry.artifact}; the stages are: {known}")
    lives = [one for name in ([stage] if stage else registry.stages) for one in registry.intervals(name)]
    commits = dict.fromkeys(one.commit for one in lives)
    if stage is None:
        commits |= dict.fromkeys(registry.versions)
    releases = {commit: _release(registry, commit) for commit in commits}
    for commit, scores in zip(commits, _scores(repository, list(commits)), strict=True):
        releases[commit]["scores"] = scores
    never = [commit for commit in commits if all(one.commit != commit for one in lives)]
    nothing = dict.fromkeys(("stage", "from", "until", "assigned_by", "reason"))
    return [*({**_live(one), **releases[one.commit]} for one in lives), *({**nothing, **releases[c]} for c in never)]


def _live(one: Live) -> dict[str, Any]:
    return {
        "stage": one.stage,
        "from": _time(one.since.time),
        "until": _time(one.until.time) if one.until else None,
        "assigned_by": one.since.who,
        "reason": one.since.record.get("reason"),
    }


def _release(registry: Registry, commit: str) -> dict[str, Any]:
    tag = registry.versions.get(commit)
    record = tag.record if tag else {}
    return {
        "version": tag.version if tag else None,
        "commit": commit,
        "released": _time(tag.time) if tag else None,
        "released_by": tag.who if tag else None,
        **{key: record.get(key) for key in ("verdict", "accepted_marginal", "manifest_sha256")},
        "fault": record_fault(registry.repository, tag.name, commit) if tag else "no version has this commit",
    }


def _scores(repository: Repository, commits: list[str]) -> list[dict[str, Any]]:
    """The adapter's scores of each commit, empty where git has none."""
    ids = repository.object_ids(f"{commit}:./{paths.DETAILS.as_posix()}" for commit in commits)
    texts = repository.blobs(i for i in ids if i)
    found: list[dict[str, Any]] = []
    for object_id in ids:
        try:
            found.append(json.loads(texts.get(object_id or "", b"{}"))["evaluate"]["adapter"])
        except (ValueError, KeyError, TypeError):
            found.append({})
    return found


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
