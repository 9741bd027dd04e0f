"""Errors that a user can mend, and the one way in which every command speaks and ends on them.

Every stage imports this module before any library, so it also says what other libraries may print: nothing.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TextIO
from unicodedata import category

EXIT_REFUSED = 1
EXIT_BAD_INPUT = 2
_NAMES_SHOWN = 5

# The stages show progress of their own. Set before a library is imported, for that is when they read it.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("PYTHON_COLORS", "0")  # tracebacks from Python 3.13 on, and help from 3.14 on
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# No stage compiles, but bitsandbytes calls torch.compile while it is imported, which loads the compiler: seconds.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)


class UserError(Exception):
    """Bad input or parameters; the message says what, where and what to do. Exit code 2."""

    exit_code = EXIT_BAD_INPUT


class Refusal(UserError):
    """The input is sound but the answer is no: a failed gate, a broken trail. Exit code 1."""

    exit_code = EXIT_REFUSED


def visible(text: str, ours: str = "\n\t") -> str:
    """Controls, marks of text direction and other invisible characters by their code points, except `ours`."""
    return "".join(
        f"⟨U+{ord(char):04X}⟩" if category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in ours else char
        for char in text
    )


class _Shown:
    """A stream to people: what others wrote, in rows, logs, names or paths, is shown on it and steers no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        shown = visible(text, "\n\t\u2060")  # which markdown_text puts in
        encoding = self._stream.encoding or "utf-8"  # of a terminal that may know few signs
        self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run(main: Callable[[], None]) -> None:
    """Call `main`; end a `UserError`, a full disk or an interruption with a sentence and an exit code, no traceback.

    All that it prints is `_Shown`. What a stage reads is held against the trail, before and after
    (`stages.core.dependencies`).
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream and not isinstance(stream, _Shown):  # it stays for the traceback of a fault
            setattr(sys, name, _Shown(stream))
    try:
        from stages.core.dependencies import held

        spec = main.__globals__.get("__spec__")
        with held(spec.name.removesuffix(".__main__") if spec else ""):
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        from stages.core.disk import when_full

        said = when_full(error)
        if isinstance(error, OSError) and error.filename:  # such as too long a name, or a file where a folder shall be
            said = said or f"{error.filename}: {error.strerror}; name another, or give yourself the right to it"
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None


def names(paths: Iterable[str]) -> str:
    """The first few of a list for a sentence, and how many more there are."""
    unique = list(dict.fromkeys(paths))
    more = f" and {len(unique) - _NAMES_SHOWN} more" if len(unique) > _NAMES_SHOWN else ""
    return ", ".join(unique[:_NAMES_SHOWN]) + more


def _another_python(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A package that is missing as soon as a stage is imported: `dvc` ran from one environment, `python` is another."""
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "stages":
        print(
            f"error: {sys.executable} has no package {error.name}, so it is not the project's Python: activate its "
            "environment (source .venv/bin/activate) and run again, or run `make repro`",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_BAD_INPUT)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _another_python
