"""Symbolic integers: Python's own ints, without bounds, standing for all values at once.

A `SymInt` is a bit-vector in two's complement with an interval that its value lies in. Every result gets the width that its
interval needs, so that nothing ever wraps around. A `SymBool` is a condition; used in an `if` it forks: the function is
executed once for each way (`explore`). What can't be carried faithfully, such as a symbolic value used as an index, as a
dictionary's key or as a float, raises `Unfaithful`: an error, never a wrong answer.

What an operation made of the same terms before is known, and not made again: on other ways through a function most is.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Union

import z3

IntLike = Union["SymInt", "SymBool", int]
BoolLike = Union["SymBool", bool]


class Unfaithful(Exception):  # noqa: N818 - the engine's refusal, which must never pass for a verdict
    """An operation that symbolic values can't carry out as Python's ints would."""


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refusal(*_arguments: object) -> NoReturn:
        raise Unfaithful(f"a symbolic value can't be used as {what}")

    return refusal


def bits_for(low: int, high: int) -> int:
    """The width in two's complement that holds every number from low to high."""
    return max(low.bit_length() if low >= 0 else (low + 1).bit_length(), high.bit_length()) + 1


_MOST_MADE = 200_000
"""How many results of operations are known at most."""

_made_before: dict[Any, tuple[Any, Any]] = {}
"""Of an operation and its operands' marks the result; with the operands, which keep the places of their terms."""


def _mark(value: Any) -> Any:
    """What tells an operand apart from all others, as long as it is kept; None for what is no operand."""
    if isinstance(value, SymInt | SymBool):
        return value.mark
    if isinstance(value, bool):
        return "true" if value else "false"
    return int(value) if isinstance(value, int) else None


