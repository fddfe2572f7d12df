"""One tensor of a checkpoint as it lies in a file, whatever the file's format."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from moecli.errors import CheckpointError, unreadable

Source = Callable[[int, int], bytes]  # offset, size -> that many bytes; fewer only where the file ends

# Bytes per number of the safetensors dtypes; sub-byte types are left out and refused.
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `size` bytes at `offset` of `path`, row by row; a `transposed` matrix column by column.

    With `scales` its numbers are int8, to be multiplied by those of its output and group of inputs: [.., groups, out].
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int
    transposed: bool = False
    scales: StoredTensor | None = None

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """What lies in the file under a name of its own: the numbers, and their scales."""
        return (self,) if self.scales is None else (self, self.scales)

    def at(self, path: Path) -> StoredTensor:
        """The same in a file of another name."""
        return replace(self, path=path, scales=self.scales and self.scales.at(path))


def regular_size(path: Path) -> int:
    """The size of a file. CheckpointError for a pipe, which to open would wait for ever; OSError as it comes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} cannot be read: it is no regular file")
    return status.st_size


@contextmanager
def local_source(path: Path) -> Iterator[tuple[Source, int]]:
    """A file on this machine, and its size. CheckpointError where it cannot be read."""
    try:
        size = regular_size(path)
        with path.open("rb", buffering=0) as file:

            def source(offset: int, count: int) -> bytes:
                file.seek(offset)
                return file.read(count)

            yield source, size
    except OSError as error:
        raise unreadable(path, error) from error


def damaged(path: Path, problem: str) -> CheckpointError:
    """What is wrong with a file that was not written so."""
    return CheckpointError(f"{path.name} is damaged: {problem}", "fetch the file again")
