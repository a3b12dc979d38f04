"""The batch machine: many lanes, the fast twin of `model.machine`.

Every lane is a hart with registers and memory of its own. In lock step, one operation is executed in all lanes before the
next one; lanes may also diverge, each with an operation of its own, and are grouped by it. A lane in which an operation is
refused goes to its handler; the others go on.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath import bounds, capability
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.memory import Memory, MemoryBlock
from capvisor.fastpath.workspace import BLOCK_LANES, Causes, Flags, Words, Workspace
from capvisor.spec.encodings import COMPRESSED, decode
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.operations import OPERATIONS, Group, Mode, OperandKind
from capvisor.spec.registers import (
    MPP_SHIFT,
    MSTATUS_MIE,
    MSTATUS_MPIE,
    MSTATUS_MPP,
    PCC_INDEX,
    REGISTER_COUNT,
    SPECIAL_REGISTERS,
    STATE_NUMBERS,
    Privilege,
)
from capvisor.spec.traps import CAUSES_BY_NAME, CHERI_EXCEPTION, OTHER_CAUSE

Kernel = Callable[..., None]
KERNELS: dict[str, Kernel] = {}
"""The kernel of each operation, by name; filled by `fastpath.isa`."""

Indices = NDArray[np.int64]
Register = int | Indices
"""A register's number: one for all lanes, or one a lane."""

SPECIAL_ROWS = {name: REGISTER_COUNT + place for place, name in enumerate(sorted(SPECIAL_REGISTERS))}
"""The rows of the special capability registers in the register arrays, behind c0 to c31."""

DDC, PCC, MTCC, MEPCC, SEPCC = (SPECIAL_ROWS[name] for name in ("ddc", "pcc", "mtcc", "mepcc", "sepcc"))
_SINK = REGISTER_COUNT + len(SPECIAL_ROWS)
"""The row that takes writes to c0."""

ROWS = _SINK + 1
NUMBERS = (*STATE_NUMBERS, "reservation")
"""The numbers of a hart's state beside pc, uint64 each; `is_reserved` is a truth value."""

CHANGE_PCC = ("cjalr", "jalr.cap", "cinvoke", "mret", "sret")
"""The operations that install another PCC."""

_KEPT_BY_TRAPS = 0xFFFF_FFFF_FFFF_FFFF & ~(MSTATUS_MIE | MSTATUS_MPIE | MSTATUS_MPP)
INSTRUCTION_BYTES, PARCEL_BYTES = 4, 2
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


