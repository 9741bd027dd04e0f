"""A folder whose answers can be reviewed, and the review server in it."""

import contextlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from project import ROOT, set_params

from stages.core import paths
from stages.measure.review.reviews import Session, review_file
from stages.measure.review.server import Server
from stages.params.loader import load_params
from stages.records.record import make_record, write_records, write_rows


def make_review_project(folder: Path, pairs: Sequence[tuple[str, str]], **changes: Any) -> Path:
    """One row for each pair of outputs (base, tuned)."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, {"review": {"rows": None, **changes}})
    records = [make_record(f"question {n}", f"reference {n}", None, "test", f"test:{n}") for n in range(len(pairs))]
    write_records(folder / paths.HOLDOUT, records)
    write_rows(folder / paths.PREVIOUS_GENERATIONS, [{"release": None}])
    for place, side in ((paths.BASE_GENERATIONS, 0), (paths.ADAPTER_GENERATIONS, 1)):
        rows = [{"id": record.id, "output": pair[side]} for record, pair in zip(records, pairs, strict=True)]
        write_rows(folder / place, rows)
    return folder


@contextlib.contextmanager
def reviewing(folder: Path, reviewer: str) -> Iterator[Server]:
    """The server as `tunetrail review` starts it, in a thread; the working folder is `folder` meanwhile."""
    with contextlib.chdir(folder):
        session = Session(reviewer, review_file(paths.REVIEWS, reviewer), load_params("review", "seed", "task"))
        with Server(session, 0) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield server
            server.shutdown()
