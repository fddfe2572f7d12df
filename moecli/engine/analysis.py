"""Records a trace of a set of prompts, in any memory: layer by layer over all of them, or prompt by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random

import torch

from moecli.engine.chat import Conversation, GenerationConfig
from moecli.engine.decoder import Decoder
from moecli.engine.generate import Session, Timing
from moecli.engine.layerwise import groups
from moecli.engine.loaded import LoadedModel, OpenedModel
from moecli.engine.recorder import LayerwiseRecorder, Text, finish, new_builders, new_recorder
from moecli.engine.sampling import Sampler
from moecli.errors import UsageError
from moecli.kernels.blocking import BUCKET, CHUNK
from moecli.planning.placement import fit_layerwise
from moecli.routing.builder import TraceBuilder
from moecli.routing.prompts import Prompt
from moecli.routing.recorded import Recorded, described
from moecli.store.progress import Progress
from moecli.text.spans import sentinels, with_gaps

Builders = Mapping[str, TraceBuilder]
_LONGEST = 4096  # tokens read as one text; longer ones are read in pieces


def record(
    opened: OpenedModel,
    config: GenerationConfig,
    prompts: Sequence[Prompt],
    limit: int | None,
    progress: Progress,
    watch: Progress,
    keep_probabilities: bool = False,
) -> dict[str, Recorded]:
    """Read up to `limit` tokens of the prompts, and generate up to the config's `max_tokens` after each.

    With nothing to generate, all prompts pass one layer before any passes the next, so that each expert is asked for
    once per layer, or once per group of prompts where memory for all of them is short. `watch` is told of tokens.

    Of an encoder-decoder model both stacks are recorded, each by itself. With nothing to generate it reads as it was
    taught: the encoder each text with gaps, the decoder what is missing.
    """
    spec, streams, max_tokens = opened.spec, opened.model.streams, config.max_tokens
    builders = new_builders(opened.name, spec, keep_probabilities)
    longest = min(opened.options.context or _LONGEST, spec.context_length - max_tokens)
    if longest < 1:
        raise UsageError(
            f"--max-tokens {max_tokens} leaves no room for a prompt",
            f"the model's context is {spec.context_length} tokens",
        )
    empty = Conversation(opened, config)
    texts = _cut([(prompt.domain, empty.prompt(prompt.text, prompt.turns)) for prompt in prompts], longest, limit)
    sizes = [len(text.ids) for text in texts]
    most, total = -(-max(sizes) // BUCKET) * BUCKET + max_tokens, sum(sizes)
    if max_tokens:
        plan = opened.plan(most)
        _generate(opened.load(plan, progress), config, texts, builders, watch)
    elif spec.encoder:
        plan = opened.plan(most)
        _fill(opened.load(plan, progress), config, texts, builders, watch)
    else:
        plan = opened.choose(
            lambda dtype: fit_layerwise(
                spec, dtype, most, total, opened.ram, streams, opened.vram_for(dtype), opened.model.unpacked(dtype)
            )
        )
        _layerwise(opened.decoder(plan, progress), plan.memory.block, texts, builders[""], watch)
    traces = finish(builders, spec, opened.tokenizer, opened.name, plan.memory.dtype)
    return {stack: described(trace, spec) for stack, trace in traces.items()}


def _cut(texts: Sequence[tuple[str, Sequence[int]]], longest: int, limit: int | None) -> list[Text]:
    """In pieces of at most `longest` tokens, each read by itself and numbered as its prompt, since the pieces of one
    prompt are no independent sample; `limit` tokens in all, shared out among domains."""
    left = _shares(texts, limit)
    pieces: list[Text] = []
    for prompt, (domain, ids) in enumerate(texts):
        for start in range(0, len(ids), longest):
            if piece := ids[start : start + min(longest, left[domain])]:
                pieces.append(Text(prompt, domain, piece))
                left[domain] -= len(piece)
    return pieces


def _shares(texts: Sequence[tuple[str, Sequence[int]]], limit: int | None) -> dict[str, int]:
    """Tokens to read of each domain; what the smallest leave is shared by the others."""
    sizes: Counter[str] = Counter()
    for domain, ids in texts:
        sizes[domain] += len(ids)
    if limit is None:
        return sizes
    shares: dict[str, int] = {}
    for domain in sorted(sizes, key=lambda name: sizes[name]):
        fair = -(-(limit - sum(shares.values())) // (len(sizes) - len(shares)))
        shares[domain] = min(sizes[domain], fair)
    return shares


def _layerwise(decoder: Decoder, together: int, texts: Sequence[Text], builder: TraceBuilder, watch: Progress) -> None:
    """In groups of at most `together` tokens. A group half of whose layers are done counts as half its tokens."""
    done, total = 0, sum(len(text.ids) for text in texts)
    for group in groups(texts, together):
        recorder, size = LayerwiseRecorder(decoder.spec, builder, group), sum(len(text.ids) for text in group)
        part = partial(_share, watch, done, size, total)
        decoder.layerwise_prefill([torch.tensor(text.ids) for text in group], CHUNK, recorder, part)
        done += size


def _share(watch: Progress, before: int, size: int, total: int, done: int, of: int) -> None:
    watch(before + size * done // of, total)


def _fill(
    loaded: LoadedModel, config: GenerationConfig, texts: Sequence[Text], builders: Builders, watch: Progress
) -> None:
    """Text by text, the gaps chosen by the config's seed."""
    recorder, decoder = new_recorder(loaded.opened.spec, builders), loaded.decoder
    random, names = Random(config.seed), list(sentinels(loaded.opened.tokenizer))
    end = loaded.opened.tokenizer.eos_id
    done, total = 0, sum(len(text.ids) for text in texts)
    for text in texts:
        recorder.begin(text.prompt, text.domain)
        ended = text.ids[-1] == end
        read, written = with_gaps(text.ids[:-1] if ended else text.ids, names, random)
        decoder.read(torch.tensor([*read, *text.ids[-1:]] if ended else read), loaded.cache, recorder)
        decoder.forward(torch.tensor([decoder.spec.start_id, *written]), loaded.cache, recorder)
        done += len(text.ids)
        watch(done, total)
    recorder.flush()


def _generate(
    loaded: LoadedModel, config: GenerationConfig, texts: Sequence[Text], builders: Builders, watch: Progress
) -> None:
    """Text by text. The last token generated is fed too, to see its routing."""
    recorder = new_recorder(loaded.opened.spec, builders)
    done, total = 0, sum(len(text.ids) for text in texts)
    for text in texts:
        recorder.begin(text.prompt, text.domain)
        sampler = Sampler(config.sampling, config.seed)
        session = Session(loaded.decoder, loaded.cache)
        for token in session.generate(text.ids, sampler, config.max_tokens + 1, Timing(), recorder):
            if token in loaded.opened.end_ids:
                break
        done += len(text.ids)
        watch(done, total)
    recorder.flush()
