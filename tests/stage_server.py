"""Stages of test pipelines in processes forked from one that has the heavy libraries loaded: seconds less for each.

`programs()` is a folder for PATH. Its `python -m stages.…`, `dvc` and `tunetrail` hand their folder, environment,
arguments and streams to that server, pass signals on and end as what was run ends; all other uses are those of the
real interpreter.
Forked processes share one seed of hashes: that no output hangs on it is shown by the pipeline that runs without.
"""

import atexit
import fcntl
import gc
import importlib
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from copy import deepcopy
from functools import cache, lru_cache
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

HEAVY = [
    "bitsandbytes",
    "compressed_tensors",
    "configobj",
    "cyclonedx.model.bom",
    "datasets",
    "dulwich.porcelain",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.repo.artifacts",
    "dvc.repo.datasets",
    "dvc.repo.experiments",
    "dvc.repo.index",
    "dvc.repo.plots",
    "dvc.repo.stage",
    "dvc.scm",
    "dvclive",
    "fsspec.implementations.memory",
    "gguf",
    "jsonschema",
    "networkx",
    "numba",
    "pathspec",
    "peft.tuners.lora.bnb",
    "peft.utils.transformers_weight_conversion",
    "platformdirs",
    "pydantic.main",
    "pydantic.plugin._loader",
    "pyparsing",
    "pytest",  # what some tests prepare a stage with is in their own files
    "rapidfuzz.process",
    "scipy.stats",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "torch.nn.attention.varlen",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
]
_LOOK_EVERY, _LARGEST = 2.0, 1 << 20
_CLIENT = """#!{python} -IS
import os, signal, socket, sys

words = [*{first}, *sys.argv[1:]]
if words[:1] != ["-m"] or not "".join(words[1:2]).startswith(("dvc", "stages.")):
    os.execv("{python}", ["{python}", *words])
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect("{place}")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
parts = [str(len(words)), os.getcwd(), *words[1:], *(f"{{name}}={{value}}" for name, value in os.environ.items())]
socket.send_fds(server, ["\\0".join(parts).encode(errors="surrogateescape")], [0, 1, 2])
code = int(server.recv(8) or -signal.SIGKILL)
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
session: list[Path] = []  # the folder of this session of pytest, which conftest.py names


@cache
def programs() -> Path:
    """The folder for PATH; the session's one server is up, and lives as long as a process that asked for it.

    Raises RuntimeError where it does not come up.
    """
    folder = session[0] / "stage-server"
    folder.mkdir(exist_ok=True)
    users = os.open(folder / "users", os.O_CREAT | os.O_RDONLY)
    fcntl.flock(users, fcntl.LOCK_SH)  # for as long as this process lives
    place, log = folder / "socket", folder / "log"
    with FileLock(folder / "starting"):
        if not place.exists():
            for name, first in (("python", []), ("dvc", ["-m", "dvc"]), ("tunetrail", ["-m", "stages.cli"])):
                client = folder / name
                client.write_text(_CLIENT.format(python=sys.executable, first=first, place=place))
                client.chmod(0o755)
            with log.open("w") as stream:
                words = [sys.executable, __file__, str(place)]
                server = subprocess.Popen(words, stdout=stream, stderr=stream, start_new_session=True)
            while not place.exists():
                if server.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.05)
    return folder


def serve(place: Path) -> None:
    """Answer at the socket `place` until nobody holds the lock of users."""
    import stages.core.errors  # noqa: F401  sets what the libraries read when they are loaded

    for name in HEAVY:
        importlib.import_module(name)
    _remember_yaml(sys.modules["dvc.utils.serialize._yaml"])
    sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("llama")  # makes the whole table
    for torn_down in weakref.finalize._registry:  # type: ignore[attr-defined]
        torn_down.atexit = False  # what the libraries registered: their ends cost more than they are worth
    for name in [name for name in sys.modules if name.partition(".")[0] == "stages"]:
        del sys.modules[name]
    sys.excepthook = sys.__excepthook__
    gc.collect()
    gc.freeze()  # else each process copies all memory when it first collects garbage
    gc.set_threshold(10_000, 50, 100)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(place) + ".new")
    listener.listen(64)
    Path(f"{place}.new").rename(place)
    _answer(listener, os.open(place.with_name("users"), os.O_RDONLY))


def _answer(listener: socket.socket, users: int) -> None:
    """Fork each stage, pass signals on to it, and say how it ended."""
    ended = dict[int, tuple[int, socket.socket]]()  # by what tells of it: the process and who waits for it
    asked = dict[int, tuple[int, socket.socket]]()  # the same by the client's socket, until that is closed
    while True:
        watched: list[Any] = [listener, *ended, *asked]
        ready = select.select(watched, [], [], _LOOK_EVERY)[0]
        if not ready and not ended:
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os._exit(0)
        if listener in ready:
            client, _ = listener.accept()
            request, streams, _, _ = socket.recv_fds(client, _LARGEST, 3)
            if (stage := os.fork()) == 0:
                for one in (listener.fileno(), users, client.fileno(), *asked, *ended):
                    os.close(one)
                return _become(request.decode(errors="surrogateescape").split("\0"), streams)
            for stream in streams:
                os.close(stream)
            ended[os.pidfd_open(stage)] = asked[client.fileno()] = stage, client
        for client_of in filter(asked.__contains__, ready):
            stage, client = asked[client_of]
            number = client.recv(1)
            os.kill(stage, number[0] if number else signal.SIGKILL)
            if not number:
                del asked[client_of]
        for end_of in filter(ended.__contains__, ready):
            stage, client = ended.pop(end_of)
            os.close(end_of)
            asked.pop(client.fileno(), None)
            with suppress(OSError):  # the client was killed
                client.send(str(os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])).encode())
            client.close()


def _remember_yaml(module: Any) -> None:
    """DVC reads params.yaml anew for each stage of a run, which takes a sixth of its time."""
    read = lru_cache(maxsize=16)(module.parse_yaml)
    module.parse_yaml = lambda text, path, typ="safe": deepcopy(read(text, path, typ))


def _become(parts: list[str], streams: list[int]) -> None:
    """Be what `python -m MODULE ARGUMENT…` would be; how it ends is how the process ends."""
    end = 1 + int(parts[0])
    folder, module, *arguments = parts[1:end]
    os.environ.clear()
    os.environ.update((name, value) for name, _, value in (part.partition("=") for part in parts[end:]))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    sys.path[:1] = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[:] = ["-m", *arguments]
    if (module, *arguments[:1]) in (("stages.cli", "repro"), ("stages.tune.train",)):  # what they start is forked, too
        sys.executable = shutil.which("python") or sys.executable
    sys.modules["__main__"] = ModuleType("__main__")
    code: int = 0
    try:
        if file := os.environ.pop("STAGE_PREPARED_BY", None):
            known, prepare = ForkingPickler.loads(Path(file).read_bytes())
            sys.path += known
            ForkingPickler.loads(prepare)()
        runpy._run_module_as_main(module)  # type: ignore[attr-defined]
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else stop.code is not None
        if stop.code not in (None, code):
            print(stop.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # As the interpreter ends, but for taking apart what the libraries are made of, which costs more than the stage.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
