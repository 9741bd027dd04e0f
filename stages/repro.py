"""`tunetrail repro`: `dvc repro` after what a killed or failed run has left behind is mended.

DVC writes dvc.lock and its rwlock in place, so a kill or a full disk in that moment leaves them cut, and DVC then
refuses to start. A plain `dvc repro` does as well wherever nothing is to be mended.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from stages.core import disk, paths
from stages.core.dvc_lock import cache_folder, parse_lock
from stages.core.errors import UserError
from stages.core.files import clear_partials, write_text
from stages.core.git import LOCK, CommitTree, Repository, dvc_folder
from stages.core.yaml_reader import load_yaml

TORN = Path(".tunetrail/dvc.lock.torn")
HEAVY = ("stages.tune.base.base_model", "stages.tune.train.run")  # what imports most of what any stage does
_MANY_CORES = 4
_CLOCKS_DIFFER = 10.0  # seconds, at most, between the time of a process and that of a file


def repro(root: Path, arguments: Sequence[str]) -> int:
    """Mend, run `dvc repro` with these arguments, and return its exit code. `root` is the current folder.

    Raises UserError when dvc.lock is in a merge conflict, or another DVC process holds what is to be mended.
    """
    clear_partials()
    for said in (*mend_lock(root), *mend_rwlock(root)):
        print(said, file=sys.stderr, flush=True)
    whole = all(word.startswith("-") for word in arguments)
    with libraries_read_ahead(root if whole else None):
        code = subprocess.run([sys.executable, "-m", "dvc", "repro", *arguments], cwd=root, check=False).returncode
    if code:
        say_full_disks(root)
    return code


@contextmanager
def libraries_read_ahead(root: Path | None) -> Iterator[None]:
    """Where the base model is yet to come, import what its stages do in another process, while others read rows.

    A machine that has not read those files yet takes twice as long for them (benchmarks/results/loop.md). On few cores
    that process would only be in the way.
    """
    if root is None or (root / paths.BASE).exists() or (os.cpu_count() or 1) < _MANY_CORES:
        yield
        return
    reader = subprocess.Popen(
        [sys.executable, "-c", f"import {', '.join(HEAVY)}"],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        reader.terminate()
        reader.wait()


def mend_lock(root: Path) -> Iterator[str]:
    """Bring dvc.lock back from git where it is cut, and say so; the cut one is kept."""
    lock = root / LOCK
    if not lock.is_file() or is_whole(lock.read_bytes()):
        return
    with _held_by_us(root, "lock"):
        if is_whole(lock.read_bytes()):  # another process wrote it just now
            return
        (root / TORN).parent.mkdir(exist_ok=True)
        shutil.copy(lock, root / TORN)
        committed = CommitTree(Repository(root), "HEAD").read(LOCK)
        if committed is not None and is_whole(committed):
            write_text(lock, committed.decode())
            now = "it is that of the last commit again"
        else:
            lock.unlink()
            now = "the last commit has no whole one, so it is removed"
        yield (
            f"{LOCK} was cut, as by a kill or a full disk while DVC wrote it: {now}; the cut one is {TORN}. Finished "
            "stages come back from DVC's run cache."
        )


def is_whole(lock: bytes) -> bool:
    """Whether dvc.lock is as DVC writes it, to the end of its last line."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if b"\n<<<<<<< " in b"\n" + lock:
        raise UserError(f"{LOCK} is in a merge conflict; `tunetrail merge-lock` resolves it")
    try:
        content = COMPILED_LOCKFILE_SCHEMA(load_yaml(lock))
        stages = content.get("stages", {}).values()
    except (ValueError, AttributeError, Invalid):
        return False
    rows = [row for stage in stages for kind in ("deps", "outs") for row in stage.get(kind, [])]
    return lock.endswith(b"\n") and all(row.keys() - {"path", "hash"} for row in rows)


def mend_rwlock(root: Path) -> Iterator[str]:
    """Take the dead out of DVC's list of who reads and writes what; DVC itself waits for a zombie for ever."""
    path = dvc_folder(root) / "tmp/rwlock"
    if not path.is_file() or path.read_bytes() == b"{}":
        return
    with _held_by_us(root, "rwlock.lock"):
        written, left, dead = path.stat().st_mtime, dict[str, dict[str, Any]](), dict[int, str]()
        try:
            for mode, files in json.loads(path.read_bytes()).items():
                for file, who in files.items():
                    holders = who if mode == "read" else [who]  # several may read a file, one may write it
                    commands = {one["pid"]: one["cmd"] for one in holders}
                    gone = {pid: command for pid, command in commands.items() if is_dead(pid, written)}
                    dead |= gone
                    if alive := [one for one in holders if one["pid"] not in gone]:
                        left.setdefault(mode, {})[file] = alive if mode == "read" else alive[0]
        except (ValueError, TypeError, KeyError, AttributeError):
            write_text(path, "{}")
            yield f"{path} was cut, as by a kill while DVC wrote it: it is empty again."
            return
        if dead:
            write_text(path, json.dumps(left))
        for pid, command in dead.items():
            yield f"`{command}` (PID {pid}) was killed: the files that it held in DVC's rwlock are free again."


def is_dead(pid: int, written: float) -> bool:
    """Whether the process that was in the list when it was written (seconds since 1970) is no more.

    A zombie is dead, and so is one whose number a younger process has got.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        return bool(process.status() == psutil.STATUS_ZOMBIE or process.create_time() > written + _CLOCKS_DIFFER)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


@contextmanager
def _held_by_us(root: Path, name: str) -> Iterator[None]:
    """Keep other DVC processes out, by the lock that they use themselves."""
    from dvc.config import Config
    from dvc.lock import LockError, make_lock

    folder = dvc_folder(root) / "tmp"
    folder.mkdir(exist_ok=True)
    hardlink = Config(str(dvc_folder(root)))["core"].get("hardlink_lock", False)
    lock = make_lock(str(folder / name), tmp_dir=str(folder), hardlink_lock=hardlink)
    try:
        lock.lock()
    except LockError:
        raise UserError(f"another DVC process is at work in {root}; run again when it has ended") from None
    try:
        yield
    finally:
        lock.unlock()


def say_full_disks(root: Path) -> None:
    """Where a disk is too full for what a stage of dvc.lock takes: DVC speaks of cache link types then."""
    needed = disk.NEARLY_NONE
    with suppress(OSError, ValueError):
        stages = parse_lock((root / LOCK).read_bytes()).stages.values()
        needed = max((sum(out.size or 0 for out in stage.outs) for stage in stages), default=needed)
    what = f"a stage takes up to {decimal(needed)}; make room and run again: what is finished is kept"
    disk.say_little_room([root, cache_folder(root), Path(tempfile.gettempdir())], needed, what)
