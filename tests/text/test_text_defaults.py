"""What a vendor's generation_config.json and config.json say, and what they may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moecli.errors import MoecliError
from moecli.text.defaults import GenerationDefaults, read_generation_defaults
from tests.support.toy_tokenizers import write_json


def read(folder: Path, generation: Any = None, config: Any = None) -> GenerationDefaults:
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not None:
            write_json(folder / name, value)
    return read_generation_defaults(folder)


def test_all_values(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {
            "bos_token_id": 1,
            "eos_token_id": [7, 2],
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "min_p": 0,
            "repetition_penalty": 1.05,
            "max_new_tokens": 80,
            "transformers_version": "4.0",
            "num_beams": "unread",
        },
        {"bos_token_id": 5, "eos_token_id": 9},
    )
    assert found == GenerationDefaults(frozenset({2, 7}), 1, True, 0.7, 20, 0.8, 0.0, 1.05, 80)


def test_nothing_is_said(tmp_path: Path) -> None:
    assert read(tmp_path) == GenerationDefaults()
    assert read(tmp_path, {"temperature": None, "eos_token_id": None}, {"eos_token_id": None}) == GenerationDefaults()


def test_the_config_answers_for_ids_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, {"temperature": 1}, {"bos_token_id": 5, "eos_token_id": 9, "temperature": 3})
    assert (found.eos_ids, found.bos_id, found.temperature) == (frozenset({9}), 5, 1.0)


def test_ids_of_a_nested_text_config(tmp_path: Path) -> None:
    found = read(tmp_path, None, {"text_config": {"eos_token_id": [3, 4], "bos_token_id": 0}})
    assert (found.eos_ids, found.bos_id) == (frozenset({3, 4}), 0)


def test_negative_means_none(tmp_path: Path) -> None:
    found = read(tmp_path, {"bos_token_id": -1, "eos_token_id": [-1, 0], "top_k": -1})
    assert (found.eos_ids, found.bos_id, found.top_k) == (frozenset({0}), None, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", "2"),
        ("eos_token_id", [2, None]),
        ("eos_token_id", 2.0),
        ("eos_token_id", True),
        ("eos_token_id", {"id": 2}),
        ("eos_token_id", 2**40),
        ("bos_token_id", [[1]]),
        ("do_sample", "yes"),
        ("do_sample", 1),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**60),
        ("temperature", True),
        ("top_k", 5.5),
        ("top_k", -2),
        ("top_p", 1.01),
        ("min_p", -1),
        ("min_p", [0.1]),
        ("repetition_penalty", 0),
        ("repetition_penalty", "x" * 10_000),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(MoecliError, match=f"generation_config.json: {key} is ") as caught:
        read(tmp_path, {key: value})
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 200_000, b"1" * 10_000])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MoecliError, match=name):
        read_generation_defaults(tmp_path)
