"""The words of an estimate are its arithmetic: every formula, evaluated as it is read, gives the bytes beside it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from moecli.formats import FORMATS
from moecli.kernels import built
from moecli.planning.memory import (
    cache_rows,
    default_context,
    dense_read_bytes,
    estimate_memory,
    layerwise_memory,
    read_bytes_per_token,
)
from moecli.planning.placement import Plan, Tier, fit, fit_layerwise, least_device, place
from moecli.planning.terms import Amount, Term, add, count, larger, multiply, named, under, within
from tests.support.specs import spec_of

MIB = 2**20


def test_amounts_by_hand() -> None:
    layers, experts = count(32, "layers"), count(1234567)
    assert (layers, experts) == (Amount(32, "32 layers"), Amount(1234567, "1,234,567"))
    assert named("batch", 1024) == Amount(1024, "batch 1,024")
    assert add([layers, experts]) == Amount(1234599, "32 layers + 1,234,567")
    assert add([layers, experts, layers], ", ") == Amount(1234631, "32 layers, 1,234,567, 32 layers")
    assert add([]) == Amount(0, "") and multiply() == Amount(1, "")
    assert multiply(layers, count(3, "rows"), count(2)) == Amount(192, "32 layers x 3 rows x 2")
    assert larger(layers, experts) == Amount(1234567, "the larger of 32 layers and 1,234,567")
    assert larger(experts, layers).value == 1234567
    assert within(layers) == Amount(32, "(32 layers)") and under("for 5", layers) == Amount(32, "for 5: 32 layers")
    term = Term("name", layers, "keys")
    assert (term.bytes, term.formula) == (32, "32 layers")


def evaluated(formula: str) -> int:
    """What a formula says: sums by +, by commas and by headings; products by x; the larger of two; brackets."""
    text = re.sub(r"the larger of ([a-z -]+) ([\d,]+) and ([a-z -]+) ([\d,]+)", larger_of, formula)
    text = re.sub(r"for \d+ prompt tokens, \d+ at once:", " ", text)
    text = text.replace(", ", " + ").replace(",", "").replace("float32", "").replace(" x ", " * ")
    text = re.sub("[a-z/_-]+", " ", text)
    assert re.fullmatch(r"[\d\s+*()]+", text), text
    return int(eval(text))


def larger_of(match: re.Match[str]) -> str:
    return max(match[2], match[4], key=lambda number: int(number.replace(",", "")))


@pytest.mark.parametrize("dtype", ["bf16", "q4", "nf4"])
@pytest.mark.parametrize(
    "name", ["mixtral", "deepseek-v2-lite", "llama-2-70b", "gpt-oss-20b", "jamba", "switch-base-8"]
)
def test_every_formula_gives_its_bytes(name: str, dtype: str) -> None:
    for context, batch in ((1000, 1), (100, 3)):
        need = estimate_memory(spec_of(name), dtype, context, batch)
        for term in (need.dense, need.experts, need.kv, need.activations):
            if term.formula:
                assert evaluated(term.formula) == term.bytes, term.formula
        assert need.terms == (need.dense, need.experts, need.kv, need.activations, need.process)
        assert [term.name for term in need.terms] == [
            "dense weights", "routed experts", "KV cache", "activations", "process",
        ]  # fmt: skip
        assert need.total == sum(term.bytes for term in need.terms[:4]) and need.peak == need.total + need.process.bytes


def test_the_formulas_of_mixtral(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built, "expected", lambda: True)
    need = estimate_memory(spec_of("mixtral"), "q4", 1000, 2)
    assert [term.formula for term in need.terms] == [
        "embedding 262,144,000 + norms 532,480 + attention 723,517,440 + router 2,097,152 + lm_head 70,656,000",
        "32 layers x 8 experts x 94,961,664",
        "(32 layers x 1,000 rows x 2,048 numbers) x 2 bytes x batch 2",
        "rotary tables 512,000 + routers in float32 2,097,152 + matrix library 4,169,728 + for 1000 prompt tokens, "
        "512 at once: residual stream 20,774,912, attention 22,544,384, the larger of experts 137,216,000 and logits "
        "512,000",
        "interpreter, torch, tokenizer (typical)",
    ]
    assert [term.keys for term in need.terms] == [
        "every width but the routed experts'", "layers, experts, expert width, hidden size",
        "layers, key/value heads or latent rank, head_dim, sliding_window, --ctx, --batch",
        "hidden size, heads, expert width, vocab_size", "-",
    ]  # fmt: skip
    assert (need.expert_count, need.bytes_per_expert, need.slot_bytes) == (256, 94961664, 94961664)
    assert (need.staging, need.table, need.weights) == (65290240, 262144000, 25369133056)


def test_reading_layer_by_layer_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 tokens of texts of 300 at most: their states and sums, and all may take one expert; one layer's cache."""
    monkeypatch.setattr(built, "expected", lambda: True)
    spec, usual = spec_of("mixtral"), estimate_memory(spec_of("mixtral"), "q4", 300)
    found = layerwise_memory(spec, "q4", 300, 10_000)

    def experts(tokens: int) -> int:
        return tokens * 4096 * (2 + 4) + tokens * (4096 * (2 + 8) + 14336 * 5)

    library = int(3 * MIB + 10_000 / 512 * MIB / 2) - int(300 / 512 * 3 * MIB + 300 / 512 * MIB / 2)
    more = (10_000 - 300) * 4096 * 2 + experts(10_000) - experts(300) + library
    assert found.activations.bytes == usual.activations.bytes + more
    assert (found.block, found.chunk) == (10_000, 300)
    assert found.kv.bytes == usual.kv.bytes // 32
    assert found.kv.formula == f"1 layer of {usual.kv.formula}"
    many = layerwise_memory(spec, "q4", 300, 100_000).activations.formula
    assert f"matrix library {3 * MIB + 64 * MIB // 2:,} +" in many  # no more than after 64 chunks
    assert "feed-forward" in layerwise_memory(spec_of("llama-2-70b"), "q4", 300, 10_000).activations.formula


