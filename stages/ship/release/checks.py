"""Does a state of the repository hold what dvc.lock says made an output? Every gap is a sentence."""

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.core.dvc_lock import Entry, Lock, Stage, entry_hash, folder_hash, md5
from stages.core.git import CommitTree, Repository, Tree, WorkingTree
from stages.core.yaml_reader import load_yaml
from stages.ship.release.dvc_files import Definition, Listings

_VERSIONS_SEARCHED = 50
AUTOCRLF = (
    "git changed them on checkout (core.autocrlf); put `* -text` into .gitattributes, commit your changes, then "
    "`git rm -rq --cached . && git reset --hard` checks the right bytes out, and a stage that read others runs again"
)


@dataclass
class Findings:
    """What breaks the trail, and what could not be checked."""

    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checker:
    """The checks of one lock against one state of the files."""

    repository: Repository
    listings: Listings
    lock: Lock
    tree: Tree

    def check(self, stage: str) -> Findings:
        """Check everything that the output of `stage` came from."""
        findings = Findings()
        self.listings.add_lock(self.lock)
        definition = Definition.read(self.tree)
        for upstream in self.lock.upstream(stage):
            findings.broken += definition.differences(upstream, self.tree.label)
            findings.broken += self._parameters(upstream)
            self.check_links(upstream, findings)
            self.check_sources(upstream, findings)
        self._in_git(definition.in_git, findings)
        findings.broken = list(dict.fromkeys(findings.broken))
        findings.notes = list(dict.fromkeys(findings.notes))
        return findings

    def check_links(self, stage: Stage, findings: Findings) -> None:
        """Check what the stage read from other stages and from `dvc add`, which git holds by hash alone."""
        for dep in stage.deps:
            makers = [(maker, out) for maker, out in self.lock.makers(dep.path) if maker.name != stage.name]
            for maker, out in makers:
                self._link(stage, dep, f"stage {maker.name} wrote", out, findings)
            if not makers and (source := added(self.tree, dep)):
                self._link(stage, dep, f"{source.path}.dvc says", source, findings)

    def check_sources(self, stage: Stage, findings: Findings) -> None:
        """Check what no stage makes: code, and data that git holds."""
        for dep in stage.deps:
            if self.lock.makers(dep.path) or dep.md5 is None:
                continue
            if is_outside(dep.path):
                findings.notes.append(
                    f"{dep.path} lies outside the repository: its hash is recorded, its bytes are not"
                )
            elif added(self.tree, dep) is None:
                findings.broken += self._source(stage, dep)

    def _link(self, stage: Stage, dep: Entry, origin: str, out: Entry, findings: Findings) -> None:
        """What a stage read must be the output, or the part of it, that git names."""
        if not out.holds(dep.path):
            findings.notes.append(
                f"{dep.path} gathers outputs of several stages; what {stage.name} read is not checked"
            )
            return
        expected = out.md5
        if out.path != dep.path:
            files = self.listings.get(out.md5 or "")
            if files is None:
                findings.notes.append(
                    f"no listing of {out.path} is at hand; that {dep.path} is its part is not checked"
                )
                return
            expected = part_hash(files, posixpath.relpath(dep.path, out.path))
        if expected != dep.md5:
            findings.broken.append(
                f"stage {stage.name} read {dep.path} as {short(dep.md5)}, but {origin} {short(expected)}; "
                "run `dvc repro` and commit dvc.lock"
            )

    def _source(self, stage: Stage, dep: Entry) -> list[str]:
        files = self.tree.md5s(dep.path)
        found = entry_hash(files)
        if found == dep.md5:
            return []
        if found is None:
            return [f"{dep.path}, which stage {stage.name} read, is not in {self.tree.label}: it cannot be restored"]
        if line_ends_alone(self.repository, self.tree, dep):
            return [
                f"{dep.path} in {self.tree.label} differs by line ends alone from what {stage.name} read: {AUTOCRLF}"
            ]
        names = ", ".join(self._changed(dep, files)) or dep.path
        return [
            f"{names} in {self.tree.label} is not what stage {stage.name} ran with ({dep.path} was {short(dep.md5)})"
        ]

    def _changed(self, dep: Entry, files: Mapping[str, str]) -> list[str]:
        """The files that differ from what ran, known when the working tree or some other commit holds what ran."""
        for tree in self._other_trees(dep.path):
            ran = tree.md5s(dep.path)
            if entry_hash(ran) == dep.md5:
                names = sorted(name for name in {*files, *ran} if files.get(name) != ran.get(name))
                return [posixpath.join(dep.path, name) if name else dep.path for name in names]
        return []

    def _other_trees(self, path: str) -> Iterator[Tree]:
        yield WorkingTree(self.repository.root)
        recent = ["--all", "--full-history", f"-{_VERSIONS_SEARCHED}"]
        for commit in self.repository.git("rev-list", *recent, "--", path, check=False).split():
            yield CommitTree(self.repository, commit)

    def _parameters(self, stage: Stage) -> Iterator[str]:
        for file, used in stage.params.items():
            text = self.tree.read(file)
            try:
                values = load_yaml(text) if text is not None and not file.endswith((".py", ".toml")) else None
            except ValueError:
                values = None
            if not isinstance(values, dict):
                yield f"{file}, whose parameters stage {stage.name} read, is missing or unreadable in {self.tree.label}"
                continue
            for key, value in used.items():
                now = flatten(look_up(values, key), key)
                then = flatten(value, key)
                for name in [*then, *(name for name in now if name not in then)]:
                    if now.get(name, ABSENT) != then.get(name, ABSENT):
                        yield (
                            f"{file} in {self.tree.label} says {name} = {now.get(name, ABSENT)!r}, "
                            f"stage {stage.name} ran with {then.get(name, ABSENT)!r}"
                        )

    def _in_git(self, names: list[str], findings: Findings) -> None:
        """Check the outputs that git itself keeps: the metrics that people decide by."""
        for stage, out in self.lock.outs():
            if out.path not in names:
                continue
            found = entry_hash(self.tree.md5s(out.path))
            if found is None:
                findings.notes.append(f"{out.path} is not in {self.tree.label}; only its hash is recorded")
            elif found != out.md5:
                findings.broken.append(
                    f"{out.path} in {self.tree.label} is not what stage {stage.name} wrote: it was changed since"
                )
            for dep in stage.deps:
                for maker, made in self.lock.makers(dep.path):
                    if made.path == dep.path:
                        self._link(stage, dep, f"stage {maker.name} wrote", made, findings)


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


