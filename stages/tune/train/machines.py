"""Several machines that train one model: who they are, whether they are alike, and what the first hands to the others.

Each has a checkout of its own; they share no disk. The first (`NODE_RANK` 0) writes the outputs and the checkpoints.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from stages.core.errors import Refusal, UserError, names
from stages.core.files import files_under
from stages.core.machine import machine_settings

_AT_ONCE = 1 << 26  # bytes of a file
_TO_READ = 2.0  # seconds that the others get to read why the first one ends

_SILENT = 60.0  # seconds in which a machine gives no sign, though a thread of its own gives it
GONE = (
    "another process of this training is gone or out of reach; run the same commands again, on as many machines as "
    "there are now: training goes on from its last checkpoint"
)

_store: Any = None  # what the machines tell each other


def asked_for() -> dict[str, str]:
    """What the processes of this machine are told of the others, in torchrun's words; empty where there are none.

    It comes from torchrun's variables, those of launchers that start one process a machine, or SkyPilot's.

    Raises UserError when they say too little, or what cannot be, or when DVC runs the stage on another than the first.
    """
    many = _first_of("NNODES", "WORLD_SIZE", "SKYPILOT_NUM_NODES") or "1"
    if many == "1":
        return {}
    number, port = _first_of("NODE_RANK", "RANK", "SKYPILOT_NODE_RANK"), _first_of("MASTER_PORT") or "29500"
    address = next(iter(_first_of("MASTER_ADDR", "SKYPILOT_NODE_IPS").split()), "")
    numbers = many.isdecimal() and number.isdecimal() and port.isdecimal()
    if not (numbers and address and int(number) < int(many) and 0 < int(port) < 1 << 16):
        raise UserError(
            f"to train on several machines, NNODES ({many!r} here) says how many there are, NODE_RANK ({number!r}) "
            f"which of them this is, from 0, MASTER_ADDR ({address!r}) where the first is, and MASTER_PORT ({port!r}) "
            "on which port; set them, or NNODES=1"
        )
    if int(number) and "DVC_STAGE" in os.environ:
        raise UserError(
            f"this is machine {number} of several, and the first alone (NODE_RANK=0) runs `dvc repro`; run "
            "`python -m stages.tune.train` here, and `dvc checkout` for the outputs that DVC has just taken away"
        )
    return {"GROUP_WORLD_SIZE": many, "GROUP_RANK": number, "MASTER_ADDR": address, "MASTER_PORT": port}


def _first_of(*variables: str) -> str:
    return next((os.environ[name] for name in variables if os.environ.get(name)), "")


def count() -> int:
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def number() -> int:
    """Of the machine that this process runs on; the first is 0."""
    return int(os.environ.get("GROUP_RANK", "0"))


def leads() -> bool:
    """Whether this process is the first of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def meet(backend: str, mine: Mapping[str, str]) -> None:
    """Find the other machines, compare what they work on, and begin the process group of torch.

    `mine` has what must be equal everywhere, by its name.

    Raises UserError in each process when a machine does not come in time, comes twice, or differs from the first.
    """
    global _store
    from torch.distributed import DistError, PrefixStore, TCPStore, init_process_group  # type: ignore[attr-defined]

    seconds, first = machine_settings().wait, number() == 0 and leads()
    wait = timedelta(seconds=seconds)
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if leads():
        others = f"the other {count() - 1} of {count()} machines" if first else f"the first machine, at {place}"
        print(f"train: machine {number()} waits for {others}, at most {seconds} s", file=sys.stderr, flush=True)
    opens = first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun has opened the port
    try:
        host, _, port = place.rpartition(":")
        opened = TCPStore(host, int(port), None, opens, wait, wait_for_workers=False)
    except DistError as error:
        raise UserError(
            f"this machine cannot listen at {place} ({str(error).splitlines()[0]}); set MASTER_ADDR to what the others "
            "call it, and MASTER_PORT to a free port, the same on all"
            if opens
            else f"the first machine did not answer at {place} within {seconds} s: it does once `dvc repro` there "
            "has come to `train`, where that is stale; TUNETRAIL_WAIT has the seconds that this may take"
        ) from error
    _store = PrefixStore(f"tunetrail/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", opened)
    if leads():
        _store.set(f"machine/{number()}", json.dumps(dict(mine)))
        if _store.add(f"came/{number()}", 1) > 1:
            raise UserError(f"another machine has NODE_RANK {number()}, too; each has a number of its own")
    if first:
        _store.set("problem", _problem(mine, seconds))
    if problem := _store.get("problem").decode():
        time.sleep(_TO_READ if first else 0)
        raise UserError(problem)
    if leads():
        apart = PrefixStore("alive", TCPStore(host, int(port), None, False, wait))
        threading.Thread(target=_watch, args=[apart], daemon=True).start()
    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    group = PrefixStore("group", _store)
    init_process_group(backend, store=group, rank=rank, world_size=world, timeout=wait)


