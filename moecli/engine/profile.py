"""Where the time of a run goes, layer by layer; measured only where MOECLI_PROFILE asks for it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from moecli.engine.block import Block, RoutingObserver
from moecli.engine.cache import MixerCache
from moecli.engine.decode_step import NativeLayer
from moecli.engine.router import Routing
from moecli.experts.store import Statistics
from moecli.kernels.decode_step import MoeSublayer
from moecli.model.spec import FeedForward, Mixture

Part = Literal["attention", "router", "experts", "waiting"]
Seconds = defaultdict[tuple[int, Part], float]  # by layer and part
PARTS: tuple[Part, ...] = ("attention", "router", "experts", "waiting")


@dataclass(slots=True)
class Phase:
    """Prompts, or decode steps: how many tokens, seconds in all, and seconds by layer and part."""

    tokens: int = 0
    seconds: float = 0.0
    parts: Seconds = field(default_factory=lambda: defaultdict(float))

    def part(self, part: Part) -> float:
        """Seconds of one part over all layers."""
        return sum(seconds for (_, name), seconds in self.parts.items() if name == part)


class Profile:
    """What one decoder's texts took so far.

    "experts" are dense feed-forwards and shared experts too; "waiting" is for reads from disk with nothing to compute
    meanwhile. A device is waited for at the end of each part, whose time is then its own.
    """

    def __init__(self, device: torch.device, statistics: Statistics) -> None:
        self.prefill, self.decode = Phase(), Phase()
        self.apart = False  # decode steps went by sublayers, which else are a single native call
        self._device, self._statistics = device, statistics
        self._parts: Seconds = defaultdict(float)  # of the step under way

    @contextmanager
    def time(self, layer: int, part: Part) -> Iterator[None]:
        """What is done inside belongs to this part of the layer."""
        began, waited = time.perf_counter(), self._statistics.wait_s
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        waited = self._statistics.wait_s - waited
        self._parts[layer, part] += time.perf_counter() - began - waited
        self._parts[layer, "waiting"] += waited

    def end_step(self, phase: Phase, tokens: int, seconds: float) -> None:
        """All since the last step was one of this phase."""
        phase.tokens += tokens
        phase.seconds += seconds
        for key, spent in self._parts.items():
            phase.parts[key] += spent
        self._parts.clear()


class ProfiledBlock(Block):
    """A block that times its parts."""

    def __init__(self, *block: Any, profile: Profile) -> None:
        super().__init__(*block)
        self._profile = profile

    def attend(self, x: Tensor, cache: MixerCache, prompt: int) -> Tensor:
        with self._profile.time(self._index, "attention"):
            return super().attend(x, cache, prompt)

    def feed_forward(self, x: Tensor, observer: RoutingObserver | None, kept: Tensor | None = None) -> None:
        if isinstance(self._ffn, Mixture):
            super().feed_forward(x, observer, kept)
        else:
            with self._profile.time(self._index, "experts"):
                super().feed_forward(x, observer, kept)

    def route(self, x: Tensor, mixture: Mixture) -> Routing:
        with self._profile.time(self._index, "router"):
            return super().route(x, mixture)

    def moe_forward(self, x: Tensor, mixture: Mixture, routing: Routing) -> Tensor:
        with self._profile.time(self._index, "experts"):
            return super().moe_forward(x, mixture, routing)

    def shared_forward(self, x: Tensor, mixture: Mixture, shared: FeedForward) -> Tensor:
        with self._profile.time(self._index, "experts"):
            return super().shared_forward(x, mixture, shared)


class ProfiledLayer(NativeLayer):
    """A layer of a decode step that times its parts, each a native call of its own; the bits are the same."""

    def __init__(self, *layer: Any, profile: Profile) -> None:
        super().__init__(*layer)
        self._profile = profile

    def attend_natively(self, x: Tensor, caches: Sequence[MixerCache]) -> Tensor:
        with self._profile.time(self._index, "attention"):
            return super().attend_natively(x, caches)

    def feed_forward(self, x: Tensor, observer: RoutingObserver | None, kept: Tensor | None = None) -> Tensor:
        if self.moe is None:
            return super().feed_forward(x, observer, kept)
        if self._mixture is None:
            with self._profile.time(self._index, "experts"):
                return super().feed_forward(x, observer, kept)
        self.route(self.moe, x if kept is None else kept, observer)
        self.moe_forward(self.moe, x)
        return x

    def route(self, moe: MoeSublayer, x: Tensor, observer: RoutingObserver | None) -> None:
        with self._profile.time(self._index, "router"):
            super().route(moe, x, observer)

    def moe_forward(self, moe: MoeSublayer, x: Tensor) -> None:
        with self._profile.time(self._index, "experts"):
            super().moe_forward(moe, x)
