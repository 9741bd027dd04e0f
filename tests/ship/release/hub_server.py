"""A model hub on loopback that speaks the calls of `tunetrail publish`: repositories, commits, large files, tags."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = ".safetensors"


class Hub:
    """What it holds; `spoil` is a path that it stores with another byte, and takes `die_after` large files."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.tokens: set[str | None] = set()
        self.spoil: str | None = None
        self.die_after: int | None = None
        self.head, self.url = "main", ""

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits.get(self.head, {})

    @property
    def dead(self) -> bool:
        return self.die_after is not None and len(self.sent) >= self.die_after

    def get(self, path: str) -> tuple[Any, int]:
        if path.partition("?")[0].endswith("/refs"):
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": commit} for n, commit in self.tags.items()]
            return {"tags": tags, "branches": [], "converts": []}, 200
        asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+).*", path)
        return (self.tree(asked[2]), 200) if asked and asked[1] in self.visibility else ({"error": path}, 404)

    def post(self, path: str, text: bytes) -> tuple[Any, int]:
        rows = [json.loads(line) for line in text.splitlines()]
        if path == "/api/repos/create":
            return self.create(rows[0])
        if "/preupload/" in path:
            return self.preupload(rows[0]), 200
        if path.endswith("/info/lfs/objects/batch"):
            return self.batch(rows[0]), 200
        if "/tag/" in path:
            known = rows[0]["tag"] in self.tags
            self.tags.setdefault(rows[0]["tag"], path.rpartition("/")[2])
            return {}, 409 if known else 200
        if "/commit/" in path:
            return self.commit(rows), 200
        return {"errors": [], "warnings": []}, 200  # what it says of a card

    def create(self, body: Any) -> tuple[Any, int]:
        name = f"{body['organization']}/{body['name']}"
        known = name in self.visibility
        self.visibility.setdefault(name, body["visibility"])
        return {"url": f"{self.url}/{name}"}, 409 if known else 200

    def preupload(self, body: Any) -> dict[str, Any]:
        mode = ("regular", "lfs")
        rows = [
            {"path": one["path"], "uploadMode": mode[one["path"].endswith(LARGE)], "shouldIgnore": False}
            for one in body["files"]
        ]
        return {"files": rows}

    def batch(self, body: Any) -> dict[str, Any]:
        rows = []
        for one in body["objects"]:
            row: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.large:
                row["actions"] = {"upload": {"href": f"{self.url}/store/{one['oid']}"}}
            rows.append(row)
        return {"transfer": "basic", "objects": rows}

    def commit(self, lines: list[Any]) -> dict[str, str]:
        files = dict(self.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        if self.spoil:
            files[self.spoil] += b"!"
        self.head = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[self.head] = files
        return {"commitUrl": f"{self.url}/ann/tickets/commit/{self.head}", "commitOid": self.head}

    def tree(self, revision: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"type": "file", "path": ".gitattributes", "size": 1, "oid": "0" * 40}]
        for path, content in self.commits.get(self.head if revision == "main" else revision, {}).items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            row = {"type": "file", "path": path, "size": len(content), "oid": blob}
            if path.endswith(LARGE):
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            rows.append(row)
        return rows


@contextmanager
def serve_hub(hub: Hub) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, body: Any, status: int = 200) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_DELETE(self) -> None:
            del hub.tags[self.path.rpartition("/")[2]]
            self.reply({})

        def do_GET(self) -> None:
            self.reply(*hub.get(self.path))

        def do_PUT(self) -> None:
            content = self.body()
            if hub.dead:
                return self.reply({"error": "gone"}, 403)
            hub.sent.append(hashlib.sha256(content).hexdigest())
            hub.large[hub.sent[-1]] = content
            return self.reply({})

        def do_POST(self) -> None:
            text = self.body()
            hub.tokens.add(self.headers.get("Authorization"))
            if self.headers.get("Authorization") != "Bearer hf_writer":
                return self.reply({"error": "the token may not write"}, 401)
            return self.reply(*hub.post(self.path, text))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub.url
    finally:
        server.shutdown()
        server.server_close()
