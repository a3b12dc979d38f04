"""Watching a step: the state before it and after it, what it accessed in memory and which registers of the system it read.

What `spec.invariants` says is said of such a step, whether its values are numbers or stand for all of them.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, RegisterFile, Trap
from capvisor.model.memory import Granule, GranuleStore, Memory
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS, OperandKind, Operation
from capvisor.spec.registers import SPECIAL_REGISTERS, STATE_NUMBERS, SYSTEM_REGISTERS

SPECIAL = tuple(SPECIAL_REGISTERS)
"""The special capability registers, as the hart's attributes."""

NUMBERS = ("pc", *STATE_NUMBERS, "is_reserved", "reservation")
"""The numbers of a hart's state, as its attributes."""

_SYSTEM = frozenset(SYSTEM_REGISTERS)


class MemoryAccess(NamedTuple):
    """One access to memory: whether it stores, whether it is of a whole capability with its tag, where and how much."""

    is_store: bool
    is_capability: bool
    address: int
    size_bytes: int


class ObservedMemory(Memory):
    """A memory that records how it is accessed."""

    def __init__(self, fmt: CapabilityFormat, base: int, size_bytes: int, store: GranuleStore | None = None) -> None:
        super().__init__(fmt, base, size_bytes, store)
        self.accesses: list[MemoryAccess] = []

    def read_granule(self, address: int) -> Granule:
        self.accesses.append(MemoryAccess(False, True, address, self.format.capability_bytes))
        return super().read_granule(address)

    def write_granule(self, address: int, granule: Granule) -> None:
        self.accesses.append(MemoryAccess(True, True, address, self.format.capability_bytes))
        super().write_granule(address, granule)

    def read(self, address: int, size_bytes: int) -> int:
        self.accesses.append(MemoryAccess(False, False, address, size_bytes))
        return super().read(address, size_bytes)

    def write(self, address: int, size_bytes: int, value: int) -> None:
        self.accesses.append(MemoryAccess(True, False, address, size_bytes))
        super().write(address, size_bytes, value)


class ObservedHart(Hart):
    """A hart that records which registers of the system a rule reads or writes."""

    def __init__(self, memory: ObservedMemory, pc: int = 0, registers: RegisterFile | None = None) -> None:
        self.touched: set[str] = set()
        super().__init__(memory, pc, registers)
        self.accesses = memory.accesses

    def __getattribute__(self, name: str) -> Any:
        if name in _SYSTEM:
            self.touched.add(name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SYSTEM:
            self.touched.add(name)
        super().__setattr__(name, value)

    def enter_trap(self, trap: Trap) -> None:
        """As Hart.enter_trap, whose own use of registers isn't recorded."""
        touched = set(self.touched)
        super().enter_trap(trap)
        self.touched.clear()
        self.touched.update(touched)


class State:
    """A hart's whole state at one moment."""

    def __init__(self, hart: Hart) -> None:
        self.registers: RegisterFile = copy.copy(hart.registers)
        self.special: dict[str, Capability] = {name: vars(hart)[name] for name in SPECIAL}
        self.numbers: dict[str, Any] = {name: vars(hart)[name] for name in NUMBERS}
        memory = hart.memory
        self.memory = Memory(memory.format, memory.base, memory.size_bytes, copy.copy(memory.store))

    def granule(self, index: int) -> Capability:
        """The capability that a granule of memory holds; an index counts from the start of memory."""
        tag, upper, lower = self.memory.store.get(index)
        return capability.from_memory(self.memory.format, tag, upper, lower)


@dataclass(frozen=True)
class Step:
    """One step that was watched."""

    format: CapabilityFormat
    row: Operation
    operands: dict[OperandKind, Any]
    before: State
    after: State
    trap: Trap | None
    accesses: tuple[MemoryAccess, ...]
    touched: frozenset[str]
    """The registers of the system that were read or written, where it was completed."""

    @property
    def register_operands(self) -> Iterator[Any]:
        """The numbers of the registers that the operation names."""
        return (value for kind, value in self.operands.items() if kind.is_register)


def watch(hart: ObservedHart, name: str, operands: tuple[Any, ...]) -> Step:
    """Execute one operation and say what happened."""
    before = State(hart)
    hart.accesses.clear()
    hart.touched.clear()
    trap = hart.step(name, operands)
    row = OPERATIONS[name]
    named = dict(zip(row.operands, operands, strict=True))
    touched = frozenset(hart.touched)
    return Step(hart.format, row, named, before, State(hart), trap, tuple(hart.accesses), touched)
