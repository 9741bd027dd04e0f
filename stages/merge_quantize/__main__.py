"""merge_quantize: merge once, quantise once, and ask each artefact the very hold-out that judged the adapter."""

from pathlib import Path
from typing import Any

from stages import paths
from stages.chat import make_chat
from stages.completions import Schema
from stages.environment import measured
from stages.errors import run
from stages.files import files_under, read_json, write_json
from stages.gates import check_gates
from stages.generation import Weights, answer_rows, perplexity
from stages.merge_quantize.artefacts import merge, quantise
from stages.models import load_tokenizer
from stages.params import Params, load_params
from stages.records import read_records, read_rows, write_rows
from stages.scoring import RowScore, compare, score_row, summarise


def main() -> None:
    params = load_params("generation", "merge_quantize", "model", "scoring", "task")
    schema = Schema(Path(params.task.schema_file))
    adapter = [score_row(row, schema) for row in read_rows(paths.ADAPTER_GENERATIONS)]
    with measured("merge_quantize") as notes:
        merge(paths.BASE, paths.ADAPTER, paths.MERGED, params.model.dtype)
        quantise(paths.MERGED, paths.NF4, "nf4")
        quantise(paths.MERGED, paths.INT8, "int8")
        shipped = [Weights(path) for path in (paths.MERGED, paths.NF4, paths.INT8)]
        artefacts = {weights.folder.name: judge(weights, params, schema, adapter) for weights in shipped}
        notes["generation"] = {name: spent for weights in shipped for name, spent in weights.spent.items()}
    known = {"evaluate": read_json(paths.EVALUATE_METRICS), "quantize": {"artefacts": artefacts}}
    gates = check_gates(params.merge_quantize.gates, known)
    write_json(paths.QUANTIZE_METRICS, {"artefacts": artefacts, **gates})
    print(f"verdict: {gates['verdict']}")


def judge(weights: Weights, params: Params, schema: Schema, adapter: list[RowScore]) -> dict[str, Any]:
    """Load what ships from its files, answer the hold-out, and compare with the adapter row by row."""
    artefact, holdout = weights.folder, read_records(paths.HOLDOUT)
    chat = make_chat(load_tokenizer(artefact), params.task.instruction)
    rows = answer_rows(weights, chat, holdout, params.generation, artefact.name)
    surprise = perplexity(weights, chat, holdout)
    write_rows(paths.ARTEFACT_GENERATIONS / f"{artefact.name}.jsonl", rows)
    scores = [score_row(row, schema) for row in rows]
    return {
        "bytes": sum(file.stat().st_size for file in files_under(artefact)),
        "scores": summarise(rows, scores, surprise, params.scoring.confidence),
        "against_adapter": compare(adapter, scores),
    }


if __name__ == "__main__":
    run(main)
