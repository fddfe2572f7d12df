"""A CUDA device that is not there: fake tensors, on a torch built without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode


@contextmanager
def absent_device() -> Iterator[str]:
    """Within it tensors have shapes and devices and no numbers; mixing devices fails as it would in earnest."""
    with FakeTensorMode(), _Slices():
        yield "cuda"


_BY_NAME = {
    Tensor.copy_: torch.ops.aten.copy_,
    Tensor.contiguous: partial(torch.ops.aten.clone, memory_format=torch.contiguous_format),
    Tensor.float: partial(torch.ops.aten._to_copy, dtype=torch.float32),
}


class _Slices(TorchFunctionMode):
    """Indexing and copying set the current device first, which such a torch cannot: so they go another way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return _part(*args)
        if func is Tensor.__setitem__:
            return torch.ops.aten.copy_(_part(args[0], args[1]), args[2])
        func = _BY_NAME.get(func, func)
        return func(*args, **(kwargs or {}))


def _part(tensor: Tensor, index: Any) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    if ... in index:
        place = index.index(...)
        index = (*index[:place], *[slice(None)] * (tensor.dim() - len(index) + 1), *index[place + 1 :])
    dim = 0
    for each in index:
        if isinstance(each, int):
            tensor = tensor.select(dim, each)
        else:
            start, stop, _ = each.indices(tensor.shape[dim])
            tensor = torch.narrow(tensor, dim, start, max(0, stop - start))
            dim += 1
    return tensor
