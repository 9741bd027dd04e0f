"""params.yaml: everything that can be wrong with it is said at once, with the key and what to do."""

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import pytest
from dvc.utils.serialize import dumps_yaml
from pydantic import BaseModel

from stages.core.errors import UserError
from stages.params.loader import Params, check_params, load_params, read_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def values() -> dict[str, Any]:
    return read_params(ROOT / "params.yaml")


def mistakes(values: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_params(values)
    head, *lines = str(caught.value).split("\n  ")
    assert head.startswith(f"params.yaml has {len(lines)} mistake")
    return lines


def test_the_file_of_the_project_is_sound(values: dict[str, Any]) -> None:
    assert check_params(values).clean.raw == "data/raw"


def test_all_mistakes_are_told_at_once(values: dict[str, Any]) -> None:
    values["train"]["lerning_rate"] = values["train"].pop("learning_rate")
    values["dedup"]["threshold"] = 900
    values["clean"]["phone_region"] = "Germany"
    del values["model"]["source"]
    del values["gates"]
    told = mistakes(values)
    assert len(told) == 5
    assert "model.source: missing; add it" in told
    assert "gates: missing; add it" in told
    assert "train.lerning_rate: unknown key; did you mean train.learning_rate?" in told
    assert "dedup.threshold: 900 is not allowed: input should be less than or equal to 100" in told
    assert any(line.startswith("clean.phone_region: 'Germany' is not allowed") for line in told)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["sed"], "sed: unknown key; did you mean seed?"),
        (["dedub"], "dedub: unknown key; did you mean dedup?"),
        (["clean", "fix_mojibak"], "clean.fix_mojibak: unknown key; did you mean clean.fix_mojibake?"),
        (
            ["gates", "exact_match", "minimun"],
            "gates.exact_match.minimun: unknown key; did you mean gates.exact_match.minimum?",
        ),
        (["clean", "qqqq"], "clean.qqqq: unknown key; remove it"),
    ],
)
def test_an_unknown_key_names_the_nearest(values: dict[str, Any], keys: list[str], sentence: str) -> None:
    section = values
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = 1
    assert sentence in mistakes(values)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("clean", "max_rejected_share", 1.5),
        ("clean", "max_line_bytes", 0),
        ("clean", "ignore_columns", "id"),
        ("clean", "strip_html", "maybe"),
        ("dedup", "completion", "same"),
        ("holdout", "share", 0),
        ("train", "learning_rate", "fast"),
        ("train", "learning_rate", float("nan")),
        ("train", "epochs", 0),
        ("train", "layers_to_transform", "29-15"),
        ("model", "source", "hub:org/model@main"),
        ("model", "source", "package:model"),
        ("model", "source", "ftp:somewhere"),
    ],
)
def test_a_value_out_of_its_range_is_refused(values: dict[str, Any], section: str, key: str, value: object) -> None:
    values[section][key] = value
    (told,) = mistakes(values)
    assert told.startswith(f"{section}.{key}: {value!r} is not allowed: ")


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001"])
def test_every_spelling_of_a_number_is_that_number(tmp_path: Path, values: dict[str, Any], written: str) -> None:
    values["train"]["learning_rate"] = "LEARNING_RATE"
    path = tmp_path / "params.yaml"
    path.write_text(dumps_yaml(values).replace("LEARNING_RATE", written))
    assert load_params("train", path=path).train.learning_rate == 0.001


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint", "https://user:sk-planted@judge.example/v1"),
        *(
            ("key_variable", key)
            for key in (
                *("sk-planted", "sk_live_planted0123", "hf_abcDEFghiJKL", "gsk_0123456789abcdef", "AIzaSyA0123planted"),
                *(
                    "a3f09c5d77e14b1c",
                    "AKIAIOSFODNN7EXAMPLE",
                    "JBSWY3DPEHPK3PXP",
                    "A" * 65,
                    "2",
                    "planted",
                    "",
                    "ÄPI_KEY",
                ),
                *("JUDGE_API_KEY=planted", "$JUDGE_API_KEY", "JUDGE_API_KEY\n", "JUDGE API KEY", "ÄPI_KEY"),
            )
        ),
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(values: dict[str, Any], name: str, value: str) -> None:
    values["judge"][name] = value
    (told,) = mistakes(values)
    assert told.startswith(f"judge.{name}: the value is not allowed: ")
    assert "planted" not in told
    assert len(value) < 5 or value not in told.replace("JUDGE_API_KEY", "")


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "HF_TOKEN", "KEY_2", "K8S_TOKEN", "_KEY", "AZURE_KEY1", "OAUTH2_TOKEN"]
)
def test_the_name_of_a_variable_is_taken(values: dict[str, Any], name: str) -> None:
    values["judge"]["key_variable"] = name
    assert check_params(values).judge.key_variable == name


def test_a_gate_has_one_threshold(values: dict[str, Any]) -> None:
    gate = values["gates"]["exact_match"]
    gate["maximum"] = 1.0
    (told,) = mistakes(values)
    assert "gates.exact_match" in told
    assert "either a minimum or a maximum" in told


def test_only_named_sections_can_be_read() -> None:
    params = load_params("dedup", path=ROOT / "params.yaml")
    assert params.dedup.threshold
    with pytest.raises(AttributeError):
        _ = params.train


def test_single_keys_can_be_read() -> None:
    params = load_params("task.instruction", "judge.price.input", "seed", path=ROOT / "params.yaml")
    assert params.task.instruction == check_params(read_params(ROOT / "params.yaml")).task.instruction
    assert (params.judge.price.input, params.seed) == (0.0, 17)
    for read in ("task.labels", "judge.enabled", "judge.price.output", "train"):
        with pytest.raises(AttributeError):
            attrgetter(read)(params)


def test_a_section_beside_one_of_its_keys_is_whole() -> None:
    assert load_params("task.instruction", "task", path=ROOT / "params.yaml").task.kind == "json"


def test_only_the_user_can_say_a_few_keys() -> None:
    """All else has a default, and the defaults are sound: they pass the checks that values of the file pass."""
    assert mistakes({"model": {}, "task": {}}) == [
        "model.source: missing; add it",
        "model.licence: missing; add it",
        "task.kind: missing; add it",
        "task.instruction: missing; add it",
        "gates: missing; add it",
    ]
    said = {
        "model": {"source": "path:models/mine", "licence": "MIT"},
        "task": {"kind": "text", "instruction": "Answer."},
        "gates": {},
    }
    params = check_params(said)
    assert check_params(params.model_dump()) == params


def test_every_key_says_what_it_is() -> None:
    def keys(section: type[BaseModel], above: str) -> Iterator[tuple[str, str | None]]:
        for name, field in section.model_fields.items():
            inner = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type)]
            below = [a for a in inner if issubclass(a, BaseModel)]
            yield f"{above}{name}", field.description or (below[0].__doc__ if below else None)
            for model in below:
                yield from keys(model, f"{above}{name}.")

    assert [key for key, meaning in keys(Params, "") if not meaning] == []


def test_parameters_cannot_be_changed_after_loading() -> None:
    params = load_params("dedup", path=ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.dedup.threshold = 50  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "is missing; run from the repository's root"),
        (b"seed: [1\n", "not YAML"),
        (b"seed: 1\n\tmodel: 2\n", "not YAML"),
        (b"seed: \xff\n", "not YAML"),
        (b"- seed\n", "found list"),
        (b"", "found NoneType"),
    ],
)
def test_a_file_that_is_no_mapping_is_a_sentence(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=what) as caught:
        read_params(path)
    assert str(path) in str(caught.value)
