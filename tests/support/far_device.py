"""A device that is not there, with real numbers: its memory is its own, and its work is done late, in streams.

Tensors of the device are torch's meta tensors: they have shapes, and whoever asks for their numbers is refused. Behind
the memory of each lies some of the host's that nobody else knows, where operations are carried out as they are due.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.streams import Streams

aten = torch.ops.aten
_EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}
FAR = torch.device("meta")
_GARBAGE = 0xFF  # in every byte: no number in any of the floating formats
_SWEEP = 500  # operations


@contextmanager
def far_device(streams: Streams | None = None) -> Iterator[Streams]:
    """Within it FAR computes; outside, or where a tensor of the host meets one of the device, it raises."""
    streams = streams or Streams()
    with streams.as_cuda(), _Computing(streams):
        yield streams


class _Computing(TorchDispatchMode):
    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self._streams = streams
        self._memory: dict[int, tuple[StorageWeakRef, Tensor]] = {}  # by storage of the device: bytes of the host
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        far = [each for each in tensors if each.is_meta]
        target = kwargs.get("device")
        if not far and (target is None or torch.device(target) != FAR):
            return func(*args, **kwargs)
        if _is_made_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten.copy_.default and len(far) == 1:
            return self._copy(*args, **kwargs)
        if func is aten._to_copy.default and target is not None and (not far or torch.device(target) != FAR):
            return self._move(args[0], torch.device(target), kwargs)
        if any(not each.is_meta and each.dim() for each in tensors):
            raise RuntimeError(f"{func}: a tensor of the host meets one of the device")
        return self._compute(func, args, kwargs)

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Tell the shapes now, and give the work to the current stream. What only looks at memory is no work."""
        found = func(*args, **kwargs)
        results = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        fresh = [place for place, each in enumerate(results) if self._key(each) not in self._memory]
        for place in fresh:
            self._remember(results[place])
        if func in _EMPTY or not (fresh or func._schema.is_mutable):
            return found
        real_args, real_kwargs = tree_map(self._real, (args, kwargs))
        if "device" in kwargs:
            real_kwargs["device"] = "cpu"
        targets = {place: self._real(results[place]) for place in fresh}

        def work() -> None:
            with torch.inference_mode():
                made = [each for each in tree_leaves(func(*real_args, **real_kwargs)) if isinstance(each, Tensor)]
                for place, target in targets.items():
                    target.copy_(made[place])

        self._streams.current.give(work)
        return found

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Between host and device. While it is under way the target holds garbage."""
        into, out_of = self._real(target), self._real(source)
        stream = self._streams.current

        def end() -> None:
            with torch.inference_mode():
                into.copy_(out_of)

        stream.give(partial(_spoil, into))
        stream.give(end)
        if not non_blocking:
            stream.synchronize()
        return target

    def _move(self, source: Tensor, device: torch.device, kwargs: Any) -> Tensor:
        """A copy to the other side, as `Tensor.to` makes it: the host waits for it."""
        copy = torch.empty_like(source, dtype=kwargs.get("dtype"), device=device)
        if device == FAR:
            self._remember(copy)
        return self._copy(copy, source)

    def _real(self, each: Any) -> Any:
        """Where the numbers of a tensor are."""
        if not isinstance(each, Tensor) or not each.is_meta:
            return each
        _, memory = self._memory[self._key(each)]
        with torch.inference_mode():
            view = torch.empty(0, dtype=each.dtype)
            return view.set_(memory.untyped_storage(), each.storage_offset(), each.shape, each.stride())

    def _remember(self, tensor: Tensor) -> None:
        """Memory for what the device has made."""
        storage = tensor.untyped_storage()
        self._memory[self._key(tensor)] = StorageWeakRef(storage), _garbage(storage.nbytes())
        self._count += 1
        if self._count % _SWEEP == 0:
            self._sweep()

    def _sweep(self) -> None:
        """Memory that nobody holds is the next operation's: whoever still reads it in another stream reads garbage."""
        for key, (reference, memory) in list(self._memory.items()):
            if reference.expired():
                del self._memory[key]
                self._streams.computing.give(partial(_spoil, memory))

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata


@cache
def _is_made_of_others(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def _spoil(target: Tensor) -> None:
    with torch.inference_mode():
        target.copy_(_garbage(target.numel() * target.element_size()).view(target.dtype).view(target.shape))


def _garbage(size: int) -> Tensor:
    with torch.inference_mode():
        return torch.full((size,), _GARBAGE, dtype=torch.uint8)
