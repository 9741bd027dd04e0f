"""train: fine-tune the base model on the completions of data/train.jsonl; a killed run goes on where it was."""

import os
import threading
from contextlib import suppress
from importlib import import_module

from stages.core.errors import run
from stages.tune.train.devices import only_waits, start_all, take_one_card, together

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else TRL reports each run to its makers
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch warns at each try to reach a machine


def main() -> None:
    start_all()
    if _ahead.ident:
        _ahead.join()
    from stages.tune.train.run import train_stage  # heavy, and no work of the process that only waits for others

    with together():
        train_stage()


def _import_ahead() -> None:
    """Import what takes seconds while the base model is read and held against the trail, which takes seconds, too."""
    with suppress(Exception):  # `main` meets it again, and says it
        if not only_waits():
            take_one_card()  # before a library looks for cards
            import_module("stages.tune.train.run")


_ahead = threading.Thread(target=_import_ahead)

if __name__ == "__main__":
    _ahead.start()
    run(main)
