"""Tables of the monitor in many lanes: rows by number, each lane with its own, and what columns they have."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.workspace import Words


class Table:
    """Rows by number in each of many lanes: columns by name, each [lanes, rows]. A row never written is all zeros.

    Column 0 is that empty row: it is found where there is no row of a number. Tables grow when a lane has filled them.
    """

    def __init__(self, lanes: int, columns: dict[str, Any], rows: int = 8) -> None:
        self.numbers = np.zeros((lanes, rows), np.uint64)
        self.is_used = np.zeros((lanes, rows), np.bool_)
        self.columns = {name: np.zeros((lanes, rows), kind) for name, kind in columns.items()}
        self._filled = np.ones(lanes, np.int64)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def find(self, lanes: Indices, numbers: Words) -> Indices:
        """Where the rows of these numbers are, one in each lane; 0 where there is none."""
        found: Indices = (self.is_used[lanes] & (self.numbers[lanes] == numbers[:, None])).argmax(axis=1)
        return found

    def get(self, name: str, lanes: Indices, numbers: Words) -> NDArray[Any]:
        """One column of the rows of these numbers."""
        return self.columns[name][lanes, self.find(lanes, numbers)]

    def put(self, lanes: Indices, numbers: Words, **values: Any) -> None:
        """Write some columns of the rows of these numbers; rows that are new are zeros otherwise."""
        at = self._placed(lanes, numbers)
        for name, column in values.items():
            self.columns[name][lanes, at] = column

    def _placed(self, lanes: Indices, numbers: Words) -> Indices:
        """Where these rows are, perhaps newly."""
        at = self.find(lanes, numbers)
        new = at == 0
        if new.any():
            fresh = lanes[new]
            if self._filled[fresh].max() >= self.numbers.shape[1]:
                self._grow()
            at[new] = self._filled[fresh]
            self._filled[fresh] += 1
            self.numbers[fresh, at[new]] = numbers[new]
            self.is_used[fresh, at[new]] = True
        return at

    def _grow(self) -> None:
        self.numbers, self.is_used = _doubled(self.numbers), _doubled(self.is_used)
        self.columns = {name: _doubled(column) for name, column in self.columns.items()}

    def repeated(self, lanes: int) -> "Table":
        """A table in which so many lanes have what the first lane of this one has."""
        other = Table(0, {})
        other.numbers = np.repeat(self.numbers[:1], lanes, axis=0)
        other.is_used = np.repeat(self.is_used[:1], lanes, axis=0)
        other._filled = np.repeat(self._filled[:1], lanes, axis=0)
        other.columns = {name: np.repeat(column[:1], lanes, axis=0) for name, column in self.columns.items()}
        return other

    def count(self, lanes: Indices) -> Indices:
        """How many rows are live."""
        live: Indices = self["is_live"][lanes].sum(axis=1)
        return live

    def rows(self, lane: int) -> Iterator[tuple[int, dict[str, int]]]:
        """The numbers and rows of one lane."""
        for at in np.flatnonzero(self.is_used[lane]):
            yield int(self.numbers[lane, at]), {name: int(column[lane, at]) for name, column in self.columns.items()}


def _doubled(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array, np.zeros_like(array)], axis=1)


PAIR_SHIFT = 32


def pair(number: Words, cvm_id: Words) -> Words:
    """The number of a row that is about a grant or a portal, and a cVM."""
    return number << np.uint64(PAIR_SHIFT) | cvm_id


def pair_of(number: int) -> tuple[int, int]:
    """The grant or portal, and the cVM, that a row of that number is about."""
    return number >> PAIR_SHIFT, number & (1 << PAIR_SHIFT) - 1


_FLAG, _WORD = np.bool_, np.uint64
REGION = {"is_live": _FLAG, "base": _WORD, "top": _WORD, "outer": _WORD, "is_purecap": _FLAG}
GRANT = {"is_live": _FLAG, "owner": _WORD, "base": _WORD, "size": _WORD, "last_slot": _WORD}
"""A grant has its size instead of its top, which may be one more than the highest address."""
PORTAL = {"is_live": _FLAG, "owner": _WORD, "entry": _WORD, "is_busy": _FLAG, "caller": _WORD, "size": _WORD}
THREAD = {
    "exists": _FLAG,
    "is_live": _FLAG,
    "home": _WORD,
    "domain": _WORD,
    "serves": _FLAG,
    "portal": _WORD,
    "waits": _FLAG,
    "waits_for": _WORD,
}
FRAME = {
    "is_inside": _FLAG,
    "number": _WORD,
    "domain": _WORD,
    "caller": _WORD,
    "has_handle": _FLAG,
    "refusal": np.uint8,
    "stack": _WORD,
    "argument0": _WORD,
    "argument1": _WORD,
    "argument2": _WORD,
}
"""What the monitor works with between the two parts of a call; it means nothing unless the thread `is_inside`."""
