"""Train the byte-level BPE tokenizer and turn each domain's text into one array of token ids."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpus import SEPARATOR
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
BOS, EOS = "<s>", "</s>"
SAMPLE_BYTES = {"english": 8_000_000, "code": 5_000_000}
OTHER_SAMPLE_BYTES = 4_000_000


def documents(cache: Path, domain: str) -> list[str]:
    """Training documents of one domain."""
    return (cache / "text" / f"{domain}.txt").read_text("utf-8").split(SEPARATOR)


def sample(cache: Path, domains: list[str]) -> Iterator[str]:
    """A shuffled share of the documents of every domain."""
    for domain in domains:
        texts, used = documents(cache, domain), 0
        random.Random(0).shuffle(texts)
        for text in texts:
            used += len(text.encode())
            if used > SAMPLE_BYTES.get(domain, OTHER_SAMPLE_BYTES):
                break
            yield text


def train(texts: Iterator[str]) -> Tokenizer:
    """A lossless byte-level BPE that puts one <s> before every text and splits digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    return tokenizer


def main() -> None:
    """Write <cache>/tokenizer.json and <cache>/tokens/<domain>.npy."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="only encode, with this tokenizer.json")
    options = parser.parse_args()
    cache: Path = options.cache
    domains = sorted(path.stem for path in (cache / "text").glob("*.txt"))
    if options.keep:
        tokenizer = Tokenizer.from_file(str(options.keep))
    else:
        tokenizer = train(sample(cache, domains))
    tokenizer.save(str(cache / "tokenizer.json"))
    (cache / "tokens").mkdir(exist_ok=True)
    for domain in domains:
        texts = documents(cache, domain)
        ids: list[int] = []
        for start in range(0, len(texts), 1000):
            for encoding in tokenizer.encode_batch(texts[start : start + 1000]):
                ids += [*encoding.ids, 1]
        np.save(cache / "tokens" / f"{domain}.npy", np.array(ids, dtype=np.uint16))
        size = sum(len(text.encode()) for text in texts)
        print(f"{domain:10}{len(ids) / 1e6:8.2f} M tokens, {size / len(ids):.2f} bytes per token", flush=True)


if __name__ == "__main__":
    main()
