"""Forward and backward over one micro-batch: launched kernel by kernel, or replayed as CUDA graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stages.train.attention import SEGMENTS, VARLEN, attention_of
from stages.train.batches import MicroBatch, Row, cut, pack, pad
from stages.train.loss import Head, completion_loss, completion_loss_and_gradient
from stages.train.plan import Plan

_WIDTH = 512  # graphs are captured for multiples of so many tokens
_WARM_UP = 2  # runs before a capture, in which libraries allocate and compile what a capture must not


class Steps:
    """Gradients of the rows given, added to those that the parameters hold."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self._causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder = self._causal.base_model
        self._head = Head(self._causal)
        self._device = next(model.parameters()).device
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Set the model up as planned; what was kept for an earlier plan is given back."""
        self.plan = plan
        self._causal.set_attn_implementation(self._attention())
        if plan.checkpointing:
            # A random state is kept for dropout's sake; reading it would forbid a capture.
            options = {"use_reentrant": False, "preserve_rng_state": plan.compile == "none"}
            self._causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if plan.compile == "full":
            for layer in self._decoder.layers:
                layer.compile(dynamic=True)

    def __call__(self, rows: list[Row], count: int) -> torch.Tensor:
        """The rows' share of the loss of an optimiser batch of `count` trained tokens."""
        total = torch.zeros((), device=self._device)
        with self._autocast():
            for part in cut(rows, self.plan.micro_batch_tokens, self.plan.packing):
                total += self._forward_and_backward(self._batch(part), count)
        return total

    def loss(self, rows: list[Row], count: int) -> torch.Tensor:
        """The same without gradients."""
        total = torch.zeros((), device=self._device)
        with torch.no_grad(), self._autocast():
            for part in cut(rows, self.plan.micro_batch_tokens, self.plan.packing):
                batch = self._moved(pack(part) if self.plan.packing else pad(part))
                hidden = self._hidden(batch).flatten(0, 1)
                total += completion_loss(hidden, batch.predictors, batch.targets, self._head, count)
        return total

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The model without what only training needs: for generation."""
        with attention_of(self._causal, "sdpa"), self._autocast(), torch.compiler.set_stance("force_eager"):
            yield

    def _forward_and_backward(self, batch: MicroBatch, count: int) -> torch.Tensor:
        batch = self._moved(batch)
        hidden = self._hidden(batch)
        flat = hidden.detach().flatten(0, 1)
        gradient = torch.empty_like(flat)
        loss = completion_loss_and_gradient(flat, batch.predictors, batch.targets, self._head, count, gradient)
        hidden.backward(gradient.view_as(hidden))  # type: ignore[no-untyped-call]
        return loss

    def _batch(self, rows: list[Row]) -> MicroBatch:
        return pack(rows) if self.plan.packing else pad(rows)

    def _hidden(self, batch: MicroBatch) -> torch.Tensor:
        return self._decode(batch.ids, batch.positions, **self._layout(batch))

    def _decode(self, ids: torch.Tensor, positions: torch.Tensor, **layout: Any) -> torch.Tensor:
        out = self._decoder(input_ids=ids, position_ids=positions, use_cache=False, **layout)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    def _layout(self, batch: MicroBatch) -> dict[str, Any]:
        if batch.ends is None:
            return {}
        if self.plan.attention == "sdpa":
            return {"segment_ends": batch.ends}
        ends = torch.tensor([0, *batch.ends], dtype=torch.int32)
        longest = int((ends[1:] - ends[:-1]).max())
        return {"cu_seq_lens_q": ends.to(self._device, non_blocking=True), "max_length_q": longest}

    def _attention(self) -> str:
        if not self.plan.packing:
            return "sdpa"
        return VARLEN if self.plan.attention == "varlen" else SEGMENTS

    def _autocast(self) -> Any:
        # Without the cache of casts: a captured graph must cast the weights anew in each replay.
        half = self.plan.precision == torch.bfloat16
        return torch.autocast(self._device.type, torch.bfloat16, enabled=half, cache_enabled=False)

    def _moved(self, batch: MicroBatch) -> MicroBatch:
        if self._device.type == "cpu":
            return batch
        return MicroBatch(
            **{name: getattr(batch, name).pin_memory().to(self._device, non_blocking=True) for name in _TENSORS},
            ends=batch.ends,
        )


_TENSORS = ("ids", "positions", "predictors", "targets")


@dataclass(frozen=True, slots=True)
class _Captured:
    forward: Any
    backward: Any
    ids: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    hidden: torch.Tensor
    gradient: torch.Tensor


class GraphSteps(Steps):
    """Replays a captured forward and backward pass: the host no longer launches each kernel.

    One pair of graphs for each width, to which batches are filled up. The loss between them stays outside, since
    its size changes with every batch. The gradients must stay where they were at the capture.
    """

    def __init__(self, model: Any, plan: Plan, longest: int, segments: int) -> None:
        self._longest = max(longest, _WIDTH)
        self._segments = segments + 1  # and the filler
        super().__init__(model, plan)

    def use(self, plan: Plan) -> None:
        self._captured: dict[int, _Captured] = {}
        self._pool: Any = None
        super().use(plan)

    def _batch(self, rows: list[Row]) -> MicroBatch:
        used = sum(map(len, rows))
        return pack(rows, -(-used // _WIDTH) * _WIDTH)

    def _forward_and_backward(self, batch: MicroBatch, count: int) -> torch.Tensor:
        width = batch.ids.shape[1]
        if width not in self._captured:
            self._captured[width] = self._capture(batch)
        graph = self._captured[width]
        moved = self._moved(batch)
        graph.ids.copy_(moved.ids)
        graph.positions.copy_(moved.positions)
        graph.ends.copy_(self._ends(batch))
        graph.forward.replay()
        flat, gradient = graph.hidden.flatten(0, 1), graph.gradient.flatten(0, 1)
        loss = completion_loss_and_gradient(flat, moved.predictors, moved.targets, self._head, count, gradient)
        graph.backward.replay()
        return loss

    def _ends(self, batch: MicroBatch) -> torch.Tensor:
        """Ends of the segments, the last repeated: empty segments cost nothing."""
        assert batch.ends is not None
        ends = [0, *batch.ends]
        ends += [ends[-1]] * (self._segments + 1 - len(ends))
        return torch.tensor(ends, dtype=torch.int32).pin_memory().to(self._device, non_blocking=True)

    def _capture(self, batch: MicroBatch) -> _Captured:
        moved, ends = self._moved(batch), self._ends(batch)
        ids, positions = moved.ids, moved.positions
        layout = {"cu_seq_lens_q": ends, "max_length_q": self._longest}

        def decode() -> torch.Tensor:
            return self._decode(ids, positions, **layout)

        kept = [parameter.grad.clone() for parameter in self._trained()]
        randomness = torch.cuda.get_rng_state()
        _on_side_stream(lambda: decode().sum().backward(), _WARM_UP)  # type: ignore[no-untyped-call]
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=self._pool):
            hidden = decode()
        self._pool = self._pool or forward.pool()
        gradient = torch.zeros_like(hidden)
        with torch.cuda.graph(backward, pool=self._pool):
            hidden.backward(gradient)  # type: ignore[no-untyped-call]
        for parameter, value in zip(self._trained(), kept, strict=True):
            parameter.grad.copy_(value)
        torch.cuda.set_rng_state(randomness)
        return _Captured(forward, backward, ids, positions, ends, hidden.detach(), gradient)

    def _trained(self) -> list[Any]:
        return [parameter for parameter in self._causal.parameters() if parameter.requires_grad]


def _on_side_stream(work: Callable[[], None], times: int) -> None:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            work()
    torch.cuda.current_stream().wait_stream(stream)
