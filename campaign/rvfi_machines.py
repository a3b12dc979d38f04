"""Machines that are told an instruction at a time and say what they did as RVFI does: the reference, and the fast path.

They are in TestRIG's reset state: c1 to c31, DDC, PCC, MTCC and MEPCC hold the root capability, PCC is at `START` in integer
mode, and there are `MEMORY_BYTES` of memory, all zero. What they report of an instruction is what the emulator generated
from the Sail model reports, registers read included, of which it says nothing.

Source: sail-cheri-riscv, cheri_regs.sail (ext_rvfi_init, wC); sail-riscv, model/riscv_mem.sail (rvfi_read, rvfi_write),
riscv_fetch_rvfi.sail, riscv_regs.sail (rvfi_wX).
"""

from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from capvisor.campaign.rvfi_dii import Execution, IntegerData, MemoryData
from capvisor.conformance.traces import MEMORY_BYTES, START
from capvisor.dsl.states import lane_capability
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.fastpath import memory as fast_memory
from capvisor.fastpath.machine import SPECIAL_ROWS, BatchMachine
from capvisor.fastpath.workspace import Flags, Words, Workspace
from capvisor.model import capability
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.capability import Capability
from capvisor.model.machine import PARCEL_BYTES, Hart
from capvisor.model.memory import Granule, Memory
from capvisor.spec.encodings import decode
from capvisor.spec.formats import CC128, CapabilityFormat, Permission
from capvisor.spec.operations import OPERATIONS, RESERVING, STORE_WIDTHS, Mode
from capvisor.spec.registers import PCC_INDEX, REGISTER_COUNT
from capvisor.spec.traps import CAUSES_BY_NAME, CHERI_EXCEPTION

assert _kernels and _rules

ACCESS_FAULTS = frozenset(CAUSES_BY_NAME[name].mcause for name in ("LoadAccessFault", "StoreAMOAccessFault"))
"""The causes that are found by memory, which reports the address then but no bytes."""

_LEFT_IN_SOURCE = frozenset(
    f"{where.prefix}sc.{letters}{where.suffix}"
    for where in RESERVING
    if where.suffix
    for letters in (*(width.letters for width in STORE_WIDTHS), "c")
)
"""Store-conditionals with explicit addressing, which say in the register that was stored whether it was."""

_CINVOKE_DATA = 31
"""The register into which CInvoke puts the data capability."""


class RvfiMachine(Protocol):
    """What executes instructions and says what it did."""

    def reset(self) -> None:
        """Go back to the reset state, memory included."""

    def execute(self, word: int) -> Execution:
        """Execute what a word encodes, and say what happened."""


# -- decoding --------------------------------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """An operation with its operands, and the register that RVFI calls the one that is written; 0 is none."""

    name: str
    operands: tuple[int, ...]
    written: int


@lru_cache(maxsize=1 << 16)
def decoded(word: int, xlen: int, mode: Mode) -> Decoded | None:
    """What a word encodes in a mode; None where it is nothing that is modelled."""
    found = decode(word, xlen, mode)
    return None if found is None else Decoded(*found, written_register(*found))


def written_register(name: str, operands: tuple[int, ...]) -> int:
    """The register that an operation writes, and of several the last one; 0 where it writes none."""
    kinds = OPERATIONS[name].operands
    if name == "cclear":
        quarter, mask = operands
        return 8 * quarter + mask.bit_length() - 1 if mask else 0
    if name == "cinvoke":
        return _CINVOKE_DATA
    return operands[0] if name in _LEFT_IN_SOURCE or (kinds and kinds[0].is_destination) else 0


def first_parcel_is_fetched(pcc: Capability, pc: int) -> bool:
    """Whether PCC lets an instruction's first half be fetched, which is enough for RVFI to know the instruction."""
    usable = pcc.tag and not pcc.is_sealed and pcc.permits(Permission.EXECUTE)
    return usable and capability.within_bounds(pcc, pc, PARCEL_BYTES)


