"""params.yaml as nobody should write it: every mutation is read or ends in sentences, never in a traceback."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import UserError
from stages.core.machine import Machine
from stages.params.loader import Params, check_params, read_params
from stages.text.json_schema import Tasks

ROOT = Path(__file__).parents[2]
ROUNDS = 400
_SELF: list[Any] = []
_SELF.append(_SELF)
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 10**9, 10**30, -(10**30), 1 << 40_000, 0.0, -0.0, 1e308, 5e-324, 0.9999999999999999),
    *(float("inf"), float("-inf"), float("nan"), "", " ", "yes", "010", "1:30", "16", "1e3", "true", "null", "???"),
    *(
        "${seed}",
        "${",
        "\0",
        "a\0b",
        "\x85",
        "\u2028",
        "\ud800",
        "\x1b[31m",
        "x" * 5000,
        "/" * 5000,
        "../" * 2000,
        "é" * 300,
    ),
    *(
        "/",
        ".",
        "..",
        "-x",
        "a..b",
        "refs/heads/",
        "@{",
        "a b",
        "v1.lock",
        "(",
        "(a{1000}){1000}",
        "[",
        "data",
        "stages",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [""],
        ["\0"],
        {"": ""},
        {None: 1},
        {1: 2},
        {True: 3},
        {"a": {"b": {"c": []}}},
        _SELF,
        b"\xff",
    ),
    *(
        "http://[",
        "https://user:pw@host/v1",
        "package:==",
        "hub:@" + "0" * 40,
        "path:",
        "#/" + "a/" * 999,
        ["a"] * 2000,
    ),
]


def places(node: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if keys:
        yield keys
    if node is _SELF:
        return
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield from places(value, (*keys, key))


def mutated(draw: random.Random, whole: Any) -> Any:
    """A copy with one to five values or keys taken away, renamed, or replaced by hostile ones."""
    values = copy.deepcopy(whole)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        if not (there := list(places(values))):
            break
        *above, last = draw.choice(there)
        node = values
        for key in above:
            node = node[key]
        match draw.randrange(4):
            case 0 if isinstance(node, dict):
                names: list[Any] = [one for one in HOSTILE if isinstance(one, (str, int, float, type(None)))]
                node[draw.choice(names)] = node.pop(last)
            case 1:
                del node[last]
            case _:
                one = draw.choice(HOSTILE)
                node[last] = one if one is _SELF else copy.deepcopy(one)
    return values


def sentences(error: UserError) -> None:
    """What a user is told: lines that can be read, none of them endless."""
    assert error.exit_code == 2
    for line in str(error).split("\n"):
        assert line.strip()
        assert len(line) < 1000
        line.encode()  # no lone surrogate reaches a terminal


def check(values: Any) -> None:
    try:
        params = check_params(values)
        json.dumps(params.model_dump())  # as the manifest and `tunetrail params` write it
        Tasks(params.task)
    except UserError as error:
        sentences(error)


@pytest.mark.parametrize("seed", range(4))
def test_no_mutation_of_a_value_or_key_ends_in_a_traceback(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    draw = random.Random(seed)
    whole = check_params(read_params(ROOT / "params.yaml")).model_dump()
    for _ in range(ROUNDS // 4):
        check(mutated(draw, whole))


def test_every_key_takes_hostile_values_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    draw = random.Random(11)
    whole = check_params(read_params(ROOT / "params.yaml")).model_dump()
    for keys in list(places(whole)):
        node = whole
        for key in keys[:-1]:
            node = node[key]
        kept = node[keys[-1]]
        for hostile in draw.sample(HOSTILE, 4):
            node[keys[-1]] = hostile
            check(whole)
        node[keys[-1]] = kept


TEXT = """seed: 17
model: {source: "path:models/mine", licence: MIT}
task:
  kind: classification
  instruction: >
    Answer with one word.
  labels: [refund, "yes", 'no']
train: &t
  rank: 16
  learning_rate: 1.0e-3
