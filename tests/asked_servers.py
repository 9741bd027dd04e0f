"""What the judge is asked through in tests: a rule in place of a model, and a proxy that breaks connections."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = bytes | tuple[bytes, ...] | int | None


class Rule(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose `rule` gets the two answers and the reference and says A, B or TIE."""

    rule: Callable[[dict[str, str]], str]
    seen: list[tuple[Message, dict[str, Any]]]
    port: int

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.headers, body))
        said = type(self).rule(read_question(body["messages"][1]["content"]))
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
        answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}}], "usage": usage}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def read_question(text: str) -> dict[str, str]:
    """The sections of a question by name: what a judge that cannot be fooled by the texts would read."""
    mark = re.findall(r"^=== end ([0-9a-f]{12}) ===$", text, re.MULTILINE)[-1]
    parts = re.split(rf"(?:^|\n)=== (.+) {mark} ===\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@contextmanager
def judging(rule: Callable[[dict[str, str]], str]) -> Iterator[type[Rule]]:
    """The server at `port`; what it was asked is in `seen`."""

    class Handler(Rule):
        pass

    Handler.rule, Handler.seen = staticmethod(rule), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Handler
    server.shutdown()
    server.server_close()


class Proxy:
    """Hands connections on to `upstream`; each takes the next of `faults`, and None once they are used up.

    A fault is bytes (sent in place of a reply), several of them (with a pause after each), a number (so many
    bytes of the reply, then the connection is reset; -1: it hangs until the client leaves), or None (no fault).
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.faults: Sequence[Fault] = ()
        self.connections = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        with suppress(OSError):  # a close alone leaves the thread that accepts where it is
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self.connections += 1
            fault, self.faults = (self.faults[0], self.faults[1:]) if self.faults else (None, ())
        with client, suppress(OSError):
            request = _request(client)
            if isinstance(fault, bytes):
                client.sendall(fault)
            elif isinstance(fault, tuple):
                for part in fault:
                    client.sendall(part)
                    time.sleep(0.05)
            elif fault == -1:
                client.recv(1)
            else:
                self._hand_on(client, request, fault)

    def _hand_on(self, client: socket.socket, request: bytes, limit: int | None) -> None:
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            reply = b"".join(iter(lambda: server.recv(1 << 16), b""))
        client.sendall(reply if limit is None else reply[:limit])
        if limit is not None:  # a reset, not an end: zero seconds to linger
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _request(client: socket.socket) -> bytes:
    content = b""
    while b"\r\n\r\n" not in content:
        content += client.recv(1 << 16)
    head, _, body = content.partition(b"\r\n\r\n")
    length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
    while len(body) < length:
        body += client.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def reply(status: str, body: str = "", **headers: str) -> bytes:
    """A whole HTTP reply."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body.encode())}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()
