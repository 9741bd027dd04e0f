"""How numbers and texts are put on a page."""

from stages.report import formats


def test_numbers_in_words() -> None:
    assert formats.percent(0.97916) == "97.9 %"
    assert formats.points(-0.0417) == "−4.2 points"
    assert formats.points(0.5) == "+50.0 points"
    assert formats.points(-0.0) == formats.points(0.00004).removeprefix("+") == "0.0 points"
    assert formats.p_value(0.0004) == "p < 0.001"
    assert formats.signed(0.0312) == "+0.0312"
    assert formats.signed(-3.5) == "−3.5"
    assert formats.plural(1, "row") == "1 row"
    assert formats.plural(1200, "row") == "1,200 rows"


def test_long_text_is_cut_and_says_so() -> None:
    assert formats.excerpt("x" * 20, 10) == "x" * 10 + " … (the first 10 of 20 characters)"
    assert formats.excerpt("x" * 10, 10) == "x" * 10