def look_up(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, or ABSENT."""
    if key in values:
        return values[key]
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


def flatten(value: Any, key: str) -> dict[str, Any]:
    """Dotted names of the values below a section, so that a difference names its own key."""
    if not isinstance(value, Mapping) or not value:
        return {} if value is ABSENT else {key: value}
    return {name: leaf for inner, node in value.items() for name, leaf in flatten(node, f"{key}.{inner}").items()}


def part_hash(files: Mapping[str, str], path: str) -> str | None:
    """The hash of a file or folder inside a folder, or None."""
    if path in files:
        return files[path]
    inside = {name[len(path) + 1 :]: md5 for name, md5 in files.items() if name.startswith(f"{path}/")}
    return folder_hash(inside) if inside else None


def line_ends_alone(repository: Repository, tree: Tree, dep: Entry) -> bool:
    """Whether a dependency is what a stage read but for line ends, as git's core.autocrlf changes them on checkout."""
    head = CommitTree(repository, "HEAD") if repository.resolve("HEAD") else tree

    def lf(content: bytes) -> bytes:
        return content.replace(b"\r\n", b"\n")

    def committed(path: str, content: bytes) -> bytes:
        known = head.read(path)
        return known if known is not None and lf(known) == lf(content) else lf(content)

    def crlf(_: str, content: bytes) -> bytes:
        return content if b"\0" in content else lf(content).replace(b"\n", b"\r\n")

    files = {name: posixpath.join(dep.path, name) if name else dep.path for name in tree.md5s(dep.path)}
    contents = {name: tree.read(path) or b"" for name, path in files.items()}
    return any(
        dep.md5 == entry_hash({name: md5(convert(files[name], content)) for name, content in contents.items()})
        for convert in (committed, crlf)
    )


def added(tree: Tree, dep: Entry) -> Entry | None:
    """The path, or the folder around it, that a .dvc file (`dvc add`) tracks."""
    path = posixpath.normpath(dep.path)
    while path and not is_outside(path):
        if (text := tree.read(f"{path}.dvc")) is not None:
            try:
                row = load_yaml(text)["outs"][0]
                return Entry(path, str(row["md5"]), row.get("size"), row.get("nfiles"))
            except (ValueError, LookupError, TypeError, AttributeError):
                return None
        path = posixpath.dirname(path)
    return None


def is_outside(path: str) -> bool:
    """Whether a dependency is no path below the root: absolute, above it or a URL."""
    return posixpath.isabs(path) or path.startswith("../") or "://" in path or path[1:3] == ":\\"


def short(md5: str | None) -> str:
    return "an unknown hash" if md5 is None else md5[:10]
