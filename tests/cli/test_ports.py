"""Other repositories of a model that the catalog knows, and reasons that are told for what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from moecli.model import catalog
from tests.support import headers, hub_server
from tests.support.hub_server import Fault, File
from tests.support.in_process import moecli


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch) as running:
        yield running


def test_a_port_belongs_to_one_entry_and_is_no_name_of_it() -> None:
    ports = [port for entry in catalog.known() for port in entry.ports]
    assert len(set(map(str.casefold, ports))) == len(ports) > 5
    for entry in catalog.known():
        assert all(catalog.port(port.upper()) is entry and catalog.find(port) is None for port in entry.ports)
    assert catalog.port("xai-org/grok-1") is None


def test_a_port_without_a_configuration_is_inspected_by_the_catalog(hub: hub_server.Hub) -> None:
    hub.put("lmzheng/grok-1/pytorch_model-00001-000.bin", b"x")
    shown = moecli("inspect", "lmzheng/grok-1")
    assert shown.code == 0 and "The Hub was asked first: lmzheng/grok-1 holds no config.json" in shown.out.replace(
        "\n", " "
    )
    assert moecli("memory", "lmzheng/grok-1", "--ram", "1GiB").code == 0
    assert "hint: the same model, whole: moecli pull grok-1\n" in moecli("pull", "lmzheng/grok-1").failure
    refused = moecli("inspect", "lmzheng/grok-1@main")
    assert refused.code == 1 and "holds no config.json" in refused.failure, "that revision may be anything"


def test_a_port_without_a_tokenizer_gets_that_of_the_catalog(hub: hub_server.Hub) -> None:
    hub.put("v2ray/grok-1/config.json", json.dumps(catalog.find("grok-1").config()).encode())
    hub.files["v2ray/grok-1/model.safetensors"] = File(*headers.header({}))
    dry = moecli("pull", "v2ray/grok-1", "--dry-run")
    assert dry.code in (0, 3) and "tokenizer    from Xenova/grok-1-tokenizer" in dry.out
    about = moecli("pull", "v2ray/grok-1", "--dry-run", "--json")
    assert json.loads(about.out)["tokenizer"] == "Xenova/grok-1-tokenizer"
    hub.put("v2ray/grok-1/tokenizer.json", b"{}")
    assert json.loads(moecli("pull", "v2ray/grok-1", "--dry-run", "--json").out)["tokenizer"] == "tokenizer.json"


def test_a_port_is_shown_with_what_is_published_of_its_model(hub: hub_server.Hub) -> None:
    entry = catalog.find("grok-1")
    hub.put("keyfan/grok-1-hf/config.json", json.dumps(entry.config()).encode())
    hub.put("keyfan/grok-1-hf/pytorch_model-00001-of-00001.bin", b"written before torch 1.6")
    found = moecli("inspect", "keyfan/grok-1-hf", "--json").json
    assert found["published"]["total"] == 314_000_000_000 and not found["runnable"]
    assert any("counted from config.json" in note for note in found["notes"]), found["notes"]


def test_a_revision_that_the_api_does_not_know_is_named(hub: hub_server.Hub) -> None:
    hub.faults[""] = [Fault(status=404, headers={"x-error-code": "EntryNotFound"})]
    refused = moecli("pull", "somebody/model@refs/pr/4")
    assert refused.code == 1 and "somebody/model has no revision 'refs/pr/4'" in refused.failure


def test_an_unknown_architecture_does_not_list_all_families(hub: hub_server.Hub) -> None:
    hub.put("xai-org/grok-2/config.json", json.dumps({"architectures": ["Grok1ForCausalLM"]}).encode())
    refused = moecli("inspect", "xai-org/grok-2")
    assert "'Grok1ForCausalLM' is not supported" in refused.failure and len(refused.failure) < 200
