"""One tensor of a checkpoint as it lies in a file, whatever the file's format."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moecli.errors import CheckpointError, unreadable

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint
    from moecli.formats.published import Blocks

Source = Callable[[int, int], bytes]  # offset, size -> that many bytes; fewer only where the file ends

# Bytes per number of the safetensors dtypes; sub-byte types are left out and refused.
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `size` bytes at `offset` of `path`, row by row; a `transposed` matrix column by column.

    With an `encoding` its numbers are to be decoded: `shape` is theirs, and the place that of their codes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int
    transposed: bool = False
    encoding: Encoding | None = None

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """What lies in the file under a name of its own: the numbers, or their codes and what belongs to those."""
        return (self,) if self.encoding is None else self.encoding.parts

    def at(self, path: Path) -> StoredTensor:
        """The same in a file of another name."""
        return self.located(lambda part: replace(part, path=path))

    def located(self, place: Callable[[StoredTensor], StoredTensor]) -> StoredTensor:
        """The same where `place` says that each of its parts lies now."""
        if self.encoding is None:
            return place(self)
        parts = tuple(map(place, self.encoding.parts))
        codes = parts[0]
        return replace(
            self, path=codes.path, offset=codes.offset, size=codes.size, encoding=replace(self.encoding, parts=parts)
        )


@dataclass(frozen=True, slots=True)
class Encoding:
    """How numbers are made of the tensors of a file. A subclass each; an instance for each tensor that is encoded.

    `parts` are those tensors, the codes first. `format` is the plain format that numbers are decoded to.
    """

    parts: tuple[StoredTensor, ...]
    format: str

    @property
    def name(self) -> str:
        """How a screen calls it."""
        raise NotImplementedError

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        """Rows of the matrix, or of the stack of matrices one below another: [count, columns].

        CheckpointError where what lies there cannot be numbers.
        """
        raise NotImplementedError

    def columns(self, checkpoint: Checkpoint, top: int, height: int, first: int, count: int) -> Tensor:
        """Columns of the rows from `top` on: [height, count]. A subclass whose codes lie by columns reads no others."""
        return self.rows(checkpoint, top, height)[:, first : first + count]

    def row_blocks(self, checkpoint: Checkpoint, first: int, count: int) -> Blocks | None:
        """The same rows as they lie, where they are in a format that is kept; `name` is that of the format then."""
        return None

    def column_blocks(self, checkpoint: Checkpoint, top: int, first: int, count: int) -> Blocks | None:
        """Columns of the matrix whose first row is `top`, each as a row of what is returned."""
        return None


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
