"""Text to token ids and back, read from a model folder's tokenizer.json, SentencePiece model or ranks of tiktoken."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecli.errors import ConfigError, TextError
from moecli.model import families
from moecli.text import sentencepiece, tiktoken
from moecli.text.chat import MOST_SOURCE, ChatTemplate, Message
from moecli.text.files import read_bytes, read_object, read_text, texts_in, tokenizer_among, unread_tokenizers

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

MOST_TOKENIZER = 256 * 2**20
_RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
# What looks like a special token, in the spelling of most models and of DeepSeek, and Gemma's turns.
_SPECIAL = re.compile(r"<[|\uff5c][^\s<>|\uff5c][^<>|\uff5c\n]{0,60}[|\uff5c]>|<(?:start|end|begin)_of_\w{1,40}>")
_MOST_UNKNOWN = 10
_WITHOUT_BOS = "Grok1ModelForCausalLM"  # xAI's own code gives SentencePiece's ids and nothing before them
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_DAMAGED = "the file is damaged: download it again"


class Tokenizer:
    """One model's tokenizer, its special tokens and its chat template."""

    def __init__(self, backend: Backend, config: Mapping[str, Any], template: str | None, keeps_eos: bool) -> None:
        self._backend = backend
        backend.no_truncation()  # what tokenizer.json may say about training batches
        backend.no_padding()
        tokens = _special_tokens(config)
        self._declared = frozenset(tokens.values())
        self.unknown: dict[str, int] = {}  # what looked like special tokens and was cut: into how many pieces
        self.bos_id = self.id_of(tokens["bos_token"]) if "bos_token" in tokens else None
        self.eos_id = self.id_of(tokens["eos_token"]) if "eos_token" in tokens else None
        self.special_ids = frozenset(
            number for number, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.added_texts = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        self.chat_template = None if template is None else ChatTemplate(template, tokens)
        self._guides: dict[frozenset[int], LLTokenizer] = {}
        self._before, after = self._additions(config.get("add_bos_token") is True)
        self._after = after if keeps_eos else []

    @classmethod
    def load(cls, folder: Path, given: Path | None = None) -> Tokenizer:
        """The tokenizer in a model folder, or the `given` one, a file or a folder, for the model in it.

        Only the tokenizer itself is required beside the weights.
        """
        texts = _Texts(folder, texts_in(folder, given))
        config = {key: value for key, value in texts.object("tokenizer_config.json").items() if value is not None}
        if "added_tokens_decoder" not in config:  # in older folders the special tokens map has the last word
            config |= texts.object("special_tokens_map.json")
        backend, config = _read_backend(texts, config)
        _add_tokens(backend, config, texts)
        template = read_text(texts["chat_template.jinja"], 4 * MOST_SOURCE)
        if template is None:
            template = _template_in(config)
        keeps_eos = texts.object("config.json").get("is_encoder_decoder") is True
        return cls(backend, config, template, keeps_eos)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of a prompt; special tokens written in the text count as such.

        `special` adds what the tokenizer adds by itself, as a rule BOS, which is never doubled. What it adds
        at the end is EOS, which would tell a decoder that the text is over: only encoder-decoder models get
        that. A rendered chat template already holds its special tokens: see `encode_chat`.
        """
        ids = list(self._encode(text).ids)
        self._look_for_unknown(text)
        if not special:
            return ids
        before = self._before
        if self.bos_id is not None and before[-1:] == [self.bos_id] and ids[:1] == before[-1:]:
            before = before[:-1]
        return before + ids + self._after

    def encode_chat(self, messages: Sequence[Message], given: Mapping[str, Any] | None = None) -> list[int]:
        """The ids of a conversation up to where the assistant speaks; `given`: see `ChatTemplate.render`."""
        if self.chat_template is None:
            raise TextError("the model has no chat template", "--raw sends the prompt as it is")
        return self.encode(self.chat_template.render(messages, given=given), special=False)

    @property
    def before(self) -> tuple[int, ...]:
        """The ids that it puts before a text by itself: as a rule BOS, or none."""
        return tuple(self._before)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of these ids; ids beyond the tokenizer (padding of the embedding table) have none."""
        return self._backend.decode(ids, skip_special_tokens=skip_special)

    def id_of(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def guide(self, end_ids: frozenset[int]) -> LLTokenizer:
        """The vocabulary as llguidance walks it, which takes up to seconds once. TextError if it cannot."""
        from llguidance import LLTokenizer

        if end_ids not in self._guides:
            try:
                self._guides[end_ids] = LLTokenizer(self._backend.to_str(), eos_token=sorted(end_ids) or None)
            except ValueError as problem:
                raise TextError(f"the tokenizer cannot be held to a grammar: {problem}") from None
        return self._guides[end_ids]

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

    @property
    def notes(self) -> tuple[str, ...]:
        """What was encoded so far in another way than whoever wrote it will have meant."""
        return tuple(
            f"the tokenizer does not know {token}: the model reads it as {count} other tokens"
            for token, count in self.unknown.items()
        )

    def _look_for_unknown(self, text: str) -> None:
        found = {match[0] for match in _SPECIAL.finditer(text)} | {each for each in self._declared if each in text}
        for token in sorted(found - self.unknown.keys()):
            if token and self.id_of(token) is None and len(self.unknown) < _MOST_UNKNOWN:
                self.unknown[token] = len(self._encode(token).ids)

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


@dataclass(frozen=True, slots=True)
class _Texts:
    """The small files of a model, by name, wherever they lie."""

    folder: Path
    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths.get(name, self.folder / name)

    def object(self, name: str) -> dict[str, Any]:
        return read_object(self[name]) if name in self.paths else {}


def _read_backend(texts: _Texts, config: dict[str, Any]) -> tuple[Backend, dict[str, Any]]:
    """The library's tokenizer, and what tokenizer_config.json says, with what its format implies where it is silent."""
    from tokenizers import Tokenizer as Backend

    name = tokenizer_among(texts.paths)
    content = None if name is None else read_bytes(texts[name], MOST_TOKENIZER)
    if name is None or content is None:
        raise TextError(f"{texts.folder} has no tokenizer that can be read", _hint_without(texts.paths))
    path = texts[name]
    if name == "tokenizer.json":
        with _explained(f"{path} is not a tokenizer"):
            return Backend.from_buffer(content), config
    if name != "tokenizer.model" or _RANKS.match(content):
        declared = {number: text for number, text, _ in _declared(config, (), texts)}
        ranks = tiktoken.read(content, name)
        encoding = tiktoken.encoding_of(name, config.get("tokenizer_class"), len(ranks))
        with _explained(f"{path} is not a tokenizer"):
            return tiktoken.backend(ranks, encoding, declared), config
    model = sentencepiece.read(content)
    special = {"bos_token": model.bos, "eos_token": model.eos}
    implied = {name: text for name, text in special.items() if text is not None and model.id_of(text) is not None}
    with _explained(f"{path} is not a tokenizer"):
        backend = sentencepiece.backend(model, every_section=config.get("legacy") is not False)
    return backend, {"add_bos_token": _adds_bos(texts), **implied, **config}


def _adds_bos(texts: _Texts) -> bool:
    """Whether BOS begins a text where only SentencePiece's file speaks of it: Llama's classes add it."""
    try:
        return _WITHOUT_BOS not in families.find(texts.object("config.json")).architectures
    except ConfigError:
        return True


def _hint_without(names: Collection[str]) -> str:
    """What to do about a folder with these files and no tokenizer."""
    found = unread_tokenizers(names)
    other = f"{found[0]} is in a format that is not read: " if found else ""
    return f"{other}--tokenizer names another one: a file, a folder or the Hub id of the model it was made from"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """The library raises bare `Exception`; a panic in its Rust code is not even one."""
    try:
        yield
    except BaseException as problem:
        if isinstance(problem, Exception) or type(problem).__name__ == "PanicException":
            raise TextError(f"{what}: {problem}", _DAMAGED) from None
        raise


def _add_tokens(backend: Backend, config: Mapping[str, Any], texts: _Texts) -> None:
    """Tokens that only the files beside the tokenizer name, as transformers adds them.

    Those with an id come first, in the order of their ids: of `added_tokens_decoder`, else of added_tokens.json. A
    token that would get another id than the model learned, or one beyond the model's vocabulary, is left out.
    """
    from tokenizers import AddedToken

    special = [*_special_tokens(config).values(), *_more_special_tokens(config)]
    wanted: list[tuple[int | None, AddedToken]] = []
    for place, content, flags in _declared(config, special, texts):
        wanted.append((place, AddedToken(content, **flags)))
    wanted += [(None, AddedToken(content, special=True, normalized=False)) for content in special]
    rows = _vocabulary(texts.object("config.json"))
    there = backend.get_added_tokens_decoder()
    known = {token.content for token in there.values()}
    free = max(backend.get_vocab_size(with_added_tokens=False), max(there, default=-1) + 1)  # what a new one gets
    new: list[AddedToken] = []
    for number, token in wanted:
        own = backend.token_to_id(token.content)
        gets = free if own is None else own
        fits = own is not None or (rows is not None and free < rows) if number is None else number == gets
        if token.content and token.content not in known and fits:
            known.add(token.content)
            new.append(token)
            free += own is None
    backend.add_tokens(new)


def _declared(
    config: Mapping[str, Any], special: Collection[str], texts: _Texts
) -> list[tuple[int, str, dict[str, bool]]]:
    """Id, text and flags of each token that a file gives an id to, by id."""
    path, found = texts["tokenizer_config.json"], config.get("added_tokens_decoder")
    try:
        if found is not None:
            tokens = [
                (int(number), str(token["content"]), {flag: token.get(flag) is True for flag in _FLAGS})
                for number, token in found.items()
            ]
        else:
            path = texts["added_tokens.json"]
            tokens = [
                (int(number), text, {"special": text in special, "normalized": text not in special})
                for text, number in texts.object("added_tokens.json").items()
            ]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        what = "added_tokens_decoder is not a table of tokens" if found is not None else "is not a table of tokens"
        raise TextError(f"{path}: {what}", _DAMAGED) from None
    return sorted(tokens, key=lambda token: token[:2])


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    """How many ids the model knows, as far as config.json tells."""
    inner = config.get("text_config")
    size = (inner if isinstance(inner, dict) else config).get("vocab_size")
    return size if type(size) is int else None


def _more_special_tokens(config: Mapping[str, Any]) -> list[str]:
    """Special tokens without a role: strings, or objects with the string as their content."""
    lists = (config.get(name) for name in ("additional_special_tokens", "extra_special_tokens"))
    found = (each for tokens in lists if isinstance(tokens, list) for each in tokens)
    texts = (each.get("content") if isinstance(each, dict) else each for each in found)
    return [text for text in texts if isinstance(text, str)]


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
