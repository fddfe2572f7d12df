"""More than a hundred pickles that run code, lie or fill the memory: each is refused at once, with no effect."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest

from moecli.checkpoint.state_dict import read_header
from moecli.errors import CheckpointError
from tests.fuzz.judge import judge
from tests.support.hostile_pickles import entry, pickles, tensor

CONFIG = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_hidden_layers": 2,
    "vocab_size": 100,
}  # fmt: skip
MOST = 200 << 20


def archive(path: Path, pickle: bytes) -> None:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("archive/data.pkl", pickle)
        target.writestr("archive/byteorder", "little")
        target.writestr("archive/data/0", bytes(16))


def test_each_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the program: exit code 1, one error with a hint, less than a second, no memory to speak of."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    canary, model = tmp_path / "ran", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    judge(["inspect", str(model)])  # what is imported once takes its time once
    cases = list(pickles(canary))
    assert len(cases) >= 150 and len(dict(cases)) == len(cases)
    for name, pickle in cases:
        archive(model / "pytorch_model.bin", pickle)
        began = time.process_time()
        verdict = judge(["inspect", str(model)])
        seconds = time.process_time() - began
        assert verdict.code == 1 and not verdict.faults, (name, verdict)
        assert verdict.shown.count("error: ") == verdict.shown.count("hint: ") == 1, (name, verdict.shown)
        assert seconds < 1 and verdict.growth < MOST, (name, verdict)
        assert "\x1b" not in verdict.shown and "\u202e" not in verdict.shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_what_they_are_made_from_is_sound(tmp_path: Path) -> None:
    """So that none is refused for the assembler's mistakes."""
    archive(tmp_path / "x.bin", entry(tensor()))
    assert read_header(tmp_path / "x.bin")["a"].shape == (4,)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    for name, target in {"loop": "loop.bin", "gone": "nothing", "zero": "/dev/zero", "folder": "."}.items():
        (tmp_path / f"{name}.bin").symlink_to(target)
        with pytest.raises(CheckpointError):
            read_header(tmp_path / f"{name}.bin")
