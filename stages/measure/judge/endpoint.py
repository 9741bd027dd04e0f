"""A judge behind an OpenAI-compatible endpoint."""

import email.utils
import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from stages.core import paths
from stages.core.errors import UserError
from stages.core.progress import track
from stages.measure.judge.questions import SYSTEM, Question
from stages.measure.judge.replies import Reply
from stages.params import Judge

_MAX_BYTES = 4_000_000
_TRANSIENT = (408, 425, 429)


class _TryAgain(Exception):
    """A fault that may pass; `wait` is how long the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """The client. Raises UserError when the key is missing, or would go over the network in the clear."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._url = f"{judge.endpoint}/chat/completions"
        self._loopback = _is_loopback(judge.endpoint)
        self._key = _read_key(judge, self._loopback)
        self._stop = threading.Event()
        self._sampling = {
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
                return self._request(question)
            except _TryAgain as fault:
                if number == judge.attempts or self._stop.is_set():
                    raise self._gives_up(f"{fault} ({number} attempt{'s' * (number > 1)})") from None
                if fault.wait is not None and fault.wait > judge.longest_wait:
                    raise self._gives_up(f"{fault}, and wants {fault.wait:.0f} s before the next request") from None
                backoff = min(judge.longest_wait, 2.0 ** (number - 1)) * random.uniform(0.5, 1)
                self._stop.wait(max(backoff, fault.wait or 0.0))

    def _gives_up(self, what: str) -> UserError:
        return UserError(
            f"the judge at {self._judge.endpoint} {what}; replies so far are kept in {paths.JUDGE_REPLIES}: "
            "run the same command again to go on"
        )

    def _request(self, question: Question) -> Reply:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.text}]
        body = {"model": self._judge.model, "messages": messages, "stream": False, **self._sampling}
        try:
            with requests.Session() as session:
                session.trust_env = not self._loopback  # no proxy between two programs of one machine
                with session.post(
                    self._url,
                    json=body,
                    auth=self._sign,
                    timeout=self._judge.timeout,
                    stream=True,
                    allow_redirects=False,
                ) as response:
                    content = self._read(response)
        except requests.exceptions.SSLError as error:
            raise self._gives_up(f"has no certificate that can be trusted: {self._clean(str(error))}") from None
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            raise _TryAgain(f"did not reply within {self._judge.timeout:g} s") from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _TryAgain(f"broke the connection ({_kind(error)})") from None
        self._check(response, content)
        return _parse(content)

    def _sign(self, request: Any) -> Any:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _read(self, response: Any) -> str:
        """The body, without the key should a server echo it. A body that drips in has no more time than others."""
        deadline = time.monotonic() + self._judge.timeout
        content = bytearray()
        while chunk := response.raw.read1(1 << 16, decode_content=True):
            content += chunk
            if len(content) > _MAX_BYTES:
                raise _TryAgain("sent megabytes in place of a reply")
            if time.monotonic() > deadline:
                raise requests.exceptions.Timeout
        return self._clean(content.decode("utf-8", errors="replace"))

    def _check(self, response: Any, content: str) -> None:
        """Raises on every status but 200."""
        status = response.status_code
        if status == 200:
            return
        if status in _TRANSIENT or status >= 500:
            raise _TryAgain(f"answers with HTTP {status}", _retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            where = f"the key in {self._judge.key_variable}" if self._key else "requests without a key"
            raise self._gives_up(f"refuses {where} (HTTP {status})")
        if 300 <= status < 400:
            raise self._gives_up(f"sends the request elsewhere (HTTP {status}); set judge.endpoint to where it belongs")
        said = " ".join(content.split())[:300]
        raise self._gives_up(f"refuses the request with HTTP {status}: {said or 'no reason given'}")

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


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


def _kind(error: BaseException) -> str:
    """The innermost cause by its name; its message may hold whatever was sent."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return type(error).__name__
