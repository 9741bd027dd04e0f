"""merge_quantize: merge once, quantise once, and ask each artefact the very hold-out that judged the adapter."""

from typing import Any

from stages.core import paths
from stages.core.errors import run
from stages.core.files import files_under, write_json
from stages.core.run_notes import measured
from stages.model.answers import rows_with_likelihood
from stages.model.chat import task_chat
from stages.model.loading import Weights, load_tokenizer
from stages.params.loader import Params, load_params
from stages.records.contract import Tasks
from stages.records.record import read_records, read_rows, write_rows
from stages.scoring.metrics import as_json
from stages.scoring.rows import RowScore, score_row
from stages.scoring.summary import compare, summarise
from stages.ship.merge_quantize.artefacts import merge, quantise


def main() -> None:
    params = load_params("generation", "model", "quantize", "scoring", "task")
    tasks = Tasks(params.task)
    adapter = [score_row(row, tasks) for row in read_rows(paths.ADAPTER_GENERATIONS)]
    with measured("merge_quantize") as notes:
        merge(paths.BASE, paths.ADAPTER, paths.MERGED, params.model.dtype)
        quantise(paths.MERGED, paths.NF4, "nf4", params.quantize.nf4)
        quantise(paths.MERGED, paths.INT8, "int8")
        shipped = [Weights(path) for path in (paths.MERGED, paths.NF4, paths.INT8)]
        artefacts = {weights.folder.name: judge(weights, params, tasks, adapter) for weights in shipped}
        notes["generation"] = {name: spent for weights in shipped for name, spent in weights.spent.items()}
    write_json(paths.QUANTIZE_METRICS, as_json({"artefacts": artefacts}))


def judge(weights: Weights, params: Params, tasks: Tasks, adapter: list[RowScore]) -> dict[str, Any]:
    """Load what ships from its files, answer the hold-out, and compare with the adapter row by row."""
    artefact, holdout = weights.folder, read_records(paths.HOLDOUT)
    chat = task_chat(load_tokenizer(artefact), params.task)
    rows = rows_with_likelihood(weights, chat, holdout, params.generation, artefact.name)
    write_rows(paths.ARTEFACT_GENERATIONS / f"{artefact.name}.jsonl", rows)
    scores = [score_row(row, tasks) for row in rows]
    return {
        "bytes": sum(file.stat().st_size for file in files_under(artefact)),
        "scores": summarise(scores, params.scoring),
        "against_adapter": compare(adapter, scores, params.scoring),
    }


if __name__ == "__main__":
    run(main)
