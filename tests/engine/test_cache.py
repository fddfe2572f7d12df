"""The KV cache changes nothing but time: chunks, single steps, sliding windows, edited turns, interruptions."""

from __future__ import annotations

import json
from functools import cache as remembered
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moecli.engine.cache import Cache, LayerCache, cache_rows
from moecli.engine.decoder import Decoder
from moecli.engine.generate import Timing
from moecli.engine.router import Routing
from moecli.engine.sampling import Sampler, Sampling
from moecli.kernels.library import library
from moecli.model.spec import MLA, GroupedQuery, Rope
from tests.support.checkpoints import make, prompt, write
from tests.support.running import answer, greedy, load, score, session

pytestmark = pytest.mark.slow

TEXT = prompt(60)
MODELS = {
    "window": ("mixtral", {"sliding_window": 9}),
    "some windows": (
        "qwen2_moe", {"sliding_window": 7, "use_sliding_window": True, "num_hidden_layers": 3, "max_window_layers": 2}
    ),
    "latent": ("deepseek_v2", {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
        "mscale": 0.7, "mscale_all_dim": 0.7,
    }}),
    "an indexer": ("deepseek_v32", {"index_topk": 17}),
    "a shared indexer": ("glm_moe_dsa", {"index_topk": 17, "indexer_types": ["full", "shared", "shared"]}),
    "clip": ("dbrx", {"attn_config": {"clip_qkv": 0.5}}),
    "head norms": ("qwen3_moe", {}),
    "attention in chunks": ("llama4", {"attention_chunk_size": 9}),
    "keys as values": ("gemma4", {"sliding_window": 9}),
    "gates": ("laguna", {"sliding_window": 7}),
    "one norm": ("cohere2_moe", {"sliding_window": 9}),
}  # fmt: skip


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    return {
        name: load(write(make(family, **changes), tmp_path_factory.mktemp("model")))
        for name, (family, changes) in MODELS.items()
    }


@pytest.fixture(scope="module")
def whole(decoders: dict[str, Decoder]) -> dict[str, torch.Tensor]:
    """Logits of TEXT in one pass."""
    return {name: score(decoder, TEXT) for name, decoder in decoders.items()}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_chunks_of_any_size_give_the_same_logits(
    name: str, decoders: dict[str, Decoder], whole: dict[str, torch.Tensor]
) -> None:
    @settings(max_examples=12)
    @given(st.integers(1, len(TEXT)))
    @example(1)
    @example(7)
    @example(8)
    @example(9)
    @example(10)
    def check(chunk: int) -> None:
        assert close(score(decoders[name], TEXT, chunk), whole[name])

    check()


@pytest.mark.parametrize("name", MODELS)
def test_pieces_of_mixed_sizes_give_the_same_logits(
    name: str, decoders: dict[str, Decoder], whole: dict[str, torch.Tensor]
) -> None:
    """Each piece is itself split by the cache's chunk."""

    @settings(max_examples=12)
    @given(st.lists(st.integers(1, 25), min_size=1, max_size=12), st.integers(1, 12))
    def check(sizes: list[int], chunk: int) -> None:
        cache = decoders[name].new_cache(len(TEXT), chunk)
        begin = 0
        for size in sizes:
            part = torch.tensor(TEXT[begin : begin + size])
            if len(part):
                states = decoders[name].forward(part, cache)
                begin += len(part)
        assert cache.length == begin
        assert close(decoders[name].logits(states), whole[name][begin - len(states) : begin])

    check()


