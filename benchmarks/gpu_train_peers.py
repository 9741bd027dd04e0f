"""Other trainers on the same card with the same pairs and architectures: the `peers` tables of gpu_train.py.

    python benchmarks/gpu_train_peers.py CONTENDER CASE ANSWER STARTED SECONDS     one contender, in this process

CASE is a folder with `model/` (random weights and a tokenizer) and `pairs.json` (token ids, and how many of them
are the prompt); ANSWER is the file that the measurements are written to as they come; STARTED is when the process
was started (time.time()). A contender gets its time to the first optimiser step, imports included, and its speed
afterwards; the time to an adapter for the whole job is projected from these two. Libraries that only the
contenders need may lie in a folder of their own, named by the environment variable PEERS.
"""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LONGEST, EPOCHS = 1024, 3
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LIBRARIES = ("unsloth", "unsloth_zoo", "xformers", "trl", "transformers", "peft", "bitsandbytes", "torch", "datasets")
MARK_EVERY = 5  # steps; the card is waited for only at these
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# 16 pairs to an optimiser step; four packed rows of 1,024 tokens hold as many, and about two more.
FOUR_BY_FOUR = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
FOUR_ROWS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "packing": True}
CONTENDERS: dict[str, dict[str, Any]] = {
    "Unsloth, the guides' script: QLoRA, 4 x 4, checkpointing": {
        "library": "unsloth",
        "four_bit": True,
        "checkpointing": "unsloth",
        "steps": 30,
        "arguments": FOUR_BY_FOUR | {"optim": "adamw_8bit", "logging_steps": 1},
    },
    "Unsloth, 16-bit LoRA, packing, no checkpointing": {
        "library": "unsloth",
        "four_bit": False,
        "checkpointing": False,
        "steps": 60,
        "arguments": FOUR_ROWS | {"optim": "adamw_torch_fused", "logging_steps": MARK_EVERY},
    },
    "TRL, 16-bit LoRA, packing, default attention, no checkpointing": {
        "library": "trl",
        "four_bit": False,
        "checkpointing": False,
        "steps": 60,
        "arguments": FOUR_ROWS | {"optim": "adamw_torch_fused", "logging_steps": MARK_EVERY},
    },
}


class Watch:
    """What has been measured so far, written to a file after every mark; nothing measured is lost to a time limit."""

    def __init__(self, answer: Path, started: float, seconds: float, tokens: int) -> None:
        self._answer, self._started, self._until = answer, started, started + seconds
        self._job = tokens * EPOCHS
        self._stages: dict[str, float] = {}
        self._marks: list[tuple[int, float, int]] = []  # steps, seconds, tokens
        self._logged: dict[str, list[float]] = {"loss": [], "grad_norm": []}

    def stage(self, name: str) -> None:
        self._stages[name] = round(time.time() - self._started, 1)
        self.write()

    def log(self, values: dict[str, Any]) -> None:
        for name, series in self._logged.items():
            series += [float(values[name])] if name in values else []

    def mark(self, step: int, tokens: int) -> None:
        self._marks.append((step, time.time() - self._started, tokens))
        self.write()

    def late(self) -> bool:
        return time.time() > self._until

    def write(self, **more: Any) -> None:
        found: dict[str, Any] = {"stages": self._stages, **more}
        if self._marks:
            first, last = self._marks[0], self._marks[-1]
            found |= {"seconds_to_first_step": round(first[1], 1), "steps": last[0], "peak_gib": peak()}
            half = next(mark for mark in self._marks if 2 * mark[0] >= last[0])
            if last[2] > half[2]:
                rate = (last[2] - half[2]) / (last[1] - half[1])
                found |= {
                    "tokens_per_second": round(rate),
                    "tokens_a_step": round((last[2] - half[2]) / (last[0] - half[0])),
                    "projected_seconds_to_adapter": round(first[1] + (self._job - first[2]) / rate, 1),
                }
        losses, norms = self._logged.values()
        if losses:
            found |= {"last_loss": losses[-1], "finite": all(map(math.isfinite, losses + norms))}
        part = self._answer.with_suffix(".part")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(self._answer)


