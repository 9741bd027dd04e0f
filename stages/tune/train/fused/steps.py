"""Forward and backward over one micro-batch: launched kernel by kernel, or replayed as CUDA graphs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stages.model.loading import causal_of
from stages.tune.train import devices
from stages.tune.train.fused.attention import SEGMENTS, VARLEN
from stages.tune.train.fused.batches import (
    APART,
    UNSEEN,
    Head,
    MicroBatch,
    Room,
    Row,
    completion_loss,
    cut,
    deal,
    pack,
    trained_tokens,
)
from stages.tune.train.fused.layers import loss_kernel
from stages.tune.train.fused.private_names import attention_in_use, casting_layers
from stages.tune.train.plan import Plan


class Steps:
    """Gradients of this process's share of the rows given, added to those that the parameters hold."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self._causal = causal_of(model)
        self._decoder = self._causal.base_model
        self._device = self._causal.get_input_embeddings().weight.device
        self._head = Head(self._causal, loss_kernel(self._device, plan.precision))
        self.plan = plan
        self._attention_before = attention_in_use(self._causal)
        self._set(VARLEN if plan.attention == "varlen" else SEGMENTS, casts=plan.precision == torch.float32)
        if plan.checkpointing:
            # A random state is kept for dropout's sake; reading it would forbid a capture.
            options = {"use_reentrant": False, "preserve_rng_state": plan.compile == "none"}
            self._causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    def __call__(self, rows: list[Row]) -> torch.Tensor:
        """This process's share of the loss of an optimiser batch."""
        count, total = trained_tokens(rows), torch.zeros((), device=self._device)
        with self._autocast():
            for part in self._parts(rows):
                total += self._forward_and_backward(self._batch(part), count)
        return total

    def loss(self, rows: list[Row]) -> torch.Tensor:
        """The same without gradients."""
        count, total = trained_tokens(rows), torch.zeros((), device=self._device)
        with torch.no_grad(), self._autocast():
            for part in self._parts(rows):
                batch = self._moved(pack(part))
                hidden = self._hidden(batch).flatten(0, 1)
                total += completion_loss(hidden, batch.predictors, batch.targets, self._head, count)
        return total

    def _parts(self, rows: list[Row]) -> list[list[Row]]:
        """Micro-batches of this process's rows."""
        return cut(deal(rows, devices.count())[devices.rank()], self.plan.micro_batch_tokens)

    def restore(self) -> None:
        """Give the model its attention and its layers' casts back, and keep no activation from being stored."""
        self._set(self._attention_before, casts=True)
        if self.plan.checkpointing:
            self._causal.gradient_checkpointing_disable()

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The model as if it had been loaded: for generation, which knows no autocast, so that PEFT casts again."""
        attention = attention_in_use(self._causal)
        self._set(self._attention_before, casts=True)
        yield
        self._set(attention, casts=self.plan.precision == torch.float32)

    def _set(self, attention: str, casts: bool) -> None:
        """The attention, and whether adapter layers cast their input; under autocast it is cast to less, and once."""
        self._causal.set_attn_implementation(attention)
        for layer in casting_layers(self._causal):
            layer.cast_input_dtype_enabled = casts

    def _forward_and_backward(self, batch: MicroBatch, count: int) -> torch.Tensor:
        batch = self._moved(batch)
        hidden = self._hidden(batch)
        flat = hidden.detach().flatten(0, 1)
        gradient = torch.empty_like(flat)
        loss = completion_loss(flat, batch.predictors, batch.targets, self._head, count, gradient)
        hidden.backward(gradient.view_as(hidden))  # type: ignore[no-untyped-call]
        return loss

    def _batch(self, rows: list[Row]) -> MicroBatch:
        return pack(rows)

    def _hidden(self, batch: MicroBatch) -> torch.Tensor:
        return self._decode(batch.ids, batch.positions, **self._layout(batch))

    def _decode(self, ids: torch.Tensor, positions: torch.Tensor, **layout: Any) -> torch.Tensor:
        out = self._decoder(input_ids=ids, position_ids=positions, use_cache=False, **layout)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    def _layout(self, batch: MicroBatch) -> dict[str, Any]:
        if self.plan.attention == "sdpa":
            return {"segment_ends": batch.ends}
        ends = torch.tensor([0, *batch.ends], dtype=torch.int32)
        longest = int((ends[1:] - ends[:-1]).max())
        return {"cu_seq_lens_q": self._sent(ends), "max_length_q": longest}

    def _autocast(self) -> Any:
        # Without the cache of casts: a captured graph must cast the weights anew in each replay.
        half = self.plan.precision == torch.bfloat16
        return torch.autocast(self._device.type, torch.bfloat16, enabled=half, cache_enabled=False)

    def _moved(self, batch: MicroBatch) -> MicroBatch:
        ids, positions, predictors, targets = map(self._sent, batch[:4])
        return MicroBatch(ids, positions, predictors, targets, batch.ends)

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device, without waiting for it."""
        return tensor if self._device.type == "cpu" else tensor.pin_memory().to(self._device, non_blocking=True)


