"""The address that clients know: it passes requests on to an engine, and another engine can take over between two."""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from aiohttp import ClientConnectionResetError, ClientError, ClientSession, ClientTimeout, TCPConnector, web

from stages.core.errors import UserError
from stages.engines.engine_server import CHAT, EngineError, Server, addressed, healthy
from stages.ship.serve.served_version import Version

_MAX_BYTES, _SECONDS = 16 << 20, 600.0
_LOG_BYTES = 64 << 20
_LOOPBACK = ("127.0.0.1", "localhost")
_NO_KEY = "the API key is missing or wrong, or the host is not this machine"
_ROW = web.RequestKey("row", dict[str, Any])  # of the log
_T = TypeVar("_T")


class Target:
    """A version behind its engine; `busy` is how many requests it is answering, `close` stops the engine."""

    def __init__(self, version: Version, server: Server, close: Callable[[], None] = lambda: None) -> None:
        self.version, self.server, self.close, self.busy = version, server, close, 0
        self.defaults, _ = version.defaults(server), version.tasks  # read before the first request needs them


class Front:
    """Gives each request to `target` or, for a share of the requests by a hash of their ids, to a canary.

    Where there are `adapters`, a request's model names one of them, and each is a version of its own.
    `note` says why the last switch did not come about, `follows` whether a link says what is served, and `unlogged` how
    many requests could not be logged; /health shows them. The log has a line for each request: its id, the release that
    answered it, unless it was refused, and how it went; what was said only with `log_text`, in a file for its owner
    alone. A full one gets the time in its name.
    """

    def __init__(
        self, target: Target, api_key: str | None = None, log: Path | None = None, log_text: bool = False
    ) -> None:
        self.target, self.note, self._api_key, self._log_text = target, "", api_key, log_text and log is not None
        self.canary: tuple[Target, float] | None = None
        self.adapters: dict[str, Target] = {}
        self.follows, self.unlogged, self._log = False, 0, log

    @property
    def targets(self) -> list[Target]:
        return [*self.adapters.values()] or [self.target, *([self.canary[0]] if self.canary else [])]

    @contextmanager
    def answering(self, host: str = _LOOPBACK[0], port: int = 0) -> Iterator[str]:
        """Answer at the address that is yielded until the block ends; what was asked by then is answered.

        Raises UserError when the port is taken, or other machines are let in without an API key.
        """
        if host not in _LOOPBACK and not self._api_key:
            raise UserError(f"--host {host} lets other machines in; --api-key-variable NAME says what holds their key")
        if self._log:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._write(self._log, b"")
            if self._log_text:
                self._log.chmod(0o600)  # it may have been begun without text
        app = web.Application(middlewares=[self._logged], client_max_size=_MAX_BYTES)
        app.add_routes([web.get("/health", self._health), web.get("/v1/models", self._models)])
        app.add_routes([web.post(CHAT, self._chat)])
        app.cleanup_ctx.append(self._session)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        logging.getLogger("aiohttp.server").addFilter(_is_fault)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SECONDS)
        try:
            self._do(runner.setup())
            try:
                self._do(web.TCPSite(runner, host, port).start())
            except (OSError, OverflowError) as error:
                raise UserError(f"{host}, port {port} cannot be used ({error}); --port names another") from None
            yield f"http://{_LOOPBACK[0] if host == '0.0.0.0' else host}:{runner.addresses[0][1]}"
        finally:
            self._do(runner.cleanup())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def switch(self, target: Target) -> Target:
        """Give requests to another target from now on; return the old one when it has answered its last."""
        return self._do(self._switched(target))

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _switched(self, target: Target) -> Target:
        old, self.target = self.target, target
        while old.busy:
            await asyncio.sleep(0.01)
        return old

    async def _session(self, app: web.Application) -> AsyncIterator[None]:
        # A connection of its own for each request: one that the engine closes just as it is used again loses a request.
        each = TCPConnector(force_close=True, limit=0)
        async with ClientSession(timeout=ClientTimeout(_SECONDS), connector=each) as self._engines:
            yield

    @web.middleware
    async def _logged(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Answer who is allowed to ask, and write down what came of it: what is answered, and whatever is refused."""
        given = request.headers.get("X-Request-Id", "")
        row = request[_ROW] = {"id": given if re.fullmatch(r"[\w.-]{1,100}", given, re.ASCII) else uuid4().hex}
        start, status = time.perf_counter(), 0
        try:
            answer: web.StreamResponse = await handler(request) if self._allows(request) else _refusal(401, _NO_KEY)
            status = answer.status
            return answer
        except web.HTTPException as refused:
            status = refused.status
            raise
        finally:
            if request.path == CHAT or 400 <= status < 500:
                took = {"seconds": round(time.perf_counter() - start, 4), "status": status}
                self._record({"time": round(time.time(), 3), **took, **row})

    def _allows(self, request: web.Request) -> bool:
        """By the key; without one only under a name of this machine, so that no web site's name leads here."""
        if self._api_key:
            given = request.headers.get("Authorization", "")
            ok = hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {self._api_key}".encode())
        else:
            ok = request.host.partition(":")[0] in _LOOPBACK
        return ok or request.path == "/health"

    async def _health(self, request: web.Request) -> web.Response:
        target = self.target
        up = await asyncio.to_thread(healthy, target.server.url.removesuffix("/v1"))
        said = {"status": "ok" if up else "the engine does not answer", "release": target.version.id}
        said |= {"engine": target.version.engine, "note": self.note}
        counted = {"follows": self.follows, "unlogged": self.unlogged}
        return web.json_response(said | counted, status=200 if up else 503)

    async def _models(self, request: web.Request) -> web.Response:
        names = [*self.adapters] or [self.target.version.id]
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json() if request.content_type == "application/json" else None
        except (ValueError, LookupError, RecursionError, web.RequestPayloadError):  # no JSON, or in no known encoding
            body = None
        body = body if isinstance(body, dict) else {}
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            return _refusal(400, "a request is a JSON object with messages, a list of objects; as application/json")
        named = self.adapters.get(str(body.get("model")))
        if self.adapters and not named:
            return _refusal(404, f"a request's model is one of {', '.join(self.adapters)}")
        drawn = int.from_bytes(hashlib.sha256(request[_ROW]["id"].encode()).digest()[:8]) / 2**64
        beside, share = self.canary or (self.target, 0.0)  # read once: the canary may end meanwhile
        canary = drawn < share
        target = named or (beside if canary else self.target)
        target.busy += 1  # no other task runs between the choice and this
        request[_ROW] |= {"release": target.version.id, "canary": canary}
        try:
            return await self._pass_on(request, target, body)
        finally:
            target.busy -= 1

    async def _pass_on(self, request: web.Request, target: Target, body: dict[str, Any]) -> web.StreamResponse:
        row, told = request[_ROW], target.defaults | body | addressed(target.server)
        # How sure the answer is tells `tunetrail collect` what to keep; the client gets what it asked for.
        asks = self._log_text and not (body.get("stream") or body.get("logprobs"))
        if asks and target.server.engine != "transformers":  # whose server gives none
            told |= {"logprobs": True, "top_logprobs": 1}
        headers = {"X-Request-Id": request[_ROW]["id"], "X-Release": target.version.id}
        key = {"Authorization": f"Bearer {target.server.api_key}"} if target.server.api_key else {}
        address = target.server.url.removesuffix("/v1") + CHAT
        answer: web.StreamResponse | None = None
        try:
            async with self._engines.post(address, json=told, headers=key) as reply:
                headers["Content-Type"] = reply.headers.get("Content-Type", "application/json")
                if not body.get("stream"):
                    said = await reply.read()
                    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError, EngineError):
                        value: Any = json.loads(said) if reply.status == 200 else None
                        row |= target.version.outcome(value)
                        if self._log_text:
                            row |= said_in(body, value["choices"][0])
                        if asks:
                            value["choices"][0].pop("logprobs", None)
                        said = json.dumps(value | {"model": target.version.id}).encode()
                    return web.Response(status=reply.status, body=said, headers=headers)
                answer, pieces = web.StreamResponse(status=reply.status, headers=headers), list[bytes]()
                await answer.prepare(request)
                async for piece in reply.content.iter_any():
                    await answer.write(piece)
                    pieces += [piece] if self._log_text and reply.status == 200 else []
                await answer.write_eof()
                row |= said_in(body, choice_of_stream(b"".join(pieces))) if pieces else {}
                return answer
        except RecursionError:  # what can be read at a depth cannot always be written at it
            return _refusal(400, "the request is nested too deeply")
        except (ClientError, TimeoutError) as error:
            if answer is None:
                return _refusal(502, "the engine does not answer")
            if request.transport:
                request.transport.abort()  # a stream that is not whole can say so in no other way; 499: its client left
            row["status"] = 499 if isinstance(error, ClientConnectionResetError) else 502
            return answer

    def _record(self, row: dict[str, Any]) -> None:
        if self._log is None:
            return
        with suppress(OSError):  # else the file goes on growing
            if self._log.stat().st_size >= _LOG_BYTES:
                self._log.rename(self._log.with_stem(f"{self._log.stem}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"))
        try:
            self._write(self._log, json.dumps(row).encode() + b"\n")
        except OSError as error:  # such as a full disk, which is no reason to answer nobody
            if not self.unlogged:
                print(f"requests are answered, and not logged: {error}", file=sys.stderr, flush=True)
            self.unlogged += 1

    def _write(self, log: Path, line: bytes) -> None:
        """By its name each time, for it may have been moved; in one piece, for another front may write to it, too.

        A line that a kill or a full disk has left half written is ended first.
        """
        mode = 0o600 if self._log_text else 0o666
        with open(log, "ab+", buffering=0, opener=partial(os.open, mode=mode)) as file:
            size = os.fstat(file.fileno()).st_size
            line = b"\n" * (size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n") + line
            while line:
                line = line[file.write(line) :]


def said_in(request: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked and answered, as `tunetrail collect` reads it; of all log-probabilities of tokens the mean."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    mean = {"log_probability": sum(one["logprob"] for one in tokens) / len(tokens)} if tokens else {}
    content, finish = choice["message"]["content"], choice.get("finish_reason")
    answer = {"message": {"role": "assistant", "content": content}, "finish_reason": finish, **mean}
    return {"request": {"messages": request["messages"]}, "response": {"choices": [answer]}}


def choice_of_stream(events: bytes) -> dict[str, Any]:
    """The answer that server-sent events tell piece by piece, as one choice; what is no such event says nothing."""
    text, finish = "", None
    for line in events.splitlines():
        with suppress(ValueError, KeyError, IndexError, TypeError):
            choice = json.loads(line.removeprefix(b"data:"))["choices"][0]
            finish = choice.get("finish_reason") or finish
            text += choice["delta"].get("content") or ""
    return {"message": {"content": text}, "finish_reason": finish}


def _is_fault(record: logging.LogRecord) -> bool:
    """A body that cannot be decoded is not: its client gets a 400, and aiohttp would tell the operator, too."""
    return not (record.exc_info and isinstance(record.exc_info[1], web.RequestPayloadError))


def _refusal(status: int, why: str) -> web.Response:
    return web.json_response({"error": {"message": why, "type": "invalid_request_error"}}, status=status)
