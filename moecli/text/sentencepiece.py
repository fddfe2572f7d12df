"""A SentencePiece model (tokenizer.model), read without its library into a tokenizer with the same ids and texts."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from moecli.errors import TextError
from moecli.text.segmentation import SPACE, Normalizer, Segmenter

if TYPE_CHECKING:
    from tokenizers import NormalizedString, PreTokenizedString
    from tokenizers import Tokenizer as Backend

_MOST_PIECES = 4_000_000
_LONGEST_PIECE = 1024  # characters; what training allows is half of that
_MOST_DIGITS = 10  # bytes of a varint
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_UNKNOWN_SURFACE = " \u2047 "
_HINT = "the file is damaged, or no SentencePiece model: download it again"


class Kind(IntEnum):
    """What a piece is for, by its number in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Algorithm(IntEnum):
    """How text is cut, by its number in the file."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float = 0.0
    kind: Kind = Kind.NORMAL


@dataclass(frozen=True, slots=True)
class Model:
    """All of the file that decides ids and texts; a piece's place is its id."""

    pieces: tuple[Piece, ...]
    algorithm: Algorithm = Algorithm.UNIGRAM
    byte_fallback: bool = False
    space_after: bool = False  # the dummy space ends a text instead of beginning it
    unknown_surface: str = _UNKNOWN_SURFACE
    bos: str | None = "<s>"
    eos: str | None = "</s>"
    normalizer: Normalizer = field(default_factory=Normalizer)

    def id_of(self, text: str) -> int | None:
        return next((place for place, piece in enumerate(self.pieces) if piece.text == text), None)


def read(content: bytes) -> Model:
    """The model in a file. TextError, with no more than a few times the file's size of memory, if it is none."""
    try:
        model = _read_model(content)
    except (ValueError, struct.error, TypeError) as problem:
        raise _damaged(str(problem)) from None
    _check(model)
    return model


def _read_model(content: bytes) -> Model:
    pieces: list[Piece] = []
    model = Model(())
    for number, value in _fields(content):
        match number, value:
            case 1, bytes():
                pieces.append(_piece(value))
                if len(pieces) > _MOST_PIECES:
                    raise ValueError(f"more than {_MOST_PIECES} pieces")
            case 2, bytes():
                model = _trained(model, value)
            case 3, bytes():
                model = replace(model, normalizer=_normalizer(model.normalizer, value))
            case 5, bytes() if any(number == 2 and value for number, value in _fields(value)):
                raise ValueError("its texts are denormalised by a table, which is not supported")
    return replace(model, pieces=tuple(pieces))


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, Kind.NORMAL
    for number, value in _fields(message):
        match number, value:
            case 1, bytes():
                text = value.decode()
            case 2, float():
                score = value
            case 3, int():
                kind = Kind(value)
    return Piece(text, score, kind)


def _trained(model: Model, message: bytes) -> Model:
    """What the training specification says of encoding and decoding."""
    bos, eos, unused = model.bos, model.eos, set()
    for number, value in _fields(message):
        match number, value:
            case 3, int():
                model = replace(model, algorithm=Algorithm(value))
            case 24, int():
                model = replace(model, space_after=bool(value))
            case 35, int():
                model = replace(model, byte_fallback=bool(value))
            case 44, bytes():
                model = replace(model, unknown_surface=value.decode())
            case ((41 | 42), int()) if value >= 2**31:  # -1
                unused.add(number)
            case 46, bytes():
                bos = value.decode()
            case 47, bytes():
                eos = value.decode()
    return replace(model, bos=None if 41 in unused else bos, eos=None if 42 in unused else eos)


def _normalizer(normalizer: Normalizer, message: bytes) -> Normalizer:
    for number, value in _fields(message):
        match number, value:
            case 2, bytes():
                normalizer = replace(normalizer, charsmap=value)
            case 3, int():
                normalizer = replace(normalizer, dummy_prefix=bool(value))
            case 4, int():
                normalizer = replace(normalizer, remove_extra=bool(value))
            case 5, int():
                normalizer = replace(normalizer, escape=bool(value))
    return normalizer


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of each field of a protocol buffer: varint, float, or bytes. ValueError where it is none."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
        elif wire == 2:
            size, place = _varint(message, place)
            if size > len(message) - place:
                raise ValueError(f"a field claims {size} bytes and {len(message) - place} are left")
            yield number, message[place : place + size]
            place += size
        elif wire == 5:
            yield number, struct.unpack_from("<f", message, place)[0]
            place += 4
        elif wire == 1:
            yield number, struct.unpack_from("<d", message, place)[0]
            place += 8
        else:
            raise ValueError(f"a field of the unknown wire type {wire}")


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MOST_DIGITS, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("it is cut short")


