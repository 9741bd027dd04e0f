"""What a stage reads, held against the trail: before it works, and again when it has ended.

DVC believes its cache and its database of hashes, so a damaged object is checked out and recorded under the hash of
the sound one. And it hashes dependencies and reads parameters once more when the stage has ended, so what was edited
meanwhile is recorded as what ran. Either way dvc.lock would name what was never read.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from stages.core import disk, paths
from stages.core.dvc_lock import (
    Entry,
    cache_folder,
    cached_listing,
    entry_hash,
    object_path,
    parse_lock,
    tracked_outputs,
    value_at,
)
from stages.core.errors import Refusal, UserError, names
from stages.core.files import clear_partials, file_digest, files_under
from stages.core.git import LOCK, WorkingTree
from stages.core.yaml_reader import load_yaml

_read: list["Dependencies"] = []  # by the stage that this process runs


@contextmanager
def held(module: str) -> Iterator[None]:
    """Hold what the stage run by `python -m module` reads, around its work; for any other program, nothing.

    Costs one read of all dependencies.

    Raises:
        Refusal: before the work where a file is not the one that the stage before wrote, after it where one changed.
        UserError: when dvc.yaml or dvc.lock cannot be read.
    """
    text = paths.PIPELINE.read_bytes() if paths.PIPELINE.is_file() else b""
    try:
        stages = load_yaml(text).get("stages") or {} if module and module.encode() in text else {}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{paths.PIPELINE}: {error}") from None
    for name, definition in stages.items():
        if module in str(definition.get("cmd")).split() and os.environ.get("RANK", "0") == "0":
            clear_partials()
            _read.append(Dependencies(name, stages))
    try:
        yield
    except SystemExit as end:
        if end.code:
            raise
    confirm()
    for dependencies in _read:
        dependencies.say_what_dvc_copies()


def confirm() -> None:
    """Raise Refusal if what this stage reads has changed since it started. To be called before work is thrown away."""
    for dependencies in _read:
        dependencies.confirm()


def digest(path: str) -> str:
    """SHA-256 over names and MD5 of a dependency's files, as they are, or were when the stage started that reads them.

    The same on every machine. What a stage holds is not read again: a base model takes seconds.
    """
    entry = Entry(path, None, None, None)
    known = ({name: md5 for name, md5 in stage.files.items() if entry.holds(name)} for stage in reversed(_read))
    files = next(filter(None, known), None) or {
        f"{path}/{name}".rstrip("/"): md5 for name, md5 in WorkingTree(Path()).md5s(path).items()
    }
    listing = sorted((name, md5) for name, md5 in files.items() if "__pycache__" not in name)
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


class Dependencies:
    """The files and parameters that a stage reads, as they are when it starts."""

    def __init__(self, stage: str, stages: dict[str, Any]) -> None:
        self.stage, self.stages = stage, stages
        definition = stages[stage]
        self.keys = [key for key in definition.get("params") or [] if isinstance(key, str)]
        self.values = _values(self.keys)
        self.deps = [Entry(filled_in(dep), None, None, None) for dep in definition.get("deps") or []]
        self.outs = [out for out in definition.get("outs") or [] if isinstance(out, str)]
        self.tree, self.cache = WorkingTree(Path()), cache_folder(disk.repository_root())
        self.signatures = [_signatures(dep.path) for dep in self.deps]
        self.files = self._md5s(self.deps)
        for maker, out in self._recorded():
            if maker == stage:
                disk.last_sizes[out.path] = out.size or 0
            else:
                self._hold(maker, out)
        needed = sum(disk.last_sizes.values())
        disk.say_little_room([Path(), self.cache], needed, f"{stage} wrote {decimal(needed)} the last time")
        if "DVC_STAGE" in os.environ:
            disk.refuse_unwritable(self.cache, stage)

    def _recorded(self) -> Iterator[tuple[str, Entry]]:
        """What stages wrote, by dvc.lock, and what `dvc add` or `dvc import` brought, by the .dvc files."""
        above = {Path(f"{path}.dvc") for dep in self.deps for path in (dep.path, *Path(dep.path).parents)}
        for file in [Path(LOCK), *sorted(above | {Path(path) for path in self.files if path.endswith(".dvc")})]:
            try:
                if file.is_file() and file.name == LOCK:
                    outs = [(stage.name, out) for stage, out in parse_lock(file.read_bytes()).outs()]
                    yield from ((maker, out) for maker, out in outs if out.md5 and self._writes(maker, out.path))
                elif file.is_file():
                    outs = [(file.as_posix(), out) for out in tracked_outputs(file.read_bytes(), file.as_posix())]
                    yield from ((maker, out) for maker, out in outs if out.md5)
            except ValueError as error:
                raise UserError(
                    f"{file} is damaged: {error}; bring it back from git, or run `tunetrail repro`"
                ) from None

    def _writes(self, maker: str, path: str) -> bool:
        """Whether dvc.yaml still has the stage and this output: DVC keeps the entries of those that are gone."""
        definition = self.stages.get(maker.partition("@")[0]) or {}
        definition = definition.get("do", definition)
        outs = [
            next(iter(out), "") if isinstance(out, dict) else str(out)
            for kind in ("outs", "metrics", "plots")
            for out in definition.get(kind) or []
        ]
        return any("${" in out or Path(out).as_posix() == path for out in outs)

    def _hold(self, maker: str, out: Entry) -> None:
        here = {path: md5 for path, md5 in self.files.items() if out.holds(path)}
        if not here:
            return
        if not out.is_folder:
            there = {out.path: str(out.md5)}
        elif (listing := cached_listing([self.cache], str(out.md5))) is not None:
            files = {f"{out.path}/{name}": md5 for name, md5 in listing.items()}
            there = {path: md5 for path, md5 in files.items() if any(dep.holds(path) for dep in self.deps)}
        else:  # nothing says which part has which hash, so the folder is held as a whole
            there = here if entry_hash(self.tree.md5s(out.path)) == out.md5 else {}
        if wrong := _differing(here, there):
            raise Refusal(self._sentence(maker, out, wrong, there))

    def _sentence(self, maker: str, out: Entry, wrong: list[str], there: dict[str, str]) -> str:
        added = maker.endswith(".dvc")
        said = f"{self.stage} did not start: {names(wrong)} {'is' if len(wrong) == 1 else 'are'} not what "
        said += f"{maker} records" if added else f"stage {maker} wrote, by {LOCK}"
        objects = [object_path(self.cache, there[path]) for path in wrong if path in there]
        if damaged := [file.as_posix() for file in objects if file.is_file() and not _sound(file)]:
            again = "run `dvc pull`" if added else f"run `dvc repro --force {maker}`, which makes it anew"
            return f"{said}: DVC's cache is damaged; delete {names(damaged)} and {names(wrong)}, then {again}"
        record = f"dvc add {out.path}" if added else f"dvc commit {maker}"
        return f"{said}; to have that back, delete it and run `dvc checkout {out.path}`; if you mean it, `{record}`"

    def confirm(self) -> None:
        values = _values(self.keys)
        changed = [f"parameter {key}" for key in self.keys if values[key] != self.values[key]]
        touched = [dep for dep, known in zip(self.deps, self.signatures, strict=True) if _signatures(dep.path) != known]
        known = {path: md5 for path, md5 in self.files.items() if any(dep.holds(path) for dep in touched)}
        changed += _differing(known, self._md5s(touched))
        if changed:
            raise Refusal(
                f"{names(changed)} changed while {self.stage} ran: {LOCK} would name what it did not read; run the "
                "same command again, or put back what was there before"
            )

    def say_what_dvc_copies(self) -> None:
        """Where the cache has too little room: DVC itself would only say «No possible cache link types»."""
        needed = sum(file.stat().st_size for out in self.outs for file in files_under(Path(out)))
        if "DVC_STAGE" in os.environ:
            what = f"DVC is to copy {decimal(needed)} of {self.stage} there and speaks of link types when it cannot"
            disk.say_little_room([self.cache], needed, what)

    def _md5s(self, deps: list[Entry]) -> dict[str, str]:
        found = ((dep.path, self.tree.md5s(dep.path)) for dep in deps)
        return {f"{path}/{name}".rstrip("/"): md5 for path, files in found for name, md5 in files.items()}


def _signatures(dep: str) -> dict[Path, tuple[int, int, int]]:
    """Of every file what is another when it was written: size, time and inode."""
    stats = {file: file.stat() for file in files_under(Path(dep))}
    return {file: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats.items()}


def _values(keys: list[str]) -> dict[str, Any]:
    try:
        params = load_yaml(paths.PARAMS.read_bytes())
    except (OSError, ValueError):  # the stage itself says what is wrong with it
        params = {}
    return {key: value_at(params, key) for key in keys}


def filled_in(dep: Any) -> str:
    """A path of dvc.yaml, ${section.key} filled in from params.yaml."""
    path = re.sub(r"\$\{([\w.]+)\}", lambda match: str(_values([match[1]])[match[1]]), str(dep))
    return Path(path).as_posix()


def _differing(here: dict[str, str], there: dict[str, str]) -> list[str]:
    return sorted(path for path in here.keys() | there.keys() if here.get(path) != there.get(path))


def _sound(file: Path) -> bool:
    return file_digest(file, "md5") == "".join(file.parts[-2:])
