"""The registry and its history: which versions are released, and which one each stage had from when to when, by GTO's
tags.

GTO names the tags and parses them. Git writes them: it makes a tag once or not at all, where GTO's own writer replaces
one that came in between, and it can sign.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gto.constants import Action, name_re, semver
from gto.tag import find, name_tag, parse_name
from scmrepo.git import Git

from stages.core import paths
from stages.core.errors import Refusal, UserError, names
from stages.core.git import Repository, WorkingTree
from stages.ship.release.dvc_files import Definition
from stages.ship.release.finding import parse_record, record_fault


@dataclass(frozen=True)
class Tag:
    """An annotated tag in one of GTO's forms: a version was registered or withdrawn, a stage assigned or taken away.

    `time` is in seconds since 1970; `record` is what Tunetrail wrote into the message, empty for tags of others.
    """

    name: str
    action: Action
    version: str | None
    stage: str | None
    counter: int
    commit: str
    time: int
    who: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Live:
    """The time that a stage had one commit: from the tag that brought it until the one that ended it, if any."""

    stage: str
    commit: str
    since: Tag
    until: Tag | None


class Registry:
    """All tags of one artifact, in GTO's order: by time; within a second by their counter."""

    def __init__(self, repository: Repository, artifact: str) -> None:
        self.repository, self.artifact = repository, artifact
        self.tags = sorted(_tags(repository, artifact), key=lambda tag: (tag.time, tag.counter))
        names = repository.git("for-each-ref", "--format=%(refname:strip=2)", "refs/tags", check=False).splitlines()
        forms = {name: parse_name(name, raise_on_fail=False) for name in names}
        self.forms = {name: form for name, form in forms.items() if form.get("name") == artifact}

    @cached_property
    def released(self) -> dict[str | None, Tag]:
        """The tag of each version, without those that were withdrawn; two clones can give one commit two."""
        last = {tag.version: tag for tag in self.tags if tag.action in (Action.REGISTER, Action.DEREGISTER)}
        return {version: tag for version, tag in last.items() if tag.action == Action.REGISTER}

    @property
    def versions(self) -> dict[str, Tag]:
        """The version of each commit that has one, of several the last that `tunetrail release` put there."""
        standing = sorted(self.released.values(), key=lambda tag: tag.record.get("commit") == tag.commit)
        return {tag.commit: tag for tag in standing}

    def doubts(self) -> Iterator[str]:
        """Why the tags that are here may tell less than was, or something else."""
        if lacks := self.repository.lacks_history():
            yield f"tags may be missing: {lacks}"
        numbers = {form["counter"] for form in self.forms.values() if "counter" in form}
        if lost := max(numbers, default=0) - len(numbers - {0}):
            said = f"{lost} of the {max(numbers)} assignments of {self.artifact} have no tag here"
            yield f"{said}, deleted or not fetched (`git fetch --tags`): what was live then is not known"
        if passed_over := self.forms.keys() - {tag.name for tag in self.tags}:
            yield f"not counted, as GTO has it: {names(sorted(passed_over))}, which are no annotated tags of commits"
        yield from filter(None, (record_fault(self.repository, tag.name, tag.commit) for tag in self.tags if tag.stage))

    def shown(self, live: Live) -> Tag | None:
        """The version that a stage had: of several that the commit has the one that was assigned."""
        tag = self.released.get(live.since.record.get("version"))
        return tag if tag and tag.commit == live.commit else self.versions.get(live.commit)

    @property
    def stages(self) -> list[str]:
        """The stages that ever had a version."""
        return list(dict.fromkeys(tag.stage for tag in self.tags if tag.stage))

    def intervals(self, stage: str) -> list[Live]:
        """What a stage had, oldest first.

        As GTO has it, the last commit that was assigned and not taken away since is live: after `gto unassign` of the
        live one, that is the one before.
        """
        found: list[Live] = []
        assigned: list[str] = []
        for tag in self.tags:
            if tag.stage != stage:
                continue
            assigned = [commit for commit in assigned if commit != tag.commit]
            assigned += [tag.commit] if tag.action == Action.ASSIGN else []
            before = found[-1] if found and found[-1].until is None else None
            if before and [before.commit] == assigned[-1:]:
                continue
            if before:
                found[-1] = Live(stage, before.commit, before.since, tag)
            if assigned:
                found.append(Live(stage, assigned[-1], tag, None))
        return found

    def live(self, stage: str) -> Live | None:
        """What a stage has now."""
        return next((one for one in self.intervals(stage) if one.until is None), None)

    def assign(self, stage: str, version: Tag, why: Mapping[str, Any], sign: bool = False) -> Tag:
        """Give a stage this version, unless it has it; return the tag that says so.

        Raises Refusal when another run was quicker, or the clock is behind the tags that are there.
        """
        now = self.live(stage)
        if now and now.commit == version.commit:
            return now.since
        if now and 0 < (wait := now.since.time + 1 - time.time()) <= 1:
            time.sleep(wait)  # of two assignments in one second GTO takes either for the last
        number = max((form.get("counter", 0) for form in self.forms.values()), default=0) + 1
        name = f"{name_tag(Action.ASSIGN, self.artifact, stage=stage, simple=True)}#{number}"
        before = self.shown(now) if now else None
        record = {"format": 1, "commit": version.commit, "version": version.version, "stage": stage}
        record |= {"before": before.version if before else None, **why}
        write_tag(self.repository, name, version.commit, record, sign)
        after = Registry(self.repository, self.artifact)
        last = after.live(stage)
        if last is None or last.commit != version.commit:
            self.repository.git("tag", "--delete", name)
            raise Refusal(
                f"stage {stage} is not assigned: this machine's clock is behind the last assignment, and the order of "
                "assignments is that of their times; set the clock and run again"
            )
        return last.since


