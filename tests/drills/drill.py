"""make drill: kills, flips, full disks, histories and fuzz on a small pipeline that runs the real stages/core.

    python tests/drills/drill.py --seed 7 --seconds 60

Each drill is one try on a copy of a finished repository, drawn from the seed, and one row of the table says how many
held. What did not is printed with the number that draws it again (--only KIND --try NUMBER). Exit code 1 if any.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/params"), str(ROOT)]

from release_histories import make_runs, play  # noqa: E402
from scratch import ENVIRONMENT, Scratch  # noqa: E402
from small_project import READS, WRITES, by_hand, command, digests, lock_of, make_small, set_param, untruths  # noqa: E402
from test_params_fuzz import check, mutated  # noqa: E402

from stages.params.loader import check_params, read_params  # noqa: E402

REPRO = (sys.executable, "-m", "stages.cli", "repro")
_BALLAST = 40_000
_TMPFS_BYTES = 1 << 20


class Skip(Exception):
    """What this machine does not let a drill do."""


@dataclass
class Tally:
    """One row of the table."""

    tried: int = 0
    held: int = 0
    seconds: float = 0.0
    skipped: str = ""
    broken: list[str] = field(default_factory=list)


def kill(draw: random.Random, small: Scratch) -> None:
    """A run is killed at any moment, whole or in part; the next ends with the bytes of an undisturbed one."""
    change(draw, small, seconds=0.05)
    undisturbed = copy(small, "undisturbed")
    repro(undisturbed)
    for _ in range(draw.randint(1, 3)):
        process = subprocess.Popen(
            REPRO,
            cwd=small.root,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(draw.uniform(0.2, 4.0))
        if draw.random() < 0.7:
            os.killpg(process.pid, signal.SIGKILL)
        else:  # DVC and its stage live on for a while
            process.kill()
        process.wait()
    wait_for_the_rest(small)
    repro(small)
    assert digests(small) == digests(undisturbed), "other bytes than an undisturbed run"
    clean_and_true(small)


def cut(draw: random.Random, small: Scratch) -> None:
    """dvc.lock or the rwlock is cut anywhere, after stages that no commit has yet."""
    change(draw, small)
    repro(small)
    before = digests(small)
    name = draw.choice(["dvc.lock", "dvc.lock", ".dvc/tmp/rwlock"])
    content = (small.root / name).read_bytes() or b'{"write": {"/a": {"pid": 1, "cmd": "x"}}, "read": {}}'
    (small.root / name).write_bytes(content[: draw.randrange(len(content))])
    said = repro(small)
    assert "Running stage 'second'" not in said, "a finished stage was computed again"
    assert digests(small) == before, "other bytes than before"
    clean_and_true(small)


def flip(draw: random.Random, small: Scratch) -> None:
    """A bit of an output or of its cache object flips: it is not read, or what is recorded is what was read."""
    small.dvc("config", "cache.type", draw.choice(["copy", "hardlink", "symlink", "reflink,copy"]))
    small.dvc("checkout", "--relink")
    name = draw.choice([name for names in list(WRITES.values())[:2] for name in names])
    place = small.root / name
    if name != "out/in_git.txt" and draw.random() < 0.6:
        md5 = next(file for file in objects(small) if file.read_bytes() == place.read_bytes())
        flip_bit(draw, md5)
        place.unlink()
        small.dvc("checkout")
    else:
        flip_bit(draw, place.resolve())
    reader = draw.choice([stage for stage in READS if name in READS[stage]])
    set_param(small, reader, "seed", "flipped")
    code, said = by_hand(small, reader) if draw.random() < 0.3 else command(small, *REPRO)
    assert "Traceback" not in said, said
    if code == 0:
        assert reader not in said or not untruths(small), untruths(small)
    else:
        assert name in said, f"{name} is not named:\n{said}"


def edit(draw: random.Random, small: Scratch) -> None:
    """A person edits what the stage reads while it runs: dvc.lock never names what it did not read."""
    stage = draw.choice(list(READS))
    name = draw.choice([*READS[stage], "params.yaml", "stages/third.py", "out/folder/more"])
    text = (small.root / name).read_text() if (small.root / name).exists() else ""
    text = text.replace("seed: a", "seed: z") if name == "params.yaml" else text + "\n# edited"
    small.write("edits/edit", f"{name}\n{text}")
    code, said = command(small, *REPRO, "--force", "--single-item", stage)
    assert "Traceback" not in said, said
    assert code or not untruths(small), untruths(small)


def at_once(draw: random.Random, small: Scratch) -> None:
    """Several of one stage at once: each ends well, and the outputs are whole."""
    stage = draw.choice(list(READS))
    set_param(small, stage, "seconds", 0.01)
    words = [sys.executable, "-m", f"stages.{stage}"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [
        subprocess.Popen(words, cwd=small.root, env=os.environ | ENVIRONMENT, **streams)  # type: ignore[call-overload]
        for _ in range(draw.randint(2, 5))
    ]
    said = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(said)
    for name in WRITES[stage]:
        assert (small.root / name).read_text().endswith("}"), f"{name} is not whole"
    assert not list((small.root / ".tunetrail/partial").iterdir())


def full_disk(draw: random.Random, small: Scratch) -> None:
    """The disk of the repository, of the cache or of temporary files is full; with room the run goes on."""
    change(draw, small, seconds=0)
    for stage in READS:
        set_param(small, stage, "ballast", _BALLAST)
    undisturbed = copy(small, "undisturbed")
    repro(undisturbed)
    where = draw.choice(["out", ".dvc/cache", ".tunetrail", ".dvc"])
    with tmpfs(small.root / where, bytes_over=draw.randint(4_096, 150_000)):
        code, said = command(small, *REPRO)
        assert "Traceback" not in said, said
        if code:
            assert "no space left on the disk of" in said or "little room" in said, said
    (code, said), after = command(small, *REPRO), digests(small)
    assert code == 0, said
    assert after == digests(undisturbed), "other bytes than with room"
    clean_and_true(small)


def read_only(draw: random.Random, small: Scratch) -> None:
    """A cache that cannot be written is told before a stage works."""
    change(draw, small, seconds=0)
    before = digests(small)
    with mounted(small.root / ".dvc/cache", "--bind"):
        mount("-o", "remount,ro,bind", str(small.root / ".dvc/cache"))
        code, said = command(small, *REPRO)
        mount("-o", "remount,rw,bind", str(small.root / ".dvc/cache"))
    assert code, "it ran"
    assert "cannot be written" in said, said
    assert "Traceback" not in said, said
    repro(small)
    assert digests(small) != before
    clean_and_true(small)


def history(draw: random.Random, small: Scratch) -> None:
    """Changes, runs and commits; then any commit of them brings back its bytes."""
    known = {small.git("rev-parse", "HEAD"): digests(small)}
    for number in range(draw.randint(2, 4)):
        if draw.random() < 0.3 and len(known) > 1:
            small.git("checkout", "--quiet", draw.choice(list(known)))
            small.dvc("checkout")
        change(draw, small, seconds=0)
        repro(small)
        small.git("add", "--all")
        small.git("commit", "--quiet", "--allow-empty", "--message", f"Run {number}")
        known[small.git("rev-parse", "HEAD")] = digests(small)
    for commit in draw.sample(list(known), len(known)):
        small.git("checkout", "--quiet", commit)
        small.dvc("checkout")
        assert digests(small) == known[commit], "other bytes than when it was committed"
        clean_and_true(small)


def releases(draw: random.Random, small: Scratch) -> None:
    """Releases and rollbacks against a remote: every checkout verifies, and the history is that of a replay."""
    runs = Scratch(small.root.parents[1] / "runs" / "repository")  # made by the first try
    if not runs.root.exists():
        make_runs(runs.root.parent)
    play(draw, runs, small.root.parent / "releases")


def fuzz(draw: random.Random, small: Scratch) -> None:
    """Hostile values of params.yaml, and hostile rows of raw data: a verdict or sentences, never a traceback."""
    with contextlib.chdir(ROOT):
        whole = check_params(read_params(ROOT / "params.yaml")).model_dump()
        for _ in range(50):
            check(mutated(draw, whole))
    lines = (ROOT / "data/raw/support_tickets.jsonl").read_bytes().splitlines()
    rows = []
    for line in draw.choices(lines, k=300):
        try:
            row = json.dumps(mutated(draw, json.loads(line)), default=repr).encode()
        except (ValueError, TypeError):  # JSON cannot say it, or the line is planted dirt
            row = line
        if draw.random() < 0.3:
            at = draw.randrange(len(row) + 1)
            row = row[:at] + draw.randbytes(draw.randint(0, 3)) + row[at + draw.randint(0, 3) :]
        rows.append(row)
    file = small.root / f"rows{draw.choice(['.jsonl', '.jsonl', '.csv', '.tsv'])}"
    file.write_bytes(draw.choice([b"\n", b"\r\n"]).join(rows))
    words = [sys.executable, "-m", "stages.cli", "data", "check", str(file)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode in (0, 2), f"exit code {done.returncode}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-2000:]


DRILLS: dict[str, Callable[[random.Random, Scratch], None]] = {
    "kill": kill,
    "cut lock": cut,
    "flip": flip,
    "edit while running": edit,
    "several at once": at_once,
    "full disk": full_disk,
    "read-only cache": read_only,
    "history": history,
    "releases": releases,
    "fuzz": fuzz,
}


def change(draw: random.Random, small: Scratch, seconds: float = 0) -> None:
    """Something that makes a random part of the pipeline stale."""
    for stage in READS:
        set_param(small, stage, "seconds", seconds)
    for stage in draw.sample(list(READS), draw.randint(1, 3)):
        set_param(small, stage, "seed", f"s{draw.randrange(10**6)}")
    if draw.random() < 0.5:
        small.write("raw.txt", f"raw {draw.random()}")


def repro(small: Scratch) -> str:
    code, said = command(small, *REPRO)
    assert code == 0, said
    return said


def clean_and_true(small: Scratch) -> None:
    """dvc.lock tells the truth, and nothing unfinished lies where a release or git would find it."""
    assert not untruths(small), untruths(small)
    partials = small.root / ".tunetrail/partial"
    assert not partials.is_dir() or not list(partials.iterdir()), "unfinished files are left"
    files = [file for file in (small.root / "out").rglob("*") if file.is_file()]
    odd = [file for file in files if file.name.startswith(".") or "partial" in str(file.relative_to(small.root))]
    assert not odd, f"left in outputs: {odd}"
    assert len(lock_of(small).stages) == len(READS)


def objects(small: Scratch) -> list[Path]:
    return [file for file in (small.root / ".dvc/cache/files/md5").rglob("*") if file.is_file()]


def flip_bit(draw: random.Random, file: Path) -> None:
    """Change one bit and keep the rights, by which DVC takes a cache object for sound."""
    mode, content = file.stat().st_mode, bytearray(file.read_bytes())
    content[draw.randrange(len(content) - 2)] ^= 1  # the last two bytes close the text, which must stay one
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(mode & 0o777)


def copy(small: Scratch, name: str) -> Scratch:
    return small.copy(small.root.parent / name)


def wait_for_the_rest(small: Scratch) -> None:
    """A stage whose DVC was killed lives on until it has written."""
    import psutil

    def here(process: psutil.Process) -> bool:
        try:
            return process.pid != os.getpid() and Path(process.cwd()) == small.root
        except (psutil.Error, OSError):
            return False

    psutil.wait_procs([process for process in psutil.process_iter() if here(process)], timeout=60)


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skip(f"mount: {done.stderr.strip() or 'refused'}")


@contextmanager
def mounted(place: Path, *how: str) -> Iterator[None]:
    """Something mounted over a folder, and away again."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        raise Skip("only root can mount a small disk")
    place.mkdir(parents=True, exist_ok=True)
    mount(*how, *([str(place)] if "--bind" in how else []), str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def tmpfs(place: Path, bytes_over: int) -> Iterator[None]:
    """A disk of its own at `place` with what is there and `bytes_over` bytes of room; all is copied back at the end."""
    place.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f"{place.name}.aside")
    shutil.copytree(place, aside, symlinks=True)
    held = sum(-(-file.stat().st_size // 4096) * 4096 for file in aside.rglob("*") if file.is_file())
    with mounted(place, "-t", "tmpfs", "-o", f"size={max(held + bytes_over, 8192)}", "none"):
        shutil.copytree(aside, place, symlinks=True, dirs_exist_ok=True)
        yield
        shutil.rmtree(aside)
        shutil.copytree(place, aside, symlinks=True)
    shutil.rmtree(place)
    aside.rename(place)


def main() -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--seconds", type=float, default=60, help="no drill starts later")
    reader.add_argument("--only", choices=DRILLS)
    reader.add_argument("--try", type=int, dest="number", help="this one alone")
    options = reader.parse_args()
    os.environ.update(ENVIRONMENT)
    kinds = [options.only] if options.only else list(DRILLS)
    tallies = {kind: Tally() for kind in kinds}
    end, number = time.monotonic() + options.seconds, options.number or 0
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        template = make_small(Path(folder) / "template")
        while time.monotonic() < end and any(not tally.skipped for tally in tallies.values()):
            for kind in kinds:
                if time.monotonic() < end and not tallies[kind].skipped:
                    one(kind, options.seed, number, template, tallies[kind])
            if options.number is not None:
                break
            number += 1
    print(table(tallies, options.seed))
    raise SystemExit(any(tally.broken for tally in tallies.values()))


def one(kind: str, seed: int, number: int, template: Scratch, tally: Tally) -> None:
    """One try on a copy; how it went is added to the tally."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="try-", dir=template.root.parent, ignore_cleanup_errors=True) as folder:
        try:
            DRILLS[kind](random.Random(f"{seed} {kind} {number}"), template.copy(Path(folder) / "repository"))
            tally.held += 1
        except Skip as reason:
            tally.skipped = str(reason)
            return
        except AssertionError as error:
            tally.broken.append(f"--seed {seed} --only {kind!r} --try {number}: {error}")
    tally.tried += 1
    tally.seconds += time.monotonic() - start


def table(tallies: dict[str, Tally], seed: int) -> str:
    lines = [f"{'drill':<20} {'tried':>6} {'held':>6} {'seconds each':>13}  (seed {seed})"]
    for kind, tally in tallies.items():
        each = f"{tally.seconds / tally.tried:.1f}" if tally.tried else "-"
        lines.append(
            f"{kind:<20} {tally.tried:>6} {tally.held:>6} {each:>13}  {tally.skipped and 'skipped: '}{tally.skipped}"
        )
    broken = [f"\n{line}" for tally in tallies.values() for line in tally.broken]
    return "\n".join(lines + broken)


if __name__ == "__main__":
    main()
