"""Room on the disks that a run writes to, and whether DVC's cache may be written: looked at before long work, and
named where a write fails."""

import errno
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich.filesize import decimal

from stages.core.dvc_lock import cache_folder
from stages.core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch, safetensors, tokenizers, pyarrow and sqlite say: none of them raises an OSError with a number.
_SAYS_FULL = re.compile(
    r"no space left on device|disk quota exceeded|file too large|disk is full|os error (28|122|27)\b", re.IGNORECASE
)
NEARLY_NONE = 1 << 20
last_sizes: dict[str, int] = {}  # of the outputs of this process's stage, as dvc.lock has them


def repository_root() -> Path:
    """The folder that has .dvc; DVC says where, a stage that runs by hand is there."""
    return Path(os.path.relpath(os.environ.get("DVC_ROOT", ".")))


def refuse_unwritable(cache: Path, stage: str) -> None:
    """Raise UserError where DVC could not keep what a stage is about to make."""
    cache = _existing(cache)
    folders = [cache, *(cache / "files/md5").glob("??"), cache / "files/md5", cache / "runs"]
    refused = [folder for folder in folders if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)]
    if refused:
        raise UserError(
            f"{stage} did not start: DVC could not keep what it makes, since its cache {refused[0]} cannot be written; "
            "make it writable, or name another with `dvc cache dir --local PATH`"
        )


def say_little_room(places: list[Path], needed: int, what: str) -> None:
    """Print a line for the first of these places whose disk has less room than `needed` bytes."""
    for place in map(_existing, places):
        if (free := shutil.disk_usage(place).free) < needed:
            print(f"little room: {decimal(free)} free on the disk of {place.resolve()}; {what}", file=sys.stderr)
            return


def when_full(error: BaseException, path: Path | None = None) -> str | None:
    """The sentence for an error that a full disk caused while `path` was written; None for another error.

    Some libraries hide the cause, so an error while a disk has next to nothing free counts, and is told along.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    of_system = [one for one in chain if isinstance(one, OSError)]
    named = [Path(one.filename) for one in of_system if isinstance(one.filename, str)]
    place = _existing(named[0] if named else path or Path())
    places = [place, Path(tempfile.gettempdir()), _existing(cache_folder(repository_root()))]
    used_up = [one for one in places if shutil.disk_usage(one).free < NEARLY_NONE]
    certain = any(one.errno in _FULL for one in of_system) or any(_SAYS_FULL.search(str(one)) for one in chain)
    if not certain and not used_up:
        return None
    disk = place if place in used_up or not used_up else used_up[0]
    usage = shutil.disk_usage(disk)
    said = f"no space left on the disk of {disk.resolve()}: {decimal(usage.free)} of {decimal(usage.total)} are free"
    if any(one.errno == errno.EFBIG for one in of_system):
        said = f"a file on the disk of {disk.resolve()} grew larger than this process may write (`ulimit -f`)"
    if path is not None:
        last = last_sizes.get(path.as_posix())
        said += f"; {path} took {decimal(last)} the last time" if last else f"; it was full while {path} was written"
    known = "" if certain else f" ({type(error).__name__}: {error})"
    return f"{said}{known}; make room and run the same command again: what is finished is kept"


def _existing(path: Path) -> Path:
    """The nearest folder at or above the path that is there."""
    return next(place for place in (path, *path.parents, Path()) if os.path.isdir(place))  # noqa: PTH112 Path raises
