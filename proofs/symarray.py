"""Symbolic arrays: the numpy kernels executed on an element that stands for all values.

A `SymArray` is one lane of an array: a term of its dtype's width, replaced when a kernel writes to it. Operations are exact
for their dtypes: sums wrap around, shifts by the width or more give 0, mixed dtypes are promoted as numpy does. What isn't
listed here (a function, a keyword, a dtype) raises `Unfaithful`.

Outside of what is proved in this way: how arrays are cut into blocks, and what happens when an output shares memory with an
input in another place than element by element. Differential tests cover both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import z3

from capvisor.fastpath import bounds as fast_bounds
from capvisor.fastpath import memory as fast_memory
from capvisor.fastpath.workspace import Workspace
from capvisor.proofs.symbolic import SymBool, SymInt, Unfaithful, as_int, term_of

_BOOL = np.dtype(np.bool_)
_UNSIGNED = {np.dtype(np.uint64): 64, np.dtype(np.uint32): 32, np.dtype(np.uint8): 8}
_WIDTHS = {**_UNSIGNED, np.dtype(np.int64): 64, np.dtype(np.float64): 64}


class SymArray:
    """One lane of an array of uint64, uint32, uint8 or bool."""

    def __init__(self, term: z3.ExprRef, dtype: Any) -> None:
        self._term, self.dtype = term, np.dtype(dtype)

    @property
    def term(self) -> z3.ExprRef:
        """What the lane holds now."""
        return self._term

    def write(self, term: z3.ExprRef) -> None:
        """Let the lane hold something else."""
        self._term = term

    def fill(self, value: int) -> None:
        """As ndarray.fill."""
        self.write(_constant(value, self.dtype))

    def view(self, dtype: Any) -> "SymArray":
        """The same bits as a number with a sign, or as a float; writing to the view writes to the array."""
        if np.dtype(dtype) not in (np.dtype(np.int64), np.dtype(np.float64)) or self.dtype != np.uint64:
            raise Unfaithful(f"a view of {self.dtype} as {np.dtype(dtype)}")
        return _View(self, dtype)

    def any(self) -> SymBool:
        """As ndarray.any: of the other lanes of the block, nothing is known."""
        return SymBool(z3.Or(_truth(self), z3.FreshConst(z3.BoolSort(), "another_lane")))

    def all(self) -> SymBool:
        """As ndarray.all: of the other lanes of the block, nothing is known."""
        return SymBool(z3.And(_truth(self), z3.FreshConst(z3.BoolSort(), "other_lanes")))

    # What kernels write with operators: immediates alone, which aren't in a hot loop.

    def __and__(self, other: Any) -> "SymArray":
        return _new(np.bitwise_and, (self, other))

    def __xor__(self, other: Any) -> "SymArray":
        return _new(np.bitwise_xor, (self, other))

    def __lshift__(self, other: Any) -> "SymArray":
        return _new(np.left_shift, (self, other))

    def __sub__(self, other: Any) -> "SymArray":
        return _new(np.subtract, (self, other))

    def __eq__(self, other: Any) -> "SymArray":  # type: ignore[override]
        return _new(np.equal, (self, other))

    __hash__ = object.__hash__

    def _refuse(self, *_arguments: object) -> Any:
        raise Unfaithful("a symbolic array can't be read as values, iterated, indexed or used in an `if`")

    __bool__ = __iter__ = __len__ = __getitem__ = __setitem__ = __array__ = __int__ = __index__ = __float__ = _refuse

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        out = keywords.pop("out", None)
        casting = keywords.pop("casting", "same_kind")
        if method != "__call__" or keywords:
            raise Unfaithful(f"np.{ufunc.__name__} as {method} with {sorted(keywords)}")
        if out is None:
            return _new(ufunc, inputs)
        if len(out) != 1 or not isinstance(out[0], SymArray):
            raise Unfaithful(f"np.{ufunc.__name__} into something that is no symbolic array")
        term, dtype = _applied(ufunc, inputs)
        out[0].write(_cast(term, dtype, out[0].dtype, casting))
        return out[0]

    def __array_function__(self, function: Any, _types: Any, arguments: Any, keywords: Any) -> Any:
        if function is not np.copyto:
            raise Unfaithful(f"np.{function.__name__} on symbolic arrays")
        return _copyto(*arguments, **keywords)


class _View(SymArray):
    def __init__(self, base: SymArray, dtype: Any) -> None:
        super().__init__(base.term, dtype)
        self._base = base

    @property
    def term(self) -> z3.ExprRef:
        return self._base.term

    def write(self, term: z3.ExprRef) -> None:
        self._base.write(term)


def _applied(ufunc: np.ufunc, inputs: tuple[Any, ...]) -> tuple[z3.ExprRef, np.dtype[Any]]:
    if ufunc not in _FUNCTIONS:
        raise Unfaithful(f"np.{ufunc.__name__} on symbolic arrays")
    return _FUNCTIONS[ufunc](*_common(inputs))


def _new(ufunc: np.ufunc, inputs: tuple[Any, ...]) -> SymArray:
    """What a function without `out` makes: another array."""
    return SymArray(*_applied(ufunc, inputs))


def _truth(array: SymArray) -> z3.BoolRef:
    if array.dtype != _BOOL:
        raise Unfaithful(f"any or all of {array.dtype}")
    return array.term


def _constant(value: Any, dtype: np.dtype[Any]) -> z3.ExprRef:
    if dtype == _BOOL:
        return z3.BoolVal(bool(value))
    if dtype == np.float64:
        return z3.BitVecVal(int(np.float64(value).view(np.uint64)), 64)
    number = int(value)
    if dtype not in _WIDTHS:
        raise Unfaithful(f"arrays of {dtype}")
    info = np.iinfo(dtype)
    if not info.min <= number <= info.max:
        raise OverflowError(f"{number} is out of bounds for {dtype}")
    return z3.BitVecVal(number, _WIDTHS[dtype])


def _python_int(value: SymInt, dtype: np.dtype[Any]) -> z3.ExprRef:
    """A symbolic Python int as a number of a dtype; where it is too large, numpy raises OverflowError."""
    if dtype not in _UNSIGNED:
        raise Unfaithful(f"a symbolic int together with {dtype}")
    if value < 0 or value >= 1 << _WIDTHS[dtype]:
        raise OverflowError(f"a symbolic int is out of bounds for {dtype}")
    return value.at(_WIDTHS[dtype])


def _cast(term: z3.ExprRef, source: np.dtype[Any], target: np.dtype[Any], casting: str) -> z3.ExprRef:
    """A value of one dtype as one of another, where numpy's rule allows it."""
    if source == target:
        return term
    if not np.can_cast(source, target, casting):
        raise Unfaithful(f"numpy refuses to cast {source} to {target} under `{casting}`")
    if source == _BOOL and target in _WIDTHS:
        return z3.If(term, z3.BitVecVal(1, _WIDTHS[target]), z3.BitVecVal(0, _WIDTHS[target]))
    if source not in _UNSIGNED or target not in _UNSIGNED:
        raise Unfaithful(f"a cast from {source} to {target}")
    missing = _WIDTHS[target] - _WIDTHS[source]
    return z3.ZeroExt(missing, term) if missing > 0 else z3.Extract(_WIDTHS[target] - 1, 0, term)


