"""Symbolic arrays with a shape: kernels that pick elements by masks and indices, executed on elements that stand for any.

The shape of a `Shaped` is plain, as numpy's is, its elements are terms. Where a mask picks elements, the kernel is executed
once for each way in which it can; an index into an array may stand for any number, an index of a mask's elements may not. A
`Grid` is a table of a system's: its elements are what a function of their places says, and nothing of it is kept but what
was written. What can't be carried faithfully raises `Unfaithful`.

Each element is computed as `symarray` does, which knows numpy's dtypes.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import z3

from capvisor.proofs import symarray
from capvisor.proofs.symarray import SymArray
from capvisor.proofs.symbolic import SymBool, SymInt, Unfaithful, as_int, term_of

_BOOL, _INT64 = np.dtype(np.bool_), np.dtype(np.int64)
_WIDTHS = {np.dtype(np.uint64): 64, np.dtype(np.uint32): 32, np.dtype(np.uint8): 8, _INT64: 64}

Term = z3.ExprRef


# -- elements --------------------------------------------------------------------------------------------------------------


def constant(number: Any, dtype: Any) -> Term:
    """A plain number, or truth value, as an element."""
    dtype = np.dtype(dtype)
    if dtype == _BOOL:
        return z3.BoolVal(bool(number))
    if dtype not in _WIDTHS:
        raise Unfaithful(f"elements of {dtype}")
    return z3.BitVecVal(int(np.array(number).astype(dtype)), _WIDTHS[dtype])


def cast(term: Term, source: Any, target: Any) -> Term:
    """An element as one of another dtype, whatever is lost."""
    source, target = np.dtype(source), np.dtype(target)
    if source == target:
        return term
    if not {source, target} <= {_BOOL, *_WIDTHS}:
        raise Unfaithful(f"a cast from {source} to {target}")
    if target == _BOOL:
        return term != constant(0, source)
    if source == _BOOL:
        return z3.If(term, constant(1, target), constant(0, target))
    missing = _WIDTHS[target] - _WIDTHS[source]
    # What has a sign is as wide as any.
    return z3.ZeroExt(missing, term) if missing > 0 else z3.Extract(_WIDTHS[target] - 1, 0, term)


def plain(term: Term) -> int | bool | None:
    """The value of an element that has but one, else None."""
    term = z3.simplify(term)
    if z3.is_true(term) or z3.is_false(term):
        return z3.is_true(term)
    return term.as_signed_long() if isinstance(term, z3.BitVecNumRef) else None


_ON_FLAGS: dict[np.ufunc, Callable[..., Any]] = {
    np.bitwise_and: z3.And,
    np.bitwise_or: z3.Or,
    np.bitwise_xor: z3.Xor,
    np.invert: z3.Not,
}


def _with_sign(ufunc: np.ufunc, terms: Sequence[Any]) -> tuple[Term, Any] | None:
    """Functions of numbers that have a sign."""
    a, b = terms
    if ufunc in (np.equal, np.not_equal):
        return (a == b if ufunc is np.equal else a != b), _BOOL
    if ufunc is np.left_shift:
        return a << b, _INT64
    if ufunc in (np.remainder, np.floor_divide):
        divisor = plain(b)
        if divisor is None or divisor <= 0:
            raise Unfaithful("a division by what may not be positive")
        rest = a % b
        return (rest if ufunc is np.remainder else (a - rest) / b), _INT64
    return None


def _without_sign(ufunc: np.ufunc, terms: Sequence[Any], dtype: Any) -> tuple[Term, Any] | None:
    if ufunc not in (np.remainder, np.floor_divide):
        return None
    if not plain(terms[1]):
        raise Unfaithful("a division by what may be zero")
    return (z3.URem if ufunc is np.remainder else z3.UDiv)(*terms), dtype


def _element(ufunc: np.ufunc, inputs: Sequence[Any]) -> tuple[Term, np.dtype[Any]]:
    """A function of elements: of symbolic arrays of one lane, and of plain numbers."""
    dtype, terms = symarray._common(tuple(inputs))
    if dtype == _BOOL and ufunc in _ON_FLAGS:
        return _ON_FLAGS[ufunc](*terms), dtype
    if ufunc in (np.left_shift, np.right_shift) and z3.is_app_of(terms[1], z3.Z3_OP_ITE):
        # By one of some distances: each is a case.
        condition, *distances = terms[1].children()
        both = [_element(ufunc, (SymArray(terms[0], dtype), SymArray(each, dtype)))[0] for each in distances]
        return z3.If(condition, *both), dtype
    own = None
    if dtype == _INT64:
        own = _with_sign(ufunc, terms)
    elif dtype in _WIDTHS:
        own = _without_sign(ufunc, terms, dtype)
    return own if own is not None else symarray._applied(ufunc, tuple(inputs))


# -- arrays ----------------------------------------------------------------------------------------------------------------


class Shaped:
    """An array: terms in an array of objects, and the dtype that they have."""

    def __init__(self, cells: Any, dtype: Any) -> None:
        self.cells, self.dtype = np.asarray(cells, object), np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """As ndarray.shape."""
        return self.cells.shape

    def __len__(self) -> int:
        return len(self.cells)

    def _refuse(self, *_arguments: object) -> Any:
        raise Unfaithful("a symbolic array can't be read as values, iterated or used in an `if`")

    __bool__ = __iter__ = __array__ = __int__ = __index__ = __float__ = _refuse
    __hash__ = object.__hash__

    # -- picking elements --------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> "Shaped":
        if isinstance(key, Shaped) and key.dtype != _BOOL and any(plain(term) is None for term in key.cells.flat):
            return self._looked_up(key)
        return Shaped(self.cells[_plain_key(key)], self.dtype)

    def _looked_up(self, key: "Shaped") -> "Shaped":
        """Elements of one short array, by any indices that are in it: others are numpy's to refuse."""
        if self.cells.ndim != 1:
            raise Unfaithful("any index into an array of more dimensions")
        return Shaped([self._one_of(term, key.dtype) for term in key.cells.flat], self.dtype)

    def _one_of(self, index: Term, dtype: np.dtype[Any]) -> Term:
        is_inside = z3.Or(*(index == constant(number, dtype) for number in range(len(self))))
        if not SymBool(is_inside):
            raise IndexError("an index that is out of bounds")
        found = self.cells[-1]
        for number in range(len(self) - 2, -1, -1):
            found = z3.If(index == constant(number, dtype), self.cells[number], found)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        at = _plain_key(key)
        target = self.cells[at]
        if target.size:
            self.cells[at] = np.broadcast_to(_cells_of(value, self.dtype), target.shape)

    def astype(self, dtype: Any) -> "Shaped":
        """As ndarray.astype."""
        dtype = _dtype_of(dtype)
        return Shaped(_each(lambda term: cast(term, self.dtype, dtype), self.cells), dtype)

    # -- functions of elements ---------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        out = keywords.pop("out", (None,))
        if method == "reduce" and ufunc is np.logical_or and out == (None,):
            return inputs[0].any(**keywords)
        if method != "__call__" or keywords or len(out) != 1:
            raise Unfaithful(f"np.{ufunc.__name__} as {method} with {sorted(keywords)}")
        return _applied(ufunc, inputs, out[0])

    def __array_function__(self, function: Any, _types: Any, arguments: Any, keywords: Any) -> Any:
        if function.__name__ not in _OWN:
            raise Unfaithful(f"np.{function.__name__} on symbolic arrays")
        return _OWN[function.__name__](*arguments, **keywords)

    def fill(self, value: Any) -> None:
        """As ndarray.fill."""
        self[...] = value

    def any(self, axis: int | None = None) -> Any:
        """As ndarray.any; of all lanes, a truth value, where nothing is known of others than those that are looked at."""
        others = [] if axis is not None else [z3.FreshConst(z3.BoolSort(), "another_lane")]
        return self._reduced(lambda terms: z3.Or(*terms, *others), axis)

    def _reduced(self, function: Callable[[list[Term]], Term], axis: int | None) -> Any:
        if self.dtype != _BOOL:
            raise Unfaithful(f"any or all of {self.dtype}")
        if axis is None:
            return SymBool(function(list(self.cells.flat)))
        return Shaped(_rows_of(self.cells, axis, function), _BOOL)

    def argmax(self, axis: int) -> "Shaped":
        """As ndarray.argmax, of truth values: the first that holds."""

        def first(terms: list[Term]) -> Term:
            found = constant(0, _INT64)
            for number in range(len(terms) - 1, -1, -1):
                found = z3.If(terms[number], constant(number, _INT64), found)
            return found

        if self.dtype != _BOOL:
            raise Unfaithful(f"argmax of {self.dtype}")
        return Shaped(_rows_of(self.cells, axis, first), _INT64)

    def argmin(self, axis: int) -> "Shaped":
        """As ndarray.argmin: the first of the least."""

        def least(terms: list[Term]) -> Term:
            found, lowest = constant(0, _INT64), terms[0]
            for number, term in enumerate(terms[1:], 1):
                is_less = z3.ULT(term, lowest)
                found, lowest = z3.If(is_less, constant(number, _INT64), found), z3.If(is_less, term, lowest)
            return found

        if self.dtype not in (np.dtype(np.uint64), np.dtype(np.uint32), np.dtype(np.uint8)):
            raise Unfaithful(f"argmin of {self.dtype}")
        return Shaped(_rows_of(self.cells, axis, least), _INT64)


