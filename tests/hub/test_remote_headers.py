"""What is asked of a repository to know its tensors: which files, which bytes, and never more than that."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from moecli.errors import CheckpointError, ConfigError, NetworkError
from moecli.hub import bounds, headers
from moecli.hub.headers import Repository, read_index, read_remote, shards
from moecli.model import catalog
from tests.support import hub_server
from tests.support.headers import Tensors, header, shard_names
from tests.support.hub_server import COMMIT, File

REPO = "somebody/some-moe"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MANY: Tensors = {f"tensor.{number:06}": ("BF16", (2, 3)) for number in range(2000)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch, timeout=1) as running:
        running.put(f"{REPO}/config.json", json.dumps(catalog.find("mixtral").config()).encode())
        yield running


def holds(hub: hub_server.Hub, name: str, tensors: Tensors) -> tuple[int, int]:
    """The length of the header that is there, and the size of the file."""
    hub.files[f"{REPO}/{name}"] = file = File(*header(tensors))
    return int.from_bytes(file.start[:8], "little"), file.size


def ranges(hub: hub_server.Hub, name: str) -> list[str | None]:
    return [sent.get("range") for sent in hub.requests(name)]


@pytest.mark.parametrize(
    ("guess", "asked"),
    [(0, "bytes=0-65535"), (100, "bytes=0-99"), (7, "bytes=0-6"), (10**6, "bytes=0-999999")],
)
def test_a_header_takes_a_guess_and_then_the_rest(guess: int, asked: str, hub: hub_server.Hub) -> None:
    length, size = holds(hub, WEIGHTS, MANY)
    assert length > 100_000
    if guess == 7:
        with pytest.raises(CheckpointError, match="is damaged: its header claims"):
            Repository(REPO, None).header(WEIGHTS, guess)
        return
    found = Repository(REPO, None).header(WEIGHTS, guess)
    assert found is not None
    tensors, read = found
    first = guess or 65536
    assert ranges(hub, WEIGHTS) == [asked] if first > length else [asked, f"bytes={first}-{8 + length - 1}"]
    assert read == (min(first, size) if first > length else 8 + length)
    assert list(tensors) == list(MANY)
    begin = 8 + length
    assert [(each.offset, each.size, each.shape) for each in tensors.values()] == [
        (begin + 12 * number, 12, (2, 3)) for number in range(2000)
    ]
    assert hub.sent_of[WEIGHTS] == read


def test_headers_of_several_files_and_of_none(hub: hub_server.Hub) -> None:
    one, _ = holds(hub, "a.safetensors", {"x": ("F32", (2,))})
    holds(hub, "c.safetensors", MANY)
    found = Repository(REPO, COMMIT).headers({"a.safetensors": 50, "b.safetensors": 0, "c.safetensors": 200_000})
    assert list(found) == ["a.safetensors", "c.safetensors"]
    assert list(found["a.safetensors"][0]) == ["x"] and found["a.safetensors"][1] == max(50, 8 + one)
    assert ranges(hub, "b.safetensors") == ["bytes=0-65535"] and ranges(hub, "c.safetensors") == ["bytes=0-199999"]


@pytest.mark.parametrize("too_much", [False, True])
def test_all_headers_together_have_a_bound(
    too_much: bool, hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = holds(hub, "a.safetensors", {"x": ("F32", (2,))})
    other, _ = holds(hub, "b.safetensors", {"y": ("F32", (3,))})
    monkeypatch.setattr(bounds, "LARGEST_HEADERS", one + other - too_much)
    source = Repository(REPO, None)
    assert source.header("a.safetensors", 0) is not None
    if too_much:
        with pytest.raises(
            CheckpointError, match=f"b.safetensors of {REPO} is damaged: its header claims {other} bytes"
        ):
            source.header("b.safetensors", 0)
    else:
        assert source.header("b.safetensors", 0) is not None


@pytest.mark.parametrize(
    ("length", "size", "fits"), [(2, 10, True), (2, 9, False), (1, 100, False), (92, 100, True), (93, 100, False)]
)
def test_a_header_is_within_its_file(length: int, size: int, fits: bool, hub: hub_server.Hub) -> None:
    start = length.to_bytes(8, "little") + b"{}".ljust(length)[:length]
    hub.files[f"{REPO}/{WEIGHTS}"] = File(start[:size], size)
    if fits:
        found = Repository(REPO, None).header(WEIGHTS, 0)
        assert found == ({}, min(65536, size))
    else:
        with pytest.raises(CheckpointError, match=f"{WEIGHTS} of {REPO} is damaged: its header claims {length} bytes"):
            Repository(REPO, None).header(WEIGHTS, 0)


@pytest.mark.parametrize("ranged", [True, False])
def test_a_server_that_gives_all_is_left_when_there_is_enough(ranged: bool, hub: hub_server.Hub) -> None:
    length, _ = holds(hub, WEIGHTS, MANY)
    hub.ranges = ranged
    found = Repository(REPO, None).header(WEIGHTS, 1000)
    assert found is not None and found[1] == 8 + length and list(found[0]) == list(MANY)


def test_what_lies_too_far_in_a_file_is_not_waited_for(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files[f"{REPO}/{WEIGHTS}"], hub.ranges = File(b"", 2**40), False
    monkeypatch.setattr(bounds, "LARGEST_HEADERS", 5000)
    source = Repository(REPO, None)
    assert source._read(WEIGHTS, 5000, 10).data == bytes(10)
    with pytest.raises(NetworkError, match=f"the server sends no part of {WEIGHTS}, only all of it") as refused:
        source._read(WEIGHTS, 5001, 10)
    assert refused.value.hint == "is HF_ENDPOINT right?"
    hub.ranges = True
    assert source._read(WEIGHTS, 5001, 10).data == bytes(10)


@pytest.mark.parametrize(("largest", "whole"), [(10, True), (9, False), (100, True)])
def test_a_small_file_has_a_largest_size(largest: int, whole: bool, hub: hub_server.Hub) -> None:
    hub.put(f"{REPO}/some.json", b"0123456789")
    if whole:
        piece = Repository(REPO, None).fetch("some.json", largest)
        assert piece is not None and (piece.data, piece.file_size, piece.commit) == (b"0123456789", 10, COMMIT)
    else:
        with pytest.raises(NetworkError, match=f"some.json of {REPO} is larger than 9 bytes, which cannot be right"):
            Repository(REPO, None).fetch("some.json", largest)
    assert ranges(hub, "some.json") == [None] and Repository(REPO, None).fetch("none.json", 9) is None


def test_an_index_guesses_how_long_headers_are() -> None:
    index = {"ab": "two", "c" * 50: "one", "de": "two", "f": "two"}
    assert dict(shards(REPO, index)) == {"one": 150 + 1024, "two": 102 + 102 + 101 + 1024}
    assert list(shards(REPO, index)) == ["one", "two"]


@pytest.mark.parametrize("count", [bounds.MOST_SHARDS, bounds.MOST_SHARDS + 1])
def test_an_index_names_no_more_files_than_there_can_be(count: int) -> None:
    index = {str(number): f"{number}.safetensors" for number in range(count)}
    assert read_index(REPO, json.dumps({"weight_map": index}).encode()) == index
    if count <= bounds.MOST_SHARDS:
        assert len(shards(REPO, index)) == count
    else:
        with pytest.raises(CheckpointError, match=f"the index of {REPO} names {count} files, which cannot be right"):
            shards(REPO, index)


def test_json_with_more_values_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"weight_map": {"a": "x", "b": "y"}, "more": [1]}'
    monkeypatch.setattr(bounds, "MOST_VALUES", 5)
    assert read_index(REPO, text) == {"a": "x", "b": "y"} and headers.json_on_hub(text, "some.json")["more"] == [1]
    monkeypatch.setattr(bounds, "MOST_VALUES", 4)
    for read, what in (
        (read_index, f"the index of {REPO}"),
        (lambda _, data: headers.json_on_hub(data, "x"), "x on the Hub"),
    ):
        with pytest.raises(NetworkError, match=f"{what} holds 5 values, which cannot be right"):
            read(REPO, text)
    with pytest.raises(ConfigError, match=r"some.json on the Hub is not readable JSON"):
        headers.json_on_hub(b"{", "some.json")


def test_a_remote_model_by_an_index(hub: hub_server.Hub) -> None:
    names = shard_names(3)
    lengths = [
        holds(hub, name, {f"t{number}": ("BF16", (4, 4)), f"u{number}": ("F32", (2,))})[0]
        for number, name in enumerate(names)
    ]
    index = json.dumps({"weight_map": {f"t{number}": name for number, name in enumerate(names)}}).encode()
    hub.put(f"{REPO}/{INDEX}", index)
    found = read_remote(REPO)
    assert sorted(found.tensors) == ["t0", "t1", "t2", "u0", "u1", "u2"]
    assert {name: each.path.name for name, each in found.tensors.items()} == {
        f"{letter}{n}": names[n] for n in range(3) for letter in "tu"
    }
    config = hub.files[f"{REPO}/config.json"].start
    assert found.config == json.loads(config) and found.commit == COMMIT and found.unread is None
    sizes = [min(2 + 100 + 1024, hub.files[f"{REPO}/{name}"].size) for name in names]
    assert found.bytes_read == len(config) + len(index) + sum(
        max(size, 8 + length) for size, length in zip(sizes, lengths, strict=True)
    )
    assert found.bytes_read == hub.sent
    paths = [path for path, _ in hub.seen]
    assert paths[0] == f"/{REPO}/resolve/main/config.json" and all(f"/resolve/{COMMIT}/" in path for path in paths[1:])
    assert not hub.requests(WEIGHTS)


def test_a_remote_model_in_one_file(hub: hub_server.Hub) -> None:
    holds(hub, WEIGHTS, {"a": ("BF16", (4, 4))})
    found = read_remote(REPO, COMMIT)
    assert list(found.tensors) == ["a"] and found.bytes_read == hub.sent
    assert [path.rpartition("/")[2] for path, _ in hub.seen] == ["config.json", INDEX, WEIGHTS]
    assert all(f"/resolve/{COMMIT}/" in path for path, _ in hub.seen)


def test_only_a_listing_tells_of_files_without_an_index(hub: hub_server.Hub) -> None:
    asked: list[str | None] = []

    def listed(commit: str | None) -> list[str]:
        asked.append(commit)
        return ["README.md", "config.json", *shard_names(2)]

    for name in shard_names(2):
        holds(hub, name, {name: ("BF16", (1,))})
    found = read_remote(REPO, None, listed)
    assert sorted(found.tensors) == list(shard_names(2)) and asked == [COMMIT]
    assert found.bytes_read == hub.sent


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "holds no weights: no *.safetensors"), (["x.ckpt"], "holds no weights that can be read, only x.ckpt"),
        (["pytorch_model-00001-TP-000.bin"], "the shards are cut for tensor parallelism"),
    ],
)  # fmt: skip
def test_a_model_whose_weights_cannot_be_read_is_still_known(names: list[str], why: str, hub: hub_server.Hub) -> None:
    found = read_remote(REPO, None, lambda commit: names)
    config = hub.files[f"{REPO}/config.json"].start
    assert found.tensors == {} and found.bytes_read == len(config) and found.commit == COMMIT
    assert found.unread is not None and why in found.unread


def test_files_that_an_index_names_in_vain(hub: hub_server.Hub) -> None:
    """A whole file is taken instead; without it the first that is not there is named."""
    holds(hub, "a.safetensors", {"x": ("BF16", (1,))})
    hub.put(f"{REPO}/{INDEX}", json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}).encode())
    with pytest.raises(NetworkError, match=f"{REPO} names the file 'b.safetensors' and does not hold it"):
        read_remote(REPO)
    holds(hub, WEIGHTS, {"x": ("BF16", (1,)), "y": ("BF16", (2,))})
    assert {each.path.name for each in read_remote(REPO).tensors.values()} == {WEIGHTS}


def test_a_repository_without_configuration(hub: hub_server.Hub) -> None:
    del hub.files[f"{REPO}/config.json"]
    holds(hub, WEIGHTS, {"x": ("BF16", (1,))})
    with pytest.raises(NetworkError, match=f"{REPO} holds no config.json") as refused:
        read_remote(REPO)
    assert refused.value.hint