@pytest.mark.parametrize(
    ("window", "capacity", "chunk", "rows"),
    [
        (None, 7000, 512, 7000), (4096, 100, 512, 100), (4096, 100_000, 512, 8192), (100, 100_000, 512, 612),
        (100, 100_000, 50, 200), (100, 150, 512, 150), (100, 250, 512, 250), (8, 30, 20, 28),
    ],
)  # fmt: skip
def test_rows_of_a_window(window: int | None, capacity: int, chunk: int, rows: int) -> None:
    attention = replace(spec_of("mixtral").layers[0].attention, window=window)
    assert cache_rows(attention, capacity, chunk) == rows


def test_what_a_token_reads_by_hand() -> None:
    """All but the input table; a tied one is read as the head. Of attention that is routed, what is chosen."""
    layer = 2 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 8 * 4096 + 2 * 4096)
    dense = 32 * layer + 2 * 4096 + 2 * 32000 * 4096
    spec = spec_of("mixtral")
    assert dense_read_bytes(spec, "bf16") == dense
    assert read_bytes_per_token(spec, "bf16") == dense + 32 * 2 * 3 * 2 * 4096 * 14336
    assert dense_read_bytes(spec_of("mixtral", tie_word_embeddings=True), "bf16") == dense
    assert default_context(spec) == 8192


# Where everything goes, in numbers


def tiers(plan: Plan) -> tuple[Tier, Tier, Tier]:
    return plan.device, plan.ram, plan.disk


def test_a_tier_is_the_sum_of_what_lies_in_it() -> None:
    assert Tier(1, 2, 4, 8, 16, 1000, 32).total == 63 and Tier().total == 0