def _problem(mine: Mapping[str, str], seconds: int) -> str:
    """Why the machines cannot train together; empty where they can."""
    from torch import distributed

    keys = {other: f"machine/{other}" for other in range(1, count())}
    try:
        _store.wait([*keys.values()], timedelta(seconds=seconds))
    except distributed.DistError:
        absent = names(str(other) for other, key in keys.items() if not _store.check([key]))
        return (
            f"no machine came with NODE_RANK {absent} within {seconds} s; run `python -m stages.tune.train` there, "
            f"with NNODES={count()} and the same MASTER_ADDR and MASTER_PORT, or set NNODES to as many as there are"
        )
    said = []
    for other, key in keys.items():
        theirs = json.loads(_store.get(key))
        if differ := [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
            said.append(f"machine {other} has other {names(_beside(n, theirs.get(n), mine.get(n)) for n in differ)}")
    if not said:
        return ""
    return (
        f"the machines would not train the same: {'; '.join(said)} than the first; bring all to one commit, "
        "`dvc pull` there (or `dvc repro base augment`), and set them up alike"
    )


def _beside(name: str, theirs: str | None, ours: str | None) -> str:
    """Both values, but for hashes, which say nothing."""
    return name if len(f"{theirs}{ours}") > 60 else f"{name} ({theirs}, not {ours})"


def _watch(store: Any) -> None:
    """End this process when another machine is silent for long: its connections alone do not tell that it is off."""
    beats: dict[int, int] = {}
    heard = dict.fromkeys(set(range(count())) - {number()}, time.monotonic())
    while all(time.monotonic() - last < _SILENT for last in heard.values()):
        time.sleep(_SILENT / 10)
        for other in heard:
            with suppress(RuntimeError):  # the first machine is gone, or has ended
                store.add(f"alive/{number()}", 1)
                if (beat := store.add(f"alive/{other}", 0)) != beats.get(other):
                    beats[other], heard[other] = beat, time.monotonic()
    print(f"error: {GONE} (silent for {_SILENT:.0f} s)", file=sys.stderr, flush=True)
    os._exit(Refusal.exit_code)


def hand_out(folder: Path, inside: Iterable[str]) -> None:
    """Copy these folders inside the first machine's `folder` to the same places on the others."""
    first, writes = number() == 0 and leads(), number() > 0 and leads()
    files = [file for name in inside for file in files_under(folder / name)] if first else []
    listing = [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files]
    for name, size in json.loads(_from_first(json.dumps(listing).encode() if first else b"")):
        place = folder / name if first or writes else Path(os.devnull)
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("rb" if first else "wb") as stream:
            for _ in range(0, size, _AT_ONCE):
                part = _from_first(stream.read(_AT_ONCE) if first else b"")
                _ = first or stream.write(part)


def _from_first(content: bytes) -> bytes:
    """The first process's bytes, in every process; the others have none."""
    import torch
    from accelerate import PartialState
    from torch import distributed

    size = torch.tensor(len(content), device=PartialState().device)
    distributed.broadcast(size, 0)
    buffer = torch.zeros(int(size), dtype=torch.uint8, device=size.device)
    if content:
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(buffer, 0)
    return buffer.cpu().numpy().tobytes()


def bring(folder: Path, name: str, writer: int, rank: int) -> None:
    """Copy a small file of the process `writer` into the same folder on the first machine, where it is not yet."""
    elsewhere = writer >= int(os.environ["LOCAL_WORLD_SIZE"])
    if rank == writer and elsewhere:
        _store.set(f"file/{folder.name}/{name}", (folder / name).read_bytes())
    if rank == 0 and elsewhere:
        (folder / name).write_bytes(_store.get(f"file/{folder.name}/{name}"))
        _store.delete_key(f"file/{folder.name}/{name}")
