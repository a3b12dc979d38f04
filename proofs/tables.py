"""Symbolic tables: rows in arrays of the solver's, by number, behind the interfaces of memory and the monitor."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import z3

from capvisor.proofs.symbolic import SymBool, SymInt, as_int, select, term_of


class Column(NamedTuple):
    """One column of a table: its name, and how many bits it has; 0 for a truth value."""

    name: str
    width: int


class ArrayRows:
    """Rows of a symbolic table, by one number or a tuple of them: all as an empty row at first, or, with a name, any."""

    def __init__(
        self,
        make: Callable[..., Any],
        columns: Iterable[Column],
        index_bits: int,
        name: str = "",
        indices: int = 1,
    ) -> None:
        self._make, self._columns, self._index_bits = make, tuple(columns), index_bits
        index = z3.BitVecSort(index_bits * indices)
        self._arrays: tuple[Any, ...] = tuple(
            z3.Array(f"{name}_{each.name}", index, _sort(each)) if name else z3.K(index, _zero(each))
            for each in self._columns
        )
        self._none = self._written = z3.K(index, z3.BoolVal(False))
        self._swept: tuple[Callable[[Any, Any], Any], Self] | None = None
        self.written: list[Any] = []
        """The numbers of the rows that were replaced one by one."""

    def _at(self, number: Any) -> Any:
        if isinstance(number, tuple):
            return z3.Concat(*(as_int(part).at(self._index_bits) for part in number))
        return as_int(number).at(self._index_bits)

    def get(self, number: Any) -> Any:
        """The row of a number."""
        at = self._at(number)
        row = self._make(*(_value(each, array[at]) for each, array in zip(self._columns, self._arrays, strict=True)))
        if self._swept is None:
            return row
        # A sweep is carried out where one looks: what hasn't been written since is what it made of what was there.
        function, before = self._swept
        written, swept = SymBool(self._written[at]), function(number, before.get(number))
        if len(self._columns) == 1:
            return self._make(select(written, row, swept))
        return self._make(*(select(written, new, old) for new, old in zip(row, swept, strict=True)))

    def set(self, number: Any, row: Any) -> None:
        """Replace the row of a number."""
        at = self._at(number)
        self.written.append(number)
        parts = (row,) if len(self._columns) == 1 else row
        self._arrays = tuple(
            z3.Store(array, at, as_int(part).at(each.width) if each.width else term_of(part))
            for each, array, part in zip(self._columns, self._arrays, parts, strict=True)
        )
        self._written = z3.Store(self._written, at, z3.BoolVal(True))

    def map(self, function: Callable[[Any, Any], Any]) -> None:
        """Replace every row by what the function makes of its number and it."""
        self._swept = function, copy.copy(self)
        self._written = self._none


def _sort(column: Column) -> Any:
    return z3.BitVecSort(column.width) if column.width else z3.BoolSort()


def _zero(column: Column) -> Any:
    return z3.BitVecVal(0, column.width) if column.width else z3.BoolVal(False)


def _value(column: Column, term: Any) -> Any:
    return SymInt(z3.ZeroExt(1, term), 0, (1 << column.width) - 1) if column.width else SymBool(term)


class EmptyRows:
    """A table of which no row has been written."""

    def __init__(self, row: Any) -> None:
        self._row = row
        self.written: tuple[Any, ...] = ()

    def __getitem__(self, _number: Any) -> Any:
        return self._row

    get = __getitem__


class KeptRows:
    """A table's rows as they are now."""

    def __init__(self, rows: Any) -> None:
        self.rows = copy.copy(rows)
        self._known: dict[Any, tuple[Any, Any]] = {}

    def __getitem__(self, number: Any) -> Any:
        key = tuple(map(key_of, number)) if isinstance(number, tuple) else key_of(number)
        if key not in self._known:
            self._known[key] = self.rows.get(number), number
        return self._known[key][0]

    get = __getitem__


def key_of(number: Any) -> Any:
    """What tells numbers apart, as long as they are kept."""
    return number if isinstance(number, int) else ("term", number.term.get_id())


def is_same(one: Any, other: Any) -> bool:
    """Whether two numbers are the same term."""
    return bool(key_of(one) == key_of(other))


class Noted:
    """A place that notes what is looked at of it."""

    def __init__(self, place: Any) -> None:
        self._place, self.fields = place, list[str]()

    def __getattr__(self, name: str) -> Any:
        self.fields.append(name)
        return getattr(self._place, name)
