"""A run whose numbers are none ends at once."""

from types import SimpleNamespace

import pytest

from stages.core.errors import Refusal
from stages.tune.train.callbacks import StopsAtNaN

AT = SimpleNamespace(global_step=5, max_steps=40)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss"])
def test_a_number_that_is_none_ends_the_run_with_advice(name: str) -> None:
    with pytest.raises(Refusal, match=rf"step 5 of 40: {name} is inf\. Try a lower train\.learning_rate"):
        StopsAtNaN().on_log(None, AT, None, {name: float("inf")})


def test_numbers_pass() -> None:
    StopsAtNaN().on_log(None, AT, None, {"loss": 5.0, "grad_norm": 0.0, "learning_rate": 1e-3, "epoch": 1.0})
    StopsAtNaN().on_log(None, AT, None, None)
