"""review: what people said in blind comparisons (`tunetrail review`), as metrics; docs/metrics.md explains them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.measure.review.reviews import Review, Scale, differ, is_of, read_reviews, rows_to_review
from stages.params.loader import load_params
from stages.params.measure import Scoring
from stages.scoring.intervals import bootstrap, mean_of, share
from stages.scoring.metrics import as_json
from stages.scoring.paired_answers import LOSS, TIE, TUNED, WIN, Answers, delta, meetings

Reviews = Mapping[str, Mapping[str, Review]]


def main() -> None:
    params = load_params("review", "scoring", "seed")
    rows = rows_to_review(params.review.rows, params.seed)
    result = summarise(rows, read_reviews(paths.REVIEWS), params.scoring)
    write_json(paths.REVIEW_METRICS, result)
    print(f"answers of people that count: {result['reviews']['counted']}")


def summarise(rows: Sequence[Answers], reviews: Reviews, scoring: Scoring) -> dict[str, Any]:
    """The metrics; `reviews` are the answers by reviewer and row."""
    asked = {row.id: row for row in rows if differ(row)}
    counted = {
        name: {key: review for key, review in answers.items() if key in asked and is_of(review, asked[key])}
        for name, answers in reviews.items()
    }
    reviewers = {}
    for name, answers in reviews.items():
        n = len(counted[name])
        reviewers[name] = {"counted": n, "stale": len(answers) - n, "left": len(asked) - n}
    return {
        "rows": len(rows),
        "identical": len(rows) - len(asked),
        **({"reviewers": reviewers} if reviewers else {}),
        "reviews": {
            "counted": sum(one["counted"] for one in reviewers.values()),
            "stale": sum(one["stale"] for one in reviewers.values()),
            "comments": sum(bool(review.comment) for answers in counted.values() for review in answers.values()),
        },
        **_rated(counted, scoring),
        **{against: _comparison(rival, asked, counted, scoring) for against, (rival, _) in meetings(rows).items()},
    }


def _comparison(rival: str, asked: Mapping[str, Answers], reviews: Reviews, scoring: Scoring) -> dict[str, Any]:
    by_row: dict[str, dict[str, int]] = defaultdict(dict)
    both_bad = 0
    for name, answers in sorted(reviews.items()):
        for key, review in answers.items():
            outputs = asked[key].outputs
            if rival in outputs and outputs[TUNED] != outputs[rival]:
                tuned, other = TUNED in review.best, rival in review.best
                by_row[key][name] = TIE if tuned == other else WIN if tuned else LOSS
                both_bad += not {TUNED, rival} & set(review.best)
    outcomes = [outcome for said in by_row.values() for outcome in said.values()]
    wins, losses = outcomes.count(WIN), outcomes.count(LOSS)
    means = [sum(said.values()) / len(said) for said in by_row.values()]
    return {
        "reviews": len(outcomes),
        "rows": len(by_row),
        "wins": wins,
        "ties": outcomes.count(TIE),
        "losses": losses,
        "both_bad": both_bad,
        **({"win_rate": as_json(share([True] * wins + [False] * losses, scoring.confidence))} if wins + losses else {}),
        "delta": as_json(delta(means, scoring)),
        **agreement(list(by_row.values())),
    }


def _rated(reviews: Reviews, scoring: Scoring) -> dict[str, Any]:
    """The mean of each scale by model, over rows, reviewers of a row averaged first; and how the reviewers agree."""
    said: dict[tuple[str, Scale], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for _, answers in sorted(reviews.items()):
        for key, review in sorted(answers.items()):
            for model, ratings in review.scales.items():
                for scale, rating in ratings.items():
                    said[model, scale][key].append(rating)
    scales: dict[str, dict[str, Any]] = defaultdict(dict)
    for (model, scale), by_row in sorted(said.items()):
        means = mean_of([sum(row) / len(row) for row in by_row.values()], (1, 5))
        scales[model][scale] = {**as_json(bootstrap(means, scoring)), "rows": len(by_row)}
    alphas = {}
    for scale in get_args(Scale):
        units = [row for (_, name), by_row in said.items() if name == scale for row in by_row.values()]
        if (alpha := krippendorff_alpha(units, _squares)) is not None:
            alphas[scale] = alpha
    return {name: dict(one) for name, one in (("scales", scales), ("scale_agreement", alphas)) if one}


def _squares(ratings: Counter[int]) -> float:
    """Squared differences over all ordered pairs: what disagreement is on an interval scale."""
    total = sum(rating * count for rating, count in ratings.items())
    return 2 * (ratings.total() * sum(rating**2 * count for rating, count in ratings.items()) - total**2)


def _unlike(categories: Counter[Any]) -> float:
    """Ordered pairs of unlike categories: what disagreement is on a nominal scale."""
    return categories.total() ** 2 - sum(count**2 for count in categories.values())


def agreement(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cohen's kappa where two reviewers share rows, Krippendorff's alpha where more do."""
    shared = [row for row in said if len(row) > 1]
    names = sorted({name for row in shared for name in row})
    if len(names) == 2:
        method, value = "cohen_kappa", cohen_kappa([(row[names[0]], row[names[1]]) for row in shared])
    else:
        method, value = "krippendorff_alpha", krippendorff_alpha([list(row.values()) for row in shared])
    return {} if value is None else {"agreement": {method: value, "rows": len(shared)}}


def cohen_kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Agreement of two raters, from one pair of categories for each unit that both rated; 1 is perfect, 0 is chance.

    Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20 (1960),
    37-46. None where it is not defined: no units, or both raters say one and the same throughout.
    """
    if len({category for pair in pairs for category in pair}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score  # slow to import, and most runs have no reviewers

    return float(cohen_kappa_score(*zip(*pairs, strict=True)))


def krippendorff_alpha(
    units: Iterable[Sequence[Any]], disagreement: Callable[[Counter[Any]], float] = _unlike
) -> float | None:
    """Agreement of any number of raters, each unit with the categories of those who rated it; nominal, if not told.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), sections C and E (interval scale). Units with
    one rating are left out.
    None where it is not defined: fewer than two ratings to pair, or one category throughout.
    """
    rated = [Counter(unit) for unit in units if len(unit) > 1]
    totals = sum(rated, Counter[Any]())
    of, expected = totals.total(), disagreement(totals)
    if not expected:
        return None
    observed = sum(disagreement(unit) / (unit.total() - 1) for unit in rated)
    return 1 - (of - 1) * observed / expected


if __name__ == "__main__":
    run(main)
