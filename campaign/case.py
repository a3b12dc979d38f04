"""A case: one concrete program of a campaign, on a machine after reset. It is a program of the language, and back."""

from dataclasses import dataclass, replace

from capvisor.dsl import syntax
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import memory_of
from capvisor.dsl.printer import instruction
from capvisor.dsl.runner import operand_value
from capvisor.dsl.syntax import Instruction, Integer, Program
from capvisor.model import capability
from capvisor.model.machine import Hart
from capvisor.model.memory import Memory
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.operations import OPERATIONS

Operation = tuple[str, tuple[int, ...]]
"""An operation of the table and its operands in the order of its syntax."""

MEMORY_BASE = 0x8000_0000
MEMORY_GRANULES = 32
"""Where the memory of a campaign's machine is, and how many granules it has: few, so that accesses meet."""

ROOTS = (1,)
"""The registers of a campaign's machine that hold the root capability at the start; the others hold NULL."""


@dataclass(frozen=True)
class Case:
    """A machine, by its format, memory and roots, and the operations that it is told to execute, one after the other."""

    format: str
    operations: tuple[Operation, ...]
    memory_base: int = MEMORY_BASE
    memory_bytes: int = -1
    """Below 0, as much as a campaign's machine has."""
    roots: tuple[int, ...] = ROOTS

    def __post_init__(self) -> None:
        if self.memory_bytes < 0:
            object.__setattr__(self, "memory_bytes", MEMORY_GRANULES * self.capability_format.capability_bytes)

    @property
    def capability_format(self) -> CapabilityFormat:
        return FORMATS[self.format]

    def hart(self) -> Hart:
        """The reference's hart in the case's state at the start."""
        hart = Hart(Memory(self.capability_format, self.memory_base, self.memory_bytes))
        for register in self.roots:
            hart.write(register, capability.root(self.capability_format))
        return hart

    def with_operations(self, operations: tuple[Operation, ...]) -> "Case":
        """The same machine, told something else."""
        return replace(self, operations=operations)


def to_program(case: Case, source: str = "<case>") -> Program:
    """The case as a program of the language, without expectations."""
    base, size = Integer(hex(case.memory_base)), Integer(hex(case.memory_bytes))
    machine = syntax.Machine(case.format, base, size, case.roots)
    lines = [syntax.Line(machine), *(syntax.Line(instruction(*each)) for each in case.operations)]
    return Program(tuple(lines), source)


def from_program(program: Program, values: dict[str, int] | None = None) -> Case:
    """The operations of a checked program, with its expectations and assertions left out.

    Raises ProgramError where it says `given`: a case starts at reset.
    """
    for initial in program.initials:
        message = "a campaign's program starts at reset, and can't have `given` registers"
        raise ProgramError(message, initial.position, program.source, program.text)
    environment = _Values(values or {})
    operations = []
    for statement in program.statements:
        if isinstance(statement, Instruction):
            kinds = OPERATIONS[statement.name].operands
            pairs = zip(kinds, statement.operands, strict=True)
            operations.append((statement.name, tuple(int(operand_value(kind, each, environment)) for kind, each in pairs)))
    base, size = memory_of(program)
    return Case(program.machine.format, tuple(operations), base, size, program.machine.roots)


class _Values:
    """The environment of operands: names only."""

    def __init__(self, values: dict[str, int]) -> None:
        self._values = values

    def name(self, name: str) -> int:
        return self._values[name]

    def register(self, number: int) -> int:
        raise LookupError(number)

    def field(self, register: int, name: str) -> int:
        raise LookupError(name)
