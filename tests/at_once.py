"""Two that change one file at once, as far as nothing keeps them apart."""

from collections.abc import Callable
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SECONDS = 0.5  # for which the first waits in vain where the second is kept out


def met(write: Callable[_P, _T]) -> Callable[_P, _T]:
    """`write`, begun only when two have come as far, each with what it read before the other wrote."""
    barrier = Barrier(2)

    def begun(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with suppress(BrokenBarrierError):
            barrier.wait(_SECONDS)
        return write(*args, **kwargs)

    return begun
