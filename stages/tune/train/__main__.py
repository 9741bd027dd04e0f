"""train: fine-tune the base model on the completions of data/train.jsonl; a killed run goes on where it was."""

from stages.core.errors import run
from stages.tune.train.launch import start_all


def main() -> None:
    start_all()
    from stages.tune.train.run import train_stage  # heavy, and no work of the process that only waits for others

    train_stage()


if __name__ == "__main__":
    run(main)
