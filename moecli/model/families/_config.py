"""Strict reading of config.json: each key is used, known to be irrelevant, or refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecli.errors import ConfigError, json_object, unreadable
from moecli.model.spec import Activation

_LARGEST_FILE = 16 * 1024**2
_LARGEST_COUNT = 2**31 - 1
_SMALLEST_NUMBER, _LARGEST_NUMBER = 1e-18, 1e18  # so that no arithmetic on them overflows
REQUIRED = object()

# Training, bookkeeping and generation defaults: they never change the mathematics of a forward pass.
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

# Harmless at these values only; anything else would change the model.
_INERT = {
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "tie_word_embeddings": (False, True),
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
    """One config.json (or a nested part of it) whose keys are crossed off as they are read."""

    def __init__(self, config: Mapping[str, Any], family: str, prefix: str = "") -> None:
        self._config = config
        self.family = family
        self._prefix = prefix
        self._used: set[str] = set()

    def fail(self, key: str, problem: str) -> ConfigError:
        """The error, to be raised, that names family and key before the problem."""
        return ConfigError(f"{self.family}: config key '{self._prefix}{key}' {problem}")

    def raw(self, key: str, default: Any = REQUIRED) -> Any:
        """The value as it stands; an absent key without a default is an error."""
        self._used.add(key)
        if key in self._config:
            return self._config[key]
        if default is REQUIRED:
            raise self.fail(key, "is missing")
        return default

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

    def nested(self, key: str) -> ConfigReader | None:
        """The object under `key`; null and absent give None."""
        value = self.raw(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, f"must be an object, not {_show(value)}")
        return ConfigReader(value, self.family, f"{self._prefix}{key}.")

    def stored_dtype(self) -> str | None:
        """What the file says its weights are; transformers 5 writes `dtype`, older versions `torch_dtype`."""
        value = self.raw("dtype", None) or self.raw("torch_dtype", None)
        if value is not None and not isinstance(value, str):
            raise self.fail("torch_dtype", f"must be text, not {_show(value)}")
        return value

    def quantization(self) -> str | None:
        """How the file says its weights are quantised ("fp8", "gptq", ...), or None."""
        part = self.nested("quantization_config")
        return None if part is None else part.text("quant_method", "bitsandbytes")

    def expect(self, key: str, *allowed: Any, default: Any = REQUIRED) -> None:
        """Refuse any value but the ones this code implements."""
        value = self.raw(key, allowed[0] if default is REQUIRED else default)
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            raise self.fail(key, f"is {_show(value)}, which is not supported")

    def ignore(self, *keys: str) -> None:
        """Cross off keys that carry no mathematics in this family."""
        self._used.update(keys)

    def finish(self, irrelevant: Iterable[str] = IRRELEVANT) -> None:
        """Refuse, by name, every key that nobody has read."""
        for key, allowed in _INERT.items():
            if key not in self._used:
                self.expect(key, *allowed)
        if unknown := sorted(set(self._config) - self._used - set(irrelevant)):
            raise ConfigError(
                f"{self.family}: config key '{self._prefix}{unknown[0]}' is not supported"
                + (f" (nor are {len(unknown) - 1} others)" if len(unknown) > 1 else ""),
                "running without it could give wrong text, so moecli refuses",
            )


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        text = "something deeply nested"
    return text if len(text) <= 60 else text[:57] + "..."
