"""Reading config.json: a key that the reference code reads is used, neutral or refused by name; others are noted."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moecli.errors import ConfigError, json_object, unreadable
from moecli.model.spec import Activation

_LARGEST_FILE = 16 * 1024**2
_LARGEST_COUNT = 2**31 - 1
_SMALLEST_NUMBER, _LARGEST_NUMBER = 1e-18, 1e18  # so that no arithmetic on them overflows
REQUIRED = object()

# Training, bookkeeping and generation defaults: known to change no number of a forward pass, so not even noted.
IRRELEVANT = frozenset(
    """
    _name_or_path _attn_implementation_autoset _commit_hash add_cross_attention architectures attention_dropout
    attn_pdrop auto_map aux_loss_alpha bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping emb_pdrop
    encoder_no_repeat_ngram_size eos_token_id ep_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id hidden_dropout id2label initializer_range is_decoder label2id
    length_penalty max_length min_length model_type moe_jitter_eps moe_loss_weight no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_router_logits
    output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads remove_invalid_values
    repetition_penalty resid_pdrop return_dict return_dict_in_generate router_aux_loss_coef router_jitter_noise
    sep_token_id seq_aux suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)

# What a family does not use may have these values only: any other is read by the code that all models of transformers
# share, or promises parameters that the weights of this family do not hold.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "is_causal": (True, None),
    "per_layer_config": (None, {}),
    "kv_sharing_modes": (None, []),
    **dict.fromkeys(
        ("attention_bias", "qkv_bias", "use_qkv_bias", "mlp_bias", "use_bias", "lm_head_bias"), (False, None)
    ),
    **dict.fromkeys(("use_qk_norm", "qk_layernorm"), (False, None)),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), (0, None)),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), (0, None)),
    "moe_latent_size": (None, 0),
}