def test_plans_of_mixtral_by_hand() -> None:
    need = estimate_memory(spec_of("mixtral"), "q4", 1000)
    dense, kv, buffers, process = (term.bytes for term in (need.dense, need.kv, need.activations, need.process))
    slot, table, staging = need.slot_bytes, need.table, need.staging
    core = dense + kv + buffers + process
    least = core - table + staging
    whole = core + 256 * slot
    plan = place(need, whole)
    assert tiers(plan) == (Tier(), Tier(dense, kv, buffers, process, 0, 256, 256 * slot), Tier())
    assert (plan.full_ram, plan.least_ram, plan.runs_from, plan.fits) == (whole, least, "ram", True)
    plan = place(need, whole - 1)
    count = min(256, (whole - 1 - least) // slot)
    assert plan.disk.dense and count == 256 and not plan.fits  # all but the table, of which rows are read
    plan = place(need, whole - 5 * slot)
    count = (whole - 5 * slot - least) // slot
    assert tiers(plan) == (
        Tier(), Tier(dense - table, kv, buffers, process, staging, count, count * slot),
        Tier(dense=table, experts=256 - count, expert_bytes=(256 - count) * need.bytes_per_expert),
    )  # fmt: skip
    for ram in (0, least - 1, least, least + slot - 1):
        plan = place(need, ram)
        assert (plan.ram.experts, plan.disk.experts, plan.ram.total, plan.runs) == (0, 256, least, ram >= least)
        assert plan.runs_from == ("disk" if ram >= least else None)
    # On a device: all but experts, those on their way, and as many experts as there is room for
    floor = dense + kv + need.device_activations + 800 * MIB + 2 * slot
    assert least_device(need) == floor
    on_device = Tier(dense, kv, need.device_activations, 800 * MIB, 2 * slot, 10, 10 * slot)
    host = process + 1070 * MIB
    for device in (floor + 10 * slot, floor + 11 * slot - 1):
        plan = place(need, host + 246 * slot, device)
        assert tiers(plan) == (on_device, Tier(process=host, experts=246, expert_bytes=246 * slot), Tier())
        assert (plan.full_ram, plan.least_ram, plan.device_budget) == (host + 246 * slot, host + staging, device)
    plan = place(need, host + 246 * slot - 1, floor + 10 * slot)
    count = (246 * slot - 1 - staging) // slot
    assert plan.ram == Tier(process=host, staging=staging, experts=count, expert_bytes=count * slot)
    assert plan.disk == Tier(experts=246 - count, expert_bytes=(246 - count) * need.bytes_per_expert)
    plan = place(need, host, floor + 1000 * slot)
    assert (plan.device.experts, plan.ram, plan.disk, plan.runs_from) == (256, Tier(process=host), Tier(), "vram")
    assert place(need, whole, floor - 1) == replace(place(need, whole), device_budget=floor - 1)


def test_chunks_are_halved_until_a_prompt_fits() -> None:
    spec = spec_of("mixtral")
    least = {
        chunk: place(estimate_memory(spec, "q4", 4096, 1, chunk), 0).least_ram for chunk in (512, 256, 128, 64, 32)
    }
    assert sorted(least.values(), reverse=True) == list(least.values())
    for chunk, ram in least.items():
        assert fit(spec, "q4", 4096, ram).memory.chunk == chunk
        if chunk > 32:
            assert fit(spec, "q4", 4096, ram - 1).memory.chunk == chunk // 2
    plan = fit(spec, "q4", 4096, least[32] - 1)
    assert plan.memory.chunk == 32 and not plan.runs
    assert fit(spec, "q4", 4096, 2**60, batch=3).memory == estimate_memory(spec, "q4", 4096, 3)
    device = least_device(estimate_memory(spec, "q4", 4096))
    assert fit(spec, "q4", 4096, 2**60, device).device.dense > 0


@pytest.mark.parametrize(
    ("longest", "chunks"), [(3000, [10_000, 5000, 3000]), (2500, [10_000, 5000, 2500]), (20_000, [10_000])]
)
def test_texts_at_once_are_halved_down_to_the_longest(longest: int, chunks: list[int]) -> None:
    spec = spec_of("olmoe")
    for streams in (True, False):
        plans = [place(layerwise_memory(spec, "q4", longest, tokens), 0) for tokens in chunks]
        rams = [plan.least_ram if streams else plan.full_ram for plan in plans]
        for tokens, ram in zip(chunks, rams, strict=True):
            assert fit_layerwise(spec, "q4", longest, 10_000, ram, streams).memory.block == tokens
        assert fit_layerwise(spec, "q4", longest, 10_000, 0, streams).memory.block == chunks[-1]


def test_formats_are_all_planned() -> None:
    spec = spec_of("olmoe")
    for dtype in FORMATS:
        need = estimate_memory(spec, dtype, 100)
        assert need.dtype == dtype and (need.context, need.batch) == (100, 1) and need.chunk == 100
        assert need.experts.bytes == 16 * 64 * need.bytes_per_expert
        assert need.slot_bytes % 4096 == 0 and 0 <= need.slot_bytes - need.bytes_per_expert < 4096 + 3 * 64
