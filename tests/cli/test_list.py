"""`moecli list`: what is here, and what is known by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from moecli.model import catalog
from tests.support import headers

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub"


def add(cache: Path, repo: str, config: object, *shards: headers.Tensors) -> Path:
    root = cache / f"models--{repo.replace('/', '--')}"
    folder = headers.write(root / "snapshots" / COMMIT, config, *shards)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return folder


def small() -> headers.Tensors:
    return headers.plain(headers.mixtral(layers=1, width=128, expert=64, experts=2))


def test_an_empty_machine_has_the_built_in_model(moecli):
    (tiny,) = json.loads(moecli("list", "--json").stdout)
    assert tiny.items() >= {"name": "tiny", "format": "bf16", "source": "built in", "revision": None}.items()
    assert tiny["bytes"] == sum(file.stat().st_size for file in Path(tiny["path"]).iterdir())


@pytest.mark.parametrize("name", ("MOECLI_HOME", "HF_HOME", "HF_HUB_CACHE"))
def test_the_home_of_nobody_is_named(moecli, name):
    result = moecli("list", **{name: "~nobody.is.called.so"})
    assert result.returncode == 2
    assert f"error: {name} is '~nobody.is.called.so'" in result.stderr and "Traceback" not in result.stderr


def test_models_of_a_known_family_are_listed(moecli, cache):
    mixtral, oss = catalog.find("mixtral").config(), catalog.find("gpt-oss-20b").config()
    folder = add(cache, "mistralai/Mixtral-8x7B-Instruct-v0.1", mixtral, small())
    add(cache, "somebody/half", oss | {"_name_or_path": "x"}, *headers.split(small(), 2))
    (cache / "models--somebody--half/snapshots" / COMMIT / "model-00002-of-00002.safetensors").unlink()
    add(cache, "somebody/image-model", {"architectures": ["NovelForImages"]}, small())
    (cache / "models--somebody--image-model/snapshots" / COMMIT / "extra.json").write_text("{}")
    models = {model["name"]: model for model in json.loads(moecli("list", "--json").stdout)}
    assert list(models) == ["tiny", "mixtral", "somebody/half"]
    assert models["mixtral"].keys() >= {"name", "format", "bytes", "path", "source", "revision"}
    assert models["mixtral"]["path"] == str(folder) and models["mixtral"]["revision"] == COMMIT
    assert models["mixtral"]["source"] == "mistralai/Mixtral-8x7B-Instruct-v0.1"
    assert models["somebody/half"]["format"] == "mxfp4" and not models["somebody/half"]["complete"]
    text = moecli("list").stdout
    assert "somebody/half" in text and "(not complete)" in text and "image" not in text


@pytest.mark.parametrize(
    "config", ["{", '"text"', '{"architectures": 7}', '{"quantization_config": {"quant_method": "\\u001b[31m"}}']
)
def test_an_odd_config_in_the_cache_spoils_nothing(moecli, cache, config):
    folder = add(cache, "somebody/odd", {}, small())
    (folder / "config.json").write_text(config)
    result = moecli("list")
    assert result.returncode == 0 and "tiny" in result.stdout and "\x1b" not in result.stdout


def test_the_catalog(moecli):
    known = json.loads(moecli("list", "--known", "--json").stdout)
    models = {model["name"]: model for model in known}
    assert models.keys() == {"tiny", *(entry.alias for entry in catalog.known())}
    assert models["dbrx"]["total"] == 131_596_523_520 and models["dbrx"]["active"] == 36_469_708_800
    assert models["mixtral"]["runnable"] and not models["jetmoe-8b"]["runnable"] and models["jetmoe-8b"]["lacks"]
    for alias in ("deepseek-v3", "deepseek-r1", "kimi-k2", "gpt-oss-20b", "gpt-oss-120b"):
        assert models[alias]["runnable"] and not models[alias]["lacks"]


def test_the_catalog_for_people(moecli):
    narrow, wide = moecli("list", "--known").stdout, moecli("list", "--known", COLUMNS="200").stdout
    assert max(map(len, narrow.splitlines())) <= 80
    for screen in (narrow, wide):  # a line each, smallest first
        lines = screen.partition("\n\n")[0].splitlines()
        assert len(lines) == len(catalog.known()) + 2 and lines[1].startswith("tiny ")
    row = next(line for line in wide.splitlines() if line.startswith("dbrx "))
    assert row.split()[:7] == ["dbrx", "131.60", "B", "36.47", "B", "66.9", "GiB"]
    assert "databricks/dbrx-instruct  " in row and row.endswith("  Databricks Open Model License")
    some = moecli("list", "--known", "qwen", "--json").stdout
    assert all("qwen" in model["name"] for model in json.loads(some))


@pytest.mark.skipif(os.name != "posix" or not (os.geteuid() or shutil.which("setpriv")), reason="root may read it all")
def test_a_store_that_may_not_be_read_is_shown_as_damaged(command, environment, tmp_path):
    folder = tmp_path / "home" / "models" / "tiny-q4"
    folder.mkdir(parents=True)
    folder.chmod(0)
    unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    result = subprocess.run(
        [*(unprivileged if os.geteuid() == 0 else []), *command, "list"],
        env=environment | {"MOECLI_HOME": str(tmp_path / "home")},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    folder.chmod(0o700)
    assert (result.returncode, result.stderr) == (0, "")  # it is in nobody's way
    assert "tiny-q4 (damaged)" in result.stdout
