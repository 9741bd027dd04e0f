"""What happened to the files of a folder, told from their names and hashes before and now."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.core.files import file_digest

_SHOWN = 80


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, links of files too, without what lies behind links of folders."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in folder.rglob("*") if path.is_file()}


def changes(expected: Mapping[str, str], found: Mapping[str, str], origin: str) -> Iterator[str]:
    """A sentence for each file that was renamed, is missing or extra, was swapped, replaced by another, or changed."""
    new = sorted(found.keys() - expected.keys())
    for name in sorted(expected.keys() - found.keys()):
        moved = next((other for other in new if found[other] == expected[name]), None)
        if moved is None:
            yield f"{shown(name)} is missing"
        else:
            new.remove(moved)
            yield f"{shown(name)} was renamed: its bytes are in {shown(moved)}"
    yield from (f"{shown(name)} is not in {origin}" for name in new)
    for name in sorted(expected.keys() & found.keys()):
        if found[name] == expected[name]:
            continue
        twin = next((one for one, digest in sorted(expected.items()) if digest == found[name]), None)
        if twin is None:
            yield f"{shown(name)} has other bytes than {origin} says"
        else:
            how = "swapped with" if found.get(twin) == expected[name] else "replaced by the bytes of"
            yield f"{shown(name)} was {how} {shown(twin)}"


def shown(name: str) -> str:
    """A file's name as a sentence has it: short, and without what a terminal would obey."""
    return name if len(name) <= _SHOWN and name.isprintable() else repr(name[:_SHOWN])