class Window(NamedTuple):
    """Where PCC lets instructions be fetched: at pcs from start to start + span; nowhere, if the cause isn't 0."""

    cause: Causes
    start: Words
    span: Words


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
        self.cause, self.trap_value = np.zeros(len(lanes), np.uint8), np.zeros(len(lanes), np.uint64)
        self._flat = machine.tags.reshape(-1), machine.metas.reshape(-1), machine.addresses.reshape(-1)
        self._targets: list[tuple[Indices, Lanes]] = []
        self._held: dict[tuple[int, str], Any] = {}
        self._reserved: Flags | None = None

    @functools.cached_property
    def memory(self) -> MemoryBlock:  # type: ignore[override]
        """The memory of these lanes."""
        return self._machine.memory.selection(self.lanes)

    @functools.cached_property
    def pc(self) -> Words:  # type: ignore[override]
        """The program counters, to be read."""
        return self._machine.pc[self.lanes]

    @functools.cached_property
    def next_pc(self) -> Words:  # type: ignore[override]
        """The next program counters, to be read or written in place."""
        return self._machine.next_pc[self.lanes]

    def _where(self, register: Register, instead: int = 0) -> Indices:
        """Where a register lies in the flat arrays, another row instead of c0's."""
        if isinstance(register, int):
            return (register or instead) * self._machine.lanes + self.lanes
        if instead:
            register = np.where(register == 0, instead, register)
        return register * self._machine.lanes + self.lanes

    def _gather(self, where: Indices) -> Lanes:
        tags, metas, addresses = self._flat
        return Lanes(tags.take(where), metas.take(where), addresses.take(where))

    def capability(self, register: Register) -> Lanes:
        return self._gather(self._where(register))

    def capability_or_ddc(self, register: Register) -> Lanes:
        return self._gather(self._where(register, DDC))

    def integer(self, register: Register) -> Words:
        return self._flat[2].take(self._where(register))

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
        if self.cause.any():
            machine.cause[self.lanes], machine.trap_value[self.lanes] = self.cause, self.trap_value
        if "next_pc" in vars(self):
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
        self,
        fmt: CapabilityFormat,
        memory_base: int,
        memory_bytes: int,
        lanes: int,
        block_lanes: int = BLOCK_LANES,
        memory_type: type[Memory] = Memory,
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
        self.numbers["privilege"].fill(Privilege.MACHINE)
        self.is_reserved: Flags = np.zeros(lanes, np.bool_)
        self.cause: Causes = np.zeros(lanes, np.uint8)
        self.trap_value = np.zeros(lanes, np.uint64)
        self.memory = memory_type(fmt, memory_base, memory_bytes, lanes)
        self._window = Window(
            np.zeros(lanes, np.uint8), np.zeros(lanes, np.uint64), np.full(lanes, fmt.address_mask, np.uint64)
        )
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
                    advance(self.format, block.pc, block.next_pc)
                kernel(block, *own)
                if not jumps and not (row.traps and block.cause.any()):
                    advance(self.format, block.pc, block.pc)
                    continue
                if not jumps:
                    advance(self.format, block.pc, block.next_pc)
            else:
                self._step_where_fetched(block, kernel, own)
            self._commit(np.arange(block.start, block.stop), leaves=leaves)

    def _may_fetch(self, start: int, stop: int, ws: Workspace) -> bool:
        """Whether PCC authorises the instruction in all of these lanes."""
        window, distance, within = self._window, ws.isa[0], ws.isa_flags[0]
        np.subtract(self.pc[start:stop], window.start[start:stop], out=distance)
        np.less_equal(distance, window.span[start:stop], out=within)
        return bool(within.all()) and not window.cause[start:stop].any()

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
        pc, next_pc, cause = self.pc[lanes], np.empty(len(lanes), np.uint64), np.empty(len(lanes), np.uint8)
        window = Window(self._window.cause[lanes], self._window.start[lanes], self._window.span[lanes])
        check_fetch(pc, window, Workspace(len(lanes)), cause)
        self.cause[lanes] = cause
        self.trap_value[lanes] = np.uint64(PCC_INDEX << 5) | cause
        advance(self.format, pc, next_pc)
        self.next_pc[lanes] = next_pc
        fetched: Flags = cause == 0
        return fetched

    def _fetch_all(self) -> Flags | None:
        """As `_fetch` of all lanes; None where PCC authorises the instruction in each of them."""
        if not all(self._may_fetch(block.start, block.stop, block.ws) for block in self._blocks):
            return self._fetch(np.arange(self.lanes))
        self.cause.fill(0)
        for block in self._blocks:
            advance(self.format, block.pc, block.next_pc)
        return None

    def _refuse_short(self, lanes: Indices) -> None:
        """In lanes whose second parcel is out of bounds: it isn't needed where the first one says that there is none."""
        for start in range(0, len(lanes), self._block_lanes):
            part = lanes[start : start + self._block_lanes]
            ws, pcc = (
                self._workspace.narrowed(len(part)),
                Lanes(self.tags[PCC, part], self.metas[PCC, part], self.addresses[PCC, part]),
            )
            (base, length), high = ws.isa[:2], ws.isa_flags[0]
            bounds.decode_bounds(self.format, pcc.meta, pcc.address, ws, base, length, high)
            length = length - base & np.uint64(self.format.address_mask)
            inside = (length >= PARCEL_BYTES) & (self.pc[part] - base <= length - np.uint64(PARCEL_BYTES))
            here = part[inside & (self.cause[part] == CAUSES_BY_NAME["LengthViolation"].number)]
            self.cause[here], self.trap_value[here] = CAUSES_BY_NAME["IllegalInstruction"].number, 0

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

    def _diverge(self, names: Sequence[str], chosen: Indices, operands: Indices, short: Flags | None = None) -> None:
        """As `step_divergent`; an index of -1 is no operation, and refused as an illegal instruction.

        Where `short` says so, it has one parcel.
        """
        fetched = self._fetch_all()
        if short is not None and fetched is not None:
            self._refuse_short(np.flatnonzero(short & ~fetched))
        groups = self._groups(names, chosen, operands, fetched)
        order = np.argsort(groups, kind="stable")
        columns = [operands[:, column].take(order) for column in range(operands.shape[1])]
        sorted_groups, sorted_chosen = groups.take(order), chosen.take(order)
        edges = [0, *(np.flatnonzero(sorted_groups[1:] != sorted_groups[:-1]) + 1).tolist(), self.lanes]
        jumped = []
        for first, last in itertools.pairwise(edges):
            together, index = order[first:last], int(sorted_chosen[first])
            if sorted_groups[first] < 0:
                continue
            if index < 0:
                self.cause[together] = CAUSES_BY_NAME["IllegalInstruction"].number
                self.trap_value[together] = 0
                continue
            name = names[index]
            self._execute(KERNELS[name], together, operands_of(name, [column[first:last] for column in columns]))
            if name in CHANGE_PCC:
                jumped.append(together)
        if fetched is None and not self.cause.any():
            np.copyto(self.pc, self.next_pc)
        else:
            self._commit(np.arange(self.lanes), leaves=False)
        if jumped:
            self.pcc_changed(np.concatenate(jumped))

    def _groups(
        self, names: Sequence[str], chosen: Indices, operands: Indices, fetched: Flags | None
    ) -> NDArray[np.int16] | Indices:
        """A number for each lane: equal where a kernel can work on lanes together, below 0 where nothing is fetched."""
        shaped = {
            index: columns
            for index, name in enumerate(names)
            if (columns := [column for column, kind in enumerate(OPERATIONS[name].operands) if kind in _SHAPING])
        }
        if not shaped:
            # Small numbers are sorted by their digits, in no time.
            groups = (chosen + 1).astype(np.int16)
        else:
            groups = chosen + 1 << 16
            for index, columns in shaped.items():
                mine = chosen == index
                shape = operands[mine][:, columns]
                groups[mine] |= shape[:, 0] << 8 | shape[:, -1] if len(columns) == 2 else shape[:, 0]
        if fetched is not None:
            groups[~fetched] = -1
        return groups

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
        self._diverge(list(names), chosen[which], operands[which], words & COMPRESSED != COMPRESSED)

    # -- PCC and traps ---------------------------------------------------------------------------------------------------

    def pcc_changed(self, lanes: Indices) -> None:
        """See anew what the PCC of some lanes authorises."""
        for start in range(0, len(lanes), self._block_lanes):
            self._pcc_changed(lanes[start : start + self._block_lanes])

    def _pcc_changed(self, lanes: Indices) -> None:
        pcc = Lanes(self.tags[PCC, lanes], self.metas[PCC, lanes], self.addresses[PCC, lanes])
        own = self._window
        window = Window(own.cause[lanes], own.start[lanes], own.span[lanes])
        authorise(self.format, pcc, self._workspace.narrowed(len(lanes)), window)
        own.cause[lanes], own.start[lanes], own.span[lanes] = window

    def _enter_trap(self, lanes: Indices) -> None:
        """Go to the handler in some lanes, in which `cause` and `trap_value` say why."""
        for start in range(0, len(lanes), self._block_lanes):
            part = lanes[start : start + self._block_lanes]
            selection = Selection(self, part, self._workspace.narrowed(len(part)))
            selection.cause, selection.trap_value = self.cause[part], self.trap_value[part]
            enter_trap(selection)
            selection.put_back()
            self.pc[part] = selection.next_pc


