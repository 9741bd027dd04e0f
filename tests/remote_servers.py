"""Real servers on loopback for a DVC remote: SFTP over SSH (asyncssh), WebDAV (WsgiDAV), HTTP (below) and S3 (moto).

`python remote_servers.py KIND FOLDER FAULT COUNT` serves until it is killed. With the fault `dies writing` or
`dies reading` it is killed by itself in the middle of the COUNT-th object; with `lies` every object that it gives has
one bit flipped, and with `flips`, of S3, the checksum beside it is the right one. With `refuses MD5` it has no room for
that object.
"""

import os
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

USER, READER, PASSWORD = "ann", "reader", "right-password"
BUCKET = "store"


class Faults:
    """What goes wrong, and when."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.left = name, count

    def begins(self, fault: str) -> bool:
        """Whether the transfer that begins is the one that fails."""
        self.left -= fault == self.name
        return fault == self.name and self.left == 0

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def given(self, data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:] if data and self.name in ("lies", "flips") else data


def serve_ssh(folder: Path, faults: Faults) -> None:  # noqa: C901 - short methods of two classes
    import asyncio

    import asyncssh

    class Login(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return username in (USER, READER) and password == PASSWORD

    class Files(asyncssh.SFTPServer):
        def __init__(self, channel: Any) -> None:
            super().__init__(channel, chroot=str(folder).encode())
            self.reader = channel.get_extra_info("username") == READER

        def _may_write(self) -> None:
            if self.reader:
                raise asyncssh.SFTPPermissionDenied("this account may read only")

        def open(self, path: bytes, pflags: int, attrs: Any) -> object:
            if pflags & asyncssh.FXF_WRITE:
                self._may_write()
            return super().open(path, pflags, attrs)

        def mkdir(self, path: bytes, attrs: Any) -> Any:
            self._may_write()
            return super().mkdir(path, attrs)

        def remove(self, path: bytes) -> Any:
            self._may_write()
            return super().remove(path)

        def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
            if faults.begins("dies writing"):
                super().write(file_obj, offset, data[: len(data) // 2])
                file_obj.flush()
                faults.die()
            return super().write(file_obj, offset, data)

        def read(self, file_obj: Any, offset: int, size: int) -> bytes:
            if faults.begins("dies reading"):
                faults.die()
            data = bytes(super().read(file_obj, offset, size))  # type: ignore[arg-type]
            return faults.given(data) if offset == 0 else data

    async def serve() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        server = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Login, server_host_keys=[key], sftp_factory=Files, allow_scp=False
        )
        print(server.get_port(), flush=True)
        await server.wait_closed()

    asyncio.run(serve())


class _HalfBody:
    """The body of a request whose server is killed after so many bytes."""

    def __init__(self, stream: Any, half: int, faults: Faults) -> None:
        self.stream, self.half, self.faults = stream, half, faults

    def read(self, size: int = -1) -> bytes:
        if not self.half:
            self.faults.die()
        data: bytes = self.stream.read(self.half)
        self.half = 0
        return data


def with_faults(app: Callable[..., Any], faults: Faults, atomic: bool = False) -> Callable[..., Any]:
    """A WSGI application before which transfers of objects fail, and the reader may not write.

    Of a server that is killed, half an object stays, unless its writes are `atomic`.
    """

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        method, is_object = environ["REQUEST_METHOD"], "/files/md5/" in environ["PATH_INFO"]
        kind, _, login = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        reader = kind == "Basic" and b64decode(login).decode().partition(":")[0] == READER
        if reader and method not in ("GET", "HEAD", "OPTIONS", "PROPFIND"):
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        if method == "PUT" and is_object and faults.begins("dies writing"):
            half = 0 if atomic else int(environ.get("CONTENT_LENGTH", 0)) // 2
            environ["wsgi.input"] = _HalfBody(environ["wsgi.input"], half, faults)
        if method == "PUT" and faults.name == f"refuses {''.join(environ['PATH_INFO'].split('/')[-2:])}":
            start_response("507 Insufficient Storage", [("Content-Length", "0")])
            return [b""]
        if method == "GET" and is_object and faults.begins("dies reading"):
            faults.die()

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            lies = faults.name == "lies"
            headers = [row for row in headers if not (lies and row[0].lower().startswith("x-amz-checksum-"))]
            return start_response(status, headers, *rest)

        answer = app(environ, start)
        return [faults.given(b"".join(answer))] if method == "GET" and is_object else answer

    return call


def _serve_wsgi(app: Callable[..., Any], ready: Callable[[int], None]) -> None:
    from cheroot.wsgi import Server

    server = Server(("127.0.0.1", 0), app, numthreads=8)
    server.prepare()
    ready(server.bind_addr[1])
    server.serve()


def serve_webdav(folder: Path, faults: Faults) -> None:
    from wsgidav.wsgidav_app import WsgiDAVApp

    users = {name: {"password": PASSWORD} for name in (USER, READER)}
    config = {
        "provider_mapping": {"/": str(folder)},
        "simple_dc": {"user_mapping": {"*": users}},
        "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        "logging": {"enable": False},
        "verbose": 0,
    }
    _serve_wsgi(with_faults(WsgiDAVApp(config), faults), partial(print, flush=True))


def serve_http(folder: Path, faults: Faults) -> None:
    """Files by GET and PUT, and no listing of them: all that DVC's HTTP remote asks for."""

    def files(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        def answer(status: str, body: bytes = b"", length: int | None = None) -> list[bytes]:
            start_response(status, [("Content-Length", str(len(body) if length is None else length))])
            return [body]

        # Of what is refused, too: an unread body resets the connection, at times before the client has the answer.
        body = environ["wsgi.input"].read()
        kind, _, login = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind != "Basic" or b64decode(login).decode() not in (f"{USER}:{PASSWORD}", f"{READER}:{PASSWORD}"):
            return answer("401 Unauthorized")
        file = folder / environ["PATH_INFO"].lstrip("/")
        if environ["REQUEST_METHOD"] == "PUT":
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with file.open("wb") as handle:
                    handle.write(body)
            except OSError:
                return answer("507 Insufficient Storage")
            return answer("201 Created")
        if environ["REQUEST_METHOD"] == "POST":
            return answer("405 Method Not Allowed")
        if not file.is_file():
            return answer("404 Not Found")
        if environ["REQUEST_METHOD"] == "HEAD":
            return answer("200 OK", length=file.stat().st_size)
        return answer("200 OK", file.read_bytes())

    _serve_wsgi(with_faults(files, faults), partial(print, flush=True))


def serve_s3(folder: Path, faults: Faults) -> None:
    """IAM is enforced once the users are there; the policies are those of docs/access.md.

    moto holds all in memory. What is put there is written to the folder, too, and a new server begins with that. What
    has no room in the folder is refused as MinIO refuses it.
    """
    import json
    import re
    import threading

    import boto3
    import requests
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app

    text = (Path(__file__).parents[1] / "docs/access.md").read_text(encoding="utf-8")
    policy = re.search(r"```json\n(.*?)```", text, re.DOTALL)[1].replace("BUCKET", BUCKET)  # type: ignore[index]
    policies = {USER: policy, READER: policy.replace('["s3:GetObject", "s3:PutObject"]', '["s3:GetObject"]')}

    def ready(port: int) -> None:
        def prepare() -> None:
            url = f"http://127.0.0.1:{port}"
            made = {"endpoint_url": url, "aws_access_key_id": "x", "aws_secret_access_key": "x"}
            s3 = boto3.client("s3", region_name="us-east-1", **made)
            s3.create_bucket(Bucket=BUCKET)
            for file in (path for path in bucket.rglob("*") if path.is_file()):
                s3.put_object(Bucket=BUCKET, Key=file.relative_to(bucket).as_posix(), Body=file.read_bytes())
            iam, keys = boto3.client("iam", region_name="us-east-1", **made), {}
            for name, document in policies.items():
                iam.create_user(UserName=name)
                iam.put_user_policy(UserName=name, PolicyName="access", PolicyDocument=document)
                key = iam.create_access_key(UserName=name)["AccessKey"]
                keys[name] = [key["AccessKeyId"], key["SecretAccessKey"]]
            (folder / "keys.json").write_text(json.dumps(keys))
            requests.post(f"{url}/moto-api/reset-auth", data="0", timeout=30)
            print(port, flush=True)

        threading.Thread(target=prepare, daemon=True).start()

    app, bucket = DomainDispatcherApplication(create_backend_app), folder / BUCKET

    def kept(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        started: list[Any] = []
        answer, path = app(environ, lambda *words: started.append(words)), environ["PATH_INFO"]
        name, s3 = path.removeprefix(f"/{BUCKET}/"), s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        put = environ["REQUEST_METHOD"] == "PUT" and name not in ("", path)
        if put and (object_ := s3.get_object(BUCKET, name)):
            try:
                (bucket / name).parent.mkdir(parents=True, exist_ok=True)
                (bucket / name).write_bytes(object_.value)
            except OSError:
                (bucket / name).unlink(missing_ok=True)
                s3.delete_object(BUCKET, name)
                answer = [b"<Error><Code>XMinioStorageFull</Code><Message>The storage is full.</Message></Error>"]
                started = [("507 Insufficient Storage", [("Content-Length", str(len(answer[0])))])]
        start_response(*started[0])
        return answer

    _serve_wsgi(with_faults(kept, faults, atomic=True), ready)


SERVERS = {"ssh": serve_ssh, "webdav": serve_webdav, "http": serve_http, "s3": serve_s3}


@contextmanager
def server(kind: str, folder: Path, fault: str = "none", count: int = 0) -> Iterator[int]:
    """The port of a server in a process of its own, which is killed at the end."""
    command = [sys.executable, __file__, kind, str(folder), fault, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    chosen, place, fault_name, at = sys.argv[1:]
    SERVERS[chosen](Path(place), Faults(fault_name, int(at)))
