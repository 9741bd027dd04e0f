"""smoke: does a server do what its release promised? Known prompts get known answers, bad requests break nothing."""

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from stages.engines.engine_server import CHAT, EngineError, Messages, Reply, Server, call, healthy, reply
from stages.ship.serve.served_version import Version

_AT_ONCE, _WORDS = 8, 5000


class Check(NamedTuple):
    name: str
    passed: bool
    detail: str


def smoke(server: Server, version: Version, golden: Sequence[tuple[Messages, str | None, str]]) -> list[Check]:
    """Ask the server, which is a front or an engine by itself, and say of each check whether it passed.

    `golden` are conversations with their tag and the answer that was judged.
    """
    base = server.url.removesuffix("/v1")
    if not healthy(base):
        return [Check("health", False, f"{base}/health does not say that it is well")]
    bodies = [{**version.defaults(server, tag), "messages": messages} for messages, tag, _ in golden]
    hello = bodies[0] if bodies else {**version.defaults(server), "messages": [{"role": "user", "content": "Hello"}]}
    seconds: list[float] = []
    said = [_ask(server, body, seconds) for body in bodies]
    wrong = [
        f"{json.dumps(one.output if isinstance(one, Reply) else str(one), ensure_ascii=False)[:200]} in place of "
        f"{json.dumps(wanted, ensure_ascii=False)[:200]}"
        for one, (_, _, wanted) in zip(said, golden, strict=True)
        if not isinstance(one, Reply) or one.output.strip() != wanted.strip()
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        together = list(pool.map(lambda body: _ask(server, body, seconds), [hello] * _AT_ONCE))
    failed = [one for one in together if not isinstance(one, Reply)]
    named = models(server)
    checks = [
        Check("health", True, base),
        Check("model", server.model in named, f"/v1/models has {', '.join(named) or 'none'}; wanted {server.model}"),
        Check("golden prompts", not wrong, "; ".join([f"{len(golden) - len(wrong)} of {len(golden)} equal", *wrong])),
        Check(
            "concurrent", not failed, f"{_AT_ONCE - len(failed)} of {_AT_ONCE} answered {failed[0] if failed else ''}"
        ),
    ]
    if server.engine == "transformers":
        checks.append(Check("over-length", True, "not asked: `transformers serve` sets no limit"))
    else:
        long = [{"role": "user", "content": "word " * _WORDS}]
        checks.append(_refused(server, "over-length", {**hello, "messages": long}, seconds))
    checks.append(_refused(server, "malformed", {**hello, "messages": 7}, seconds))
    checks.append(Check("health afterwards", healthy(base), base))
    if answered := seconds[: len(bodies) + _AT_ONCE]:
        times = ", ".join(f"p{share} {np.percentile(answered, share) * 1000:.0f} ms" for share in (50, 95, 99))
        checks.append(Check("latency", True, f"{times}, of {len(answered)} requests, {_AT_ONCE} of them at once"))
    return checks


def table(checks: Sequence[Check]) -> str:
    """A line for each check, also where a server's words have several."""
    rows = ((f"{'ok    ' if one.passed else 'FAILED'}  {one.name:<18}", *one.detail.split()) for one in checks)
    return "\n".join(map(" ".join, rows))


def models(server: Server) -> list[str]:
    try:
        return [str(row["id"]) for row in call(server, "/v1/models")["data"]]
    except (EngineError, KeyError, TypeError):
        return []


def _ask(server: Server, body: Mapping[str, Any], seconds: list[float]) -> Reply | EngineError:
    start = time.perf_counter()
    try:
        return reply(call(server, CHAT, body))
    except EngineError as error:
        return error
    finally:
        seconds.append(time.perf_counter() - start)


def _refused(server: Server, name: str, body: Mapping[str, Any], seconds: list[float]) -> Check:
    """A request that cannot be answered gets a 4xx: it is no fault of the server's, and the client is told."""
    said = _ask(server, body, seconds)
    status = said.status if isinstance(said, EngineError) else 200
    return Check(name, status is not None and 400 <= status < 500, f"HTTP {status or 'none'}")