def by_pcc(mcause: int, mtval: int) -> bool:
    """Whether the trap registers say that it was PCC that refused."""
    return mcause == CHERI_EXCEPTION and mtval >> 5 == PCC_INDEX


class _Access(NamedTuple):
    """A read or a write of memory."""

    address: int
    size_bytes: int
    value: int


def memory_data(read: _Access | None, written: _Access | None) -> MemoryData | None:
    """What RVFI says of the last read and the last write of an instruction."""
    if written is not None:
        mask = (1 << written.size_bytes) - 1
        if read is None:
            return MemoryData(written.address, wmask=mask, wdata=written.value)
        return MemoryData(written.address, (1 << read.size_bytes) - 1, read.value, mask, written.value)
    if read is not None:
        return MemoryData(read.address, (1 << read.size_bytes) - 1, read.value)
    return None


# -- the reference ---------------------------------------------------------------------------------------------------------


class _ReferenceMemory(Memory):
    """A memory that keeps the last access in each direction."""

    last_read: _Access | None = None
    last_write: _Access | None = None

    def read_granule(self, address: int) -> Granule:
        granule = super().read_granule(address)
        self.last_read = _Access(address, self.format.capability_bytes, self._word(granule))
        return granule

    def write_granule(self, address: int, granule: Granule) -> None:
        super().write_granule(address, granule)
        self.last_write = _Access(address, self.format.capability_bytes, self._word(granule))

    def read(self, address: int, size_bytes: int) -> int:
        value = super().read(address, size_bytes)
        self.last_read = _Access(address, size_bytes, value)
        return value

    def write(self, address: int, size_bytes: int, value: int) -> None:
        super().write(address, size_bytes, value)
        self.last_write = _Access(address, size_bytes, value & (1 << 8 * size_bytes) - 1)


class ReferenceRvfi:
    """A hart of the reference."""

    def __init__(self, fmt: CapabilityFormat = CC128) -> None:
        self.format = fmt
        self._ixl = fmt.address_width // 32
        self.reset()

    def reset(self) -> None:
        """Go back to the reset state, memory included."""
        fmt = self.format
        registers = [capability.null(fmt)] + [capability.root(fmt)] * (REGISTER_COUNT - 1)
        self._memory = _ReferenceMemory(fmt, START, MEMORY_BYTES)
        self.hart = Hart(self._memory, START, registers)
        self.hart.pcc = capability.root(fmt, START)
        self._retired = 0

    def execute(self, word: int) -> Execution:
        """Execute what a word encodes, and say what happened."""
        hart, memory = self.hart, self._memory
        pc, pcc, mode, order = hart.pc, hart.pcc, hart.privilege, self._retired
        found = decoded(word, self.format.address_width, Mode.CAPABILITY if pcc.flags else Mode.INTEGER)
        memory.last_read = memory.last_write = None
        trap = hart.step_word(word) if found is None else hart.step(found.name, found.operands)
        integer = data = None
        if trap is None:
            self._retired += 1
            if found is not None and found.written:
                integer = IntegerData(found.written, hart.registers[found.written].address)
            data = memory_data(memory.last_read, memory.last_write)
        else:
            if hart.mcause in ACCESS_FAULTS:
                data = MemoryData(hart.mtval)
            if by_pcc(hart.mcause, hart.mtval) and not first_parcel_is_fetched(pcc, pc):
                word = 0
        trapped = int(trap is not None)
        return Execution(order, pc, hart.pc, word, trapped, 0, 0, mode, self._ixl, 1, integer, data)


# -- the fast path ---------------------------------------------------------------------------------------------------------


class _FastMemory(fast_memory.Memory):
    """A memory of one lane that keeps the last access in each direction."""

    def block(self, start: int, stop: int) -> fast_memory.MemoryBlock:
        """The memory of the one lane."""
        assert (start, stop) == (0, 1)
        self.accesses = _FastBlock(self)
        return self.accesses


