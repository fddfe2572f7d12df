"""GGUF files run, are packed and inspected: their weights are those of llama.cpp's own package, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moecli.checkpoint.encodings.ggml import TYPES
from moecli.library.gguf import unfolded
from moecli.store.source import open_source
from tests.support.checkpoints import prompt
from tests.support.gguf_files import FAMILIES, encode, gguf, make
from tests.support.in_process import moecli
from tests.support.running import greedy, load, score
from tests.support.stores import contents, packed

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_decoded_as_by_the_package(kind: str) -> None:
    codes, numbers = encode(np.random.default_rng(1).standard_normal((16, 512)).astype(np.float32), kind)
    code = gguf.GGMLQuantizationType[kind]
    assert gguf.GGML_QUANT_SIZES[code] == (TYPES[kind].block, TYPES[kind].size)
    blocks = torch.from_numpy(codes.view(np.uint8).reshape(-1, TYPES[kind].size).copy())
    assert torch.equal(TYPES[kind].decode(blocks).float().view(16, 512), torch.from_numpy(numbers))


CASES = [
    *((family, "F32", {}) for family in FAMILIES),
    ("mixtral", "F16", {}), ("mixtral", "BF16", {}), ("mixtral", "Q8_0", {"single": True}), ("mixtral", "Q4_K", {}),
    ("olmoe", "Q4_0", {"parts": 3}), ("qwen3_moe", "Q6_K", {}), ("deepseek_v2", "Q8_0", {"joined": True}),
    ("deepseek_v3", "Q5_K", {}), ("dbrx", "IQ4_XS", {}), ("llama", "Q5_1", {"tie_word_embeddings": True}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "kind", "changes"), CASES, ids=lambda value: str(value))
def test_it_says_what_the_decoded_weights_say(
    family: str, kind: str, changes: dict[str, object], tmp_path: Path
) -> None:
    made = make(family, tmp_path, kind, **changes)
    folder = unfolded(made.file)
    ours, plain = load(folder, "fp32"), load(made.plain, "fp32")
    ids = prompt(40)
    assert torch.equal(score(ours, ids), score(plain, ids))
    assert greedy(ours, ids[:8], 12) == greedy(plain, ids[:8], 12)
    one, other = (contents(packed(each, tmp_path / f"{each.name}.q8", "q8").folder) for each in (folder, made.plain))
    assert all(one[name] == other[name] for name in one if name.startswith("experts"))
    found = moecli("inspect", made.file, "--json").json
    assert found["runnable"] and not found["differences"] and found["location"] == str(made.file)
    assert found["parameters"] == moecli("inspect", made.plain, "--json").json["parameters"]
    assert found["stored_format"] == {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}.get(kind, kind)
    assert open_source(folder).dtype == {"F32": "fp32", "F16": "fp16"}.get(kind, "bf16")
