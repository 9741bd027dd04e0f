"""merge_quantize: merge once, quantise once, and ask each artefact the very hold-out that judged the adapter."""

import io
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal

import gguf
import torch
from safetensors import safe_open

from stages.core import paths
from stages.core.errors import Refusal, UserError, run
from stages.core.files import atomic, files_under, remove, tree_digest, write_json, write_text
from stages.core.run_notes import measured
from stages.engines.gguf_export import write_gguf, write_gguf_lora
from stages.engines.in_process import cost, in_process_rows, peak_memory_mib
from stages.model.answers import rows_with_likelihood
from stages.model.chat import task_chat
from stages.model.labels import labels_in, labels_of
from stages.model.likelihoods import divergence
from stages.model.loading import (
    Weights,
    compute_dtype,
    empty_model,
    int8_config,
    load_model,
    load_tokenizer,
    load_tuned,
    need_compressed_tensors,
    nf4_config,
    refuse_not_finite,
)
from stages.params.loader import Params, load_params
from stages.params.model import FORMATS, Nf4
from stages.records.record import rank, read_records, read_rows, write_rows
from stages.scoring.metrics import as_json
from stages.scoring.own_metric import ScoreRows, scorer
from stages.scoring.summary import compare, summarise
from stages.ship.merge_quantize.calibrated import calibrate_nf4, gptq_rounded, linear_layers
from stages.ship.merge_quantize.served_answers import contracts, served_rows

_BASE_OF_LORA = "base_model.json"
_TRIED = Path(".tunetrail/merged")  # merges of which one ships
_CALIBRATED_ON = {"nf4": 64, "compressed_tensors": 128}  # rows; the method's paper has 128, of 2,048 tokens
_COMPARED = 64  # rows of the hold-out on which the logits of adapter and merged model are held together


def main() -> None:
    params = load_params("engine", "generation", "model", "quantize", "scoring", "seed", "task", "train")
    score_rows = scorer(params.task)
    with measured("merge_quantize") as notes:
        merging = merge_best(params, score_rows)
        for name in FORMATS[1:]:
            if name in params.quantize.formats:
                write_format(name, params)
            else:  # DVC wants an output, and none that is empty
                remove(paths.RELEASE / name)
                write_text(paths.RELEASE / name / "absent.txt", f"{name} is not among quantize.formats.\n")
        spent: dict[str, Any] = {}
        before = peak_memory_mib("self")  # `cost` starts the count of this process again
        artefacts = {name: judge(paths.RELEASE / name, params, score_rows, spent) for name in params.quantize.formats}
        artefacts["merged"] |= {"merge": merging, "divergence": _divergence(params, merging["onto"])}
        here = [one["peak_memory_mib"] for one in spent.values() if one["engine"] == "transformers"]
        notes["peak_memory_mib"] = max(filter(None, [before, *here, peak_memory_mib("self")]), default=None)
        notes |= {"generation": spent, "precision": str(compute_dtype())}
        for name, one in spent.items():
            took = f"{one['seconds_to_load']} s to load, {one['tokens_per_second']} tokens a second"
            print(f"{name} by {one['engine']}: {took}, at most {one['peak_memory_mib'] or '?'} MiB")
    write_json(paths.QUANTIZE_METRICS, as_json({"artefacts": artefacts}))


def write_format(name: str, params: Params) -> None:
    """Make the artefact of this name out of the merged model."""
    target = paths.RELEASE / name
    if name == "gguf":
        stop_id = task_chat(load_tokenizer(paths.MERGED), params.task).stop_id
        remove(target)
        write_gguf(paths.MERGED, target / f"model-{params.quantize.gguf.type}.gguf", params.quantize.gguf.type, stop_id)
    elif name == "lora":
        release_lora(params.model.source, target)
    elif name == "compressed_tensors":
        compress(paths.MERGED, target, params.quantize.compressed_tensors.scheme, calibration_rows(params, name))
    elif name == "nf4":
        nf4 = params.quantize.nf4
        quantise(paths.MERGED, target, "nf4", nf4, calibration_rows(params, name) if nf4.calibrated else ())
    else:
        quantise(paths.MERGED, target, "int8")


