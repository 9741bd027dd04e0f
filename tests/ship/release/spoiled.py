"""A release spoiled in many ways, by a seed, and an oracle: what a command says yes to must be so.

Each way changes one copy of the scratch repository. The oracle knows the untouched repository, so it needs none of the
code under test: it compares bytes.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from scratch import Answer, Scratch

MODEL = "models/release/nf4/model.safetensors"
TAG = "support-tickets@v1.0.0"
OUTPUTS = [
    MODEL,
    "models/release/merged/model.safetensors",
    "models/release/merged/tokenizer.json",
    "models/release/manifest.json",
    "models/release/README.md",
    "models/adapter/adapter.safetensors",
    "models/base/model.safetensors",
    "data/clean.jsonl",
    "data/split/train.jsonl",
    "data/split/holdout.jsonl",
]
SOURCES = ["stages/train/loop.py", "stages/clean/rules.py", "data/raw/a.jsonl", "constraints.txt", "params.yaml"]

Spoil = Callable[[Scratch, random.Random], str]


def put(path: Path, content: bytes, unseen: bool = False) -> None:
    """Replace a file; `unseen` keeps mode and times, by which DVC knows a file."""
    before = path.stat()
    path.unlink()
    path.write_bytes(content)
    if unseen:
        path.chmod(before.st_mode)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def changed(content: bytes, how: str, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return {
        "flip": content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
        "truncate": content[:-1],
        "empty": b"",
        "append": content + b"\n",
    }[how]


def on_file(how: str, places: Callable[[Scratch], list[Path]], unseen: bool = False) -> Spoil:
    def spoil(scratch: Scratch, rng: random.Random) -> str:
        path = rng.choice(places(scratch))
        shown = path.relative_to(scratch.root)
        if how == "delete":
            path.unlink()
        elif how == "rename":
            path.rename(path.with_name(f"{path.name}.old"))
        elif how == "another's":
            other = rng.choice([one for one in places(scratch) if one.read_bytes() != path.read_bytes()])
            put(path, other.read_bytes(), unseen)
        elif how == "link":
            shutil.move(path, scratch.root.parent / path.name)
            path.symlink_to(scratch.root.parent / path.name)
        elif how == "dangling":
            path.unlink()
            path.symlink_to(scratch.root.parent / "nowhere")
        else:
            put(path, changed(path.read_bytes(), how, rng), unseen)
        return f"{how} {shown}"

    return spoil


def outputs(scratch: Scratch) -> list[Path]:
    return [scratch.root / name for name in OUTPUTS]


def sources(scratch: Scratch) -> list[Path]:
    return [scratch.root / name for name in SOURCES if name != "params.yaml"]


def cached(scratch: Scratch) -> list[Path]:
    return sorted((scratch.root / ".dvc/cache/files/md5").glob("*/*"))


def listings(scratch: Scratch) -> list[Path]:
    return [path for path in cached(scratch) if path.name.endswith(".dir")]


def extra(kind: str) -> Spoil:
    def spoil(scratch: Scratch, rng: random.Random) -> str:
        folder = scratch.root / "models/release" / rng.choice(["", "merged", "nf4"])
        path = folder / rng.choice(["more", ".more", "z.safetensors"])
        if kind == "file":
            shutil.copy(scratch.root / MODEL, path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "linked folder":
            path.symlink_to(scratch.root / "data")
        return f"{kind} {path.relative_to(scratch.root)}"

    return spoil


def manifest(edit: Callable[[dict[str, dict[str, object]], str], object]) -> Spoil:
    def spoil(scratch: Scratch, rng: random.Random) -> str:
        path = scratch.root / "models/release/manifest.json"
        content = json.loads(path.read_text())
        name = rng.choice(sorted(content["files"]))
        edit(content["files"], name)
        put(path, json.dumps(content).encode())
        return f"manifest.json edited at {name}"

    return spoil


def lock(edit: Callable[[list[str], random.Random], str], commit: bool) -> Spoil:
    """Edit the lines of dvc.lock."""

    def spoil(scratch: Scratch, rng: random.Random) -> str:
        lines = (scratch.root / "dvc.lock").read_text().splitlines()
        what = edit(lines, rng)
        scratch.write("dvc.lock", "\n".join(lines) + "\n")
        if commit:
            scratch.commit("Edit dvc.lock")
        return f"dvc.lock: {what}{', committed' if commit else ''}"

    return spoil


def other_hash(lines: list[str], rng: random.Random) -> str:
    at = rng.choice([i for i, line in enumerate(lines) if "md5: " in line])
    end = ".dir" if lines[at].endswith(".dir") else ""
    lines[at] = lines[at].partition("md5: ")[0] + f"md5: {rng.getrandbits(128):032x}{end}"
    return f"another hash in line {at + 1}"


def swapped_hashes(lines: list[str], rng: random.Random) -> str:
    hashes = [i for i, line in enumerate(lines) if "md5: " in line]
    a = rng.choice(hashes)
    b = rng.choice([i for i in hashes if lines[i].strip() != lines[a].strip()])
    lines[a], lines[b] = lines[b], lines[a]
    return f"hashes of lines {a + 1} and {b + 1} swapped"


def other_value(lines: list[str], rng: random.Random) -> str:
    at = next(i for i, line in enumerate(lines) if "learning_rate" in line)
    lines[at] = lines[at].replace("0.001", "0.002")
    return "another learning rate"


def other_path(lines: list[str], rng: random.Random) -> str:
    at = rng.choice([i for i, line in enumerate(lines) if "- path: " in line])
    lines[at] += "x"
    return f"another path in line {at + 1}"


def no_stage(lines: list[str], rng: random.Random) -> str:
    starts = [i for i, line in enumerate(lines) if line.startswith("  ") and line[2] != " "] + [len(lines)]
    which = rng.randrange(len(starts) - 1)
    name = lines[starts[which]].strip()
    del lines[starts[which] : starts[which + 1]]
    return f"no stage {name}"


def committed(name: str, old: str, new: str) -> Spoil:
    def spoil(scratch: Scratch, rng: random.Random) -> str:
        scratch.replace(name, old, new)
        scratch.commit("Edit")
        return f"{name} edited and committed"

    return spoil


def hidden_from_git(flag: str) -> Spoil:
    def spoil(scratch: Scratch, rng: random.Random) -> str:
        name = rng.choice(["stages/train/loop.py", "metrics/gates.json", "data/raw/a.jsonl"])
        scratch.git("update-index", flag, name)
        put(scratch.root / name, changed((scratch.root / name).read_bytes(), "append", rng))
        return f"{name} edited behind {flag}"

    return spoil


def moved_tag(annotated: bool) -> Spoil:
    def spoil(scratch: Scratch, rng: random.Random) -> str:
        scratch.git("commit", "--quiet", "--allow-empty", "--message", "Later")
        how = (
            ["--annotate", "--message", scratch.git("tag", "--list", "--format=%(contents)", TAG)] if annotated else []
        )
        scratch.git("tag", "--force", *how, TAG, "HEAD")
        return "tag moved" + (" with its message" if annotated else "")

    return spoil


def rewritten(scratch: Scratch, rng: random.Random) -> str:
    name = rng.choice(SOURCES)
    scratch.git("tag", "--delete", TAG)
    scratch.git("rm", "--quiet", "--cached", name)
    scratch.git("commit", "--quiet", "--amend", "--message", "Run A")
    scratch.git("reflog", "expire", "--expire=now", "--all")
    return f"history rewritten without {name}"


IN_PLACE = ("flip", "truncate", "empty", "append", "another's", "delete", "rename", "link", "dangling")
WAYS: list[Spoil] = [
    *(on_file(how, outputs) for how in IN_PLACE),
    *(on_file(how, outputs, unseen=True) for how in ("flip", "another's", "truncate")),
    *(on_file(how, sources) for how in ("flip", "empty", "append", "delete", "another's")),
    *(on_file(how, sources, unseen=True) for how in ("flip", "another's")),
    *(on_file(how, cached, unseen=True) for how in ("flip", "truncate", "empty", "another's", "delete")),
    *(on_file(how, listings, unseen=True) for how in ("flip", "empty", "another's", "delete")),
    *(extra(kind) for kind in ("file", "folder", "fifo", "linked folder")),
    manifest(lambda files, name: files.pop(name)),
    manifest(lambda files, name: files[name].update(sha256="0" * 64)),
    manifest(lambda files, name: files[name].update(md5="0" * 32)),
    manifest(lambda files, name: files[name].update(bytes=1)),
    manifest(lambda files, name: files.update({f"{name}.more": files[name]})),
    manifest(lambda files, name: files[name].clear()),
    *(
        lock(edit, commit)
        for edit in (other_hash, swapped_hashes, other_value, other_path, no_stage)
        for commit in (False, True)
    ),
    committed("metrics/gates.json", "0.97", "0.99"),
    committed("stages/train/loop.py", "1", "2"),
    committed("params.yaml", "1e-3", "2e-3"),
    committed("dvc.yaml", "run.py train", "run.py train --fast"),
    committed("data/raw/a.jsonl", "1", "7"),
    hidden_from_git("--assume-unchanged"),
    hidden_from_git("--skip-worktree"),
    moved_tag(annotated=False),
    moved_tag(annotated=True),
    rewritten,
]


def files(folder: Path) -> dict[str, bytes]:
    """Plain files below a folder; anything else that is not a folder with files in it stands for itself."""
    found = {}
    for path in sorted(folder.rglob("*")):
        odd = path.is_symlink() or not (path.is_dir() or path.is_file()) or (path.is_dir() and not any(path.iterdir()))
        if odd or path.is_file():
            found[path.relative_to(folder).as_posix()] = b"odd" if odd else path.read_bytes()
    return found


def untruths(pristine: Scratch, scratch: Scratch) -> Iterator[str]:
    """What a command says yes to although it is not so. Where all is so, the command is not asked."""

    def yes(*command: str, unless: str = "\0") -> bool:
        answer: Answer = scratch.tunetrail(*command)
        return answer.code == 0 and unless not in answer.out

    def same(*names: str) -> bool:
        pairs = [(pristine.root / name, scratch.root / name) for name in names]
        return all(b.is_file() and a.read_bytes() == b.read_bytes() for a, b in pairs)

    if files(scratch.root / "models/release") != files(pristine.root / "models/release") and yes("verify"):
        yield "verify: the release is what the manifest says"
    for name in OUTPUTS:
        if not same(name) and yes("trace", name):
            yield f"trace {name}: complete"
    moved = scratch.git("tag") and scratch.git("rev-parse", f"{TAG}^{{}}") != pristine.git("rev-parse", "HEAD")
    if moved and yes("trace", TAG):
        yield f"trace {TAG}: complete"
    present = [name for name in OUTPUTS if (scratch.root / name).exists()]
    objects = [path.relative_to(pristine.root).as_posix() for path in cached(pristine)]
    kept = [name for name in objects if (scratch.root / name).is_file()]
    if not same(*present, *kept, *SOURCES, "metrics/gates.json", "dvc.lock") and yes("lock-check", "--deep"):
        yield "lock-check --deep: all is what dvc.lock names"
    if kept != objects and yes("lock-check", "--deep", unless="only the working tree holds"):
        yield "lock-check --deep: not a word of an object that the cache lacks"
    if yes("release", "9.0.0") and not comes_back(pristine, scratch, "support-tickets@v9.0.0"):
        yield "release: tagged what does not come back"


def comes_back(pristine: Scratch, scratch: Scratch, tag: str) -> bool:
    """Whether a clone at the tag, with the cache, has the files of the untouched repository."""
    back = Scratch(scratch.root.parent / "back")
    scratch.git("clone", "--quiet", "--branch", tag, str(scratch.root), str(back.root))
    shutil.copytree(scratch.root / ".dvc/cache", back.root / ".dvc/cache")
    back.dvc("checkout")
    names = [*OUTPUTS, *SOURCES, "metrics/gates.json", "dvc.lock"]
    return all((back.root / name).read_bytes() == (pristine.root / name).read_bytes() for name in names)


def drill(pristine: Scratch, folder: Path, seed: int, ways: list[Spoil] | None = None) -> list[str]:
    """Spoil one copy of a released repository in each way; return every untruth with the way and its seed."""
    found = []
    for number, way in enumerate(WAYS if ways is None else ways):
        scratch = pristine.copy(folder / str(number) / "repository")
        what = way(scratch, random.Random(f"{seed} {number}"))
        found += [f"seed {seed}, way {number} ({what}): {said}" for said in untruths(pristine, scratch)]
        shutil.rmtree(folder / str(number), ignore_errors=True)
    return found
