"""`tunetrail review`: a page on this machine on which one reviewer compares answers without knowing whose they are."""

import signal
import sys

from stages.core import paths
from stages.core.errors import UserError
from stages.measure.review.answers import review_file
from stages.measure.review.handler import Server
from stages.measure.review.session import Session
from stages.params import load_params


def review(reviewer: str, port: int) -> None:
    """Serve the page until Ctrl-C; `port` 0 takes a free one.

    Raises:
        UserError: for a name that is no file name, a port that is taken, a file of answers that is broken.
    """
    session = Session(reviewer, review_file(paths.REVIEWS, reviewer), load_params("review", "seed", "task"))
    if not session.rows:
        print("all models say the same to every row that is to be reviewed; there is nothing to compare")
        return
    with _listen(session, port) as server:
        signal.signal(signal.SIGINT, server.stop)
        try:
            # Flushed, for whoever reads the address from a pipe.
            print(f"{session.progress()}; review at {server.address} and stop with Ctrl-C", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"\n{session.progress()}, in {session.file}; commit it: `dvc repro` counts it", file=sys.stderr)


def _listen(session: Session, port: int) -> Server:
    try:
        return Server(session, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}); leave --port out to take a free one") from None
