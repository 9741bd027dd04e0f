"""docs/metrics.md: made from the code, and with every key that a run writes."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metrics_page", ROOT / "docs/metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_says(docs: ModuleType) -> None:
    assert (ROOT / "docs/metrics.md").read_text(encoding="utf-8") == docs.page(), "run: python docs/metrics.py"


def test_no_key_lacks_its_meaning(docs: ModuleType) -> None:
    rows = [line for line in docs.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if not row.strip(" |").split(" | ")[-1].strip()] == []


def test_every_counted_key_of_a_run_is_explained(docs: ModuleType, pipeline: Path) -> None:
    details = json.loads((pipeline / "metrics/details.json").read_text(encoding="utf-8"))
    for name, meanings in docs.COUNTED.items():
        patterns = [re.compile(_pattern(key)) for key in meanings]
        unknown = [key for key in _keys(details[name]) if not any(one.fullmatch(key) for one in patterns)]
        assert unknown == [], name


def _pattern(key: str) -> str:
    """A part in capitals stands for any name, which may hold dots."""
    return r"\.".join(".+" if part.isupper() else re.escape(part) for part in key.split("."))


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict) and "low" not in node:
        for key, value in node.items():
            yield from _keys(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix
