"""Answers that are held to a grammar: they parse, and nothing else about them changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

import moecli
from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, GenerationConfig
from moecli.engine.constraint import constrain
from moecli.engine.loaded import LoadedModel, LoadOptions, open_for_run
from moecli.engine.sampling import Sampler, Sampling
from moecli.library.resolve import Kind, ModelRef
from moecli.store.progress import silent
from moecli.text import grammar
from moecli.text.grammar import Grammar, GrammarError
from tests.support import checkpoints, toy_tokenizers

TINY = Path(moecli.__file__).parent / "tiny"
ANY_TEXT = grammar.of_regex("(?s:.*)")


class Ship(BaseModel):
    """As clients make their schemas."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=12)
    kind: Literal["brig", "sloop", "raft"]
    masts: int = Field(ge=0, le=9)
    crew: list[int] = Field(max_length=3)
    sunk: bool | None


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    opened = open_for_run(ModelRef("tiny", "tiny", Kind.FOLDER, TINY), LoadOptions(threads=1, context=1024))
    return opened.load(opened.plan(1024), silent)


def answered(tiny: LoadedModel, given: Grammar | None, seed: int = 0, most: int = 200, **more: Any) -> Answer:
    temperature = more.pop("temperature", 1.0)
    config = GenerationConfig(Sampling(temperature, **more.pop("sampling", {})), seed, most, grammar=given, **more)
    answer = Answer()
    assert "".join(ChatSession(tiny, config).ask("The sea", answer)) == answer.text
    return answer


def test_an_answer_that_is_not_cut_obeys_its_schema(tiny: LoadedModel) -> None:
    whole = 0
    for seed in range(8):
        sampling = {"top_k": (0, 5)[seed % 2], "repeat_penalty": (1.0, 1.3)[seed % 3 == 0]}
        answer = answered(tiny, grammar.of_schema(Ship.model_json_schema()), seed, sampling=sampling)
        if answer.finish_reason == "stop":
            assert Ship.model_validate_json(answer.text)
            whole += 1
    assert whole > 4


def test_at_the_limit_it_says_so(tiny: LoadedModel) -> None:
    answer = answered(tiny, grammar.of_schema(Ship.model_json_schema()), most=5)
    assert answer.finish_reason == "length" and len(answer.token_ids) == 5 and answer.text.startswith("{")


def test_a_grammar_of_any_text_changes_nothing_where_nothing_is_drawn(tiny: LoadedModel) -> None:
    plain, held = (answered(tiny, given, 0, 60, temperature=0.0, top_logprobs=2) for given in (None, ANY_TEXT))
    assert (held.text, held.token_ids, held.scores) == (plain.text, plain.token_ids, plain.scores)


@pytest.mark.parametrize("options", [{}, {"top_k": 40}, {"top_p": 0.9, "min_p": 0.01}])
def test_the_same_draws_among_what_is_allowed(tiny: LoadedModel, options: dict[str, Any]) -> None:
    """Against tokens that are tried one by one."""
    opened, sampling = tiny.opened, Sampling(0.8, **options)
    given = grammar.of_schema({"type": "array", "items": {"enum": ["red", "green", 7]}, "minItems": 3})
    matcher = grammar.matcher(given, opened.tokenizer, opened.end_ids)
    held, free = Sampler(sampling, 5, constrain(opened, given)), Sampler(sampling, 5)
    for step in range(12):
        logits = torch.randn(opened.spec.vocab_size, generator=torch.Generator().manual_seed(step)) * 3
        allowed = [token for token in range(len(logits)) if matcher.validate_tokens([token])]
        masked = torch.full_like(logits, -torch.inf)
        masked[allowed] = logits[allowed]
        token = free.pick(masked, [])
        assert held.pick(logits, []) == token in allowed
        matcher.consume_token(token)


def test_drafts_are_held_to_it_as_well(tiny: LoadedModel) -> None:
    """Repeated lines make guesses, right and wrong; some lie behind the end of the answer."""
    row = {"type": "object", "properties": {"colour": {"const": "red"}, "size": {"enum": [1, 2]}}}
    row |= {"required": ["colour", "size"], "additionalProperties": False}
    given = grammar.of_schema({"type": "array", "items": row, "minItems": 4, "maxItems": 6})
    drafted = 0
    for seed in range(2):
        guessed, plain = (answered(tiny, given, seed, 300, lookup=lookup) for lookup in (True, False))
        assert (guessed.text, guessed.token_ids) == (plain.text, plain.token_ids)
        assert guessed.finish_reason == plain.finish_reason == "stop"
        drafted += guessed.timing.drafted
    assert drafted > 5


def test_a_whole_answer_ends_at_once_and_keeps_its_spaces(tiny: LoadedModel) -> None:
    answer = answered(tiny, grammar.of_regex(" the sea!"))
    assert (answer.text, answer.finish_reason) == (" the sea!", "stop")
    assert tiny.opened.tokenizer.decode(answer.token_ids).strip() == "the sea!"


def test_tokens_that_end_nothing_are_never_taken_for_an_end(tmp_path: Path) -> None:
    """A model without an end token: what may end, and may go on, goes on."""
    backend = toy_tokenizers.byte_level()
    rows = backend.get_vocab_size() + 9  # of padding, which is no text
    checkpoints.write(checkpoints.make("mixtral", vocab_size=rows, eos_token_id=None), tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    opened = open_for_run(ModelRef("m", "m", Kind.FOLDER, tmp_path), LoadOptions(threads=1))
    assert not opened.end_ids
    constraint = constrain(opened, grammar.of_regex("[ab]*"))
    allowed = torch.isfinite(constraint.masked(torch.zeros(rows))).nonzero().flatten().tolist()
    assert allowed and {opened.tokenizer.decode([token])[0] for token in allowed} == {"a", "b"}
    for token in allowed[:1] * 3:
        constraint.accept(token)
    assert constraint.length is None and constraint.copy().length is None


def test_a_token_that_may_not_follow_is_an_error(tiny: LoadedModel) -> None:
    constraint = constrain(tiny.opened, grammar.of_regex("[ab]+"))
    for ask in (lambda: constraint.accept(tiny.opened.tokenizer.encode("c", special=False)[-1]),
                lambda: constraint.masked(torch.zeros(tiny.opened.spec.vocab_size))):  # fmt: skip
        with pytest.raises(GrammarError, match="cannot go on as the grammar wants it: Parser Error") as broken:
            ask()
        assert "\n" not in broken.value.message and "<state>" not in broken.value.message
