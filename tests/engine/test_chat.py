"""A conversation: what was said is in the next prompt, what failed is not, what was interrupted as far as it came."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import moecli
from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, Conversation, GenerationConfig, RecordedSession, plan_for
from moecli.engine.loaded import LoadedModel, LoadOptions, OpenedModel, open_for_run
from moecli.engine.recorder import new_builders
from moecli.engine.sampling import Sampling
from moecli.errors import CheckpointError, MoecliError
from moecli.library.resolve import Kind, ModelRef

TINY = Path(moecli.__file__).parent / "tiny"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
FEW = GenerationConfig(Sampling(), 0, max_tokens=5)


def opened(folder: Path, **options: object) -> OpenedModel:
    return open_for_run(ModelRef(str(folder), "it", Kind.FOLDER, folder), LoadOptions(threads=1, ram=2**33, **options))


def loaded(one: OpenedModel, context: int = 64) -> LoadedModel:
    return one.load(one.plan(context), lambda done, total: None)


@pytest.fixture(scope="module")
def base() -> OpenedModel:
    return opened(TINY)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("chat") / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return opened(folder)


def test_a_base_model_goes_on_in_one_text(base: OpenedModel) -> None:
    talk = Conversation(base, FEW)
    assert not talk.is_chat
    encode = base.tokenizer.encode
    first = talk.prompt("The sea")
    assert first == encode("The sea", special=True)
    talk.add("The sea", first, Answer(" is", encode(" is", special=False)))
    assert talk.prompt(" wide") == [*first, *encode(" is", special=False), *encode(" wide", special=False)]
    talk.clear()
    assert talk.prompt("The sea") == first


def test_a_chat_has_turns_and_a_system_message(chatty: OpenedModel) -> None:
    encode = chatty.tokenizer.encode
    plain, told = Conversation(chatty, FEW), Conversation(chatty, GenerationConfig(Sampling(), 0, system="be brief"))
    assert plain.is_chat and told.is_chat
    assert not Conversation(chatty, GenerationConfig(Sampling(), 0, raw=True)).is_chat
    for talk, system in ((plain, ""), (told, "<system>be brief")):
        prompt = talk.prompt("hello")
        assert prompt == encode(f"{system}<user>hello<assistant>", special=False)
        talk.add("hello", prompt, Answer("good day", [1, 2]))
        expected = f"{system}<user>hello<assistant>good day<user>more<assistant>"
        assert talk.prompt("more") == encode(expected, special=False)
        talk.clear()
        assert talk.prompt("hello") == prompt


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(base: OpenedModel) -> None:
    talk = Conversation(base, FEW)
    largest = max(talk.prompt("The sea"))
    talk._vocab_size = largest + 1
    talk.prompt("The sea")
    talk._vocab_size = largest
    with pytest.raises(CheckpointError, match=f"knows id {largest} and the model only {largest}"):
        talk.prompt("The sea")


def test_a_context_has_room_for_prompt_and_answer(base: OpenedModel) -> None:
    prompt = len(Conversation(base, FEW).prompt("The sea"))
    assert plan_for(base, FEW, "The sea").memory.context == prompt + 5
    exact = opened(TINY, context=prompt)
    assert plan_for(exact, FEW, "The sea").memory.context == prompt
    with pytest.raises(MoecliError, match=f"the prompt is {prompt} tokens and the context {prompt - 1}"):
        plan_for(opened(TINY, context=prompt - 1), FEW, "The sea")
    assert plan_for(opened(TINY, context=70), FEW, None).memory.context == 70


def test_an_answer_is_in_the_next_prompt_even_if_it_was_interrupted(base: OpenedModel) -> None:
    whole, cut = ChatSession(loaded(base), FEW), ChatSession(loaded(base), FEW)
    assert not whole.is_chat
    answer, part = Answer(), Answer()
    list(whole.ask("The sea", answer))
    assert len(answer.token_ids) == 5 and answer.finish_reason == "length"
    said = cut.ask("The sea", part)
    next(said)
    said.close()
    assert 0 < len(part.token_ids) < 5 and part.finish_reason == "interrupt"
    again, expected = Answer(), Answer()
    list(cut.ask(" and", again))
    fresh = ChatSession(loaded(base), FEW)
    list(fresh.ask("The sea" + part.text + " and", expected))
    assert again.timing.cached_tokens > 0 and expected.timing.cached_tokens == 0
    assert again.timing.prompt_tokens == expected.timing.prompt_tokens
    assert again.token_ids == expected.token_ids
    cut.clear()
    first = Answer()
    list(cut.ask("The sea", first))
    assert first.token_ids == answer.token_ids


def test_a_failed_turn_is_forgotten(base: OpenedModel) -> None:
    session = ChatSession(loaded(base, 16), FEW)
    with pytest.raises(MoecliError, match="and the context 16"):
        list(session.ask("word " * 40, Answer()))
    answer, expected = Answer(), Answer()
    list(session.ask("The sea", answer))
    list(ChatSession(loaded(base, 16), FEW).ask("The sea", expected))
    assert answer.token_ids == expected.token_ids and answer.timing.prompt_tokens == expected.timing.prompt_tokens


def test_what_ends_an_answer_is_asked_of_model_and_user(base: OpenedModel) -> None:
    answer = Answer()
    list(ChatSession(loaded(base), FEW).ask("The sea", answer))
    word = answer.text.split()[1]
    stopped = Answer()
    list(ChatSession(loaded(base), GenerationConfig(Sampling(), 0, 5, (word,))).ask("The sea", stopped))
    assert stopped.finish_reason == "stop" and stopped.text == answer.text.partition(word)[0]


def test_turns_of_a_recording_are_numbered_failed_ones_too(base: OpenedModel) -> None:
    session = RecordedSession(loaded(base, 24), FEW, new_builders(base.name, base.spec))
    assert session.traces() == {}
    list(session.ask("The sea", Answer()))
    with pytest.raises(MoecliError):
        list(session.ask("word " * 60, Answer()))
    list(session.ask(" and", Answer()))
    trace = session.traces()[""]
    assert trace is not None and sorted(set(trace.prompt.tolist())) == [0, 2]
    assert trace.generated.sum() == 2 * 4  # the last id of an answer was never read
