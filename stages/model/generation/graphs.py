"""Steps on a CUDA card as recorded graphs: the host says "again" once, instead of launching some hundred kernels."""

from collections.abc import Callable

import torch


class Graphs:
    """Runs `step(rows, width)`, which changes tensors in place and waits for nothing, from a recording of it.

    Each size runs once as it is, which readies the libraries for it, is then recorded, and replayed from there on.
    A step that cannot be recorded runs as it is.
    """

    def __init__(self, step: Callable[[int, int], None]) -> None:
        self._step = step
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._recordable = True

    def run(self, rows: int, width: int) -> None:
        if graph := self._graphs.get((rows, width)):
            graph.replay()
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._step(rows, width)
        torch.cuda.current_stream().wait_stream(self._stream)
        if self._recordable:
            self._record(rows, width)

    def _record(self, rows: int, width: int) -> None:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            # Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache each time: a size is
            # seldom run often enough to repay that.
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
                try:
                    self._step(rows, width)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            # Some quantised layers and rotary embeddings ask the card for a number in the middle of a step.
            print(f"generation without CUDA graphs: {str(error).splitlines()[0]}", flush=True)
            self._recordable = False
        else:
            self._graphs[rows, width] = graph
