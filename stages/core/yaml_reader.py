"""The one reader of YAML: version 1.2, by the library that DVC itself reads with.

`yes`, `no`, `on` and `1:30` are texts in it, `1e-3` and `010` are numbers (0.001 and 10).
"""

import re
from copy import deepcopy
from functools import lru_cache
from typing import Any

import yaml
from ruamel.yaml import YAML, ScalarNode
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.resolver import implicit_resolvers

_VERSION = re.compile("^%YAML", re.MULTILINE)
# What libyaml, which is of YAML 1.1, reads in another way: directives, and line ends and marks beyond ASCII.
_OTHERWISE = re.compile("^%|[^\n -\x7e\xa0-\u2027\u202a-\ufefe]", re.MULTILINE)
_TYPED = [(set(first), pattern) for versions, _, pattern, first in implicit_resolvers if (1, 2) in versions]


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
    """The plain values of one YAML document; None for an empty one. ValueError says in one line where and what."""
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


def load_written_yaml(text: bytes | str) -> Any:
    """As `load_yaml`, in a tenth of the time for what DVC itself wrote: libyaml composes, scalars are read as there."""
    text = text.decode() if isinstance(text, bytes) else text
    try:
        if _OTHERWISE.search(text):
            raise ValueError("not as DVC writes it")
        node = yaml.compose(text, Loader=yaml.CBaseLoader)  # the texts of the scalars, none of them resolved
        return None if node is None else _constructed(node)
    except (ValueError, TypeError, yaml.YAMLError):  # the one reader says what is wrong, or finds that nothing is
        return load_yaml(text)


def _constructed(node: Any) -> Any:
    kind = str(node.tag).rpartition(":")[2]
    if kind == "map":
        pairs = [(_constructed(key), _constructed(value)) for key, value in node.value]
        made = dict(pairs)
        if len(made) < len(pairs) or "<<" in made:
            raise ValueError("a key that is given twice, or a merge")
        return made
    if kind == "seq":
        return [_constructed(one) for one in node.value]
    if kind != "str" or node.style in ("|", ">"):
        raise ValueError("a tag, or a block of text, which DVC writes in quotes")
    return node.value if node.style else _scalar(node.value)


@lru_cache(maxsize=10_000)
def _scalar(text: str) -> Any:
    """A plain scalar: a text, unless a rule of YAML 1.2 sees more in it."""
    if text.isdecimal() and text.isascii():
        return int(text)
    typed = any(text[:1] in first and pattern.match(text) for first, pattern in _TYPED)
    return load_yaml(text) if typed else text


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "somewhere" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
