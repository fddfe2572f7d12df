"""The indexer: what it chooses, that only this counts, and that nothing of it is lost where caches move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moecli.engine.cache import Cache, LayerCache
from moecli.engine.decoder import Decoder
from moecli.engine.indexer import LightningIndexer
from moecli.engine.layers import RotaryEmbedding
from moecli.engine.prefixes import Reading, Slots
from moecli.engine.session_file import Identity, SessionFile
from moecli.engine.weights import LayerWeights
from moecli.errors import ConfigError, MoecliError
from moecli.kernels import prompt_attention
from moecli.model.families import read_spec
from moecli.model.params import kv_numbers_per_token
from moecli.model.spec import Indexer, Rope
from moecli.planning.memory import estimate_memory
from moecli.store.source import open_source
from tests.support import stores
from tests.support.checkpoints import configuration, make, prompt, write
from tests.support.running import greedy, load, score

HEADS, DIM, RANK, WIDTH, TOP_K, TURNING = 16, 8, 6, 10, 5, 4
FAMILIES = ("deepseek_v32", "glm_moe_dsa")


@pytest.fixture(scope="module")
def weights() -> LayerWeights:
    made = torch.Generator().manual_seed(0)
    shapes = {
        "index_q": (HEADS * DIM, RANK), "index_k": (DIM, WIDTH), "index_weights": (HEADS, WIDTH),
        "index_k_norm": (DIM,), "index_k_norm_bias": (DIM,),
    }  # fmt: skip
    return LayerWeights({role: torch.randn(shape, generator=made) for role, shape in shapes.items()})


def turned(x: list[float], position: int, pairs: list[tuple[int, int]]) -> list[float]:
    """A head whose pairs of numbers are rotated, by the formula of RoFormer."""
    x = list(x)
    for number, (a, b) in enumerate(pairs):
        angle = torch.tensor(position * 10_000 ** (-2 * number / TURNING))
        cos, sin = float(angle.cos()), float(angle.sin())
        x[a], x[b] = x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin
    return x


def by_hand(weights: LayerWeights, x: torch.Tensor, low: torch.Tensor, interleaved: bool) -> list[list[int]]:
    """What each token of x chooses, number by number."""
    pairs = [(0, 1), (2, 3)] if interleaved else [(0, 2), (1, 3)]
    keys, chosen = [], []
    for position, token in enumerate(x):
        raw = weights["index_k"] @ token
        norm = (raw - raw.mean()) / (raw.var(correction=0) + 1e-6).sqrt()
        keys.append(turned((norm * weights["index_k_norm"] + weights["index_k_norm_bias"]).tolist(), position, pairs))
    for position, (token, latent) in enumerate(zip(x, low, strict=True)):
        heads = (weights["index_q"] @ latent).view(HEADS, DIM).tolist()
        queries = [turned(head, position, pairs) for head in heads]
        of_heads = (weights["index_weights"] @ token).tolist()
        scores = [
            sum(
                w * max(0.0, sum(a * b for a, b in zip(q, key, strict=True)))
                for w, q in zip(of_heads, queries, strict=True)
            )
            for key in keys[: position + 1]
        ]
        chosen.append(sorted(sorted(range(position + 1), key=lambda row: -scores[row])[:TOP_K]))
    return chosen


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("tables", [False, True])
def test_it_chooses_as_by_hand(weights: LayerWeights, interleaved: bool, tables: bool) -> None:
    """However the pairs of its own heads lie, and those of attention, whose tables it uses."""
    rotary = RotaryEmbedding(Rope(10_000.0, TURNING, tables), 64, torch.float32, torch.device("cpu"))
    indexer = LightningIndexer(Indexer(HEADS, DIM, TOP_K, interleaved), weights, rotary)
    made = torch.Generator().manual_seed(1)
    x, low = (torch.randn(30, width, generator=made) for width in (WIDTH, RANK))
    keys = torch.cat([indexer.keys(x[:11], 0), indexer.keys(x[11:], 11)])[:, 0]
    expected = by_hand(weights, x, low, interleaved)
    for start in (TOP_K, 17):
        found = indexer.choose(x[start:], low[start:], keys, start)
        assert [rows.tolist() for rows in found] == expected[start:]


@pytest.mark.parametrize(
    ("start", "tokens", "whole"), [(0, 3, 3), (0, 5, 5), (0, 9, 5), (4, 3, 1), (5, 1, 0), (9, 2, 0)]
)
def test_tokens_that_see_all_before_them(weights: LayerWeights, start: int, tokens: int, whole: int) -> None:
    rotary = RotaryEmbedding(Rope(10_000.0, TURNING), 64, torch.float32, torch.device("cpu"))
    assert LightningIndexer(Indexer(HEADS, DIM, TOP_K), weights, rotary).seen_whole(start, tokens) == whole


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return load(folder)


def test_above_its_number_only_the_chosen_count(folder: Path, decoder: Decoder) -> None:
    """Up to 24 tokens the scores are those without an indexer, after that they are not."""
    text = prompt(60)
    short = load(folder, positions=24)  # which no text outgrows
    assert [len(layer.buffers) for layer in short.new_cache(24, 24).layers] == [1] * len(short.spec.layers)
    found = score(decoder, text)
    torch.testing.assert_close(found[:24], score(short, text[:24]), atol=1e-5, rtol=0)
    config = open_source(folder).spec
    assert config.within(24) == config.within(5) != config.within(25) == config
    changed = score(load_dense(folder), text)
    torch.testing.assert_close(found[:24], changed[:24], atol=1e-5, rtol=0)
    assert (found[30:] - changed[30:]).abs().max() > 0.1


def load_dense(folder: Path) -> Decoder:
    """The same weights, with an indexer that would choose every token."""
    path = folder / "config.json"
    text = path.read_text()
    try:
        path.write_text(text.replace('"index_topk": 24', '"index_topk": 2048'))
        return load(folder)
    finally:
        path.write_text(text)


def test_texts_side_by_side_are_as_each_alone(decoder: Decoder) -> None:
    """Of each length that matters: all seen, the first choice of a few tokens, choices alone."""
    texts = [torch.tensor(prompt(length, seed=length)) for length in (12, 22, 40)]
    following = torch.tensor(prompt(18)).view(6, 3)
    alone = []
    for text, tokens in zip(texts, following.t(), strict=True):
        cache = decoder.new_cache(64, 16)
        decoder.forward(text, cache)
        alone.append(torch.cat([decoder.forward(token, cache) for token in tokens.split(1)]))
    caches = [decoder.new_cache(64, 16) for _ in texts]
    for text, cache in zip(texts, caches, strict=True):
        decoder.forward(text, cache)
    beside = torch.stack([decoder.forward_texts(tokens, caches) for tokens in following])
    torch.testing.assert_close(beside, torch.stack(alone, 1), atol=0, rtol=0)


def test_what_the_indexer_keeps_goes_where_the_latents_go(decoder: Decoder) -> None:
    """Back, into another cache, and out to a block and in again."""
    text, other = torch.tensor(prompt(50)), torch.tensor(prompt(20, seed=7))
    cache = decoder.new_cache(80, 16)
    expected = decoder.forward(text, cache)[-1]

    def last(of: Cache) -> torch.Tensor:
        return decoder.forward(text[of.length :], of, prompt=len(text))[-1]

    copied, taken = decoder.new_cache(80, 16), decoder.new_cache(80, 16)
    assert copied.copy(cache, 30) == 30
    block = cache.block(0, 30)
    assert block is not None and all(set(layer) == {"latents", "index_keys"} for layer in block)
    assert taken.put(block, 30)
    assert cache.rewind(10) == 10
    decoder.forward(other, cache)
    assert cache.rewind(10) == 10
    for each in (cache, copied, taken):
        torch.testing.assert_close(last(each), expected, atol=1e-5, rtol=0)


def test_a_session_file_keeps_it(decoder: Decoder, tmp_path: Path) -> None:
    text, told, failed = prompt(60), list[str](), list[MoecliError]()
    reading, answers = Reading(16, 16, decoder.absorbed_up_to), []
    for _ in range(2):  # as two processes
        file = SessionFile(tmp_path / "file", Identity("it", "0" * 64), 16, 256, told.append, failed.append)
        slots = Slots([decoder.new_cache(256, 256)], reading, file)
        found = slots.take(text)
        assert found is not None
        slot, ends = found
        fed = len(text) - len(slot.ids)
        for end in ends:
            piece = text[len(slot.ids) : end]
            states = decoder.forward(torch.tensor(piece), slot.cache, last_only=True, prompt=len(text))
            slots.read(slot, piece)
        slots.give_back(slot)
        file.close()
        answers.append((fed, states))
    assert not failed and answers[0][0] == 60 and answers[1][0] < 20
    assert torch.equal(answers[0][1], answers[1][1])


def test_its_keys_are_in_the_plan(folder: Path) -> None:
    """As many bytes as caches hold: none of it where no text is longer than what is chosen."""
    spec = open_source(folder).spec
    for context in (24, 100):
        held = load(folder, positions=context).new_cache(context, context)
        size = sum(buffer.nbytes for layer in held.layers for buffer in layer.buffers)
        assert estimate_memory(spec, "fp32", context).kv.bytes == size
    assert kv_numbers_per_token(spec) == len(spec.layers) * (8 + 4 + 12)


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_a_packed_store_answers_as_its_checkpoint(folder: Path, dtype: str, tmp_path: Path) -> None:
    store = stores.packed(folder, tmp_path / dtype, dtype)
    assert greedy(stores.decoder(store, None), prompt(40)) == greedy(load(folder, dtype), prompt(40))
    assert greedy(stores.decoder(store, 3), prompt(40)) == greedy(load(folder, dtype), prompt(40))


def test_by_torch_it_is_the_same(decoder: Decoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(decoder, prompt(100))
    monkeypatch.setattr(prompt_attention, "serves", lambda queries: False)
    torch.testing.assert_close(score(decoder, prompt(100)), expected, atol=1e-4, rtol=0)
    assert greedy(decoder, prompt(20)) == greedy(load(folder), prompt(20))


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("deepseek_v32", {"q_lora_rank": None}, "'q_lora_rank' is null"),
        ("deepseek_v32", {"index_topk": 0}, "'index_topk' is 0"),
        ("deepseek_v32", {"index_head_dim": 2}, "'index_head_dim' is 2, less than the 4 that rotate"),
        ("deepseek_v32", {"indexer_rope_interleave": True}, "'indexer_rope_interleave' is true"),
        ("deepseek_v32", {"layer_types": ["full_attention"] * 2}, "'layer_types' names layers without an indexer"),
        ("deepseek_v32", {"topk_method": "greedy"}, "'topk_method'"),
        ("glm_moe_dsa", {"indexer_rope_interleave": False}, "'indexer_rope_interleave' is false"),
        ("glm_moe_dsa", {"indexer_types": None, "index_topk_pattern": "FS"}, "F or S of each of 3 layers"),
        ("glm_moe_dsa", {"indexer_types": ["shared", "full", "full"]}, "F of the first"),
    ],
)
def test_what_it_cannot_be_is_refused(family: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_spec(configuration(family).to_dict() | changes)


@pytest.mark.parametrize(
    "changes",
    [{"indexer_types": ["full", "full", "shared"]}, {"indexer_types": None, "index_topk_freq": 2},
     {"indexer_types": None, "index_topk_pattern": "FFS"}],
)  # fmt: skip
def test_layers_that_share_a_choice(changes: dict[str, Any]) -> None:
    spec = read_spec(configuration("glm_moe_dsa").to_dict() | changes)
    assert not spec.lacks and [layer.index_width for layer in spec.layers] == [12, 12, 0]


SHARED = {"num_hidden_layers": 4, "indexer_types": ["full", "shared", "full", "shared"]}


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(write(make("glm_moe_dsa", **SHARED), tmp_path_factory.mktemp("sharing")))


def kept_choices(cache: Cache) -> int:
    """What is left for layers that have read nothing yet."""
    assert all(isinstance(layer, LayerCache) for layer in cache.layers)
    return sum(len(layer.choices._kept) for layer in cache.layers if isinstance(layer, LayerCache))


def test_a_shared_choice_is_read_and_forgotten(sharing: Decoder) -> None:
    """By chunks, in steps, side by side, and after a pass that was broken off."""
    cache, text = sharing.new_cache(100, 16), torch.tensor(prompt(60))
    expected = score(sharing, prompt(60))
    torch.testing.assert_close(sharing.logits(sharing.forward(text[:50], cache)), expected[:50], atol=1e-4, rtol=0)
    assert kept_choices(cache) == 0
    steps = torch.cat([sharing.forward(part, cache) for part in text[50:].split(3)])
    torch.testing.assert_close(sharing.logits(steps), expected[50:], atol=1e-4, rtol=0)
    assert kept_choices(cache) == 0

    class Stopped(Exception):
        """As by Ctrl-C."""

    def stop(done: int, of: int) -> None:
        if 0 < done < of:
            raise Stopped

    cache.rewind(0)
    with pytest.raises(Stopped):
        sharing.forward(text[:50], cache, watch=stop)
    assert kept_choices(cache) > 0
    cache.rewind(0)
    assert kept_choices(cache) == 0
    torch.testing.assert_close(sharing.logits(sharing.forward(text[:50], cache)), expected[:50], atol=1e-4, rtol=0)


def test_texts_that_pass_layer_by_layer_share_their_own_choices(sharing: Decoder) -> None:
    texts = [torch.tensor(prompt(length, seed=length)) for length in (50, 27, 70)]
    found = list(sharing.layerwise(texts, 32))[-1]
    for text, states in zip(texts, found.split([len(text) for text in texts]), strict=True):
        expected = sharing.forward(text, sharing.new_cache(80, 32))
        torch.testing.assert_close(sharing.normed(states), expected, atol=1e-4, rtol=0)
