"""Every test: a home of its own, no network beyond this machine, no GPU unless marked, one compute thread."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
if not torch.cuda.is_available():  # before any library imports Triton: see tests/kernels_gpu
    os.environ["TRITON_INTERPRET"] = "1"
settings.register_profile("moecli", database=None, deadline=None, derandomize=True)
settings.load_profile("moecli")

_SETTINGS = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "LOCALAPPDATA")
_connect = socket.socket.connect


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-cut", action="store_true", help="power cuts at every call of a command, not at some")
    parser.addoption("--write-replicas", action="store_true", help="their table in docs/weights.md anew; with -n0")


@pytest.fixture
def every_cut(request: pytest.FixtureRequest) -> bool:
    """Whether all moments are wanted, which takes minutes."""
    return bool(request.config.getoption("--every-cut"))


def _connect_nearby(self: socket.socket, address: Any) -> None:
    """Only this machine answers."""
    if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise ConnectionRefusedError(f"a test reached for the network: {address}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def isolated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of this machine's own settings, models and GPUs is seen, and nothing is left behind."""
    home = tmp_path_factory.mktemp("home")
    for name in (*_SETTINGS, *(name for name in os.environ if name.startswith(("MOECLI_", "XDG_")))):
        monkeypatch.delenv(name, raising=False)
    for name, folder in {"HOME": "", "HF_HOME": "huggingface", "MOECLI_HOME": "moecli"}.items():
        monkeypatch.setenv(name, str(home / folder))
    monkeypatch.setattr(socket.socket, "connect", _connect_nearby)
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for other processes
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