def _made_once(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """An operation that isn't carried out anew where its result is known."""

    @functools.wraps(function)
    def operation(one: Any, other: Any) -> Any:
        key = function, one.mark, _mark(other)
        known = _made_before.get(key)
        return known[0] if known else _known(key, function(one, other), one, other)

    return operation


def _known(key: Any, result: Any, *operands: Any) -> Any:
    """A result, which is known from now on."""
    if len(_made_before) >= _MOST_MADE:
        _made_before.clear()
    _made_before[key] = result, operands
    return result


class SymInt:
    """An integer that stands for all values of a term; it lies in [low, high]."""

    __slots__ = ("high", "low", "mark", "term", "width")

    def __init__(self, term: z3.BitVecRef, low: int, high: int, width: int = 0) -> None:
        """A term's width needn't be asked for where it is given."""
        self.term, self.low, self.high, self.width = term, low, high, width or term.size()
        self.mark = term.ast.value, low, high

    # What ints can do and terms can't.
    __bool__ = _refuse("a truth value (compare it with 0 instead)")
    __index__ = _refuse("an index or a range's bound")
    __int__ = _refuse("a plain int")
    __float__ = _refuse("a float")
    __hash__ = _refuse("a hash: in a set, or as a dictionary's key")  # type: ignore[assignment]
    __format__ = _refuse("text")
    __str__ = _refuse("text")
    __pow__ = __rpow__ = _refuse("an operand of **")
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = _refuse("an operand of a division")
    __mod__ = __rmod__ = __divmod__ = _refuse("an operand of a division")

    def __repr__(self) -> str:
        return f"SymInt({self.low}..{self.high})"

    def at(self, width: int) -> z3.BitVecRef:
        """The term at a width that holds its value."""
        return self.term if width == self.width else _at(self, width)

    # -- arithmetic ------------------------------------------------------------------------------------------------------

    @_made_once
    def __add__(self, other: IntLike) -> Any:
        b = as_int(other)
        return _binary(self, b, lambda x, y: x + y, self.low + b.low, self.high + b.high)

    @_made_once
    def __sub__(self, other: IntLike) -> Any:
        b = as_int(other)
        return _binary(self, b, lambda x, y: x - y, self.low - b.high, self.high - b.low)

    def __rsub__(self, other: IntLike) -> Any:
        return as_int(other) - self

    def __neg__(self) -> Any:
        return as_int(0) - self

    @_made_once
    def __mul__(self, other: IntLike) -> Any:
        b = as_int(other)
        ends = [x * y for x in (self.low, self.high) for y in (b.low, b.high)]
        return _binary(self, b, lambda x, y: x * y, min(ends), max(ends))

    def __invert__(self) -> Any:
        return as_int(-1) - self

    __radd__ = __add__
    __rmul__ = __mul__

    # -- bits ------------------------------------------------------------------------------------------------------------

    @_made_once
    def __and__(self, other: IntLike) -> Any:
        b = as_int(other)
        if self.low >= 0 and b.low >= 0:
            low, high = 0, min(self.high, b.high)
        elif self.low >= 0 or b.low >= 0:
            low, high = 0, self.high if self.low >= 0 else b.high
        else:
            low, high = _whole(self, b)
        return _binary(self, b, lambda x, y: x & y, low, high)

    @_made_once
    def __or__(self, other: IntLike) -> Any:
        b = as_int(other)
        low, high = _whole(self, b)
        if self.low >= 0 and b.low >= 0:
            low = max(self.low, b.low)
        return _binary(self, b, lambda x, y: x | y, low, high)

    @_made_once
    def __xor__(self, other: IntLike) -> Any:
        b = as_int(other)
        return _binary(self, b, lambda x, y: x ^ y, *_whole(self, b))

    __rand__ = __and__
    __ror__ = __or__
    __rxor__ = __xor__

    @_made_once
    def __lshift__(self, other: IntLike) -> Any:
        b = _distance(other)
        low = min(self.low << b.low, self.low << b.high)
        high = max(self.high << b.low, self.high << b.high)
        return _binary(self, b, lambda x, y: x << y, low, high)

    def __rlshift__(self, other: IntLike) -> Any:
        return as_int(other) << self

    @_made_once
    def __rshift__(self, other: IntLike) -> Any:
        b = _distance(other)
        low = min(self.low >> b.low, self.low >> b.high)
        high = max(self.high >> b.low, self.high >> b.high)
        return _binary(self, b, lambda x, y: x >> y, low, high)

    def __rrshift__(self, other: IntLike) -> Any:
        return as_int(other) >> self

    def bit_length(self) -> Any:
        """As int.bit_length, of numbers that can't be negative."""
        if self.low < 0:
            raise Unfaithful("bit_length of a symbolic value that may be negative")
        result: Any = self.high.bit_length()
        for bits in range(self.high.bit_length() - 1, self.low.bit_length() - 1, -1):
            result = select(self < 1 << bits, bits, result)
        return result

    # -- comparisons -----------------------------------------------------------------------------------------------------

    @_made_once
    def __eq__(self, other: object) -> Any:
        b = as_int(other)
        if self.high < b.low or b.high < self.low:
            return False
        return _compare(self, b, lambda x, y: x == y)

    def __ne__(self, other: object) -> Any:
        return negate(self == other)

    @_made_once
    def __lt__(self, other: IntLike) -> Any:
        b = as_int(other)
        if self.high < b.low or self.low >= b.high:
            return self.high < b.low
        return _compare(self, b, lambda x, y: x < y)

    def __ge__(self, other: IntLike) -> Any:
        return negate(self < other)

    def __gt__(self, other: IntLike) -> Any:
        return as_int(other) < self

    def __le__(self, other: IntLike) -> Any:
        return negate(as_int(other) < self)


class SymBool:
    """A condition that stands for all values of a term. In arithmetic it is 0 or 1, as Python's bool is."""

    __slots__ = ("mark", "term")

    def __init__(self, term: z3.BoolRef) -> None:
        self.term = term
        self.mark = (term.ast.value,)

    __index__ = _refuse("an index")
    __int__ = _refuse("a plain int")
    __hash__ = _refuse("a hash: in a set, or as a dictionary's key")  # type: ignore[assignment]
    __format__ = _refuse("text")
    __str__ = _refuse("text")

    def __repr__(self) -> str:
        return "SymBool"

    def __bool__(self) -> bool:
        return _decide(self)

    def select(self, when_true: Any, when_false: Any) -> Any:
        """One of two values, as data; what `model.bits.select` calls."""
        return select(self, when_true, when_false)

    def number(self) -> SymInt:
        """0 or 1."""
        return _as_number(self, None)

    @_made_once
    def __and__(self, other: Any) -> Any:
        if _is_condition(other):
            return self if other is True else False if other is False else SymBool(z3.And(self.term, other.term))
        return self.number() & other

    @_made_once
    def __or__(self, other: Any) -> Any:
        if _is_condition(other):
            return True if other is True else self if other is False else SymBool(z3.Or(self.term, other.term))
        return self.number() | other

    @_made_once
    def __xor__(self, other: Any) -> Any:
        if _is_condition(other):
            return negate(self) if other is True else self if other is False else SymBool(z3.Xor(self.term, other.term))
        return self.number() ^ other

    __rand__ = __and__
    __ror__ = __or__
    __rxor__ = __xor__

    def __eq__(self, other: object) -> Any:
        if _is_condition(other):
            return negate(self ^ other)
        return self.number() == other

    def __ne__(self, other: object) -> Any:
        return negate(self == other)

    def __add__(self, other: IntLike) -> Any:
        return self.number() + other

    def __sub__(self, other: IntLike) -> Any:
        return self.number() - other

    def __rsub__(self, other: IntLike) -> Any:
        return as_int(other) - self.number()

    def __mul__(self, other: IntLike) -> Any:
        return select(self, other, 0)

    def __neg__(self) -> Any:
        return -self.number()

    def __invert__(self) -> Any:
        return ~self.number()

    def __lshift__(self, other: IntLike) -> Any:
        return self.number() << other

    def __rlshift__(self, other: IntLike) -> Any:
        return as_int(other) << self.number()

    def __rshift__(self, other: IntLike) -> Any:
        return self.number() >> other

    def __rrshift__(self, other: IntLike) -> Any:
        return as_int(other) >> self.number()

    def __lt__(self, other: IntLike) -> Any:
        return self.number() < other

    def __le__(self, other: IntLike) -> Any:
        return self.number() <= other

    def __gt__(self, other: IntLike) -> Any:
        return self.number() > other

    def __ge__(self, other: IntLike) -> Any:
        return self.number() >= other

    __radd__ = __add__
    __rmul__ = __mul__


# -- building values -----------------------------------------------------------------------------------------------------


def unsigned(name: str, bits: int) -> SymInt:
    """Any number of so many bits."""
    return word_of(z3.BitVec(name, bits), bits)


def word_of(term: z3.BitVecRef, bits: int) -> SymInt:
    """The number that a term of so many bits is."""
    return SymInt(z3.ZeroExt(1, term), 0, (1 << bits) - 1, bits + 1)


def flag(name: str) -> SymBool:
    """Any truth value."""
    return SymBool(z3.Bool(name))


def as_int(value: Any) -> SymInt:
    """A number as a SymInt. Raises Unfaithful for what is no number."""
    if isinstance(value, SymInt):
        return value
    if isinstance(value, SymBool):
        return value.number()
    if isinstance(value, int):
        return _constant(int(value))
    raise Unfaithful(f"a symbolic value can't be combined with {type(value).__name__}")


@functools.lru_cache(1 << 16)
def _constant(number: int) -> SymInt:
    width = bits_for(number, number)
    return SymInt(z3.BitVecVal(number, width), number, number, width)


@_made_once
def _at(value: SymInt, width: int) -> z3.BitVecRef:
    """The term at another width that holds its value."""
    missing = width - value.width
    if missing < 0:
        return z3.Extract(width - 1, 0, value.term)
    return z3.SignExt(missing, value.term) if value.low < 0 else z3.ZeroExt(missing, value.term)


@_made_once
def _as_number(condition: SymBool, _no_other: None) -> SymInt:
    return SymInt(z3.If(condition.term, z3.BitVecVal(1, 2), z3.BitVecVal(0, 2)), 0, 1, 2)


@_made_once
def _negated(condition: SymBool, _no_other: None) -> SymBool:
    return SymBool(z3.Not(condition.term))


def negate(condition: BoolLike) -> Any:
    """The negation of a truth value."""
    return _negated(condition, None) if isinstance(condition, SymBool) else not condition


def select(condition: BoolLike, when_true: Any, when_false: Any) -> Any:
    """One of two values, as data."""
    if not isinstance(condition, SymBool):
        return when_true if condition else when_false
    key = select, condition.mark, _mark(when_true), _mark(when_false)
    known = _made_before.get(key)
    return known[0] if known else _known(key, _selected(condition, when_true, when_false), condition, when_true, when_false)


def _selected(condition: SymBool, when_true: Any, when_false: Any) -> Any:
    if _is_condition(when_true) and _is_condition(when_false):
        return SymBool(z3.If(condition.term, term_of(when_true), term_of(when_false)))
    a, b = as_int(when_true), as_int(when_false)
    low, high = min(a.low, b.low), max(a.high, b.high)
    width = bits_for(low, high)
    return _made(z3.If(condition.term, a.at(width), b.at(width)), low, high, width)


def term_of(condition: BoolLike) -> z3.BoolRef:
    """A truth value as a term."""
    return condition.term if isinstance(condition, SymBool) else _TRUTH[bool(condition)]


_TRUTH = {value: z3.BoolVal(value) for value in (False, True)}


def _is_condition(value: object) -> bool:
    return isinstance(value, SymBool | bool)


def _made(term: z3.BitVecRef, low: int, high: int, width: int) -> Any:
    """A value from its term, of a width that holds it, and its interval; a plain int where that leaves no choice."""
    if low == high:
        return low
    least = bits_for(low, high)
    return SymInt(z3.Extract(least - 1, 0, term) if width > least else term, low, high, least)


def _binary(a: SymInt, b: SymInt, function: Callable[[Any, Any], Any], low: int, high: int) -> Any:
    """A function of both, computed at a width that holds operands and result."""
    width = max(a.width, b.width, bits_for(low, high))
    return _made(function(a.at(width), b.at(width)), low, high, width)


def _whole(a: SymInt, b: SymInt) -> tuple[int, int]:
    """The interval of a bitwise combination: all numbers of the wider operand's width."""
    bits = max(bits_for(a.low, a.high), bits_for(b.low, b.high)) - 1
    return (0 if a.low >= 0 and b.low >= 0 else -(1 << bits)), (1 << bits) - 1


def _distance(value: IntLike) -> SymInt:
    distance = as_int(value)
    if distance.low < 0:
        raise Unfaithful("a shift by a symbolic value that may be negative")
    if distance.high > 1 << 12:
        raise Unfaithful("a shift by a symbolic value that may be above 4096")
    return distance


def _compare(a: SymInt, b: SymInt, function: Callable[[Any, Any], Any]) -> SymBool:
    width = max(a.width, b.width)
    return SymBool(function(a.at(width), b.at(width)))


# -- paths ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """One way through a function: what had to hold for it, and the value it returned or the exception it raised."""

    conditions: tuple[z3.BoolRef, ...]
    result: Any
    exception: Exception | None


class _Explorer:
    """Re-executes a function along lists of decisions until every feasible way has been taken."""

    def __init__(self, assumptions: list[z3.BoolRef], rlimit: int) -> None:
        self._solver = z3.SolverFor("QF_ABV")
        self._solver.set("rlimit", rlimit)
        self._assumptions = assumptions
        self._prefix: list[bool] = []
        self.pending: list[list[bool]] = [[]]
        self.taken: list[bool] = []
        self.conditions: list[z3.BoolRef] = []

    def start(self, prefix: list[bool]) -> None:
        self._prefix, self.taken, self.conditions = prefix, [], []

    def decide(self, condition: SymBool) -> bool:
        depth = len(self.taken)
        if depth < len(self._prefix):
            choice = self._prefix[depth]
        else:
            possible = [value for value in (True, False) if self._feasible(condition, value)]
            if len(possible) == 2:
                self.pending.append([*self.taken, False])
            choice = possible[0] if possible else True
        self.taken.append(choice)
        self.conditions.append(condition.term if choice else z3.Not(condition.term))
        return choice

    def _feasible(self, condition: SymBool, value: bool) -> bool:
        """False only if the way is impossible: what the solver can't decide is taken."""
        term = condition.term if value else z3.Not(condition.term)
        return self._solver.check(*self._assumptions, *self.conditions, term) != z3.unsat


_explorers: list[_Explorer] = []


@_made_once
def _simplified(condition: SymBool, _no_other: None) -> z3.BoolRef:
    simplified: z3.BoolRef = z3.simplify(condition.term)
    return simplified


def _decide(condition: SymBool) -> bool:
    simplified = _simplified(condition, None)
    if z3.is_true(simplified) or z3.is_false(simplified):
        return bool(z3.is_true(simplified))
    if not _explorers:
        raise Unfaithful("a symbolic condition decides an `if` outside of `explore`")
    return _explorers[-1].decide(condition)


@contextmanager
def _exploring(explorer: _Explorer) -> Iterator[None]:
    _explorers.append(explorer)
    try:
        yield
    finally:
        _explorers.pop()


def explore(
    function: Callable[[], Any],
    assumptions: list[z3.BoolRef] | None = None,
    expected: tuple[type[Exception], ...] = (),
    rlimit: int = 2_000_000,
    most: int = 10_000,
) -> list[Path]:
    """Every feasible way through a function of symbolic values.

    Exceptions of the expected types end a way and are recorded; others, `Unfaithful` among them, are raised. The ways are
    disjoint and cover everything that the assumptions allow. Raises Unfaithful for more than `most` ways.
    """
    explorer = _Explorer(assumptions or [], rlimit)
    paths: list[Path] = []
    while explorer.pending:
        explorer.start(explorer.pending.pop())
        result, exception = None, None
        with _exploring(explorer):
            try:
                result = function()
            except expected as raised:
                exception = raised
        paths.append(Path(tuple(explorer.conditions), result, exception))
        if len(paths) > most:
            raise Unfaithful(f"more than {most} ways through a function")
    return paths
