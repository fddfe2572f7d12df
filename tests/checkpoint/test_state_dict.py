"""Files of torch.save read as data: torch's own loader is the oracle of what is in them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.state_dict import read_header, remote_header
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError
from tests.support.checkpoints import make, prompt
from tests.support.checkpoints import write as write_model
from tests.support.running import load, score
from tests.support.stores import packed
from tests.support.torch_files import rewrite, rezipped

BASE = torch.arange(60, dtype=torch.float32).view(5, 12)
NAMES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip


def module() -> torch.nn.Module:
    found = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5))
    found[0].weight.requires_grad_(False)
    return found


FILES: dict[str, Callable[[], Any]] = {
    "plain": lambda: {"a": BASE, "b": torch.ones(7, dtype=torch.bfloat16)},
    "ordered": lambda: OrderedDict(a=BASE, b=BASE[1]),
    "a module's state, with its metadata": lambda: module().state_dict(),
    "parameters": lambda: dict(module().named_parameters()),
    "tied": lambda: {"embed": BASE, "head": BASE},
    "slices of one storage": lambda: {"first": BASE[:2], "second": BASE[2:], "one": BASE[3, 4], "row": BASE[4, 2:5]},
    "transposed": lambda: {"a": BASE.T, "slice of it": BASE[1:3].T},
    "nothing in it": lambda: {"a": torch.empty(0, 4), "b": torch.empty(3, 0), "c": torch.tensor(1.5)},
    "one row": lambda: {"a": BASE[:1].T, "b": BASE[:1].expand(1, 12)},
    "every dtype": lambda: {name: torch.ones(3, 2).to(dtype) for name, dtype in NAMES.items()},
    "wrapped": lambda: {"epoch": 3, "model": {"a": BASE}, "name": "x"},
    "numbers beside tensors": lambda: {"a": BASE, "version": 2, "lr": 0.5, "name": "x", "done": True, "none": None},
    "many": lambda: {f"layers.{n}.weight": torch.full((n % 7 + 1,), float(n)) for n in range(3000)},
}


@pytest.mark.parametrize("case", FILES)
def test_what_torch_reads_is_found(case: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(FILES[case](), path)
    expected = torch.load(path, weights_only=True)
    expected = {name: each for name, each in expected.get("model", expected).items() if isinstance(each, torch.Tensor)}
    found = read_header(path)
    assert found.keys() == expected.keys()
    content = path.read_bytes()
    for name, tensor in expected.items():
        assert NAMES[found[name].dtype] is tensor.dtype and found[name].shape == tuple(tensor.shape)
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        assert torch.equal(values(content, found[name]).view(torch.uint8), raw), name
    assert remote_header(lambda at, size: content[at : at + size], path.name, len(content)) == {
        name: replace(each, path=Path(path.name)) for name, each in found.items()
    }


def values(content: bytes, stored: StoredTensor) -> torch.Tensor:
    """The numbers of a tensor, row by row, from the bytes of its file."""
    flat = torch.frombuffer(bytearray(content[stored.offset : stored.offset + stored.size] or b"\0"), dtype=torch.uint8)
    flat = flat[: stored.size].view(NAMES[stored.dtype])
    return flat.view(stored.shape[::-1]).T.contiguous().view(-1) if stored.transposed else flat


def without(name: str) -> Callable[[bytes], bytes]:
    return lambda content: rezipped(content, lambda entry, data: None if entry == name else data)


def with_bytes(name: str, data: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda content: rezipped(content, lambda entry, old: data(old) if entry == name else old)


def patched(place: int, data: bytes) -> Callable[[bytes], bytes]:
    """Some bytes of the last 22, the record that ends an archive as Python writes it, replaced."""

    def change(content: bytes) -> bytes:
        content = rezipped(content)
        at = len(content) - place
        return content[:at] + data + content[at + len(data) :]

    return change


def with_two_pickles(content: bytes) -> bytes:
    out = io.BytesIO(rezipped(content))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("b/data.pkl", b"\x80\x02}.")
    return out.getvalue()


def with_an_alias(content: bytes) -> bytes:
    """Two rows of the directory for the same bytes."""
    content = rezipped(content)
    start, length = struct.unpack("<2I", content[-10:-2][4:] + content[-10:-2][:4])
    directory = content[start : start + length]
    row = directory[: 46 + sum(struct.unpack_from("<3H", directory, 28))]
    counts = [count + 1 for count in struct.unpack("<2H", content[-14:-10])]
    end = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, *counts, length + len(row), start, 0)
    return content[:start] + directory + row + end


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "compressed": (lambda c: rezipped(c, method=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "a bomb": (lambda c: rezipped(c, lambda name, data: bytes(10**7), zipfile.ZIP_BZIP2), "compressed or encrypted"),
    "cut short": (lambda c: c[:-100], "no directory at its end"),
    "only its beginning": (lambda c: c[:200], "no directory at its end"),
    "another zip": (without("data.pkl"), "without a data.pkl"),
    "two pickles": (with_two_pickles, "without a data.pkl, or of several"),
    "a storage missing": (without("data/0"), "storage of 'a' is missing"),
    "a storage too short": (with_bytes("data/0", lambda d: d[:-4]), "not as large as it claims"),
    "a storage too long": (with_bytes("data/0", lambda d: d + bytes(4)), "not as large as it claims"),
    "big-endian": (with_bytes("byteorder", lambda d: b"big"), "not little-endian"),
    "something behind": (lambda c: c + b"x", "something follows"),
    "no bytes": (lambda c: b"", "no file of torch"),
    "text": (lambda c: b"version https://git-lfs.github.com/spec/v1\n", "no file of torch"),
    "the old format": (lambda c: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
    "an entry twice": (with_an_alias, "overlaps another, or is there twice"),
    "a directory elsewhere": (patched(6, b"\0\0\0\0"), "not where it says"),
    "a directory too long": (patched(10, b"\xff\xff\xff\x7f"), "not where it says"),
    "more entries than rows": (patched(14, b"\x09\x00\x09\x00"), "directory is cut short|cannot be read"),
    "fewer entries than rows": (patched(14, b"\x01\x00\x01\x00"), "holds more than its entries"),
    "two directories": (lambda c: c[:-6] + bytes(4) + c[-2:], "two directories that differ"),
    "of several disks": (patched(18, b"\x01\x00"), "one part of several"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_sound_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": BASE}, path)
    change, message = BROKEN[case]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert caught.value.hint


OTHERS: dict[str, tuple[Any, str]] = {
    "a whole module": (torch.nn.Linear(2, 3), r"names torch\.nn\.modules\.linear\.Linear"),
    "strides with gaps": ({"a": BASE[:, :3]}, "do not lie one behind another"),
    "one number repeated": ({"a": torch.ones(1).expand(4)}, "do not lie one behind another"),
    "three axes turned": ({"a": BASE.view(5, 3, 4).permute(2, 1, 0)}, "do not lie one behind another"),
    "a list": ([BASE], "holds no dict of tensors"),
    "a tensor alone": (BASE, "holds no dict of tensors"),
    "a list in it": ({"a": BASE, "b": [1]}, "'b' is no tensor"),
    "a sparse tensor": ({"a": torch.eye(3).to_sparse()}, r"names torch\._utils\._rebuild_sparse_tensor"),
    "complex numbers": ({"a": torch.ones(2, dtype=torch.complex64)}, r"names torch\.ComplexFloatStorage"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_model_is_refused(case: str, tmp_path: Path) -> None:
    content, message = OTHERS[case]
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "x.bin")


def test_a_python_zip_of_the_same_entries_is_read(tmp_path: Path) -> None:
    """Other programs write the layout too, without torch's padding."""
    torch.save({"a": BASE}, tmp_path / "x.bin")
    content = rezipped((tmp_path / "x.bin").read_bytes())
    (tmp_path / "x.bin").write_bytes(content)
    assert torch.equal(values(content, read_header(tmp_path / "x.bin")["a"]).view(5, 12), BASE)


