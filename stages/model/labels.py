"""A model with a classification head: which labels it has, and how likely it holds each of them after a prompt.

transformers' sequence classification: a linear layer, `score`, on the last hidden state of the prompt's last token.
Its config.json names the labels (`id2label`): each is the text of a completion, which is the model's answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core.errors import Refusal, UserError
from stages.core.files import read_json
from stages.params.task import Task

_KIND = "ForSequenceClassification"
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 65536}


def is_label_config(config: Any) -> bool:
    """Whether a configuration, of transformers or as config.json has it, is that of a model with such a head."""
    names = config.get("architectures") if isinstance(config, dict) else getattr(config, "architectures", None)
    return isinstance(names, list) and bool(names) and str(names[0]).endswith(_KIND)


def labels_in(folder: Path) -> list[str]:
    """The labels of the model, or adapter, in a folder, in the order of the head's rows; none of another model."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not is_label_config(config):
        return []
    named = config.get("id2label")
    named = named if isinstance(named, dict) else {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' default
    return [str(named.get(str(index))) for index in range(len(named))]


def labels_of(causal: Any) -> list[str]:
    """The labels of a loaded model; none of a causal one."""
    if not type(causal).__name__.endswith(_KIND):
        return []
    return [causal.config.id2label[index] for index in range(causal.config.num_labels)]


def label_config(base: Path, labels: Sequence[str], pad: int) -> Any:
    """The configuration of the base model with a head of these labels.

    `pad` must be the last token of no prompt: transformers takes the last token that is not `pad` for the prompt's end.
    Raises UserError when transformers has no such model of the base's kind, or its head is not called `score`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    kind = config.model_type
    try:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in config.id2label.items()}
        config.problem_type = "single_label_classification"
        config.get_text_config().pad_token_id = pad
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        model = None
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise UserError(
            f"train.head: transformers has no classification head for models of the kind {kind}; write completion"
        )
    config.architectures = [type(model).__name__]
    return config


def refuse_other_labels(labels: Sequence[str], task: Task) -> None:
    """Raises UserError when a model's head has a label that the task does not name."""
    if unknown := sorted({*labels} - {*task.labels}):
        raise UserError(f"the model was trained with the label {unknown[0]!r}, which task.labels does not name")


def label_likelihoods(causal: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """(prompts, labels), float64: the log-softmax of the head after each prompt.

    Padding stands on the right, where no token that counts sees it, and the state is taken at each prompt's own last
    token: neither padding nor what stands beside a prompt in a batch changes its answer beyond rounding.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    found = torch.empty(len(prompts), causal.config.num_labels, dtype=torch.float64)
    head, start = causal.score, 0
    while start < len(order):
        width = len(prompts[order[start]])
        batch = order[start : start + max(1, _TOKENS_AT_ONCE[causal.device.type] // width)]
        rows = [[*prompts[index], *[0] * (width - len(prompts[index]))] for index in batch]
        with torch.inference_mode():
            states = causal.base_model(input_ids=torch.tensor(rows, device=causal.device), use_cache=False)
            ends = torch.tensor([len(prompts[index]) - 1 for index in batch], device=causal.device)
            last = states.last_hidden_state[torch.arange(len(batch), device=causal.device), ends]
            logits = head(last.to(head.weight.dtype))  # in training the head is in float32
            found[batch] = logits.double().log_softmax(-1).cpu()
        start += len(batch)
    if not found.isfinite().all():
        raise Refusal("the model's logits are no numbers; it must not be used")
    return found
