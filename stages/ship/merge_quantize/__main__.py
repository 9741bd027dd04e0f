"""merge_quantize: merge once, quantise once, and ask each artefact the very hold-out that judged the adapter."""

from pathlib import Path
from typing import Any, Literal

import torch

from stages.core import paths
from stages.core.errors import run
from stages.core.files import atomic, files_under, write_json
from stages.core.run_notes import measured
from stages.model.answers import divergence, rows_with_likelihood
from stages.model.chat import task_chat
from stages.model.loading import (
    Weights,
    empty_model,
    int8_config,
    load_model,
    load_tokenizer,
    load_tuned,
    nf4_config,
    refuse_not_finite,
)
from stages.params.loader import Params, load_params
from stages.params.model import Nf4
from stages.records.contract import Tasks
from stages.records.record import read_records, read_rows, write_rows
from stages.scoring.metrics import as_json
from stages.scoring.rows import RowScore, score_row
from stages.scoring.summary import compare, summarise

_COMPARED = 64  # rows of the hold-out on which the logits of adapter and merged model are held together


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
        artefacts["merged"]["divergence"] = _divergence(shipped[0], params)
        notes["generation"] = {name: spent for weights in shipped for name, spent in weights.spent.items()}
    write_json(paths.QUANTIZE_METRICS, as_json({"artefacts": artefacts}))


def merge(base: Path, adapter: Path, target: Path, dtype: str) -> None:
    """Add the adapter to the unquantised base in float32 and round once to `dtype`.

    Raises:
        Refusal: when a weight is NaN or infinite; nothing is written then.
    """
    model = load_tuned(base, adapter, dtype=torch.float32, device_map={"": "cpu"})
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    # Rounded first: a weight that float32 holds can be infinite in float16.
    model = model.to(getattr(torch, dtype))
    refuse_not_finite(model.state_dict(), "the merged model")
    with atomic(target) as partial:
        model.save_pretrained(partial)
        load_tokenizer(base).save_pretrained(partial)


def quantise(merged: Path, target: Path, form: Literal["nf4", "int8"], nf4: Nf4 | None = None) -> None:
    """Quantise the merged model once with bitsandbytes; what is not quantised keeps its 16 bit.

    `nf4` says which layers that is, beside the output layer; config.json repeats it for whoever loads the file.
    """
    if form == "nf4":
        nf4 = nf4 or Nf4()
        kept = [*nf4.keep_in_16_bit, *_output_layers(merged)]
        # The compute type is that of the machine that serves; 16 bit is right on a GPU, and slow but right elsewhere.
        config = nf4_config(torch.bfloat16, kept, nf4.double_quantisation)
    else:
        config = int8_config()
    model = load_model(merged, quantization_config=config, dtype="auto")
    with atomic(target) as partial:
        model.save_pretrained(partial)
        load_tokenizer(merged).save_pretrained(partial)


def _output_layers(folder: Path) -> list[str]:
    """The names under which the model has its output embedding; its weights are not loaded for that."""
    model = empty_model(folder)
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def _divergence(merged: Weights, params: Params) -> float:
    """How far the merged file's logits are from those of base and adapter; exact match can stay when they do not."""
    chat, records = task_chat(load_tokenizer(merged.folder), params.task), read_records(paths.HOLDOUT)
    return divergence(load_tuned(paths.BASE, paths.ADAPTER), merged.model, chat, records[:_COMPARED])


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