def _operator(ufunc: np.ufunc, *, is_reflected: bool = False, is_in_place: bool = False) -> Callable[..., Any]:
    def apply(self: Shaped, *others: Any) -> Any:
        inputs = (*others, self) if is_reflected else (self, *others)
        return _applied(ufunc, inputs, self if is_in_place else None)

    return apply


for _name, _ufunc in {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "mod": np.remainder, "floordiv": np.floor_divide},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
    **{"lshift": np.left_shift, "rshift": np.right_shift},
}.items():
    setattr(Shaped, f"__{_name}__", _operator(_ufunc))
    setattr(Shaped, f"__r{_name}__", _operator(_ufunc, is_reflected=True))
    setattr(Shaped, f"__i{_name}__", _operator(_ufunc, is_in_place=True))
for _name, _ufunc in {
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    "invert": np.invert,
}.items():
    setattr(Shaped, f"__{_name}__", _operator(_ufunc))


def _each(function: Callable[..., Term], *cells: Any) -> Any:
    """A function of elements, one by one."""
    wide = np.broadcast_arrays(*cells)
    made = np.empty(wide[0].shape, object)
    for place in np.ndindex(made.shape):
        made[place] = function(*(each[place] for each in wide))
    return made


def _rows_of(cells: Any, axis: int, function: Callable[[list[Term]], Term]) -> Any:
    """A function of the elements along the last axis."""
    if axis != cells.ndim - 1:
        raise Unfaithful("a reduction along another axis than the last")
    made = np.empty(cells.shape[:-1], object)
    for place in np.ndindex(made.shape):
        made[place] = function(list(cells[place]))
    return made


