"""A folder as `train` leaves it, with preferences beside it: what the stage prefer begins with."""

import json
from pathlib import Path
from typing import Any

import torch
from project import set_params
from stage_process import run_stage
from tiny_model import tiny_config, tiny_tokenizer
from training_project import lay_out, training_records
from transformers import LlamaForCausalLM

from stages.core import paths
from stages.core.files import read_json
from stages.records.record import write_records, write_rows
from stages.text.normal_form import prompt_hash

SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "batch_size": 4,
    "epochs": 1,
    "evaluate_every": 4,
    "max_new_tokens": 6,
    "generations": 2,
    "validation_share": 0.2,
    "validation_rows": 4,
}


def preferences(count: int, first: int = 5000) -> list[dict[str, Any]]:
    """Pairs whose better answer is the record's own, and whose worse one has another intent."""
    rows = []
    for record in training_records(count, first):
        worse = json.dumps({"intent": "other", "order": None})
        rows.append({"prompt": record.prompt, "chosen": record.completion, "rejected": worse, "source": "people"})
    return rows


def lay_out_sft(folder: Path, **prefer: Any) -> Path:
    """The tiny model tuned for a few steps, eight locked rows, twenty pairs and four thumbs."""
    project = lay_out(folder, epochs=0.5)
    held = training_records(8, first=2000)
    write_records(project / paths.HOLDOUT, held)
    write_rows(project / paths.LOCKED, [{"id": one.id, "prompt_sha256": prompt_hash(one.prompt)} for one in held])
    thumbs = [
        {"prompt": row["prompt"], "completion": row["rejected"], "label": False, "source": "log"}
        for row in preferences(4, first=7000)
    ]
    write_rows(project / paths.PREFERENCES / "pairs.jsonl", preferences(20))
    write_rows(project / paths.PREFERENCES / "thumbs.jsonl", thumbs)
    (project / "data/schema.json").write_text(json.dumps({"type": "object", "required": ["intent", "order"]}))
    set_params(project, {"prefer": SETTINGS | prefer})
    code, text = run_stage(project, "train")
    assert code == 0, text
    return project


def prefer(project: Path, **settings: Any) -> dict[str, Any]:
    """Run the stage; what it wrote to metrics/prefer.json."""
    set_params(project, {"prefer": settings})
    code, text = run_stage(project, "prefer")
    assert code == 0, text
    metrics: dict[str, Any] = read_json(project / paths.PREFER_METRICS)
    return metrics | {"printed": text}


def save_teacher_of_one_word(folder: Path) -> Path:
    """A model that answers "a" to everything and stops; it has a token more than the tiny model."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    config = tiny_config(tokenizer)
    config.tie_word_embeddings = False
    torch.manual_seed(3)
    model = LlamaForCausalLM(config)
    line, word = tokenizer("\n", add_special_tokens=False)["input_ids"][0], tokenizer("a")["input_ids"][-1]
    with torch.no_grad():
        for layer in model.model.layers:  # what was said last decides what comes next
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        known = torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=-1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[word], model.lm_head.weight[tokenizer.eos_token_id] = known[line], known[word]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
