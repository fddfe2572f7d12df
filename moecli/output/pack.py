"""How packing is shown: a bar while it runs, then sizes, time and the format that each role got."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Protocol

from moecli import settings
from moecli.output import terminal
from moecli.output.bars import byte_bars
from moecli.store.cost import Cost
from moecli.store.layout import DENSE, StoreLayout
from moecli.store.packed import PackedStore
from moecli.units import format_bytes

_STEADY = 60.0  # seconds that the rate is averaged over


class Account(Protocol):
    """What summary() and `pack --json` need to know of the work."""

    @property
    def source_bytes(self) -> int: ...

    @property
    def resumed_bytes(self) -> int | None:
        """Packed by an earlier attempt; None: nothing was packed now."""

    @property
    def seconds(self) -> float: ...


class PackingProgress:
    """Is told of the progress; a bar on a terminal, and what the end line needs."""

    def __init__(self, name: str, dtype: str, source_bytes: int, quiet: bool) -> None:
        self.source_bytes = source_bytes
        self.resumed_bytes: int | None = None
        self._began = time.perf_counter()
        self._bar = byte_bars(20, quiet, speed_estimate_period=_STEADY)
        self._task = self._bar.add_task(f"packing {name} to {dtype}", total=source_bytes, start=False)

    def __enter__(self) -> PackingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        if self.resumed_bytes is None:
            self.resumed_bytes = done
            self._bar.reset(self._task, total=total, completed=done)
        else:
            self._bar.update(self._task, completed=done)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began


def explain(layout: StoreLayout, target: Path) -> None:
    """Say what is about to be written, and where."""
    sizes = " and ".join(sorted({f"{format_bytes(record.stride)} each" for record in layout.records.values()}))
    terminal.say(f"into {target}: {format_bytes(sum(layout.sizes.values()))}")
    terminal.say(f"  {format_bytes(layout.sizes[DENSE])} of dense tensors, computed with in {layout.compute}")
    if layout.records:
        terminal.say(f"  {sum(layout.experts.values()):,} experts in {len(layout.records)} layers, {sizes}")


def summary(store: PackedStore, watch: Account, cost: Cost | None = None) -> None:
    """Say what was made of what, how long it took, which format each role has, and what a quantised source lost."""
    if watch.resumed_bytes is None:
        terminal.say(f"{store.name} is here already: {store.dtype}, {format_bytes(store.bytes)}")
        return
    before, share = watch.source_bytes, store.bytes / watch.source_bytes
    earlier = f", {format_bytes(watch.resumed_bytes)} of it earlier" if watch.resumed_bytes else ""
    terminal.say(
        f"{store.name}: {format_bytes(before)} -> {format_bytes(store.bytes)} ({share:.0%}) "
        f"in {_duration(watch.seconds)}{earlier}"
    )
    held = {dtype: _held_in(store, dtype) for dtype in set(store.layout.roles.values())}
    for dtype, (size, roles) in sorted(held.items(), key=lambda each: each[1], reverse=True):
        terminal.say(f"  {dtype:<5} {format_bytes(size):>9}  {', '.join(roles)}")
    if cost is not None:
        terminal.say(f"  {_lost(cost)}")
    known = store.folder.parent == settings.stores()
    terminal.say(f"next: moecli run {shlex.quote(store.name if known else str(store.folder))}")


def _lost(cost: Cost) -> str:
    """What converting one quantised format into another did to the weights."""
    measured = f"measured on {cost.measured:,} of {cost.matrices:,} matrices"
    if not cost.error:
        return f"no weight was changed by the conversion ({measured})"
    return f"the conversion changed weights by {cost.error:.2%} of their size (root mean square, {measured})"


def _held_in(store: PackedStore, dtype: str) -> tuple[int, list[str]]:
    """The bytes in one format, and the roles that have it."""
    layout = store.layout
    dense = sum(place.size for place in layout.dense if place.dtype == dtype)
    experts = sum(store.experts(layer).size for layer, record in layout.records.items() if record.dtype == dtype)
    return dense + experts, [role for role, each in layout.roles.items() if each == dtype]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