@pytest.mark.skipif(library() is None, reason="torch's own products depend on their height")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "q8", "q4", "nf4"])
@pytest.mark.parametrize("name", MODELS)
def test_no_bit_of_a_prompt_depends_on_chunks_and_blocks(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks and chunks of one token, of what is left over, of all: memory decides about them, not about the answer."""
    family, changes = MODELS[name]
    decoder = load(write(make(family, **changes), tmp_path), dtype)
    text = torch.tensor(prompt(200))  # latents are expanded for so many, for fewer not
    found = []
    for block, chunk in ((200, 200), (200, 1), (7, 3), (199, 150), (64, 64), (33, 32)):
        monkeypatch.setattr("moecli.engine.decoder.BLOCK", block)
        cache = decoder.new_cache(len(text) + 1, chunk)
        found.append([decoder.forward(text, cache, last_only=True), decoder.forward(text[:1], cache)])
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(each, found[0], strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_generated_text_scores_the_same_in_one_pass(name: str, decoders: dict[str, Decoder]) -> None:
    decoder = decoders[name]
    cache = decoder.new_cache(60, 8)
    states, text, steps = decoder.forward(torch.tensor(TEXT[:20]), cache), TEXT[:20], []
    for _ in range(30):
        steps.append(decoder.logits(states[-1:])[0])
        text = [*text, int(steps[-1].argmax())]
        states = decoder.forward(torch.tensor(text[-1:]), cache)
    assert close(torch.stack(steps), score(decoder, text)[19:49])


@pytest.mark.parametrize("name", MODELS)
def test_later_turns_reuse_what_they_share(name: str, decoders: dict[str, Decoder]) -> None:
    running = session(decoders[name], 200, chunk=16)
    text = TEXT[:20]
    for turn in range(4):
        timing = Timing()
        reply = list(running.generate(text, Sampler(Sampling(), 0), 6, timing))
        assert reply == greedy(decoders[name], text, 6)
        assert timing.prompt_tokens == len(text)
        assert timing.cached_tokens == (0 if turn == 0 else len(text) - 5 - 1)  # all but the last reply and the new
        text = text + reply + TEXT[turn : turn + 5]


@pytest.mark.parametrize("keep", [0, 1, 30, 57, 58, 59, 60])
@pytest.mark.parametrize("name", MODELS)
def test_going_back_in_the_text(name: str, keep: int, decoders: dict[str, Decoder]) -> None:
    """An edited earlier turn: as much as possible is kept, and the answer is that of a fresh session."""
    running = session(decoders[name], 200, chunk=16)
    answer(running, TEXT, 8)
    timing = Timing()
    edited = [*TEXT[:keep], 96 - TEXT[keep] if keep < len(TEXT) else 5, 3, 5]
    again = list(running.generate(edited, Sampler(Sampling(), 0), 8, timing))
    assert again == greedy(decoders[name], edited, 8)
    windowed = any(layer.attention.window for layer in decoders[name].spec.layers)
    assert timing.cached_tokens in ({0, keep} if windowed else {keep})


def test_a_window_that_still_holds_what_is_seen_is_kept(decoders: dict[str, Decoder]) -> None:
    running = session(decoders["window"], 200, chunk=16)
    answer(running, TEXT, 3)
    timing = Timing()
    list(running.generate([*TEXT[:58], 1], Sampler(Sampling(), 0), 1, timing))
    assert timing.cached_tokens == 58


def test_the_same_prompt_again_feeds_only_its_last_token(decoders: dict[str, Decoder]) -> None:
    running = session(decoders["clip"])
    first = answer(running, TEXT, 5)
    timing = Timing()
    assert list(running.generate(TEXT, Sampler(Sampling(), 0), 5, timing)) == first
    assert timing.cached_tokens == len(TEXT) - 1


class Interruption:
    """A trace that stops the forward pass in some layer, as Ctrl-C does."""

    generated = False

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def tokens(self, ids: torch.Tensor) -> None:
        """They are not looked at."""

    def foresee(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Not of interest."""

    def record(self, layer: int, routing: Routing) -> None:
        if layer == self.layer:
            raise KeyboardInterrupt


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["window", "clip"])
def test_after_an_interrupted_pass_nothing_of_it_remains(name: str, layer: int, decoders: dict[str, Decoder]) -> None:
    running = session(decoders[name], 200, chunk=16)
    answer(running, TEXT[:30], 4)
    with pytest.raises(KeyboardInterrupt):
        list(running.generate(TEXT, Sampler(Sampling(), 0), 4, Timing(), Interruption(layer)))
    timing = Timing()
    again = list(running.generate(TEXT, Sampler(Sampling(), 0), 4, timing))
    assert again == greedy(decoders[name], TEXT, 4)
    assert timing.cached_tokens == 0