def load_config(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or ConfigError."""
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise ConfigError(f"{path} is {size} bytes: too large for a config.json")
        content = path.read_bytes()
    except OSError as error:
        found = unreadable(path, error, "fetch the file again")
        raise ConfigError(found.message, found.hint) from error
    return json_object(content, lambda problem: ConfigError(f"{path} {problem}", "fetch the file again"))


class ConfigReader:
    """One config.json (or a nested part of it) whose keys are crossed off as they are read.

    `neutral` is the family's table: what its reference code reads beside the keys that are used, and the values at
    which that changes nothing. It goes before NEUTRAL.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        family: str,
        prefix: str = "",
        neutral: Mapping[str, tuple[Any, ...]] = MappingProxyType({}),
    ) -> None:
        self._config = config
        self.family = family
        self._prefix = prefix
        self._neutral = neutral
        self._used: set[str] = set()
        self.unread: list[str] = []  # keys that nothing reads, nor the reference; filled by `finish`

    def fail(self, key: str, problem: str) -> ConfigError:
        """The error, to be raised, that names family and key before the problem."""
        return ConfigError(f"{self.family}: config key '{self._prefix}{key}' {problem}")

    def unused(self, key: str) -> bool:
        """Whether the file has this key and nobody has read it."""
        return key in self._config and key not in self._used

    def raw(self, key: str, default: Any = REQUIRED) -> Any:
        """The value as it stands; an absent key without a default is an error."""
        self._used.add(key)
        if key in self._config:
            return self._config[key]
        if default is REQUIRED:
            raise self.fail(key, "is missing")
        return default

    def alias(self, key: str, *others: str) -> None:
        """Let `key` be read under its other names too; ConfigError where two of them disagree."""
        for other in others:
            value, known = self.raw(other, None), self.raw(key, None)
            if known is None and value is not None:
                self._config = {**self._config, key: value}
            elif value is not None and value != known:
                raise self.fail(other, f"is {_show(value)}, which contradicts '{key}'")

    def count(self, key: str, default: Any = REQUIRED, least: int = 1) -> int:
        """A whole number from `least` to 2**31 - 1; ConfigError for anything else."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"must be a whole number, not {_show(value)}")
        if not least <= value <= _LARGEST_COUNT:
            raise self.fail(key, f"is {value}, outside {least} to {_LARGEST_COUNT}")
        return value

    def optional_count(self, key: str, default: int | None = None, least: int = 1) -> int | None:
        """A count, or None where the file says null, or says nothing and None is the default."""
        return None if self.raw(key, default) is None else self.count(key, default, least)

    def number(self, key: str, default: Any = REQUIRED, positive: bool = True) -> float:
        """A finite number of a sane size, more than 0 where it must be `positive`; ConfigError for anything else."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"must be a number, not {_show(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not (_SMALLEST_NUMBER if positive else -_LARGEST_NUMBER) <= number <= _LARGEST_NUMBER:
            raise self.fail(key, f"is {_show(value)}: not a {'positive ' if positive else ''}number in a sane range")
        return number

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """A positive number, or None where the file says null, or says nothing and None is the default."""
        return None if self.raw(key, default) is None else self.number(key, default)

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """true or false; ConfigError for anything else, 0 and 1 too."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {_show(value)}")
        return value

    def optional_flag(self, key: str, default: bool) -> bool:
        """true or false, where null counts as false."""
        return self.raw(key, default) is not None and self.flag(key, default)

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A string; ConfigError for anything else."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.fail(key, f"must be text, not {_show(value)}")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers, neither empty nor endless; ConfigError for anything else."""
        value = self.raw(key)
        if not isinstance(value, list) or not value or len(value) > 4096:
            raise self.fail(key, "must be a list of numbers")
        part = ConfigReader({f"{key}[{i}]": v for i, v in enumerate(value)}, self.family, self._prefix)
        return tuple(part.number(f"{key}[{i}]") for i in range(len(value)))

    def indices(self, key: str, limit: int) -> frozenset[int]:
        """A list of layer indices below `limit`; null and absent mean none."""
        value = self.raw(key, None)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or any(type(v) is not int or not 0 <= v < limit for v in value):
            raise self.fail(key, f"must be a list of layer indices below {limit}")
        return frozenset(value)

    def choices(self, key: str, length: int, allowed: Sequence[Any], default: Any = None, spare: int = 0) -> list[Any]:
        """A list with one of `allowed` per layer, `spare` entries more at most; null and absent mean `default`."""
        value = self.raw(key, None)
        if value is None and default is not None:
            return list(default)
        if not isinstance(value, list) or not length <= len(value) <= length + spare:
            raise self.fail(key, f"must be a list with one entry for each of {length} layers")
        if wrong := [v for v in value if v not in allowed]:
            raise self.fail(key, f"holds {_show(wrong[0])}, which is not supported")
        return value[:length]

    def activation(self, key: str, default: Any = REQUIRED) -> Activation:
        """An activation by its `hidden_act` name or an alias of it; ConfigError for an unknown one."""
        name = self.text(key, default)
        aliases = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}
        try:
            return Activation(aliases.get(name, name))
        except ValueError:
            raise self.fail(key, f"names an unknown activation, '{name}'") from None

    def nested(self, key: str, neutral: Mapping[str, tuple[Any, ...]] = MappingProxyType({})) -> ConfigReader | None:
        """The object under `key`, with a table of its own; null and absent give None."""
        value = self.raw(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, f"must be an object, not {_show(value)}")
        part = ConfigReader(value, self.family, f"{self._prefix}{key}.", neutral)
        part.unread = self.unread
        return part

    def stored_dtype(self) -> str | None:
        """What the file says its weights are; transformers 5 writes `dtype`, older versions `torch_dtype`."""
        value = self.raw("dtype", None) or self.raw("torch_dtype", None)
        if value is not None and not isinstance(value, str):
            raise self.fail("torch_dtype", f"must be text, not {_show(value)}")
        return value

    def quantization(self) -> str | None:
        """How the file says its weights are quantised ("fp8", "gptq", ...), or None."""
        part = self.raw("quantization_config", None)
        if part is not None and not isinstance(part, dict):
            raise self.fail("quantization_config", f"must be an object, not {_show(part)}")
        return quantization_name({"quantization_config": part, "quantization": self.raw("quantization", None)})

    def expect(self, key: str, *allowed: Any, default: Any = REQUIRED) -> None:
        """Refuse any value but the ones this code implements."""
        value = self.raw(key, allowed[0] if default is REQUIRED else default)
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            raise self.fail(key, f"is {_show(value)}, which is not supported")

    def refuse_objects(self) -> None:
        """Refuse values that are objects: settings for some layers only, where one is meant for all."""
        for key, value in self._config.items():
            if isinstance(value, dict):
                raise self.fail(key, "holds settings of its own for some layers, which is not supported")

    def ignore(self, *keys: str) -> None:
        """Cross off keys that carry no mathematics in this family."""
        self._used.update(keys)

    def finish(self, irrelevant: Iterable[str] = IRRELEVANT, strict: bool = False) -> None:
        """Refuse, by name, what has an effect and was not read; what has none is noted in `unread`.

        `strict` refuses every key that is left: for an object that its reader takes as a whole.
        """
        for key, allowed in {**NEUTRAL, **self._neutral}.items():
            if self.unused(key):
                self.expect(key, *allowed)
        left = sorted(set(self._config) - self._used - set(irrelevant))
        if strict and left:
            raise ConfigError(
                f"{self.family}: config key '{self._prefix}{left[0]}' is not supported",
                "running without it could give wrong text, so moecli refuses",
            )
        self.unread += [f"{self._prefix}{key}" for key in left]


def quantization_name(config: Mapping[str, Any]) -> str | None:
    """How a config.json says its weights are quantised, by the name of the format; None where it says nothing."""
    part = config.get("quantization_config")
    if part is None:
        part = config.get("quantization")  # MLX writes both, older versions this one alone
    if not isinstance(part, Mapping) or not part:
        return None
    method, algorithm, bits = (part.get(key) for key in ("quant_method", "quant_algo", "bits"))
    if method in (None, "modelopt") and isinstance(algorithm, str):
        return _word(f"ModelOpt {algorithm.lower()}")
    if method == "bitsandbytes" or (method is None and _BITSANDBYTES & part.keys()):
        width = 4 if part.get("load_in_4bit") or part.get("_load_in_4bit") else 8
        return f"bitsandbytes {width}-bit"
    if method is None and "group_size" in part:
        return _word(f"MLX {part.get('mode')}" if part.get("mode", "affine") != "affine" else f"MLX {bits}-bit")
    if method == "compressed-tensors":
        return "compressed-tensors" + _bits(part.get("config_groups"))
    return _word(method) if isinstance(method, str) else "an unknown format"


def _bits(groups: object) -> str:
    """How compressed-tensors codes the weights of its first group: " 4-bit", " fp8"; "" where that is not said."""
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
    if weights is None or type(bits) is not int or not 0 < bits < 100:
        return ""
    return f" fp{bits}" if weights.get("type") == "float" else f" {bits}-bit"


_BITSANDBYTES = {"load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"}


def _word(name: str) -> str:
    return name if re.fullmatch(r"[\w. -]{1,40}", name, re.ASCII) else "an unknown format"


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        text = "something deeply nested"
    return text if len(text) <= 60 else text[:57] + "..."
