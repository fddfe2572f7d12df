"""From a checkpoint folder to a decoder that is ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moecli import families
from moecli.checkpoint import Checkpoint
from moecli.engine.decoder import Decoder
from moecli.engine.weights import DenseWeights
from moecli.errors import CheckpointError, ConfigError
from moecli.experts.mapped import MappedExperts
from moecli.formats.plain import torch_dtype
from moecli.spec import ModelSpec
from moecli.weights import Weights


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint opened and checked, its weights not yet read."""

    spec: ModelSpec
    weights: Weights

    def dtype(self, wanted: str = "auto") -> str:
        """The precision to compute in: "auto" is as stored."""
        return self.weights.dtype if wanted == "auto" else wanted

    def decoder(self, dtype: str, positions: int, budget: int = 0) -> Decoder:
        """Read the weights; `positions` is the longest text it will meet, `budget` the bytes planned for experts."""
        experts = MappedExperts(self.weights, dtype, budget)
        return Decoder(self.spec, DenseWeights(self.weights, torch_dtype(dtype)), experts, positions)


def open_model(folder: Path) -> Model:
    """Read config.json and every safetensors header of `folder`. ConfigError or CheckpointError if they are unfit."""
    config = families.load_config(folder / "config.json")
    family = families.find(config)
    spec = family.read(config)
    if spec.unsupported:
        raise ConfigError(
            f"{spec.family} models cannot be run yet: the engine lacks {', '.join(spec.unsupported)}",
            f"moecli inspect and moecli memory know them: moecli inspect {folder}",
        )
    if spec.quantization is not None:
        raise CheckpointError(
            f"the checkpoint is quantised ({spec.quantization}), which cannot be run yet",
            "use an unquantised bf16 or fp16 revision",
        )
    return Model(spec, Weights(spec, family, Checkpoint.open(folder)))
