"""Errors that a user can mend, and the one way in which every command ends on them."""

import sys
from collections.abc import Callable

EXIT_REFUSED = 1
EXIT_BAD_INPUT = 2


class UserError(Exception):
    """Bad input or parameters; the message says what, where and what to do. Exit code 2."""

    exit_code = EXIT_BAD_INPUT


class Refusal(UserError):
    """The input is sound but the answer is no: a failed gate, a broken trail. Exit code 1."""

    exit_code = EXIT_REFUSED


def run(main: Callable[[], None]) -> None:
    """Call `main`; end a `UserError` with its message and exit code, without a traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None
