"""A CUDA device that is not there: fake tensors on it, real ones on the host, on a torch built without CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
Read = Callable[[Tensor], Tensor]


@contextmanager
def absent_device(read: Read = torch.zeros_like) -> Iterator[torch.device]:
    """Within it tensors of the device have shapes and no numbers; mixing devices fails as it would in earnest.

    What is brought from there is on the host what `read` makes of an empty tensor of its shape.
    """
    with _FakeDevice(allow_non_fake_inputs=True), _Detours(read):
        yield torch.device("cuda", 0)


class _FakeDevice(FakeTensorMode):
    """Operations on the host alone are real."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_fake(args, kwargs) or torch.device(kwargs.get("device") or "cpu").type != "cpu":
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)


class _Detours(TorchFunctionMode):
    """Some calls set the current device first, which such a torch cannot: they go another way."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self._read = read
        self._ways: dict[Any, Callable[..., Tensor]] = {
            Tensor.__getitem__: _part,
            Tensor.__setitem__: _assign,
            Tensor.copy_: lambda target, source, non_blocking=False: aten.copy_(target, source),
            Tensor.contiguous: partial(aten.clone, memory_format=torch.contiguous_format),
            Tensor.float: partial(aten._to_copy, dtype=torch.float32),
            Tensor.cpu: lambda tensor: self._move(tensor, "cpu"),
            Tensor.to: self._move,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to or _is_fake(args, kwargs):
            func = self._ways.get(func, func)
        return func(*args, **kwargs)

    def _move(self, tensor: Tensor, *wanted: Any) -> Tensor:
        dtype, device = tensor.dtype, tensor.device
        for each in wanted:
            if isinstance(each, torch.dtype):
                dtype = each
            else:
                device = torch.device(each)
        if device.type == tensor.device.type:
            return tensor if dtype is tensor.dtype else aten._to_copy(tensor, dtype=dtype)
        there = torch.empty(tensor.shape, dtype=dtype, device=device)
        return self._read(there) if device.type == "cpu" else there


def _is_fake(args: Any, kwargs: Any) -> bool:
    return any(isinstance(each, FakeTensor) for each in tree_leaves((args, kwargs)))


def _assign(tensor: Tensor, index: Any, value: Any) -> None:
    if isinstance(index, Tensor):
        aten.index_put_(tensor, [index], value)
    elif isinstance(value, Tensor):
        aten.copy_(_part(tensor, index), value)
    else:
        aten.fill_(_part(tensor, index), value)


def _part(tensor: Tensor, index: Any) -> Tensor:
    if isinstance(index, Tensor):
        return aten.index(tensor, [index])
    index = index if isinstance(index, tuple) else (index,)
    if ... in index:
        place = index.index(...)
        missing = tensor.dim() - sum(each is not None for each in index) + 1
        index = (*index[:place], *[slice(None)] * missing, *index[place + 1 :])
    dim = 0
    for each in index:
        if isinstance(each, int):
            tensor = tensor.select(dim, each)
            continue
        if each is None:
            tensor = tensor.unsqueeze(dim)
        else:
            start, stop, _ = each.indices(tensor.shape[dim])
            tensor = torch.narrow(tensor, dim, start, max(0, stop - start))
        dim += 1
    return tensor
