"""The words for a model's format: what they mean, and which are refused."""

from __future__ import annotations

import pytest

from moecli.errors import UsageError
from moecli.formats import FORMATS
from moecli.formats.words import DENSE, Formats, check_dtype, formats_of, is_dtype, with_dense


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_format_is_that_of_all(dtype: str) -> None:
    assert formats_of(dtype) == Formats(dtype, dtype) and not formats_of(dtype).mixed
    assert with_dense(dtype, None) == with_dense(dtype, dtype) == dtype and is_dtype(dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("dense", DENSE)
def test_dense_weights_are_never_coarser_than_experts(dtype: str, dense: str) -> None:
    word = f"{dtype}-dense-{dense}"
    if FORMATS[dense].bits > FORMATS[dtype].bits:
        assert with_dense(dtype, dense) == word and is_dtype(word)
        assert formats_of(word) == Formats(dtype, dense) and formats_of(word).mixed
    else:
        assert not is_dtype(word)
        with pytest.raises(UsageError, match=f"--dense {dense} is no more precise than experts in {dtype}"):
            check_dtype(word)


@pytest.mark.parametrize(
    ("dtype", "dense", "message", "hint"),
    [
        ("auto", "q8", "--dense q8 goes with a format of the experts", "--dtype q4"),
        ("q4-dense-q8", "bf16", "--dtype q4-dense-q8 and --dense cannot both be meant", "leave --dense out"),
        ("q4", "Q8_0", "unknown --dense 'Q8_0'", "the nearest is q8; it takes bf16, fp16, q8, q4"),
        ("q4", "fp32", "unknown --dense 'fp32'", "it takes bf16, fp16, q8, q4"),
        ("Q4_K_M", "q8", "unknown --dtype 'Q4_K_M'", "the nearest is q4; it takes auto, fp32"),
        ("q4-dense-", None, "unknown --dense ''", "it takes bf16"),
        ("-dense-q8", None, "unknown --dtype ''", "it takes auto"),
        ("auto-dense-q8", None, "--dense q8 goes with a format of the experts", "--dtype q4"),
    ],
)
def test_what_means_nothing_is_refused(dtype: str, dense: str | None, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        with_dense(dtype, dense)
    assert message in error.value.message and error.value.hint is not None and hint in error.value.hint
