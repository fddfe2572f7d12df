"""What is typed in a chat beside messages: each command does what it says, and says what it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, GenerationConfig, RecordedSession
from moecli.engine.loaded import LoadedModel, LoadOptions, open_for_run
from moecli.engine.recorder import new_builders
from moecli.engine.sampling import Sampling
from moecli.errors import MoecliError, TextError, UsageError
from moecli.library.resolve import built_in
from moecli.output.chat_commands import COMMANDS, Chat, obey
from moecli.store.progress import silent
from moecli.text import transcript
from moecli.text.chat import Message
from moecli.text.transcript import Transcript

CONFIG = GenerationConfig(Sampling(), 5, max_tokens=20)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    opened = open_for_run(built_in(), LoadOptions(threads=1, ram=2**33))
    return opened.load(opened.plan(256), silent)


@pytest.fixture
def chat(loaded: LoadedModel) -> Chat:
    return Chat(ChatSession(loaded, CONFIG))


def said(chat: Chat, message: str) -> Answer:
    chat.answer = Answer()
    list(chat.session.ask(message, chat.answer))
    return chat.answer


def test_messages_and_commands_are_told_apart(chat: Chat) -> None:
    for message in ("The sea", " /clear", "/usr/bin is full", "/clear\nthe sea", "", "a /clear"):
        assert obey(chat, message) == message
    for command in ("/clear", "/CLEAR ", "/?", "/bye"):
        assert obey(chat, command) is None
    for typed, hint in (
        ("/claer", "did you mean /clear?"),
        ("/frobnicate", "/clear, /retry"),
        ("/", "there are /clear"),
    ):
        with pytest.raises(UsageError, match="unknown command /") as refused:
            obey(chat, typed)
        assert hint in str(refused.value.hint)
    with pytest.raises(UsageError, match="/clear takes nothing"):
        obey(chat, "/clear all")


def test_help_names_every_command(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    obey(chat, "/help")
    shown = capsys.readouterr().err
    assert all(f"  {name}" in shown for name in COMMANDS) and all(len(line) <= 100 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("typed", "field", "value"),
    [
        ("temperature 0.5", "temperature", 0.5), ("--top-k=3", "top_k", 3), ("top_p 0.25", "top_p", 0.25),
        ("MIN-P 0.5", "min_p", 0.5), ("repeat_penalty 2", "repeat_penalty", 2.0), ("seed 9", "seed", 9),
        ("max-tokens 7", "max_tokens", 7),
    ],
)  # fmt: skip
def test_what_is_set_counts_from_the_next_answer_on(chat: Chat, typed: str, field: str, value: float) -> None:
    obey(chat, f"/set {typed}")
    config = chat.session.config
    change = {field: value}
    sampled = field not in ("seed", "max_tokens")
    assert config == (replace(CONFIG, sampling=replace(Sampling(), **change)) if sampled else replace(CONFIG, **change))
    if field == "max_tokens":
        assert len(said(chat, "The sea").token_ids) == value


@pytest.mark.parametrize(
    ("typed", "problem", "hint"),
    [
        ("temperature warm", "temperature 'warm' is not a number", "/set temperature 1"),
        ("top-k 1.5", "is not a whole number", "/set top-k 1"),
        ("temperature 900", "--temperature 900.0 is out of range", "0 to 100"),
        ("max-tokens 0", "max-tokens 0 is out of range", "1 or more"),
        ("temprature 1", "nothing is called temprature", "did you mean temperature?"),
        ("colour red", "nothing is called colour", "/system TEXT"),
        ("markdown maybe", "neither on nor off", "/set markdown on"),
        ("markdown on", "stdout is no terminal", "leave markdown off"),
    ],
)
def test_what_cannot_be_set_changes_nothing(chat: Chat, typed: str, problem: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        obey(chat, f"/set {typed}")
    assert problem in refused.value.message and hint in str(refused.value.hint)
    assert chat.session.config == CONFIG and not chat.markdown


def test_show_and_stats_say_what_there_is(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    obey(chat, "/set top-k 4")
    obey(chat, "/set")
    shown = capsys.readouterr().err
    assert "tiny in bf16, on cpu" in shown and "0 of 256 tokens used" in shown
    assert " top-k           4\n" in shown and " seed            5\n" in shown
    said(chat, "The sea")
    obey(chat, "/stats")
    shown = capsys.readouterr().err
    assert "answer 20 tokens" in shown and "100% in memory; 0 B read from disk" in shown


def test_retry_takes_the_last_turn_back(chat: Chat) -> None:
    with pytest.raises(UsageError, match="nothing was said yet"):
        obey(chat, "/retry")
    said(chat, "The sea")
    said(chat, " and the sky")
    before = chat.session.conversation.messages[:2]
    assert obey(chat, "/retry") == " and the sky"
    assert chat.session.conversation.messages == before and chat.session.config.seed == CONFIG.seed + 1
    again = said(chat, " and the sky")
    fresh = Chat(ChatSession(chat.session.loaded, CONFIG))
    said(fresh, "The sea")
    assert said(fresh, " and the sky").token_ids == again.token_ids  # greedy: no seed counts


def test_a_base_model_has_no_system_message(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        obey(chat, "/system be brief")
    obey(chat, "/system")
    assert capsys.readouterr().err == "system: none\n"


def test_a_conversation_is_kept_and_gone_on_with(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with pytest.raises(UsageError, match="nothing was said yet"):
        obey(chat, f"/save {file}")
    said(chat, "The sea")
    said(chat, " and the sky")
    obey(chat, f"/save {file}")
    obey(chat, f"/save {file}")  # its own is written over
    document = json.loads(file.read_text())
    assert [each["role"] for each in document["messages"]] == ["user", "assistant"] * 2
    other = Chat(ChatSession(chat.session.loaded, CONFIG))
    obey(other, f"/load {file}")
    assert other.session.conversation.messages == chat.session.conversation.messages
    assert said(other, " as well").text == said(chat, " as well").text
    assert obey(other, "/retry") == " as well" and obey(other, "/retry") == " and the sky"


def test_what_is_no_saved_chat_is_neither_read_nor_written_over(chat: Chat, tmp_path: Path) -> None:
    said(chat, "The sea")
    file = tmp_path / "notes.json"
    turns = [{"role": "user", "content": "a"}]
    good = {"kind": "moecli chat", "schema_version": 1, "model": "tiny", "system": None}
    for content in ("", "[]", "{}", '{"kind": "moecli chat"}', json.dumps(good | {"messages": turns}),
                    json.dumps(good | {"messages": [*turns, *turns]}), json.dumps(good | {"messages": [1, 2]}),
                    json.dumps(good | {"messages": [], "system": 3}), "[" * 9999):  # fmt: skip
        file.write_text(content)
        with pytest.raises(TextError, match=r"notes\.json"):
            obey(chat, f"/load {file}")
        with pytest.raises(UsageError, match="is no saved chat"):
            obey(chat, f"/save {file}")
        assert file.read_text() == content
    for name, problem in (
        ("", "needs a file"),
        (f"{tmp_path}/none/talk.json", "no"),
        (str(tmp_path), "irectory|is no saved chat"),
    ):
        for command in ("/load", "/save"):
            with pytest.raises(MoecliError, match=problem):
                obey(chat, f"{command} {name}")
    assert len(chat.session.conversation.messages) == 2 and list(tmp_path.iterdir()) == [file]


def test_a_transcript_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = Transcript("it", "be brief", [Message("user", "é\u2028\x1b"), Message("assistant", "")])
    file = tmp_path / "talk"
    file.write_bytes(transcript.to_bytes(kept))
    assert transcript.read(file) == kept


def test_the_experts_of_an_answer_are_looked_at_without_a_trace_of_it(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same choices as one who watched would have seen, and nothing that follows differs."""
    loaded = chat.session.loaded
    with pytest.raises(UsageError, match="no answer to look at"):
        obey(chat, "/experts")
    watched = RecordedSession(loaded, CONFIG, new_builders(loaded.name, loaded.opened.spec))
    list(watched.ask("The sea", Answer()))
    seen = watched.traces()[""]
    said(chat, "The sea")
    trace = chat.session.routing_of_answer()
    assert trace is not None and trace.ids.tolist() == seen.ids[seen.generated].tolist() and trace.generated.all()
    for mine, theirs in zip(trace.layers, seen.layers, strict=True):
        assert (mine.chosen == theirs.chosen[seen.generated]).all()
    obey(chat, "/experts")
    shown = capsys.readouterr().err
    assert f"{trace.tokens} tokens of the last answer" in shown and "1x, an even share" in shown
    held = [[part.clone() for part in layer.held] for layer in loaded.cache.layers]
    chat.session.routing_of_answer()
    for layer, before in zip(loaded.cache.layers, held, strict=True):
        assert all((now == then).all() for now, then in zip(layer.held, before, strict=True))
    fresh = Chat(ChatSession(loaded, CONFIG))
    after = said(chat, " and the sky").token_ids
    said(fresh, "The sea")
    assert said(fresh, " and the sky").token_ids == after
