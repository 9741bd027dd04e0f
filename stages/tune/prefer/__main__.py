"""prefer: go on from the SFT model by preferences, a teacher or the contract; by default hand it on as it is."""

import os
import shutil

from stages.core import paths
from stages.core.errors import run
from stages.core.files import atomic, write_json
from stages.params.loader import load_params
from stages.records.record import write_dropped, write_rows
from stages.tune.train.devices import take_one_card


def main() -> None:
    if load_params("prefer").prefer.objective == "sft":
        hand_on()
        return
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else TRL reports each run to its makers
    take_one_card()
    from stages.tune.prefer.beyond_imitation import go_beyond  # heavy, and nothing to hand on a model

    go_beyond()


def hand_on() -> None:
    """The adapter that ships is what `train` made, to the byte."""
    with atomic(paths.ADAPTER) as partial:
        shutil.copytree(paths.SFT, partial)
    write_dropped(paths.PREFERENCES_LEFT_OUT, [])
    write_rows(paths.PREFERENCE_SAMPLES, [])
    write_json(paths.PREFER_METRICS, {"objective": "sft"})


if __name__ == "__main__":
    run(main)
