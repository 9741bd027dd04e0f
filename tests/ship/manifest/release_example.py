"""A release of two formats as the stage sees it, in which each text that is not ours is the one given."""

from typing import Any

from scored import ROOT

from stages.params.loader import Params, check_params, read_params
from stages.ship.manifest.__main__ import FORMAT, judged

PARAMS = check_params(read_params(ROOT / "params.yaml"))
_SHARE = {"value": 0.5, "low": 0.1, "high": 0.9, "count": 2, "n": 4}


def make_params(text: str, licence: str = "MIT") -> Params:
    told = {"instruction": text, "instructions": {text: text, f"{text}.": "Name the tone."}}
    model = PARAMS.model.model_copy(update={"source": f"path:{text}", "licence": licence})
    return PARAMS.model_copy(update={"model": model, "task": PARAMS.task.model_copy(update=told)})


def make_scores() -> dict[str, Any]:
    perplexity = {"value": 1.5, "low": 1.2, "high": 1.9}
    return {
        "rows": 4,
        "exact_match": _SHARE,
        "valid": _SHARE,
        "perplexity": perplexity,
        "output_tokens": 9.5,
        "labels": {},
    }


def make_artefacts() -> dict[str, Any]:
    int8 = {"bytes": 7_000_000, "scores": make_scores(), "engine": "transformers", "decoding": {"enforce": "none"}}
    return {"int8": int8, "gguf": {**int8, "engine": "llama.cpp", "decoding": {"enforce": "schema"}}}


def make_gates(text: str) -> dict[str, Any]:
    states = [("PASS", True), ("PASS", False), ("MARGINAL", True), ("FAIL", False)]
    gates = {f"{text}{n}": {"state": state, "required": required} for n, (state, required) in enumerate(states)}
    return {"verdict": "MARGINAL", "reason": text, "gates": gates}


def make_metrics(text: str) -> dict[str, Any]:
    return {
        "baseline": {"base": make_scores()},
        "evaluate": {"adapter": make_scores()},
        "quantize": {"artefacts": make_artefacts()},
        "train": {"rows": {"train": 99}},
        "gates": make_gates(text),
    }


def make_manifest(text: str, licence: str = "MIT") -> dict[str, Any]:
    """As `build_manifest` makes it, without files to hash."""
    params = make_params(text, licence)
    row = {"sha256": "1" * 64, "md5": "2" * 32, "bytes": 3}
    files = {"int8/model.safetensors": row, "gguf/Q8_0.gguf": row, "gguf/Q4_0.gguf": row}
    return {
        "format": FORMAT,
        "files": files,
        "formats": {name: judged(name, one, params, files) for name, one in make_artefacts().items()},
        "adapter": {"models/adapter/adapter_model.safetensors": row},
        "base": {"source": params.model.source, "sha256": "", "licence": licence, "files": {"models/base/a": row}},
        "data": {f"data/raw/{text}": row, "data/split/holdout.jsonl": row},
        "code": {"stages/core/files.py": "3" * 64},
        "params": params.model_dump(mode="json"),
        "metrics": {"metrics/gates.json": row},
        "libraries": {"torch": "2.13.0"},
    }
