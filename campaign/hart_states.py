"""Whole states of systems on harts: what a lane of the fast path holds against what the reference does."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from capvisor.dsl.states import describe, lane_capability, store_granules
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS
from capvisor.fastpath.shared import Harts, SharedMemory
from capvisor.model.machine import Hart
from capvisor.model.memory import EMPTY, Granule, Memory
from capvisor.spec.operations import OPERATIONS, OperandKind
from capvisor.spec.registers import REGISTER_COUNT

Row = tuple[str, Any, Any]
"""What is looked at, as the reference and as the fast path has it."""


def differing(rows: Iterable[Row]) -> list[str]:
    """The rows that aren't equal, in words."""
    found = ((name, _text(expected), _text(actual)) for name, expected, actual in rows if expected != actual)
    return [f"{name}: reference {one}, fast path {other}" for name, one, other in found]


def _text(value: Any) -> str:
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def of_memory(memory: Memory, lanes: SharedMemory, lane: int) -> Iterator[Row]:
    """The granules of a lane that one of the two has anything in."""
    mine, other = store_granules(memory.store), _granules(lanes, lane)
    for index in sorted(mine.keys() | other.keys()):
        address = memory.base + (index << memory.format.granule_shift)
        yield f"memory at {address:#x}", tuple(mine.get(index, EMPTY)), tuple(other.get(index, EMPTY))


def _granules(memory: SharedMemory, lane: int) -> dict[int, Granule]:
    """The granules of a lane that are not empty, by index."""
    tags, halves = memory.tags[lane], memory.halves[lane]
    used = np.flatnonzero(tags | halves.any(axis=1)).tolist()
    return {index: Granule(bool(tags[index]), *reversed(halves[index].tolist())) for index in used}


def of_hart(who: str, hart: Hart, machine: Harts, place: int) -> Iterator[Row]:
    """All that a thread's hart holds."""
    yield f"{who} pc", hart.pc, int(machine.pc[place])
    for name in (*NUMBERS, "is_reserved"):
        if name != "reservation" or hart.is_reserved:
            column = machine.is_reserved if name == "is_reserved" else machine.numbers[name]
            yield f"{who} {name}", int(getattr(hart, name)), int(column[place])
    held = {f"c{register}": (hart.capability(register), register) for register in range(REGISTER_COUNT)}
    held |= {name: (getattr(hart, name), row) for name, row in SPECIAL_ROWS.items()}
    for name, (expected, row) in held.items():
        actual = lane_capability(machine, row, place)
        if expected != actual:
            yield f"{who} {name}", f"{describe(expected)} {expected.meta:#x}", f"{describe(actual)} {actual.meta:#x}"


# -- operands --------------------------------------------------------------------------------------------------------------

_SCALAR = (OperandKind.SPECIAL_REGISTER, OperandKind.STATUS_REGISTER, OperandKind.QUARTER, OperandKind.MASK)
"""Operands that are one number for all lanes."""


def as_fast(name: str, operands: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """An instruction's operands as the fast path takes them: immediates as arrays, modulo 2**64."""
    found: list[Any] = []
    for kind, value in zip(OPERATIONS[name].operands, operands, strict=True):
        as_it_is = kind in _SCALAR or kind.is_register or isinstance(value, np.ndarray)
        found.append(value if as_it_is else np.full(count, value & (1 << 64) - 1, np.uint64))
    return tuple(found)


def rows_of(operands: tuple[Any, ...], count: int) -> list[tuple[Any, ...]]:
    """Operands lane by lane, as the reference takes them; they are numbers, or arrays of one for each of so many lanes."""
    columns = [each.tolist() if isinstance(each, np.ndarray) else [each] * count for each in operands]
    return list(zip(*columns, strict=True)) or [()] * count
