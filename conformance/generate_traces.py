"""Golden instruction traces from the reference, for testing other implementations.

Programs are drawn as those of the Sail model's traces are: capabilities over a little memory are made first, so that most
instructions are completed; what is refused is followed by reading mtval and mcause; at the end c1 to c8 are read in full.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from capvisor.conformance.machines import ReferenceMachine
from capvisor.conformance.traces import MEMORY_BYTES, START, Program, Step
from capvisor.model.capability import Capability, within_bounds
from capvisor.spec.encodings import encode, encodings
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS, Group, OperandKind, Operation
from capvisor.spec.registers import SPECIAL_NUMBERS, STATUS_NUMBERS

BODY_STEPS = (16, 40)
"""Fewest and most drawn operations of a program; some of them take several instructions."""

_AREA = START + 0x4000
"""Where the memory begins that capabilities are made for."""

# Registers, as the Sail model's traces use them.
_MEMORY_CAPABILITIES, _AUTHORITY, _CAPABILITIES = (1, 2, 3, 4, 5, 6, 8), 7, range(1, 9)
_BASE, _INTEGERS, _SECOND, _LAST = 9, range(9, 13), 30, 31

_OFFSETS = (0, 0, 0x10, 0x20, 0x40, 0x100, 0x7F0)
_LENGTHS = (0x10, 0x20, 0x40, 0x64, 0x100, 0x7FF)
_IMMEDIATES = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 0xF, 0x10, 0x11, 0x18, 0x1F, 0x20, 0x30, 0x3F, 0x40, 0x64, 0x80, 0xFF, 0x100, 0x3E8),
    *(0x400, 0x7F0, 0x7FD, 0x7FF, -1, -2, -8, -16, -64),
)
_UPPER = (1, 2, 0x10, 0x80, 0x100, 0x7FFFF, 0x80000, 0x80004, 0xFFFFF)
_GROUPS = {
    Group.INSPECTION: 16,
    Group.ARITHMETIC: 28,
    Group.SEALING: 10,
    Group.COMPARISON: 8,
    Group.LOAD: 13,
    Group.STORE: 13,
    Group.ATOMIC: 4,
    Group.INTEGER: 10,
    Group.CONTROL: 4,
    Group.SYSTEM: 4,
}
"""How often operations of each group are drawn, relative to each other."""


def generate_traces(
    fmt: CapabilityFormat, programs: int, seed: int, progress: Callable[[int], None] = lambda programs: None
) -> Iterator[Program]:
    """The traces of some programs. Program n is the same for the same seed, however many are asked for."""
    for number in range(programs):
        yield _Writer(fmt, np.random.default_rng([seed, number])).program()
        progress(1)


class _Writer:
    """Writes one program while executing it, so that what is drawn next can look at the machine."""

    def __init__(self, fmt: CapabilityFormat, rng: np.random.Generator) -> None:
        self.fmt, self.rng, self.xlen = fmt, rng, fmt.address_width
        self.machine = ReferenceMachine(fmt)
        self.steps: list[Step] = []

    def program(self) -> Program:
        self._make_capabilities()
        self._make_integers()
        for _ in range(int(self.rng.integers(BODY_STEPS[0], BODY_STEPS[1] + 1))):
            if self._is_lost():
                break
            self._draw()
        for register in _CAPABILITIES:
            self._do("cgethigh", _LAST, register)
            self._do("cgettag", _LAST, register)
        return tuple(self.steps)

    # -- drawing ---------------------------------------------------------------------------------------------------------

    def _choice(self, values: Sequence[int]) -> int:
        return int(values[int(self.rng.integers(len(values)))])

    def _once_in(self, times: int) -> bool:
        return not self.rng.integers(times)

    def _is_lost(self) -> bool:
        """Whether neither PCC nor the trap handler's authorises any instruction any more."""
        return len(self.steps) > 1 and all(step.assembly is None for step in self.steps[-2:])

    def _do(self, name: str, *operands: int) -> bool:
        """Execute one operation; whether it was completed."""
        step = self.machine.step(encode(name, operands, self.xlen)).step
        self.steps.append(step)
        return not step.trapped

    def _try(self, name: str, *operands: int) -> None:
        """Execute one operation, and read why, if it is refused."""
        if not self._do(name, *operands):
            self._do("csrrs", _LAST, STATUS_NUMBERS["mtval"], 0)
            self._do("csrrs", _SECOND, STATUS_NUMBERS["mcause"], 0)

    # -- the beginning ---------------------------------------------------------------------------------------------------

    def _make_address(self, register: int, offset: int = 0) -> None:
        """Let a register hold an address in the area that capabilities are for."""
        self._do("lui", register, _AREA >> 12)
        if self.xlen == 64:
            self._do("slli", register, register, 32)
            self._do("srli", register, register, 32)
        if offset:
            self._do("addi", register, register, offset)

    def _make_capabilities(self) -> None:
        self._make_address(_BASE)
        for register in _MEMORY_CAPABILITIES:
            self._do("csetaddr", register, register, _BASE)
            if not self._once_in(3):
                self._do("cincoffsetimm", register, register, self._choice(_OFFSETS))
            if not self._once_in(5):
                self._do("csetboundsimm", register, register, self._choice(_LENGTHS))
        self._do("addi", _INTEGERS[1], 0, self._choice(range(9)))
        self._do("csetaddr", _AUTHORITY, _AUTHORITY, _INTEGERS[1])
        if self._once_in(3):
            self._do("csetboundsimm", _AUTHORITY, _AUTHORITY, self._choice((1, 4, 8)))
        if self._once_in(2):
            self._do("cseal", self._choice((5, 6)), self._choice((1, 2)), _AUTHORITY)

    def _make_integers(self) -> None:
        for register in _INTEGERS:
            self._make_integer(register)

    def _make_integer(self, register: int) -> None:
        if self._once_in(5):
            self._do("lui", register, self._choice(_UPPER))
            return
        number = self._choice(_IMMEDIATES) if self.rng.integers(4) else int(self.rng.integers(-2048, 2048))
        self._do("addi", register, 0, number)
        if self._once_in(2):
            self._do(("slli", "srli")[int(self.rng.integers(2))], register, register, int(self.rng.integers(self.xlen)))

    # -- the body --------------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        if self._once_in(12):
            self._make_integer(self._choice(_INTEGERS))
            return
        if self._once_in(50):
            self._invoke()
            return
        if self._once_in(100):
            self._run_out_of_bounds()
            return
        row = self._operation()
        base = row.operands[-1] if row.group in (Group.LOAD, Group.STORE, Group.ATOMIC) else None
        if base is OperandKind.INTEGER_SOURCE_1 and not self._once_in(3):
            register = self._choice(_INTEGERS)
            self._make_address(register, self._choice(_OFFSETS))
            self._try(row.name, *self._operands(row, register))
        elif base is OperandKind.CAPABILITY_SOURCE_1 and self._once_in(2):
            usable = [register for register in _CAPABILITIES if self._is_usable(self.machine.capability(register))]
            self._try(row.name, *self._operands(row, self._choice(usable) if usable else None))
        else:
            self._try(row.name, *self._operands(row, None))

    def _operation(self) -> Operation:
        """An operation that the machine has in its mode."""
        weights = np.array(list(_GROUPS.values()))
        group = list(_GROUPS)[int(self.rng.choice(len(weights), p=weights / weights.sum()))]
        mode = self.machine.mode
        rows = [
            row
            for row in OPERATIONS.values()
            if row.group is group and row.name in encodings(self.xlen) and row.mode in (None, mode)
        ]
        return rows[int(self.rng.integers(len(rows)))]

    def _is_usable(self, cap: Capability) -> bool:
        """Whether a capability could authorise an access of a capability's size at its address."""
        size = self.fmt.capability_bytes
        in_memory = START <= cap.address <= START + MEMORY_BYTES - size
        return cap.tag and not cap.is_sealed and in_memory and within_bounds(cap, cap.address, size)

    def _operands(self, row: Operation, base: int | None) -> tuple[int, ...]:
        """Operands of an operation, the last being `base`, if it is given: accesses are mostly at its very address."""
        operands = [self._operand(kind) for kind in row.operands]
        if base is not None:
            operands[-1] = base
            if row.has_address_syntax:
                operands[-2] = self._choice((0, 0, 0, self.fmt.capability_bytes, 1))
        return tuple(operands)

    def _operand(self, kind: OperandKind) -> int:
        if kind.is_capability:
            return 0 if self._once_in(20) else self._choice(_INTEGERS if self._once_in(10) else _CAPABILITIES)
        if kind.is_register:
            return self._choice(_CAPABILITIES if self._once_in(5) else _INTEGERS)
        if kind is OperandKind.SPECIAL_REGISTER and not self._once_in(20):
            return self._choice(list(SPECIAL_NUMBERS.values()))
        if kind is OperandKind.STATUS_REGISTER and not self._once_in(20):
            return self._choice(list(STATUS_NUMBERS.values()))
        if kind is OperandKind.UPPER_IMMEDIATE:
            return self._choice(_UPPER)
        low, high = kind.immediate_range(self.xlen)
        number = self._choice([each for each in _IMMEDIATES if low <= each <= high])
        return number - number % kind.alignment

    def _run_out_of_bounds(self) -> None:
        """A jump to code of two instructions, and one more."""
        code = self._choice((5, 6))
        self._do("cspecialrw", code, SPECIAL_NUMBERS["pcc"], 0)
        self._do("csetboundsimm", code, code, 8)
        if self._do("jalr.cap", _LAST, code):
            for _ in range(3):
                self._do("addi", _SECOND, 0, 1)

    def _invoke(self) -> None:
        """A sealed pair of code and data, made for CInvoke."""
        code, data, authority, number = 5, 6, 8, self._choice(_INTEGERS)
        self._do("cspecialrw", code, SPECIAL_NUMBERS["pcc"], 0)
        self._do("cmove", data, self._choice((1, 2, 3, 4)))
        self._do("addi", number, 0, -3)  # all permissions but Execute
        self._do("candperm", data, data, number)
        self._do("addi", number, 0, 3)
        self._do("cspecialrw", authority, SPECIAL_NUMBERS["ddc"], 0)
        self._do("csetaddr", authority, authority, number)
        self._do("cseal", code, code, authority)
        self._do("cseal", data, data, authority)
        self._try("cinvoke", code, data)
