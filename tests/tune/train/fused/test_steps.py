"""Replayed passes give what passes launched one by one give; only the recording itself needs a card."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from stages.tune.train.fused import attention
from stages.tune.train.fused.batches import Room, Row, planned_widths
from stages.tune.train.fused.buffers import Trained
from stages.tune.train.fused.layers import fuse
from stages.tune.train.fused.merged import Merged, in_stacks
from stages.tune.train.fused.steps import GraphSteps, Steps
from stages.tune.train.plan import Plan

LENGTHS = [7, 300, 41, 120, 299, 5, 88, 260]


class Recorder:
    """Does the recorded work anew, where a CUDA graph would replay its kernels; counts what was recorded."""

    def __init__(self) -> None:
        self.recorded = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        work()
        return work


def one_by_one(
    query: Any, key: Any, value: Any, ends: Any, _: Any, most: int, *__: Any, scale: float, window_size: Any, **___: Any
) -> Any:
    """What the variable-length kernel computes, by its documentation: tokens x heads x width.

    Beyond the `most` tokens of a segment that it was told of, it leaves what lay in memory.
    """
    out = torch.full_like(query, torch.nan)
    for start, stop in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        end = min(stop, start + most)
        size = end - start
        seen = torch.ones(size, size, dtype=torch.bool).tril()
        if window_size[0] >= 0:
            seen = seen.triu(-window_size[0])
        for head in range(query.shape[1]):
            shared = head * key.shape[1] // query.shape[1]
            scores = query[start:end, head] @ key[start:end, shared].T * scale
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            out[start:end, head] = weights @ value[start:end, shared]
    return out


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(attention, "varlen_attn", one_by_one)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    adapter = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(Gemma3ForCausalLM(config), adapter).train()


def rows() -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in LENGTHS:
        ids = torch.randint(0, 50, (length,), generator=generator)
        predictors = torch.arange(length // 2, length - 1)
        made.append(Row(ids, predictors, ids[predictors + 1]))
    return made


def plan(compile: str, attention: str = "varlen", tokens: int = 700) -> Plan:
    return Plan("fused", torch.float32, True, attention, False, tokens, compile)


def two_steps(model: Any, steps: Steps, gradients: Trained) -> list[torch.Tensor]:
    """Losses and gradients of two optimiser batches of different lengths."""
    found = []
    for batch in (rows(), rows()[:5]):
        gradients.clear()
        found.append(steps(batch))
        found += [p.grad.clone() for p in model.parameters() if p.requires_grad]
    return found


def test_replayed_passes_give_the_losses_and_gradients_of_launched_ones(model: Any) -> None:
    gradients = Trained(in_stacks(model))
    recorder = Recorder()
    launched = two_steps(model, Steps(model, plan("none", "sdpa")), gradients)
    kernel = two_steps(model, Steps(model, plan("none")), gradients)
    replayed = two_steps(model, GraphSteps(model, plan("graphs"), max(LENGTHS), len(LENGTHS), recorder), gradients)
    assert len(launched) == 2 * (1 + 8)
    for one, two, three in zip(launched, kernel, replayed, strict=True):
        assert (two - one).norm() <= 1e-4 * one.norm()
        assert (three - one).norm() <= 1e-4 * one.norm()
    assert recorder.recorded == 2, "widths of 1,024 and 512"


def test_a_planned_run_records_each_width_once_and_gives_the_same(model: Any) -> None:
    gradients = Trained(in_stacks(model))
    recorder, planned = Recorder(), planned_widths(rows(), [[*range(len(LENGTHS))], [*range(5)]], 1, 700, recording=0)
    launched = two_steps(model, Steps(model, plan("none", "sdpa")), gradients)
    steps = GraphSteps(model, plan("graphs"), max(LENGTHS), len(LENGTHS), recorder, planned)
    for _ in range(2):
        for one, two in zip(launched, two_steps(model, steps, gradients), strict=True):
            assert (two - one).norm() <= 1e-4 * one.norm()
    assert recorder.recorded == len(planned) == 3


def test_a_batch_far_below_the_width_that_was_planned_gives_the_same(model: Any) -> None:
    """As in the proof before training: what fills it up is longer than the longest row that the kernel is told of."""
    gradients = Trained(in_stacks(model))
    launched = two_steps(model, Steps(model, plan("none", "sdpa", tokens=4096)), gradients)
    steps = GraphSteps(
        model, plan("graphs", tokens=4096), max(LENGTHS), len(LENGTHS), Recorder(), {4096: Room(600, 20)}
    )
    for one, two in zip(launched, two_steps(model, steps, gradients), strict=True):
        assert (two - one).norm() <= 1e-4 * one.norm()


def test_a_recording_leaves_gradients_as_they_were(model: Any) -> None:
    gradients = Trained(in_stacks(model))
    steps = GraphSteps(model, plan("graphs", tokens=400), max(LENGTHS), len(LENGTHS), Recorder())
    gradients.clear()
    whole = steps(rows())  # records while gradients of the first parts are there already
    first = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    gradients.clear()
    torch.testing.assert_close(steps(rows()), whole)
    for before, parameter in zip(first, (p for p in model.parameters() if p.requires_grad), strict=True):
        torch.testing.assert_close(parameter.grad, before)


def test_merged_layers_are_recorded_with_the_sums_that_they_add_to(model: Any) -> None:
    """The sums of gradients of parts before a recording are still there after it."""
    gradients, found = Trained(in_stacks(model)), []
    launched, copies = Steps(model, plan("none")), Merged(model, torch.float32, gradients)
    recorded = GraphSteps(
        model, plan("graphs", tokens=400), max(LENGTHS), len(LENGTHS), Recorder(), sums=copies.sums
    )  # fmt: skip
    for steps in (launched, recorded, recorded):
        if steps is recorded:
            fuse(model, torch.float32, copies)
        gradients.clear()
        copies.refresh()
        loss = steps(rows())
        copies.collect()
        found.append([loss, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    for one, two, three in zip(*found, strict=True):
        assert (two - one).norm() <= 1e-4 * one.norm()
        assert (three - one).norm() <= 1e-4 * one.norm()


def test_a_batch_of_more_predictors_than_were_recorded_is_recorded_anew(model: Any) -> None:
    gradients = Trained(in_stacks(model))
    few = [Row(row.ids, row.predictors[-1:], row.targets[-1:]) for row in rows()]
    every = [Row(row.ids, torch.arange(len(row) - 1), row.ids[1:]) for row in rows()]
    recorder = Recorder()
    recorded = GraphSteps(model, plan("graphs", tokens=1024), max(LENGTHS), len(LENGTHS), recorder)
    launched = Steps(model, plan("none"))
    for batch in (few, every, few):
        found = []
        for steps in (launched, recorded):
            gradients.clear()
            loss = steps(batch)
            found.append([loss, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
        for one, other in zip(*found, strict=True):
            assert (one - other).norm() <= 1e-4 * one.norm()
    assert recorder.recorded == 2
