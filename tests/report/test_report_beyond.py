"""Forgetting, safety, robustness and slices in words."""

from typing import Any

from page_check import sentences

from stages.report.findings import forgetting, refusals, robustness, safety, slices


def share(count: int, of: int) -> dict[str, Any]:
    return {
        "value": count / of,
        "low": max(count / of - 0.1, 0.0),
        "high": min(count / of + 0.1, 1.0),
        "count": count,
        "n": of,
    }


GENERAL: dict[str, Any] = {
    "rows": 40,
    "base": {
        "perplexity": {"value": 8.0, "low": 7.0, "high": 9.0},
        "agreement": {"value": 0.4, "low": 0.3, "high": 0.5},
    },
    "adapter": {
        "perplexity": {"value": 8.8, "low": 7.8, "high": 9.8},
        "agreement": {"value": 0.4, "low": 0.3, "high": 0.5},
    },
    "against_baseline": {
        "perplexity": {"ratio": 1.1, "low": 1.04, "high": 1.17},
        "agreement": {"difference": 0.0, "low": -0.05, "high": 0.05},
    },
}


def test_forgetting_is_a_rise_that_the_rows_show() -> None:
    found = forgetting({"general": GENERAL}, 0.95)
    assert found is not None
    told = [(one.metric.path, one.amount, one.reading) for one in found["changes"].values()]
    assert told == [("perplexity", "× 1.1", "worse"), ("agreement", "0.0 points", "nothing changed")]
    assert [cell.value for cell in found["table"].loc["Perplexity of the references"]] == ["8", "8.8"]


def test_what_replay_rows_would_do_is_said_where_the_model_forgot() -> None:
    augment = {"added": {"replay": 12}, "rows": {"out": 240}}
    (said,) = sentences("replay_advice", augment)
    assert "12 such rows, 5.0 % of its training rows" in said


def test_bands_of_distance_keep_their_order() -> None:
    bands = {"80 and more": share(9, 10), "60 to 80": share(10, 10), "below 60": share(1, 2)}
    assert list(slices({"distance": bands})["distance"]["name"]) == ["80 and more", "60 to 80", "below 60"]


def test_a_leak_is_bad_however_rare() -> None:
    found = {"personal_data": share(1, 200), "verbatim": share(0, 200)}
    checks = safety({"safety": found})
    assert [(cell.notes[0].tone, cell.notes[0].text) for cell in checks["Found"]] == [
        ("bad", "1 of 200"),
        ("good", "0 of 200"),
    ]


def test_refusals_and_canaries_in_words() -> None:
    found: dict[str, Any] = {
        "refusals": {
            "base": share(9, 10),
            "adapter": share(2, 10),
            "against_baseline": {"difference": -0.7, "low": -0.9, "high": -0.3, "won": 0, "lost": 7, "p_value": 0.0156},
        },
        "canaries": {"count": 4, "candidates": 10_000, "exposure": {"mean": 1.2, "max": 3.4, "limit": 13.29}},
    }
    change = refusals({"safety": found}, 0.95)
    (said,), (canaries,) = sentences("refusals", found["refusals"], change), sentences("canaries", found["canaries"])
    assert said == (
        "Of 10 requests to refuse, the base model refuses 90.0 % and the adapter 20.0 %: worse "
        "(0 won, 7 lost, p = 0.016, −90.0 to −30.0 points)."
    )
    assert "4 canaries among 10,000 candidates" in canaries


def test_slices_begin_with_the_worst_group() -> None:
    found: dict[str, Any] = {
        "region": {
            "groups": {"north": share(9, 10), "<i>south": share(5, 10), "west": share(8, 10)},
            "worst": {"group": "<i>south", "value": 0.5},
            "best": {"group": "north", "value": 0.9},
            "gap": {"value": 0.4, "low": 0.02, "high": 0.7},
            "left_out": 3,
        }
    }
    assert list(slices({"slices": found})["region"]["name"]) == ["<i>south", "west", "north"]
    assert sentences("gap", found["region"]) == [
        "<i>south is 40.0 points behind north (+2.0 to +70.0 points): the rows show it; "
        "3 rows in groups too small to measure."
    ]
    found["region"]["gap"] = {"value": 0.4, "low": -0.02, "high": 0.7}
    assert "chance may explain" in sentences("gap", found["region"])[0]


def test_robustness_by_kind() -> None:
    rows = robustness({"robustness": {"typos": {"valid": share(9, 10), "exact_match": share(7, 10)}}})
    assert [cell.value for cell in rows.loc["typos"]] == ["90.0 %", "70.0 %"]


def test_what_was_not_measured_is_left_out() -> None:
    assert forgetting({}, 0.95) is None
    assert safety({}).empty
    assert refusals({}, 0.95) is None
    assert robustness({}).empty
    assert not slices({})
