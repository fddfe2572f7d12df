"""`moecli inspect org/name`: the real huggingface_hub against a small Hub on this machine."""

from __future__ import annotations

import json

import pytest

from moecli.model import catalog
from tests.support import headers, hub_server

REPO = "somebody/some-mixtral"
MIXTRAL = 46_702_792_704


@pytest.fixture
def ask(moecli, hub):
    return lambda *arguments, **more: moecli("inspect", *arguments, **more)


def config(alias: str = "mixtral") -> dict[str, object]:
    return catalog.find(alias).config()


def test_a_model_of_many_shards_costs_kilobytes(ask, hub):
    hub.add(REPO, config(), *headers.split(headers.plain(headers.mixtral()), 19))
    result = ask(REPO, "--json")
    document = json.loads(result.stdout)
    assert document["source"] == "hub" and document["revision"] == hub_server.COMMIT
    assert document["stored_parameters"] == document["parameters"]["total"] == MIXTRAL
    assert document["stored_bytes"] == 2 * MIXTRAL and document["differences"] == []
    assert hub.sent < 400_000
    assert len(hub.seen) == 2 + 19  # one request a shard: the index tells how long a header will be
    assert all("authorization" not in sent for _, sent in hub.seen)


def test_one_file_with_a_long_header_takes_a_second_request(ask, hub):
    tensors = headers.packed(headers.mixtral(), "bnb4")
    hub.add(REPO, config(), tensors)
    assert json.loads(ask(REPO, "--json").stdout)["stored_parameters"] == MIXTRAL
    ranges = [sent["range"] for _, sent in hub.seen if "range" in sent]
    assert len(ranges) == 2 and ranges[1].startswith("bytes=65536-")
    assert hub.sent < 2_000_000


def test_gpt_oss_from_the_hub(ask, hub):
    hub.add("openai/gpt-oss-20b", config("gpt-oss-20b"), *headers.split(headers.gpt_oss(), 3))
    result = ask("openai/gpt-oss-20b")
    assert "20,914,757,184 parameters, mostly mxfp4, in 13,761,264,768 bytes" in result.stdout
    assert "From the Hub, openai/gpt-oss-20b at 0123456789ab" in result.stdout
    assert hub.sent < 200_000


def test_a_server_that_ignores_ranges_is_left_early(ask, hub):
    hub.ranges = False
    hub.add(REPO, config(), headers.plain(headers.mixtral()))
    assert json.loads(ask(REPO, "--json").stdout)["stored_parameters"] == MIXTRAL
    assert hub.sent < 32 * 1024**2  # what lay in the sockets' buffers, of 93 GB


def test_a_difference_on_the_hub_is_an_error(ask, hub):
    hub.add(REPO, config("mixtral") | {"vocab_size": 32768}, headers.plain(headers.mixtral()))
    result = ask(REPO)
    assert result.returncode == 1 and "6,291,456 fewer" in result.stderr


def test_the_token_opens_a_gate_and_goes_to_no_other_host(ask, hub):
    hub.gated = True
    hub.add(REPO, config(), headers.plain(headers.mixtral()))
    with hub_server.serve() as elsewhere:
        elsewhere.files = hub.files
        hub.redirect = elsewhere.url.replace("127.0.0.1", "localhost")
        assert ask(REPO, HF_TOKEN=hub.token).returncode == 0
        assert all(sent["authorization"] == f"Bearer {hub.token}" for _, sent in hub.seen)
        assert elsewhere.seen and all("authorization" not in sent for _, sent in elsewhere.seen)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (REPO, {"gated": True}, (f"{REPO} is gated", "set HF_TOKEN")),
        ("nobody/nothing", {}, ("the Hub knows no model 'nobody/nothing'", "spelling")),
        (f"{REPO}@v9", {}, (f"{REPO} has no revision 'v9'", "branch, tag or commit")),
        (REPO, {"status": 503}, ("HTTP 503", "try again later")),
        (REPO, {"status": 429}, ("HTTP 429", "try again later")),
    ],
)
def test_a_hub_that_says_no(ask, hub, model, settings, words):
    hub.add(REPO, config(), headers.plain(headers.mixtral()))
    for name, value in settings.items():
        setattr(hub, name, value)
    result = ask(model)
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.startswith("error: ") and all(text in result.stderr for text in words)


def test_a_repository_without_the_files(ask, hub):
    hub.put(f"{REPO}/README.md", b"nothing else")
    assert f"{REPO} holds no config.json" in ask(REPO).stderr
    hub.put(f"{REPO}/config.json", json.dumps(config()).encode())
    shown = ask(REPO)
    assert (
        shown.returncode == 0 and "46,702,792,704" in shown.stdout and "lacks a reader of its weights" in shown.stdout
    )
    assert "holds no weights: no *.safetensors" in " ".join(shown.stdout.split())
    hub.put(f"{REPO}/pytorch_model-00001-TP-000.safetensors", b"never opened")
    shown = ask(REPO)
    assert shown.returncode == 0 and "holds a part of each tensor: counted from" in " ".join(shown.stdout.split())
    del hub.files[f"{REPO}/pytorch_model-00001-TP-000.safetensors"]
    shards = headers.split(headers.plain(headers.mixtral()), 2)
    hub.add(REPO, config(), *shards)
    del hub.files[f"{REPO}/model-00002-of-00002.safetensors"]
    assert "model-00002-of-00002.safetensors" in ask(REPO).stderr


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("config.json", b"[]"),
        ("config.json", b"{"),
        ("config.json", b"\xff" * 99),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 8),
        ("model.safetensors", (100).to_bytes(8, "little") + b"{"),
        ("model.safetensors", (8).to_bytes(8, "little") + b'{"a": 1}'),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../etc/passwd"}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 7}}'),
    ],
)
def test_damage_on_the_hub_is_explained(ask, hub, path, data):
    hub.add(REPO, config(), headers.plain(headers.mixtral()))
    hub.put(f"{REPO}/{path}", data)
    result = ask(REPO)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and "Traceback" not in result.stderr


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "not a web address", "http://[bad", "ftp://127.0.0.1"])
def test_no_hub_there(ask, endpoint):
    result = ask(REPO, HF_ENDPOINT=endpoint)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and "hint: " in result.stderr


def test_offline_asks_nobody(ask, hub):
    hub.add(REPO, config(), headers.plain(headers.mixtral()))
    for arguments, more in (((REPO, "--offline"), {}), ((REPO,), {"HF_HUB_OFFLINE": "1"})):
        result = ask(*arguments, **more)
        assert result.returncode == 1 and "is not on this machine" in result.stderr
    assert not hub.seen


def test_an_alias_asks_nobody(ask, hub):
    assert ask("mixtral", "dbrx").returncode == 0
    assert not hub.seen


def test_a_known_repository_falls_back_on_the_catalog_and_says_so(ask):
    result = ask("databricks/dbrx-instruct", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 0 and "131,596,523,520" in result.stdout
    assert "The Hub was asked first" in " ".join(result.stdout.split())


def test_what_is_in_the_cache_needs_no_hub(ask, hub, tmp_path):
    root = tmp_path / "hf" / "hub" / "models--somebody--some-mixtral"
    headers.write(root / "snapshots" / hub_server.COMMIT, config(), headers.plain(headers.mixtral()))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(hub_server.COMMIT)
    document = json.loads(ask(REPO, "--json").stdout)
    assert document["source"] == "cache" and document["revision"] == hub_server.COMMIT and not hub.seen
