"""review: what people said in blind comparisons (`tunetrail review`), as metrics."""

from stages import paths
from stages.errors import run
from stages.files import write_json
from stages.params import load_params
from stages.review.answers import read_reviews
from stages.review.rows import rows_to_review
from stages.review.summary import summarise


def main() -> None:
    params = load_params("review", "scoring", "seed")
    rows = rows_to_review(params.review.rows, params.seed)
    result = summarise(rows, read_reviews(paths.REVIEWS), params.scoring)
    write_json(paths.REVIEW_METRICS, result)
    print(f"answers of people that count: {result['reviews']['counted']}")


if __name__ == "__main__":
    run(main)
