"""What `run -v` says once a model is loaded: why experts are computed where they are, and what to expect."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moecli
from moecli.engine.loaded import LoadedModel, LoadOptions, OpenedModel, open_for_run
from moecli.experts.gpu_offloaded import GpuOffloadedExperts
from moecli.library.resolve import Kind, ModelRef
from moecli.output.loading import reasons
from moecli.planning.measured import Card, CardSpeeds
from moecli.planning.rates import Pace, Rates
from tests.support.stores import split_plan

TINY = Path(moecli.__file__).parent / "tiny"
CARD = Card("A card", 2**32, False, CardSpeeds(3e11, 2e10, 2e10))


def opened(**options: object) -> OpenedModel:
    one = open_for_run(ModelRef("tiny", "tiny", Kind.FOLDER, TINY), LoadOptions(threads=1, ram=2**33, **options))
    return replace(one, vram=2**32, asked_device=torch.device("cuda", 0), card=CARD)


def beside_a_device(on_device: int) -> LoadedModel:
    """A second arena in its role."""
    one = opened()
    decoder = one.model.decoder(split_plan(one.spec, "bf16", on_device, None, 64))
    return LoadedModel(one, split_plan(one.spec, "bf16", on_device, None, 64), decoder, decoder.new_cache(64, 64))


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (Rates(54e9, Pace(12e9, 0.1), Pace(1e12, 0.0)),
         "is copied to cpu at 54.0 GB/s, instead of computed by the processor at 12.0 GB/s"),
        (Rates(24e9, Pace(30e9, 0.1), Pace(1e15, 0.0)),
         "is computed by the processor at 30.0 GB/s, from 4 tokens on copied to cpu at 24.0 GB/s"),
        (Rates(1e3, Pace(30e9, 0.0), Pace(1e15, 0.0)),
         "is computed by the processor at 30.0 GB/s, instead of copied to cpu at 0.0 GB/s"),
    ],
)  # fmt: skip
def test_an_expert_elsewhere_goes_the_quicker_way(rates: Rates, said: str) -> None:
    loaded = beside_a_device(20)
    experts = loaded.decoder.experts
    assert isinstance(experts, GpuOffloadedExperts)
    experts.rates = rates
    first, second = reasons(loaded).split("\n")
    assert first == f"  an expert elsewhere {said}"
    assert re.fullmatch(r"  expect about \S+ tokens/s \(\S+ to \S+, typical bandwidths\)", second)


def test_where_all_are_on_the_device_there_is_nothing_to_choose() -> None:
    (line,) = reasons(beside_a_device(56)).split("\n")
    assert line.startswith("  expect about ") and line.endswith(", measured bandwidths)")


def test_why_a_device_is_left_out() -> None:
    one = opened(dtype="q4")
    loaded = one.load(one.plan(64), lambda *_: None)
    assert loaded.rates is None
    first, _ = reasons(loaded).split("\n")
    assert first == ("  cuda:0 is left out: torch would unpack q4 there for every product; --device cuda insists")
    small = replace(opened(dtype="bf16"), vram=2**20)
    first, _ = reasons(small.load(small.plan(64), lambda *_: None)).split("\n")
    assert re.fullmatch(r"  cuda:0 is left out: \d+ MiB are needed there before any expert", first)


def test_without_a_device_there_is_a_forecast_alone() -> None:
    one = replace(opened(), vram=None, card=None)
    (line,) = reasons(one.load(one.plan(64), lambda *_: None)).split("\n")
    assert line.startswith("  expect about ")
