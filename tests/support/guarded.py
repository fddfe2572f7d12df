"""Every native call on buffers between forbidden pages; a script, for a touch of them ends the process."""

import ctypes
import mmap
from collections.abc import Callable

import torch
from torch import Tensor

from moecli.formats import GROUPED, SEARCHED, bytes_for
from moecli.formats.published import Blocks
from moecli.kernels import library, native, prompt_attention
from moecli.model.spec import Activation
from tests.support import native_samples as samples

_LIBC = ctypes.CDLL(None, use_errno=True)
_KEPT = []


def guarded(numbers: Tensor, at_end: bool) -> Tensor:
    """A copy that ends where a forbidden page begins, or begins where one ends."""
    size = numbers.numel() * numbers.element_size()
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert not _LIBC.mprotect(ctypes.c_void_p(address + page * mmap.PAGESIZE), mmap.PAGESIZE, 0)
    offset = (pages + 1) * mmap.PAGESIZE - size if at_end else mmap.PAGESIZE
    copy = torch.frombuffer(memory, dtype=numbers.dtype, count=numbers.numel(), offset=offset).view(numbers.shape)
    _KEPT.append(memory)
    return copy.copy_(numbers)


def attention(place: Callable[[Tensor], Tensor], precision: torch.dtype) -> None:
    queries = place(samples.gaussian(9, 60).to(precision)).view(9, 6, 10)
    keys, values = (place(samples.gaussian(3 * 100, width).to(precision)).view(3, 100, -1) for width in (10, 7))
    prompt_attention.grouped_query(queries, keys, values, scale=1, start=91)
    latents, expansion = place(samples.gaussian(100, 17).to(precision)), place(samples.gaussian(84, 13).to(precision))
    for expand in (False, True):
        prompt_attention.latent(
            queries, latents, expansion.view(6, 14, 13), nope_dim=6, scale=1, start=91, expand=expand
        )


def everything(place: Callable[[Tensor], Tensor]) -> None:
    for precision in (torch.float32, torch.bfloat16, torch.float16):
        attention(place, precision)
    for dtype in samples.FORMATS:
        for width, inner in ((128, 64), (40, 100), (65, 17)):
            experts = [tuple(map(place, expert)) for expert in samples.experts(dtype, width, inner, 2)]
            for tokens in (1, 9):
                x = place(samples.gaussian(tokens, width))
                for rows in (x, place(x.bfloat16()), place(x.half())):
                    native.linear(dtype, rows, experts[0][0], (inner, width))
                    native.feed_forward(dtype, rows, experts, inner, Activation.SILU)
                    taken, weights = torch.arange(tokens).repeat(2), torch.ones(2 * tokens)
                    native.add_weighted(
                        place(torch.zeros(tokens, width)),
                        dtype,
                        rows,
                        experts,
                        inner,
                        Activation.SILU,
                        [tokens, tokens],
                        place(taken),
                        place(weights),
                        4,
                    )
            for precision in (torch.float32, torch.bfloat16, torch.float16) if dtype in SEARCHED else ():
                native.pack(dtype, place(samples.gaussian(inner, width).to(precision)))


def published(place: Callable[[Tensor], Tensor]) -> None:
    """Blocks of two rows, three groups, as they are laid out anew."""
    for dtype in GROUPED:
        size = 1 if dtype == "mxfp4" else 2
        indices = place(torch.arange(96, dtype=torch.uint8) * 37).view(2, 3, 16)
        scales = place(torch.full((6 * size,), 100 if size == 1 else 60, dtype=torch.uint8)).view(2, 3, size)
        for paired in (False, True):
            packed = place(torch.empty(bytes_for(dtype, (2, 96)), dtype=torch.uint8))
            assert native.repack(Blocks(dtype, indices, scales, paired), packed)


for name in library.isas():
    library.use_isa(name)
    for call in (everything, published):
        call(lambda numbers: guarded(numbers, at_end=True))
        call(lambda numbers: guarded(numbers, at_end=False))
    print(name)
