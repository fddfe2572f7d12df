"""The native products are right, the same on every instruction set, and no token sees another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moecli.formats import FORMATS, TILED, bytes_for
from moecli.kernels import library, native
from moecli.kernels.linear import ACTIVATIONS
from moecli.model.spec import Activation
from tests.support import native_samples as samples
from tests.support.native_samples import on_every_isa

pytestmark = pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
SHAPES = st.tuples(st.integers(1, 150), st.integers(1, 300))
TOKENS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 12, 13, 40, 193, 400])


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    library.use_isa(library.isas()[0])
    torch.set_num_threads(1)


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@pytest.mark.parametrize("dtype", samples.FORMATS)
@given(shape=SHAPES, tokens=TOKENS)
def test_a_product_is_that_of_the_activations_as_they_are_taken(
    dtype: str, shape: tuple[int, int], tokens: int
) -> None:
    packed, x = samples.matrix(dtype, *shape), samples.gaussian(tokens, shape[1], seed=1)
    found = on_every_isa(lambda: native.linear(dtype, x, packed, shape))
    assert close(found, samples.product(dtype, samples.rounded(dtype, x), packed, shape))


@pytest.mark.parametrize("columns", [1024, 1025, 1088, 2112])
@pytest.mark.parametrize("dtype", [each for each in samples.FORMATS if each not in TILED])
def test_rows_of_several_spans(dtype: str, columns: int) -> None:
    """Sums go from span to span: alone and in company, with odd columns and where blocks of scales go across rows."""
    shape, x = (19, columns), samples.gaussian(5, columns, seed=1)
    packed = samples.matrix(dtype, *shape)
    found = on_every_isa(lambda: native.linear(dtype, x, packed, shape))
    assert close(found, samples.product(dtype, x, packed, shape))
    assert torch.equal(on_every_isa(lambda: native.linear(dtype, x[2:3], packed, shape)), found[2:3])


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TILED)
@pytest.mark.parametrize(("width", "inner"), [(256, 64), (100, 40), (7, 129), (130, 200)])
@pytest.mark.parametrize("tokens", [1, 4, 9, 200])
def test_experts(dtype: str, activation: Activation, width: int, inner: int, tokens: int) -> None:
    """A hidden number on the edge between two codes may fall on either side: 1/254 of its group's largest."""
    experts, x = samples.experts(dtype, width, inner, 2), samples.gaussian(tokens, width, seed=9)
    found = on_every_isa(lambda: native.feed_forward(dtype, x, experts, inner, activation))
    for expert, output in zip(experts, found, strict=True):
        wanted = samples.layer(dtype, x, expert, inner, activation)
        errors = (output - wanted).abs().amax(1) / wanted.abs().amax()
        assert errors.median() < 1e-5 and errors.max() < 1e-2


@pytest.mark.parametrize("dtype", [each for each in samples.FORMATS if each not in TILED])
@pytest.mark.parametrize(("width", "inner", "tokens"), [(128, 64, 1), (100, 40, 9), (7, 129, 1), (192, 200, 4)])
def test_experts_of_rows(dtype: str, width: int, inner: int, tokens: int) -> None:
    experts, x = samples.experts(dtype, width, inner, 2), samples.gaussian(tokens, width, seed=9)
    found = on_every_isa(lambda: native.feed_forward(dtype, x, experts, inner, Activation.SILU))
    for expert, output in zip(experts, found, strict=True):
        assert close(output, samples.layer(dtype, x, expert, inner, Activation.SILU))


@pytest.mark.parametrize("dtype", samples.FORMATS)
@pytest.mark.parametrize("tokens", [1, 9, 200])
def test_an_expert_of_two_matrices_has_no_gate(dtype: str, tokens: int) -> None:
    """To the bit what the two products give by themselves, and with a gate what it was."""
    width, inner = 100, 90
    (gate, up, down), x = samples.experts(dtype, width, inner, 1)[0], samples.gaussian(tokens, width, seed=9)
    hidden = torch.relu(native.linear(dtype, x, up, (inner, width)))
    found = on_every_isa(lambda: native.inner(dtype, x, [up], inner, Activation.RELU))
    assert torch.equal(found, hidden)
    whole = on_every_isa(lambda: native.feed_forward(dtype, x, [(up, down), (up, down)], inner, Activation.RELU))
    assert torch.equal(whole[0], native.linear(dtype, hidden, down, (width, inner)))
    assert torch.equal(whole[0], whole[1])
    assert not torch.equal(native.inner(dtype, x, [gate, up], inner, Activation.RELU), hidden)


