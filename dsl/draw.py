"""Drawing the `any` values of a program, in many lanes, with a bias to what breaks things.

A `where` that bounds its value by an expression of others (`len <= 0x10000`, `x >= off`) is drawn within those bounds;
what else it asks is met by drawing again. The same seed gives the same values.
"""

from collections.abc import Iterator, Mapping
from typing import Any as AnyType

import numpy as np

from capvisor.dsl.edges import edge_numbers
from capvisor.dsl.errors import NoValuesError, ProgramError
from capvisor.dsl.evaluate import evaluate, format_of, memory_of
from capvisor.dsl.lanes import LaneInt, as_flags, as_words
from capvisor.dsl.syntax import Any, Binary, Expression, Name, Operator, Program, walk
from capvisor.dsl.system import constants_of
from capvisor.fastpath.workspace import Flags, Words

ROUNDS = 100
"""How often lanes whose values don't satisfy a `where` are drawn again."""

Values = dict[str, AnyType]
"""Values of lets by name: a LaneInt or, where all lanes have the same, an int."""


class Names:
    """The environment of `where` and `let`: names only."""

    def __init__(self, values: Mapping[str, AnyType]) -> None:
        self._values = values

    def name(self, name: str) -> AnyType:
        return self._values[name]

    def register(self, number: int) -> AnyType:
        raise LookupError(number)

    def field(self, register: int, name: str) -> AnyType:
        raise LookupError(name)


def landmarks_of(program: Program) -> list[int]:
    """Numbers near which values are worth trying: the ends of memory, its size, a capability's size."""
    base, size = memory_of(program)
    ends = (base, base + size, size, format_of(program).capability_bytes)
    return [end % 2**64 for end in ends]


def draw(program: Program, rng: np.random.Generator, lanes: int) -> tuple[Values, Flags]:
    """Values for all lets of a program in `lanes` lanes, and the lanes in which every `where` could be met."""
    values: Values = {}
    landmarks = landmarks_of(program)
    met = np.ones(lanes, np.bool_)
    for let in program.lets:
        if isinstance(let.value, Any):
            numbers, satisfied = _draw_any(let.name, let.value, values, rng, lanes, landmarks)
            values[let.name] = LaneInt(numbers)
            met &= satisfied
        else:
            values[let.name] = evaluate(let.value, Names(values))
    return values, met


def select_lanes(values: Values, chosen: Flags) -> Values:
    """The values of the chosen lanes, of which there must be some."""
    return {name: LaneInt(value.array[chosen]) if isinstance(value, LaneInt) else value for name, value in values.items()}


def in_lane(values: Values, lane: int) -> dict[str, int]:
    """The values of one lane, as plain ints."""
    return {name: int(value.array[lane]) if isinstance(value, LaneInt) else value for name, value in values.items()}


def fix(program: Program, given: Mapping[str, int], seed: int) -> dict[str, int]:
    """One value for each let: those given, and drawn ones for the rest. Raises NoValuesError where none are found."""
    lets = {let.name: let for let in program.lets}
    for name, number in given.items():
        if name not in lets or not isinstance(lets[name].value, Any):
            known = [let.name for let in program.lets if isinstance(let.value, Any)]
            raise ProgramError(
                f"`{name}` is no `any` value of this program: it has {', '.join(known) or 'none'}",
                program.setup.position,
                program.source,
            )
        value = lets[name].value
        assert isinstance(value, Any)
        if not 0 <= number < 1 << value.bits:
            raise ProgramError(f"{number} isn't a u{value.bits}", lets[name].position, program.source, program.text)
    # Enough lanes that even a rare condition is met in one.
    rng = np.random.default_rng(seed)
    landmarks = landmarks_of(program)
    values: Values = dict(constants_of(program))
    met = np.ones(256, np.bool_)
    for let in lets.values():
        if let.name in given:
            values[let.name] = given[let.name]
            assert isinstance(let.value, Any)
            if let.value.where is not None:
                met &= as_flags(evaluate(let.value.where, Names(values)), len(met))
        elif isinstance(let.value, Any):
            numbers, satisfied = _draw_any(let.name, let.value, values, rng, len(met), landmarks)
            values[let.name] = LaneInt(numbers)
            met &= satisfied
        else:
            values[let.name] = evaluate(let.value, Names(values))
        if not met.any():
            reason = "no values of the others were found with which" if let.name in given else "no value was found that"
            message = f"`{let.name}`: {reason} {'it ' if let.name in given else ''}satisfies its `where`"
            raise NoValuesError(message, let.position, program.source, program.text)
    return in_lane({name: values[name] for name in lets}, int(np.argmax(met)))


