"""The batch machine: many lanes, the fast twin of `model.machine`.

Every lane is a hart with registers and memory of its own. In lock step, one operation is executed in all lanes before the
next one; lanes may also diverge, each with an operation of its own, and are grouped by it. A lane in which an operation is
refused goes to its handler; the others go on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath import bounds, capability
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.memory import Memory, MemoryBlock
from capvisor.fastpath.workspace import BLOCK_LANES, Causes, Flags, Words, Workspace
from capvisor.spec.encodings import decode
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.operations import OPERATIONS, Group, Mode, OperandKind
from capvisor.spec.registers import (
    MSTATUS_MIE,
    MSTATUS_MPIE,
    MSTATUS_MPP,
    PCC_INDEX,
    REGISTER_COUNT,
    SPECIAL_REGISTERS,
)
from capvisor.spec.traps import CAUSES, CAUSES_BY_NAME

Kernel = Callable[..., None]
KERNELS: dict[str, Kernel] = {}
"""The kernel of each operation, by name; filled by `fastpath.isa`."""

Indices = NDArray[np.int64]
Register = int | Indices
"""A register's number: one for all lanes, or one a lane."""

SPECIAL_ROWS = {name: REGISTER_COUNT + place for place, name in enumerate(sorted(SPECIAL_REGISTERS))}
"""The rows of the special capability registers in the register arrays, behind c0 to c31."""

DDC, PCC, MTCC, MEPCC = (SPECIAL_ROWS[name] for name in ("ddc", "pcc", "mtcc", "mepcc"))
_SINK = REGISTER_COUNT + len(SPECIAL_ROWS)
"""The row that takes writes to c0."""

ROWS = _SINK + 1
NUMBERS = ("mstatus", "mscratch", "mcause", "mtval", "reservation")
"""The numbers of a hart's state beside pc, uint64 each; `is_reserved` is a truth value."""

CHANGE_PCC = ("cjalr", "jalr.cap", "cinvoke", "mret")
"""The operations that install another PCC."""

INSTRUCTION_BYTES, PARCEL_BYTES = 4, 2
_MCAUSE = np.zeros(64, np.uint64)
for _row in CAUSES:
    _MCAUSE[_row.number] = _row.mcause
_FETCH = {name: CAUSES_BY_NAME[name].number for name in ("TagViolation", "SealViolation", "PermitExecuteViolation")}
_LENGTH = CAUSES_BY_NAME["LengthViolation"].number

_SHAPING = (OperandKind.SPECIAL_REGISTER, OperandKind.STATUS_REGISTER, OperandKind.QUARTER, OperandKind.MASK)
"""Operands that decide what a kernel does: lanes are together only where these are equal."""


def operation(name: str) -> Callable[[Kernel], Kernel]:
    """Declare a function to be the kernel of the operation of that name.

    The function takes a block and the operands in the order of the operation's syntax: registers as the block takes them,
    immediates as ints or as arrays of one uint64 a lane.
    """
    if name not in OPERATIONS:
        raise KeyError(f"{name} has no row in spec/operations.py")

    def register(kernel: Kernel) -> Kernel:
        KERNELS[name] = kernel
        return kernel

    return register