def _check(model: Model) -> None:
    """What sentencepiece itself refuses, and what could take for ever."""
    if not model.pieces:
        raise _damaged("it holds no pieces")
    seen: set[tuple[bool, str]] = set()
    unknown = 0
    for place, piece in enumerate(model.pieces):
        reserved = piece.kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.BYTE)
        if not piece.text or (reserved, piece.text) in seen or len(piece.text) > _LONGEST_PIECE:
            raise _damaged(f"piece {place} is empty, too long or there twice")
        if piece.score != piece.score:
            raise _damaged(f"the score of piece {place} is no number")
        seen.add((reserved, piece.text))
        unknown += piece.kind is Kind.UNKNOWN
        if piece.kind is Kind.BYTE and not (model.byte_fallback and _BYTE.fullmatch(piece.text)):
            raise _damaged(f"piece {place} is a byte and may not be one")
    if unknown != 1:
        raise _damaged(f"{unknown} of its pieces are the unknown one")
    bytes_ = sum(piece.kind is Kind.BYTE for piece in model.pieces)
    if model.byte_fallback and bytes_ != 256:
        raise _damaged(f"it holds {bytes_} of the 256 bytes")
    if model.algorithm not in (Algorithm.BPE, Algorithm.UNIGRAM):
        raise TextError(
            f"tokenizer.model cuts text by {model.algorithm.name.lower()}, which is not supported",
            "bpe and unigram models are",
        )


def _damaged(problem: str) -> TextError:
    return TextError(f"tokenizer.model cannot be read: {problem}", _HINT)


def backend(model: Model, every_section: bool = True) -> Backend:
    """A tokenizer of the model, whose control pieces are special tokens.

    Text between special tokens is encoded by itself and begins with the dummy space; unless `every_section`, only at
    the start of the whole text.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocabulary: dict[str, int] = {}
    for place, piece in enumerate(model.pieces):
        if piece.kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.BYTE):
            vocabulary[piece.text] = place
        else:
            vocabulary.setdefault(piece.text, place)
    unknown = next(piece.text for piece in model.pieces if piece.kind is Kind.UNKNOWN)
    made = Backend(models.WordLevel(vocabulary, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(_Cutter(_segmenter(model), model, every_section))
    made.decoder = decoders.Decoder.custom(_Joiner(model))
    controls = [piece.text for piece in model.pieces if piece.kind is Kind.CONTROL]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    return made


def _segmenter(model: Model) -> Segmenter:
    kinds = (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED)
    return Segmenter(
        scores={piece.text: piece.score for piece in model.pieces if piece.kind in kinds},
        frozen=frozenset(piece.text for piece in model.pieces if piece.kind is Kind.USER_DEFINED),
        unused=frozenset(piece.text for piece in model.pieces if piece.kind is Kind.UNUSED),
        reserved=frozenset(piece.text for piece in model.pieces if piece.kind not in kinds),
        unigram=model.algorithm is Algorithm.UNIGRAM,
    )


class _Cutter:
    """Cuts text into pieces, as the part of a `tokenizers` tokenizer that makes words."""

    def __init__(self, segmenter: Segmenter, model: Model, every_section: bool) -> None:
        self._segmenter = segmenter
        self._unknown = next(piece.text for piece in model.pieces if piece.kind is Kind.UNKNOWN)
        self._byte_fallback = model.byte_fallback
        self._space_after = model.space_after
        self._first = model.normalizer.compile(segmenter.frozen)
        later = model.normalizer if every_section else replace(model.normalizer, dummy_prefix=False)
        self._later = later.compile(segmenter.frozen)

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        text.split(self._split)

    def _split(self, section: int, text: NormalizedString) -> list[NormalizedString]:
        from tokenizers import NormalizedString

        normalize = self._later if section else self._first
        return [NormalizedString(piece) for piece in self.pieces(normalize(str(text.normalized), self._space_after))]

    def pieces(self, text: str) -> Iterator[str]:
        """The pieces of normalised text; what is unknown as bytes, or one piece for a run of it."""
        before = False
        for piece, known in self._segmenter.cut(text):
            if known:
                yield piece
            elif self._byte_fallback:
                yield from (f"<0x{byte:02X}>" for byte in piece.encode())
            elif not before:
                yield self._unknown
            before = not known


class _Joiner:
    """Puts pieces together to text, as the decoder of a `tokenizers` tokenizer."""

    def __init__(self, model: Model) -> None:
        self._strips = model.normalizer.dummy_prefix or model.normalizer.remove_extra
        self._strips_all = model.normalizer.remove_extra
        self._unknown = next(piece.text for piece in model.pieces if piece.kind is Kind.UNKNOWN)
        self._surface = model.unknown_surface
        self._bytes = {f"<0x{byte:02X}>": byte for byte in range(256)} if model.byte_fallback else {}

    def decode(self, tokens: list[str]) -> str:
        return "".join(self.decode_chain(tokens))

    def decode_chain(self, tokens: list[str]) -> list[str]:
        texts: list[str] = []
        run = bytearray()
        first, seen, written = True, False, False
        for token in tokens:
            if token in self._bytes:
                run.append(self._bytes[token])
                continue
            if run:
                texts.append(_characters(bytes(run)))
                written = True
                run.clear()
            first = first and not seen and not written
            if token == self._unknown:
                texts.append(self._surface)
                seen, written = False, written or self._surface != ""
                continue
            seen = first and self._strips and token.startswith(SPACE)
            texts.append(token[seen:].replace(SPACE, " "))
            written = written or texts[-1] != ""
            seen = seen and not self._strips_all
        if run:
            texts.append(_characters(bytes(run)))
        return texts


def _characters(run: bytes) -> str:
    """Bytes as text, one U+FFFD for each that is part of no character."""
    text = ""
    while run:
        try:
            return text + run.decode()
        except UnicodeDecodeError as problem:
            text += run[: problem.start].decode() + "\ufffd"
            run = run[problem.start + 1 :]
    return text
