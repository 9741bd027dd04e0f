"""why: from an answer back to the training rows that taught it, and what may be wrong with them.

Two ways find them: by what they ask (TF-IDF), and by the gradients of what was trained. A step along the gradient of a
training row changes the loss of an answer by their dot product, to first order: TracIn at the last checkpoint (Pruthi
et al. 2020, arXiv:2002.08484, section 3), here as the cosine, or rows of high loss would lead every list (Xia et al.
2024, arXiv:2402.04333, section 3). benchmarks/results/why.md says how well each finds planted wrong labels, and what
else was tried.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import atomic, read_json, remove, tree_digest
from stages.core.run_notes import library_versions, track
from stages.model.answers import answer
from stages.model.chat import Chat, task_chat
from stages.model.loading import Weights, causal_of, head_is_plain, load_tokenizer
from stages.params.loader import Params
from stages.records.prompt import asked
from stages.records.record import Record, make_record, read_records, record_row, require_new, write_new
from stages.scoring.rows import score_row
from stages.text.json_schema import Tasks
from stages.text.strict_json import completion_key

WIDTH = 8192  # numbers that are kept of a row's gradient
_BYTES = 1 << 30  # of all rows together: many rows have a coarser sketch each
_LAYERS = 4  # the last ones, whose gradients are taken
_FOLDER = Path(".tunetrail/influence")
Pair = tuple[list[int], list[int]]  # token ids of a prompt and of its completion
_ROW = re.compile("[0-9]{1,5}|[0-9a-f]{6,64}")  # a number of the hold-out, or an id's beginning as the report shows it
_NEIGHBOURS, _MOST = 5, 3  # of so many nearest rows so many say another thing: the row contradicts them
_SAME, _FAR = 0.95, 0.2  # cosines from which a row asks the same, and below which none asks anything like it
_ADD = "add: no training row asks anything like it"
_EXCERPT = 110


@dataclass(frozen=True)
class Taught:
    """A training row, how often it is trained on, and its token ids."""

    record: Record
    pair: Pair
    times: int


class NearestRows:
    """The rows that ask what is nearest, by TF-IDF of words and pairs of words; `texts` are what the rows ask."""

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # late: seconds of imports

        self._vectors = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True)
        self._known = self._vectors.fit_transform([*texts, "."])[:-1]  # a word at least, whatever the texts are

    def nearest(self, text: str, count: int) -> list[tuple[int, float]]:
        """Places and cosines of the `count` nearest rows, the nearest first, of equals the first; none at 0."""
        found = (self._known @ self._vectors.transform([text]).T).toarray()[:, 0]
        order = (-found).argsort(kind="stable")[:count].tolist()
        return [(place, float(found[place])) for place in order if found[place] > 0]


def why(name: str, params: Params, limit: int, is_prompt: bool = False, tag: str | None = None) -> dict[str, Any]:
    """What `tunetrail why` shows: the answer of the tuned model, and by both ways `limit` rows that taught it.

    Raises UserError when there is no such row, the prompt is empty or too long, or model or rows are not here.
    """
    for folder, stage in ((paths.BASE, "base"), (paths.ADAPTER, "prefer")):
        if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} is missing; `dvc pull {stage}` brings it, `dvc repro {stage}` makes it")
    if not name.strip() or any("\ud800" <= one <= "\udfff" for one in name):
        raise UserError("the prompt is empty, or no text; give what the model was asked, or a row of the hold-out")
    record = _find(name) if _ROW.fullmatch(name) and not is_prompt else None
    question = record or make_record(name.strip(), "", None, "prompt", "prompt", task=tag)
    weights, chat = Weights(paths.BASE, paths.ADAPTER), task_chat(load_tokenizer(paths.BASE), params.task)
    if weights.labels:
        raise UserError("`tunetrail why` asks a model that writes its answers, and train.head is label")
    prompt = chat.prompt_ids(question)
    config = read_json(paths.BASE / "config.json")
    positions = config.get("text_config", config).get("max_position_embeddings") or len(prompt)
    if len(prompt) > positions:
        raise UserError(f"the prompt has {len(prompt)} tokens; the model reads {positions} at most")
    rows = taught_rows(read_records(paths.TRAIN), chat, params.train.max_tokens)
    said = answer(weights, chat, [question], params.generation, "why")[0].output
    row = {"id": "", "label": None, "completion": question.completion, "output": said, "tokens": 0}
    right = score_row(row | {"task": question.task}, Tasks(params.task)).exact_match if record else None
    gradients = Influence(weights, [one.pair for one in rows])
    scores = gradients.scores((prompt, chat.completion_ids(said)))
    near = NearestRows([asked(one.record) for one in rows])
    first = scores.argsort(descending=True, stable=True)[:limit].tolist()
    closest = near.nearest(asked(question), limit)
    return {
        "row": record.id if record else None,
        "task": question.task,
        "prompt": question.prompt,
        "answer": said,
        "reference": question.completion if record else None,
        "right": right,
        "training_rows": len(rows),
        "by_gradients": [shown(rows, near, at, float(scores[at])) for at in first],
        "nearest": [shown(rows, near, at, score) for at, score in closest],
        "nothing_like_it": not closest or closest[0][1] < _FAR,
    }


def taught_rows(records: Sequence[Record], chat: Chat, max_tokens: int) -> list[Taught]:
    """Each row that the model was trained on once; one too long for training taught nothing.

    Raises UserError when no row is left.
    """
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], Taught] = {}
    for record in sorted(records, key=lambda one: one.source.startswith("augment:")):  # before its copies
        prompt, completion, _ = chat.encoded(record)
        if prompt and len(prompt) + len(completion) <= max_tokens:
            key = tuple(prompt), tuple(completion)
            before = found.get(key)
            found[key] = replace(before, times=before.times + 1) if before else Taught(record, (prompt, completion), 1)
    if not found:
        raise UserError(f"{paths.TRAIN} has no row that the model was trained on")
    return list(found.values())


def _find(name: str) -> Record:
    rows = read_records(paths.HOLDOUT)
    if len(name) < 6:
        if not 1 <= int(name) <= len(rows):
            raise UserError(f"{paths.HOLDOUT} has rows 1 to {len(rows)}, no row {name}; --prompt asks a number")
        return rows[int(name) - 1]
    found = [row for row in rows if row.id.startswith(name)]
    if len(found) != 1:
        said = "no row" if not found else f"{len(found)} rows"
        raise UserError(f"{paths.HOLDOUT} has {said} whose id begins with {name}; --prompt takes it for a prompt")
    return found[0]


def shown(rows: Sequence[Taught], near: NearestRows, at: int, score: float) -> dict[str, Any]:
    """A row as the training file has it, with its score and what its neighbours say against it; None if nothing."""
    record, suggests = rows[at].record, None
    places = [(i, s) for i, s in near.nearest(asked(record), _NEIGHBOURS + 1) if i != at][:_NEIGHBOURS]
    said = Counter(_class(rows[i].record) for i, _ in places if rows[i].record.task == record.task)
    other, count = said.most_common(1)[0] if said else ("", 0)
    if count >= _MOST and other != _class(record):
        twin = next((rows[i].record for i, s in places if s >= _SAME and _class(rows[i].record) == other), None)
        suggests = f"relabel: {count} of its {len(places)} nearest rows say {other}"
        suggests = f"drop: {twin.origin} asks the same and says {other}" if twin else suggests
    return {"score": round(score, 4), "times": rows[at].times, "suggests": suggests, **record_row(record)}


def _class(record: Record) -> str:
    """What is compared of an answer: the label where there is one, for orders and names differ from row to row."""
    return completion_key(record.completion) if record.label is None else record.label


def as_text(found: dict[str, Any]) -> str:
    """For a terminal."""
    state = {None: "no reference", True: "right", False: f"wrong, {_short(found['reference'] or '')} was asked for"}
    lines = [
        f"{'row ' + found['row'][:12] if found['row'] else 'prompt'}: {_short(found['prompt'])}",
        f"answer: {_short(found['answer'])} ({state[found['right']]})",
    ]
    for key, title in (("by_gradients", "by gradients of the adapter"), ("nearest", "by what is asked (TF-IDF)")):
        lines += ["", f"{title}, of {found['training_rows']} training rows:"]
        for one in found[key]:
            annotator = one.get("fields", {}).get("annotator")
            about = [one["source"], *([f"annotator {annotator}"] if annotator else [])]
            about += [f"{one['times']} times"] if one["times"] > 1 else []
            lines.append(f"  {one['score']:+.3f}  {_short(one['origin'])} ({_short(', '.join(about))})")
            lines.append(f"          {_short(one['prompt'])} → {_short(one['completion'])}")
            lines += [f"          {_short(one['suggests'])}"] if one["suggests"] else []
    if found["nothing_like_it"]:
        lines += ["", _ADD + "; but this row stays held out" * bool(found["row"])]
    return "\n".join(lines)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def free_inbox(file: Path) -> None:
    """Raises UserError when the file is there already, or is no .jsonl."""
    if file.suffix != ".jsonl":
        raise UserError(f"--to {file}: the name must end in .jsonl, for the answers go to a folder beside it")
    require_new(file, "--to")


def write_inbox(found: dict[str, Any], file: Path) -> str:
    """The rows that something is suggested for, as `tunetrail annotate` takes them, or a prompt that no row is like."""
    rows = [one for one in [*found["by_gradients"], *found["nearest"]] if one["suggests"]]
    if found["nothing_like_it"] and not found["row"]:
        rows.append({**found, "completion": found["answer"], "suggests": _ADD, "origin": "prompt"})
    name, made = re.sub(r"[^\w.-]", "-", f"why-{file.stem}"), dict[str, dict[str, Any]]()
    source = name.encode()[:90].decode(errors="ignore")
    for one in rows:
        kept = {name: one[name] for name in ("prompt", "context", "task") if one.get(name)}
        new = {"completion": "", "answer": one["completion"], "source": source, "kept_because": [one["suggests"]]}
        made.setdefault(repr(kept), kept | new | {"log": one["origin"]})
    if not made:
        return "nothing is suggested for these rows, so no file was written"
    write_new(file, made.values(), "--to")
    return f"{len(made)} rows in {file}; `tunetrail annotate` shows them"


class Influence:
    """Gradients of one tuned model; `rows` are those of its training rows, one pass over them the first time."""

    def __init__(self, weights: Weights, pairs: Sequence[Pair], width: int = WIDTH) -> None:
        self._weights, self._pairs = weights, pairs
        self._width = min(width, _BYTES // 4 // max(1, len(pairs)))

    @cached_property
    def rows(self) -> torch.Tensor:
        """The sketch of each row's gradient, float32 (rows, width); kept by the content of model, rows and this code.

        What is kept is written whole or not at all, and that of other models goes.
        """
        made_of = [self._weights.identity, self._pairs, self._width, tree_digest(Path(__file__)), library_versions()]
        name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        file = paths.of_checkout(_FOLDER) / f"{name}.safetensors"
        with suppress(FileNotFoundError, SafetensorError, KeyError):
            return load_file(file)["gradients"]
        found = [self._sketch(self._gradient(pair)) for pair in track(self._pairs, len(self._pairs), "gradients")]
        gradients = torch.stack(found).cpu()
        with atomic(file) as partial:
            save_file({"gradients": gradients}, partial)
        for other in file.parent.glob("*.safetensors"):
            if other != file:
                remove(other)
        return gradients

    def scores(self, answer: Pair) -> torch.Tensor:
        """For each row the cosine of its gradient to the answer's, from -1 to 1; above 0 it taught the answer."""
        asked = self.asked(answer)
        lengths = torch.linalg.vector_norm(self.rows, dim=1) * torch.linalg.vector_norm(asked)
        found: torch.Tensor = self.rows @ asked / lengths.clamp_min(1e-12)
        return found

    def asked(self, answer: Pair) -> torch.Tensor:
        """The sketch of the answer's gradient, float32 (width)."""
        return self._sketch(self._gradient(answer)).cpu()

    @cached_property
    def _chosen(self) -> list[torch.Tensor]:
        """The trained weights of the last layers; of LoRA the factor B, on which the answer depends in the first place.

        Zhu et al. 2024, "Asymmetry in low-rank adapters", arXiv:2402.16842, section 4.
        """
        model = self._weights.model.requires_grad_(False)
        named = dict(model.named_parameters())
        layer_of = {name: int(found[1]) for name in named if (found := re.search(r"\.(\d+)\.", name))}
        adapted = {name: layer for name, layer in layer_of.items() if "lora_B" in name} or layer_of
        first = sorted(set(adapted.values()))[-_LAYERS:][0]
        return [named[name].requires_grad_(True) for name, layer in adapted.items() if layer >= first]

    def _gradient(self, pair: Pair) -> torch.Tensor:
        """Of the completion's negative log-likelihood, all chosen weights in one row."""
        chosen = self._chosen  # before the graph is made
        found = torch.autograd.grad(loss(causal_of(self._weights.model), *pair), chosen)
        return torch.cat([part.flatten().float() for part in found])

    @cached_property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of each weight its place in the sketch and its sign, drawn by a fixed seed; None where all weights fit."""
        size, draw = sum(weight.numel() for weight in self._chosen), torch.Generator().manual_seed(0)
        if size <= self._width:
            return None
        places = torch.randint(self._width, (size,), generator=draw)
        signs = torch.randint(2, (size,), generator=draw).float() * 2 - 1
        device = self._chosen[0].device
        return places.to(device), signs.to(device)

    def _sketch(self, gradient: torch.Tensor) -> torch.Tensor:
        """Signed sums, whose dot products are those of the gradients in the mean; the gradient itself where it fits.

        Weinberger et al. 2009, "Feature hashing for large scale multitask learning", arXiv:0902.2206, section 2.
        """
        if self._places is None:
            return gradient
        places, signs = self._places
        return gradient.new_zeros(self._width).index_add_(0, places, gradient * signs)


def loss(causal: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Negative log-likelihood of the completion after the prompt, in nats, with its graph."""
    ids = torch.tensor([prompt + completion], device=causal.device)
    if head_is_plain(causal):  # positions of the prompt never reach the vocabulary
        states, head = (
            causal.base_model(input_ids=ids, use_cache=False).last_hidden_state,
            causal.get_output_embeddings(),
        )
    else:
        states, head = causal(input_ids=ids, use_cache=False).logits, torch.nn.Identity()
    said = head(states[0, len(prompt) - 1 : -1]).float()
    return torch.nn.functional.cross_entropy(said, ids[0, len(prompt) :], reduction="sum")