def _common(inputs: tuple[Any, ...]) -> tuple[np.dtype[Any], list[z3.ExprRef]]:
    """The dtype in which numpy computes with these inputs, and their terms in it."""
    dtypes = [each.dtype for each in inputs if isinstance(each, SymArray | np.generic)]
    # A Python int takes the dtype of what it meets; so does a Python bool.
    dtype = np.result_type(*dtypes)
    if dtype == _BOOL and any(isinstance(each, int | SymInt) and not isinstance(each, bool) for each in inputs):
        raise Unfaithful("a number together with truth values")
    terms = []
    for each in inputs:
        if isinstance(each, SymArray):
            terms.append(_cast(each.term, each.dtype, dtype, "safe"))
        elif isinstance(each, np.generic):
            terms.append(_cast(_constant(each, each.dtype), each.dtype, dtype, "safe"))
        elif isinstance(each, SymInt):
            terms.append(_python_int(each, dtype))
        elif isinstance(each, int) or (isinstance(each, float) and dtype == np.float64):
            terms.append(_constant(each, dtype))
        else:
            raise Unfaithful(f"a symbolic array together with {type(each).__name__}")
    return dtype, terms


def _copyto(target: Any, source: Any, casting: str = "same_kind", where: Any = True) -> None:
    if not isinstance(target, SymArray):
        raise Unfaithful("np.copyto from a symbolic array into another one")
    if isinstance(source, SymArray):
        term = _cast(source.term, source.dtype, target.dtype, casting)
    else:
        term = _constant(source, target.dtype)
    if where is True:
        target.write(term)
    elif isinstance(where, SymArray) and where.dtype == _BOOL:
        target.write(z3.If(where.term, term, target.term))
    else:
        raise Unfaithful("np.copyto where something is no symbolic array of bool")


_Result = tuple[z3.ExprRef, np.dtype[Any]]
_Function = Callable[[np.dtype[Any], list[z3.ExprRef]], _Result]