class Block:
    """A run of neighbouring lanes that kernels work on at a time: views of the machine's arrays, and scratch."""

    def __init__(self, machine: "BatchMachine", start: int, stop: int, workspace: Workspace) -> None:
        self.format = machine.format
        self.start, self.stop = start, stop
        self.ws = workspace
        self.memory: MemoryBlock = machine.memory.block(start, stop)
        self.pc = machine.pc[start:stop]
        self.next_pc = machine.next_pc[start:stop]
        self.cause = machine.cause[start:stop]
        self.trap_value = machine.trap_value[start:stop]
        self.is_reserved = machine.is_reserved[start:stop]
        self._numbers = {name: machine.numbers[name][start:stop] for name in NUMBERS}
        self._rows = [
            Lanes(machine.tags[row, start:stop], machine.metas[row, start:stop], machine.addresses[row, start:stop])
            for row in range(ROWS)
        ]

    # -- registers -------------------------------------------------------------------------------------------------------

    def capability(self, register: Register) -> Lanes:
        """The capabilities in a register; c0 reads as NULL."""
        return self._rows[register]

    def capability_or_ddc(self, register: Register) -> Lanes:
        """The capabilities in a register, where the encoding of c0 means DDC."""
        return self._rows[register or DDC]

    def integer(self, register: Register) -> Words:
        """The integers in a register."""
        return self._rows[register].address

    def target(self, register: Register) -> Lanes:
        """Where the capabilities for a register are to be put; for c0 a place that is never read."""
        return self._rows[register or _SINK]

    def special(self, row: int) -> Lanes:
        """The capabilities in a special register, to be read or written in place."""
        return self._rows[row]

    def number(self, name: str) -> Words:
        """One of the numbers of a hart's state, to be read or written in place."""
        return self._numbers[name]

    # -- what follows from these -----------------------------------------------------------------------------------------

    def integer_target(self, register: Register) -> Words:
        """Where the integers for a register are to be put, after `make_integer`."""
        return self.target(register).address

    def write_integer(self, register: Register, values: Words) -> None:
        """Put integers, modulo 2**XLEN, in a register."""
        self.make_integer(register)
        target = self.integer_target(register)
        if self.format.address_width < 64:
            np.bitwise_and(values, self.format.address_mask, out=target)
        elif values is not target:
            np.copyto(target, values)

    def write_integer_where(self, register: Register, values: Words | int, where: Flags) -> None:
        """Put integers of XLEN bits in a register, in some lanes."""
        target = self.target(register)
        np.copyto(target.tag, False, where=where)
        np.copyto(target.meta, self.format.null_meta, where=where)
        np.copyto(target.address, values, where=where)

    def write_flag(self, register: Register, flags: Flags) -> None:
        """Put 1 in a register where the flag is set, else 0."""
        target = self.integer_target(register)
        np.copyto(target, flags)
        self.make_integer(register)

    def make_integer(self, register: Register) -> None:
        """Make a register hold integers: NULL but for its addresses. To be called when all sources have been read."""
        row = self.target(register)
        row.tag.fill(False)
        row.meta.fill(self.format.null_meta)

    # -- refusing --------------------------------------------------------------------------------------------------------

    def refuse(self, where: Flags, cause: str, value: Words | int) -> None:
        """Refuse some lanes for a cause that isn't a capability's, with what mtval is to hold.

        Checks are made from the last in the architecture's order to the first: the one that is made last counts.
        """
        np.copyto(self.cause, CAUSES_BY_NAME[cause].number, where=where)
        np.copyto(self.trap_value, value, where=where)

    def refuse_by(self, where: Flags, cause: str, register: Register) -> None:
        """Refuse some lanes for a capability's cause, by the register of that number."""
        self.refuse(where, cause, trap_register(register) | CAUSES_BY_NAME[cause].capability_cause)

    def refuse_unless(self, passed: Flags, cause: str, register: Register) -> None:
        """Refuse the lanes in which a check of a capability has not been passed. Spoils `passed`."""
        np.logical_not(passed, out=passed)
        self.refuse_by(passed, cause, register)

    def completed(self, out: Flags) -> Flags:
        """out = the lanes that no check has refused."""
        np.equal(self.cause, 0, out=out)
        return out


def trap_register(register: Register) -> Any:
    """A register's number as it stands in a trap value."""
    return register << 5 if isinstance(register, int) else (register << 5).view(np.uint64)


