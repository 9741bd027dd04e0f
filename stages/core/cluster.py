"""Work in many tasks on a Ray cluster: the results in the order of the tasks, whatever dies, this process included.

A finished task leaves its result in a file, named by a hash of code and arguments. So this process holds no result but
the one that is read, and when it is killed the next goes on from there. While tasks are left, two for each core are
under way.
"""

import hashlib
import os
import pickle
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import stages
from stages.core import files, paths
from stages.core.errors import UserError

_FINISHED = Path(".tunetrail/tasks")
_CODE = Path(str(stages.__file__)).parent
_SECONDS = 10  # for an answer of the cluster
_DIGEST = hashlib.sha256().digest_size


class Shared:
    """An argument of several tasks, which is hashed once and sent to the cluster once."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.name = hashlib.sha256(pickle.dumps(value)).digest()
        self.sent: Any = None

    def reference(self, ray: Any) -> Any:
        self.sent = self.sent or ray.put(self.value)
        return self.sent


def in_order(
    function: Callable[..., bytes], tasks: Iterable[Sequence[Any]], address: str, what: str
) -> Iterator[bytes]:
    """`function` of the arguments of each task, on one core of the cluster at `address` each.

    `function` is one of `stages`, and the same arguments give the same bytes. `what` names the kind of work; files of
    finished tasks of that kind are removed when all are done or the caller wants no more.

    Raises UserError where Ray is not installed, no cluster answers, or a task cannot run there.
    """
    code = files.tree_digest(_CODE) + (files.tree_digest(paths.CONSTRAINTS) if paths.CONSTRAINTS.is_dir() else "")
    left, running, order = iter(tasks), dict[Any, Path](), deque[Path]()
    ray: Any = None
    start: Any = None
    room, looked = 1, 0.0

    def has_room() -> bool:
        nonlocal room, looked
        if ray and time.monotonic() > looked + 1:  # a question to the cluster, which takes milliseconds
            room, looked = 2 * max(1, int(ray.cluster_resources().get("CPU", 1))), time.monotonic()
        return len(running) < room

    with ExitStack() as stack:
        folder = stack.enter_context(_results(what))
        while True:
            while has_room() and (task := next(left, None)) is not None:
                # Nothing is ever unpickled from a file: these bytes say whether it is the same task, and if they are
                # others for the same, it is computed again.
                named = tuple(one.name if isinstance(one, Shared) else one for one in task)
                path = folder / hashlib.sha256(pickle.dumps((code, function, named))).hexdigest()
                order.append(path)
                if path in running.values() or _finished(path) is not None:
                    continue
                if not start:
                    ray = stack.enter_context(_cluster(address))
                    # A machine may die any number of times.
                    start = ray.remote(num_cpus=1, max_retries=-1)(function).remote
                sent = (one.reference(ray) if isinstance(one, Shared) else one for one in task)
                running[start(*sent)] = path
            while order and order[0] not in running.values():
                if (result := _finished(path := order.popleft())) is None:
                    raise UserError(f"{path} was removed or damaged meanwhile; run again, finished tasks are kept")
                yield result
            if not running:
                break
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            _finish(running[done], ray.get(done))
            del running[done]


@contextmanager
def _results(what: str) -> Iterator[Path]:
    """The folder of finished tasks; of two processes that do the same kind of work at once, one has it for a while."""
    folder = paths.of_checkout(_FINISHED) / what
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder) as lock:
        if lock is None:
            with tempfile.TemporaryDirectory(dir=folder.parent) as other:
                yield Path(other)
            return
        with suppress(GeneratorExit):  # the caller has had enough, such as too many pairs
            yield folder
        for path in folder.iterdir():  # those of killed runs with other rows, too
            files.remove(path)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster whose workers import this very code."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise UserError("TUNETRAIL_RAY: ray is not installed; install it: pip install 'tunetrail[ray]'") from None
    place, own = _place(address)
    advice = f"TUNETRAIL_RAY={address}: no Ray cluster answers there; start one (docs/many-machines.md) or unset it"
    if address == "auto" and not own:
        advice = f"TUNETRAIL_RAY=auto: the Ray cluster that this machine belongs to, {place}, does not answer; start "
        advice += "it anew, or forget it: ray stop"
    # Here the code is there, with what numba has compiled of it.
    path = os.pathsep.join([str(_CODE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = {"env_vars": {"PYTHONPATH": path}} if own else {"py_modules": [str(_CODE)], "excludes": ["__pycache__"]}
    try:
        if not own:  # Ray itself tries for minutes
            parts = urlsplit(place if "://" in place else f"//{place}")
            socket.create_connection((parts.hostname or "", parts.port or 0), _SECONDS).close()
        ray.init(place, runtime_env=code, log_to_driver=False, logging_level="error", **own)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError, another version of Ray or Python
        raise UserError(f"{advice} ({str(error).strip().partition(chr(10))[0]})") from None
    try:
        yield ray
    except RayError as error:
        last = str(error).strip().rpartition("\n")[2]
        raise UserError(
            f"TUNETRAIL_RAY={address}: the cluster could not compute a task: {last}; each of its machines needs the "
            "packages of this project (docs/many-machines.md); finished tasks are kept, run again to go on"
        ) from error
    finally:
        ray.shutdown()


def _place(address: str) -> tuple[str, dict[str, Any]]:
    """Where the cluster is, and for one that is to be started here how; `auto` is this machine's, or a new one."""
    if address != "auto":
        return address, {}
    from ray._private.services import get_ray_address_from_environment

    try:
        return get_ray_address_from_environment(address, None), {}
    except ConnectionError:  # no sign of one
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers
        return "local", {"include_dashboard": False}


def _finish(path: Path, result: bytes) -> None:
    with files.atomic(path) as partial:
        partial.write_bytes(hashlib.sha256(result).digest() + result)


def _finished(path: Path) -> bytes | None:
    """What a task left behind; None where it left nothing, or not all of it."""
    with suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
            return content[_DIGEST:]
    return None
