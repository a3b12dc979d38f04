"""Symbolic arrays against numpy: the same operations on an array of one lane, and symbolically at the same point."""

from typing import Any

import numpy as np
import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from capvisor.proofs.symarray import SymArray, lane
from capvisor.proofs.symbolic import SymInt, Unfaithful, explore

DTYPES = {np.dtype(np.uint64): 64, np.dtype(np.uint32): 32, np.dtype(np.uint8): 8, np.dtype(np.bool_): 1}
NUMBERS = [np.add, np.subtract, np.multiply, np.bitwise_and, np.bitwise_or, np.bitwise_xor]
NUMBERS += [np.left_shift, np.right_shift, np.minimum, np.maximum]
COMPARISONS = [np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal]
LOGICAL = [np.logical_and, np.logical_or]
words = (
    st.integers(0, 2**64 - 1) | st.integers(0, 70) | st.integers(2**64 - 3, 2**64 - 1) | st.integers(2**32 - 2, 2**32 + 2)
)
number_types = st.sampled_from([np.dtype(np.uint64), np.dtype(np.uint32), np.dtype(np.uint8)])


def pair(value: int, dtype: np.dtype) -> tuple[np.ndarray, SymArray]:
    """A value as an array of numpy's, and as a symbolic one that holds just that value."""
    reduced = value % 2 ** DTYPES[dtype]
    term = z3.BoolVal(bool(reduced)) if dtype == np.bool_ else z3.BitVecVal(reduced, DTYPES[dtype])
    return np.array([reduced], dtype), SymArray(term, dtype)


def held(array: SymArray) -> int:
    term = z3.simplify(array.term)
    return int(z3.is_true(term)) if array.dtype == np.bool_ else int(term.as_long())


@given(st.sampled_from(NUMBERS + COMPARISONS), words, words, number_types, number_types, number_types, st.booleans())
def test_functions_of_numbers_are_numpys(ufunc: Any, a: int, b: int, one: Any, two: Any, out: Any, scalar: bool) -> None:
    (real_a, sym_a), (real_b, sym_b) = pair(a, one), pair(b, two)
    target = np.dtype(np.bool_) if ufunc in COMPARISONS else out
    real_out, sym_out = pair(0, target)
    if scalar:
        real_b = sym_b = int(real_b[0]) % 2 ** DTYPES[one]
    try:
        ufunc(real_a, real_b, out=real_out)
    except np.exceptions.DTypePromotionError:
        return
    except TypeError:
        with pytest.raises(Unfaithful):
            ufunc(sym_a, sym_b, out=sym_out)
        return
    ufunc(sym_a, sym_b, out=sym_out)
    assert held(sym_out) == int(real_out[0])


@given(st.sampled_from(LOGICAL + COMPARISONS), st.booleans(), st.booleans())
def test_functions_of_truth_values_are_numpys(ufunc: Any, a: bool, b: bool) -> None:
    boolean = np.dtype(np.bool_)
    (real_a, sym_a), (real_b, sym_b), (real_out, sym_out) = pair(a, boolean), pair(b, boolean), pair(0, boolean)
    ufunc(real_a, real_b, out=real_out)
    ufunc(sym_a, sym_b, out=sym_out)
    assert held(sym_out) == int(real_out[0])


@given(words, st.booleans(), number_types, number_types)
def test_a_number_with_a_truth_value_is_promoted_as_numpy_does(a: int, b: bool, dtype: Any, out: Any) -> None:
    (real_a, sym_a), (real_b, sym_b), (real_out, sym_out) = pair(a, dtype), pair(b, np.dtype(np.bool_)), pair(0, out)
    np.multiply(real_a, real_b, out=real_out, casting="unsafe")
    np.multiply(sym_a, sym_b, out=sym_out, casting="unsafe")
    assert held(sym_out) == int(real_out[0])


@given(words, words, number_types, number_types, st.booleans())
def test_copies_are_numpys(a: int, b: int, source: Any, target: Any, where: bool) -> None:
    (real_a, sym_a), (real_b, sym_b) = pair(a, source), pair(b, target)
    real_where, sym_where = pair(where, np.dtype(np.bool_))
    np.copyto(real_b, real_a, casting="unsafe", where=real_where)
    np.copyto(sym_b, sym_a, casting="unsafe", where=sym_where)
    assert held(sym_b) == int(real_b[0])