def _cells_of(value: Any, dtype: np.dtype[Any]) -> Any:
    """A value's elements, cast."""
    if isinstance(value, Shaped):
        return value.astype(dtype).cells
    array = np.asarray(value)
    return _each(lambda number: constant(number, dtype), array.astype(object))


def _plain_key(key: Any) -> Any:
    """An index with plain numbers: a mask's truth values are decided, each a way of its own."""
    if isinstance(key, tuple):
        return tuple(_plain_key(part) for part in key)
    if not isinstance(key, Shaped):
        return key
    if key.dtype == _BOOL:
        return np.array([bool(SymBool(term)) for term in key.cells.flat], np.bool_).reshape(key.shape)
    numbers = [plain(term) for term in key.cells.flat]
    if None in numbers:
        raise Unfaithful("an index that stands for any number")
    return np.array(numbers, np.int64).reshape(key.shape)


def _applied(ufunc: np.ufunc, inputs: Sequence[Any], out: Any = None) -> Shaped:
    """A function of arrays, element by element."""
    arrays = [
        each if isinstance(each, Shaped) else made_of(each) if isinstance(each, np.ndarray) else each for each in inputs
    ]
    wide = np.broadcast_arrays(*(each.cells for each in arrays if isinstance(each, Shaped)))
    made, dtype = np.empty(wide[0].shape, object), _result_dtype(ufunc, arrays)
    for place in np.ndindex(made.shape):
        terms = iter(wide)
        elements = [SymArray(next(terms)[place], each.dtype) if isinstance(each, Shaped) else each for each in arrays]
        made[place], found = _element(ufunc, elements)
        assert found == dtype, (ufunc, found, dtype)
    if out is None:
        return Shaped(made, dtype)
    if not isinstance(out, Shaped) or out.shape != made.shape:
        raise Unfaithful("a result that doesn't fit where it is put")
    out.cells[...] = _each(lambda term: symarray._cast(term, dtype, out.dtype, "same_kind"), made)
    return out


