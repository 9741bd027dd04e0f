"""A keyword router in front of specialists: requests without a model get the one that rules.yaml names.

    tunetrail serve --adapter returns=../returns/models/release --adapter billing=../billing/models/release --port 8000
    SPECIALISTS=http://127.0.0.1:8000 uvicorn --app-dir examples/specialists --port 8001 router:app

A client says `"model": "auto"`, or nothing; one that names a specialist gets that one.
"""

import os
import re
from pathlib import Path
from typing import Any

import httpx
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

RULES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text(encoding="utf-8"))
PATH = "/v1/chat/completions"


def choose(text: str) -> str:
    """The specialist for a message, by the first rule that fits."""
    said = set(re.findall(r"\w+", text.casefold()))
    return next((rule["model"] for rule in RULES["rules"] if said & set(rule["words"])), RULES["default"])


async def chat(request: Request) -> Response:
    try:
        body = await request.json()
        if body.get("model") in (None, "auto"):
            body["model"] = choose(str(body["messages"][-1]["content"]))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return JSONResponse({"error": {"message": "a request is a JSON object with messages"}}, 400)
    headers = {name: request.headers[name] for name in ("authorization", "x-request-id") if name in request.headers}
    try:
        async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
            reply = await client.post(os.environ["SPECIALISTS"].rstrip("/") + PATH, json=body, headers=headers)
    except httpx.HTTPError as error:
        return JSONResponse({"error": {"message": f"the specialists do not answer: {error}"}}, 502)
    told = {name: reply.headers[name] for name in ("x-release", "x-request-id") if name in reply.headers}
    return Response(reply.content, reply.status_code, told, reply.headers.get("content-type"))


app = Starlette(routes=[Route(PATH, chat, methods=["POST"])])
