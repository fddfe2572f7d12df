"""A model that always says the same: it reasons, answers, and calls a tool, whatever it is asked."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken

from tests.support import checkpoints, toy_tokenizers
from tests.support.stores import packed

THOUGHT, SAID = ("Hmm", ", forty", " two?"), ("It is", " forty two.")
CALL = '\n{"name": "add", "arguments": {"a": 40, "b": "2"}}\n'
_AFTER = "\n\n"  # the reasoning
PIECES = ("<think>", *THOUGHT, "</think>", _AFTER, *SAID, "<tool_call>", CALL, "</tool_call>", "<|im_end|>")
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{% if m.role == 'tool' %}{{ m.name }}{% endif %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant<think>"
    "{% if enable_thinking is defined and not enable_thinking %}</think>" + _AFTER + "{% endif %}"
)


def write(folder: Path) -> Path:
    """Each token's row is what the head wants after the token before it; blocks add nothing to it."""
    backend = toy_tokenizers.byte_level()
    backend.add_tokens([AddedToken(piece, normalized=False) for piece in PIECES[:-1]])
    model = checkpoints.make(
        "mixtral", vocab_size=backend.get_vocab_size(), eos_token_id=None, max_position_embeddings=2048
    )
    ids = [backend.token_to_id(piece) for piece in PIECES]
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "w2" in name:
                value.zero_()
            if "norm" in name:
                value.fill_(1.0)
        rows = torch.nn.functional.normalize(model.get_input_embeddings().weight)
        model.get_input_embeddings().weight.copy_(rows)
        head = model.get_output_embeddings().weight
        head.copy_(head * 0.01)
        for before, after in pairwise(ids):
            head[after] = rows[before] * 8
    checkpoints.write(model, folder)
    backend.save(str(folder / "tokenizer.json"))
    told = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    toy_tokenizers.write_json(folder / "tokenizer_config.json", told)
    return folder


def add(home: Path) -> None:
    """Lay it there as a packed model, by the name of scripted."""
    (home / "models").mkdir(exist_ok=True)
    packed(write(home / "scripted"), home / "models" / "scripted", "q8")