def _result_dtype(ufunc: np.ufunc, arrays: Sequence[Any]) -> np.dtype[Any]:
    """The dtype that numpy gives, of arrays without elements."""
    samples = [
        np.zeros(0, each.dtype) if isinstance(each, Shaped) else 0 if isinstance(each, SymInt) else each for each in arrays
    ]
    result: np.dtype[Any] = ufunc(*samples).dtype
    return result


def made_of(values: Any, dtype: Any = None) -> Shaped:
    """A plain array, or what makes one."""
    array = np.array(values) if dtype is None else np.array(values, _dtype_of(dtype))
    return Shaped(_each(lambda number: constant(number, array.dtype), array.astype(object)), array.dtype)


def tabulated(function: Callable[..., Any], most: int, is_within: Callable[[Any], None]) -> Callable[..., Any]:
    """A kernel's function of small numbers, up to the most that there is, by what it gives for each of them."""
    values = function(np.arange(most + 1, dtype=np.uint64))

    def one_of(term: Term, dtype: np.dtype[Any]) -> Term:
        is_within(z3.ULE(term, constant(most, dtype)))
        found = constant(values[most], values.dtype)
        for number in range(most - 1, -1, -1):
            found = z3.If(term == constant(number, dtype), constant(values[number], values.dtype), found)
        return found

    return lambda numbers: Shaped(_each(lambda term: one_of(term, numbers.dtype), numbers.cells), values.dtype)


def any_of(number: Any) -> Shaped:
    """An array of one element: any number, as uint64, or any truth value."""
    one = (
        symarray.lane(number)
        if isinstance(number, SymInt | SymBool)
        else made_of([number], _BOOL if isinstance(number, bool) else np.uint64)
    )
    return one if isinstance(one, Shaped) else Shaped([one.term], one.dtype)


# -- tables ----------------------------------------------------------------------------------------------------------------

Read = Callable[..., Term]

MOST_READ = 16
"""How many elements a row has at most that is read whole."""


def _has_gaps(columns: Sequence[Any]) -> bool:
    return any(column is None for column in columns)


class Decided(int):
    """The size of an axis of which it is decided which place is read, each a way of its own."""


