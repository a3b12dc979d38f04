"""What says where it is written: tables of the reference, memory of the fast path, and what a step notes, as columns.

So that a mirror is brought up to date by what a step wrote, and not by reading whole states anew.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.workspace import Words
from capvisor.model.tables import Rows

Log = list[tuple[Any, ...]]
"""What was written: lanes, keys and rows."""


class NotedTable(dict[Any, Any]):
    """A table that says what is written to it: `model.tables.Rows`, looked up as quickly as a dict is."""

    def __init__(self, empty: Any, lane: int, log: Log) -> None:
        super().__init__()
        self._empty, self._lane, self._log = empty, lane, log

    def __missing__(self, _number: Any) -> Any:
        return self._empty

    def __setitem__(self, number: Any, row: Any) -> None:
        if self.get(number) is not row:
            super().__setitem__(number, row)
            self._log.append((self._lane, number, row))

    @property
    def rows(self) -> dict[Any, Any]:
        """All rows that were ever written."""
        return self

    def map(self, function: Callable[[Any, Any], Any]) -> None:
        for number, row in list(self.items()):
            self[number] = function(number, row)


class NotedRows(Rows):
    """A table that says what is written to it, each row as the numbers that `flat` makes of it and its key."""

    def __init__(self, empty: Any, lane: int, log: Log, flat: Callable[[Any, Any], tuple[Any, ...]]) -> None:
        super().__init__(empty)
        self._lane, self._log, self._flat = lane, log, flat

    def __setitem__(self, number: Any, row: Any) -> None:
        self.rows[number] = row
        self._log.append((self._lane, *self._flat(number, row)))

    def map(self, function: Callable[[Any, Any], Any]) -> None:
        for number, row in self.rows.items():
            changed = function(number, row)
            if changed != row:
                # No row is new: what is iterated over stays as large as it was.
                self[number] = changed


class NotedMemory:
    """The fast path's memory, which says where it is written; what is read is a copy."""

    def __init__(self, words: Words) -> None:
        self.array, self.shape = words, words.shape
        self.written: list[tuple[NDArray[Any], ...]] = []
        """Lanes and places, by as many numbers as memory has; or whole frames, by fewer."""

    def __getitem__(self, place: Any) -> Words:
        found: Words = self.array[place]
        return found if found.base is None else found.copy()

    def __setitem__(self, place: Any, values: Any) -> None:
        are_arrays = isinstance(place, tuple) and all(isinstance(each, np.ndarray) for each in place)
        if not are_arrays or not 2 <= len(place) <= self.array.ndim:
            raise TypeError(f"memory is written by arrays of lanes and places, not by {place!r}")
        self.array[place] = values
        self.written.append(place)


def as_columns(row: Any, notes: list[Any], until: list[int]) -> dict[str, Words]:
    """What was noted in some lanes, as columns; `at` says in which of them, counted from 0.

    `row` is the named tuple that each note is, `until` how many notes there were after each lane.
    """
    if not notes:
        return {}
    flat: Words = np.array(notes, np.uint64)
    found: dict[str, Words] = dict(zip(row._fields, flat.T, strict=True))
    found["at"] = np.repeat(np.arange(len(until), dtype=np.uint64), np.diff(until, prepend=0))
    return found
