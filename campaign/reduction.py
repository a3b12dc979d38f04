"""Making a failing program small, its failure's signature kept: one way to do it, whichever engine found it.

Operations are dropped, constants and registers made simple, copies bypassed, and set-up merged into fewer operations, until
no change of these makes the program smaller. What comes out depends on the program alone.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from capvisor.campaign.case import Case, Operation
from capvisor.campaign.unit import STEPPINGS, Failure, judge
from capvisor.spec.operations import OPERATIONS, OperandKind

LONGEST_S = 8.0
"""Seconds after which a program is left as small as it has become."""

Fails = Callable[[Case], Failure | None]

_IMMEDIATE_TWINS = {
    "csetbounds": "csetboundsimm",
    "cincoffset": "cincoffsetimm",
    "add": "addi",
    "and": "andi",
    "or": "ori",
    "xor": "xori",
    "slt": "slti",
    "sltu": "sltiu",
}
"""Operations that also exist with an immediate in the place of their last register."""


class Reduction:
    """The reduction of one failure: `best` is the smallest program so far that fails in the same way."""

    def __init__(self, failure: Failure, longest_s: float = LONGEST_S, fails: Fails | None = None) -> None:
        self.best = failure
        self.tried = 0
        self._deadline = time.monotonic() + longest_s
        self._steppings = STEPPINGS if fails is None else (failure.stepping,)
        self._fails = fails
        self._known: set[tuple[Operation, ...]] = set()

    def run(self) -> Failure | None:
        """The smallest failure found; None where the program doesn't fail on its own, however it is stepped."""
        found = self.best
        for stepping in dict.fromkeys((found.stepping, *self._steppings)):
            self.best = replace(found, stepping=stepping)
            again = self._judge(found.case)
            if again is not None and again.signature == found.signature:
                self.best = replace(again, shard=found.shard, lane=found.lane)
                break
        else:
            return None
        while time.monotonic() < self._deadline:
            before = self.best.case
            for change in (_shorter, _merged, _bypassed, _registers, _constants):
                self._apply(change)
            if self.best.case == before:
                break
        return self.best

    def _judge(self, case: Case) -> Failure | None:
        if self._fails is not None:
            return self._fails(case)
        return judge(case, self.best.stepping, oracles=self.best.kind != "differs")

    def _apply(self, change: Callable[[Case], Iterator[Case]]) -> None:
        """Make changes of one kind as long as one of them is good."""
        improved = True
        while improved and time.monotonic() < self._deadline:
            improved = False
            for case in change(self.best.case):
                if time.monotonic() > self._deadline:
                    return
                if self._accept(case):
                    improved = True
                    break

    def _accept(self, case: Case) -> bool:
        if case.operations in self._known or _size(case) >= _size(self.best.case):
            return False
        self._known.add(case.operations)
        self.tried += 1
        failure = self._judge(case)
        if failure is None or failure.signature != self.best.signature or _size(failure.case) >= _size(self.best.case):
            return False
        self.best = replace(failure, shard=self.best.shard, lane=self.best.lane)
        return True


def _size(case: Case) -> tuple[int, int, int, tuple[Operation, ...]]:
    """What makes a program smaller than another: fewer operations, simpler numbers, lower registers."""
    numbers = registers = 0
    for name, operands in case.operations:
        for kind, value in zip(OPERATIONS[name].operands, operands, strict=True):
            if kind.is_register:
                registers += value
            else:
                numbers += _complexity(value)
    return len(case.operations), numbers, registers, case.operations


def _complexity(value: int) -> int:
    """How hard a number is to read: its bits, and how many of them change from one to the next."""
    magnitude = abs(value)
    return 2 * (magnitude ^ magnitude >> 1).bit_count() + magnitude.bit_length() + (value < 0)