def test_a_header_that_contradicts_the_directory(tmp_path: Path) -> None:
    torch.save({"a": BASE}, tmp_path / "x.bin")
    content = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(content.replace(b"x/data.pkl", b"x/data.pkk", 1))
    with pytest.raises(CheckpointError, match="is not what its directory says"):
        read_header(tmp_path / "x.bin")


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_scores_the_same_to_the_bit(shards: int, tmp_path: Path) -> None:
    folder = write_model(make("mixtral"), tmp_path / "safetensors")
    ids = prompt(40)
    assert torch.equal(score(load(rewrite(folder, tmp_path / "torch", shards)), ids), score(load(folder), ids))


@pytest.mark.slow
def test_matrices_stored_by_columns(tmp_path: Path) -> None:
    """They run, and are packed in strips to the same bytes."""
    folder = write_model(make("mixtral", hidden_size=64, intermediate_size=96), tmp_path / "safetensors")
    turned = rewrite(folder, tmp_path / "torch")
    tensors = torch.load(turned / "pytorch_model.bin", weights_only=True)
    torch.save(
        {name: each.T.contiguous().T if each.dim() == 2 else each for name, each in tensors.items()},
        turned / "pytorch_model.bin",
    )
    assert all(each.transposed for each in Checkpoint.open(turned).tensors.values() if len(each.shape) == 2)
    ids = prompt(40)
    for dtype in ("fp32", "bf16", "q4"):
        assert torch.equal(score(load(turned, dtype), ids), score(load(folder, dtype), ids))
        one, other = (packed(each, tmp_path / f"{each.name}-{dtype}", dtype).folder for each in (turned, folder))
        for path in other.glob("*.safetensors"):
            assert (one / path.name).read_bytes() == path.read_bytes()


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder = rewrite(write_model(make("mixtral"), tmp_path / "safetensors"), tmp_path / "torch", 3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 shards are missing, pytorch_model-00002-of-00003\.bin first"):
        Checkpoint.open(folder)


def test_safetensors_come_first(tmp_path: Path) -> None:
    folder = write_model(make("mixtral"), tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    (folder / "consolidated.00.pth").write_bytes(b"never opened")
    assert {stored.path.name for stored in Checkpoint.open(folder).tensors.values()} == {"model.safetensors"}


@pytest.mark.parametrize("suffix", ["-000.bin", "-TP-000.bin"])
def test_shards_cut_for_tensor_parallelism(suffix: str, tmp_path: Path) -> None:
    """Each file holds a part of every matrix, under one name."""
    for part in range(2):
        torch.save(
            {"a": BASE[part : part + 2]}, tmp_path / f"pytorch_model-00001{suffix}".replace("000.bin", f"00{part}.bin")
        )
    with pytest.raises(CheckpointError, match=r"cut for tensor parallelism: .*0\.bin holds a part"):
        Checkpoint.open(tmp_path)
