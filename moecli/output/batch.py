"""How far a batch is, while it goes and at its end."""

from __future__ import annotations

import time

from moecli.engine.loaded import LoadedModel
from moecli.output import tables, terminal
from moecli.units import figure, format_bytes, format_duration

_OFTEN = 0.1  # seconds between two looks
_KNOWN = 1.0  # seconds after which a rate means something


class Meter:
    """answering: 12 of 64, 1,200 of at most 7,355 tokens, 41 tokens/s, at most 2 min 30 s left"""

    def __init__(self, line: terminal.Line, prompts: int) -> None:
        self._line, self._prompts = line, prompts
        self._began = self._shown = time.monotonic()
        self.tokens = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, over: int, done: int, most: int) -> None:
        """Answers that are over; tokens done, of prompts and answers, of how many at most."""
        now, self.tokens = time.monotonic(), done
        if now - self._shown < _OFTEN:
            return
        self._shown, spent = now, now - self._began
        said = f"answering: {over:,} of {self._prompts:,}"
        tokens = f"{said}, {done:,} of at most {most:,} tokens"
        if done and spent > _KNOWN:
            left = f"at most {format_duration((most - done) * spent / done)} left"
            self._line.show(f"{tokens}, {figure(done / spent)} tokens/s, {left}", f"{said}, {left}", left)
        else:
            self._line.show(tokens, said)


def tell(loaded: LoadedModel, meter: Meter, answers: int) -> None:
    """64 answers; 33,200 tokens of prompts and answers in 5 min, 110 tok/s; 3.2 GiB read from disk"""
    rate = figure(meter.tokens / meter.seconds) if meter.seconds else "-"
    read = loaded.decoder.experts.statistics.bytes_read
    disk = f"; {format_bytes(read)} read from disk" if read else ""
    said = f"{answers:,} answers"
    tokens = f"{meter.tokens:,} tokens of prompts and answers in {format_duration(meter.seconds)}, {rate} tok/s"
    tables.whisper(f"{said}; {tokens}{disk}", f"{said}; {meter.tokens:,} tokens, {rate} tok/s{disk}", said)
