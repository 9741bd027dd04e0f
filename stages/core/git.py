"""The two places where the trail's files can be read: a git commit and the working tree.

Git is called as a program, so that a trace needs neither DVC nor a git library.
"""

import hashlib
import json
import os
import posixpath
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pathspec import GitIgnoreSpec

from stages.core.errors import UserError
from stages.core.files import file_digest
from stages.core.yaml_reader import load_written_yaml

LOCK = "dvc.lock"

# What a person's configuration could change in what git prints or does here. Plumbing heeds no alias, colour, format or
# pager; these it heeds.
_SETTINGS = {
    "core.quotePath": "false",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "diff.ignoreSubmodules": "none",
    "i18n.logOutputEncoding": "UTF-8",
    "log.showSignature": "false",
    "submodule.recurse": "false",
    "tag.forceSignAnnotated": "false",
    "tag.gpgSign": "false",
}
# Of a repository that another person owns, and of damaged objects, which git else tells as if they were not there.
_UNREADABLE = re.compile(r"dubious ownership|^error: ", re.MULTILINE)
# Git's variables that stay: who commits, and where its configuration lies (it names the folders that git may trust).
_KEPT_VARIABLES = ("GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG_")


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds dvc.yaml. Raises UserError when there is none."""
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"no dvc.yaml in {start} or above it; change to the folder of the repository and run again")


class Tree:
    """A state of the repository's files; paths are relative to its root, with forward slashes."""

    label: str  # how a sentence names it

    def is_ignored(self, path: str, within: str) -> bool:
        """Whether a .dvcignore of the folders around `within` names the path; DVC lets none lie in what it hashes."""
        for folder in PurePosixPath(within).parents:  # the nearest first
            if folder not in self._rules:
                text = self.read((folder / ".dvcignore").as_posix()) or b""
                self._rules[folder] = GitIgnoreSpec.from_lines(text.decode(errors="replace").splitlines())
            if (said := self._rules[folder].check_file(PurePosixPath(path).relative_to(folder)).include) is not None:
                return said
        return False

    @cached_property
    def _rules(self) -> dict[PurePosixPath, GitIgnoreSpec]:
        return {}

    def read(self, path: str) -> bytes | None:
        """A file's bytes, or None."""
        raise NotImplementedError

    def read_mapping(self, path: Path) -> dict[str, Any]:
        """The JSON object, or the mapping in YAML, in a file; empty where there is none, or none that can be read."""
        parse = json.loads if path.suffix == ".json" else load_written_yaml
        try:
            content = parse(self.read(path.as_posix()) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def md5s(self, path: str) -> dict[str, str]:
        """The MD5 of the file at `path` (under the key "") or of each file below it, without what .dvcignore names."""
        raise NotImplementedError


@dataclass
class Repository:
    """A git repository, or the part of one below the folder of dvc.yaml."""

    root: Path
    _md5s: dict[str, str] = field(default_factory=dict)

    def git(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> str:
        """Run git in the root and return its output without the last line end; empty when it fails without `check`.

        Raises UserError with git's own words when it fails and `check` is set, or cannot read the repository.
        """
        done = self._run(*arguments, stdin=stdin, check=check)
        return done.stdout.decode(errors="replace").rstrip("\n") if done.returncode == 0 else ""

    def _run(self, *arguments: str, stdin: bytes, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = ["git", "--no-pager", *settings, *arguments]
        try:
            done = subprocess.run(
                command, cwd=self.root, env=git_environment(), input=stdin, capture_output=True, check=False
            )
        except FileNotFoundError:
            raise UserError("git is not installed; the trail is read from its history") from None
        said = done.stderr.decode(errors="replace").strip()
        if "from promisor remote" in said:
            raise UserError(f"{self.root} is a partial clone whose remote does not give what it lacks; clone the whole")
        if (check and done.returncode) or (done.returncode in (0, 128) and _UNREADABLE.search(said)):
            raise UserError(f"git {arguments[0]} failed in {self.root}: {said.removeprefix('fatal: ')}")
        return done

    def resolve(self, revision: str) -> str | None:
        """The commit that `revision` names, or None."""
        return self.git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False) or None

    def lacks(self) -> str | None:
        """What this clone has not of the repository, in words."""
        if self.git("rev-parse", "--is-shallow-repository", check=False) == "true":
            return "this clone has only part of the history; `git fetch --unshallow` brings the rest"
        partial = self.git("config", "--get-regexp", r"^remote\..*\.promisor$", check=False)
        return "this is a partial clone; git asks its remote for what it lacks" if partial else None

    def tag_commit(self, name: str) -> str | None:
        return self.resolve(f"refs/tags/{name}")

    def lock_commits(self, everything: bool) -> list[str]:
        """The commits that changed dvc.lock, oldest first; with `everything` also those of experiments and stashes."""
        left_out = [] if everything else ["--exclude=refs/exps/*", "--exclude=refs/stash"]
        order = ["--full-history", "--date-order", "--reverse"]
        known = self.resolve("HEAD") is not None
        return self.git("rev-list", *order, *left_out, "--all", "--", LOCK, check=known).split()

    def contents(self, names: Iterable[str]) -> list[bytes | None]:
        """The bytes that each name (an id, or such as COMMIT:./dvc.lock) stands for, or None, read in one go."""
        if not (wanted := list(names)):
            return []
        output = self._run("cat-file", "--batch", stdin="".join(f"{name}\n" for name in wanted).encode()).stdout
        found: list[bytes | None] = []
        at = 0
        for _ in wanted:
            end = output.index(b"\n", at)
            size, at = output[at:end].split()[-1], end + 1
            if size.isdigit():  # else it says "missing"
                found.append(output[at : at + int(size)])
                at += int(size) + 1
            else:
                found.append(None)
        return found

    def blob_md5s(self, ids: Iterable[str]) -> dict[str, str]:
        """The MD5 of each object's bytes, without those that git lacks: git names them by another hash than DVC."""
        wanted = dict.fromkeys(ids)
        unknown = [i for i in wanted if i not in self._md5s]
        for object_id, content in zip(unknown, self.contents(unknown), strict=True):
            if content is not None:
                self._md5s[object_id] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return {i: self._md5s[i] for i in wanted if i in self._md5s}

    def describe(self, commit: str) -> dict[str, str]:
        """Hash, author, date and subject of a commit; the subject can be empty, so it does not come last."""
        form = "--format=%s%n%H%n%an%n%cI"
        subject, sha, author, date = self.git("rev-list", "-1", "--no-commit-header", form, commit).split("\n")
        return {"sha": sha, "author": author, "date": date, "subject": subject}


def git_environment() -> dict[str, str]:
    """The environment in English and without the variables that point git elsewhere, as a hook's do."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith(_KEPT_VARIABLES)}
    return {**kept, "GIT_NO_REPLACE_OBJECTS": "1", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}


@dataclass
class CommitTree(Tree):
    """The files of one commit."""

    repository: Repository
    commit: str

    def __post_init__(self) -> None:
        self.label = f"commit {self.commit[:10]}"

    @cached_property
    def blobs(self) -> dict[str, str]:
        """Path to object id, of a link that of the file of this commit that it leads to; no other link is a file."""
        listing = self.repository.git("ls-tree", "-r", "-z", self.commit)
        rows = [row.split("\t", 1) for row in listing.split("\0") if row]
        found = {path: meta.split()[2] for meta, path in rows if " blob " in meta}
        links = [path for meta, path in rows if meta.startswith("120000")]
        texts = zip(links, self.repository.contents(found[path] for path in links), strict=True)
        ends = {path: posixpath.normpath(posixpath.join(path, "..", os.fsdecode(to or b""))) for path, to in texts}
        for _ in links[:8]:  # links to links; what leads round and round stays a link
            ends = {path: ends.get(end, end) for path, end in ends.items()}
        files = {path: found[path] for path in found.keys() - ends.keys()}
        return files | {path: files[end] for path, end in ends.items() if end in files}

    def read(self, path: str) -> bytes | None:
        object_id = self.blobs.get(path)
        return None if object_id is None else self.repository.contents([object_id])[0]

    def hash_at_once(self, places: Iterable[str]) -> None:
        """Ask git once for all files at or below these paths; `md5s` of one of them then asks no more."""
        wanted = {posixpath.normpath(path) for path in places}
        folders = tuple(f"{path}/" for path in wanted)
        self.repository.blob_md5s(i for p, i in self.blobs.items() if p in wanted or p.startswith(folders))

    def md5s(self, path: str) -> dict[str, str]:
        path = posixpath.normpath(path)
        inside = {p[len(path) + 1 :]: i for p, i in self.blobs.items() if p == path or p.startswith(f"{path}/")}
        kept = {p: i for p, i in inside.items() if not self.is_ignored(posixpath.join(path, p), path)}
        known = self.repository.blob_md5s(kept.values())
        return {p: known[i] for p, i in kept.items() if i in known}


@dataclass
class WorkingTree(Tree):
    """The files as they are now."""

    root: Path
    label = "the working tree"

    def read(self, path: str) -> bytes | None:
        file = self.root / path
        return file.read_bytes() if file.is_file() else None

    def md5s(self, path: str) -> dict[str, str]:
        path = posixpath.normpath(path)
        start = self.root / path
        files = [start] if start.is_file() else sorted(p for p in start.rglob("*") if p.is_file())
        inside = {p.relative_to(start).as_posix() if p != start else "": p for p in files}
        kept = {p: f for p, f in inside.items() if not self.is_ignored(posixpath.join(path, p), path)}
        return {p: file_digest(f, "md5") for p, f in kept.items()}