@given(words, words)
def test_operators_make_the_arrays_that_numpys_make(a: int, b: int) -> None:
    real, sym = pair(a, np.dtype(np.uint64))
    for use in (lambda x: x & b, lambda x: x ^ b, lambda x: x - b, lambda x: x << b % 70, lambda x: x == b):
        made, expected = use(sym), use(real)
        assert made.dtype == expected.dtype and held(made) == int(expected[0])


def test_any_and_all_leave_the_other_lanes_of_the_block_open() -> None:
    for value, any_can_be, all_can_be in ((True, [True], [False, True]), (False, [False, True], [False])):
        _real, array = pair(value, np.dtype(np.bool_))
        for expected, condition in ((any_can_be, array.any), (all_can_be, array.all)):
            assert sorted({bool(path.result) for path in explore(lambda: bool(condition()))}) == expected  # noqa: B023


@given(st.integers(-2, 2**64 + 1))
def test_symbolic_python_ints_are_taken_as_numpy_takes_ints(number: int) -> None:
    (real, sym), (real_out, sym_out) = pair(5, np.dtype(np.uint64)), pair(0, np.dtype(np.uint64))
    symbol = SymInt(z3.BitVecVal(number, 70), -2, 2**64 + 1)
    try:
        np.subtract(real, number, out=real_out)
    except OverflowError:
        with pytest.raises(OverflowError):
            np.subtract(sym, symbol, out=sym_out)
        return
    np.subtract(sym, symbol, out=sym_out)
    assert held(sym_out) == int(real_out[0])


@given(words, st.integers(0, 80))
def test_shifts_with_a_sign_are_numpys_and_write_through_their_view(a: int, distance: int) -> None:
    uint64 = np.dtype(np.uint64)
    (real, sym), (real_distance, sym_distance) = pair(a, uint64), pair(distance, uint64)
    np.right_shift(real.view(np.int64), real_distance.view(np.int64), out=real.view(np.int64))
    np.right_shift(sym.view(np.int64), sym_distance.view(np.int64), out=sym.view(np.int64))
    assert held(sym) == int(real[0])


@given(st.integers(0, 2**52 - 1))
def test_floats_are_numpys(a: int) -> None:
    uint64 = np.dtype(np.uint64)
    real, sym = pair(a | 0x433 << 52, uint64)
    for array in (real, sym):
        as_float = array.view(np.float64)
        np.subtract(as_float, 2.0**52, out=as_float)
    assert held(sym) == int(real[0])


@pytest.mark.parametrize(
    "use",
    [
        lambda a, b: np.add(a, b, out=a, where=b),
        lambda a, b: np.add(a, b, out=np.zeros(1, np.uint64)),
        lambda a, b: a.any(),
        lambda a, b: np.add.reduce(a),
        lambda a, b: np.add.at(a, 0, b),
        lambda a, b: np.floor_divide(a, b, out=a),
        lambda a, b: np.where(a, a, b),
        np.take,
        lambda a, b: np.concatenate([a, b]),
        lambda a, b: np.copyto(a, b, where=np.array([True])),
        lambda a, b: a[0],
        lambda a, b: list(a),
        lambda a, b: bool(a),
        lambda a, b: np.asarray(a),
        lambda a, b: a.view(np.uint8),
        lambda a, b: a.view(np.int64).view(np.int64),
        lambda a, b: np.less(a.view(np.int64), b.view(np.int64), out=lane(True)),
        lambda a, b: np.add(a, 1.5, out=a),
    ],
)
def test_what_cannot_be_carried_faithfully_is_refused(use: Any) -> None:
    (_real, a), (_other, b) = pair(5, np.dtype(np.uint64)), pair(6, np.dtype(np.uint64))
    with pytest.raises((Unfaithful, OverflowError)):
        use(a, b)


def test_numbers_out_of_a_dtypes_range_are_refused_as_numpy_does() -> None:
    _real, a = pair(5, np.dtype(np.uint32))
    for number in (-1, 2**32):
        with pytest.raises(OverflowError):
            np.add(a, number, out=a)