def peak() -> float:
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def pairs(case: Path) -> Any:
    """A dataset of ids and the mask of the completion, with a fingerprint given: nothing of it is hashed."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    made = json.loads((case / "pairs.json").read_text(encoding="utf-8"))
    columns = {
        "input_ids": [pair["ids"] for pair in made],
        "completion_mask": [[0] * pair["prompt"] + [1] * (len(pair["ids"]) - pair["prompt"]) for pair in made],
    }
    return Dataset(InMemoryTable.from_pydict(columns), fingerprint="pairs")


def unsloth_model(folder: Path, four_bit: bool, checkpointing: Any) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder),
        max_seq_length=LONGEST,
        load_in_4bit=four_bit,
        load_in_16bit=not four_bit,
        use_gradient_checkpointing=checkpointing,
        use_exact_model_name=True,  # no look-up of a quantised twin
    )
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        target_modules=PROJECTIONS,
        use_gradient_checkpointing=checkpointing,
        random_state=3407,
    )
    return adapted, tokenizer


def trl_model(folder: Path) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": 0})
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    return get_peft_model(base, lora), AutoTokenizer.from_pretrained(folder)


def train(name: str, case: Path, answer: Path, started: float, seconds: float) -> None:
    chosen = CONTENDERS[name]
    if importlib.util.find_spec(chosen["library"]) is None:
        answer.write_text(json.dumps({"skipped": "not installed"}), encoding="utf-8")
        return
    sizes = [len(pair["ids"]) for pair in json.loads((case / "pairs.json").read_text(encoding="utf-8"))]
    watch = Watch(answer, started, seconds, sum(sizes))
    if chosen["library"] == "unsloth":
        import unsloth  # noqa: F401  before transformers and TRL, which it patches
    import torch
    from trl import SFTConfig, SFTTrainer

    watch.stage("imported")
    if chosen["library"] == "unsloth":
        model, tokenizer = unsloth_model(case / "model", chosen["four_bit"], chosen["checkpointing"])
    else:
        model, tokenizer = trl_model(case / "model")
    watch.stage("loaded")
    arguments = SFTConfig(
        output_dir="out",
        max_length=LONGEST,
        max_steps=chosen["steps"],
        learning_rate=2e-4,
        warmup_steps=5,
        weight_decay=0.001,
        lr_scheduler_type="linear",
        gradient_checkpointing=bool(chosen["checkpointing"]),
        completion_only_loss=True,
        dataset_num_proc=1 if chosen["library"] == "unsloth" else None,  # in this process, as each says it
        seed=3407,
        save_strategy="no",
        report_to="none",
        **chosen["arguments"],
    )
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=pairs(case), args=arguments)
    watch.stage("prepared")
    follow(trainer, watch, tokenizer.pad_token_id, torch)
    trainer.train()
    watch.write(attention=attention(chosen["library"], model), versions=versions())


def follow(trainer: Any, watch: Watch, padding: int, torch: Any) -> None:
    """Count the tokens of the pairs on the card as they pass, and mark time at the first step and every few."""
    from transformers import TrainerCallback

    seen = torch.zeros((), dtype=torch.long, device=trainer.model.device)
    step = trainer.training_step

    def counted(model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        seen.add_((inputs["input_ids"] != padding).sum().to(seen.device))
        return step(model, inputs, *args, **options)

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
            watch.log(logs or {})

        def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            if state.global_step == 1 or state.global_step % MARK_EVERY == 0:
                watch.mark(state.global_step, int(seen))  # waits for the card
            control.should_training_stop = control.should_training_stop or watch.late()

    trainer.training_step = counted
    trainer.add_callback(Marks())


def attention(library: str, model: Any) -> str:
    """What computes the attention of packed rows: of great weight for the speed, and not the same on every machine."""
    if library == "unsloth":
        from unsloth.utils.attention_dispatch import select_attention_backend

        return str(select_attention_backend(use_varlen=True))
    return str(model.config._attn_implementation)


def versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def contend(name: str, case: Path, seconds: int = 240) -> dict[str, Any]:
    """One contender in a process and a working folder of its own: what it measured within the time, and any error."""
    paths = [os.environ.get("PEERS", ""), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        said = Path(folder) / "said.txt"
        with said.open("wb") as output:
            command = [sys.executable, __file__, name, str(case), str(answer), repr(time.time()), str(seconds - 10)]
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
        if code != 0:
            found["stopped" if code is None else "error"] = said.read_text(encoding="utf-8", errors="replace")[-1500:]
    return found


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
