"""Numbers of 65 bits in many lanes: addresses, and the ends of bounds and accesses, for predicates on every lane at once."""

from typing import Any, Union

import numpy as np

from capvisor.fastpath.workspace import Flags, Words

_MASK = (1 << 64) - 1

Other = Union["Wide", int]


class Wide:
    """One number a lane: `low` is uint64[lanes], `high` says where 2**64 is to be added, None where nowhere.

    Sums are exact below 2**65. Differences and products are modulo 2**64, as are bit operations, which look at `low` alone.
    """

    __slots__ = ("high", "low")
    __hash__ = None  # type: ignore[assignment]  # as arrays: equality is by lane

    def __init__(self, low: Words, high: Flags | None = None) -> None:
        self.low, self.high = low, high

    def __add__(self, other: Other) -> "Wide":
        if isinstance(other, int) and other < 0:
            return Wide(self.low - np.uint64(-other))
        added = other.low if isinstance(other, Wide) else np.uint64(other)
        low = self.low + added
        carry = low < added
        return Wide(low, carry if self.high is None else carry | self.high)

    def __radd__(self, other: int) -> "Wide":
        return self + other

    def __sub__(self, other: Other) -> "Wide":
        return Wide(self.low - (other.low if isinstance(other, Wide) else np.uint64(other & _MASK)))

    def __mul__(self, factor: int) -> "Wide":
        return Wide(self.low * np.uint64(factor))

    def __and__(self, other: Other) -> "Wide":
        return Wide(self.low & (other.low if isinstance(other, Wide) else np.uint64(other & _MASK)))

    def __rshift__(self, distance: int) -> "Wide":
        return Wide(self.low >> np.uint64(distance))

    def __lshift__(self, distance: int) -> "Wide":
        return Wide(self.low << np.uint64(distance))

    def __eq__(self, other: Any) -> Flags:  # type: ignore[override]
        low, high = _parts(other)
        same: Flags = self.low == low
        if self.high is not None or high is not None:
            same = same & (_flag(self.high) == _flag(high))
        return same

    def __ne__(self, other: Any) -> Flags:  # type: ignore[override]
        different: Flags = np.logical_not(self == other)
        return different

    def __le__(self, other: Other) -> Flags:
        low, high = _parts(other)
        below: Flags = self.low <= low
        if self.high is None:
            return below if high is None else below | high
        # With its highest bit it is below only what has that bit too.
        return below & ~self.high if high is None else (below & (~self.high | high)) | (high & ~self.high)

    def __lt__(self, other: Other) -> Flags:
        return ~Wide.__le__(_wide(other), self)

    def __ge__(self, other: Other) -> Flags:
        return Wide.__le__(_wide(other), self)

    def __gt__(self, other: Other) -> Flags:
        return ~Wide.__le__(self, other)


def _wide(number: Other) -> Wide:
    if isinstance(number, Wide):
        return number
    return Wide(np.uint64(number & _MASK), None if number <= _MASK else np.True_)  # type: ignore[arg-type]


def _parts(number: Other) -> tuple[Any, Any]:
    number = _wide(number)
    return number.low, number.high


def _flag(high: Any) -> Any:
    return False if high is None else high
