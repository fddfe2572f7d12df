"""A text model inside a checkpoint of more: its tensors by the names they have alone, and those of other towers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from moecli.checkpoint.stored import StoredTensor

# Where models that also see or hear keep their text model; alone, its names begin with `model.`
_INSIDE = re.compile(r"(?:model\.language_model|language_model\.model|language\.model)\.(.+)")
_HEAD = re.compile(r"(?:(?:model\.)?language_model\.|language\.)?(lm_head\..+)")


def split_towers(
    tensors: Mapping[str, StoredTensor],
) -> tuple[Mapping[str, StoredTensor], Mapping[str, StoredTensor]]:
    """The text model's tensors, and all others; of a plain text model all there are, and none.

    Only the keys change: each tensor keeps the name that its file knows.
    """
    text: dict[str, StoredTensor] = {}
    others: dict[str, StoredTensor] = {}
    for name, stored in tensors.items():
        if match := _INSIDE.fullmatch(name):
            text[f"model.{match[1]}"] = stored
        elif match := _HEAD.fullmatch(name):
            text[match[1]] = stored
        elif name.startswith("mtp."):  # the text model's, though it lies outside
            text[name] = stored
        else:
            others[name] = stored
    inside = any(name.startswith("model.") for name in text)
    return (text, others) if inside else (tensors, {})
