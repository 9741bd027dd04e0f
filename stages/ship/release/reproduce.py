"""reproduce: a release made again from its inputs alone, in a worktree of its own, and every output compared.

Nothing of the first run is used: no output, no run cache, no remembered answers. What comes of it is an in-toto
statement with a test result (https://in-toto.io/attestation/test-result/v0.1), for whoever does not want to believe the
one who released.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configobj import ConfigObj

from stages.core import paths
from stages.core.dvc_lock import cache_folder, dvc_settings, read_lock
from stages.core.errors import Refusal, UserError, names
from stages.core.files import alone, remove, write_json
from stages.core.git import CommitTree, Repository, WorkingTree, dvc_folder, git_environment
from stages.core.run_notes import machine_notes
from stages.scoring.catalogue import catalogue_of, centre, is_interval
from stages.ship.release.dvc_files import Listings, in_words
from stages.ship.release.finding import read_record
from stages.ship.release.registry import artifact_name, parse_version
from stages.ship.release.verify import sign

FOLDER = Path("attestations")
PASSED, WARNED, FAILED = "PASSED", "WARNED", "FAILED"  # in-toto's words
_LISTS = {PASSED: "passedTests", WARNED: "warnedTests", FAILED: "failedTests"}


def reproduce(root: Path, name: str, key: Path | None = None) -> str:
    """Make the release `name` (a version or a tag) again; write attestations/TAG.json and, with `key`, TAG.sig.

    The result is PASSED when every output has the same bytes; WARNED when some have not, but every metric lies within
    the interval that it had; else FAILED. Raises UserError for what is no release, an input that cannot be had, or a
    stage that fails; Refusal when the result is FAILED; the attestation is written all the same.
    """
    repository = Repository(root)
    tag = name if "@" in name else f"{artifact_name(WorkingTree(root))}@{parse_version(name)}"
    commit = repository.tag_commit(tag)
    if commit is None or read_record(repository, tag).get("commit") != commit:
        raise UserError(f"{tag} is no release that `tunetrail release` tagged; `tunetrail history` lists them")
    if repository.git("config", "core.worktree", check=False):
        raise UserError(f"{root} is in a submodule, of which DVC reads no worktree; clone it by itself and run there")
    tree = CommitTree(repository, commit)
    with _worktree(repository, tree.commit) as folder:
        _bring_inputs(root, folder)
        # Every stage, without a look at what is known, and without a trace in DVC's cache.
        if code := _dvc(folder, "repro", "--force", "--no-run-cache", "--no-commit", capture=False).returncode:
            raise UserError(f"the rebuild stopped: `dvc repro` ended with {code}, for the reason above")
        rebuild = _compared(root, tree, folder)
    result = PASSED if not rebuild["different"] else FAILED if rebuild["metrics"]["outside"] else WARNED
    file = root / FOLDER / f"{tag.replace('/', '-')}.json"
    write_json(file, _statement(tag, tree, result, rebuild))
    said = [_sentence(tag, result, rebuild), f"Attestation: {file.relative_to(root)}"]
    if key:
        said.append(sign(root, file, key, file.with_suffix(".sig")))
    if result == FAILED:
        raise Refusal("\n".join(said))
    return "\n".join(said)


@contextmanager
def _worktree(repository: Repository, commit: str) -> Iterator[Path]:
    """The commit in a worktree beside the repository, so that paths out of it (`path:../base`) lead where they did."""
    top = Path(repository.git("rev-parse", "--show-toplevel"))
    prefix = f".{top.name}-rebuild-"

    def clear(folder: Path) -> None:
        repository.git("worktree", "remove", "--force", str(folder), check=False)
        remove(folder)

    for left in top.parent.glob(f"{glob.escape(prefix)}*"):  # by a process that was killed, if none holds it any more
        with suppress(OSError), alone(left) as lock:
            if lock is not None:
                clear(left)
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=top.parent))
    except OSError as error:
        raise UserError(f"no worktree can be made in {top.parent}: {error.strerror}") from None
    with alone(folder):
        try:
            repository.git("worktree", "add", "--detach", str(folder), commit)
            yield folder / repository.root.resolve().relative_to(top)
        finally:
            clear(folder)


def _bring_inputs(root: Path, folder: Path) -> None:
    """DVC's settings of this repository, its cache to read from, those of the machine, and the data of `dvc add`."""
    settings = dvc_settings(root)
    settings["cache"]["dir"] = str(cache_folder(root).absolute())
    local = dvc_folder(folder) / "config.local"
    local.touch(mode=0o600)  # it may hold the keys of a remote
    with local.open("wb") as handle:
        ConfigObj(settings, encoding="utf-8").write(handle)
    if (root / "machine.yaml").is_file():
        shutil.copy(root / "machine.yaml", folder)
    added = Repository(folder).git("ls-files", "--", "*.dvc").splitlines()
    if added and _dvc(folder, "checkout", *added).returncode and (done := _dvc(folder, "pull", *added)).returncode:
        raise UserError(f"neither cache nor remote has all inputs of {names(added)}: {in_words(done.stderr)}")