def may_jump(name: str) -> bool:
    """Whether an operation may set the next pc."""
    return OPERATIONS[name].group is Group.CONTROL or name in ("mret", "sret")


# -- what every step does, as kernels --------------------------------------------------------------------------------------


def advance(fmt: CapabilityFormat, pc: Words, out: Words) -> None:
    """out = the address of the next instruction."""
    np.add(pc, INSTRUCTION_BYTES, out=out)
    if fmt.address_width < 64:
        np.bitwise_and(out, fmt.address_mask, out=out)


def authorise(fmt: CapabilityFormat, pcc: Lanes, ws: Workspace, out: Window) -> None:
    """out = the window of a PCC that satisfies the invariant if it is tagged.

    An instruction is two parcels of two bytes, each of which must be in bounds; the second one may be at address 0.
    """
    top, high, flag, permitted = ws.isa[0], *ws.isa_flags[:3]
    bounds.decode_bounds(fmt, pcc.meta, pcc.address, ws, out.start, top, high)
    # The top is 2**A where `high` says so, and no more; lengths are taken modulo 2**A.
    np.copyto(top, 0, where=high)
    np.subtract(top, out.start, out=out.span)
    if fmt.address_width < 64:
        np.bitwise_and(out.span, fmt.address_mask, out=out.span)
    out.cause.fill(0)
    np.less(out.span, INSTRUCTION_BYTES, out=flag)
    np.copyto(out.cause, CAUSES_BY_NAME["LengthViolation"].number, where=flag)
    np.subtract(out.span, INSTRUCTION_BYTES, out=out.span)
    # All of the address space.
    np.equal(out.start, 0, out=flag)
    np.logical_and(flag, high, out=flag)
    np.copyto(out.cause, 0, where=flag)
    np.copyto(out.span, fmt.address_mask, where=flag)
    capability.permits(fmt, pcc.meta, Permission.EXECUTE, ws, permitted)
    np.logical_not(permitted, out=permitted)
    np.copyto(out.cause, CAUSES_BY_NAME["PermitExecuteViolation"].number, where=permitted)
    capability.is_unsealed(fmt, pcc.meta, ws, permitted)
    np.logical_not(permitted, out=permitted)
    np.copyto(out.cause, CAUSES_BY_NAME["SealViolation"].number, where=permitted)
    np.logical_not(pcc.tag, out=permitted)
    np.copyto(out.cause, CAUSES_BY_NAME["TagViolation"].number, where=permitted)


