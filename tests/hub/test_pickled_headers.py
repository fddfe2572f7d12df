"""What a file of torch holds, asked of the Hub: a few parts of it, and nothing from a server that sends no parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from moecli.checkpoint.state_dict import read_header
from moecli.errors import CheckpointError, MoecliError
from moecli.hub import bounds
from moecli.hub.headers import Repository
from tests.support import hub_server
from tests.support.hub_server import File
from tests.support.torch_files import saved

REPO, FILE = "somebody/torch", "pytorch_model.bin"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch, timeout=2) as running:
        yield running


@pytest.mark.parametrize(("count", "requests"), [(1, 1), (400, 3), (6000, 5)])
def test_a_few_requests_tell_all_names(hub: hub_server.Hub, tmp_path, count: int, requests: int) -> None:
    """A small file comes whole; of others the beginning, the end and the rest of the pickle."""
    content = saved({f"layers.{n}.weight": torch.full((300,), float(n)) for n in range(count)})
    (tmp_path / FILE).write_bytes(content)
    hub.put(f"{REPO}/{FILE}", content)
    found = Repository(REPO, None).header(FILE, 0)
    assert found is not None and found[0].keys() == (here := read_header(tmp_path / FILE)).keys()
    assert all(each.at(here[name].path) == here[name] for name, each in found[0].items())
    assert len([path for path, _ in hub.seen if path.endswith(FILE)]) <= requests
    assert found[1] <= max(len(content), 3_000_000)


def test_a_file_that_is_not_there(hub: hub_server.Hub) -> None:
    hub.put(f"{REPO}/README.md", b"nothing else")
    assert Repository(REPO, None).header(FILE, 0) is None


def test_a_server_that_sends_only_whole_files(hub: hub_server.Hub) -> None:
    """To skip a shard's gigabytes would be to fetch them."""
    content = saved({"a": torch.zeros(10)})
    hub.files[f"{REPO}/{FILE}"] = File(content[:400], 2**40, content[-400:])
    hub.ranges = False
    with pytest.raises(MoecliError):
        Repository(REPO, None).header(FILE, 0)
    assert hub.sent < 2 * bounds.LARGEST_HEADERS


def test_a_directory_that_asks_for_more_and_more(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LARGEST_HEADERS", 1_000_000)
    content = saved({f"layers.{n}.weight": torch.full((300,), float(n)) for n in range(6000)})
    hub.put(f"{REPO}/{FILE}", content)
    with pytest.raises(CheckpointError, match="at too great a length"):
        Repository(REPO, None).header(FILE, 0)