def _arithmetic(function: Callable[..., z3.ExprRef]) -> _Function:
    def apply(dtype: np.dtype[Any], terms: list[z3.ExprRef]) -> _Result:
        if dtype in (_BOOL, np.dtype(np.float64)):
            raise Unfaithful(f"this arithmetic on {dtype}")
        return function(*terms), dtype

    return apply


def _unsigned(function: Callable[..., z3.ExprRef]) -> _Function:
    def apply(dtype: np.dtype[Any], terms: list[z3.ExprRef]) -> _Result:
        if dtype not in _UNSIGNED:
            raise Unfaithful(f"an unsigned operation on {dtype}")
        return function(*terms), dtype

    return apply


def _comparison(on_numbers: Callable[..., z3.BoolRef], on_bools: Callable[..., z3.BoolRef]) -> _Function:
    def apply(dtype: np.dtype[Any], terms: list[z3.ExprRef]) -> _Result:
        if dtype in (np.dtype(np.int64), np.dtype(np.float64)):
            raise Unfaithful(f"a comparison of {dtype}")
        return (on_bools if dtype == _BOOL else on_numbers)(*terms), _BOOL

    return apply


def _logical(function: Callable[..., z3.BoolRef]) -> _Function:
    def apply(dtype: np.dtype[Any], terms: list[z3.ExprRef]) -> _Result:
        if dtype != _BOOL:
            raise Unfaithful("a logical function of numbers")
        return function(*terms), _BOOL

    return apply


def _subtract(dtype: np.dtype[Any], terms: list[z3.ExprRef]) -> _Result:
    if dtype != np.float64:
        return _arithmetic(lambda a, b: a - b)(dtype, terms)
    a, b = (z3.fpBVToFP(term, z3.Float64()) for term in terms)
    return z3.fpToIEEEBV(z3.fpSub(z3.RNE(), a, b)), dtype


def _shift_right(dtype: np.dtype[Any], terms: list[z3.ExprRef]) -> _Result:
    value, distance = terms
    if dtype not in (np.dtype(np.uint64), np.dtype(np.uint32), np.dtype(np.int64)):
        raise Unfaithful(f"a shift of {dtype}")
    return (value >> distance if dtype == np.dtype(np.int64) else z3.LShR(value, distance)), dtype


_FUNCTIONS: dict[np.ufunc, _Function] = {
    np.add: _arithmetic(lambda a, b: a + b),
    np.subtract: _subtract,
    np.multiply: _arithmetic(lambda a, b: a * b),
    np.bitwise_and: _arithmetic(lambda a, b: a & b),
    np.bitwise_or: _arithmetic(lambda a, b: a | b),
    np.bitwise_xor: _arithmetic(lambda a, b: a ^ b),
    np.invert: _arithmetic(lambda a: ~a),
    np.left_shift: _unsigned(lambda a, b: a << b),
    np.right_shift: _shift_right,
    np.minimum: _unsigned(lambda a, b: z3.If(z3.ULT(a, b), a, b)),
    np.maximum: _unsigned(lambda a, b: z3.If(z3.ULT(a, b), b, a)),
    np.equal: _comparison(lambda a, b: a == b, lambda a, b: a == b),
    np.not_equal: _comparison(lambda a, b: a != b, z3.Xor),
    np.less: _comparison(z3.ULT, lambda a, b: z3.And(z3.Not(a), b)),
    np.less_equal: _comparison(z3.ULE, lambda a, b: z3.Or(z3.Not(a), b)),
    np.greater: _comparison(z3.UGT, lambda a, b: z3.And(a, z3.Not(b))),
    np.greater_equal: _comparison(z3.UGE, lambda a, b: z3.Or(a, z3.Not(b))),
    np.logical_and: _logical(z3.And),
    np.logical_or: _logical(z3.Or),
    np.logical_not: _logical(z3.Not),
}


# -- lanes, for claims that run on symbols and, when they are replayed, on numpy itself ------------------------------------


def lane(value: Any) -> Any:
    """A value as an array of one lane: numbers as uint64, truth values as bool."""
    if isinstance(value, SymBool):
        return SymArray(value.term, np.bool_)
    if isinstance(value, SymInt):
        if value.low < 0 or value.high >= 1 << 64:
            raise Unfaithful("a number that isn't a uint64 as a lane")
        return SymArray(value.at(64), np.uint64)
    return np.array([value], np.bool_ if isinstance(value, bool) else np.uint64)