class Grid:
    """A table [lanes, ...] of which one lane is looked at: of the other indices, what is there.

    A size is a plain number, or one that may be any up to a plain bound: (number, bound). Short rows of a plain size
    are read whole; others are `Rows`, of which nothing is read before one looks.
    """

    def __init__(self, dtype: Any, sizes: Sequence[Any], read: Read, is_within: Callable[[Any], None]) -> None:
        self.dtype, self.sizes, self.read, self._is_within = np.dtype(dtype), tuple(sizes), read, is_within

    def __getitem__(self, key: Any) -> Any:
        columns, lane_count = self._columns(key)
        if _has_gaps(columns):
            if _has_gaps(columns[:-1]):
                raise Unfaithful("more than the last axis of a table at a time")
            size = self.sizes[-1]
            if isinstance(size, int) and size <= MOST_READ:
                numbers = made_of(np.arange(size))
                wide = [column[:, None] for column in columns[:-1]]
                return self._elements([*wide, numbers], (lane_count, size))
            return Rows(self, columns[:-1], size)
        return self._elements(columns, None)

    def _elements(self, columns: list[Any], shape: tuple[int, ...] | None) -> Shaped:
        wide = np.broadcast_arrays(*(self._places(column, size) for column, size in zip(columns, self.sizes, strict=True)))
        made = np.empty(wide[0].shape if shape is None else shape, object)
        for place in np.ndindex(made.shape):
            made[place] = self.read(*map(self._decided, (each[place] for each in wide), self.sizes))
        return Shaped(made, self.dtype)

    @staticmethod
    def _decided(place: Term, size: Any) -> Term:
        """A place of few, each of which is a way of its own."""
        if not isinstance(size, Decided) or plain(place) is not None:
            return place
        numbers = (constant(number, _INT64) for number in range(size - 1))
        return next((number for number in numbers if SymBool(place == number)), constant(size - 1, _INT64))

    def __setitem__(self, key: Any, value: Any) -> None:
        columns, count = self._columns(key)
        if count == 0:
            return
        if isinstance(value, Rows):
            self._write_rows(columns, value)
            return
        if _has_gaps(columns):
            if isinstance(value, Shaped) and value.cells.ndim > 1:
                self._write_whole(columns, value)
                return
            fixed = [
                None if column is None else self._places(column, size)
                for column, size in zip(columns, self.sizes, strict=True)
            ]
            cells = np.broadcast_to(_cells_of(value, self.dtype), (count,))
            for number in range(count):
                self._write([None if each is None else each[number] for each in fixed], lambda *_at, new=cells[number]: new)
            return
        wide = np.broadcast_arrays(*(self._places(column, size) for column, size in zip(columns, self.sizes, strict=True)))
        cells = np.broadcast_to(_cells_of(value, self.dtype), wide[0].shape)
        for place in np.ndindex(wide[0].shape):
            self._write([each[place] for each in wide], lambda *_at, new=cells[place]: new)

    def _write_whole(self, columns: list[Any], value: Shaped) -> None:
        """Rows of a plain size."""
        numbers = made_of(np.arange(value.shape[1]))
        wide = np.broadcast_arrays(*(column[:, None].astype(np.int64).cells for column in columns[:-1]), numbers.cells)
        cells = value.astype(self.dtype).cells
        for place in np.ndindex(cells.shape):
            self._write([each[place] for each in wide], lambda *_at, new=cells[place]: new)

    def _write_rows(self, columns: list[Any], rows: "Rows") -> None:
        """Rows of a table, its own or another's, as they are now."""
        if _has_gaps(columns[:-1]) or columns[-1] is not None or len(columns) != 2 or rows.grid.dtype != self.dtype:
            raise Unfaithful("rows that don't fit where they are put")
        targets = self._places(columns[0], self.sizes[0])
        for target, source in zip(targets, rows.places, strict=True):
            self._write([target, None], lambda _row, at, source=source: rows.read(source, at))

    def _write(self, places: Sequence[Term | None], new: Read) -> None:
        before = self.read

        def read(*at: Term) -> Term:
            is_here = [own == place for own, place in zip(at, places, strict=True) if place is not None]
            here = z3.simplify(z3.And(*is_here))
            if z3.is_true(here) or z3.is_false(here):
                return new(*at) if z3.is_true(here) else before(*at)
            return z3.If(here, new(*at), before(*at))

        self.read = read

    def _columns(self, key: Any) -> tuple[list[Any], int]:
        """The index of each axis but the lanes'; None for all of an axis. And how many lanes take part."""
        key = key if isinstance(key, tuple) else (key,)
        lanes, *others = key
        if any(plain(term) != 0 for term in lanes.cells.flat):
            raise Unfaithful("another lane than the one that is looked at")
        columns = [None if isinstance(each, slice) and each == slice(None) else each for each in others]
        return columns + [None] * (len(self.sizes) - len(columns)), len(lanes)

    def _places(self, column: Shaped, size: Any) -> Any:
        """Indices as places, which must be in the table."""
        most = size[0] if isinstance(size, tuple) else size
        places = _each(z3.simplify, column.astype(np.int64).cells)
        for term in places.flat:
            self._is_within((SymInt(z3.ZeroExt(1, term), 0, (1 << 64) - 1) < most) if most is not None else True)
        return places


class Rows:
    """Rows of a table, one a lane that takes part, as they were when they were looked at."""

    def __init__(self, grid: Grid, columns: list[Shaped], size: Any) -> None:
        if len(columns) != 1:
            raise Unfaithful("rows by more than one index")
        self.grid, self.read, self._size = grid, grid.read, size
        self.places = list(grid._places(columns[0], grid.sizes[0]))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *_inputs: Any, **keywords: Any) -> Any:
        if ufunc is not np.logical_or or method != "reduce" or keywords != {"axis": 1} or not isinstance(self._size, tuple):
            raise Unfaithful(f"np.{ufunc.__name__} of rows that aren't read whole")
        size, most = self._size
        return Shaped([self._some(place, as_int(size), most) for place in self.places], _BOOL)

    def _some(self, place: Term, size: SymInt, most: int) -> Term:
        return z3.Or(*(z3.And(term_of(size > number), self.read(place, constant(number, _INT64))) for number in range(most)))


