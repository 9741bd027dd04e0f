"""A language model that a stage asks: behind an OpenAI-compatible endpoint, or in a folder of this machine.

Replies are kept by the content of what was asked, so that a question that was put before is not put, or paid, again.
"""

import email.utils
import hashlib
import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import tree_digest
from stages.core.run_notes import track
from stages.params.model import Generation
from stages.params.section import AskedModel, Price
from stages.records.record import make_record, row_line

_MAX_BYTES = 4_000_000
_HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}
_TRANSIENT = (408, 409, 425, 429)
_AT_ONCE = 64  # questions to a local model; as many replies are lost at most when a run is killed


class Question(Protocol):
    """What is asked, and which asking of the same it is, from 0."""

    @property
    def text(self) -> str: ...

    @property
    def repeat(self) -> int: ...


Asked = TypeVar("Asked", bound=Question)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, and the tokens it took; None where the server did not count them."""

    text: str
    input_tokens: int | None
    output_tokens: int | None


class _TryAgain(Exception):
    """A fault that may pass; `wait` is how long the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """Asks with the `openai` client, whose own attempts are switched off: they would not wait as the parameters say.

    Raises UserError when the client is not installed, the key is missing, or it would go over the network in the clear.
    """

    def __init__(self, model: AskedModel, system: str, replies: Path) -> None:
        loopback = _is_loopback(model.endpoint)
        self._model, self._system, self._replies, self._key = model, system, replies, _read_key(model, loopback)
        try:
            import openai
        except ImportError:
            raise UserError(
                f"{model.called} is asked with the openai client: run `pip install 'tunetrail[judge]'`"
            ) from None
        self._client = openai.OpenAI(
            base_url=model.endpoint,
            api_key="none",
            timeout=model.timeout,
            max_retries=0,
            # No proxy between two programs of one machine, and no key for whoever a redirect names.
            http_client=openai.DefaultHttpxClient(
                trust_env=not loopback, follow_redirects=False, event_hooks={"request": [self._sign]}
            ),
        )
        self._stop = threading.Event()
        self._sampling: dict[str, Any] = {
            "temperature": model.temperature,
            "top_p": model.top_p,
            "max_tokens": model.max_tokens,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "n": 1,
        }
        self.identity: Mapping[str, Any] = {"provider": "endpoint", "model": model.model, **self._sampling}

    def ask(self, questions: Sequence[Asked]) -> Iterator[tuple[Asked, Reply]]:
        """Up to `model.parallel` requests at once. After a failure, what is under way is still brought home."""
        failure: BaseException | None = None
        pool = ThreadPoolExecutor(self._model.parallel)
        asked = {pool.submit(self._reply, question): question for question in questions}
        try:
            for future in track(as_completed(asked), len(asked), self._model.section):
                if future.cancelled():
                    continue
                if error := future.exception():
                    failure = failure or error
                    self._stop.set()
                    for other in asked:
                        other.cancel()
                else:
                    yield asked[future], future.result()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
        if failure:
            raise failure

    def _reply(self, question: Question) -> Reply:
        """Ask, and ask again after a fault that may pass: exponential backoff with jitter, up to a longest wait.

        Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog (2015). A server that says how long to wait
        (Retry-After, RFC 9110, section 10.2.3) is waited for so long and no less.
        """
        model, number = self._model, 0
        while True:
            number += 1
            try:
                return _parse(self._request(question))
            except _TryAgain as fault:
                if number == model.attempts or self._stop.is_set():
                    raise self._gives_up(f"{fault} ({number} attempt{'s' * (number > 1)})") from None
                if fault.wait is not None and fault.wait > model.longest_wait:
                    raise self._gives_up(f"{fault}, and wants {fault.wait:.0f} s before the next request") from None
                backoff = min(model.longest_wait, 2.0 ** min(number - 1, 60)) * random.uniform(0.5, 1)
                self._stop.wait(max(backoff, fault.wait or 0.0))

    def _gives_up(self, what: str) -> UserError:
        return UserError(
            f"{self._model.called} at {self._model.endpoint} {what}; replies so far are kept in {self._replies}: "
            "run the same command again to go on"
        )

    def _request(self, question: Question) -> str:
        """The body of the reply, without the key should a server echo it."""
        import openai

        messages: Any = [{"role": "system", "content": self._system}, {"role": "user", "content": question.text}]
        asking = self._client.chat.completions.with_streaming_response
        try:
            with asking.create(
                model=self._model.model,
                messages=messages,
                stream=False,
                **self._sampling,
            ) as response:
                return self._clean(self._read(response.iter_bytes()))
        except openai.APIStatusError as error:
            self._check(error.status_code, error.response)
            raise
        except _TryAgain:
            raise
        except Exception as error:  # the client lets errors of the connection through while a body is read
            causes = list(_causes(error))
            if any("Timeout" in type(cause).__name__ for cause in causes):
                raise _TryAgain(f"did not reply within {self._model.timeout:g} s") from None
            # The innermost cause by its name; its message may hold whatever was sent.
            raise _TryAgain(f"broke the connection ({type(causes[-1]).__name__})") from None

    def _sign(self, request: Any) -> None:
        """Add the key, and drop what the client adds from OPENAI_ variables, which is meant for its maker."""
        for name in request.headers.keys() - _HEADERS:
            if not name.startswith("x-stainless-"):  # the client reads its own marks back
                del request.headers[name]
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    def _read(self, chunks: Iterator[bytes]) -> str:
        """A body that drips in has no more time than others."""
        deadline = time.monotonic() + self._model.timeout
        content = bytearray()
        for chunk in chunks:
            content += chunk
            if len(content) > _MAX_BYTES:
                raise _TryAgain("sent megabytes in place of a reply")
            if time.monotonic() > deadline:
                raise _TryAgain(f"did not reply within {self._model.timeout:g} s")
        return content.decode("utf-8", errors="replace")

    def _check(self, status: int, response: Any) -> None:
        """Raises for every status that is an error."""
        if status in _TRANSIENT or status >= 500:
            raise _TryAgain(f"answers with HTTP {status}", _retry_after(response.headers.get("Retry-After"))) from None
        if status in (401, 403):
            where = f"the key in {self._model.key_variable}" if self._key else "requests without a key"
            raise self._gives_up(f"refuses {where} (HTTP {status})") from None
        if 300 <= status < 400:
            raise self._gives_up(
                f"sends the request elsewhere (HTTP {status}); set {self._model.section}.endpoint to where it belongs"
            ) from None
        said = self._clean(" ".join(response.text.split())[:300])
        raise self._gives_up(f"refuses the request with HTTP {status}: {said or 'no reason given'}") from None

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class Local:
    """A transformers model known by its content, so that another model in the same folder is asked anew."""

    def __init__(self, model: AskedModel, system: str, replies: Path) -> None:
        self._folder, self._system, self._what = Path(model.model), system, model.section
        if not (self._folder / "config.json").is_file():
            raise UserError(f"{model.section}.model: {model.model} is no folder with a model (config.json is missing)")
        self._generation = Generation(max_new_tokens=model.max_tokens)
        self.identity: Mapping[str, Any] = {
            "provider": "local",
            "model": tree_digest(self._folder),
            "max_tokens": model.max_tokens,
        }

    def ask(self, questions: Sequence[Asked]) -> Iterator[tuple[Asked, Reply]]:
        """Greedy replies, a part of them at a time."""
        if not questions:
            return
        from stages.model.answers import answer
        from stages.model.chat import make_chat
        from stages.model.loading import load_model, load_tokenizer

        model = load_model(self._folder)
        chat = make_chat(load_tokenizer(self._folder), self._system)
        for start in range(0, len(questions), _AT_ONCE):
            batch = questions[start : start + _AT_ONCE]
            records = [make_record(question.text, "", None, self._what, "") for question in batch]
            what = f"{self._what}, {start + 1} to {start + len(batch)} of {len(questions)}"
            said = answer(model, chat, records, self._generation, what)
            for question, record, one in zip(batch, records, said, strict=True):
                yield question, Reply(one.output, len(chat.prompt_ids(record)), one.tokens)