@pytest.mark.parametrize("dtype", samples.FORMATS)
@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_biases_and_limits_of_gpt_oss(dtype: str, numbers: torch.dtype) -> None:
    """Of several experts, some of whose numbers are beyond the limits; without a gate to the bit what products give."""
    width, inner = 100, 90
    experts, x = samples.experts(dtype, width, inner, 2), samples.gaussian(9, width, seed=9)
    biases = [
        [(4 * samples.gaussian(1, size, seed=3 * n + place))[0].to(numbers) for place, size in enumerate(_SIZES)]
        for n in range(2)
    ]
    found = on_every_isa(lambda: native.feed_forward(dtype, x, experts, inner, Activation.CLAMPED_SWIGLU, biases))
    for expert, its, output in zip(experts, biases, found, strict=True):
        wanted = samples.layer(dtype, x, expert, inner, Activation.CLAMPED_SWIGLU, [each.double() for each in its])
        errors = (output - wanted).abs().amax(1) / wanted.abs().amax()
        assert errors.median() < 1e-5 and errors.max() < 1e-2
    _, up, down = experts[0]
    hidden = torch.relu(native.linear(dtype, x, up, (inner, width)) + biases[0][1])
    assert torch.equal(native.inner(dtype, x, [up], inner, Activation.RELU, biases[0][1:2]), hidden)
    alone = native.feed_forward(dtype, x, [(up, down)], inner, Activation.RELU, [biases[0][1:]])[0]
    assert torch.equal(alone, native.linear(dtype, hidden, down, (width, inner)) + biases[0][2])
    with pytest.raises(ValueError, match=r"a bias of .* not 90 numbers here"):
        native.feed_forward(dtype, x, experts, inner, Activation.SILU, [its[::-1] for its in biases])


_SIZES = 90, 90, 100


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_to_single_precision(activation: Activation) -> None:
    """With one number a group nothing is lost by int8, so what is left is the error of the function."""
    one = native.pack("q8", torch.ones(1, 1))
    scale = samples.product("q8", torch.ones(1, 1), one, (1, 1))
    x = torch.linspace(-20, 20, 4001)[:, None]
    found = native.feed_forward("q8", x, [(one, one, one)], 1, activation)[0]
    numbers = x.double() * scale
    wanted = ACTIVATIONS[activation](numbers) * numbers * scale
    assert (found - wanted).abs().le(3e-6 * wanted.abs() + 1e-9).all()


@pytest.mark.parametrize("dtype", samples.FORMATS)
def test_a_number_depends_on_its_token_and_row_alone(dtype: str) -> None:
    width, inner = 300, 90
    experts, x = samples.experts(dtype, width, inner, 3), samples.gaussian(210, width)
    whole = native.feed_forward(dtype, x, experts, inner, Activation.SILU)
    product = native.linear(dtype, x, experts[0][0], (inner, width))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for part in (slice(0, 1), slice(0, 2), slice(3, 8), slice(6, 13), slice(100, 150), slice(0, 210)):
            assert torch.equal(native.linear(dtype, x[part], experts[0][0], (inner, width)), product[part])
            chosen = [experts[2], experts[0]]
            some = native.feed_forward(dtype, x[part], chosen, inner, Activation.SILU)
            assert torch.equal(some, whole[[2, 0], part])
    if dtype not in ("int8", "nf4"):  # whose scales lie apart
        row = bytes_for(dtype, (16, width)) // 16
        assert torch.equal(native.linear(dtype, x, experts[0][0][16 * row : 48 * row], (32, width)), product[:, 16:48])


@pytest.mark.parametrize("dtype", samples.FORMATS)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: str, precision: torch.dtype) -> None:
    packed, x = samples.matrix(dtype, 40, 100), samples.gaussian(5, 100).to(precision)
    found = on_every_isa(lambda: native.linear(dtype, x, packed, (40, 100)))
    assert found.dtype == precision
    assert torch.equal(found, native.linear(dtype, x.float(), packed, (40, 100)).to(precision))
    experts = samples.experts(dtype, 100, 40, 1)
    half, single = (native.feed_forward(dtype, each, experts, 40, Activation.GELU) for each in (x, x.float()))
    assert half.dtype == torch.float32 and torch.equal(half, single)