def merge_best(params: Params, score_rows: ScoreRows) -> dict[str, Any]:
    """Write the merged model; of QLoRA's adapter the better of two: merged onto the base, or onto what it trained on.

    That is the base rounded to 4 bit and back. The validation rows decide, never the hold-out: more exact matches, then
    the likelier references; the base where both are the same. Returns {"onto": base or dequantised}; for QLoRA also, by
    the same names, {"exact_match", "rows", "nats"}.
    """
    if params.train.method != "qlora":
        merge(paths.BASE, paths.ADAPTER, paths.MERGED, params.model.dtype)
        return {"onto": "base"}
    validation, chat = read_records(paths.VALIDATION), task_chat(load_tokenizer(paths.BASE), params.task)
    found: dict[str, Any] = {}
    for onto in ("base", "dequantised"):
        folder = _TRIED / onto
        merge(paths.BASE, paths.ADAPTER, folder, params.model.dtype, onto)
        rows = rows_with_likelihood(Weights(folder), chat, validation, params.generation, f"merged onto {onto}")
        exact = sum(score.exact_match for score in score_rows(rows))
        found[onto] = {"exact_match": exact, "rows": len(rows), "nats": round(sum(row["nats"] for row in rows), 6)}
    best = max(found, key=lambda onto: (found[onto]["exact_match"], -found[onto]["nats"]))
    with atomic(paths.MERGED) as partial:
        (_TRIED / best).rename(partial)
    remove(_TRIED)
    said = [f"onto {k}: {v['exact_match']} of {v['rows']} exact, {v['nats']:.2f} nats" for k, v in found.items()]
    print(f"QLoRA's adapter on the validation rows, merged {'; '.join(said)}. Ships: onto {best}.")
    return {"onto": best, **found}


def merge(base: Path, adapter: Path, target: Path, dtype: str, onto: str = "base") -> None:
    """Add the adapter to the base, as it is or `dequantised`, in float32 and round once to `dtype`.

    Raises Refusal when a weight is NaN or infinite, or the adapter changes nothing; nothing is written then.
    """
    model = load_tuned(base, adapter, dtype=torch.float32, device_map={"": "cpu"}, **_rounded(onto))
    factors = [weight for name, weight in model.named_parameters() if ".lora_B." in name or ".lora_E." in name]
    if factors and not any(weight.any() for weight in factors):
        raise Refusal("the adapter changes nothing: all its weights are zero, as before training")
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    # Rounded first: a weight that float32 holds can be infinite in float16.
    model = model.to(getattr(torch, dtype))
    refuse_not_finite(model.state_dict(), "the merged model")
    with atomic(target) as partial:
        model.save_pretrained(partial)
        copy_tokenizer(base, partial)


def _rounded(onto: str) -> dict[str, Any]:
    return {"quantization_config": nf4_config(torch.float32)} if onto == "dequantised" else {}


def copy_tokenizer(base: Path, target: Path) -> None:
    """The very files of tokenizer and chat template that training read."""
    for file in tokenizer_files(base):
        shutil.copyfile(file, target / file.name)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a model's folder that are not its weights or their configuration: how it is asked and stops."""
    others = ("config.json", "adapter_config.json", _BASE_OF_LORA)
    files = [file for file in files_under(folder) if not file.name.startswith("model") and file.name not in others]
    return [file for file in files if file.suffix not in (".safetensors", ".gguf")]


def release_lora(source: str, target: Path) -> None:
    """The adapter as training left it, in PEFT's layout and, where llama.cpp knows such a one, as GGUF.

    Beside it the tokenizer's files, and in base_model.json which model it is served on, as `source` names it.
    """
    if not (paths.ADAPTER / "adapter_config.json").is_file():
        raise UserError("quantize.formats: train.method full has no adapter; take lora out of the list, and its gate")
    with atomic(target) as partial:
        shutil.copytree(paths.ADAPTER, partial)
        copy_tokenizer(paths.BASE, partial)
        write_json(partial / _BASE_OF_LORA, {"source": source, "tree_sha256": tree_digest(paths.BASE)})
        if not labels_in(paths.ADAPTER):  # llama.cpp's adapters have no head
            write_gguf_lora(paths.BASE, paths.ADAPTER, partial / "adapter_model.gguf")


