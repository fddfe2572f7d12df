"""Session files: what was read is not read again, to the same bits; no damage, kill or full disk costs an answer."""

from __future__ import annotations

import random
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from moecli.engine import session_file
from moecli.engine.decoder import Decoder
from moecli.engine.prefixes import Reading, Slots
from moecli.engine.session_file import Identity, SessionFile
from moecli.errors import MoecliError
from moecli.kernels.blocking import STATE_STEP
from tests.support.checkpoints import make, prompt, write
from tests.support.processes import in_child
from tests.support.running import load

BLOCK = 16
OURS, THEIRS = Identity("ours in q8", "0" * 64), Identity("theirs in q4", "1" * 64)
HISTORY = prompt(75)
TURN = [*HISTORY, *prompt(17, seed=5)]


class Session:
    """A model that reads prompts with a session file, as a process does from its start to its end."""

    def __init__(
        self, decoder: Decoder, path: Path, identity: Identity = OURS, piece: int = BLOCK, block: int = BLOCK
    ) -> None:
        self.told: list[str] = []
        self.failed: list[MoecliError] = []
        self._decoder = decoder
        self._file = SessionFile(path, identity, block, 256, self.told.append, self.failed.append)
        reading = Reading(block, piece, decoder.absorbed_up_to)
        self._slots = Slots([decoder.new_cache(256, 256)], reading, self._file)

    def read(self, ids: Sequence[int]) -> tuple[int, torch.Tensor]:
        """How many tokens were fed, and the logits after the prompt."""
        found = self._slots.take(ids)
        assert found is not None
        (slot, ends), fed = found, 0
        for end in ends:
            piece = ids[len(slot.ids) : end]
            states = self._decoder.forward(torch.tensor(piece), slot.cache, last_only=True, prompt=len(ids))
            self._slots.read(slot, piece)
            fed += len(piece)
        self._slots.give_back(slot)
        return fed, self._decoder.logits(states)[0]

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def alone(decoder: Decoder, ids: Sequence[int]) -> torch.Tensor:
    """The logits after a prompt that is read at once."""
    return decoder.logits(decoder.forward(torch.tensor(ids), decoder.new_cache(256, 256), last_only=True))[0]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(write(make("mixtral"), tmp_path_factory.mktemp("mixtral")), "q8")


