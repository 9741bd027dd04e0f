"""What only a card can show. Each test adds a line to the table that the last run leaves in benchmarks/results."""

import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/tune/train")]
COLUMNS = ("what", "result", "loss", "gradient", "one weight", "fused tokens/s", "TRL tokens/s")


@pytest.fixture(scope="session")
def table() -> Iterator[list[dict[str, Any]]]:
    """Rows of the table; written when all tests are done."""
    rows: list[dict[str, Any]] = []
    yield rows
    if not rows:
        return
    import transformers
    import trl

    cards = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    lines = [
        "# What only a card can show: `make test-gpu`",
        "",
        f"Last run: {cards}, torch {torch.__version__}, transformers {transformers.__version__}, TRL "
        f"{trl.__version__}, Python {platform.python_version()}.",
        "Errors are relative to TRL's trainer on one batch: of the loss, of all gradients by norm, of one weight's",
        "gradient at most. Speeds are those of the second half of a short run, in tokens of rows, padding not counted.",
        "Models have the widths of those named, but 4 to 8 layers and 32,000 words, so the speeds are not those of the "
        "models.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(str(row.get(column, '')) for column in COLUMNS)} |" for row in rows),
    ]
    (ROOT / "benchmarks/results/gpu_tests.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