def calibration_rows(params: Params, form: str) -> list[list[int]]:
    """Token ids of a seeded draw of training rows, as training read them: prompt and completion; a head, the prompt."""
    chat, head = task_chat(load_tokenizer(paths.MERGED), params.task), bool(labels_in(paths.MERGED))
    records = sorted(read_records(paths.SPLIT_TRAIN), key=lambda record: rank(params.seed, "calibration", record.id))
    return [
        [*chat.prompt_ids(one), *([] if head else chat.completion_ids(one.completion))]
        for one in records[: _CALIBRATED_ON[form]]
    ]


def compress(merged: Path, target: Path, scheme: str, rows: Sequence[list[int]] = ()) -> None:
    """Round the merged model's linear layers, as compressed-tensors stores them; vLLM serves that.

    W8A8 rounds inputs, too, each token by its own scale; W4A16 has a scale for each group of weights. With the token
    ids of `rows`, 4-bit weights are rounded by GPTQ for such rows, else each to its nearest.
    """
    need_compressed_tensors()
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    model, plan = load_model(merged, dtype="auto"), preset_name_to_scheme(scheme, ["Linear"])
    kept = _output_layers(merged)
    linear = linear_layers(model, kept)
    if plan.weights.group_size:
        plan.weights.group_size = math.gcd(128, *(layer.in_features for layer in linear.values()))
    if rows and plan.weights.num_bits == 4:
        dtype = next(iter(linear.values())).weight.dtype
        rounded = gptq_rounded(load_model(merged), rows, kept, plan.weights.group_size, dtype)
    else:
        rounded = {}
    with redirect_stderr(io.StringIO()):  # progress bars without a switch
        apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": plan}, ignore=kept))
        for name, layer in linear.items():
            if name in rounded:
                layer.weight.data, layer.weight_scale.data = (one.to(layer.weight.device) for one in rounded[name])
                continue
            groups = layer.weight.detach().view(layer.out_features, -1, plan.weights.group_size or layer.in_features)
            layer.weight_scale.data, _ = calculate_qparams(*groups.aminmax(dim=-1), plan.weights)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        with atomic(target) as partial:
            model.save_pretrained(partial)
            compressor.update_config(str(partial))
            copy_tokenizer(merged, partial)


def quantise(
    merged: Path,
    target: Path,
    form: Literal["nf4", "int8"],
    nf4: Nf4 | None = None,
    rows: Sequence[list[int]] = (),
) -> None:
    """Quantise the merged model once with bitsandbytes; what is not quantised keeps its 16 bit.

    `nf4` says which layers that is, beside the output layer; config.json repeats it for whoever loads the file. With
    the token ids of `rows`, NF4's weights are rounded by GPTQ for such rows, else each to its nearest.
    """
    if form == "nf4":
        nf4 = nf4 or Nf4()
        kept = [*nf4.keep_in_16_bit, *_output_layers(merged)]
        # What config.json tells a server; load_model computes in the type of its machine.
        config = nf4_config(torch.bfloat16, kept, nf4.double_quantisation)
    else:
        config = int8_config(_output_layers(merged) if labels_in(merged) else None)
    model = load_model(merged, quantization_config=config, dtype="auto")
    if rows:
        calibrate_nf4(model, load_model(merged), rows)
    with atomic(target) as partial:
        model.save_pretrained(partial)
        copy_tokenizer(merged, partial)


def _output_layers(folder: Path) -> list[str]:
    """The names under which the model has its output embedding, or its head; no weights are loaded for that."""
    model = empty_model(folder)
    head = model.score if labels_of(model) else model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def _divergence(params: Params, onto: str) -> float:
    """How far the merged file's logits are from those of base and adapter; exact match can stay when they do not."""
    chat, records = task_chat(load_tokenizer(paths.MERGED), params.task), read_records(paths.HOLDOUT)
    merged = load_model(paths.MERGED)
    tuned = load_tuned(paths.BASE, paths.ADAPTER, dtype=compute_dtype(), **_rounded(onto))
    return divergence(tuned, merged, chat, records[:_COMPARED])


