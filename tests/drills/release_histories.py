"""A random history of releases and rollbacks against a remote; an oracle that replays it says what was live when."""

import json
import random
import re
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

from gto.api import show
from scratch import Scratch, make_scratch

ADAPTER = "models/adapter/adapter.safetensors"
RUNS = 4
STAGES = ("prod", "qa")
_START = 1_700_000_000  # in November 2023
_DAY = 24 * 3600


@dataclass
class Played:
    """What was done, as the drill itself knows it: the version of each commit, and each assignment."""

    versions: dict[str, str] = field(default_factory=dict)  # commit to version
    assigned: list[tuple[int, str, str]] = field(default_factory=list)  # time, stage, version


def make_runs(folder: Path) -> Scratch:
    """RUNS runs, committed and pushed to a remote beside the repository, with other data and parameters each."""
    scratch = make_scratch(folder / "repository")
    scratch.dvc("remote", "add", "--default", "store", "../store")
    for number in range(RUNS):
        scratch.write(f"data/raw/{number}.jsonl", f'{{"n": {number}}}\n')
        params = (scratch.root / "params.yaml").read_text()
        scratch.write("params.yaml", re.sub("learning_rate: .*", f"learning_rate: {number + 2}e-3", params))
        scratch.dvc("repro")
        scratch.commit(f"Run {number}")
        scratch.dvc("push")
    return scratch


def play(draw: random.Random, runs: Scratch, folder: Path) -> None:
    """One history on a copy of the runs. Raises AssertionError for whatever does not hold."""
    shutil.copytree(runs.root.parent, folder)
    scratch = Scratch(folder / runs.root.name)
    commits = scratch.git("log", f"-{RUNS}", "--format=%H").split()
    adapters = {commit: adapter_at(scratch, commit) for commit in commits}
    played, now = Played(), _START
    for _ in range(draw.randint(4, 8)):
        now += draw.choice([1, 2, draw.randrange(1, 30 * _DAY)])
        stage = draw.choice([*STAGES, "prod"])
        with patch.dict("os.environ", {"GIT_COMMITTER_DATE": f"{now} +0000"}):
            one_event(draw, scratch, commits, played, stage, now)
        here = scratch.git("rev-parse", "HEAD")
        assert (said := scratch.tunetrail("verify")).code == 0, said.err
        assert (scratch.root / ADAPTER).read_bytes() == adapters[here], "other bytes than the run had"
        assert scratch.git("status", "--porcelain") == "", "the tree is not clean"
    rows = json.loads(scratch.tunetrail("history", "--json").out)
    lives = [(row["stage"], row["version"], row["from"], row["until"]) for row in rows if row["stage"]]
    expected = sorted(replayed(played.assigned), key=str)
    assert sorted(lives, key=str) == expected, f"history has {lives}, a replay {expected}"
    assert {row["version"] for row in rows} == set(played.versions.values()), "not every release is in the history"
    by_gto = {name: version for name, version in show(str(scratch.root))["support-tickets"]["stage"].items() if version}
    now_live = {stage: version for stage, version, _, until in lives if until is None}
    assert by_gto == now_live, f"gto has {by_gto}, history {now_live}"


def one_event(draw: random.Random, scratch: Scratch, commits: list[str], played: Played, stage: str, now: int) -> None:
    """A release, the release of before once more for a stage, or a rollback; sometimes by a machine without cache."""
    if not played.versions or draw.random() < 0.5:
        commit = draw.choice(commits)
        version = played.versions.get(commit, f"v1.{len(played.versions)}.0")
        scratch.git("checkout", "--quiet", commit)
        scratch.dvc("pull")
        words = ["release", version, *(["--stage", stage] if draw.random() < 0.7 else [])]
    else:
        commit, version = draw.choice(list(played.versions.items()))
        words = ["rollback", version, *(["--stage", stage] if draw.random() < 0.8 else [])]
        if draw.random() < 0.3:
            scratch.forget_cache()
            scratch.dvc("fetch")
    answer = scratch.tunetrail(*words)
    assert answer.code == 0, f"{' '.join(words)}: {answer.err}"
    assert scratch.git("rev-parse", "HEAD") == commit
    played.versions[commit] = version
    if "--stage" in words:
        played.assigned.append((now, stage, version))


def adapter_at(scratch: Scratch, commit: str) -> bytes:
    scratch.git("checkout", "--quiet", commit)
    scratch.dvc("checkout")
    return (scratch.root / ADAPTER).read_bytes()


def replayed(assigned: list[tuple[int, str, str]]) -> list[tuple[str, str, str, str | None]]:
    """Stage, version, from and until of each time that a stage had a version, one assignment after the other."""
    found: list[tuple[str, str, str, str | None]] = []
    for stage in STAGES:
        mine = [(time, version) for time, name, version in assigned if name == stage]
        changes = [one for before, one in zip([(0, ""), *mine], mine, strict=False) if before[1] != one[1]]
        ends = [*(told(time) for time, _ in changes[1:]), None]
        found += [(stage, version, told(time), end) for (time, version), end in zip(changes, ends, strict=False)]
    return found


def told(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