class CudaRecorder:
    """Turns work into a CUDA graph; all graphs of a recorder share their memory, and so must not overlap."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run the work, so that libraries allocate now what they must not while it is recorded."""
        randomness = torch.cuda.get_rng_state()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.empty_cache()  # a graph has memory of its own
        torch.cuda.set_rng_state(randomness)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A function that does the work once more, on the same tensors."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        self._pool = self._pool or graph.pool()
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass(slots=True)
class _Recorded:
    """A recorded pass: it reads `inputs`, which one copy fills, and writes `loss`; both stay where they are.

    `inputs`: int64, the ids and positions of a width, the predictors and targets of a capacity, the segments' ends and
    the optimiser batch's trained tokens, one after the other.
    """

    inputs: torch.Tensor
    room: Room
    loss: torch.Tensor
    replay: Callable[[], None] = lambda: None


class GraphSteps(Steps):
    """Replays a recorded pass, forward, loss and backward: the host no longer launches each kernel.

    One for each width, to which batches are filled up, and for at most so many predictors and segments: as `planned`,
    from narrow to wide, or else multiples of `APART`. The kernel of attention spends time on segments that are empty,
    too. The gradients must stay where they were while it was recorded, and so must
    `sums`, what else the passes add to.
    """

    def __init__(
        self,
        model: Any,
        plan: Plan,
        longest: int,
        segments: int,
        recorder: Any = None,
        planned: Mapping[int, Room] | None = None,
        sums: Sequence[torch.Tensor] = (),
    ) -> None:
        super().__init__(model, plan)
        self._sums = sums
        self._longest = max(longest, APART)
        self._planned = planned or {}
        self._rows = segments
        self._recorder = recorder or CudaRecorder()
        self._recorded: dict[int, _Recorded] = {}

    def _batch(self, rows: list[Row]) -> MicroBatch:
        return pack(rows, self._width(sum(map(len, rows))), self._longest)

    def _room(self, width: int, needed: Room) -> Room:
        """As planned, or else with some to spare; no segment, of filler either, is longer than the longest row."""
        planned = self._planned.get(width)
        if planned and _holds(planned, needed):
            return planned
        spare = needed.predictors + needed.predictors // 8
        return Room(min(_rounded(spare), width), max(needed.segments, self._rows + -(-width // self._longest)))

    def _width(self, tokens: int) -> int:
        return next((width for width in self._planned if width >= tokens), _rounded(tokens))

    def _forward_and_backward(self, batch: MicroBatch, count: int) -> torch.Tensor:
        width, needed = batch.ids.shape[1], Room(len(batch.predictors), len(batch.ends))
        if not self._recorded:  # the widest first: narrower ones then find their room in its memory
            widest = max(self._planned, default=_rounded(self.plan.micro_batch_tokens))
            foreseen = Room(needed.predictors * widest // width, 0)
            self._record(widest, self._planned.get(widest) or self._room(widest, foreseen))
        if width not in self._recorded or not _holds(self._recorded[width].room, needed):
            self._record(width, self._room(width, needed))
        passes = self._recorded[width]
        passes.inputs.copy_(self._sent(self._laid_out(batch, passes.room, count)))
        passes.replay()
        return passes.loss

    def _laid_out(self, batch: MicroBatch, room: Room, count: int) -> torch.Tensor:
        """As `_Recorded.inputs`. The last token predicts nothing, so it stands in for predictors that are missing, and
        empty segments change nothing."""
        missing, width = room.predictors - len(batch.predictors), batch.ids.shape[1]
        ends = [0, *batch.ends]
        ends += [width] * (room.segments + 1 - len(ends))
        return torch.cat(
            [
                batch.ids[0],
                batch.positions[0],
                batch.predictors,
                batch.predictors.new_full((missing,), width - 1),
                batch.targets,
                batch.targets.new_full((missing,), UNSEEN),
                torch.tensor([*ends, count]),
            ]
        )

    def _record(self, width: int, room: Room) -> None:
        """For any batch of this width that has room; recorded over equal segments of one token repeated."""
        device, (capacity, count) = self._device, room
        equal = [part * width // count for part in range(count + 1)]
        example = MicroBatch(
            ids=torch.zeros(1, width, dtype=torch.long),
            positions=torch.arange(width)[None] % self._longest,
            predictors=torch.zeros(0, dtype=torch.long),
            targets=torch.zeros(0, dtype=torch.long),
            ends=equal[1:],
        )
        inputs = self._laid_out(example, room, 1).to(device)
        passes = _Recorded(inputs, room, loss=torch.zeros((), device=device))
        ids, positions, where, targets, ends = torch.split(inputs[:-1], [width, width, capacity, capacity, count + 1])

        def work() -> None:
            state = self._decode(
                ids[None], positions[None], cu_seq_lens_q=ends.to(torch.int32), max_length_q=self._longest
            )
            flat = state.detach().flatten(0, 1)
            gradient = torch.empty_like(flat)
            passes.loss.copy_(completion_loss(flat, where, targets, self._head, inputs[-1], gradient))
            state.backward(gradient.view_as(state))  # type: ignore[no-untyped-call]

        trained = [parameter.grad for parameter in self._causal.parameters() if parameter.requires_grad]
        kept = [(added_to, added_to.clone()) for added_to in (*trained, *self._sums)]
        self._recorder.warm_up(work)
        passes.replay = self._recorder.record(work)
        for added_to, value in kept:
            added_to.copy_(value)
        self._recorded[width] = passes


def _holds(room: Room, needed: Room) -> bool:
    return room.predictors >= needed.predictors and room.segments >= needed.segments


def _rounded(tokens: int) -> int:
    return -(-tokens // APART) * APART