def _dvc(folder: Path, *arguments: str, capture: bool = True) -> subprocess.CompletedProcess[str]:
    """DVC as a program; its words are captured, or go to stderr."""
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    output = {"capture_output": True} if capture else {"stdout": 2}
    return subprocess.run(
        command, cwd=folder, env={**git_environment(), "PATH": path}, encoding="utf-8", check=False, **output
    )


def _compared(root: Path, tree: CommitTree, folder: Path) -> dict[str, Any]:
    """Every output's hash then and now, and the metrics that left their intervals."""
    now, listings = WorkingTree(folder), Listings(root)
    then, made = ({out.path: out.md5 for _, out in read_lock(one).outs()} for one in (tree, now))
    outputs: dict[str, Any] = {path: {"released": md5, "rebuilt": made.get(path)} for path, md5 in then.items()}
    different = [path for path, md5 in then.items() if md5 != made.get(path)]
    for path in different:
        known, files = listings.get(then[path]), now.md5s(path)
        if known is not None:
            outputs[path]["files"] = sorted(one for one in {*known, *files} if known.get(one) != files.get(one))
    before, after = (catalogue_of(one.read_mapping(paths.DETAILS)) for one in (tree, now))
    measured: dict[Any, Any] = {key: number for key, number in before.items() if is_interval(number)}
    outside = [
        str(key)
        for key, number in measured.items()
        if (new := after.get(key)) is None or not number["low"] <= centre(new) <= number["high"]
    ]
    return {
        "outputs": outputs,
        "different": different,
        "metrics": {"compared": len(measured), "outside": outside if measured else ["none has an interval"]},
        "machine": _machine(),
    }


def _machine() -> dict[str, Any]:
    """What kind of machine this is, processor and cards included."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text(errors="replace") if info.is_file() else "")
    smi = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    cards = subprocess.run(smi, capture_output=True, text=True, check=False).stdout if shutil.which(smi[0]) else ""
    return {**machine_notes(), "processor": model[1] if model else "", "cards": cards.splitlines()}


def _statement(tag: str, tree: CommitTree, result: str, rebuild: dict[str, Any]) -> dict[str, Any]:
    """An in-toto statement about what was released; its field `rebuild` is ours, and others pass over it."""
    outputs, different = rebuild["outputs"], rebuild["different"]
    tests = {PASSED: [path for path in outputs if path not in different], WARNED: [], FAILED: []}
    tests[result] += different
    subjects = [{"name": path, "digest": {"dvcMd5": hashes["released"]}} for path, hashes in outputs.items()]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": tag, "digest": {"gitCommit": tree.commit}}, *subjects],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": result,
            "configuration": [{"name": paths.PIPELINE.as_posix(), "digest": {"gitCommit": tree.commit}}],
            **{_LISTS[word]: found for word, found in tests.items()},
            "rebuild": {"finished": datetime.now(UTC).isoformat(timespec="seconds"), **rebuild},
        },
    }


def _sentence(tag: str, result: str, rebuild: dict[str, Any]) -> str:
    outputs, different, metrics = rebuild["outputs"], rebuild["different"], rebuild["metrics"]
    if result == PASSED:
        return f"{result}: {tag} was made again, and all {len(outputs)} outputs have the same bytes"
    said = f"{result}: of {len(outputs)} outputs of {tag}, made again, {len(different)} have other bytes"
    for path in different:
        files = outputs[path].get("files")
        said += f"\n  {path} ({names(files)})" if files else f"\n  {path}"
    if metrics["outside"]:
        return f"{said}\nMetrics outside the interval that they had: {names(metrics['outside'])}"
    return f"{said}\nAll {metrics['compared']} metrics lie within the intervals that they had"
