"""Slots of one size in memory: page-aligned, huge pages asked for, on the CPU or a device."""

from __future__ import annotations

import contextlib
import mmap
import sys
import weakref

import torch
from torch import Tensor

CPU = torch.device("cpu")


class Arena:
    """`count` slots of `size` bytes each, on `device`. Pages take no memory until they are first written.

    Pages in RAM that another device copies from and to are locked for it.
    """

    def __init__(self, count: int, size: int, device: torch.device = CPU, copied_to: torch.device = CPU) -> None:
        self.size = size
        self._map: mmap.mmap | None = None
        if device.type != "cpu" or count * size == 0:
            self._data = torch.empty(count, size, dtype=torch.uint8, device=device)
        else:
            private = {"flags": mmap.MAP_PRIVATE} if sys.platform != "win32" else {}
            self._map = mmap.mmap(-1, count * size, **private)  # a shared map gets no huge pages
            with contextlib.suppress(AttributeError, OSError):  # a wish, and Linux's
                self._map.madvise(mmap.MADV_HUGEPAGE)
            self._data = torch.frombuffer(self._map, dtype=torch.uint8).view(count, size)
            if copied_to.type == "cuda" and torch.cuda.is_available() and _pin(self._data, copied_to):
                weakref.finalize(self, _unpin, self._data.data_ptr(), copied_to).atexit = False

    def __len__(self) -> int:
        return len(self._data)

    @property
    def device(self) -> torch.device:
        """Where the slots are."""
        return self._data.device

    def slot(self, index: int) -> Tensor:
        """The bytes of one slot: uint8 [size]."""
        return self._data[index]

    def memory(self, index: int) -> memoryview:
        """The bytes of one slot in RAM, for a reader to write into."""
        return self._data[index].numpy().data


def _pin(data: Tensor, device: torch.device) -> bool:
    """Lock pages for fast copies. In one piece: torch's own pinned memory is rounded up to a power of two.

    Where the system refuses, copies are slower and still right.
    """
    runtime = torch.cuda.cudart()
    with torch.cuda.device(device):
        done: bool = runtime.cudaHostRegister(data.data_ptr(), data.numel(), 0) == runtime.cudaError.success
    if not done:
        with contextlib.suppress(RuntimeError):  # CUDA would lay the refusal to the next kernel: so here is one
            torch.zeros(1, device=device)
    return done


def _unpin(address: int, device: torch.device) -> None:
    """Before the pages go back to the system, which may give them again at the same address."""
    torch.cuda.synchronize(device)  # copies may still be on their way
    torch.cuda.cudart().cudaHostUnregister(address)
