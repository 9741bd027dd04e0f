from stages.tune.train.run import red_flags

CALM = [2.0, 1.5, 1.2, 1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15]


def test_a_calm_run_has_no_flags() -> None:
    assert red_flags(CALM, [1.0, 0.8, 0.6]) == {"overfitting": 0, "plateau": 0, "unstable": 0}


def test_validation_that_rises_while_training_falls_is_overfitting() -> None:
    assert red_flags(CALM, [1.0, 0.6, 0.7, 0.8])["overfitting"] == 1
    assert red_flags(CALM, [1.0, 0.6, 0.605, 0.6])["overfitting"] == 0, "within tolerance"
    assert red_flags(CALM[::-1], [1.0, 0.6, 0.7, 0.8])["overfitting"] == 0, "training did not fall"


def test_a_loss_that_stands_still_is_a_plateau() -> None:
    assert red_flags([1.0] * 12, [])["plateau"] == 1
    assert red_flags([1.0] * 4 + [0.01] * 8, [])["plateau"] == 0, "nothing left to learn"


def test_spikes_and_broken_losses_are_unstable() -> None:
    assert red_flags([*CALM[:6], 5.0, *CALM[7:]], [])["unstable"] == 1
    assert red_flags([*CALM, float("nan")], [])["unstable"] == 1
    assert red_flags(CALM, [0.5, float("inf")])["unstable"] == 1
