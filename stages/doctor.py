"""`tunetrail doctor`: is this machine fit for a run, and is this project sound?

What can be mended without a question is mended: damaged objects, and what a kill left of dvc.lock and DVC's locks.
"""

import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from uuid import uuid4

from pathspec import GitIgnoreSpec
from rich.filesize import decimal

from stages.core import paths
from stages.core.disk import NEARLY_NONE, refuse_unwritable
from stages.core.dvc_lock import cache_folder, dvc_settings, md5, read_lock, tracked_outputs
from stages.core.errors import UserError, names
from stages.core.git import LOCK, Repository, WorkingTree, dvc_folder
from stages.repro import mend_lock, mend_rwlock
from stages.ship.release.dvc_files import Definition, Listings, dvc_repo, in_words
from stages.ship.release.objects import SAFE_GC, heal, writable_by_all
from stages.text.personal_data import finder

OK, WARNING, PROBLEM = "ok", "warning", "problem"
MADE_UP = Path(".secretsignore")
Findings = Iterator[tuple[str, str]]  # state, and a sentence that says what to do

_LARGE, _SEARCHED = 10_000_000, 4_000_000  # bytes of a file in git; a larger one than the latter holds data
_READ_AT_ONCE = 64  # files
# What DVC's configuration has no known prefix for; it belongs into .dvc/config.local, which git ignores.
_CREDENTIAL = re.compile(
    r"(?m)^\s*(?!ask_)\w*(?:pass(?:word|phrase)|token|(?:access|account)_key|connection_string)\s*="
)


@dataclass(frozen=True)
class Check:
    """What one check found: its state is the worst of its sentences."""

    name: str
    state: str
    says: list[str]

    def __str__(self) -> str:
        return f"{self.state:<8} {self.name:<8} " + f"\n{' ' * 18}".join(self.says)


def doctor(root: Path) -> Iterator[Check]:
    """Make one check after the other. One that cannot be made is a problem, too."""
    for check in _CHECKS:
        found: list[tuple[str, str]] = []
        try:
            found += check(root)
        except (UserError, ImportError) as error:
            found.append((PROBLEM, str(error)))
        states = {state for state, _ in found}
        yield Check(check.__name__[1:], max(states, key=(OK, WARNING, PROBLEM).index), [said for _, said in found])


def _python(root: Path) -> Findings:
    found = shutil.which("python") or "nothing on the PATH"
    if Path(found).parent.resolve() != Path(sys.executable).parent.resolve():
        yield WARNING, f"`dvc repro` runs the stages with {found}, not with {sys.executable}; activate its environment"
    yield OK, f"Python {platform.python_version()}"


def _torch(root: Path) -> Findings:
    import psutil
    import torch

    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    cards = names(f"{one.name}, {decimal(one.total_memory)}" for one in devices) or "no card"
    if not devices and shutil.which("nvidia-smi"):
        yield WARNING, f"torch {torch.__version__} sees no card, though nvidia-smi is installed: see docs/gpu.md"
    yield OK, f"torch {torch.__version__}; {cards}"
    base = sum(out.size or 0 for _, out in read_lock(WorkingTree(root)).outs() if out.path == paths.BASE.as_posix())
    if (free := psutil.virtual_memory().available) < 2 * base:
        yield WARNING, f"float32 takes twice the {decimal(base)} of the base model's files; close programs"
    yield OK, f"{decimal(free)} of memory are free"


def _disk(root: Path) -> Findings:
    sizes = [sum(out.size or 0 for out in stage.outs) for stage in read_lock(WorkingTree(root)).stages.values()]
    most, cache = max([NEARLY_NONE, *sizes]), cache_folder(root)
    for place in (root, next(folder for folder in (cache, *cache.parents) if folder.is_dir())):
        free = shutil.disk_usage(place).free
        state = PROBLEM if free < most else WARNING if free < sum(sizes) else OK
        said = f"{decimal(free)} free on the disk of {place}; a run writes {decimal(sum(sizes))}, a stage up to "
        yield state, f"{said}{decimal(most)}{'' if state == OK else f'. {SAFE_GC}'}"


def _links(root: Path) -> Findings:
    from dvc_objects.fs.generic import test_links
    from dvc_objects.fs.local import localfs

    cache = cache_folder(root)
    cache.mkdir(parents=True, exist_ok=True)
    refuse_unwritable(cache, "the next stage")
    wanted: str | list[str] = dvc_settings(root)["cache"].get("type", "reflink,copy")
    kinds = [kind.strip() for kind in (wanted.split(",") if isinstance(wanted, str) else wanted)]
    places = localfs, str(cache), localfs, str(dvc_folder(root) / "tmp")
    possible = [*test_links(["reflink", "hardlink", "symlink"], *places)]
    used = next((kind for kind in kinds if kind in (*possible, "copy")), None)
    if used is None:
        yield PROBLEM, f"this disk cannot do cache.type {names(kinds)}; `dvc config --local cache.type copy`"
    yield OK, f"from DVC's cache by {used}" + (", so that each output takes its room twice" if used == "copy" else "")


