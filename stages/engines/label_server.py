"""The server of a model with a classification head: a chat completion whose content is the label.

It ends when standard input does, so that it never outlives who started it.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stages.core.errors import UserError
from stages.model.chat import Chat, make_chat
from stages.model.labels import label_likelihoods, labels_of
from stages.model.loading import load_model, load_tokenizer
from stages.records.record import Message, make_record

_LARGEST_BODY, _MOST_BESIDE = 4 << 20, 20  # bytes; labels beside the answer's, as OpenAI's API gives tokens


def answer(model: Any, chat: Chat, body: Any) -> dict[str, Any]:
    """The reply to the body of a request. With `logprobs`, the label stands where an API has a token.

    Raises UserError when the body is no conversation that ends with what a user says.
    """
    try:
        messages = [Message(one["role"], one["content"]) for one in body["messages"]]
        wrong = any(not isinstance(text, str) for one in messages for text in (one.role, one.content))
        beside = min(int(body.get("top_logprobs") or 0), _MOST_BESIDE)
        if wrong or not messages or messages[-1].role != "user" or body.get("stream"):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(
            "a request has messages, texts of roles, and the last one is the user's; a label is not streamed"
        ) from None
    record = make_record(messages[-1].content, "", None, "", "", context=messages[:-1])
    prompt, labels = chat.prompt_ids(record), labels_of(model)
    likelihoods = label_likelihoods(model, [prompt])[0]
    best, *_ = order = likelihoods.argsort(descending=True, stable=True).tolist()
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": labels[best]},
        "finish_reason": "stop",
    }
    if body.get("logprobs"):
        said = [
            {"token": labels[at], "logprob": float(likelihoods[at]), "bytes": list(labels[at].encode())} for at in order
        ]
        choice["logprobs"] = {"content": [{**said[0], "top_logprobs": said[:beside]}]}
    spoken = len(chat.completion_ids(labels[best]))
    usage = {"prompt_tokens": len(prompt), "completion_tokens": spoken, "total_tokens": len(prompt) + spoken}
    return {"object": "chat.completion", "model": str(body.get("model")), "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._reply(200 if self.path in ("/health", "/v1/models") else 404, {"status": "ok", "data": []})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/v1/chat/completions" or not 0 < length <= _LARGEST_BODY:
            self._reply(404, {"error": {"message": "POST a JSON object to /v1/chat/completions"}})
            return
        try:
            self._reply(200, self.server.say(json.loads(self.rfile.read(length))))  # type: ignore[attr-defined]
        except (UserError, ValueError, RecursionError) as error:
            self._reply(400, {"error": {"message": str(error), "type": "invalid_request_error"}})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: what is asked stays out of logs."""


class LabelServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._model, self._chat = load_model(folder), make_chat(load_tokenizer(folder), "")
        self._one_at_a_time = threading.Lock()
        super().__init__((host, port), _Handler)

    def say(self, body: Any) -> dict[str, Any]:
        with self._one_at_a_time:
            return answer(self._model, self._chat, body)


def main() -> None:
    settings = json.loads(sys.argv[1])
    server = LabelServer(Path(settings["model"]), settings["host"], settings["port"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
