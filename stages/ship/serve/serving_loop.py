"""serve: a release's engine behind the front; where the link `current` leads, a new one takes over without a pause."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from stages.core import paths
from stages.core.errors import Refusal, UserError
from stages.core.files import atomic, read_json, tree_digest
from stages.engines.engine_server import Server, call, serving
from stages.ship.serve.front import Front, Target
from stages.ship.serve.served_version import LORA, Version
from stages.ship.serve.smoke import smoke, table

CURRENT = "current"
_GOLDEN, _LOOK_EVERY = 5, 0.2
_GONE = f"there is no link {CURRENT} any more"

_T = TypeVar("_T")

Start = Callable[[str], Target]


def start_engine(version: Version, context: int = 2048) -> Target:
    """Start the engine and smoke-test it through a front of its own.

    Raises UserError when it does not come up; Refusal when it fails the smoke test.
    """
    form = version.folder / version.form
    with ExitStack() as stack:
        # `transformers serve` goes by the path of its model.
        name = str(form) if version.engine == "transformers" else version.id
        server = stack.enter_context(serving(form, version.engine, name=name, context=context))
        target = Target(version, server)
        _try(Front(target))
        target.close = stack.pop_all().close
        return target


def start_adapters(versions: Mapping[str, Version], base: Path, context: int = 2048) -> dict[str, Target]:
    """Start one engine on the base model with the adapter of each version, and smoke-test each by its name.

    Raises UserError when there is no base model, or the engine does not come up; Refusal when an adapter is of another
    base, or fails its smoke test.
    """
    if not base.is_dir():
        raise UserError(f"--adapter serves adapters on {base}, which is not there; `dvc checkout` or `dvc repro base`")
    digest, first = tree_digest(base), next(iter(versions.values()))
    for name, version in versions.items():
        wanted = read_json(version.folder / LORA / "base_model.json")
        if wanted["tree_sha256"] != digest:
            raise Refusal(f"--adapter {name} was trained on {wanted['source']}, and {base} is another model")
    model = base
    if first.engine == "llama.cpp":
        model = base.parents[1] / paths.RELEASES / f"base-{digest[:16]}.gguf"
        if not model.exists():
            _write_base(base, model, first)
    with ExitStack() as stack:
        folders = {name: version.folder / LORA for name, version in versions.items()}
        server = stack.enter_context(serving(model, first.engine, name="base", context=context, adapters=folders))
        targets = {name: Target(version, replace(server, model=name)) for name, version in versions.items()}
        front = Front(targets[next(iter(targets))])
        front.adapters = targets
        _try(front)
        front.target.close = stack.pop_all().close
        return targets


def _write_base(base: Path, file: Path, version: Version) -> None:
    from stages.engines.gguf_export import write_gguf
    from stages.model.chat import task_chat
    from stages.model.loading import load_tokenizer

    with atomic(file) as partial:
        write_gguf(base, partial, "F16", task_chat(load_tokenizer(base), version.task).stop_id)


def _try(front: Front) -> None:
    """Raises Refusal when one of the front's versions fails its smoke test."""
    with front.answering() as url:
        for target in front.targets:
            version = target.version
            name = target.server.model if front.adapters else version.id
            checks = smoke(Server(f"{url}/v1", name, version.engine), version, version.golden(_GOLDEN))
            if not all(check.passed for check in checks):
                raise Refusal(f"{version.id} fails its smoke test:\n{table(checks)}")


def serve(
    start: Start,
    name: str,
    made: Callable[[Target], Front],
    address: tuple[str, int],
    canary: str | None,
    link: Path | None,
    adapters: Callable[[], dict[str, Target]] | None = None,
) -> None:
    """Answer at host and port until Ctrl-C or SIGTERM with the version of this name, or whatever the `link` names.

    `canary` is VERSION=SHARE%, a version beside it and its share of the requests. `adapters` starts what is served in
    place of the version, each by its name. Raises UserError when an engine does not come up, or ends; for an address or
    a canary that cannot be had; Refusal when a version is not to be served; KeyboardInterrupt when stopped before it
    answers.
    """
    beside, percent = _canary(canary) if canary else ("", 0.0)
    stopped, starting = threading.Event(), list[object]()

    def stop(*_: object) -> None:
        threading.Thread(target=stopped.set).start()  # in the thread that waits for the event it may wait for ever
        if starting:
            starting.clear()  # a second signal does not disturb the ending
            raise KeyboardInterrupt

    def begun(begin: Callable[[], _T]) -> _T:
        """Interrupted by a signal: an engine may take minutes to come up."""
        starting.append(begin)
        try:
            return begin()
        finally:
            starting.clear()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    served = begun(adapters) if adapters else {}
    front = made(next(iter(served.values())) if served else begun(lambda: start(name)))
    front.adapters, front.follows = served, link is not None
    try:
        if beside:
            front.canary = begun(lambda: start(beside)), percent / 100
        with front.answering(*address) as url, suppress(KeyboardInterrupt):
            for target in front.targets:
                called = f", as {target.server.model}" if served else ""
                print(f"{target.version.id} by {target.version.engine} at {url}/v1{called}", flush=True)
            follow(front, lambda new: begun(lambda: start(new)), name, link, stopped)
    finally:
        for target in front.targets:
            target.close()


def _canary(text: str) -> tuple[str, float]:
    found = re.fullmatch(r"(.+)=(\d{1,2}(?:\.\d+)?)%", text)
    if not found:
        raise UserError(f"--canary {text}: give VERSION=SHARE%, such as 1.2.0=10%")
    return found[1], float(found[2])


def follow(front: Front, start: Start, live: str, link: Path | None, stopped: threading.Event) -> None:
    """Bring what the link names to the front; a version that does not come up changes nothing, and the link goes back.

    `live` names what the front has, served on without the link. Raises UserError when an engine but a canary's ends.
    """
    while not stopped.wait(_LOOK_EVERY):
        for target in front.targets:
            if target.server.process and target.server.process.poll() is not None:
                said = f"the engine of {target.version.id} ended by itself"
                if target is front.target or front.adapters:
                    raise UserError(said)
                front.canary, front.note = None, f"{said}; {front.target.version.id} answers all requests"
                target.close()
                print(front.note, file=sys.stderr, flush=True)
        wanted = _named(link) if link else live
        if wanted is None and not front.note.startswith(_GONE):
            front.note = f"{_GONE}, {live} is served on; `tunetrail switch VERSION` says what is current"
            print(front.note, file=sys.stderr, flush=True)
        if link is None or wanted is None or wanted == live:
            continue
        try:
            front.switch(start(wanted)).close()
        except (UserError, OSError) as error:  # a second engine may find no memory, or no room on the disk
            front.note = f"{wanted} is not served, {live} still is: {error}"
            print(front.note, file=sys.stderr, flush=True)
            if _named(link) == wanted:
                point(link, live)
        else:
            live, front.note = wanted, ""
            print(f"{front.target.version.id} is served now", flush=True)


def _named(link: Path) -> str | None:
    """The version that the link names; None where there is no link."""
    with suppress(OSError):
        return link.readlink().name
    return None


def point(link: Path, name: str) -> None:
    """Let the link name a folder beside it; at every moment it names the old one or the new one."""
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{CURRENT}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    new.replace(link)


def switch(version: Version, link: Path, url: str | None) -> str:
    """Point `current` at a fetched version; with the front's address, wait until that serves it.

    Raises UserError when no front answers there; Refusal when the version did not come up: the old one is served on.
    """
    name, server = version.tree.name, Server(f"{url}".rstrip("/").removesuffix("/v1"), version.id, version.engine)
    said = call(server, "/health") if url else None
    if url and not (isinstance(said, dict) and said.get("follows")):
        raise UserError(f"--url {url}: what answers there is no `tunetrail serve {CURRENT}`")
    point(link, name)
    if url is None:
        return f"{CURRENT} is {name}; `tunetrail serve {CURRENT}` takes it"
    while (said := call(server, "/health"))["release"] != version.id:
        if _named(link) != name:
            raise Refusal(said.get("note") or f"{name} did not come up; see what `tunetrail serve` printed")
        time.sleep(_LOOK_EVERY)
    return f"{url} serves {version.id}"