def check_fetch(pc: Words, window: Window, ws: Workspace, cause: Causes) -> None:
    """cause = why the instruction at pc may not be fetched, by number; 0 where it may."""
    distance, outside, others = ws.isa[0], *ws.isa_flags[:2]
    np.subtract(pc, window.start, out=distance)
    np.greater(distance, window.span, out=outside)
    np.equal(window.cause, 0, out=others)
    np.logical_and(outside, others, out=outside)
    np.copyto(cause, window.cause)
    np.copyto(cause, CAUSES_BY_NAME["LengthViolation"].number, where=outside)


def enter_trap(block: Block) -> None:
    """Go to the handler, in machine mode, for what `cause` and `trap_value` say."""
    fmt, ws = block.format, block.ws
    mcause, status, privilege = block.number("mcause"), block.number("mstatus"), block.number("privilege")
    pcc, mepcc = block.special(PCC), block.special(MEPCC)
    by_capability, previous = ws.isa_flags[0], ws.isa[0]
    # A cause's number is a capability's cause, or 32 and the exception's code.
    np.copyto(mcause, block.cause)
    np.bitwise_and(mcause, OTHER_CAUSE - 1, out=mcause)
    np.less(block.cause, OTHER_CAUSE, out=by_capability)
    np.copyto(mcause, CHERI_EXCEPTION, where=by_capability)
    np.copyto(block.number("mtval"), block.trap_value)
    # MPIE becomes MIE, which becomes 0; MPP becomes the mode.
    np.bitwise_and(status, MSTATUS_MIE, out=previous)
    np.multiply(previous, MSTATUS_MPIE // MSTATUS_MIE, out=previous)
    np.bitwise_and(status, _KEPT_BY_TRAPS, out=status)
    np.bitwise_or(status, previous, out=status)
    np.left_shift(privilege, MPP_SHIFT, out=previous)
    np.bitwise_or(status, previous, out=status)
    privilege.fill(Privilege.MACHINE)
    block.is_reserved.fill(False)
    pcc_at(fmt, pcc, block.pc, ws, mepcc.tag)
    np.copyto(mepcc.meta, pcc.meta)
    np.copyto(mepcc.address, block.pc)
    capability.copy(block.special(MTCC), pcc)
    np.bitwise_and(pcc.address, fmt.address_mask - 3, out=block.next_pc)


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


def operands_of(name: str, columns: Sequence[Indices]) -> tuple[Any, ...]:
    """The operands of one operation from the columns of its lanes: registers, immediates, or one number for all."""
    found: list[Any] = []
    for column, kind in zip(columns, OPERATIONS[name].operands, strict=False):
        if kind in _SHAPING:
            found.append(int(column[0]))
        else:
            found.append(column if kind.is_register else column.view(np.uint64))
    return tuple(found)
