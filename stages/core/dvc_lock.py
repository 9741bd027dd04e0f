"""dvc.lock: what each stage read, what it was told and what it wrote, by hash."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.core.yaml_reader import load_yaml


@dataclass(frozen=True)
class Entry:
    """A dependency or an output. `md5` ends in ".dir" for a folder and is None where DVC used another hash."""

    path: str
    md5: str | None
    size: int | None
    files: int | None

    @property
    def is_folder(self) -> bool:
        return self.md5 is not None and self.md5.endswith(".dir")

    def holds(self, other: str) -> bool:
        """Whether a path is this one or lies below it."""
        return other == self.path or other.startswith(f"{self.path}/")


@dataclass(frozen=True)
class Stage:
    """One stage as it ran."""

    name: str
    command: str
    deps: tuple[Entry, ...]
    outs: tuple[Entry, ...]
    params: dict[str, dict[str, Any]]
    raw: dict[str, Any]


@dataclass(frozen=True)
class Lock:
    """All stages of one version of dvc.lock."""

    stages: dict[str, Stage]

    def outs(self) -> Iterator[tuple[Stage, Entry]]:
        for stage in self.stages.values():
            for out in stage.outs:
                yield stage, out

    def makers(self, path: str) -> list[tuple[Stage, Entry]]:
        """The stages that write `path`, a folder around it or a file below it."""
        asked = Entry(path, None, None, None)
        return [(stage, out) for stage, out in self.outs() if out.holds(path) or asked.holds(out.path)]

    def upstream(self, name: str) -> list[Stage]:
        """The stage and all stages whose outputs it came from, the first to run first."""
        order: dict[str, Stage] = {}
        started: set[str] = set()

        def visit(stage: Stage) -> None:
            if stage.name in started:
                return
            started.add(stage.name)
            for dep in stage.deps:
                for maker, _ in self.makers(dep.path):
                    visit(maker)
            order[stage.name] = stage

        visit(self.stages[name])
        return list(order.values())


def parse_lock(text: bytes) -> Lock:
    """Parse dvc.lock. Raises ValueError when it is not in the form that DVC 3 writes."""
    try:
        content = load_yaml(text)
        stages = (content or {}).get("stages") or {}
        return Lock({name: _stage(name, raw) for name, raw in stages.items()})
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _stage(name: str, raw: dict[str, Any]) -> Stage:
    return Stage(
        name=name,
        command=str(raw.get("cmd", "")),
        deps=tuple(_entry(row) for row in raw.get("deps") or []),
        outs=tuple(_entry(row) for row in raw.get("outs") or []),
        params=raw.get("params") or {},
        raw=raw,
    )


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(str(row["path"]), row.get("md5"), row.get("size"), row.get("nfiles"))
