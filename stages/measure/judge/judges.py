"""The two kinds of judge: a model behind an OpenAI-compatible endpoint, and one in a folder of this machine."""

import email.utils
import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import tree_digest
from stages.core.run_notes import track
from stages.measure.judge.asking import SYSTEM, Question, Reply
from stages.params.gates import Judge
from stages.params.model import Generation
from stages.records.record import make_record

_MAX_BYTES = 4_000_000
_HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}
_TRANSIENT = (408, 409, 425, 429)
_AT_ONCE = 64  # questions to a local judge; as many replies are lost at most when a run is killed


class _TryAgain(Exception):
    """A fault that may pass; `wait` is how long the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """Asks with the `openai` client, whose own attempts are switched off: they would not wait as the parameters say.

    Raises UserError when the client is not installed, the key is missing, or it would go over the network in the clear.
    """

    def __init__(self, judge: Judge) -> None:
        loopback = _is_loopback(judge.endpoint)
        self._judge, self._key = judge, _read_key(judge, loopback)
        try:
            import openai
        except ImportError:
            raise UserError("the judge asks with the openai client: run `pip install 'tunetrail[judge]'`") from None
        self._client = openai.OpenAI(
            base_url=judge.endpoint,
            api_key="none",
            timeout=judge.timeout,
            max_retries=0,
            # No proxy between two programs of one machine, and no key for whoever a redirect names.
            http_client=openai.DefaultHttpxClient(
                trust_env=not loopback, follow_redirects=False, event_hooks={"request": [self._sign]}
            ),
        )
        self._stop = threading.Event()
        self._sampling: dict[str, Any] = {
            "temperature": judge.temperature,
            "top_p": judge.top_p,
            "max_tokens": judge.max_tokens,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "n": 1,
        }
        self.identity: Mapping[str, Any] = {"provider": "endpoint", "model": judge.model, **self._sampling}

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Up to `judge.parallel` requests at once. After a failure, what is under way is still brought home."""
        failure: BaseException | None = None
        pool = ThreadPoolExecutor(self._judge.parallel)
        asked = {pool.submit(self._reply, question): question for question in questions}
        try:
            for future in track(as_completed(asked), len(asked), "judge"):
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
        judge, number = self._judge, 0
        while True:
            number += 1
            try:
                return _parse(self._request(question))
            except _TryAgain as fault:
                if number == judge.attempts or self._stop.is_set():
                    raise self._gives_up(f"{fault} ({number} attempt{'s' * (number > 1)})") from None
                if fault.wait is not None and fault.wait > judge.longest_wait:
                    raise self._gives_up(f"{fault}, and wants {fault.wait:.0f} s before the next request") from None
                backoff = min(judge.longest_wait, 2.0 ** min(number - 1, 60)) * random.uniform(0.5, 1)
                self._stop.wait(max(backoff, fault.wait or 0.0))

    def _gives_up(self, what: str) -> UserError:
        return UserError(
            f"the judge at {self._judge.endpoint} {what}; replies so far are kept in {paths.JUDGE_REPLIES}: "
            "run the same command again to go on"
        )

    def _request(self, question: Question) -> str:
        """The body of the reply, without the key should a server echo it."""
        import openai

        messages: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.text}]
        asking = self._client.chat.completions.with_streaming_response
        try:
            with asking.create(
                model=self._judge.model,
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
                raise _TryAgain(f"did not reply within {self._judge.timeout:g} s") from None
            # The innermost cause by its name; its message may hold whatever was sent.
            raise _TryAgain(f"broke the connection ({type(causes[-1]).__name__})") from None

    def _sign(self, request: Any) -> None:
        """Add the judge's key, and drop what the client adds from OPENAI_ variables, which is meant for its maker."""
        for name in request.headers.keys() - _HEADERS:
            if not name.startswith("x-stainless-"):  # the client reads its own marks back
                del request.headers[name]
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    def _read(self, chunks: Iterator[bytes]) -> str:
        """A body that drips in has no more time than others."""
        deadline = time.monotonic() + self._judge.timeout
        content = bytearray()
        for chunk in chunks:
            content += chunk
            if len(content) > _MAX_BYTES:
                raise _TryAgain("sent megabytes in place of a reply")
            if time.monotonic() > deadline:
                raise _TryAgain(f"did not reply within {self._judge.timeout:g} s")
        return content.decode("utf-8", errors="replace")

    def _check(self, status: int, response: Any) -> None:
        """Raises for every status that is an error."""
        if status in _TRANSIENT or status >= 500:
            raise _TryAgain(f"answers with HTTP {status}", _retry_after(response.headers.get("Retry-After"))) from None
        if status in (401, 403):
            where = f"the key in {self._judge.key_variable}" if self._key else "requests without a key"
            raise self._gives_up(f"refuses {where} (HTTP {status})") from None
        if 300 <= status < 400:
            raise self._gives_up(
                f"sends the request elsewhere (HTTP {status}); set judge.endpoint to where it belongs"
            ) from None
        said = self._clean(" ".join(response.text.split())[:300])
        raise self._gives_up(f"refuses the request with HTTP {status}: {said or 'no reason given'}") from None

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class Local:
    """A transformers model known by its content, so that another model in the same folder is asked anew."""

    def __init__(self, judge: Judge) -> None:
        self._folder = Path(judge.model)
        if not (self._folder / "config.json").is_file():
            raise UserError(f"judge.model: {judge.model} is no folder with a model (config.json is missing)")
        self._generation = Generation(max_new_tokens=judge.max_tokens)
        self.identity: Mapping[str, Any] = {
            "provider": "local",
            "model": tree_digest(self._folder),
            "max_tokens": judge.max_tokens,
        }

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Greedy replies, a part of them at a time."""
        if not questions:
            return
        from stages.model.answers import answer
        from stages.model.chat import make_chat
        from stages.model.loading import load_model, load_tokenizer

        model = load_model(self._folder)
        chat = make_chat(load_tokenizer(self._folder), SYSTEM)
        for start in range(0, len(questions), _AT_ONCE):
            batch = questions[start : start + _AT_ONCE]
            records = [make_record(question.text, "", None, "judge", "") for question in batch]
            what = f"judge, {start + 1} to {start + len(batch)} of {len(questions)}"
            said = answer(model, chat, records, self._generation, what)
            for question, record, one in zip(batch, records, said, strict=True):
                yield question, Reply(one.output, len(chat.prompt_ids(record)), one.tokens)


def _read_key(judge: Judge, loopback: bool) -> str:
    if judge.key_variable is None:
        return ""
    key = os.environ.get(judge.key_variable, "").strip()
    if not key:
        raise UserError(
            f"the judge's key is not set: put it into the environment variable {judge.key_variable}, "
            "or set judge.key_variable to null where none is needed"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the environment variable {judge.key_variable} holds characters that no key has")
    if not loopback and urlsplit(judge.endpoint).scheme != "https":
        raise UserError(f"judge.endpoint {judge.endpoint} is not https: the key would cross the network in the clear")
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
