"""train: fine-tune the base model on the completions of data/train.jsonl; a killed run goes on where it was."""

import os

from stages.core.errors import run
from stages.tune.train.devices import start_all, together


def main() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else TRL reports each run to its makers
    start_all()
    from stages.tune.train.run import train_stage  # heavy, and no work of the process that only waits for others

    with together():
        train_stage()


if __name__ == "__main__":
    run(main)
