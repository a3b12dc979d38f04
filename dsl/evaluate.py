"""What an expression is worth, given what its names and registers are worth.

One walk over the tree serves every kind of value that has Python's operators: plain ints and bools on the reference,
`lanes.LaneInt` and arrays of bools on the fast path. Numbers have no bounds and never wrap around.
"""

import operator
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from capvisor.dsl.syntax import (
    Binary,
    Element,
    Expression,
    FieldOf,
    Integer,
    Name,
    Operator,
    Program,
    Register,
    Truth,
    Unary,
)
from capvisor.spec.formats import FORMATS, CapabilityFormat


class Environment(Protocol):
    """Where the values of names, registers and fields come from."""

    def name(self, name: str) -> Any: ...

    def register(self, number: int) -> Any: ...

    def field(self, register: int, name: str) -> Any: ...


@runtime_checkable
class Tables(Protocol):
    """An environment that has tables too, for programs that may name their rows."""

    def element(self, name: str, *indices: int) -> Any: ...


class _Nothing:
    """The environment of constants."""

    def name(self, name: str) -> Any:
        raise LookupError(name)

    def register(self, number: int) -> Any:
        raise LookupError(number)

    def field(self, register: int, name: str) -> Any:
        raise LookupError(name)


NOTHING = _Nothing()


def _not(condition: Any) -> Any:
    return condition ^ True


_BINARY: dict[Operator, Callable[[Any, Any], Any]] = {
    Operator.IMPLIES: lambda a, b: _not(a) | b,
    Operator.OR: operator.or_,
    Operator.AND: operator.and_,
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS_EQUAL: operator.le,
    Operator.GREATER_EQUAL: operator.ge,
    Operator.LESS: operator.lt,
    Operator.GREATER: operator.gt,
    Operator.BIT_OR: operator.or_,
    Operator.BIT_XOR: operator.xor,
    Operator.BIT_AND: operator.and_,
    Operator.SHIFT_LEFT: operator.lshift,
    Operator.SHIFT_RIGHT: operator.rshift,
    Operator.ADD: operator.add,
    Operator.SUBTRACT: operator.sub,
    Operator.MULTIPLY: operator.mul,
}
_UNARY: dict[Operator, Callable[[Any], Any]] = {
    Operator.NOT: _not,
    Operator.SUBTRACT: operator.neg,
    Operator.INVERT: operator.invert,
}


def evaluate(expression: Expression, environment: Environment) -> Any:
    """The value of a checked expression: a number, or a truth value where it is a condition."""
    match expression:
        case Integer():
            return expression.value
        case Truth(value):
            return value
        case Name(name):
            return environment.name(name)
        case Register(number):
            return environment.register(number)
        case FieldOf(register, name):
            return environment.field(register, name)
        case Element(name, indices):
            assert isinstance(environment, Tables)
            return environment.element(name, *(evaluate(each, environment) for each in indices))
        case Unary(kind, operand):
            return _UNARY[kind](evaluate(operand, environment))
        case Binary(kind, left, right):
            return _BINARY[kind](evaluate(left, environment), evaluate(right, environment))


def constant(expression: Expression) -> int:
    """The value of a number that is made of literals alone."""
    value: int = evaluate(expression, NOTHING)
    return value


DEFAULT_MEMORY = (0x8000_0000, 1 << 20)
"""Base and size in bytes of a system's memory where nothing is said."""


def memory_of(program: Program) -> tuple[int, int]:
    """Base and size in bytes of a checked program's memory; the size is 0 where a machine has none."""
    setup = program.setup
    if setup.memory_base is None or setup.memory_size is None:
        return (0, 0) if program.system is None else DEFAULT_MEMORY
    return constant(setup.memory_base), constant(setup.memory_size)


DEFAULT_FORMAT = "cc128"
"""A system's capability format where nothing is said."""


def format_of(program: Program) -> CapabilityFormat:
    """The capability format of a checked program."""
    return FORMATS[program.setup.format or DEFAULT_FORMAT]
