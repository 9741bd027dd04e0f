"""Training with and without paraphrases side by side, as docs/data.md has it: an experiment, and its comparison."""

import hashlib
import json
from pathlib import Path

import pytest
from asked_servers import judging
from project import run


def in_other_words(parts: dict[str, str]) -> str:
    """The text after words of its own, so that it is near no other."""
    digest = hashlib.sha256(parts["text"].encode()).hexdigest()
    return f"{digest.translate(str.maketrans('0123456789', 'ghijklmnop'))} {parts['text']}"


def test_an_experiment_with_paraphrases_is_compared_with_the_run_without(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((copy / "metrics/augment.json").read_text(encoding="utf-8"))
    monkeypatch.setenv("PARAPHRASE_API_KEY", "none")
    with judging(in_other_words) as server:
        settings = {
            "per_row": 1,
            "provider": "endpoint",
            "endpoint": f"http://127.0.0.1:{server.port}/v1",
            "model": "writer",
        }
        words = [f"--set-param=+augment.paraphrases.{name}={value}" for name, value in settings.items()]
        run(copy, "dvc", "exp", "run", "--name", "with-paraphrases", *words)
    after = json.loads((copy / "metrics/augment.json").read_text(encoding="utf-8"))
    kept = after["added"]["paraphrase"]
    assert 0 < kept == after["paraphrases"]["asked"] - sum(after["paraphrases"]["dropped"].values())
    assert after["rows"]["out"] >= before["rows"]["out"] + kept
    said = run(copy, "tunetrail", "compare", "HEAD", "with-paraphrases").stdout
    assert "augment.paraphrases.per_row" in said
    assert "exact_match" in said
