"""serve with the real engine: two releases by llama.cpp, one taking over from the other while clients ask."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served import make_version, post

from stages.core.errors import Refusal, UserError
from stages.core.files import read_json, write_json
from stages.engines.engine_server import Server
from stages.records.record import read_rows, write_rows
from stages.ship.serve.front import Front, Target
from stages.ship.serve.served_version import Version, version_of
from stages.ship.serve.serving_loop import follow, point, serve, start_engine, switch


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Version]:
    """v1 and v2, and v3, which does not answer as it did when it was judged."""
    folder = tmp_path_factory.mktemp("versions")
    found = {f"v{n}": make_version(folder / f"v{n}", f"a@v{n}", seed=n) for n in (1, 2)}
    answers = folder / "v2/data/generations/artefacts"
    rows = [{**row, "output": row["output"] + "!"} for row in read_rows(answers / "gguf.jsonl")]
    spoiled = make_version(folder / "v3", "a@v3", seed=3, engine="stub")
    (spoiled.folder / "gguf").mkdir()
    (spoiled.folder / "gguf/model.gguf").hardlink_to(found["v2"].folder / "gguf/model.gguf")
    write_rows(spoiled.tree / "data/generations/artefacts/gguf.jsonl", rows)
    write_rows(spoiled.tree / "data/split/holdout.jsonl", read_rows(found["v2"].tree / "data/split/holdout.jsonl"))
    return {**found, "v3": spoiled}


def test_a_real_engine_takes_over_and_one_that_fails_its_smoke_test_does_not(versions: dict[str, Version]) -> None:
    link = versions["v1"].tree.with_name("current")
    point(link, "v1")
    front, stopped = Front(start_engine(versions["v1"], 256)), threading.Event()
    front.follows = True
    told: list[tuple[int, str]] = []

    def client(url: str) -> None:
        while not stopped.is_set():
            status, said, _ = post(url, {"messages": [{"role": "user", "content": "hello"}]})
            told.append((status, said["model"] if status == 200 else str(said)))

    with front.answering() as url, ThreadPoolExecutor(3) as pool:
        pool.submit(follow, front, lambda name: start_engine(versions[name], 256), "v1", link, stopped)
        asking = [pool.submit(client, url) for _ in range(2)]
        old = front.target.server.process
        said = switch(versions["v2"], link, url)
        with pytest.raises(
            Refusal, match=r"(?s)v3 is not served, v2 still is: a@v3 fails its smoke test.*FAILED  golden"
        ):
            switch(versions["v3"], link, url)
        stopped.set()
        for one in asking:
            one.result()
    front.target.close()
    assert said == f"{url} serves a@v2"
    assert {status for status, _ in told} == {200}
    assert {name for _, name in told} <= {"a@v1", "a@v2"}
    assert link.readlink().name == "v2"
    assert old is not None
    assert old.poll() is not None  # the engine that was relieved has ended


HERE = ("127.0.0.1", 0)


def logged(folder: Path) -> Callable[[Target], Front]:
    return lambda target: Front(target, log=folder / "log")


@pytest.fixture
def signals() -> Iterator[None]:
    """What `serve` does on signals ends with the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_serve_ends_with_its_engine(versions: dict[str, Version], tmp_path: Path) -> None:
    started = []

    def start(name: str) -> Target:
        started.append(start_engine(versions[name], 256))
        assert started[0].server.process is not None
        threading.Timer(0.5, started[0].server.process.terminate).start()
        return started[0]

    with pytest.raises(UserError, match="the engine of a@v1 ended by itself"), contextlib.redirect_stdout(None):
        serve(start, "v1", logged(tmp_path), HERE, None, None)
    with pytest.raises(UserError, match=r"--canary v2=200%: give VERSION=SHARE%"):
        serve(start, "v1", logged(tmp_path), HERE, "v2=200%", None)
    assert len(started) == 1


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("slow", ["v1", "v2", "adapters"])
def test_a_signal_ends_what_is_being_started_and_every_engine(
    slow: str, versions: dict[str, Version], tmp_path: Path
) -> None:
    link, open_engines = tmp_path / "current", set[str]()
    point(link, "v1")

    def start(name: str) -> Target:
        open_engines.add(name)
        if name != slow:
            point(link, "v2")
            return Target(versions["v1"], Server("http://127.0.0.1:1/v1", name, "stub"), lambda: open_engines.clear())
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)
        finally:
            signal.raise_signal(signal.SIGTERM)  # again, while the engine ends
            open_engines.discard(name)
        raise AssertionError

    adapters = (lambda: {"a": start(slow)}) if slow == "adapters" else None
    began = contextlib.nullcontext() if slow == "v2" else pytest.raises(KeyboardInterrupt)
    with began, contextlib.redirect_stdout(None):  # what answers already ends as it should
        serve(start, "v1", logged(tmp_path), HERE, None, link, adapters)
    assert not open_engines


@pytest.mark.usefixtures("signals")
def test_a_log_that_cannot_be_written_leaves_no_engine(versions: dict[str, Version], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    closed = list[str]()

    def start(name: str) -> Target:
        server = Server("http://127.0.0.1:1/v1", name, "stub")
        return Target(versions[name], server, lambda: closed.append(name))

    with pytest.raises(OSError, match="file"):
        serve(start, "v1", logged(tmp_path / "file"), HERE, None, None)
    assert closed == ["v1"]


def test_the_engine_says_which_file(versions: dict[str, Version]) -> None:
    one = versions["v1"]
    found = (one.id, one.folder, one.tree)
    assert version_of(*found, None) == one
    merged = dataclasses.replace(one, form="merged", engine="transformers")
    assert version_of(*found, "transformers") == merged
    manifest = one.folder / "manifest.json"
    content = read_json(manifest)
    absent: dict[str, dict[str, str]] = {"merged/config.json": {}, "gguf/absent.txt": {}}
    write_json(manifest, {**content, "files": absent, "formats": {"merged": {"engine": "transformers"}}})
    assert version_of(*found, None) == merged
    write_json(manifest, {**content, "files": absent, "formats": {"merged": {"engine": "vllm"}}})
    assert version_of(*found, None).engine == "vllm"
    with pytest.raises(UserError, match=r"a@v1 ships merged; llama\.cpp wants gguf"):
        version_of(*found, "llama.cpp")
    write_json(manifest, content)