@pytest.fixture(scope="module")
def kept(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file that HISTORY leaves."""
    path = tmp_path_factory.mktemp("session") / "file"
    with Session(decoder, path) as session:
        session.read(HISTORY)
    return path.read_bytes()


@pytest.mark.parametrize("piece", [BLOCK, 4 * BLOCK])
@pytest.mark.parametrize(
    ("family", "dtype", "changes"),
    [
        ("mixtral", "fp32", {}), ("mixtral", "q8", {"sliding_window": 64}), ("deepseek_v3", "fp32", {}),
        ("qwen3_moe", "bf16", {}),
    ],
)  # fmt: skip
def test_after_a_restart_only_what_is_new_is_read(
    family: str, dtype: str, changes: dict[str, object], piece: int, tmp_path: Path
) -> None:
    decoder = load(write(make(family, **changes), tmp_path / "model"), dtype)
    with Session(decoder, tmp_path / "session", piece=piece) as session:
        fed, first = session.read(HISTORY)
        assert fed == len(HISTORY) and torch.equal(first, alone(decoder, HISTORY))
    with Session(decoder, tmp_path / "session", piece=piece) as session:
        for _ in range(2):  # from the file, then from memory
            fed, logits = session.read(TURN)
            assert fed == (len(TURN) - 64 if _ == 0 else len(TURN) - 80) and torch.equal(logits, alone(decoder, TURN))
        other = [*HISTORY[:40], *prompt(30, seed=4)]
        fed, logits = session.read(other)
        assert fed == len(other) - 32 and torch.equal(logits, alone(decoder, other))
        assert not session.told and not session.failed


@pytest.mark.parametrize(
    "family", ["qwen3_next", "lfm2_moe", "nemotron_h", "jamba", "kimi_linear", "minimax", "bailing_hybrid"]
)
def test_states_are_kept_beside_keys_and_values(family: str, tmp_path: Path) -> None:
    decoder, block = load(write(make(family), tmp_path / "model"), "q8"), STATE_STEP
    history, turn = prompt(150), [*prompt(150), *prompt(30, seed=5)]
    with Session(decoder, tmp_path / "session", piece=block, block=block) as session:
        fed, first = session.read(history)
        assert fed == 150 and torch.equal(first, alone(decoder, history))
    for start in (history[:100], history):  # from the file what one of its blocks ends
        with Session(decoder, tmp_path / "session", piece=block, block=block) as session:
            fed, logits = session.read([*start, *turn[150:]])
            assert fed == len(start) + 30 - len(start) // block * block
            assert torch.equal(logits, alone(decoder, [*start, *turn[150:]])) and not session.told


def test_a_damaged_file_gives_what_is_whole_and_the_same_answer(decoder: Decoder, kept: bytes, tmp_path: Path) -> None:
    """Bytes changed and ends cut off anywhere; what is cut is written again."""
    path, expected, chance = tmp_path / "session", alone(decoder, TURN), random.Random(0)
    for number in range(120):
        place = chance.randrange(len(kept))
        if number % 2:
            path.write_bytes(kept[:place])
        else:
            path.write_bytes(kept[:place] + bytes([kept[place] ^ (1 << chance.randrange(8))]) + kept[place + 1 :])
        with Session(decoder, path) as session:
            fed, logits = session.read(TURN)
            assert torch.equal(logits, expected) and not session.failed
            unknown = place == 0 or b'"key":"' in kept[max(0, place - 71) : place]  # of which nothing can be said
            assert fed == len(TURN) - 64 or unknown or session.told, (number, place)
        if number % 2 and place > 1000:
            with Session(decoder, path) as session:
                assert session.read(TURN)[0] == len(TURN) - 80 and not session.told


def test_hostile_headers_are_refused(decoder: Decoder, kept: bytes, tmp_path: Path) -> None:
    path, head = tmp_path / "session", 8 + int.from_bytes(kept[:8], "little")
    for content in (
        b"\xff" * 8, (2**62).to_bytes(8, "little"), (4).to_bytes(8, "little") + b"[[[[", b"{" * 4000,
        (64).to_bytes(8, "little") + b'{"0.keys":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}     ',
    ):  # fmt: skip
        path.write_bytes(kept[:head] + content)
        with Session(decoder, path) as session:
            assert session.read(HISTORY)[0] == len(HISTORY) and len(session.told) == 1
        path.write_bytes(content)
        with Session(decoder, path) as session:
            assert session.read(HISTORY)[0] == len(HISTORY) and "no session of moecli" in session.told[0]
        assert path.read_bytes() == content  # it may be dear to somebody


def test_the_session_of_another_model_begins_anew(decoder: Decoder, kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "session"
    path.write_bytes(kept)
    with Session(decoder, path, THEIRS) as session:
        assert session.read(HISTORY)[0] == len(HISTORY)
        assert "is of ours in q8" in session.told[0]
    with Session(decoder, path, THEIRS) as session:
        assert session.read(HISTORY)[0] == len(HISTORY) - 64 and not session.told
    assert not [each for each in tmp_path.iterdir() if each != path]


def test_two_at_once_do_not_meet(decoder: Decoder, kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "session"
    path.write_bytes(kept)
    with Session(decoder, path) as first, Session(decoder, path) as second:
        assert "used by another moecli" in second.told[0]
        assert second.read(HISTORY)[0] == len(HISTORY) and first.read(HISTORY)[0] == len(HISTORY) - 64
    assert path.read_bytes() == kept


@pytest.mark.parametrize("left", [0, 5000])
def test_a_full_disk_is_one_failure_and_the_answer_is_given(
    decoder: Decoder, kept: bytes, left: int, tmp_path: Path
) -> None:
    path, limits = tmp_path / "session", resource.getrlimit(resource.RLIMIT_FSIZE)
    if left:
        path.write_bytes(kept)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + left if left else 10, limits[1]))
    try:
        with Session(decoder, path) as session:
            longer = [*TURN, *prompt(100, seed=8)]
            assert torch.equal(session.read(longer)[1], alone(decoder, longer))
            assert [each.message.rpartition(": ")[2] for each in session.failed] == ["File too large"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.stat().st_size <= len(kept) + left for each in tmp_path.iterdir()] == [True] * bool(left)
    with Session(decoder, path) as session:
        assert session.read(HISTORY)[0] == len(HISTORY) - (64 if left else 0) and not session.told


def test_a_kill_costs_no_earlier_turn(decoder: Decoder, kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "session"

    def talk() -> None:
        with Session(decoder, path) as session:
            for turn in range(1000):
                session.read([*HISTORY, *prompt(20 + turn % 80, seed=1000 + turn)])

    for after in (0.05, 0.11, 0.2):
        path.write_bytes(kept)
        assert in_child(talk, kill_after=after) == -14
        with Session(decoder, path) as session:
            fed, logits = session.read(TURN)
            assert fed == len(TURN) - 64 and torch.equal(logits, alone(decoder, TURN))


def test_a_file_stays_within_its_bounds_and_keeps_what_was_used_last(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "_MOST_TOKENS", 0)  # but 4 texts of 256
    path, largest = tmp_path / "session", 0
    with Session(decoder, path) as session:
        for seed in range(20):
            session.read(HISTORY)
            session.read(prompt(200, seed=100 + seed))
            largest = max(largest, path.stat().st_size)
    size = path.stat().st_size
    with Session(decoder, path) as session:
        assert session.read(HISTORY)[0] == len(HISTORY) - 64
        assert session.read(prompt(200, seed=119))[0] == 200 - 176
        assert session.read(prompt(200, seed=100))[0] == 200
        assert not session.told
    assert size <= largest < 80 * len(kept_block(decoder, tmp_path))


def kept_block(decoder: Decoder, folder: Path) -> bytes:
    """A file with one block, about as large as a block."""
    with Session(decoder, folder / "one") as session:
        session.read(prompt(30))
    return (folder / "one").read_bytes()