class Selection(Block):
    """Some lanes of a machine, anywhere: kernels work on copies, which `put_back` writes back.

    Registers may be named by one number for all lanes or by one a lane.
    """

    def __init__(self, machine: "BatchMachine", lanes: Indices, workspace: Workspace) -> None:
        self.format, self.ws = machine.format, workspace
        self._machine, self.lanes = machine, lanes
        self.memory = machine.memory.selection(lanes)
        self.pc, self.next_pc = machine.pc[lanes], machine.next_pc[lanes]
        self.cause, self.trap_value = np.zeros(len(lanes), np.uint8), machine.trap_value[lanes]
        self._flat = machine.tags.reshape(-1), machine.metas.reshape(-1), machine.addresses.reshape(-1)
        self._targets: list[tuple[Indices, Lanes]] = []
        self._held: dict[tuple[int, str], Any] = {}
        self._reserved: Flags | None = None

    def _where(self, register: Register, instead: int) -> Indices:
        """Where a register lies in the flat arrays, another row instead of c0's."""
        if isinstance(register, int):
            return (register or instead) * self._machine.lanes + self.lanes
        return np.where(register == 0, instead, register) * self._machine.lanes + self.lanes

    def _gather(self, where: Indices) -> Lanes:
        tags, metas, addresses = self._flat
        return Lanes(tags.take(where), metas.take(where), addresses.take(where))

    def capability(self, register: Register) -> Lanes:
        return self._gather(self._where(register, 0))

    def capability_or_ddc(self, register: Register) -> Lanes:
        return self._gather(self._where(register, DDC))

    def integer(self, register: Register) -> Words:
        return self._flat[2].take(self._where(register, 0))

    def target(self, register: Register) -> Lanes:
        key = id(register) if not isinstance(register, int) else register, "target"
        if key not in self._held:
            where = self._where(register, _SINK)
            self._held[key] = self._gather(where)
            self._targets.append((where, self._held[key]))
        target: Lanes = self._held[key]
        return target

    def special(self, row: int) -> Lanes:
        return self.target(row)

    def number(self, name: str) -> Words:
        key = 0, name
        if key not in self._held:
            self._held[key] = self._machine.numbers[name][self.lanes]
        number: Words = self._held[key]
        return number

    @property
    def is_reserved(self) -> Flags:  # type: ignore[override]
        """Whether an address is reserved, to be read or written in place."""
        if self._reserved is None:
            self._reserved = self._machine.is_reserved[self.lanes]
        return self._reserved

    def put_back(self) -> None:
        """Write what kernels have changed to the machine."""
        machine = self._machine
        for where, lanes in self._targets:
            for flat, values in zip(self._flat, lanes, strict=True):
                flat[where] = values
        for (_register, name), values in self._held.items():
            if name != "target":
                machine.numbers[name][self.lanes] = values
        if self._reserved is not None:
            machine.is_reserved[self.lanes] = self._reserved
        machine.cause[self.lanes], machine.trap_value[self.lanes] = self.cause, self.trap_value
        machine.next_pc[self.lanes] = self.next_pc