def _remote(root: Path) -> Findings:
    listings = Listings(root)
    if listings.remote is None:
        yield WARNING, "no DVC remote: this disk alone has the files; `dvc remote add --default NAME URL`, `dvc push`"
        return
    yield from ((PROBLEM, said) for said in writable_by_all(listings))
    content = uuid4().bytes  # an object like every other, so that what cannot be deleted harms nobody
    with dvc_repo(root, f"remote {listings.remote} cannot be used") as repo:
        remote = repo.cloud.get_remote_odb(listings.remote)
        fs, path = remote.fs, remote.oid_to_path(md5(content))
        try:
            fs.makedirs(fs.parent(path), exist_ok=True)
            with NamedTemporaryFile() as file:  # by the way that `dvc push` takes: HTTP has two
                Path(file.name).write_bytes(content)
                fs.put_file(file.name, path)
        except Exception as refused:  # of whatever library reaches it
            if fs.CAN_TRAVERSE:
                fs.ls(remote.path)  # tells "may not write" from "is not there"
            else:
                with suppress(FileNotFoundError):
                    fs.cat_file(path)
            yield WARNING, f"{listings.remote} can be read, and not written: {in_words(refused)}"
            return
        try:
            wrong = "" if fs.cat_file(path) == content else "; push elsewhere, and ask its keeper"
        except Exception as refused:  # a client that compares checksums itself, as that of S3 does
            wrong = f": {in_words(refused)}"
        if wrong:
            yield PROBLEM, f"{listings.remote} does not give back the bytes that it was given{wrong}"
        try:
            fs.rm_file(path)
            may = "also deleted: who has these credentials can delete releases"
        except Exception:
            may = "not deleted"
    yield OK, f"{listings.remote} can be read and written, {may} (docs/access.md)"


def _locks(root: Path) -> Findings:
    index = root / Repository(root).git("rev-parse", "--git-path", "index.lock", check=False)
    if index.is_file():
        yield WARNING, f"{index} is there: git is at work, or was killed; when none runs, delete the file"
    yield from ((WARNING, said) for said in (*mend_lock(root), *mend_rwlock(root)))
    yield OK, f"{LOCK} is whole, and no dead process holds a lock of DVC"


def _secrets(root: Path) -> Findings:
    repository, tree, find = Repository(root), WorkingTree(root), finder(("secret",), "", "")
    made_up = GitIgnoreSpec.from_lines((tree.read(MADE_UP.as_posix()) or b"").decode().splitlines())

    def holds_one(path: str, content: bytes | None) -> bool:
        text = (content or b"").decode(errors="replace")
        if "\0" in text or made_up.match_file(path):
            return False
        return bool(find(text)[1] or (path.endswith(".dvc/config") and _CREDENTIAL.search(text)))

    # Of a partial clone without what it lacks, which git would else fetch, one by one.
    listed = repository.git("rev-list", "--objects", "--missing=print", "--all", check=False).splitlines()
    if lacking := sum(line.startswith("?") for line in listed):
        yield WARNING, f"{lacking} objects are not in this partial clone, and were not searched; clone the whole"
    places = dict(line.split(" ", 1) for line in reversed(listed) if " " in line)  # each object once, the oldest first
    sizes = repository.git("cat-file", "--batch-check=%(objecttype) %(objectsize)", stdin="\n".join(places).encode())
    rows = zip(places, sizes.splitlines(), strict=True)
    ids = [i for i, row in rows if row.startswith("blob ") and int(row[5:]) <= _SEARCHED]
    first: dict[str, str] = {}
    for at in range(0, len(ids), _READ_AT_ONCE):
        some = ids[at : at + _READ_AT_ONCE]
        contents = zip(some, repository.contents(some), strict=True)
        first = {places[i]: i for i, content in contents if holds_one(places[i], content)} | first
    for path, i in first.items():
        commit = repository.git("log", "--all", "--reverse", "--format=%h", f"--find-object={i}").split()[0]
        yield PROBLEM, f"{path} of commit {commit} in git's history holds a secret"
    if first:
        yield PROBLEM, f"revoke them: every clone has them. Made up, as in a test? Name the file in {MADE_UP}"
    own = [LOCK, "dvc.yaml", paths.PARAMS.name, ".dvc/config"]
    own += [file.relative_to(root).as_posix() for file in sorted((root / paths.METRICS).rglob("*")) if file.is_file()]
    if now := [path for path in own if holds_one(path, tree.read(path))]:
        yield PROBLEM, f"{names(now)} holds a secret; keep it in an environment variable or .dvc/config.local"
    yield OK, f"{len(ids)} versions of files in git were searched"


def _tracked(root: Path) -> Findings:
    repository, tree = Repository(root), WorkingTree(root)
    yield from ((WARNING, lacks) for lacks in [repository.lacks()] if lacks)
    in_git = Definition.read(tree).in_git
    outs = [out.path for _, out in read_lock(tree).outs() if out.path not in in_git]
    files = [file for file in repository.git("ls-files", "-z", check=False).split("\0") if (root / file).is_file()]
    for file in files:
        if file.endswith(".dvc"):
            with suppress(ValueError):
                outs += [out.path for out in tracked_outputs(tree.read(file) or b"", file)]
    if twice := [file for file in files if any(file == out or file.startswith(f"{out}/") for out in outs)]:
        yield PROBLEM, f"git tracks what DVC keeps: {names(twice)}; `git rm -r --cached` each, and commit"
    if large := [file for file in files if (root / file).stat().st_size > _LARGE and file not in twice]:
        yield WARNING, f"every clone gets every version of {names(large)}; `git rm --cached` and `dvc add` each"
    yield OK, f"{len(files)} files in git"


def _objects(root: Path) -> Findings:
    said, lost = heal(root)
    yield from ((PROBLEM, sentence) for sentence in lost)
    yield from ((OK, sentence) for sentence in said)


_CHECKS = (_python, _torch, _disk, _links, _remote, _locks, _secrets, _tracked, _objects)
