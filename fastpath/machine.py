"""The batch machine: one program on many lanes, the fast twin of `model.machine`.

Every lane is a hart with registers and memory of its own. An operation is executed on all lanes before the next one. A
lane in which it is refused keeps its state and gets the cause; the others go on.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.memory import Memory
from capvisor.fastpath.workspace import BLOCK_LANES, Causes, Flags, Words, Workspace
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.registers import REGISTER_COUNT

Kernel = Callable[..., None]
KERNELS: dict[str, Kernel] = {}
"""The kernel of each operation, by name; filled by `fastpath.isa`."""

DDC = REGISTER_COUNT
"""The row of DDC in the register arrays, behind c0 to c31."""

_SINK = REGISTER_COUNT + 1
"""The row that takes writes to c0."""

INSTRUCTION_BYTES = 4


def operation(name: str) -> Callable[[Kernel], Kernel]:
    """Declare a function to be the kernel of the operation of that name.

    The function takes a block and the operands in the order of the operation's syntax.
    """
    if name not in OPERATIONS:
        raise KeyError(f"{name} has no row in spec/operations.py")

    def register(kernel: Kernel) -> Kernel:
        KERNELS[name] = kernel
        return kernel

    return register


class Block:
    """A run of lanes that kernels work on at a time: views of the machine's arrays, and scratch."""

    def __init__(self, machine: "BatchMachine", start: int, stop: int, workspace: Workspace) -> None:
        self.format = machine.format
        self.start, self.stop = start, stop
        self.ws = workspace
        self.memory = machine.memory.block(start, stop)
        self.pc = machine.pc[start:stop]
        self.cause = machine.cause[start:stop]
        self.trap_value = machine.trap_value[start:stop]
        self._rows = [
            Lanes(machine.tags[row, start:stop], machine.metas[row, start:stop], machine.addresses[row, start:stop])
            for row in range(_SINK + 1)
        ]

    def capability(self, register: int) -> Lanes:
        """The capabilities in a register; c0 reads as NULL."""
        return self._rows[register]

    def capability_or_ddc(self, register: int) -> Lanes:
        """The capabilities in a register, where the encoding of c0 means DDC."""
        return self._rows[register or DDC]

    def integer(self, register: int) -> Words:
        """The integers in a register."""
        return self._rows[register].address

    def target(self, register: int) -> Lanes:
        """Where the capabilities for a register are to be put; for c0 a place that is never read."""
        return self._rows[register or _SINK]

    def integer_target(self, register: int) -> Words:
        """Where the integers for a register are to be put, after `make_integer`."""
        return self.target(register).address

    def write_integer(self, register: int, values: Words) -> None:
        """Put integers, modulo 2**XLEN, in a register."""
        self.make_integer(register)
        target = self.integer_target(register)
        if self.format.address_width < 64:
            np.bitwise_and(values, self.format.address_mask, out=target)
        elif values is not target:
            np.copyto(target, values)

    def write_flag(self, register: int, flags: Flags) -> None:
        """Put 1 in a register where the flag is set, else 0."""
        target = self.integer_target(register)
        np.copyto(target, flags)
        self.make_integer(register)

    def make_integer(self, register: int) -> None:
        """Make a register hold integers: NULL but for its addresses. To be called when all sources have been read."""
        row = self.target(register)
        row.tag.fill(False)
        row.meta.fill(self.format.null_meta)


class BatchMachine:
    """`lanes` harts with memory from `memory_base`, reset as the reference's are.

    `tags`, `metas` and `addresses` are [34, lanes]: registers 0 to 31, DDC and a row without meaning. After a step,
    `cause` holds the cause numbers of `spec.traps` by lane, 0 where the operation was completed, and `trap_value` what
    mtval would hold where it was not.

    Raises MemoryError where the machine that this runs on can't hold it.
    """

    def __init__(
        self, fmt: CapabilityFormat, memory_base: int, memory_bytes: int, lanes: int, block_lanes: int = BLOCK_LANES
    ) -> None:
        self.format = fmt
        self.lanes = lanes
        rows = _SINK + 1
        self.tags = np.zeros((rows, lanes), np.bool_)
        self.metas = np.full((rows, lanes), fmt.null_meta, np.uint64)
        self.addresses = np.zeros((rows, lanes), np.uint64)
        self.tags[DDC] = True
        self.metas[DDC] = fmt.root_meta
        self.pc = np.zeros(lanes, np.uint64)
        self.cause: Causes = np.zeros(lanes, np.uint8)
        self.trap_value = np.zeros(lanes, np.uint64)
        self.memory = Memory(fmt, memory_base, memory_bytes, lanes)
        workspace = Workspace(min(lanes, block_lanes))
        starts = range(0, lanes, block_lanes)
        stops = [min(start + block_lanes, lanes) for start in starts]
        self._blocks = [
            Block(self, start, stop, workspace.narrowed(stop - start)) for start, stop in zip(starts, stops, strict=True)
        ]
        self._advance = np.zeros(min(lanes, block_lanes), np.uint64)
        self._causes_are_clear = True

    def capability(self, register: int) -> Lanes:
        """The capabilities in a register of all lanes, as views."""
        return Lanes(self.tags[register], self.metas[register], self.addresses[register])

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        """Execute one operation of the table in every lane, its operands in the order of its syntax.

        The value of `li` may be an array of one uint64 a lane instead of an int.
        """
        kernel, may_trap = KERNELS[name], bool(OPERATIONS[name].traps)
        if not may_trap and not self._causes_are_clear:
            self.cause.fill(0)
        self._causes_are_clear = not may_trap
        for block in self._blocks:
            kernel(block, *operands)
            if may_trap:
                advance = self._advance[: block.stop - block.start]
                np.equal(block.cause, 0, out=advance, casting="unsafe")
                np.multiply(advance, INSTRUCTION_BYTES, out=advance)
                np.add(block.pc, advance, out=block.pc)
            else:
                np.add(block.pc, INSTRUCTION_BYTES, out=block.pc)
            if self.format.address_width < 64:
                np.bitwise_and(block.pc, self.format.address_mask, out=block.pc)
