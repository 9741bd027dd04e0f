"""review: what people said in blind comparisons (`tunetrail review`), as metrics."""

from stages.core import paths
from stages.core.errors import run
from stages.core.files import write_json
from stages.measure.review.agreement import summarise
from stages.measure.review.reviews import read_reviews, rows_to_review
from stages.params.loader import load_params


def main() -> None:
    params = load_params("review", "scoring", "seed")
    rows = rows_to_review(params.review.rows, params.seed)
    result = summarise(rows, read_reviews(paths.REVIEWS), params.scoring)
    write_json(paths.REVIEW_METRICS, result)
    print(f"answers of people that count: {result['reviews']['counted']}")


if __name__ == "__main__":
    run(main)
