"""Numbers in lanes are Python's ints, lane by lane."""

import operator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capvisor.dsl.lanes import LaneInt, as_words

numbers = st.integers(-(2**70), 2**70) | st.integers(0, 2**64 - 1) | st.integers(-4, 4)
BINARY = [operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor]
COMPARE = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


def lanes(values: list[int]) -> LaneInt:
    array = np.empty(len(values), object)
    array[:] = values
    return LaneInt(array)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.sampled_from(BINARY))
def test_arithmetic_is_exact(pairs: list[tuple[int, int]], function) -> None:
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    expected = [function(a, b) for a, b in pairs]
    assert function(lanes(left), lanes(right)).array.tolist() == expected
    assert function(lanes(left), right[0]).array.tolist() == [function(a, right[0]) for a in left]
    assert function(left[0], lanes(right)).array.tolist() == [function(left[0], b) for b in right]


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.sampled_from(COMPARE))
def test_comparisons_are_exact(pairs: list[tuple[int, int]], function) -> None:
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    assert function(lanes(left), lanes(right)).tolist() == [function(a, b) for a, b in pairs]
    assert function(lanes(left), right[0]).tolist() == [function(a, right[0]) for a in left]


@given(st.lists(numbers, min_size=1, max_size=6), st.integers(0, 80))
def test_shifts_and_signs_are_exact(values: list[int], distance: int) -> None:
    assert (lanes(values) << distance).array.tolist() == [value << distance for value in values]
    assert (lanes(values) >> distance).array.tolist() == [value >> distance for value in values]
    assert (-lanes(values)).array.tolist() == [-value for value in values]
    assert (~lanes(values)).array.tolist() == [~value for value in values]


@given(st.lists(numbers, min_size=1, max_size=6))
def test_words_are_the_values_modulo_their_width(values: list[int]) -> None:
    for width in (1, 32, 64):
        assert as_words(lanes(values), width, len(values)).tolist() == [value % 2**width for value in values]


def test_values_that_fit_a_word_are_kept_in_words() -> None:
    assert lanes([0, 2**64 - 1]).array.dtype == np.uint64
    assert (lanes([2**64 - 1]) + 1).array.dtype == object
    assert (lanes([2**64 - 1]) + 1 - 1).array.dtype == np.uint64


def test_a_top_of_65_bits_is_put_together() -> None:
    parts = LaneInt.from_parts(np.array([5, 0], np.uint64), np.array([False, True]), 64)
    assert parts.array.tolist() == [5, 2**64]
