"""What `bench` measures: the workload as asked, varied text, statistics that agree with the store, honest verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import moecli
from moecli.engine import bench
from moecli.engine.limits import OtherPrograms, measure_bandwidths
from moecli.engine.loaded import LoadOptions, OpenedModel, open_for_run
from moecli.errors import UsageError
from moecli.library.resolve import Kind, ModelRef
from moecli.planning.speed import Throughput
from tests.support.stores import packed

pytestmark = pytest.mark.slow

TINY = Path(moecli.__file__).parent / "tiny"


def opened(folder: Path = TINY, **options: object) -> OpenedModel:
    ref = ModelRef("tiny", "tiny", Kind.FOLDER, folder)
    return open_for_run(ref, LoadOptions(threads=1, **options))


def result(one: OpenedModel, work: bench.Workload) -> bench.Result:
    expected = bench.expect(one, work)
    loaded, load_s = bench.load(one, expected, lambda done, total: None)
    return bench.measure(loaded, work, expected, load_s, lambda *progress: None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(TINY, tmp_path_factory.mktemp("stores") / "q4").folder


@pytest.fixture(scope="module")
def resident() -> bench.Result:
    return result(opened(), bench.Workload(20, 5, 3))


def test_a_prompt_is_plain_text_and_the_same_for_a_seed() -> None:
    one = opened()
    first, again, other = (bench.random_prompt(one, 400, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert not set(first) & one.tokenizer.special_ids
    assert max(first) < one.spec.vocab_size
    assert len(set(first)) > 200


@pytest.mark.parametrize(
    ("context", "prompt", "answer", "expected"),
    [
        (None, None, None, (512, 128)),
        (None, 7, 9, (7, 9)),
        (100, None, None, (75, 25)),
        (100, 50, None, (50, 25)),
        (100, 90, None, (90, 10)),
        (100, None, 90, (10, 90)),
        (2, None, None, (1, 1)),
    ],
)
def test_what_is_left_open_suits_the_context(context, prompt, answer, expected) -> None:
    work = bench.workload(opened(context=context), prompt, answer, 3)
    assert (work.prompt_tokens, work.max_tokens) == expected


@pytest.mark.parametrize(("prompt", "answer"), [(100, None), (None, 100), (60, 41)])
def test_more_than_the_context_is_refused(prompt, answer) -> None:
    with pytest.raises(UsageError, match="context of 100"):
        bench.workload(opened(context=100), prompt, answer, 1)


def test_what_is_measured_is_what_was_asked_for(resident: bench.Result) -> None:
    assert len(resident.repetitions) == 3
    for each in resident.repetitions:
        assert (each.timing.prompt_tokens, each.timing.cached_tokens, each.timing.steps) == (20, 0, 5)
    rates = [each.decode_rate for each in resident.repetitions]
    assert min(rates) <= resident.decode <= max(rates) and resident.decode in rates


def test_in_memory_every_expert_is_a_hit(resident: bench.Result) -> None:
    spec = opened().spec
    assert resident.hit_rate == 1
    assert (resident.bytes_read, resident.disk_bytes_per_token, resident.disk_rate) == (0, 0, None)
    active = sum(mixture.router.top_k for _, mixture in spec.mixtures)
    assert all(each.decode.hits == 5 * active for each in resident.repetitions)
    assert resident.ram_rate == pytest.approx(resident.ram_per_token * resident.decode)


def test_on_disk_misses_are_counted_and_read(store: Path) -> None:
    one = opened(store)
    work = bench.Workload(20, 30, 2)
    everything = bench.expect(one, work).plan
    one = replace(one, ram=everything.full_ram - 1)
    slot = everything.memory.slot_bytes
    expected = bench.expect(one, work)
    few = replace(expected.plan, ram=replace(expected.plan.ram, experts=14, expert_bytes=14 * slot))
    loaded, _ = bench.load(one, replace(expected, plan=few), lambda done, total: None)
    measured = bench.measure(loaded, work, replace(expected, plan=few), 0.0, lambda *progress: None)
    misses = sum(each.prefill.misses + each.decode.misses for each in measured.repetitions)
    assert measured.bytes_read == misses * slot > 0
    assert 0 < measured.hit_rate < 1
    assert measured.disk_rate > 0 and measured.ram_rate is None


def test_the_verdict_is_of_both_medians(resident: bench.Result) -> None:
    def verdict(low: float, high: float, quick: float, slow: float) -> bool:
        speed = Throughput(low, high, quick, slow, "measured")
        return replace(resident, expected=replace(resident.expected, speed=speed)).within_forecast

    rate, wait = resident.decode, 20 / resident.prefill
    assert verdict(rate * 0.9, rate * 1.1, wait * 0.9, wait * 1.1)
    assert not verdict(rate * 1.1, rate * 1.2, wait * 0.9, wait * 1.1)
    assert not verdict(rate * 0.8, rate * 0.9, wait * 0.9, wait * 1.1)
    assert not verdict(rate * 0.9, rate * 1.1, wait * 1.1, wait * 1.2)
    assert not verdict(rate * 0.9, rate * 1.1, wait * 0.8, wait * 0.9)


def test_the_machine_is_measured(resident: bench.Result, store: Path) -> None:
    bandwidths = resident.expected.bandwidths
    assert bandwidths.evidence(["ram"]) == "measured" == resident.expected.speed.evidence
    assert bandwidths.ram > 1e8 and bandwidths.linear.operations_per_s > 1e8
    one = opened(store, ram=bench.expect(opened(store), bench.Workload(600, 9, 1)).plan.full_ram - 1)
    streamed = bench.expect(one, bench.Workload(600, 9, 1)).plan
    assert streamed.disk.experts
    assert measure_bandwidths(one.model, streamed, 2**22).disk != bandwidths.disk


def test_others_are_counted_as_a_share() -> None:
    others = OtherPrograms()
    assert sum(range(2_000_000)) and 0 <= others.share() <= 1


def test_texts_side_by_side(store: Path) -> None:
    """Planned with a cache for each; a table row and JSON tell the rate of all together."""
    work = bench.Workload(20, 5, 2, parallel=3)
    one = opened(store)
    measured = result(one, work)
    assert len(measured.parallel) == 2 and min(measured.parallel) > 0
    alone = bench.expect(one, replace(work, parallel=1))
    assert measured.expected.plan.memory.kv.bytes == 3 * alone.plan.memory.kv.bytes
