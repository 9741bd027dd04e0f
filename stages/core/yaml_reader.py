"""The one reader of YAML: version 1.2, by the library that DVC itself reads with.

`yes`, `no`, `on` and `1:30` are texts in it, `1e-3` and `010` are numbers (0.001 and 10).
"""

from copy import deepcopy
from functools import lru_cache
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError


def load_yaml(text: bytes | str) -> Any:
    """The plain values of one YAML document; None for an empty one.

    Raises:
        ValueError: with one line that says where and what: no YAML, no UTF-8, or a key that is given twice.
    """
    return deepcopy(_parsed(text))


@lru_cache(maxsize=64)  # a dvc.lock takes a second, and the same texts are asked for again and again
def _parsed(text: bytes | str) -> Any:
    try:
        return YAML(typ="safe").load(text.decode() if isinstance(text, bytes) else text)
    except DuplicateKeyError as error:
        raise ValueError(f"{_place(error)}: this key is given twice; keep one") from None
    except MarkedYAMLError as error:
        raise ValueError(f"{_place(error)}: {error.problem or error.context}") from None
    except (YAMLError, TypeError, AttributeError, RecursionError) as error:  # the latter for odd tags and keys
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "somewhere" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