def _draw_any(
    name: str, value: Any, values: Values, rng: np.random.Generator, lanes: int, landmarks: list[int]
) -> tuple[Words, Flags]:
    """Numbers for one `any` in each lane, and the lanes in which they satisfy its `where`."""
    highest = (1 << value.bits) - 1
    if value.where is None:
        return edge_numbers(
            rng, np.zeros(lanes, np.uint64), np.full(lanes, highest, np.uint64), _near(values, landmarks, lanes)
        ), np.ones(lanes, np.bool_)
    low, high, possible = _range(name, value.where, values, highest, lanes)
    numbers = edge_numbers(rng, low, high, _near(values, landmarks, lanes))
    for _ in range(ROUNDS):
        satisfied = as_flags(evaluate(value.where, Names(values | {name: LaneInt(numbers)})), lanes) & possible
        again = possible & ~satisfied
        if not again.any():
            break
        numbers = np.where(again, edge_numbers(rng, low, high, _near(values, landmarks, lanes)), numbers)
    return numbers, satisfied


def _near(values: Values, landmarks: list[int], lanes: int) -> list[Words]:
    """What values are worth drawing close to: landmarks, and the values drawn before."""
    near = [np.full(lanes, landmark, np.uint64) for landmark in landmarks]
    return near + [as_words(value, 64, lanes) for value in values.values()]


def _conjuncts(condition: Expression) -> Iterator[Expression]:
    if isinstance(condition, Binary) and condition.operator is Operator.AND:
        yield from _conjuncts(condition.left)
        yield from _conjuncts(condition.right)
    else:
        yield condition


_MIRRORED = {
    Operator.LESS: Operator.GREATER,
    Operator.LESS_EQUAL: Operator.GREATER_EQUAL,
    Operator.GREATER: Operator.LESS,
    Operator.GREATER_EQUAL: Operator.LESS_EQUAL,
    Operator.EQUAL: Operator.EQUAL,
}


def _range(name: str, where: Expression, values: Values, highest: int, lanes: int) -> tuple[Words, Words, Flags]:
    """The lowest and highest number that the bounds in a `where` leave, by lane, and the lanes where they leave any."""
    low: AnyType = np.zeros(lanes, object)
    high: AnyType = np.full(lanes, highest, object)
    for part in _conjuncts(where):
        if not isinstance(part, Binary) or part.operator not in _MIRRORED:
            continue
        kind, bound = part.operator, part.right
        if part.left != Name(name):
            kind, bound = _MIRRORED[part.operator], part.left
            if part.right != Name(name):
                continue
        if Name(name) in walk(bound):
            continue
        limit = evaluate(bound, Names(values))
        limit = limit.array.astype(object) if isinstance(limit, LaneInt) else limit
        if kind in (Operator.LESS, Operator.LESS_EQUAL, Operator.EQUAL):
            high = np.minimum(high, limit - (kind is Operator.LESS))
        if kind in (Operator.GREATER, Operator.GREATER_EQUAL, Operator.EQUAL):
            low = np.maximum(low, limit + (kind is Operator.GREATER))
    possible = np.asarray(low <= high, np.bool_)
    low, high = np.where(possible, low, 0), np.where(possible, high, 0)
    return low.astype(np.uint64), high.astype(np.uint64), possible
