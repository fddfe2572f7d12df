"""`--session`: a later run reads only what is new; a full disk and a file of somebody else's cost no answer."""

from __future__ import annotations

from pathlib import Path

from tests.support.in_process import moecli

HISTORY = "The sea was calm and the ship was far away, and the captain slept. " * 48
OPTIONS = ("--ctx", "2048", "--temperature", "0.8", "--seed", "1", "-n", "8", "--json", "--logprobs", "0")


def test_a_second_run_feeds_a_tenth_and_says_the_same(tmp_path: Path) -> None:
    session = tmp_path / "session"
    first = moecli("run", "tiny", HISTORY, "--session", session, *OPTIONS).json
    assert first["cached_tokens"] == 0 and first["prompt_tokens"] > 1000
    turn = f"{HISTORY}{first['text']} Then the wind came."
    second = moecli("run", "tiny", turn, "--session", session, *OPTIONS).json
    assert 10 * (second["prompt_tokens"] - second["cached_tokens"]) < first["prompt_tokens"]
    plain = moecli("run", "tiny", turn, *OPTIONS).json
    assert [second[key] for key in ("text", "token_ids", "logprobs")] == [
        plain[key] for key in ("text", "token_ids", "logprobs")
    ]
    other = moecli("run", "tiny", turn, "--session", session, *OPTIONS, "--dtype", "q8")
    assert other.code == 0 and "warning: " in other.err and "is of tiny in bf16" in other.err
    assert other.json["cached_tokens"] == 0


def test_a_disk_that_takes_nothing_is_one_error_after_the_answer(tmp_path: Path) -> None:
    short = ("-n", "4", "--seed", "1", "--quiet")
    plain = moecli("run", "tiny", "The sea", *short)
    found = moecli("run", "tiny", "The sea", "--session", "/dev/full", *short)
    assert (found.code, found.out) == (1, plain.out)
    assert found.err == "error: the session /dev/full is no regular file\nhint: name another file\n"
    notes = tmp_path / "notes.txt"
    notes.write_text("of mine")
    found = moecli("run", "tiny", "The sea", "--session", notes, *short)
    assert (found.code, found.out) == (0, plain.out) and "is no session of moecli" in found.err
    assert notes.read_text() == "of mine"
    assert moecli("run", "tiny", "The sea", "--session", notes, "--trace", tmp_path / "t").code == 2