def _read_key(model: AskedModel, loopback: bool) -> str:
    if model.key_variable is None:
        return ""
    key = os.environ.get(model.key_variable, "").strip()
    if not key:
        raise UserError(
            f"{model.called}'s key is not set: put it into the environment variable {model.key_variable}, "
            f"or set {model.section}.key_variable to null where none is needed"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the environment variable {model.key_variable} holds characters that no key has")
    if not loopback and urlsplit(model.endpoint).scheme != "https":
        raise UserError(
            f"{model.section}.endpoint {model.endpoint} is not https: the key would cross the network in the clear"
        )
    return key


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, of a number or a date; None when there is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _parse(content: str) -> Reply:
    try:
        body = json.loads(content)
        text = body["choices"][0]["message"].get("content") or ""
        usage = body.get("usage") or {}
        return Reply(str(text), _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _TryAgain("sends what is no chat completion") from None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised for, the innermost last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def key(question: Question, system: str, identity: Mapping[str, Any]) -> str:
    """SHA-256 over all that decides a reply: the model and its sampling, every word, and which asking this is."""
    asked = {**identity, "texts": [system, question.text], "repeat": question.repeat}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Memory:
    """Replies by key, in a file that only grows: a line a reply, on the disk before the next is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, Reply] = {}
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines():
            try:
                row = json.loads(line)
                name = row.pop("key")
                self.known[name] = Reply(**row)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # the line at which a run was killed
        self._cut = bool(content) and not content.endswith(b"\n")

    def add(self, name: str, reply: Reply) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = ("\n" if self._cut else "") + row_line({"key": name, **asdict(reply)})
        with self._path.open("ab") as handle:
            handle.write(line.encode())
            handle.flush()
            os.fsync(handle.fileno())
        self._cut = False
        self.known[name] = reply


def ask_all(
    questions: Sequence[Asked], model: AskedModel, system: str, replies: Path, notes: dict[str, object]
) -> dict[Asked, Reply]:
    """The reply to every question, kept from an earlier run in `replies` or asked for now; `notes` tells how many were.

    Raises UserError when the model cannot be asked. Replies that came before are kept.
    """
    asked = (Local if model.provider == "local" else Endpoint)(model, system, replies)
    memory = Memory(paths.of_checkout(replies))
    keys = {question: key(question, system, asked.identity) for question in questions}
    # Two questions of the same words, as of two models that say the same to a prompt, are asked once.
    missing = list({keys[question]: question for question in questions if keys[question] not in memory.known}.values())
    kept = len(questions) - len(missing)
    notes |= {"replies_kept": kept, "replies_asked": len(missing), "asked": dict(asked.identity)}
    print(f"asking {model.model} {len(missing)} times; {kept} replies are known already", flush=True)
    for question, reply in asked.ask(missing):
        memory.add(keys[question], reply)
    return {question: memory.known[keys[question]] for question in questions}


def marked(parts: Mapping[str, str]) -> str:
    """The texts by their names, between marks that none of them can hold: each has the hash of all the texts."""
    mark = hashlib.sha256("\0".join(parts.values()).encode()).hexdigest()[:12]
    return "\n".join([*(f"=== {name} {mark} ===\n{text}" for name, text in parts.items()), f"=== end {mark} ==="])


def cost(replies: Sequence[Reply], price: Price) -> dict[str, float | int]:
    """Tokens that the replies took, how many were not counted, and their price."""
    read = sum(reply.input_tokens or 0 for reply in replies)
    said = sum(reply.output_tokens or 0 for reply in replies)
    return {
        "input_tokens": read,
        "output_tokens": said,
        "uncounted": sum(reply.input_tokens is None or reply.output_tokens is None for reply in replies),
        "price": (read * price.input + said * price.output) / 1_000_000,
    }
