"""Numbers without bounds in many lanes: what an expression's numbers are on the fast path.

A `LaneInt` has one integer a lane and Python's operators, exact like Python's ints. It is kept in uint64 as long as all its
values fit, which its actual smallest and largest value tell, and in an array of Python ints where they don't.
"""

from collections.abc import Callable
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.workspace import Flags, Words

_WORD = 1 << 64

Operand = Union["LaneInt", int]


class LaneInt:
    """One integer a lane. `array` is uint64 or object; comparisons give arrays of bool."""

    __slots__ = ("array", "high", "low")
    __hash__ = None  # type: ignore[assignment]  # as arrays: equality is by lane

    def __init__(self, array: NDArray[Any]) -> None:
        self.low, self.high = int(array.min()), int(array.max())
        if array.dtype == object and self.low >= 0 and self.high < _WORD:
            array = array.astype(np.uint64)
        self.array = array

    @classmethod
    def from_parts(cls, low: Words, high: Flags, width: int) -> "LaneInt":
        """Numbers of `width` + 1 bits, given without their highest bit and that bit."""
        if not high.any():
            return cls(low)
        return cls(low.astype(object) + (high.astype(object) << width))

    def _apply(
        self, other: Operand, function: Callable[[Any, Any], Any], bounds: Callable[[list[int], list[int]], list[int]]
    ) -> "LaneInt":
        """The function of both, computed in uint64 when operands and all possible results fit."""
        low, high = (other.low, other.high) if isinstance(other, LaneInt) else (other, other)
        ends = bounds([self.low, self.high], [low, high])
        right = other.array if isinstance(other, LaneInt) else other
        fits = self.array.dtype == np.uint64 and low >= 0 and high < _WORD and min(ends) >= 0 and max(ends) < _WORD
        if fits:
            return LaneInt(np.asarray(function(self.array, right if isinstance(right, np.ndarray) else np.uint64(right))))
        return LaneInt(np.asarray(function(self.array.astype(object), _as_objects(right))))

    def __add__(self, other: Operand) -> "LaneInt":
        return self._apply(other, lambda a, b: a + b, lambda a, b: [x + y for x in a for y in b])

    def __sub__(self, other: Operand) -> "LaneInt":
        return self._apply(other, lambda a, b: a - b, lambda a, b: [x - y for x in a for y in b])

    def __mul__(self, other: Operand) -> "LaneInt":
        return self._apply(other, lambda a, b: a * b, lambda a, b: [x * y for x in a for y in b])

    def __and__(self, other: Operand) -> "LaneInt":
        return self._apply(other, lambda a, b: a & b, lambda a, b: [0])

    def __or__(self, other: Operand) -> "LaneInt":
        return self._apply(other, lambda a, b: a | b, lambda a, b: [0])

    def __xor__(self, other: Operand) -> "LaneInt":
        return self._apply(other, lambda a, b: a ^ b, lambda a, b: [0])

    def __lshift__(self, other: int) -> "LaneInt":
        return self._apply(other, lambda a, b: a << b, lambda a, b: [x << y for x in a for y in b])

    def __rshift__(self, other: int) -> "LaneInt":
        return self._apply(other, lambda a, b: a >> b, lambda a, b: [0])

    def __radd__(self, other: int) -> "LaneInt":
        return self + other

    def __rsub__(self, other: int) -> "LaneInt":
        return -self + other

    def __rmul__(self, other: int) -> "LaneInt":
        return self * other

    def __rand__(self, other: int) -> "LaneInt":
        return self & other

    def __ror__(self, other: int) -> "LaneInt":
        return self | other

    def __rxor__(self, other: int) -> "LaneInt":
        return self ^ other

    def __neg__(self) -> "LaneInt":
        return LaneInt(-self.array.astype(object))

    def __invert__(self) -> "LaneInt":
        return LaneInt(-1 - self.array.astype(object))

    def _compare(self, other: Operand, function: Callable[[Any, Any], Any]) -> Flags:
        right = other.array if isinstance(other, LaneInt) else other
        both_words = self.array.dtype == np.uint64 and (
            right.dtype == np.uint64 if isinstance(right, np.ndarray) else 0 <= right < _WORD
        )
        if both_words:
            result = function(self.array, right if isinstance(right, np.ndarray) else np.uint64(right))
        else:
            result = function(self.array.astype(object), _as_objects(right))
        return np.asarray(result, np.bool_)

    def __eq__(self, other: object) -> Flags:  # type: ignore[override]
        return self._compare(other, lambda a, b: a == b)  # type: ignore[arg-type]

    def __ne__(self, other: object) -> Flags:  # type: ignore[override]
        return self._compare(other, lambda a, b: a != b)  # type: ignore[arg-type]

    def __lt__(self, other: Operand) -> Flags:
        return self._compare(other, lambda a, b: a < b)

    def __le__(self, other: Operand) -> Flags:
        return self._compare(other, lambda a, b: a <= b)

    def __gt__(self, other: Operand) -> Flags:
        return self._compare(other, lambda a, b: a > b)

    def __ge__(self, other: Operand) -> Flags:
        return self._compare(other, lambda a, b: a >= b)


def _as_objects(value: Any) -> Any:
    return value.astype(object) if isinstance(value, np.ndarray) else value


def as_words(value: Operand, width: int, lanes: int) -> Words:
    """The values modulo 2**width, as an array of one uint64 a lane."""
    reduced = value & (1 << width) - 1
    if isinstance(reduced, int):
        return np.full(lanes, reduced, np.uint64)
    return reduced.array.astype(np.uint64, copy=False)


def as_flags(value: Any, lanes: int) -> Flags:
    """A condition's values as an array of one bool a lane; a constant one is the same in every lane."""
    if isinstance(value, np.ndarray):
        return value
    return np.full(lanes, bool(value))
