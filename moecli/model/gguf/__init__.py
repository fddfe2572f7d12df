"""What a GGUF file says of its model, as the config.json that the model was published with would say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.errors import ConfigError, printable
from moecli.model.gguf import architectures, recurrent, windowed
from moecli.model.gguf.metadata import Metadata, Shapes

READERS = {**architectures.READERS, **windowed.READERS, **recurrent.READERS}
_PARTS = {"adapter": "a low-rank adapter", "mmproj": "a vision or audio tower", "imatrix": "statistics of activations"}


def config_of(metadata: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The configuration, for `families.find`; `shapes` are those of the tensors, by name.

    ConfigError for an architecture that is not read, a key that it lacks, and one of its own that is not known.
    """
    kind, architecture = metadata.get("general.type", "model"), metadata.get("general.architecture")
    if isinstance(kind, str) and kind in _PARTS:
        raise ConfigError(f"the GGUF file is {_PARTS[kind]}, no model", "name the file of the model that it belongs to")
    read = READERS.get(architecture) if isinstance(architecture, str) else None
    if read is None:
        raise ConfigError(
            f"GGUF files of the architecture '{printable(str(architecture), 40)}' are not read",
            f"those of {', '.join(READERS)} are",
        )
    scaled = [name for name in shapes if name.startswith("rope_f") or ".rope_f" in name]
    if scaled:
        raise ConfigError(
            f"the GGUF file scales positions by the tensor '{printable(scaled[0], 80)}', which is not read",
            "look for the model's release as safetensors, whose config.json says them",
        )
    said = Metadata(metadata, str(architecture), shapes)
    config = {
        "vocab_size": said.axis("token_embd.weight", 0),
        "tie_word_embeddings": "output.weight" not in shapes,
        "torch_dtype": "bfloat16",
        **read(said),
    }
    said.check()
    return config
