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


def constrain(opened: OpenedModel, grammar: Grammar) -> Constraint:
    """The constraint of a new answer of this model. GrammarError if it cannot be held to the grammar."""
    if opened.spec.encoder:
        raise GrammarError(f"{opened.name} fills gaps in a text, which no grammar is for", "leave the grammar out")
    ends = opened.end_ids
    guessed = frozenset(opened.tokenizer.guide(ends).eos_tokens) - ends  # by the library, where the model has none
    return Constraint(matcher(grammar, opened.tokenizer, ends), ends, guessed)


class Constraint:
    """Told of each token in turn; whatever draws them asks before each."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int], never: frozenset[int]) -> None:
        """`ends`: tokens that end an answer; `never`: those that `matcher` takes for such and are none."""
        self._matcher, self._ends, self._never = matcher, ends, never
        self._accepted = 0
        self.length: int | None = None  # tokens of the answer, once it is whole and nothing may follow but its end

    def copy(self) -> Constraint:
        """A new answer's, of one that is new."""
        return Constraint(self._matcher.deep_copy(), self._ends, self._never)

    def masked(self, logits: Tensor) -> Tensor:
        """`logits` [V] with no chance left for what may not come next. GrammarError if nothing may."""
        if self.length is not None:  # a draft looks beyond the end: what is drawn there is thrown away
            return logits
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        forbidden = np.ones(len(logits), bool)
        forbidden[: len(bits)] = bits[: len(logits)] == 0
        forbidden[list(self._never)] = True
        if self._matcher.is_error() or forbidden.all():
            reason = " ".join(self._matcher.get_error().split())[:200] or "its tokenizer has no token that could follow"
            raise GrammarError(f"the answer cannot go on as the grammar wants it: {reason}", "simplify the grammar")
        return logits.masked_fill(torch.from_numpy(forbidden), -torch.inf)

    def accept(self, token: int) -> None:
        """It goes on with this token."""
        if self.length is not None:
            return
        if token not in self._ends:
            self._matcher.consume_token(token)
            self._accepted += 1
        if token in self._ends or (self._matcher.is_stopped() and not self._matcher.is_error()):
            self.length = self._accepted
