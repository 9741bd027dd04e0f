"""Names of people and places, found by a named-entity model through Presidio (an extra)."""

from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path

from stages.core.errors import UserError

NAMES = ("person", "location")
_LEAST_SCORE = 0.5  # of 1; Presidio gives what a spaCy model finds 0.85, and less what it trusts less


def name_masker(kinds: Collection[str], model: str) -> Callable[[str], str]:
    """A function that replaces the names of `kinds` by their placeholders.

    `model` is a spaCy model, installed as a package or a folder; the first two letters of its name are its language.

    Raises:
        UserError: when Presidio or the model is not installed.
    """
    if not find_spec("presidio_analyzer"):
        raise UserError(
            "clean.mask_personal_data has person or location, for which Presidio must be installed: "
            "pip install 'tunetrail[names]'"
        )
    if not (Path(model).is_dir() or find_spec(model)):  # else Presidio would download it
        raise UserError(f"clean.ner_model: the spaCy model {model!r} is no folder and not installed; install it")
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    language = Path(model).name[:2]
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    engine = NlpEngineProvider(nlp_configuration=settings).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[language])
    entities = [kind.upper() for kind in kinds]

    def mask(text: str) -> str:
        found = analyzer.analyze(text, language, entities=entities, score_threshold=_LEAST_SCORE)
        spans = sorted((span.start, span.end, f"[{span.entity_type}]") for span in found)
        pieces, done = [], 0
        for start, end, name in spans:
            # A placeholder, also a part of one, is no name.
            if start >= done and not _in_placeholder(text, start, end):
                pieces += [text[done:start], name]
                done = end
        return "".join([*pieces, text[done:]])

    return mask


def _in_placeholder(text: str, start: int, end: int) -> bool:
    opened = text.rfind("[", 0, end)
    return "[" in text[start:end] or (opened >= 0 and "]" not in text[opened:start] and "]" in text[start:])
