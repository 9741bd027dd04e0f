"""The cheaper loss on a CPU is TRL's, and torch's by definition."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_model import save_tiny_model
from trl import SFTConfig, SFTTrainer

from stages.chat import make_chat
from stages.models import load_model, load_tokenizer
from stages.records import make_record
from stages.train.examples import make_examples
from stages.train.loss import CompletionTrainer, completion_loss


def trainer(kind: type[SFTTrainer], base: Path, folder: Path) -> Any:
    chat = make_chat(load_tokenizer(base), "Answer.")
    records = [make_record("p" * n, "c" * (n % 5 + 1), None, "s", "s:1") for n in range(1, 9)]
    examples = make_examples(chat, records, 400)
    return kind(
        model=load_model(base, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            seed=5,
            report_to="none",
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        ),
        train_dataset=Dataset.from_dict({"input_ids": examples.input_ids, "labels": examples.labels}),
        processing_class=chat.tokenizer,
        peft_config=LoraConfig(
            r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False
        ),
    )


def loss_and_gradients(kind: type[SFTTrainer], base: Path, folder: Path, count: Any) -> tuple[float, dict[str, Any]]:
    one = trainer(kind, base, folder)
    one.model.train()
    batch = next(iter(one.get_train_dataloader()))
    loss = one.compute_loss(one.model, batch, num_items_in_batch=count)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [None, torch.tensor(100)])
def test_loss_and_gradients_are_those_of_trl(tmp_path: Path, count: Any) -> None:
    base = save_tiny_model(tmp_path / "base", seed=4)
    ours, our_gradients = loss_and_gradients(CompletionTrainer, base, tmp_path / "a", count)
    theirs, their_gradients = loss_and_gradients(SFTTrainer, base, tmp_path / "b", count)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-6)


def test_the_loss_is_the_mean_over_counted_next_tokens() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 5, 8), torch.nn.Linear(8, 11, bias=False)
    labels = torch.tensor([[-100, -100, 3, 4, 5], [-100, 7, 1, -100, -100]])
    by_hand = [
        -head(hidden[row, position - 1]).log_softmax(-1)[labels[row, position]]
        for row, position in ((0, 2), (0, 3), (0, 4), (1, 1), (1, 2))
    ]
    expected = torch.stack(by_hand).mean()
    torch.testing.assert_close(completion_loss(hidden, labels, head), expected)
    torch.testing.assert_close(completion_loss(hidden, labels, head, 10), expected / 2)