class BatchMachine:
    """`lanes` harts with memory from `memory_base`, reset as the reference's are.

    `tags`, `metas` and `addresses` are [ROWS, lanes]: registers 0 to 31, the special registers (`SPECIAL_ROWS`) and a row
    without meaning. `pc`, `numbers` by name (`NUMBERS`) and `is_reserved` are the rest of a hart's state. After a step,
    `cause` holds the cause numbers of `spec.traps` by lane, 0 where the operation was completed, and `trap_value` what mtval
    got where it was not. Who writes PCC from outside must call `pcc_changed`.

    Raises MemoryError where the machine that this runs on can't hold it.
    """

    def __init__(
        self, fmt: CapabilityFormat, memory_base: int, memory_bytes: int, lanes: int, block_lanes: int = BLOCK_LANES
    ) -> None:
        self.format = fmt
        self.lanes = lanes
        self.tags = np.zeros((ROWS, lanes), np.bool_)
        self.metas = np.full((ROWS, lanes), fmt.null_meta, np.uint64)
        self.addresses = np.zeros((ROWS, lanes), np.uint64)
        for name, row in SPECIAL_ROWS.items():
            if SPECIAL_REGISTERS[name].resets_to_root:
                self.tags[row], self.metas[row] = True, fmt.root_meta
        self.pc, self.next_pc = np.zeros(lanes, np.uint64), np.zeros(lanes, np.uint64)
        self.numbers: dict[str, Words] = {name: np.zeros(lanes, np.uint64) for name in NUMBERS}
        self.numbers["mstatus"].fill(MSTATUS_MPP)
        self.is_reserved: Flags = np.zeros(lanes, np.bool_)
        self.cause: Causes = np.zeros(lanes, np.uint8)
        self.trap_value = np.zeros(lanes, np.uint64)
        self.memory = Memory(fmt, memory_base, memory_bytes, lanes)
        # Where instructions may be fetched: nowhere for the cause, if it isn't 0; else at pcs from start to start + span.
        self._fetch_cause: Causes = np.zeros(lanes, np.uint8)
        self._start, self._span = np.zeros(lanes, np.uint64), np.full(lanes, fmt.address_mask, np.uint64)
        self._block_lanes = block_lanes
        self._workspace = Workspace(min(lanes, block_lanes))
        starts = range(0, lanes, block_lanes)
        stops = [min(start + block_lanes, lanes) for start in starts]
        self._blocks = [
            Block(self, start, stop, self._workspace.narrowed(stop - start))
            for start, stop in zip(starts, stops, strict=True)
        ]

    def capability(self, register: int) -> Lanes:
        """The capabilities in a register of all lanes, as views."""
        return Lanes(self.tags[register], self.metas[register], self.addresses[register])

    # -- lock step -------------------------------------------------------------------------------------------------------

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        """Execute one operation of the table in every lane, its operands in the order of its syntax.

        Immediates (the value of `li` among them) may be arrays of one uint64 a lane instead of ints.
        """
        kernel, row = KERNELS[name], OPERATIONS[name]
        jumps, leaves = may_jump(name), name in CHANGE_PCC
        self.cause.fill(0)
        for block in self._blocks:
            own = tuple(each[block.start : block.stop] if isinstance(each, np.ndarray) else each for each in operands)
            if self._may_fetch(block.start, block.stop, block.ws):
                if jumps:
                    self._advance(block.pc, block.next_pc)
                kernel(block, *own)
                if not jumps and not (row.traps and block.cause.any()):
                    self._advance(block.pc, block.pc)
                    continue
                if not jumps:
                    self._advance(block.pc, block.next_pc)
            else:
                self._step_where_fetched(block, kernel, own)
            self._commit(np.arange(block.start, block.stop), leaves=leaves)

    def _advance(self, pc: Words, out: Words) -> None:
        """out = the address of the next instruction."""
        np.add(pc, INSTRUCTION_BYTES, out=out)
        if self.format.address_width < 64:
            np.bitwise_and(out, self.format.address_mask, out=out)

    def _may_fetch(self, start: int, stop: int, ws: Workspace) -> bool:
        """Whether PCC authorises the instruction in all of these lanes."""
        distance, within = ws.isa[0], ws.isa_flags[0]
        np.subtract(self.pc[start:stop], self._start[start:stop], out=distance)
        np.less_equal(distance, self._span[start:stop], out=within)
        return bool(within.all()) and not self._fetch_cause[start:stop].any()

    def _step_where_fetched(self, block: Block, kernel: Kernel, operands: tuple[Any, ...]) -> None:
        """Execute an operation in those lanes of a block that may fetch it, and refuse it in the others."""
        lanes = np.arange(block.start, block.stop)
        fetched = self._fetch(lanes)
        chosen = np.flatnonzero(fetched)
        if len(chosen):
            own = tuple(each[chosen] if isinstance(each, np.ndarray) else each for each in operands)
            self._execute(kernel, lanes[chosen], own)

    def _fetch(self, lanes: Indices) -> Flags:
        """Where PCC authorises the instruction; elsewhere the refusal is recorded, and pc + 4 is the next pc everywhere."""
        pc, cause = self.pc[lanes], self._fetch_cause[lanes]
        outside = (pc - self._start[lanes] > self._span[lanes]) & (cause == 0)
        cause[outside] = _LENGTH
        self.cause[lanes] = cause
        self.trap_value[lanes] = np.uint64(PCC_INDEX << 5) | cause
        self.next_pc[lanes] = pc + np.uint64(INSTRUCTION_BYTES) & np.uint64(self.format.address_mask)
        fetched: Flags = cause == 0
        return fetched

    def _execute(self, kernel: Kernel, lanes: Indices, operands: tuple[Any, ...]) -> None:
        """Execute an operation in some lanes, in pieces of a block's size."""
        for start in range(0, len(lanes), self._block_lanes):
            part = slice(start, start + self._block_lanes)
            own = tuple(each[part] if isinstance(each, np.ndarray) else each for each in operands)
            selection = Selection(self, lanes[part], self._workspace.narrowed(len(lanes[part])))
            kernel(selection, *own)
            selection.put_back()

    def _commit(self, lanes: Indices, *, leaves: bool) -> None:
        """Go to the next pc where an operation was completed, perhaps leaving PCC; to the handler where it was refused."""
        cause = self.cause[lanes]
        refused = lanes[cause != 0]
        if len(refused):
            completed = lanes[cause == 0]
            self.pc[completed] = self.next_pc[completed]
            self._enter_trap(refused)
            self.pcc_changed(refused)
        else:
            completed = lanes
            self.pc[lanes] = self.next_pc[lanes]
        if leaves and len(completed):
            self.pcc_changed(completed)

    # -- divergence ------------------------------------------------------------------------------------------------------

    def step_divergent(self, names: Sequence[str], chosen: NDArray[np.integer[Any]], operands: Indices) -> None:
        """Execute in each lane an operation of its own.

        `chosen` is [lanes], the index in `names` of each lane's operation; `operands` is int64[lanes, 3], its operands in
        the order of the syntax, columns that it doesn't have being ignored. A 64-bit value of `li` is taken as its bits.
        """
        self._diverge(names, chosen.astype(np.int64), operands)

    def _diverge(self, names: Sequence[str], chosen: Indices, operands: Indices) -> None:
        """As `step_divergent`; an index of -1 is no operation, and refused as an illegal instruction."""
        lanes = np.arange(self.lanes)
        fetched = self._fetch(lanes)
        keys = chosen << 16
        for index, name in enumerate(names):
            shaping = [column for column, kind in enumerate(OPERATIONS[name].operands) if kind in _SHAPING]
            if shaping:
                mine = chosen == index
                shape = operands[mine][:, shaping]
                keys[mine] |= shape[:, 0] << 8 | shape[:, -1] if len(shaping) == 2 else shape[:, 0]
        keys[~fetched] = -1 << 32
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        edges = np.flatnonzero(np.diff(sorted_keys)) + 1
        groups = zip([0, *edges.tolist()], [*edges.tolist(), self.lanes], strict=True)
        jumped = []
        for first, last in groups:
            together = order[first:last]
            index = int(sorted_keys[first]) >> 16
            if index >= 0:
                name = names[index]
                self._execute(KERNELS[name], together, operands_of(name, operands[together]))
                if name in CHANGE_PCC:
                    jumped.append(together)
            elif index == -1:
                self.cause[together] = CAUSES_BY_NAME["IllegalInstruction"].number
                self.trap_value[together] = 0
        self._commit(lanes, leaves=False)
        if jumped:
            self.pcc_changed(np.concatenate(jumped))

    def step_words(self, words: NDArray[np.uint32]) -> None:
        """Execute in each lane the instruction that its word encodes in the mode that its PCC is in. `words` is [lanes]."""
        shift, mask = np.uint64(self.format.flags.low), np.uint64(self.format.flags.mask)
        modes = (self.metas[PCC] >> shift & mask).astype(np.int64)
        distinct, which = np.unique(modes << 32 | words, return_inverse=True)
        names: dict[str, int] = {}
        chosen, operands = np.full(len(distinct), -1, np.int64), np.zeros((len(distinct), 3), np.int64)
        for place, number in enumerate(distinct.tolist()):
            mode = Mode.CAPABILITY if number >> 32 == 1 else Mode.INTEGER
            found = decode(number & 0xFFFF_FFFF, self.format.address_width, mode)
            if found is not None:
                name, values = found
                chosen[place] = names.setdefault(name, len(names))
                operands[place, : len(values)] = values
        self._diverge(list(names), chosen[which], operands[which])

    # -- PCC and traps ---------------------------------------------------------------------------------------------------

    def pcc_changed(self, lanes: Indices) -> None:
        """See anew what the PCC of some lanes authorises."""
        for start in range(0, len(lanes), self._block_lanes):
            self._pcc_changed(lanes[start : start + self._block_lanes])

    def _pcc_changed(self, lanes: Indices) -> None:
        fmt, ws = self.format, self._workspace.narrowed(len(lanes))
        tag, meta, address = self.tags[PCC, lanes], self.metas[PCC, lanes], self.addresses[PCC, lanes]
        base, top, high, flag = ws.isa[0], ws.isa[1], ws.isa_flags[0], ws.isa_flags[1]
        bounds.decode_bounds(fmt, meta, address, ws, base, top, high)
        # An instruction is two parcels of two bytes, each of which must be in bounds; the second may be at address 0.
        space = fmt.address_width
        everywhere = high & (base == 0)
        # The last pc is four bytes below the top, or below the end of the address space.
        end = np.where(high, np.uint64(0), top)
        span = end - base - np.uint64(INSTRUCTION_BYTES)
        length = np.where(high, ~base if space == 64 else np.uint64(fmt.address_mask) - base, top - base - np.uint64(1))
        if space < 64:
            span &= np.uint64(fmt.address_mask)
        holds_one = np.where(high, True, top > base) & (length >= np.uint64(INSTRUCTION_BYTES - 1))
        self._start[lanes] = base
        self._span[lanes] = np.where(everywhere, np.uint64(fmt.address_mask), span)
        cause = np.where(holds_one, 0, _LENGTH).astype(np.uint8)
        capability.permits(fmt, meta, Permission.EXECUTE, ws, flag)
        cause[~flag] = _FETCH["PermitExecuteViolation"]
        capability.is_unsealed(fmt, meta, ws, flag)
        cause[~flag] = _FETCH["SealViolation"]
        cause[~tag] = _FETCH["TagViolation"]
        self._fetch_cause[lanes] = cause

    def _enter_trap(self, lanes: Indices) -> None:
        """Go to the handler in some lanes, in which `cause` and `trap_value` say why."""
        for start in range(0, len(lanes), self._block_lanes):
            self._enter_trap_in(lanes[start : start + self._block_lanes])

    def _enter_trap_in(self, lanes: Indices) -> None:
        numbers, pc = self.numbers, self.pc[lanes]
        numbers["mcause"][lanes] = _MCAUSE[self.cause[lanes]]
        numbers["mtval"][lanes] = self.trap_value[lanes]
        enabled = numbers["mstatus"][lanes] & np.uint64(MSTATUS_MIE) != 0
        numbers["mstatus"][lanes] = np.where(enabled, np.uint64(MSTATUS_MPP | MSTATUS_MPIE), np.uint64(MSTATUS_MPP))
        self.is_reserved[lanes] = False
        pcc = Lanes(self.tags[PCC, lanes], self.metas[PCC, lanes], self.addresses[PCC, lanes])
        tag = np.empty(len(lanes), np.bool_)
        pcc_at(self.format, pcc, pc, self._workspace.narrowed(len(lanes)), tag)
        self.tags[MEPCC, lanes], self.metas[MEPCC, lanes], self.addresses[MEPCC, lanes] = tag, pcc.meta, pc
        for array in (self.tags, self.metas, self.addresses):
            array[PCC, lanes] = array[MTCC, lanes]
        self.pc[lanes] = self.addresses[MTCC, lanes] & np.uint64(self.format.address_mask - 3)


