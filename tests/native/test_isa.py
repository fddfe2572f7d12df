"""MOECLI_ISA: the native kernels held to one instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from moecli.errors import UsageError
from moecli.kernels import choice, library
from tests.support import native_samples as samples


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set MOECLI_ISA, as if before the first look at the library."""

    def forget() -> None:
        library.library.cache_clear()
        choice.chosen.cache_clear()

    def ask(name: str) -> None:
        monkeypatch.setenv("MOECLI_ISA", name)
        forget()

    yield ask
    monkeypatch.undo()
    forget()


@pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
def test_each_instruction_set_can_be_asked_for(ask: Callable[[str], None]) -> None:
    from moecli.kernels import native

    packed, x = samples.matrix("q4", 40, 100), samples.gaussian(3, 100)
    wanted = native.linear("q4", x, packed, (40, 100))
    for name in library.isas():
        ask(name)
        assert library.isa() == name
        assert native.linear("q4", x, packed, (40, 100)).equal(wanted)


@pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
def test_without_it_the_best_is_used(ask: Callable[[str], None]) -> None:
    ask("scalar")
    assert library.isa() == "scalar"
    ask("")  # as good as unset
    assert library.isa() == library.isas()[0]


@pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
def test_one_that_is_not_here_is_wrong_usage(ask: Callable[[str], None]) -> None:
    ask("abacus")
    for call in (library.library, library.isa, lambda: choice.chosen("q4", "cpu")):
        with pytest.raises(UsageError, match="MOECLI_ISA is 'abacus'") as caught:
            call()
        assert caught.value.hint == f"the instruction sets here: {', '.join(library.isas())}"


def test_without_a_library_there_is_none(ask: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_found", lambda: "were not built")
    ask("avx2")
    with pytest.raises(UsageError, match="MOECLI_ISA is 'avx2'") as caught:
        library.library()
    assert caught.value.hint == "the instruction sets here: none: the native kernels were not built"