@pytest.mark.parametrize("dtype", samples.FORMATS)
def test_strange_activations(dtype: str) -> None:
    """What is not finite stays so, in its own token; the rest of the range is used."""
    packed, x = samples.matrix(dtype, 20, 96), samples.gaussian(9, 96)
    x[1, 5], x[2, 40], x[3, 0] = torch.nan, torch.inf, -torch.inf
    x[4], x[5], x[6], x[7] = 0, x[5] * 1e-28, x[6] * 1e30, 1e-38
    found = on_every_isa(lambda: native.linear(dtype, x, packed, (20, 96)).nan_to_num(nan=1e38))
    if dtype in TILED:
        assert bool((found[1:4] == 1e38).all()) and bool((found[[4, 7]] == 0).all())
    else:  # whose activations are not rounded: an infinity stays one, and a small number small
        assert bool((found[1:4].abs() >= 1e38).all()) and bool((found[4] == 0).all())
        assert bool((found[7].abs() < 1e-37).all())
    for row in (0, 5, 6, 8):
        assert close(found[row], samples.product(dtype, samples.rounded(dtype, x[row : row + 1]), packed, (20, 96))[0])


def test_views_and_empty_inputs() -> None:
    packed, x = samples.matrix("q4", 20, 96), samples.gaussian(96, 7)
    assert torch.equal(
        native.linear("q4", x.t(), packed, (20, 96)), native.linear("q4", x.t().clone(), packed, (20, 96))
    )
    assert native.linear("q4", x.new_empty(0, 96), packed, (20, 96)).shape == (0, 20)
    assert native.feed_forward("q4", x.t(), [], 20, Activation.SILU).shape == (0, 7, 96)
    none = samples.experts("q4", 96, 20, 1)
    assert native.feed_forward("q4", x.new_empty(0, 96), none, 20, Activation.SILU).shape == (1, 0, 96)


def test_unaligned_bytes() -> None:
    packed, x = samples.matrix("q8", 33, 96), samples.gaussian(8, 96)
    elsewhere = torch.empty(packed.numel() + 2, dtype=torch.uint8)[2:].copy_(packed)
    assert torch.equal(native.linear("q8", x, elsewhere, (33, 96)), native.linear("q8", x, packed, (33, 96)))


def test_what_does_not_fit_is_refused() -> None:
    packed, x = samples.matrix("q4", 20, 96), samples.gaussian(2, 96)
    for bad in (packed[:-1], packed.float(), packed.view(2, -1).t(), packed.to("meta")):
        with pytest.raises(ValueError, match="not the"):
            native.linear("q4", x, bad, (20, 96))
    for rows in (x[:, 1:], x[0], x.to("meta")):
        with pytest.raises(ValueError, match="not rows of 96"):
            native.linear("q4", rows, packed, (20, 96))
    with pytest.raises(ValueError, match="no instruction set abacus"):
        library.use_isa("abacus")


def test_every_format_has_native_kernels() -> None:
    assert all(map(native.available, FORMATS)) and set(native.FORMATS) == set(FORMATS)
    assert not native.available("") and not native.available("q5")
    assert library.isa() in library.isas() and library.isas()[-1] == "scalar"


def _python(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_and_the_kernels_share_one_openmp_runtime() -> None:
    script = """
import torch
from pathlib import Path
from moecli.formats import FORMATS, bytes_for
from moecli.kernels import library, native
torch.set_num_threads(2)
torch.randn(999, 999) @ torch.randn(999, 999)
tasks = lambda: len(list(Path("/proc/self/task").iterdir()))
before = tasks()
weights = torch.randn(2048, 512)
native.linear("q4", torch.randn(64, 512), native.pack("q4", weights), (2048, 512))
maps = Path("/proc/self/maps").read_text().split()
runtimes = {path for path in maps if "omp" in Path(path).name and ".so" in path}
print(len(runtimes), before, tasks(), library.openmp()[0] is not None)
"""
    runtimes, before, after, shared = _python(script).split()
    assert runtimes == "1" and before == after and shared == "True"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="protects pages by libc")
def test_nothing_is_read_or_written_outside() -> None:
    """Every buffer ends, and in a second round begins, at a page that may not be touched."""
    assert _python((Path(__file__).parents[1] / "support" / "guarded.py").read_text()).split() == list(library.isas())
