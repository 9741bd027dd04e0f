"""A page for this machine and one browser tab: that of `tunetrail review`, and that of `tunetrail annotate`."""

import json
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from stages.core import paths
from stages.core.errors import UserError
from stages.measure.review.reviews import Session, review_file
from stages.params.loader import load_params

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_JSON = "application/json"
_MAX_BYTES = 1 << 24  # a long answer that was annotated, with its escapes
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Shown(Protocol):
    """What a page shows: its files by the name in the address, and what its messages call, by name."""

    files: ClassVar[dict[str, str]]
    file: Path

    def state(self) -> dict[str, Any]: ...

    def progress(self) -> str: ...

    def messages(self) -> dict[str, tuple[type[BaseModel], Callable[..., Any]]]: ...


class Server(ThreadingHTTPServer):
    """Listens on the loopback interface; the address has a secret, which other users of the machine cannot guess."""

    daemon_threads = True

    def __init__(self, session: Shown, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.session, self.messages = session, session.messages()
        self.secret = secrets.token_urlsafe(16)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.address = f"http://127.0.0.1:{self.server_port}/{self.secret}/"
        self._stopped = False

    def stop(self, *_: object) -> None:
        """For signals; the server ends between two requests, within half a second."""
        self._stopped = True

    def service_actions(self) -> None:
        # An exception raised by the signal itself is lost where Python ignores exceptions, as in weakref callbacks.
        if self._stopped:
            raise KeyboardInterrupt


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30

    def handle(self) -> None:
        with suppress(ConnectionError):  # the page was closed before its answer was there
            super().handle()

    def do_GET(self) -> None:
        name = self._asked_for()
        if name == "state":
            self._reply(self.server.session.state)
        elif name in self.server.session.files:
            file = Path(__file__).parent / self.server.session.files[name]
            self._send(HTTPStatus.OK, f"{_KINDS[file.suffix]}; charset=utf-8", file.read_bytes())
        elif name is not None:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        name = self._asked_for()
        if name is None:
            return
        if self.headers.get("Origin", "").removeprefix("http://") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif name not in self.server.messages:
            self._refuse(HTTPStatus.NOT_FOUND)
        elif self.headers.get_content_type() != _JSON:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        else:
            self._reply(lambda: self._taken(*self.server.messages[name]))

    def _taken(self, message: type[BaseModel], call: Callable[..., Any]) -> Any:
        length = int(self.headers.get("Content-Length", "0"))
        if not 0 < length <= _MAX_BYTES:
            raise ValueError("too much or nothing")
        return call(**dict(message.model_validate_json(self.rfile.read(length))))

    def _reply(self, call: Callable[[], Any]) -> None:
        try:
            reply = call()
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST)
        except (UserError, OSError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", str(error).encode())
        else:
            self._send(HTTPStatus.OK, _JSON, json.dumps(reply or {}).encode())

    def _asked_for(self) -> str | None:
        """The name after the secret; None when the request was refused.

        A host that is not this machine's means that a foreign site's name was pointed here (DNS rebinding).
        """
        _, secret, name = [*self.path.split("/", 2), "", ""][:3]
        if self.headers.get("Host", "") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif not secrets.compare_digest(secret.encode(), self.server.secret.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            return name
        return None

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True  # whatever else it sent is not read as the next request
        self._send(status, "text/plain; charset=utf-8", status.phrase.encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal shows the address, and a page is no news."""


def review(reviewer: str, port: int) -> None:
    """Serve the page until Ctrl-C; `port` 0 takes a free one.

    Raises UserError for a name that is no file name, a port that is taken, a file of answers that is broken.
    """
    session = Session(reviewer, review_file(paths.REVIEWS, reviewer), load_params("review", "seed", "task"))
    if not session.rows:
        print("all models say the same to every row that is to be reviewed; there is nothing to compare")
        return
    show(session, port, "review", "`dvc repro` counts it")


def show(session: Shown, port: int, verb: str, then: str) -> None:
    """Serve a page until Ctrl-C, and say how far it has come. Raises UserError for a port that is taken."""
    try:
        server = Server(session, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}); leave --port out to take a free one") from None
    with server:
        signal.signal(signal.SIGINT, server.stop)
        try:
            # Flushed, for whoever reads the address from a pipe.
            print(f"{session.progress()}; {verb} at {server.address} and stop with Ctrl-C", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"\n{session.progress()}, in {session.file}; commit it: {then}", file=sys.stderr)