def write_tag(repository: Repository, name: str, commit: str, record: Mapping[str, Any], sign: bool = False) -> None:
    """An annotated tag whose message is the record: JSON in ASCII, which holds nothing that a terminal would obey.

    Raises Refusal when the tag is there.
    """
    how = ["--sign" if sign else "--annotate", "--cleanup=verbatim", "--file=-"]
    try:
        repository.git("tag", *how, name, commit, stdin=(json.dumps(record, indent=2) + "\n").encode())
    except UserError:
        form = "--format=%(taggername) at %(taggerdate:iso-strict)"
        if who := repository.git("for-each-ref", form, f"refs/tags/{name}", check=False):
            raise Refusal(f"tag {name} was set meanwhile by {who!r}: that stands; see `tunetrail history`") from None
        raise


def _tags(repository: Repository, artifact: str) -> list[Tag]:
    """The tags that GTO finds: annotated ones, by time."""
    found = []
    with closing(Git(str(repository.root))) as scm:
        for tag in find(scm=scm, name=artifact):
            form = parse_name(tag.name)
            stage, counter = form.get("stage"), form.get("counter", 0)
            at = tag.target, tag.tag_time, tag.tagger_name
            found.append(
                Tag(tag.name, form["action"], form.get("version"), stage, counter, *at, parse_record(tag.message))
            )
    return found


def parse_version(text: str) -> str:
    """GTO's name of a version. Raises UserError when it is no semantic one."""
    version = text.removeprefix("v")
    if not re.fullmatch(semver, version, re.ASCII):
        raise UserError(f"version {text!r} is no semantic version; give MAJOR.MINOR.PATCH, such as 1.2.0")
    return f"v{version}"


def parse_stage(text: str) -> str:
    if not name_re.fullmatch(text):
        raise UserError(f"stage {text!r} may have only letters, digits, '-', '_' and '/'; such as prod")
    return text


def artifact_name(root: WorkingTree) -> str:
    """The name that dvc.yaml gives to the release's manifest. Raises UserError when there is none that GTO takes."""
    name = Definition.read(root).artifact(paths.MANIFEST.as_posix())
    if name is None:
        raise UserError(
            f"dvc.yaml: `artifacts:` has no entry with path {paths.MANIFEST}; add one: its name names the tag"
        )
    if not name_re.fullmatch(name):
        raise UserError(f"dvc.yaml: artifact name {name!r} may have only letters, digits, '-', '_' and '/'")
    return name


def history(root: Path, stage: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each time that a stage had a release, by stage and time; without `stage` also for releases never live.

    Returns:
        What `_row` says (None for a release that was never live; "until" also for what is live now;
        times in ISO 8601, UTC; "fault" is why the tag is not to be believed), and "scores" of the adapter as
        metrics/details.json has them. And what the rows may lack, in sentences.

    Raises UserError for a stage that never had a release.
    """
    repository = Repository(root)
    registry = Registry(repository, artifact_name(WorkingTree(root)))
    if stage is not None and parse_stage(stage) not in registry.stages:
        known = ", ".join(registry.stages) or "none; `tunetrail release VERSION --stage STAGE` assigns one"
        said = f"no tag here gives stage {stage} a release of {registry.artifact}; the stages are: {known}"
        raise UserError(". ".join([said, *registry.doubts()]))
    lives = [one for name in ([stage] if stage else registry.stages) for one in registry.intervals(name)]
    rows: list[tuple[Live | None, Tag | None, str]] = [(one, registry.shown(one), one.commit) for one in lives]
    never = [tag for tag in registry.released.values() if stage is None and tag not in [tag for _, tag, _ in rows]]
    rows += [(None, tag, tag.commit) for tag in never]
    scores = _scores(repository, [commit for *_, commit in rows])
    told = [{**_row(registry, *row), "scores": found} for row, found in zip(rows, scores, strict=True)]
    return told, list(registry.doubts())


def _row(registry: Registry, live: Live | None, tag: Tag | None, commit: str) -> dict[str, Any]:
    since, until, record = live.since if live else None, live.until if live else None, tag.record if tag else {}
    was = f", assigned as {since.record['version']}" if since and since.record.get("version") else ""
    return {
        "stage": live.stage if live else None,
        "from": _time(since),
        "until": _time(until),
        "assigned_by": since.who if since else None,
        "reason": since.record.get("reason") if since else None,
        "version": tag.version if tag else None,
        "commit": commit,
        "released": _time(tag),
        "released_by": tag.who if tag else None,
        **{key: record.get(key) for key in ("verdict", "accepted_marginal", "manifest_sha256")},
        "fault": record_fault(registry.repository, tag.name, commit) if tag else f"no version has this commit{was}",
    }


def _scores(repository: Repository, commits: list[str]) -> list[dict[str, Any]]:
    """The adapter's scores of each commit, empty where git has none."""
    found: list[dict[str, Any]] = []
    for text in repository.contents(f"{commit}:./{paths.DETAILS.as_posix()}" for commit in commits):
        try:
            found.append(json.loads(text or b"{}")["evaluate"]["adapter"])
        except (ValueError, KeyError, TypeError):
            found.append({})
    return found


def _time(tag: Tag | None) -> str | None:
    return datetime.fromtimestamp(tag.time, UTC).isoformat().replace("+00:00", "Z") if tag else None