class _FastBlock(fast_memory.MemoryBlock):
    """The memory of one lane; where nothing is accessed because the lane is refused, what it keeps means nothing."""

    last_read: _Access | None = None
    last_write: _Access | None = None

    def __init__(self, memory: _FastMemory) -> None:
        super().__init__(memory, memory.tags, memory.halves, np.zeros(1, np.uint64))

    def _granule_word(self, upper: Words, lower: Words) -> int:
        return int(upper[0]) << self.format.address_width | int(lower[0])

    def read_granule(self, address: Words, ws: Workspace, tag: Flags, upper: Words, lower: Words) -> None:
        super().read_granule(address, ws, tag, upper, lower)
        self.last_read = _Access(int(address[0]), self.format.capability_bytes, self._granule_word(upper, lower))

    def write_granule(self, address: Words, tag: Flags, upper: Words, lower: Words, ws: Workspace, where: Flags) -> None:
        super().write_granule(address, tag, upper, lower, ws, where)
        if where[0]:
            self.last_write = _Access(int(address[0]), self.format.capability_bytes, self._granule_word(upper, lower))

    def read(self, address: Words, size_bytes: int, ws: Workspace, out: Words) -> None:
        super().read(address, size_bytes, ws, out)
        self.last_read = _Access(int(address[0]), size_bytes, int(out[0]))

    def write(self, address: Words, size_bytes: int, value: Words, ws: Workspace, where: Flags) -> None:
        super().write(address, size_bytes, value, ws, where)
        if where[0]:
            self.last_write = _Access(int(address[0]), size_bytes, int(value[0]) & (1 << 8 * size_bytes) - 1)


class FastRvfi:
    """A lane of the fast path."""

    def __init__(self, fmt: CapabilityFormat = CC128) -> None:
        self.format = fmt
        self._ixl = fmt.address_width // 32
        self.reset()

    def reset(self) -> None:
        """Go back to the reset state, memory included."""
        machine = self.machine = BatchMachine(self.format, START, MEMORY_BYTES, 1, memory_type=_FastMemory)
        machine.tags[1:REGISTER_COUNT] = True
        machine.metas[1:REGISTER_COUNT] = self.format.root_meta
        machine.addresses[SPECIAL_ROWS["pcc"]] = START
        machine.pc.fill(START)
        machine.pcc_changed(np.arange(1))
        assert isinstance(machine.memory, _FastMemory)
        self._accesses = machine.memory.accesses
        self._retired = 0

    def execute(self, word: int) -> Execution:
        """Execute what a word encodes, and say what happened."""
        machine, accesses, order = self.machine, self._accesses, self._retired
        pc, pcc = int(machine.pc[0]), lane_capability(machine, SPECIAL_ROWS["pcc"], 0)
        mode = int(machine.numbers["privilege"][0])
        found = decoded(word, self.format.address_width, Mode.CAPABILITY if pcc.flags else Mode.INTEGER)
        accesses.last_read = accesses.last_write = None
        if found is None:
            machine.step_words(np.array([word], np.uint32))
        else:
            machine.step(found.name, found.operands)
        trapped, integer, data = int(machine.cause[0] != 0), None, None
        if not trapped:
            self._retired += 1
            if found is not None and found.written:
                integer = IntegerData(found.written, int(machine.addresses[found.written, 0]))
            data = memory_data(accesses.last_read, accesses.last_write)
        else:
            mcause, mtval = int(machine.numbers["mcause"][0]), int(machine.numbers["mtval"][0])
            if mcause in ACCESS_FAULTS:
                data = MemoryData(mtval)
            if by_pcc(mcause, mtval) and not first_parcel_is_fetched(pcc, pc):
                word = 0
        return Execution(order, pc, int(machine.pc[0]), word, trapped, 0, 0, mode, self._ixl, 1, integer, data)


MACHINES: dict[str, type[ReferenceRvfi] | type[FastRvfi]] = {"reference": ReferenceRvfi, "fast": FastRvfi}
"""What can be served, by name."""
