"""Names through Presidio, with a model made on the spot that knows two of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.text.personal_data import masker, name_finder

pytest.importorskip("presidio_analyzer", reason="the extra `names` is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    import spacy

    folder = tmp_path_factory.mktemp("model") / "en_two_names"
    pipeline = spacy.blank("en")
    patterns = [{"label": "PERSON", "pattern": "Jane Doe"}, {"label": "GPE", "pattern": "Berlin"}]
    pipeline.add_pipe("entity_ruler").add_patterns(patterns)
    pipeline.to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mask(model: str) -> Callable[[str], str]:
    return masker(["email", "phone", "person", "location"], "US", model)


def test_names_are_masked_as_what_they_are(mask: Callable[[str], str], model: str) -> None:
    assert mask("Ask Jane Doe <jane@example.com> in Berlin.") == "Ask [PERSON] <[EMAIL]> in [LOCATION]."
    assert masker(["location"], "US", model)("Jane Doe in Berlin") == "Jane Doe in [LOCATION]"


PIECES = st.sampled_from(["Jane Doe", "Berlin", "[", "]", "[PERSON]", "[Berlin]", " ", "x", "jane@example.com"])


@settings(max_examples=50)
@given(text=st.lists(PIECES, max_size=6).map("".join))
def test_twice_is_once(mask: Callable[[str], str], text: str) -> None:
    assert mask(mask(text)) == mask(text)


def test_a_model_that_is_not_there_is_no_reason_to_download_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder and not installed"):
        name_finder(["person"], "en_core_none_lg")
