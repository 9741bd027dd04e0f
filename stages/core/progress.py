"""Progress with an estimate: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import rich.progress

_SECONDS_BETWEEN_LINES = 15.0

Item = TypeVar("Item")


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield `items` while showing how many of `total` are done and how long the rest should take."""
    return iter(rich.progress.track(items, what, total)) if sys.stderr.isatty() else _lines(items, total, what)


def _lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= _SECONDS_BETWEEN_LINES:
            left = (now - start) / done * (total - done)
            print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            last = now
        yield item
