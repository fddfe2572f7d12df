"""Models side by side in memory: which fit beside others, which go, and whose time is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from moecli.engine.loaded import LoadOptions, OpenedModel, open_for_run
from moecli.errors import NotEnoughMemory
from moecli.library.resolve import Kind, ModelRef
from moecli.serve.models import identity
from moecli.serve.residents import Residents
from moecli.store.progress import Progress, silent
from tests.support.stores import packed, random_mixtral


@contextmanager
def loading(name: str) -> Iterator[Progress]:
    yield silent


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three alike, without tokenizers to speak of."""
    from tests.support import toy_tokenizers

    source = random_mixtral(tmp_path_factory.mktemp("models") / "source", hidden_size=256, intermediate_size=512)
    toy_tokenizers.byte_level().save(str(source / "tokenizer.json"))
    return [packed(source, source.parent / f"store{number}", "q8").folder for number in range(3)]


def opened(folder: Path, **limits: Any) -> OpenedModel:
    return open_for_run(
        ModelRef(folder.name, folder.name, Kind.FOLDER, folder), LoadOptions(threads=1, context=256, **limits)
    )


def needs(folder: Path) -> tuple[int, int]:
    """The smallest budget in which everything fits, with two texts, and what the process takes of it."""
    plan = opened(folder, ram=1 << 40).plan(256, 2)
    return plan.full_ram, plan.ram.process


def names(residents: Residents) -> list[str]:
    return [each.loaded.name for each in residents]


def bring(residents: Residents, folder: Path, ram: int, *busy: Path) -> bool:
    model = opened(folder, ram=ram)
    in_use = {identity(opened(each).ref) for each in busy}
    if residents.find(model.ref) is not None:
        return True
    return residents.load(model, in_use, silent) is not None


def test_models_stay_while_there_is_room_and_the_least_used_goes(stores: list[Path]) -> None:
    full, process = needs(stores[0])
    room = 2 * (full - process) + process  # for two
    residents = Residents(2, loading)
    assert bring(residents, stores[0], room) and bring(residents, stores[1], room)
    assert names(residents) == ["store0", "store1"]
    held = sum(each.loaded.plan.ram.total - each.loaded.plan.ram.process for each in residents)
    assert held + process <= room, "what was promised to one is not given to another"
    assert bring(residents, stores[0], room)  # is used again
    assert bring(residents, stores[2], room) and names(residents) == ["store0", "store2"]


def test_one_byte_too_little_for_two(stores: list[Path]) -> None:
    full, process = needs(stores[0])
    room = 2 * (full - process) + process - 1
    residents = Residents(2, loading)
    assert bring(residents, stores[0], room) and bring(residents, stores[1], room)
    assert names(residents) == ["store1"], "it would have run from disk beside the other one, and does not alone"
    assert next(iter(residents)).loaded.plan.fits


def test_what_is_in_use_is_waited_for(stores: list[Path]) -> None:
    full, process = needs(stores[0])
    room = 2 * (full - process) + process
    residents = Residents(2, loading)
    assert bring(residents, stores[0], room) and bring(residents, stores[1], room)
    assert not bring(residents, stores[2], room, stores[0], stores[1]) and len(names(residents)) == 2
    assert bring(residents, stores[2], room, stores[0]) and names(residents) == ["store0", "store2"]


def test_a_model_that_never_fits_is_refused_and_nobody_goes_for_it(stores: list[Path]) -> None:
    full, _ = needs(stores[0])
    residents = Residents(2, loading)
    assert bring(residents, stores[0], full)
    with pytest.raises(NotEnoughMemory):
        bring(residents, stores[1], 1 << 20)
    assert names(residents) == ["store0"]


def test_time_goes_by_for_each_model(stores: list[Path]) -> None:
    residents = Residents(1, lambda name: nullcontext(silent))
    models = [opened(each) for each in stores[:2]]
    for model in models:
        assert residents.load(model, (), silent)
    first, second = residents
    assert residents.keep(models[0].ref, 60) and residents.keep(models[1].ref, float("inf"))
    assert 59 < residents.expire(()) <= 60 and residents.expires_s(second) == float("inf")
    residents.keep(models[0].ref, 0)
    residents.expire({identity(models[0].ref)})
    assert names(residents) == ["store0", "store1"] and residents.expires_s(first) <= 0
    assert residents.expire(()) == float("inf") and names(residents) == ["store1"]
    assert not residents.keep(models[0].ref, 5)
    residents.unload_all()
    assert not names(residents) and residents.expire(()) == float("inf")
