"""The benchmark of hostile rows: every row has an outcome, and its limits of length are off."""

from benchmarks import hostile_rows


def test_every_hostile_row_has_an_outcome_and_no_limit_saves_the_operators() -> None:
    of = hostile_rows.rules()
    outcomes = {name: hostile_rows.one_row(row, of) for name, row in hostile_rows.rows(3000).items()}
    assert {name for name, outcome in outcomes.items() if outcome != "kept"} == {"joiners", "turns", "a label"}
    assert outcomes["a label"] == "column_too_long"
    assert all(hostile_rows.csv_file(piece, 300).endswith(" rows") for piece in hostile_rows.CSV.values())
