"""metrics/train.json: what was trained and how the losses went."""

from typing import Any

from stages.tune.train.examples import Examples
from stages.tune.train.red_flags import red_flags


def summarise(trainer: Any, train: Examples) -> dict[str, Any]:
    """Nested numbers. Losses are means over completion tokens, in nats."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    trainable, everything = _count_parameters(trainer.model)
    summary: dict[str, Any] = {
        "rows": {"train": len(train), "left_out_too_long": train.too_long},
        "tokens": {"total": train.tokens, "trained": train.trained_tokens},
        "parameters": {"trainable": trainable, "all": everything},
        "steps": trainer.state.global_step,
        "loss": {},
        "red_flags": red_flags(losses, validation),
    }
    if losses:
        summary["loss"] |= {"train_first": losses[0], "train_last": losses[-1]}
    if validation:
        summary["loss"] |= {
            "validation_first": validation[0],
            "validation_best": min(validation),
            "validation_last": validation[-1],
        }
    if trainer.state.best_global_step:
        summary["best_step"] = trainer.state.best_global_step
    return summary


def _count_parameters(model: Any) -> tuple[int, int]:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
