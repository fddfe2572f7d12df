"""The keys of one architecture in a GGUF file, read strictly: each is used, expected to be neutral, or refused by name.

Their meaning: docs/gguf.md of ggml and the loader of llama.cpp (`load_hparams`), whose defaults these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.errors import ConfigError, printable

Shapes = Mapping[str, tuple[int, ...]]  # of the tensors, by name
SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3  # llama.cpp's numbers of rules of routers
_HINT = "the file is damaged, or was made by a converter that leaves this out: look for another one of the model"
_OTHER = "the model may differ from those of its architecture that are read: look for its release as safetensors"
# What tensors say themselves, and what changes no number.
_NEUTRAL = (
    "vocab_size", "tensor_data_layout", "feed_forward_length", "expert_feed_forward_length", "rope.scaling.finetuned",
    "expert_shared_feed_forward_length", "attention.key_length", "attention.value_length",
)  # fmt: skip


class Metadata:
    """The values of one architecture, by the rest of their key."""

    def __init__(self, values: Mapping[str, Any], architecture: str, shapes: Shapes) -> None:
        self._values, self.architecture, self.shapes = values, architecture, shapes
        self._read = {f"{architecture}.{key}" for key in _NEUTRAL}

    def get(self, key: str, default: Any = None) -> Any:
        """A value, as a number of float32 was written; a list that says the same of each layer is what it says."""
        name = f"{self.architecture}.{key}"
        self._read.add(name)
        value = self._values.get(name, default)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        return float(f"{value:.7g}") if isinstance(value, float) else value

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ConfigError(f"the GGUF file lacks '{self.architecture}.{key}'", _HINT)
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A number that is reckoned with: from 1 on."""
        value = self.need(key) if default is None else self.get(key, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise self._fail(key, value)
        return value

    def each(self, key: str, layers: int) -> list[int]:
        """A number that each layer may have of its own, from 0 on."""
        value = self.need(key)
        found = value if isinstance(value, list) else [value] * layers
        if len(found) < layers or any(type(each) is not int or not 0 <= each < 2**31 for each in found):
            raise self._fail(key, value)
        return found[:layers]

    def expect(self, key: str, *neutral: Any) -> None:
        """ConfigError if the value is another than those at which it changes nothing."""
        if (value := self.get(key)) is not None and value not in neutral:
            raise self._fail(key, value)

    def axis(self, name: str, axis: int) -> int:
        """A length that only a tensor tells: of the first block that has it."""
        found = [shape for key, shape in self.shapes.items() if key == name or key.endswith(f".{name}")]
        if not found or len(found[0]) < abs(axis):
            raise ConfigError(f"the GGUF file lacks '{name}'", _HINT)
        return found[0][axis]

    def holds(self, name: str) -> bool:
        """Whether any block has such a tensor."""
        return any(key.endswith(f".{name}") for key in self.shapes)

    def check(self) -> None:
        """ConfigError for a key of the architecture that nobody asked for."""
        own = (key for key in self._values if key.startswith(f"{self.architecture}."))
        if rest := sorted(key for key in own if key not in self._read):
            more = f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""
            raise ConfigError(f"the GGUF file says '{printable(rest[0], 80)}'{more}, which is not known", _OTHER)

    def _fail(self, key: str, value: Any) -> ConfigError:
        shown = f"a list of {len(value)}" if isinstance(value, list) else f"'{printable(str(value), 40)}'"
        return ConfigError(f"'{self.architecture}.{key}' of the GGUF file is {shown}, which is not supported", _OTHER)

    @property
    def expert_width(self) -> int:
        return self.axis("ffn_down_exps.weight" if self.holds("ffn_down_exps.weight") else "ffn_down.0.weight", -1)

    @property
    def head_dim(self) -> int:
        """How long a key and a value are."""
        heads, width = self.count("attention.head_count"), self.get("attention.key_length")
        if width is None:
            return self.count("embedding_length") // heads
        self.expect("attention.value_length", width)
        return self.count("attention.key_length")


def common(
    said: Metadata, rotary: int | None = None, *, heads: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """What most families spell alike. `rotary`: how many numbers of a head turn; None for all of them.

    `heads` and their `width` where layers differ.
    """
    heads = said.need("attention.head_count") if heads is None else heads
    config = {
        "hidden_size": said.need("embedding_length"),
        "num_hidden_layers": said.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": said.get("attention.head_count_kv", heads),
        "max_position_embeddings": said.need("context_length"),
        "rms_norm_eps": said.get("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": said.get("rope.freq_base", 10_000.0),
    }
    said.expect("rope.dimension_count", (width or said.head_dim) if rotary is None else rotary)
    said.expect("attention.causal", True)
    scaling = _scaling(said)
    return config | ({"rope_scaling": scaling} if scaling else {})


def head_dim(said: Metadata) -> dict[str, Any]:
    return {} if said.get("attention.key_length") is None else {"head_dim": said.head_dim}


def router(
    said: Metadata, experts: str, used: str = "num_experts_per_tok", *, norm: bool = True, gating: int = SOFTMAX
) -> dict[str, Any]:
    """A router without further settings: its two numbers, under the names that the family has for them.

    `norm`, whether weights are divided by their sum, and the rule `gating` are the architecture's own; a file may not
    say otherwise.
    """
    said.expect("expert_gating_func", gating)
    said.expect("expert_weights_norm", norm)
    said.expect("expert_weights_scale", 1.0, 0.0)
    said.expect("expert_group_count", 1, 0)
    said.expect("expert_group_used_count", 1, 0)
    return {experts: said.need("expert_count"), used: said.need("expert_used_count")}


def grouped_router(said: Metadata, experts: str) -> dict[str, Any]:
    """A router as DeepSeek-V3's, which picks from groups of experts by their sigmoids."""
    said.expect("expert_gating_func", SIGMOID)
    return {
        experts: said.need("expert_count"),
        "num_experts_per_tok": said.need("expert_used_count"),
        "norm_topk_prob": bool(said.get("expert_weights_norm", False)),
        "routed_scaling_factor": said.get("expert_weights_scale") or 1.0,
        "n_group": said.get("expert_group_count") or 1,
        "topk_group": said.get("expert_group_used_count") or 1,
    }


def _scaling(said: Metadata) -> dict[str, Any] | None:
    older = said.get("rope.scale_linear")
    factor = said.get("rope.scaling.factor", older)
    kind = said.get("rope.scaling.type", "linear" if factor not in (None, 0.0, 1.0) else "none")
    original = said.get("rope.scaling.original_context_length")
    said.expect("rope.scaling.attn_factor", 1.0)
    said.expect("rope.scaling.yarn_attn_factor", 1.0)
    said.expect("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    fast, slow = said.get("rope.scaling.yarn_beta_fast"), said.get("rope.scaling.yarn_beta_slow")
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return None
    found = {"type": kind, "factor": said.need("rope.scaling.factor") if older is None else factor}
    if kind == "yarn":
        settings = {"original_max_position_embeddings": original, "beta_fast": fast, "beta_slow": slow}
        found |= {key: value for key, value in settings.items() if value}
    return found
