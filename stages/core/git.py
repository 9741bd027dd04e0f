"""The two places where the trail's files can be read: a git commit and the working tree.

Git is called as a program, so that a trace needs neither DVC nor a git library.
"""

import hashlib
import json
import os
import posixpath
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pathspec import GitIgnoreSpec

from stages.core.errors import UserError, names
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
# The files that DVC reads, with the folder of each.
_DVCS = re.compile(r"(.*/)?(\.dvc/.*|\.dvcignore|dvc\.(lock|yaml)|[^/]+\.dvc)", re.DOTALL)
# Git's variables that stay: who commits, and where its configuration lies (it names the folders that git may trust).
_KEPT_VARIABLES = ("GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG_")


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds dvc.yaml. Raises UserError when there is none."""
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UserError(f"no dvc.yaml in {start} or above it; change to the folder of the repository and run again")


def dvc_folder(root: Path) -> Path:
    """DVC's own folder of the project in `root`, which may lie below the one that DVC was initialised in."""
    above = (folder / ".dvc" for folder in (root, *root.absolute().parents))
    return next((own for own in above if own.is_dir()), root / ".dvc")


class Tree:
    """A state of the repository's files; paths are relative to its root, with forward slashes."""

    label: str  # how a sentence names it
    root: Path

    def is_ignored(self, path: str, within: str) -> bool:
        """Whether a .dvcignore of the folders around `within` names the path; DVC lets none lie in what it hashes."""
        root = self._below_dvc
        for folder in (root / within).parents:  # the nearest first, up to the folder that has .dvc
            if folder not in self._rules:
                text = (self.read(posixpath.relpath(folder / ".dvcignore", root)) or b"").decode(errors="replace")
                self._rules[folder] = GitIgnoreSpec.from_lines(map(str.strip, text.split("\n")))
            if (said := self._rules[folder].check_file((root / path).relative_to(folder)).include) is not None:
                return said
        return not {".git", ".hg", ".dvc"}.isdisjoint(PurePosixPath(path).parts)

    @cached_property
    def _below_dvc(self) -> PurePosixPath:
        return PurePosixPath(os.path.relpath(self.root, dvc_folder(self.root).parent))

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
        partial = self.git("config", "--get-regexp", r"^remote\..*\.promisor$", check=False)
        said = "this is a partial clone; git asks its remote for what it lacks" if partial else None
        return self.lacks_history() or said or self.lacks_files()

    def lacks_history(self) -> str | None:
        said = "this clone has only part of the history; `git fetch --unshallow --tags` brings the rest"
        return said if self.git("rev-parse", "--is-shallow-repository", check=False) == "true" else None

    def lacks_files(self) -> str | None:
        """Which files that DVC reads for this folder a sparse checkout leaves out, in words."""
        below = self.git("rev-parse", "--show-prefix", check=False)
        rows = self.git("ls-files", "-t", "-z", "--full-name", "--", ":/", check=False).split("\0")
        left_out = [found for row in rows if row.startswith("S ") and (found := _DVCS.fullmatch(row[2:]))]
        lacking = [one[0] for one in left_out if one[0].startswith(below) or below.startswith(one[1] or "")]
        said = f"this is a sparse checkout without {names(lacking)}; `git sparse-checkout disable` brings all files"
        return said if lacking else None

    def push_command(self, *refs: str) -> str:
        """What publishes these refs, to the remote that git would take."""
        remotes = self.git("remote").splitlines()
        branch = self.git("symbolic-ref", "--quiet", "HEAD", check=False)
        own = self.git("for-each-ref", "--format=%(push:remotename)", branch) if branch else ""
        usual = [own, self.git("config", "remote.pushDefault", check=False), "origin", *remotes[: len(remotes) == 1]]
        name = next((one for one in usual if one in remotes), "REMOTE")
        which = f"one of {names(remotes)}" if remotes else "none yet: `git remote add REMOTE URL`"
        return shlex.join(["git", "push", "--atomic", name, *refs]) + f"    (REMOTE: {which})" * (name == "REMOTE")

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
        self.label, self.root = f"commit {self.commit[:10]}", self.repository.root

    @cached_property
    def _listed(self) -> dict[str, str]:
        rows = self.repository.git("ls-tree", "-r", "-z", self.commit).split("\0")
        return {path: meta for meta, _, path in (row.partition("\t") for row in rows) if " blob " in meta}

    @cached_property
    def _links(self) -> dict[str, str]:
        links = {path: meta.split()[2] for path, meta in self._listed.items() if meta.startswith("120000")}
        texts = zip(links, self.repository.contents(links.values()), strict=True)
        return {path: posixpath.normpath(posixpath.join(path, "..", os.fsdecode(to or b""))) for path, to in texts}

    def _followed(self, path: str) -> str:
        """The path that links at or above it lead to; what leads round and round stays a link."""
        for _ in range(8):
            above = [folder.as_posix() for folder in (*PurePosixPath(path).parents[::-1], PurePosixPath(path))]
            link = next((one for one in above if one in self._links), None)
            if link is None:
                break
            path = posixpath.normpath(posixpath.join(self._links[link], posixpath.relpath(path, link)))
        return path

    @cached_property
    def blobs(self) -> dict[str, str]:
        """Path to object id, of a link that of the file of this commit that it leads to; no other link is a file."""
        files = {path: meta.split()[2] for path, meta in self._listed.items() if path not in self._links}
        ends = {path: self._followed(path) for path in self._links}
        return files | {path: files[end] for path, end in ends.items() if end in files}

    def read(self, path: str) -> bytes | None:
        name = f"{self.commit}:{path}" if path.startswith("../") else self.blobs.get(self._followed(path))
        return None if name is None else self.repository.contents([name])[0]

    def md5s(self, path: str) -> dict[str, str]:
        path = posixpath.normpath(path)
        end = self._followed(path)
        inside = {p[len(end) + 1 :]: i for p, i in self.blobs.items() if p == end or p.startswith(f"{end}/")}
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