def judge(artefact: Path, params: Params, score_rows: ScoreRows, spent: dict[str, Any]) -> dict[str, Any]:
    """Ask the engine that serves what ships the hold-out, from its files, and compare with the adapter row by row.

    `spent` gets what that took, for metrics/env/.

    Returns:
        {"bytes", "types" (how many tensors have which), "engine", "decoding" ({"enforce": what answers were held to}),
        "scores", "against_adapter", "agreement" ({"same", "rows"}: answers of the very text that the adapter gave),
        "stopped" (share of answers that the stop token ended)}; of answers that were held to a contract besides
        "free": the last five of the same artefact without it.

    Raises:
        Refusal: when a file of tokenizer or template is not the one that training read.
    """
    name, engine = artefact.name, engine_of(artefact.name, params)
    refuse_other_tokenizer(artefact)
    adapter = list(read_rows(paths.ADAPTER_GENERATIONS))
    scored = score_rows(adapter)
    before = {row["id"]: row["output"] for row in adapter}
    holdout, chat = read_records(paths.HOLDOUT), task_chat(load_tokenizer(paths.BASE), params.task)

    def found(label: str, enforce: str) -> dict[str, Any]:
        if engine == "transformers":
            held = contracts(holdout, params, enforce)
            weights = Weights(paths.BASE, artefact) if name == "lora" else Weights(artefact)
            spent[label] = cost(weights, chat, holdout, params.generation, held)
            rows = in_process_rows(weights, chat, holdout, params.generation, held, label)
        else:
            rows, spent[label] = served_rows(artefact, engine, chat, holdout, params, enforce)
        rows = [{**row, "agrees": row["output"] == before[row["id"]]} for row in rows]
        write_rows(paths.ARTEFACT_GENERATIONS / f"{label}.jsonl", rows)
        scores = score_rows(rows)
        return {
            "decoding": {"enforce": enforce},
            "scores": summarise(scores, params.scoring),
            "against_adapter": compare(scored, scores, params.scoring),
            "agreement": {"same": sum(row["agrees"] for row in rows), "rows": len(rows)},
            "stopped": sum(row["stopped"] for row in rows) / len(rows),
        }

    facts = {"bytes": sum(file.stat().st_size for file in files_under(artefact)), "types": tensor_types(artefact)}
    enforce = params.generation.enforce
    free = {"free": found(f"{name}_free", "none")} if enforce != "none" else {}
    return {**facts, "engine": engine, **found(name, enforce), **free}


def engine_of(name: str, params: Params) -> str:
    """The engine that serves the format of this name."""
    named = {str(key): str(engine) for key, engine in params.quantize.engines.items()}
    return named.get(name, "llama.cpp" if name == "gguf" else "transformers")


def refuse_other_tokenizer(artefact: Path) -> None:
    """Raises Refusal where a tokenizer's or template's file is not byte for byte that of the base model.

    A GGUF file has them inside: there, the ids of every prompt are compared.
    """
    if any(artefact.glob("model*.gguf")):
        return
    theirs, ours = ({file.name: file.read_bytes() for file in tokenizer_files(one)} for one in (artefact, paths.BASE))
    if wrong := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
        raise Refusal(f"{artefact / wrong[0]} is not the file that training read; the model would be asked otherwise")


def tensor_types(artefact: Path) -> dict[str, int]:
    """How many tensors of the artefact's files have which type; a quantised matrix of bitsandbytes has several."""
    types: Counter[str] = Counter()
    for file in files_under(artefact):
        if file.suffix == ".gguf":
            types.update(tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors)
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                types.update(opened.get_slice(key).get_dtype() for key in opened.keys())  # noqa: SIM118 -- no mapping
    return dict(sorted(types.items()))


if __name__ == "__main__":
    run(main)
