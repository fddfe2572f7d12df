"""Launches without a look from the host as CUDA graphs: recorded once, then played again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


class GraphRecorder:
    """Makes CUDA graphs of launches, all in one pool of memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of what `launch` launches, which does not run now."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                launch()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph

    def wait(self) -> None:
        """Until the device has done all it was told."""
        torch.cuda.current_stream(self._device).synchronize()


@dataclass(slots=True)
class Stage:
    """Launches without a look from the host: recorded when they have run once, and played again from then on."""

    launch: Callable[[], None]
    recorder: GraphRecorder | None
    ran: bool = False
    graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.graph is None and self.ran and self.recorder is not None:
            self.graph = self.recorder.record(self.launch)
        if self.graph is not None:
            self.graph.replay()
        else:
            self.launch()  # kernels are compiled, which no graph can hold
            self.ran = True
