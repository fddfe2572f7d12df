"""Addresses as people paste them, and the plain names they mean."""

from __future__ import annotations

import pytest

from moecli.errors import ModelNotFound
from moecli.library import address
from moecli.library.resolve import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MEANT = {
    "o/m": "o/m",
    "  o/m\n": "o/m",
    "o/m@v1": "o/m@v1",
    "o/m@refs/pr/4": "o/m@refs/pr/4",
    "o/m@feature/x": "o/m@feature/x",
    "hf://o/m@refs/pr/4/config.json": "o/m@refs/pr/4",
    "mixtral": "mixtral",
    " mixtral/ ": "mixtral",
    "mixtral@main": "mixtral@main",
    "o/m/": "o/m",
    "o/m//": "o/m",
    "o/m/tree/main": "o/m@main",
    "o/m/tree/v1/sub/folder": "o/m@v1",
    "o/m?library=transformers": "o/m",
    "o/m#usage": "o/m",
    "o/m/blob/main/config.json": "o/m@main",
    f"o/m/commit/{COMMIT}": f"o/m@{COMMIT}",
    "models/o/m": "o/m",
    "models/o/m/tree/x": "o/m@x",
    "o/m.git/": "o/m",
    "https://huggingface.co/o/m": "o/m",
    "HTTPS://HuggingFace.co/o/M": "o/M",
    "http://www.huggingface.co/o/m/": "o/m",
    "https://huggingface.co:443/o/m": "o/m",
    "https://hf.co/o/m": "o/m",
    "hf.co/o/m": "o/m",
    "www.hf.co/o/m/": "o/m",
    "huggingface.co/o/m/tree/main": "o/m@main",
    "https://huggingface.co/o/m/tree/refs%2Fpr%2F1": "o/m@refs/pr/1",
    "https://huggingface.co/o/m/tree/refs/pr/1": "o/m@refs/pr/1",
    "https://huggingface.co/o/m/resolve/v2/model.safetensors?download=true": "o/m@v2",
    "https://huggingface.co/o/m/raw/main/README.md#x": "o/m@main",
    "https://huggingface.co/o/m/discussions/5": "o/m",
    "https://huggingface.co/o/m?x=https://example.org/": "o/m",
    "https://huggingface.co/o/m.git": "o/m",
    "https://huggingface.co/o/m@v1": "o/m@v1",
    "https://huggingface.co/models/o/m": "o/m",
    "https://huggingface.co/api/models/o/m/revision/v3": "o/m@v3",
    "https://somebody:hf_secret@huggingface.co/o/m": "o/m",
    "git@hf.co:o/m.git": "o/m",
    "ssh://git@hf.co/o/m": "o/m",
    "hf://o/m": "o/m",
    "hf://models/o/m": "o/m",
    "hf://o/m@v1/config.json": "o/m@v1",
    "hf://o/m@refs%2Fpr%2F1": "o/m@refs/pr/1",
    "https://hub.example.org:8443/mirror/o/m/tree/main": "o/m@main",
    "hub.example.org:8443/mirror/o/m": "o/m",
    "hf.co/o/m:Q4_K_M": "o/m:Q4_K_M",
    "o/m:Q4_K_M": "o/m:Q4_K_M",
    "o/m:Q4_K_M@v1": "o/m:Q4_K_M@v1",
    "o/m/x.gguf": "o/m:x.gguf",
    "o/m/Q8_0/x-00001-of-00002.gguf": "o/m:Q8_0/x-00001-of-00002.gguf",
    "o/m:Q8_0/x-00001-of-00002.gguf": "o/m:Q8_0/x-00001-of-00002.gguf",
    "https://huggingface.co/o/m/blob/main/Q8_0/x.gguf": "o/m:Q8_0/x.gguf@main",
    "https://huggingface.co/o/m/resolve/v1/x.gguf?download=true": "o/m:x.gguf@v1",
}
REFUSED = {
    "https://huggingface.co/datasets/o/m": "is a dataset",
    "hf://datasets/o/m": "is a dataset",
    "datasets/o/m": "is a dataset",
    "https://hf.co/spaces/o/m": "is a space",
    "https://huggingface.co/papers/2401.04088": "is a paper",
    "https://huggingface.co/collections/o/m-123": "is a collection",
    "https://huggingface.co/o": "names no model",
    "https://huggingface.co/": "names no model",
    "https://huggingface.co": "names no model",
    "hf://": "names no model",
    "https://huggingface.co/../..": "names no model",
    "https://huggingface.co/o/%2e%2e": "names no model",
    "https://huggingface.co/o/m%00": "names no model",
    "https://example.com/o/m": "no address of the Hub",
    "example.com/o/m": "no address of the Hub",
    "https://huggingface.co.example.com/o/m": "no address of the Hub",
    "https://huggingface.co:8000/o/m": "no address of the Hub",
    "ftp://huggingface.co/o/m": "no address of the Hub",
    "file:///o/m": "no address of the Hub",
    "https://[::1/o/m": "no address of the Hub",
    "o/m/extra": "no address of a model",
    "https://x:hf_secret@example.com/o/m\x1b[31m": "no address of the Hub",
}


@pytest.fixture(autouse=True)
def mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@hub.example.org:8443/mirror/")


@pytest.mark.parametrize("text", MEANT)
def test_what_an_address_means(text: str) -> None:
    assert address.plain(text) == MEANT[text]


@pytest.mark.parametrize("text", REFUSED)
def test_an_address_of_something_else(text: str) -> None:
    with pytest.raises(ModelNotFound, match=REFUSED[text]) as caught:
        address.plain(text)
    shown = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.hint and "secret" not in shown and "\x1b" not in shown


@pytest.mark.parametrize("endpoint", ["", "http://[bad", "no address"])
def test_an_endpoint_that_is_none_hides_no_address(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert address.plain("https://hf.co/o/m") == "o/m"


def test_hints_repeat_the_plain_name() -> None:
    ref = resolve("https://huggingface.co/o/m/tree/v1")
    assert (ref.typed, ref.repo, ref.revision, ref.by_hub_id) == ("o/m@v1", "o/m", "v1", True)
    assert ref.missing().hint == "moecli pull o/m@v1"


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "o/m").mkdir(parents=True)
    (tmp_path / "o/m/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve("o/m/").folder is not None
