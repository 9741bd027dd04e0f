"""The one reader of YAML: version 1.2, by the library that DVC itself reads with.

`yes`, `no`, `on` and `1:30` are texts in it, `1e-3` and `010` are numbers (0.001 and 10).
"""

import re
from copy import deepcopy
from functools import lru_cache
from typing import Any

from ruamel.yaml import YAML, ScalarNode
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError

_VERSION = re.compile("^%YAML", re.MULTILINE)


class _Constructor(SafeConstructor):
    """DVC's own, which also says where a date that does not exist stands, or a number that is none."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            if not isinstance(node, ScalarNode):
                raise
            shown = node.value if len(node.value) <= 40 else f"{node.value[:40]}…"
            kind = str(node.tag).rpartition(":")[2]
            why = str(error).partition(";")[0]
            raise ConstructorError(None, None, f"{shown!r} is no {kind} ({why})", node.start_mark) from None


def load_yaml(text: bytes | str) -> Any:
    """The plain values of one YAML document; None for an empty one.

    Raises:
        ValueError: with one line that says where and what: no YAML, no UTF-8, a key that is given twice, or a value
            that cannot be.
    """
    try:
        return deepcopy(_parsed(text))
    except DuplicateKeyError as error:
        raise ValueError(f"{_place(error)}: this key is given twice; keep one") from None
    except MarkedYAMLError as error:
        raise ValueError(f"{_place(error)}: {error.problem or error.context}") from None
    except RecursionError:
        raise ValueError("lists and maps stand too deep in each other") from None
    except Exception as error:  # ruamel raises whatever odd tags, keys and directives make its own code raise
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


@lru_cache(maxsize=64)  # a dvc.lock takes a second, and the same texts are asked for again and again
def _parsed(text: bytes | str) -> Any:
    text = text.decode() if isinstance(text, bytes) else text
    if _VERSION.search(text):
        raise ValueError("leave the line %YAML out: all files are read as YAML 1.2, and DVC drops it where it writes")
    reader = YAML(typ="safe")
    reader.Constructor = _Constructor
    return reader.load(text)


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "somewhere" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