gates: {}
"""


def test_no_mutation_of_the_text_ends_in_a_traceback(tmp_path: Path) -> None:
    draw = random.Random(7)
    path = tmp_path / "params.yaml"
    pieces = [
        "[" * 120,
        "{",
        "}",
        "&a ",
        "*a",
        "!!int ",
        "!!python/name:os ",
        "? ",
        ": ",
        "- ",
        "\t",
        "\n",
        "#",
        "|",
        ">",
        "%YAML 1.1\n",
    ]
    pieces += [
        "9" * 5000,
        "2026-02-30",
        "0x" + "f" * 9000,
        "---\n",
        "\0",
        "\ufeff",
        "<<: *t",
        "'",
        '"',
        "\x85",
        "!!binary =",
        "1" * 400 + ".0",
    ]
    for _ in range(ROUNDS // 2):
        text = TEXT
        for _ in range(draw.choice((1, 1, 2, 4))):
            at = draw.randrange(len(text) + 1)
            text = text[:at] + draw.choice(pieces) + text[at + draw.choice((0, 0, 1, 9)) :]
        path.write_bytes(text.encode("utf-8") if draw.random() < 0.97 else text.encode("utf-16"))
        try:
            check(read_params(path))
        except UserError as error:
            sentences(error)


def numbers(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield name, schema
        for key, value in schema.items():
            yield from numbers(value, f"{name}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from numbers(value, f"{name}/{index}")


@pytest.mark.parametrize("model", [Params, Machine])
def test_every_number_has_both_bounds(model: type[Params] | type[Machine]) -> None:
    found = dict(numbers(model.model_json_schema()))
    open_ended = [
        name
        for name, one in found.items()
        if not {"minimum", "exclusiveMinimum"} & one.keys() or not {"maximum", "exclusiveMaximum"} & one.keys()
    ]
    assert len(found) > (40 if model is Params else 2)
    assert open_ended == []


@pytest.mark.parametrize(
    ("key", "written", "sentence"),
    [
        (
            "train.rank",
            "1000000000",
            "train.rank: 1000000000 is not allowed: input should be less than or equal to 16384",
        ),
        (
            "train.rank",
            '"16"',
            "train.rank: '16' is not allowed: input should be a valid integer; write it without quotes",
        ),
        ("train.epochs", ".inf", "train.epochs: inf is not allowed: input should be "),
        ("gates.exact_match.minimum", ".nan", "gates.exact_match.minimum: nan is not allowed: input should be "),
        (
            "scoring.confidence",
            "0.9999999999999999",
            "scoring.confidence: 0.9999999999999999 is not allowed: input should be less",
        ),
        ("scoring.resamples", f"1{'0' * 30}", "is not allowed: input should be less than or equal to 100000"),
        (
            "clean.strip_html",
            "yes",
            "clean.strip_html: 'yes' is not allowed: input should be a valid boolean; write true or false",
        ),
        (
            "task.labels",
            "[2026-01-02]",
            "task.labels.0: datetime.date(2026, 1, 2) is not allowed: input should be a valid string; put it into",
        ),
        ("task.instruction", "Cost ${seed}", "task.instruction: 'Cost ${seed}' is not allowed: DVC does not keep ${"),
        (
            "task.instruction",
            '"a\\Lb"',
            "task.instruction: 'a\\u2028b' is not allowed: DVC does not keep ${, ???, NUL and line separators",
        ),
        ("task.schema_file", "data", "task.schema_file: 'data' is not allowed: is a folder; name a file"),
        ("probes.general_file", '"a\\0b"', "probes.general_file: 'a\\x00b' is not allowed: "),
        ("holdout.lock", "x" * 300, "is not allowed: is no path: a name in it has at most 255 bytes, and no NUL"),
        (
            "evaluate.previous",
            "v1..v2",
            "evaluate.previous: 'v1..v2' is not allowed: is no name of a tag, branch or commit",
        ),
    ],
)
def test_a_value_that_cannot_be_is_told_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, key: str, written: str, sentence: str
) -> None:
    from stages.core.yaml_reader import load_yaml

    monkeypatch.chdir(ROOT)
    values = read_params(ROOT / "params.yaml")
    node = values
    *above, last = key.split(".")
    for part in above:
        node = node.setdefault(part, {})
    node[last] = load_yaml(f"it: {written}")["it"]
    with pytest.raises(UserError) as caught:
        check_params(values)
    assert sentence in str(caught.value)
    assert key in str(caught.value)
    assert json.dumps(str(caught.value))
