"""Text to token ids and back, read from a model folder's tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecli.errors import TextError
from moecli.text.chat import MOST_SOURCE, ChatTemplate, Message
from moecli.text.files import read_bytes, read_object, read_text

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

MOST_TOKENIZER = 256 * 2**20
_OTHER_FORMATS = ("*.model", "*.tiktoken", "tekken.json", "vocab.json")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_DAMAGED = "the file is damaged: download it again"


class Tokenizer:
    """One model's tokenizer, its special tokens and its chat template."""

    def __init__(self, backend: Backend, config: Mapping[str, Any], template: str | None, keeps_eos: bool) -> None:
        self._backend = backend
        backend.no_truncation()  # what tokenizer.json may say about training batches
        backend.no_padding()
        tokens = _special_tokens(config)
        self.bos_id = self.id_of(tokens["bos_token"]) if "bos_token" in tokens else None
        self.eos_id = self.id_of(tokens["eos_token"]) if "eos_token" in tokens else None
        self.special_ids = frozenset(
            number for number, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.chat_template = None if template is None else ChatTemplate(template, tokens)
        self._before, after = self._additions(config.get("add_bos_token") is True)
        self._after = after if keeps_eos else []

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer in a model folder. Only tokenizer.json is required beside the weights."""
        backend = _read_backend(folder)
        config = read_object(folder / "tokenizer_config.json")
        if "added_tokens_decoder" in config:
            _add_declared_tokens(backend, config["added_tokens_decoder"], folder / "tokenizer_config.json")
        else:  # in older folders the special tokens map has the last word
            config = {**config, **read_object(folder / "special_tokens_map.json")}
        template = read_text(folder / "chat_template.jinja", 4 * MOST_SOURCE)
        if template is None:
            template = _template_in(config)
        keeps_eos = read_object(folder / "config.json").get("is_encoder_decoder") is True
        return cls(backend, config, template, keeps_eos)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of a prompt; special tokens written in the text count as such.

        `special` adds what the tokenizer adds by itself, as a rule BOS, which is never doubled. What it adds
        at the end is EOS, which would tell a decoder that the text is over: only encoder-decoder models get
        that. A rendered chat template already holds its special tokens: see `encode_chat`.
        """
        ids = list(self._encode(text).ids)
        if not special:
            return ids
        before = self._before
        if self.bos_id is not None and before[-1:] == [self.bos_id] and ids[:1] == before[-1:]:
            before = before[:-1]
        return before + ids + self._after

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where the assistant speaks."""
        if self.chat_template is None:
            raise TextError("the model has no chat template", "--raw sends the prompt as it is")
        return self.encode(self.chat_template.render(messages), special=False)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of these ids; ids beyond the tokenizer (padding of the embedding table) have none."""
        return self._backend.decode(ids, skip_special_tokens=skip_special)

    def id_of(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    @cached_property
    def size(self) -> int:
        """How many rows the embedding table needs: the highest id and one."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def byte_ids(self) -> dict[int, int]:
        """Token id -> byte of the tokens `<0x00>` to `<0xFF>`; empty where they do not stand for bytes."""
        letter = self.id_of("<0x41>")
        if letter is None or self.decode([letter]) != "A":
            return {}
        found = ((self.id_of(f"<0x{byte:02X}>"), byte) for byte in range(256))
        return {number: byte for number, byte in found if number is not None}

    def _encode(self, text: str, add_special_tokens: bool = False) -> Encoding:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TextError("the text holds half of a surrogate pair", "is it valid UTF-8?") from None
        with _explained("tokenizer.json cannot encode this text"):
            return self._backend.encode(text, add_special_tokens=add_special_tokens)

    def _additions(self, add_bos: bool) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after a text.

        `add_bos_token: true` in tokenizer_config.json counts where the post-processor adds no BOS: the Llama
        classes of transformers 4 read it there, and files made for them rely on it. Version 5 does not.
        """
        probe = self._encode("a", add_special_tokens=True)
        inside = [place for place, added in enumerate(probe.special_tokens_mask) if not added]
        first, last = (inside[0], inside[-1]) if inside else (len(probe.ids), len(probe.ids))
        before, after = list(probe.ids[:first]), list(probe.ids[last + 1 :])
        if add_bos and self.bos_id is not None and self.bos_id not in before:
            before.insert(0, self.bos_id)
        return before, after


def _read_backend(folder: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    content = read_bytes(path, MOST_TOKENIZER)
    if content is None:
        found = sorted(file.name for pattern in _OTHER_FORMATS for file in folder.glob(pattern))
        raise TextError(
            f"{folder} has no tokenizer.json",
            f"only tokenizer.json is supported: convert {found[0]} with transformers' AutoTokenizer"
            if found
            else "only tokenizer.json is supported: it lies beside the weights on the Hub",
        )
    with _explained(f"{path} is not a tokenizer"):
        return Backend.from_buffer(content)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """The library raises bare `Exception`; a panic in its Rust code is not even one."""
    try:
        yield
    except BaseException as problem:
        if isinstance(problem, Exception) or type(problem).__name__ == "PanicException":
            raise TextError(f"{what}: {problem}", _DAMAGED) from None
        raise


def _add_declared_tokens(backend: Backend, declared: Any, path: Path) -> None:
    """Tokens that only tokenizer_config.json names, in the order of their ids, as transformers adds them."""
    from tokenizers import AddedToken

    try:
        tokens = sorted((int(number), str(token["content"]), token) for number, token in declared.items())
    except (AttributeError, KeyError, TypeError, ValueError):
        raise TextError(f"{path}: added_tokens_decoder is not a table of tokens", _DAMAGED) from None
    for number, content, token in tokens:
        # A token that would get another id than the model learned is better left out.
        if content and backend.token_to_id(content) is None and number == backend.get_vocab_size():
            backend.add_tokens([AddedToken(content, **{flag: token.get(flag) is True for flag in _FLAGS})])


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like: each a string, or an object with the string as its content."""
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _template_in(config: Mapping[str, Any]) -> str | None:
    """The default template in tokenizer_config.json: a string, or one of a list of named ones."""
    templates = config.get("chat_template")
    if isinstance(templates, list):
        named = [entry for entry in templates if isinstance(entry, dict)]
        templates = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if templates is not None and not isinstance(templates, str):
        raise TextError("tokenizer_config.json: chat_template is not text", _DAMAGED)
    return templates
