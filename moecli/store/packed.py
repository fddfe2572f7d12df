"""A packed store opened: every tensor's and record's place, held against its own config.json, manifest and headers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.headers import read_header
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError, reading, unreadable
from moecli.formats import PLAIN
from moecli.formats.words import is_dtype
from moecli.model import families
from moecli.model.spec import ModelSpec
from moecli.model.tensors import Tensor
from moecli.store import manifest
from moecli.store.checksums import file_checksums
from moecli.store.expert_record import Record
from moecli.store.layout import DENSE, EXPERTS, StoreLayout, are_possible, tensor_name
from moecli.store.manifest import Origin, StoreManifest, damaged
from moecli.text.files import is_text

PARTIAL = ".partial"  # what the name of an unfinished store ends with
REMOVED = ".removed"  # that of one which is being deleted


@dataclass(frozen=True, slots=True)
class PackedStore:
    """A model on disk in one format, all of it found and of the right size. Contents are for `verify`."""

    folder: Path
    manifest: StoreManifest
    layout: StoreLayout
    checkpoint: Checkpoint
    copy: Path | None = None  # a folder on another disk that holds the same files

    @classmethod
    def open(cls, folder: Path) -> PackedStore:
        """Read manifest, config.json and headers. CheckpointError or ConfigError with a hint if they are unfit."""
        refuse_unfinished(folder)
        found = manifest.read(folder)
        layout = read_layout(folder, found)
        _check_sizes(folder, found)
        return cls(folder, found, layout, _checkpoint(folder, layout))

    def beside(self, copy: Path) -> PackedStore:
        """The same, read from a copy as well. CheckpointError where that is not whole, or not one of this store."""
        other = PackedStore.open(copy)
        if copy.samefile(self.folder):
            raise CheckpointError(f"{copy} is the packed model itself", "name a folder with a copy, on another disk")
        if other.manifest != self.manifest:
            raise CheckpointError(
                f"{copy} is no copy of {self.folder}: its {manifest.FILE} is another",
                f"copy the folder as it is: cp -r {self.folder} {copy}",
            )
        return replace(self, copy=copy)

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.folder.resolve().name

    @property
    def dtype(self) -> str:
        """The word for the formats that it is in."""
        return self.layout.dtype

    @property
    def compute(self) -> str:
        """The precision of activations and unquantised tensors."""
        return self.layout.compute

    @property
    def source(self) -> Origin:
        return self.manifest.origin

    @property
    def spec(self) -> ModelSpec:
        return self.layout.spec

    @property
    def bytes(self) -> int:
        """What all files take, the manifest aside."""
        return sum(checksums.bytes for checksums in self.manifest.files.values())

    def dense(self, tensor: Tensor) -> tuple[StoredTensor, str]:
        """Where a dense tensor lies and its format; a quantised one is a flat run of bytes."""
        return self.checkpoint[tensor_name(tensor)], self.layout.roles[tensor.role]

    def record(self, layer: int) -> Record:
        """How each expert of a layer lies."""
        return self.layout.records[layer]

    def experts(self, layer: int) -> StoredTensor:
        """The records of a layer: uint8 [E, stride], from a page of their file on."""
        return self.checkpoint[f"layers.{layer}.{EXPERTS}"]


def is_partial(folder: Path) -> bool:
    """Whether this is what packing leaves when it is interrupted."""
    return folder.name.endswith(PARTIAL)


def is_removed(folder: Path) -> bool:
    """Whether this is what a removal leaves when it is interrupted."""
    return folder.name.endswith(REMOVED)


def refuse_unfinished(folder: Path) -> None:
    """CheckpointError for what is not a store any more, or not yet."""
    if is_removed(folder):
        raise CheckpointError(f"{folder} was being deleted", f"moecli rm {folder}")
    if is_partial(folder):
        raise CheckpointError(f"{folder} is not finished", "give the same command again: it goes on from there")


def _check_sizes(folder: Path, found: StoreManifest) -> None:
    """Every file that the manifest names is there and of its size."""
    for name, checksums in found.files.items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            raise damaged(folder, f"its {name} is missing") from None
        except OSError as error:
            raise unreadable(folder / name, error) from error
        if size != checksums.bytes:
            raise damaged(folder, f"its {name} has {size} bytes instead of {checksums.bytes}")


def read_layout(folder: Path, found: StoreManifest) -> StoreLayout:
    """What config.json, which must be the one that was packed, and the formats imply; the manifest may only agree."""
    spec = families.read_spec(families.load_config(folder / "config.json"))
    if "lm_head" in found.roles:  # one of its own, whatever config.json says
        spec = replace(spec, tied_embeddings=False)
    with reading(folder / "config.json"):
        checksums = file_checksums(folder / "config.json")
    if found.files.get("config.json") != checksums:
        raise damaged(folder, "its config.json does not match its checksum")
    known = is_dtype(found.dtype) and found.compute in PLAIN
    if not known or not are_possible(spec, found.dtype, found.compute, found.roles):
        raise damaged(folder, f"its {manifest.FILE} names formats that moecli does not give to its tensors")
    layout = StoreLayout(spec, found.dtype, found.compute, found.roles)
    if found.records != describe_records(layout):
        raise damaged(folder, f"its {manifest.FILE} describes records of another layout")
    if strangers := [name for name in found.files if name not in layout.sizes and not is_text(name)]:
        raise damaged(folder, f"its {manifest.FILE} names a file of no use, '{min(strangers)[:80]}'")
    for name, size in layout.sizes.items():
        entry = found.files.get(name)
        if entry is None or entry.bytes != size or len(entry.parts) != len(layout.parts(name)):
            raise damaged(folder, f"its {manifest.FILE} does not describe {name} as config.json implies it")
    return layout


def describe_records(layout: StoreLayout) -> dict[str, object]:
    return {str(layer): manifest.describe(record, layout.experts[layer]) for layer, record in layout.records.items()}


def _checkpoint(folder: Path, layout: StoreLayout) -> Checkpoint:
    """The dense tensors by name, and the records of each layer as `layers.3.experts`."""
    tensors: dict[str, StoredTensor] = {}
    for name in layout.sizes:
        header = read_header(folder / name)
        with reading(folder / name), (folder / name).open("rb") as file:
            if file.read(len(layout.header(name))) != layout.header(name):
                raise damaged(folder, f"the header of {name} is not the one config.json implies")
        if name == DENSE:
            tensors |= header
        else:
            tensors[f"layers.{layout.layer_of(name)}.{EXPERTS}"] = header[EXPERTS]
    return Checkpoint(tensors)
