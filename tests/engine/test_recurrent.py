"""Mixers with a state: how a text is cut, taken back, copied and grown beside others changes nothing of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from moecli.engine.block import Block
from moecli.engine.cache import Cache
from moecli.engine.decoder import Decoder
from moecli.engine.states import RecurrentCache
from moecli.kernels import decode_step, library, linear, prompt_attention, recurrent
from moecli.kernels.blocking import BUCKET, MAX_TOKENS, SNAPSHOTS, STATE_STEP
from moecli.model.spec import Recurrent, RecurrentKind
from moecli.planning import states
from moecli.planning.memory import estimate_memory
from tests.support.checkpoints import make, prompt, write
from tests.support.running import answer, load, score, session
from tests.support.stores import decoder as placed
from tests.support.stores import packed

pytestmark = pytest.mark.slow

FAMILIES = (
    "bailing_hybrid", "granitemoehybrid", "jamba", "kimi_linear", "lfm2_moe", "minimax", "nemotron_h", "qwen3_next",
    "qwen3_5_moe",
)  # fmt: skip
LATENT = ("bailing_hybrid", "kimi_linear")  # whose attention rounds as a prompt is cut
native = pytest.mark.skipif(library.library() is None, reason="the native kernels are not built")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    root = tmp_path_factory.mktemp("recurrent")
    found = {family: write(make(family, seed=7), root / family) for family in FAMILIES}
    plain = {"layer_types": ["linear_attention"] * 4}
    alone = {f"{each} alone": write(make(each, seed=7, **plain), root / f"{each} alone") for each in LATENT}
    yield found | alone


def grown(decoder: Decoder, cache: Cache, ids: list[int]) -> torch.Tensor:
    return decoder.logits(decoder.forward(torch.tensor(ids), cache))[-1]


@native
@pytest.mark.parametrize(
    "family", [*(each for each in FAMILIES if each not in LATENT), *(f"{each} alone" for each in LATENT)]
)
def test_chunks_of_a_prompt_change_no_bit(family: str, folders: dict[str, Path]) -> None:
    decoder, ids = load(folders[family]), prompt(210)
    whole = score(decoder, ids)
    for chunk in (MAX_TOKENS + 1, 37, STATE_STEP, 100):
        if 0 < len(ids) % chunk <= MAX_TOKENS:  # a decode step, which rounds otherwise
            continue
        assert torch.equal(score(decoder, ids, chunk), whole), chunk


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_alone_computes_the_same(family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(150)
    expected = score(load(folders[family]), ids)
    for module in (prompt_attention, recurrent):
        monkeypatch.setattr(module, "serves", lambda x: False)
    for module in (linear, decode_step):
        monkeypatch.setattr(module, "native_bytes", lambda dtype, matrices: None)
    decoder = load(folders[family])
    assert decoder.decode_step is None
    for chunk in (256, STATE_STEP, 7, 1):
        assert (score(decoder, ids, chunk) - expected).abs().max() <= 2e-4


@native
@pytest.mark.parametrize("family", FAMILIES)
def test_instruction_sets_agree_to_the_bit(family: str, folders: dict[str, Path]) -> None:
    decoder, ids, best = load(folders[family]), prompt(90), library.isa()
    expected = [score(decoder, ids, chunk) for chunk in (256, 1, 5)]
    try:
        for isa in library.isas():
            library.use_isa(isa)
            for chunk, same in zip((256, 1, 5), expected, strict=True):
                assert torch.equal(score(decoder, ids, chunk), same), (isa, chunk)
    finally:
        library.use_isa(best or "")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_taken_back_goes_on_as_if_it_had_never_been_longer(
    family: str, seed: int, folders: dict[str, Path]
) -> None:
    """Steps of every size, rewinds into the last step, before it and far back, and copies, as chance has it."""
    chance, decoder = random.Random(seed), load(folders[family])
    cache, held, kept_some = decoder.new_cache(256, 64), list[int](), 0
    for _ in range(40):
        if chance.random() < 0.55 and len(held) < 180:
            new = [chance.randrange(97) for _ in range(chance.choice([1, 1, 2, 3, 5, 8, 20, 70]))]
            last = grown(decoder, cache, new)
            held += new
            assert (last - score(decoder, held, 1)[-1]).abs().max() <= 2e-4
            continue
        wanted = max(0, len(held) - chance.choice([0, 1, 2, 3, 7, 30, 100]))
        if chance.random() < 0.3:
            other = decoder.new_cache(256, 64)
            kept, cache = other.copy(cache, wanted), other
        else:
            kept = cache.rewind(wanted)
        assert kept <= wanted == min(wanted, len(held))
        assert cache.length == kept
        kept_some += 0 < kept < wanted
        del held[kept:]
    assert kept_some  # a state that was kept, and not the beginning


@native
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rejected_draft_leaves_no_trace(family: str, folders: dict[str, Path]) -> None:
    """To the bit: the tokens that were kept are part of the state as if each had been a step of its own."""
    decoder = load(folders[family])
    for kept in range(MAX_TOKENS + 1):
        drafted, plain = (decoder.new_cache(256, 64) for _ in range(2))
        for cache in (drafted, plain):
            grown(decoder, cache, prompt(70))
        grown(decoder, drafted, prompt(MAX_TOKENS, seed=4))
        assert drafted.rewind(70 + kept) == 70 + kept
        for token in prompt(MAX_TOKENS, seed=4)[:kept]:
            grown(decoder, plain, [token])
        for token in (5, 6):
            assert torch.equal(grown(decoder, drafted, [token]), grown(decoder, plain, [token])), kept


@native
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_side_by_side_change_no_bit_of_each_other(family: str, folders: dict[str, Path]) -> None:
    decoder = load(folders[family])
    beside, alone = ([decoder.new_cache(128, 64) for _ in range(5)] for _ in range(2))
    for number, pair in enumerate(zip(beside, alone, strict=True)):
        for cache in pair:
            grown(decoder, cache, prompt(10 + 7 * number, seed=number))
    for token in (3, 9):
        together = decoder.forward_texts(torch.tensor([token] * 5), beside)
        for states_, cache in zip(together, alone, strict=True):
            assert torch.equal(states_, decoder.forward(torch.tensor([token]), cache)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_reads_again_only_what_is_not_kept(family: str, folders: dict[str, Path]) -> None:
    decoder = load(folders[family])
    running = session(decoder)
    first = prompt(150)
    said = answer(running, first, 12)
    longer = first + said + prompt(20, seed=8)
    assert answer(running, longer, 12) == answer(session(decoder), longer, 12)
    changed = [*first[:140], *prompt(30, seed=9)]  # back into the first prompt
    found = running._rewind(changed)
    assert found == 128
    assert answer(running, changed, 12) == answer(session(decoder), changed, 12)
    running.cache.rewind(0)  # /clear
    running.held.clear()
    assert answer(running, first, 12) == said


@pytest.mark.parametrize("family", FAMILIES)
def test_placement_changes_no_bit(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    store = packed(folders[family], tmp_path / "store", "q8")
    ids = prompt(80)
    everything, few = (placed(store, slots) for slots in (None, 2))
    for chunk in (256, 1, 3):
        assert torch.equal(score(few, ids, chunk), score(everything, ids, chunk))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_the_bytes_of_states_and_snapshots(family: str, folders: dict[str, Path]) -> None:
    decoder = load(folders[family])
    cache = decoder.new_cache(256, 256)
    for length in range(STATE_STEP, 5 * STATE_STEP, STATE_STEP):  # more than are kept
        if length <= 256:
            grown(decoder, cache, prompt(STATE_STEP, seed=length))
    held = 0
    for layer in cache.layers:
        if isinstance(layer, RecurrentCache):
            kept = [part for each in layer._snapshots for part in (each.rows, each.state)]
            held += sum(each.nbytes for each in (layer.rows, layer.state, layer.record, *kept))
        else:
            held += sum(buffer.nbytes for buffer in layer.buffers)
    assert held == estimate_memory(decoder.spec, "fp32", 256).kv.bytes


def test_kept_states_stand_ever_further_apart() -> None:
    spec = Recurrent(RecurrentKind.SHORT_CONVOLUTION, (), 8, heads=4, head_dim=1, groups=1, kernel=3)
    cache = RecurrentCache(spec, torch.device("cpu"))
    for step in range(1, 200):
        cache.extend(STATE_STEP, commits=True)
        cache.snapshot()
        lengths = [each.length for each in cache._snapshots]
        assert lengths == sorted(lengths) and len(lengths) == min(step, SNAPSHOTS)
        assert lengths[-1] == cache.length
    back = [cache.length - length for length in lengths]
    assert all(2 * near <= far for far, near in pairwise(back))
    assert cache.reach(cache.length - 1) == lengths[-2]
    assert back[0] >= 8 * STATE_STEP


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_has_the_size_that_the_spec_says(family: str, folders: dict[str, Path]) -> None:
    for layer in load(folders[family]).spec.layers:
        if (mixer := layer.recurrent) is not None:
            numbers = (mixer.kernel - 1) * mixer.channels + mixer.inner * mixer.state_dim
            assert numbers == mixer.state
            assert states.numbers(mixer) >= (1 + SNAPSHOTS) * numbers


def test_layers_of_one_half_count_tokens_and_nothing_else(folders: dict[str, Path]) -> None:
    decoder = load(folders["nemotron_h"])
    cache = decoder.new_cache(200, 64)
    grown(decoder, cache, prompt(BUCKET + 3))
    halves = [each for layer, each in zip(decoder.spec.layers, cache.layers, strict=True) if not layer.mixes]
    assert halves and all(each.length == BUCKET + 3 for each in halves)
    assert all(buffer.numel() == 0 for each in halves for buffer in each.buffers)  # type: ignore[union-attr]
    blocks: list[Block] = decoder._blocks
    assert any(not layer.feeds for layer in decoder.spec.layers) and len(blocks) == len(decoder.spec.layers)