def _shorter(case: Case) -> Iterator[Case]:
    """Runs of operations left out, the longest first."""
    operations = case.operations
    size = len(operations) // 2
    while size:
        for start in range(0, len(operations) - size + 1, max(1, size // 2)):
            yield case.with_operations(operations[:start] + operations[start + size :])
        size //= 2


def _merged(case: Case) -> Iterator[Case]:
    """A number loaded for one operation becomes its immediate; an operation takes an earlier one's place in what it sets."""
    operations = case.operations
    for place, (name, operands) in enumerate(operations):
        twin = _IMMEDIATE_TWINS.get(name)
        if twin is None:
            continue
        low, high = OPERATIONS[twin].operands[-1].immediate_range(case.capability_format.address_width)
        for before in range(place):
            other, (*_target, value) = operations[before] if operations[before][1] else ("", (0,))
            if other == "li" and operations[before][1][0] == operands[-1]:
                for number in (value, value - case.capability_format.address_space):
                    if low <= number <= high:
                        merged = (twin, (*operands[:-1], number))
                        kept = (*operations[:place], merged, *operations[place + 1 :])
                        yield case.with_operations(kept[:before] + kept[before + 1 :])


def _bypassed(case: Case) -> Iterator[Case]:
    """An operation's source replaced by the root, by c0, or by a source of the operation that made it."""
    operations = case.operations
    for place, (name, operands) in enumerate(operations):
        for which, kind in enumerate(OPERATIONS[name].operands):
            if not kind.is_register or kind.is_destination:
                continue
            made = [
                value
                for earlier, values in operations[:place]
                if values and OPERATIONS[earlier].operands[0].is_destination and values[0] == operands[which]
                for other, value in zip(OPERATIONS[earlier].operands[1:], values[1:], strict=True)
                if other.is_register
            ]
            for value in dict.fromkeys((*made[::-1], *case.roots, 0)):
                if value == operands[which]:
                    continue
                changed = (
                    *operations[:place],
                    (name, (*operands[:which], value, *operands[which + 1 :])),
                    *operations[place + 1 :],
                )
                for dropped in range(place):
                    yield case.with_operations(changed[:dropped] + changed[dropped + 1 :])
                yield case.with_operations(changed)


def _registers(case: Case) -> Iterator[Case]:
    """All uses of a register renamed to a lower one; then single ones."""
    used = sorted(
        {
            value
            for name, operands in case.operations
            for kind, value in zip(OPERATIONS[name].operands, operands, strict=True)
            if kind.is_register
        }
    )
    for register in used:
        for lower in range(register):
            yield case.with_operations(tuple(_renamed(each, register, lower) for each in case.operations))
    for place, (name, operands) in enumerate(case.operations):
        for which, kind in enumerate(OPERATIONS[name].operands):
            if kind.is_register:
                for lower in range(operands[which]):
                    if kind.is_destination:
                        yield _moved(case, place, lower)
                    yield _with_operand(case, place, which, lower)


def _moved(case: Case, place: int, register: int) -> Case:
    """What an operation makes put in another register, and read from there until either is written again."""
    name, operands = case.operations[place]
    old, changed = operands[0], [*case.operations[:place], (name, (register, *operands[1:]))]
    for later, (name, operands) in enumerate(case.operations[place + 1 :], start=place + 1):
        kinds = OPERATIONS[name].operands
        changed.append(
            (
                name,
                tuple(
                    register if kind.is_register and not kind.is_destination and value == old else value
                    for kind, value in zip(kinds, operands, strict=True)
                ),
            )
        )
        if kinds and kinds[0].is_destination and operands[0] in (old, register):
            return case.with_operations((*changed, *case.operations[later + 1 :]))
    return case.with_operations(tuple(changed))


def _renamed(operation: Operation, register: int, other: int) -> Operation:
    name, operands = operation
    kinds = OPERATIONS[name].operands
    return name, tuple(
        other if kind.is_register and value == register else value for kind, value in zip(kinds, operands, strict=True)
    )


def _constants(case: Case) -> Iterator[Case]:
    """Numbers made simpler: zero, one, a power of two, the memory's base, with bits missing."""
    for place, (name, operands) in enumerate(case.operations):
        for which, kind in enumerate(OPERATIONS[name].operands):
            value = operands[which]
            if kind.is_register or value == 0:
                continue
            for simpler in _simpler(value, case.memory_base):
                if simpler != value and _fits(kind, simpler, case):
                    yield _with_operand(case, place, which, simpler)


def _simpler(value: int, memory_base: int) -> Iterator[int]:
    yield from (0, 1, memory_base)
    yield from (abs(value), 1 << max(abs(value).bit_length() - 1, 0), (1 << abs(value).bit_length()) - 1)
    size = value.bit_length()
    while size:
        for low in range(0, value.bit_length(), size):
            yield value & ~((1 << size) - 1 << low)
        size //= 2
    yield from (value >> 1, value - 1, value + 1)


def _fits(kind: OperandKind, value: int, case: Case) -> bool:
    if kind is OperandKind.VALUE:
        return 0 <= value < case.capability_format.address_space
    low, high = kind.immediate_range(case.capability_format.address_width)
    return low <= value <= high and value % kind.alignment == 0


def _with_operand(case: Case, place: int, which: int, value: int) -> Case:
    name, operands = case.operations[place]
    changed = (name, (*operands[:which], value, *operands[which + 1 :]))
    return case.with_operations((*case.operations[:place], changed, *case.operations[place + 1 :]))
