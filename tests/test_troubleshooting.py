"""docs/troubleshooting.md: every sentence that it explains is one that the code can say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def sentences() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return [one for cell in cells for one in re.findall("`([^`]+)`", cell)]


@pytest.fixture(scope="module")
def said() -> str:
    """All texts in the code; a value within one is cut out."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "stages").rglob("*.py")))
    texts = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(text for text in texts if isinstance(text, str))


@pytest.mark.parametrize("sentence", sentences())
def test_the_code_says_it(said: str, sentence: str) -> None:
    for part in sentence.split("…"):
        assert part.strip(" ") in said


def test_there_are_sentences() -> None:
    assert len(sentences()) > 30
