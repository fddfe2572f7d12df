"""One answer that is held to a grammar: which tokens may come next, and whether it is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moecli.engine.loaded import OpenedModel
from moecli.text.grammar import Grammar, GrammarError, matcher

if TYPE_CHECKING:
    from llguidance import LLMatcher

_NEVER = torch.tensor(-torch.inf)
# Each byte's bits as bytes, the lowest first: eight at a time.
_SPREAD = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64).ravel()


def constrain(opened: OpenedModel, grammar: Grammar) -> Constraint:
    """The constraint of a new answer of this model. GrammarError if it cannot be held to the grammar."""
    if opened.spec.encoder:
        raise GrammarError(f"{opened.name} fills gaps in a text, which no grammar is for", "leave the grammar out")
    ends = opened.end_ids
    guide = opened.tokenizer.guide(ends)
    guessed = frozenset(guide.eos_tokens) - ends  # by the library, where the model has none
    return Constraint(matcher(grammar, opened.tokenizer, ends), guide.vocab_size, ends, guessed)


class Constraint:
    """Told of each token in turn; whatever draws them asks before each."""

    def __init__(self, matcher: LLMatcher, size: int, ends: frozenset[int], never: frozenset[int]) -> None:
        """`size`: of the matcher's vocabulary; `ends`: tokens that end an answer; `never`: what it takes for such."""
        self._matcher, self._size, self._ends, self._never = matcher, size, ends, never
        self._bits = np.zeros(-(-size // 32) * 4, np.uint8)  # the library fills whole words
        self._address = self._bits.ctypes.data
        self._eights = np.zeros(len(self._bits), np.uint64)
        self._allowed = torch.from_numpy(self._eights.view(np.bool_))  # the bits, a byte each
        self._accepted = 0
        self.length: int | None = None  # tokens of the answer, once it is whole and nothing may follow but its end

    def copy(self) -> Constraint:
        """A new answer's, of one that is new."""
        return Constraint(self._matcher.deep_copy(), self._size, self._ends, self._never)

    def masked(self, logits: Tensor) -> Tensor:
        """`logits` [V] with no chance left for what may not come next. GrammarError if nothing may."""
        if self.length is not None:  # a draft looks beyond the end: what is drawn there is thrown away
            return logits
        self._matcher.unsafe_compute_mask_ptr(self._address, len(self._bits))
        if self._matcher.is_error():
            raise self._broken()
        np.take(_SPREAD, self._bits, out=self._eights, mode="clip")  # "raise" would copy it
        for token in self._never:
            self._allowed[token] = False
        known = len(self._allowed)
        if len(logits) > known:  # rows that stand for no token
            masked = torch.full_like(logits, -torch.inf)
            masked[:known] = torch.where(self._allowed, logits[:known], _NEVER)
            return masked
        return torch.where(self._allowed[: len(logits)], logits, _NEVER)

    def accept(self, token: int) -> None:
        """It goes on with this token. GrammarError if nothing may follow, so that it is one that may not."""
        if self.length is not None:
            return
        if token not in self._ends:
            if not self._matcher.consume_token(token):
                raise self._broken()
            self._accepted += 1
        if token in self._ends or self._matcher.is_stopped():
            self.length = self._accepted

    def _broken(self) -> GrammarError:
        reason = " ".join(self._matcher.get_error().partition("<state>")[0].split())[:200]
        return GrammarError(f"the answer cannot go on as the grammar wants it: {reason}", "simplify the grammar")
