"""Between two graphs of a step: a layer whose experts are not all on the device, and what the host does for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moecli.engine.cuda_graphs import GraphRecorder, Stage
from moecli.engine.device_layers import DeviceFeedForward
from moecli.engine.router import Routing
from moecli.experts.gpu_offloaded import GpuOffloadedExperts
from moecli.experts.store import ExpertStore, compute, each_output
from moecli.kernels.gpu.norms import Normed
from moecli.model.spec import Activation


@dataclass(slots=True)
class Hop:
    """A layer whose experts are not all on the device: what the host is told, and what it gives."""

    layer: int
    outputs: Tensor  # float32 [T * A, D]
    chosen: Tensor  # int64 [T, A] on the host, as what follows
    states: Tensor  # normed, [T, D]
    made: Tensor  # float32 [T * A, D]
    normed: Normed | None = None
    routing: Routing | None = None


def work_of(
    hop: Hop, half: DeviceFeedForward, store: ExpertStore, recorder: GraphRecorder | None
) -> Callable[[], None]:
    """What is done between the router's choice and the next stage; without a recorder nothing is late."""
    assert half.mixture is not None
    activation = half.mixture.expert.activation
    if half.experts is None or not isinstance(store, GpuOffloadedExperts):
        return lambda: _ask(hop, store, activation, recorder)
    told = None if recorder is None else torch.cuda.Event()

    def compute_on_device() -> None:
        assert hop.normed is not None and hop.routing is not None
        half.routed(hop.normed, hop.routing, hop.outputs)

    stage = Stage(compute_on_device, recorder)

    def tell_and_compute() -> None:
        if told is not None:
            told.record()
        stage()
        if told is not None:
            told.synchronize()
        _compute_rest(hop, store, activation)

    return tell_and_compute


def _ask(hop: Hop, store: ExpertStore, activation: Activation, recorder: GraphRecorder | None) -> None:
    """The store computes all, wherever they are."""
    assert hop.normed is not None
    if recorder is not None:
        recorder.wait()
    each_output(store, hop.layer, activation, hop.normed.states, hop.chosen, hop.outputs)


def _compute_rest(hop: Hop, store: GpuOffloadedExperts, activation: Activation) -> None:
    """What the device does not hold, while it computes what it holds."""
    places: dict[int, list[int]] = {}
    for place, expert in enumerate(hop.chosen.flatten().tolist()):
        places.setdefault(expert, []).append(place)
    counts = {expert: len(its) for expert, its in places.items()}
    rest = store.rest_of(hop.layer, counts, len(hop.states))
    together = len(hop.states) == 1 and bool(rest) and all(isinstance(each, tuple) for _, each in rest)
    for group in [rest] if together else [[each] for each in rest]:
        its = [place for expert, _ in group for place in places[expert]]
        tokens = [0] if together else [place // hop.chosen.shape[1] for place in its]
        made = compute(hop.states[tokens], group, activation).flatten(0, 1)
        for place, row in zip(its, made, strict=True):
            hop.made[place] = row
            hop.outputs[place].copy_(hop.made[place], non_blocking=True)
    store.settle(hop.layer, rest)