# -- numpy's functions -----------------------------------------------------------------------------------------------------


class _Scalar:
    """A dtype of numpy's that makes a scalar also of what is symbolic."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.dtype = kind, np.dtype(kind)

    def __call__(self, value: Any) -> Any:
        if isinstance(value, SymInt):
            return Shaped(np.array(symarray._python_int(value, self.dtype), object), self.dtype)
        return self.kind(value)


def _dtype_of(dtype: Any) -> np.dtype[Any]:
    return dtype.dtype if isinstance(dtype, _Scalar) else np.dtype(dtype)


def _filled(count: Any, value: Any, dtype: Any) -> Shaped:
    return made_of(np.full(count, value, _dtype_of(dtype)))


def _anything(count: Any, dtype: Any) -> Shaped:
    """What an array holds that nothing has been written to."""
    shape, dtype = np.empty(count).shape, _dtype_of(dtype)
    sort = z3.BoolSort() if dtype == _BOOL else z3.BitVecSort(_WIDTHS[dtype])
    made = np.empty(shape, object)
    for place in np.ndindex(shape):
        made[place] = z3.FreshConst(sort, "unwritten")
    return Shaped(made, dtype)


def _where(condition: Any, when_true: Any, when_false: Any) -> Shaped:
    if not isinstance(condition, Shaped) or condition.dtype != _BOOL:
        raise Unfaithful("np.where of something that is no symbolic array of bool")
    samples = [np.zeros(0, each.dtype) if isinstance(each, Shaped) else each for each in (when_true, when_false)]
    dtype = np.where(np.zeros(0, np.bool_), *samples).dtype
    cells = [_cells_of(each, dtype) for each in (when_true, when_false)]
    return Shaped(_each(z3.If, condition.cells, *cells), dtype)


def _copyto(target: Any, source: Any, casting: str = "same_kind", where: Any = True) -> None:
    if not isinstance(target, Shaped) or casting != "same_kind":
        raise Unfaithful("np.copyto into something that is no symbolic array")
    if isinstance(source, Shaped) and not np.can_cast(source.dtype, target.dtype, casting):
        raise Unfaithful(f"numpy refuses to cast {source.dtype} to {target.dtype}")
    wide = np.broadcast_to(_cells_of(source, target.dtype), target.shape)
    if where is True:
        target.cells[...] = wide
    else:
        target.cells[...] = _each(z3.If, where.cells, wide, target.cells)


def _nonzero(mask: Shaped) -> tuple[Shaped, ...]:
    return tuple(made_of(each) for each in np.nonzero(_plain_key(mask)))


def _isin(values: Shaped, known: Sequence[int]) -> Shaped:
    return Shaped(_each(lambda term: z3.Or(*(term == constant(each, values.dtype) for each in known)), values.cells), _BOOL)


_OWN: dict[str, Any] = {
    "array": made_of,
    "zeros": lambda count, dtype: _filled(count, 0, dtype),
    "ones": lambda count, dtype: _filled(count, 1, dtype),
    "ones_like": lambda like: _filled(like.shape, 1, like.dtype),
    "full": _filled,
    "empty": _anything,
    "empty_like": lambda like: _anything(like.shape, like.dtype),
    "arange": lambda *bounds: made_of(np.arange(*bounds)),
    "where": _where,
    "copyto": _copyto,
    "nonzero": _nonzero,
    "flatnonzero": lambda mask: _nonzero(mask)[0],
    "isin": _isin,
}


class Numpy(types.SimpleNamespace):
    """Numpy, of which what makes arrays makes symbolic ones."""

    def __init__(self) -> None:
        own = {name: function for name, function in _OWN.items() if not hasattr(type(self), name)}
        super().__init__(**own, **{name: _Scalar(getattr(np, name)) for name in ("uint64", "uint8", "bool_", "int64")})

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextmanager
def symbolic_numpy(*modules: types.ModuleType) -> Iterator[None]:
    """Let kernels of some modules make symbolic arrays."""
    own = Numpy()
    with ExitStack() as stack:
        for module in modules:
            stack.callback(setattr, module, "np", vars(module)["np"])
            vars(module)["np"] = own
        yield
