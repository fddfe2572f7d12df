"""The machine that `memory` plans for, and what it says of each format."""

from __future__ import annotations

import dataclasses
import math

import pytest

from moecli.errors import UsageError
from moecli.formats import OFFERED
from moecli.planning import machine, measured
from moecli.planning.estimate import Budget, estimate
from moecli.planning.gpus import GPUS
from moecli.planning.measured import Card, CardSpeeds
from moecli.planning.memory import DEVICE_CONTEXT, estimate_memory
from moecli.planning.placement import largest_context, place
from moecli.planning.rates import Pace, Rates
from moecli.planning.speed import Bandwidths, Sources, estimate_throughput
from tests.support.specs import spec_of


def test_a_machine_nobody_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_ram", lambda: 12345)
    assert Budget.of() == Budget(12345, False, None, None, 1, Bandwidths())
    assert Bandwidths() == Bandwidths(30e9, 1.5e9, 400e9, 22e9, 50e12, True, None, Sources())
    assert set(dataclasses.astuple(Sources())) == {"typical"}


def test_a_machine_as_it_is_described() -> None:
    found = Budget.of("64GiB", None, "h100:2", "50GB", "7GB")
    assert (found.ram, found.ram_given, found.gpus, found.gpu) == (64 * 2**30, True, 2, GPUS["h100"])
    assert found.device == 2 * 80 * 2**30
    assert found.bandwidths == Bandwidths(
        50e9, 7e9, 3350e9, GPUS["h100"].link, 989e12, True, sources=Sources("given", "given", "maker", "maker")
    )
    assert Budget.of("1GiB", "6GiB").device == 6 * 2**30
    assert Budget.of("1GiB", "6GiB").bandwidths == Bandwidths()
    assert Budget.of("1GiB", "6GiB", "h100").device == 6 * 2**30
    t4 = Budget.of("1GiB", None, "t4").bandwidths
    assert (t4.ram, t4.device, t4.sources) == (30e9, 320e9, Sources(device="maker", link="maker"))
    given = Budget.of("1GiB", ram_speed="1GB").bandwidths
    assert given == Bandwidths(ram=1e9, sources=Sources(ram="given"))
    given = Budget.of("1GiB", disk_speed="1GB").bandwidths
    assert given == Bandwidths(disk=1e9, sources=Sources(disk="given"))


def test_this_machines_own_card_counts_unless_another_is_named() -> None:
    card = Card("A card", 11 * 2**30, False, CardSpeeds(300e9, 12e9, 13e9))
    measured.remember(card=card)
    own = Budget.of("1GiB")
    assert (own.card, own.device, own.gpu) == (card, 11 * 2**30, None)
    assert own.bandwidths == Bandwidths(
        device=300e9, link=12e9, kernels=False, sources=Sources(device="measured", link="measured")
    )
    assert own.device_for("bf16") == 11 * 2**30 and own.device_for("q4") is own.device_for("q3") is None
    some = Budget.of("1GiB", "2GiB")
    assert (some.card, some.device, some.bandwidths.device) == (None, 2 * 2**30, 300e9)
    assert Budget.of("1GiB", gpu="none").device is Budget.of("1GiB", gpu="None").card is None
    named = Budget.of("1GiB", gpu="t4")
    assert (named.card, named.gpu, named.bandwidths.device) == (None, GPUS["t4"], 320e9)
    assert named.device_for("q4") == 16 * 2**30


def test_what_a_run_measured_of_such_experts_counts() -> None:
    spec = spec_of("mixtral")
    memory = estimate_memory(spec, "bf16", 8192)
    rates = Rates(12e9, Pace(9e9, 0.01), Pace(200e9, 0.001))
    card = Card("A card", 11 * 2**30, True, CardSpeeds(300e9, 12e9, 13e9))
    before = estimate("mixtral", spec, with_card(card), "bf16", None, 1, find_context=False).chosen
    after = estimate(
        "mixtral", spec, with_card(card.knowing(memory, rates)), "bf16", None, 1, find_context=False
    ).chosen
    assert before.plan == after.plan and before.plan.device.dense
    assert after.speed == estimate_throughput(spec, after.plan, Budget.of("64GiB").bandwidths, rates=rates)
    assert after.speed.high < before.speed.high
    named = Budget.of("64GiB", gpu="rtx3060")
    assert estimate("mixtral", spec, named, "bf16", None, 1, find_context=False).chosen.speed.high > after.speed.high


def with_card(card: Card) -> Budget:
    measured.remember(card=card)
    return Budget.of("64GiB")


def test_what_torch_would_unpack_on_a_named_card_is_left_to_the_processor() -> None:
    spec, budget = spec_of("mixtral"), Budget.of("64GiB", None, "v100")
    found = estimate("mixtral", spec, budget, None, 1000, 1, find_context=True)
    on_card = {each.memory.dtype for each in found.every if each.plan.device.dense}
    assert on_card == {"fp32", "bf16", "fp16", "int8", "nf4"}
    (q4,) = (each for each in found.every if each.memory.dtype == "q4")
    assert q4.plan == place(q4.memory, budget.ram) and q4.speed.evidence == "typical"
    asked = estimate("mixtral", spec, Budget.of("8GiB", None, "v100"), "q4", None, 1, find_context=True)
    assert asked.max_context == 0


@pytest.mark.parametrize("number", range(4))
def test_nothing_is_no_size(number: int) -> None:
    option = ("--ram", "--vram", "--ram-speed", "--disk-speed")[number]
    values = [None] * 4
    values[number] = "0GiB"
    with pytest.raises(UsageError, match=f"{option} 0GiB is nothing"):
        Budget.of(values[0], values[1], None, values[2], values[3])


def test_every_format_or_the_one_that_was_asked_for() -> None:
    spec, budget = spec_of("mixtral"), Budget.of("64GiB", None, "h100:2")
    found = estimate("mixtral", spec, budget, None, None, 1, find_context=False)
    assert [each.memory.dtype for each in found.every] == list(OFFERED) and not found.asked
    assert found.chosen.memory.dtype == "bf16" and found.max_context is None
    assert found.chosen.memory.context == 8192 and found.budget is budget and found.model == "mixtral"
    asked = estimate("mixtral", spec, budget, "q4", 1000, 2, find_context=True)
    assert [each.memory.dtype for each in asked.every] == ["q4"] and asked.asked
    assert asked.chosen.memory == estimate_memory(spec, "q4", 1000, 2)
    assert asked.max_context == largest_context(spec, "q4", 2, budget.ram, budget.device)
    stored = estimate("mixtral", spec, budget, "auto", 1000, 1, find_context=False)
    assert [each.memory.dtype for each in stored.every] == ["bf16"] and stored.asked
    with pytest.raises(UsageError, match="q5"):
        estimate("mixtral", spec, budget, "q5", None, 1, find_context=False)


def test_gpus_to_hold_everything_each_with_its_own_context() -> None:
    spec = spec_of("mixtral")
    for gpu in ("h100", "rtx3060:3"):
        budget = Budget.of("64GiB", None, gpu)
        (found,) = estimate("mixtral", spec, budget, "bf16", 1000, 1, find_context=False).every
        assert budget.gpu is not None
        each = budget.gpu.memory - DEVICE_CONTEXT
        assert found.gpus_needed == math.ceil(found.memory.total / each) > 1
        assert found.plan == place(found.memory, budget.ram, budget.device)
        assert found.speed == estimate_throughput(spec, found.plan, budget.bandwidths)
    (found,) = estimate("mixtral", spec, Budget.of("64GiB"), "bf16", 1000, 1, find_context=False).every
    assert found.gpus_needed is None