def put(array: Any, value: Any) -> None:
    """Let an array's lane hold a value of the reference's kind."""
    if not isinstance(array, SymArray):
        array[0] = value
    elif array.dtype == _BOOL:
        array.write(term_of(value))
    else:
        array.write(as_int(value).at(_WIDTHS[array.dtype]))


def value(array: Any) -> Any:
    """What the lane of an array holds, as the reference's kind of value."""
    if isinstance(array, SymArray):
        if array.dtype == _BOOL:
            return SymBool(array.term)
        width = _WIDTHS[array.dtype]
        return SymInt(z3.ZeroExt(1, array.term), 0, (1 << width) - 1)
    return bool(array[0]) if array.dtype == _BOOL else int(array[0])


class SymbolicWorkspace:
    """Scratch that holds anything: what a kernel reads before it has written it is any value."""

    def __init__(self) -> None:
        self.lanes = 1
        self._count = 0
        self.bounds = self._arrays(6, np.uint64)
        self.bounds_shorts = self._arrays(6, np.uint32)
        self.bounds_flags = self._arrays(3, np.bool_)
        self.capability = self._arrays(8, np.uint64)
        self.capability_flags = self._arrays(6, np.bool_)
        self.isa = self._arrays(6, np.uint64)
        self.isa_flags = self._arrays(6, np.bool_)

    def forget_bounds(self) -> None:
        """Let the scratch of kernels of bounds hold anything, for whoever holds those arrays."""
        self._forget(*self.bounds, *self.bounds_shorts, *self.bounds_flags)

    def forget_capability(self) -> None:
        """Let the scratch of kernels of capabilities, and of those that they call, hold anything."""
        self.forget_bounds()
        self._forget(*self.capability, *self.capability_flags)

    def _forget(self, *arrays: SymArray) -> None:
        for array in arrays:
            array.write(self.fresh(array.dtype).term)

    def _arrays(self, count: int, dtype: Any) -> list[SymArray]:
        return [self.fresh(dtype) for _ in range(count)]

    def fresh(self, dtype: Any) -> SymArray:
        """An array of anything."""
        self._count += 1
        name = f"scratch!{self._count}"
        term = z3.Bool(name) if np.dtype(dtype) == _BOOL else z3.BitVec(name, _WIDTHS[np.dtype(dtype)])
        return SymArray(term, dtype)


def _floor_log2(values: SymArray, out: SymArray) -> None:
    """What fastpath.bits.floor_log2 is specified to do; theorem kernels.floor_log2 says that it does."""
    result: z3.ExprRef = z3.BitVecVal(0, 64)
    for bit in range(1, 52):
        result = z3.If(z3.UGE(values.term, z3.BitVecVal(1 << bit, 64)), z3.BitVecVal(bit, 64), result)
    out.write(result)


class Table:
    """A table that kernels of memory gather from and scatter to, with functions behind it: of an index, to what is there.

    They take and give the reference's kind of values, so that claims run on symbols and on numbers.
    """

    def __init__(self, dtype: Any, read: Callable[[Any], Any], write: Callable[[Any, Any, Any], None]) -> None:
        self.dtype = np.dtype(dtype)
        self.read, self.write = read, write

    def reshape(self, _shape: int) -> "Table":
        """The table as it is: its index is one number."""
        return self


def _gather(table: Table, index: Any, out: Any) -> None:
    """What fastpath.memory.gather is specified to do."""
    if table.dtype != out.dtype:
        raise Unfaithful(f"a gather of {table.dtype} into {out.dtype}")
    put(out, table.read(value(index)))


def _scatter(table: Table, index: Any, values: Any, where: Any) -> None:
    """What fastpath.memory.scatter is specified to do."""
    table.write(value(index), values if isinstance(values, bool) else value(values), value(where))


@contextmanager
def primitives() -> Iterator[None]:
    """Let kernels use the specification of what can't be executed on symbols instead of its code.

    That is `floor_log2`, which goes through floats, and reading and writing elements of a table, which numpy doesn't
    hand to symbolic arrays.
    """
    originals = fast_bounds.floor_log2, fast_memory.gather, fast_memory.scatter
    fast_bounds.floor_log2, fast_memory.gather, fast_memory.scatter = _floor_log2, _gather, _scatter
    try:
        yield
    finally:
        fast_bounds.floor_log2, fast_memory.gather, fast_memory.scatter = originals


def workspace(like: Any) -> Any:
    """Scratch for the kind of lane that `like` is."""
    if isinstance(like, SymArray):
        return SymbolicWorkspace()
    return Workspace(1)


def empty(ws: Any, dtype: Any) -> Any:
    """An output array."""
    return ws.fresh(dtype) if isinstance(ws, SymbolicWorkspace) else np.empty(1, dtype)
