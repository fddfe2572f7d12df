"""What a store is packed from: which files belong to it, when it counts as changed, and what cannot be packed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import moecli
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError, ConfigError, MoecliError
from moecli.store.manifest import Origin
from moecli.store.source import (
    announced,
    check_runs,
    fingerprint,
    header_fingerprint,
    open_source,
    origin_of,
)
from moecli.text.files import texts_in
from tests.support.specs import spec_of

TINY = Path(moecli.__file__).parent / "tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The built-in model, to be changed."""
    return shutil.copytree(TINY, tmp_path / "tiny")


def test_texts_are_those_that_are_there_by_name(tmp_path: Path) -> None:
    assert texts_in(tmp_path) == {}
    names = [
        "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json",
        "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    for name in (*reversed(names), "README.md"):
        (tmp_path / name).touch()
    assert list(texts_in(tmp_path).items()) == [(name, tmp_path / name) for name in names]
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "config.json" not in texts_in(tmp_path)


def test_a_fingerprint_by_hand(folder: Path) -> None:
    """Names, sizes, times and headers of the weights; all of the texts."""
    os.utime(folder / "model.safetensors", ns=(7, 1234567890123456789))
    data = (folder / "model.safetensors").read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    parts = [f"model.safetensors\0{len(data)}\0{1234567890123456789}\0".encode(), header]
    for path in texts_in(folder).values():
        parts += [path.name.encode() + b"\0", path.read_bytes()]
    assert fingerprint(folder, open_source(folder)) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_any_change_of_a_file_is_seen_and_of_others_none(folder: Path) -> None:
    weights = open_source(folder)
    before = fingerprint(folder, weights)
    (folder / "README.md").write_text("new")
    os.utime(folder / "config.json")
    assert fingerprint(folder, weights) == before
    seen = {before}

    def changed() -> bool:
        found = fingerprint(folder, weights)
        new = found not in seen
        seen.add(found)
        return new

    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert changed()
    for path in texts_in(folder).values():
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert changed()
        path.write_bytes(content)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert changed()
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(20)
        file.write(b"!")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert changed()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        fingerprint(folder, weights)


def test_weights_of_torch_are_known_by_their_tensors(folder: Path) -> None:
    """Their headers are spread over the file."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    weights = open_source(folder)
    status = (folder / "pytorch_model.bin").stat()
    tensors = header_fingerprint(weights.checkpoint.tensors.values())
    parts = [f"pytorch_model.bin\0{status.st_size}\0{status.st_mtime_ns}\0{tensors}".encode()]
    for path in texts_in(folder).values():
        parts += [path.name.encode() + b"\0", path.read_bytes()]
    assert fingerprint(folder, weights) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_headers_are_known_whatever_their_order() -> None:
    one = StoredTensor("a", "F32", (2, 3), Path("some/x.safetensors"), 8, 24)
    other = StoredTensor("b", "BF16", (4,), Path("y.safetensors"), 16, 8)
    text = "x.safetensors a F32 (2, 3) 8\ny.safetensors b BF16 (4,) 16"
    assert header_fingerprint([other, one]) == hashlib.sha256(text.encode()).hexdigest()
    for change in ({"name": "c"}, {"dtype": "F16"}, {"shape": (3, 2)}, {"offset": 9}, {"path": Path("z.safetensors")}):
        assert header_fingerprint([replace(one, **change), other]) != header_fingerprint([one, other])


def test_an_origin_is_a_commit_or_a_folder(folder: Path) -> None:
    weights = open_source(folder)
    mark = fingerprint(folder, weights)
    assert origin_of("tiny", None, None, folder, weights) == Origin("tiny", None, None, str(folder.resolve()), mark)
    assert origin_of("tiny", "a/b", "c0", folder, weights) == Origin("tiny", "a/b", "c0", None, mark)
    odd = folder.rename(folder.with_name(os.fsdecode(b"caf\xe9")))
    found = origin_of(odd.name, None, None, odd, open_source(odd))
    assert found.model == "caf\\udce9" and found.path == f"{odd.parent.resolve()}/caf\\udce9"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("a/b", "c0", "f"), ("a/b", "c0", "g"), True), (("a/b", "c0", "f"), ("a/b", "c1", "f"), False),
        (("a/b", "c0", "f"), ("a/x", "c0", "f"), False), (("a/b", "c0", "f"), (None, None, "f"), False),
        ((None, None, "f"), (None, None, "f"), True), ((None, None, "f"), (None, None, "g"), False),
        (("a/b", None, "f"), ("a/x", None, "f"), True), ((None, "c0", "f"), (None, "c0", "g"), False),
        ((None, None, "f"), ("a/b", "c0", "f"), True),
    ],
)  # fmt: skip
def test_origins_that_are_one(one: tuple[str, ...], other: tuple[str, ...], same: bool) -> None:
    """A commit of a repository; without both, the same files."""
    made = [Origin("x", repo, revision, None, mark) for repo, revision, mark in (one, other)]
    assert made[0].is_same(made[1]) == same


def test_what_no_engine_runs_is_refused_by_what_it_lacks() -> None:
    check_runs(spec_of("mixtral"), "mixtral")
    spec = spec_of("jetmoe-8b")
    with pytest.raises(ConfigError, match=f"{spec.family} models cannot be run yet: the engine lacks ") as refused:
        check_runs(spec, "some-name")
    assert all(each in refused.value.message for each in spec.lacks)
    assert refused.value.hint == "moecli inspect and moecli memory know them: moecli inspect some-name"


def test_quantised_weights_are_refused_whatever_config_json_says(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    codes = tensors | {name: torch.zeros(8, 4, dtype=torch.uint8), f"{name}_scale": torch.ones(8, 1)}
    save_file(codes, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"the checkpoint is quantised \(.+\), which cannot be run yet"
    ) as refused:
        open_source(folder)
    assert refused.value.hint == "use an unquantised bf16 or fp16 revision"


def test_what_is_left_out_is_noted(folder: Path) -> None:
    assert open_source(folder).notes == ()
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    inside = {name.replace("model.", "model.language_model.", 1): each for name, each in tensors.items()}
    towers = {f"model.visual.blocks.{n}.weight": torch.zeros(2, 2) for n in range(3)}
    save_file(inside | towers, folder / "model.safetensors")
    left_out = "3 tensors of vision or audio towers are left out: the text model runs alone"
    assert open_source(folder).notes == (left_out,)
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    said, other = open_source(folder).notes
    assert other == left_out
    assert said.startswith("config.json says that the weights are ") and said.endswith("none is: they run as they are")


def test_headers_are_not_asked_for_before_the_configuration_is_fit() -> None:
    asked: list[int] = []
    with pytest.raises(MoecliError):
        announced("x", {"model_type": "mixtral", "hidden_size": "wide"}, lambda: asked.append(1) or {})
    assert not asked


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(MoecliError) as refused:
            open_source(path)
        assert str(path) in refused.value.message
