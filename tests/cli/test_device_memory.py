"""A device that runs out of memory, as people see it: a warning and the same text, or an error with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from moecli.engine import bench, loaded
from moecli.experts import rates
from moecli.experts.gpu_offloaded import GpuOffloadedExperts
from tests.support.in_process import moecli

FULL = "CUDA out of memory. Tried to allocate 20.00 MiB."
RUN = ("run", "tiny", "The sea", "-n", "3", "--raw", "--temperature", "0", "--ram", "8GiB")


def raises(*_: Any) -> Any:
    raise torch.OutOfMemoryError(FULL)


def test_a_run_goes_on_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own memory in the role of a device of 4 GiB."""
    expected = moecli(*RUN)
    open_for_run, iter_ready, passed = loaded.open_for_run, GpuOffloadedExperts.iter_ready, iter(range(100))

    def full_once(self: GpuOffloadedExperts, *asked: Any) -> Iterator[Any]:
        return raises() if next(passed) == 9 else iter_ready(self, *asked)

    monkeypatch.setattr(rates, "_TRIAL_S", 0.0)
    monkeypatch.setattr(loaded, "open_for_run", lambda *options: replace(open_for_run(*options), vram=2**32))
    monkeypatch.setattr(GpuOffloadedExperts, "iter_ready", full_once)
    found = moecli(*RUN, "-q")
    assert (found.code, found.out) == (0, expected.out)
    assert found.err == "warning: cpu ran out of memory: it goes on with 28 experts there instead of 56\n"


def test_what_cannot_go_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "load", raises)
    found = moecli("bench", "tiny", "-n", "1", "--prompt-tokens", "2", "--ram", "8GiB")
    assert found.code == 1 and "Traceback" not in found.err
    assert found.failure == (
        "error: the device ran out of memory\n"
        "hint: end other programs that use it, or leave it less: --vram bounds it, --device cpu does without\n"
    )


def test_other_errors_show_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "load", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        moecli("bench", "tiny", "-n", "1", "--prompt-tokens", "2", "--ram", "8GiB")