def test_a_generator_that_is_dropped_leaves_a_usable_session(decoders: dict[str, Decoder]) -> None:
    running = session(decoders["head norms"])
    stream = running.generate(TEXT, Sampler(Sampling(), 0), 8, Timing())
    first = [next(stream), next(stream)]
    stream.close()
    text = [*TEXT, *first, 7]
    assert answer(running, text, 4) == greedy(decoders["head norms"], text, 4)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_frequencies_that_follow_the_length_do_not_depend_on_chunks(rope_type: str, tmp_path: Path) -> None:
    """The whole prompt is rotated for its whole length, however it is fed; short texts are not touched by long ones."""
    folder = write(make("mixtral"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 32}
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0} | (factors if rope_type == "longrope" else {})
    config |= {"rope_parameters": rope, "max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(config))
    decoder = load(folder)

    def last(ids: list[int], chunk: int) -> torch.Tensor:
        return decoder.logits(decoder.forward(torch.tensor(ids), decoder.new_cache(80, chunk))[-1:])

    short, long = last(TEXT[:20], 80), last(TEXT, 80)
    for chunk in (1, 7, 33):
        assert close(last(TEXT, chunk), long)
        assert close(last(TEXT[:20], chunk), short)


# The buffers themselves


@remembered
def grouped(window: int | None) -> GroupedQuery:
    return GroupedQuery(2, 1, 4, Rope(1e4, 4), scale=1.0, window=window)


def positions(*numbers: int) -> torch.Tensor:
    """[T, 1, 4] whose numbers are the positions."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None].expand(-1, 1, 4)


def test_rows_past_the_end_never_count(decoders: dict[str, Decoder], whole: dict[str, torch.Tensor]) -> None:
    """Attention reads whole buckets, so what an earlier text left behind the end is read, at weight 0."""
    for name, decoder in decoders.items():
        cache = decoder.new_cache(200, 60)
        for layer in cache.layers:
            for buffer in layer.buffers:
                buffer.fill_(1e4)
        assert close(decoder.logits(decoder.forward(torch.tensor(TEXT), cache)), whole[name])


def test_rows_are_reserved_for_what_can_be_seen() -> None:
    assert cache_rows(grouped(None), 1000, 16) == 1000
    assert cache_rows(grouped(10), 1000, 16) == 26
    assert cache_rows(grouped(10), 1000, 4) == 20
    assert cache_rows(grouped(10), 12, 4) == 12


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_a_windowed_cache_holds_every_key_that_a_query_sees(window: int, chunk: int, sizes: list[int]) -> None:
    cache = LayerCache(grouped(window), cache_rows(grouped(window), 10_000, chunk), torch.float32, torch.device("cpu"))
    for size in (min(size, chunk) for size in sizes):
        begin = cache.length
        keys, values = cache.append(positions(*range(begin, begin + size)), positions(*range(begin, begin + size)))
        assert cache.length == begin + size
        assert keys[0, : cache.length - cache.first, 0].tolist() == list(range(cache.first, cache.length))
        assert cache.first <= max(0, begin - window + 1)
        assert torch.equal(keys, values)


@settings(max_examples=40)
@given(st.integers(2, 9), st.integers(1, 40), st.integers(0, 40))
def test_rewinding_keeps_a_length_only_when_its_window_is_held(window: int, fed: int, back: int) -> None:
    cache = LayerCache(grouped(window), cache_rows(grouped(window), 10_000, 4), torch.float32, torch.device("cpu"))
    for position in range(fed):
        cache.append(positions(position), positions(position))
    length = min(back, fed)
    assert cache.can_rewind(length) == (cache.first <= max(0, length - window + 1))


def test_a_cache_has_the_size_that_its_spec_says(decoders: dict[str, Decoder]) -> None:
    for decoder in decoders.values():
        cache: Cache = decoder.new_cache(50, 8)
        for layer, kept in zip(decoder.spec.layers, cache.layers, strict=True):
            rows = cache_rows(layer.attention, 50, 8)
            width = layer.attention.cache_width
            if isinstance(layer.attention, MLA) and layer.attention.indexer and not layer.attention.indexer.shared:
                width += layer.attention.indexer.head_dim  # its keys
            assert sum(buffer.numel() for buffer in kept.buffers) == rows * width