def may_jump(name: str) -> bool:
    """Whether an operation may set the next pc."""
    return OPERATIONS[name].group is Group.CONTROL or name == "mret"


def pcc_at(fmt: CapabilityFormat, pcc: Lanes, address: Words, ws: Workspace, tag: Flags) -> None:
    """tag = the tag of PCC with another address: untagged where its bounds would change, or it is sealed and moved."""
    unmoved = ws.capability_flags[0]
    bounds.address_keeps_bounds(fmt, pcc.meta, pcc.address, address, ws, tag)
    np.logical_and(tag, pcc.tag, out=tag)
    capability.is_unsealed(fmt, pcc.meta, ws, unmoved)
    same = ws.capability_flags[1]
    np.equal(pcc.address, address, out=same)
    np.logical_or(unmoved, same, out=unmoved)
    np.logical_and(tag, unmoved, out=tag)


def operands_of(name: str, columns: Indices) -> tuple[Any, ...]:
    """The operands of one operation from the columns of its lanes: registers, immediates, or one number for all."""
    found: list[Any] = []
    for column, kind in enumerate(OPERATIONS[name].operands):
        if kind in _SHAPING:
            found.append(int(columns[0, column]))
        elif kind.is_register:
            found.append(np.ascontiguousarray(columns[:, column]))
        else:
            found.append(np.ascontiguousarray(columns[:, column]).view(np.uint64))
    return tuple(found)
