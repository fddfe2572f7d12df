"""Fixtures of the text tests: real tokenizers in model folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from moecli.text.tokenizer import Tokenizer
from tests.support.toy_tokenizers import byte_level, metaspace, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A model folder with these files; a `tokenizer_config.json` is a dict, and so on."""

    def make(backend: Backend, **files: Any) -> Path:
        backend.save(str(tmp_path / "tokenizer.json"))
        for name, value in files.items():
            write_json(tmp_path / f"{name}.json", value)
        return tmp_path

    return make


def _loaded(backend: Backend, bos: str, eos: str, path: Path) -> Tokenizer:
    backend.save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", {"bos_token": bos, "eos_token": eos})
    return Tokenizer.load(path)


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _loaded(byte_level(), "<|bos|>", "<|eos|>", tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="session")
def pieces_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _loaded(metaspace(), "<s>", "</s>", tmp_path_factory.mktemp("pieces"))


@pytest.fixture(params=["bytes", "pieces"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return found


@pytest.fixture(params=[byte_level, metaspace])
def backend(request: pytest.FixtureRequest) -> Backend:
    built: Backend = request.param()
    return built
