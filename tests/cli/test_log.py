"""MOECLI_LOG: lines on stderr of what the program does, none without it, and never a token."""

from __future__ import annotations

import json
import re

import pytest

from moecli.hub.failures import address
from moecli.model import catalog
from tests.support import headers

LINE = re.compile(r"\d+\.\d{3} (debug|info) moecli(\.\w+)+: .+")
QUESTION = ("The sea", "--temperature", "0", "-n", "3", "--quiet")


@pytest.fixture
def packed(moecli):
    assert moecli("pack", "tiny", "--dtype", "q4", "--quiet").returncode == 0
    return "tiny-q4"


def test_debug_shows_resolution_plan_and_reads_and_leaves_stdout_alone(moecli, packed, least_ram):
    command = ("run", packed, *QUESTION, "--ram", least_ram(packed, *QUESTION))
    quiet, log = moecli(*command), moecli(*command, MOECLI_LOG="debug")
    lines = log.stderr.splitlines()
    assert log.stdout == quiet.stdout and quiet.stderr == ""
    assert all(LINE.fullmatch(line) for line in lines)
    for said in ("tiny-q4 is tiny-q4 (store): ", " tokens of context: ", "header of ", " of layer 0, expert "):
        assert any(said in line for line in lines), said


def test_info_says_what_a_model_is_and_nothing_smaller(moecli):
    result = moecli("inspect", "mixtral", "--json", MOECLI_LOG="INFO")
    assert re.fullmatch(r".* info moecli\.library\.\w+: mixtral is mixtral \(catalog\): .*\n", result.stderr)


def test_requests_are_shown_without_the_token(moecli, hub):
    hub.gated = True
    hub.add("somebody/some-mixtral", catalog.find("mixtral").config(), headers.plain(headers.mixtral()))
    result = moecli("inspect", "somebody/some-mixtral", "--json", MOECLI_LOG="debug", HF_TOKEN=hub.token)
    assert result.returncode == 0, result.stderr
    assert re.search(
        r" debug moecli\.hub\.client: GET http://127\S*/config\.json range=None: 200 from 127", result.stderr
    )
    assert hub.token not in result.stderr + result.stdout
    assert any(hub.token in sent.get("authorization", "") for _, sent in hub.seen)


def test_an_address_is_shown_without_what_may_be_secret_in_it():
    assert address("https://me:secret@host:8080/a/b?Signature=secret#secret") == "https://host:8080/a/b"


def test_a_refused_request_and_the_listing_are_shown_without_the_token(moecli, hub):
    hub.add("somebody/some-mixtral", catalog.find("mixtral").config(), headers.plain(headers.mixtral()))
    hub.status = 404
    result = moecli("pull", "somebody/some-mixtral", "--yes", MOECLI_LOG="debug", HF_TOKEN="hf_another")
    assert result.returncode == 1
    assert " debug moecli.hub." in result.stderr and "/api/models/somebody/some-mixtral" in result.stderr
    assert "hf_another" not in result.stderr


def test_a_name_cannot_break_a_line(moecli, tmp_path):
    folder = tmp_path / "no\nsuch"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(catalog.find("mixtral").config()))
    result = moecli("inspect", str(folder), "--json", MOECLI_LOG="debug")
    assert result.returncode == 0, result.stderr
    assert r"no\nsuch" in result.stderr and all(map(LINE.fullmatch, result.stderr.splitlines()))


def test_an_unknown_level_is_wrong_usage(moecli):
    result = moecli("list", MOECLI_LOG="loud")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: MOECLI_LOG is 'loud', which is no level\nhint: it takes debug, info, warning, error\n"
    )
