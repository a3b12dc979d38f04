"""The guest machine: a CHERI-RISC-V hart into which operations are injected one at a time.

State: 32 merged registers with c0 hardwired to NULL, PCC and the program counter, the special capability registers, the
CSRs of traps, the mode (machine, supervisor or user), an address reservation and tagged memory. A refused operation changes
nothing but the trap state: PCC goes to the handler, in machine mode, and injection goes on.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

from capvisor.model import bounds, capability
from capvisor.model.bits import not_, select
from capvisor.model.capability import Capability
from capvisor.model.memory import Memory
from capvisor.spec.encodings import COMPRESSED, decode
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.operations import OPERATIONS, Mode
from capvisor.spec.registers import (
    MPP_SHIFT,
    MSTATUS_MIE,
    MSTATUS_MPIE,
    MSTATUS_MPP,
    PCC_INDEX,
    REGISTER_COUNT,
    Privilege,
)
from capvisor.spec.traps import CAUSES_BY_NAME, TrapCause

Register = int
"""A register's number, 0 to 31."""

Rule = Callable[..., None]
RULES: dict[str, Rule] = {}
"""The rule of each operation, by name; filled by `model.isa`."""

INSTRUCTION_BYTES = 4
PARCEL_BYTES = 2
"""What instructions are aligned to, and the least that a jump's target must have in bounds.

Source: The RISC-V Instruction Set Manual, volume I, IALIGN with compressed instructions, as the golden traces have it;
sail-cheri-riscv, cheri_sys_regs.sail, min_instruction_bytes.
"""


def operation(name: str, family: Rule | None = None) -> Callable[[Rule], Rule]:
    """Declare a function to be the rule of the operation of that name.

    The function takes the hart and the operands in the order of the operation's syntax. One that does nothing but call the
    rule that a family of operations shares names it, so that readers are shown that.
    """
    if name not in OPERATIONS:
        raise KeyError(f"{name} has no row in spec/operations.py")

    def register(rule: Rule) -> Rule:
        RULES[name] = rule if family is None else functools.update_wrapper(rule, family)
        return rule

    return register


class Trap(Exception):
    """An operation was refused.

    `register` is the number of the capability register that was to authorise it (PCC and special registers from 32 on);
    `address` is what mtval holds for a cause that isn't a capability's. One of the two is None.
    """

    def __init__(self, cause: str, register: Register | None = None, address: int | None = None) -> None:
        super().__init__(cause)
        self.cause: TrapCause = CAUSES_BY_NAME[cause]
        self.register = register
        self.address = address

    @property
    def value(self) -> int:
        """What mtval holds: register number << 5 | capability cause, or the address.

        Source: sail-cheri-riscv, cheri_addr_checks.sail, handle_cheri_cap_exception.
        """
        if self.register is None:
            assert self.address is not None
            return self.address
        return self.register << 5 | self.cause.capability_cause


class RegisterFile(Protocol):
    """Where the merged registers are kept: a list, or what stands for one. That of c0 is never written."""

    def __getitem__(self, register: Register, /) -> Capability: ...

    def __setitem__(self, register: Register, value: Capability, /) -> None: ...


class Hart:
    """One hart and its memory, reset to: machine mode; all registers NULL; PCC, DDC, MTCC, MEPCC, STCC and
    SEPCC the root capability.

    The program counter `pc` is kept beside PCC as in the Sail model (sail-cheri-riscv, cheri_pc_access.sail): PCC's own
    address is the one at which it was installed. A rule may set `next_pc` and `next_pcc`.
    """

    def __init__(self, memory: Memory, pc: int = 0, registers: RegisterFile | None = None) -> None:
        self.format: CapabilityFormat = memory.format
        self.memory = memory
        self.pc = pc
        self.pcc: Capability = capability.root(self.format)
        self.ddc: Capability = capability.root(self.format)
        self.mtcc: Capability = capability.root(self.format)
        self.mtdc: Capability = capability.null(self.format)
        self.mscratchc: Capability = capability.null(self.format)
        self.mepcc: Capability = capability.root(self.format)
        self.stcc: Capability = capability.root(self.format)
        self.stdc: Capability = capability.null(self.format)
        self.sscratchc: Capability = capability.null(self.format)
        self.sepcc: Capability = capability.root(self.format)
        self.privilege: int = Privilege.MACHINE
        self.mstatus, self.mscratch, self.mcause, self.mtval = 0, 0, 0, 0
        self.sscratch, self.scause, self.stval = 0, 0, 0
        self.is_reserved, self.reservation = False, 0
        self.next_pc, self.next_pcc = self.pc, self.pcc
        self._authorised: Capability | None = None
        self._window = (0, 0)
        """Bounds of the PCC that was last found to be usable."""
        self.registers: RegisterFile = [capability.null(self.format)] * REGISTER_COUNT if registers is None else registers

    # -- registers -------------------------------------------------------------------------------------------------------

    def capability(self, register: Register) -> Capability:
        """The capability in a register; c0 reads as NULL."""
        return self.registers[register]

    def capability_or_ddc(self, register: Register) -> Capability:
        """The capability in a register, where the encoding of c0 means DDC."""
        return self.ddc if register == 0 else self.registers[register]

    def integer(self, register: Register) -> int:
        """The integer in a register, which is its capability's address."""
        return self.registers[register].address

    def write(self, register: Register, value: Capability) -> None:
        """Put a capability in a register; a write to c0 is ignored."""
        if register != 0:
            self.registers[register] = value

    def write_integer(self, register: Register, value: int) -> None:
        """Put an integer in a register, modulo 2**XLEN, as NULL with that address."""
        if register != 0:
            self.registers[register] = capability.null(self.format, value & self.format.address_mask)

    def map_registers(self, function: Callable[[Capability], Capability]) -> None:
        """Replace what each register but c0 holds by what the function makes of it."""
        for register in range(1, REGISTER_COUNT):
            self.registers[register] = function(self.registers[register])

    # -- control flow ----------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """How encodings with two meanings are read."""
        return Mode.CAPABILITY if self.pcc.flags == 1 else Mode.INTEGER

    def pcc_at(self, address: int) -> Capability:
        """PCC with an address; as the architecture asserts, its bounds stay. Source: setCapAddr of PCC, in the Sail model.

        Where that assertion would fail, which no sequence of operations leads to, it is untagged.
        """
        kept = bounds.address_keeps_bounds(self.format, self.pcc.meta, self.pcc.address, address)
        unmoved = not_(self.pcc.is_sealed) | (self.pcc.address == address)
        return Capability(self.format, self.pcc.tag & kept & unmoved, self.pcc.meta, address)

    def check_privilege(self, least: Privilege) -> None:
        """The hart must be in a mode that has at least that privilege; else the instruction is illegal."""
        if self.privilege < least:
            raise Trap("IllegalInstruction", address=0)

    def check_system_access(self, register: Register = PCC_INDEX) -> None:
        """PCC must permit access to system registers; the trap names the register that was asked for."""
        if not_(self.pcc.permits(Permission.ACCESS_SYSTEM_REGISTERS)):
            raise Trap("AccessSystemRegsViolation", register)

    def check_fetch(self, size_bytes: int = INSTRUCTION_BYTES) -> None:
        """PCC must authorise the instruction at pc, each of its parcels. Source: ext_fetch_check_pc of the Sail model."""
        if self._authorised is not self.pcc:
            self._authorise()
        base, top = self._window
        first = self.pc
        last = first + (size_bytes - PARCEL_BYTES) & self.format.address_mask
        if not_((first >= base) & (first + PARCEL_BYTES <= top) & (last >= base) & (last + PARCEL_BYTES <= top)):
            raise Trap("LengthViolation", PCC_INDEX)

    def _authorise(self) -> None:
        """What is checked of PCC itself, whatever pc: needed only when PCC is another."""
        if not_(self.pcc.tag):
            raise Trap("TagViolation", PCC_INDEX)
        if self.pcc.is_sealed:
            raise Trap("SealViolation", PCC_INDEX)
        if not_(self.pcc.permits(Permission.EXECUTE)):
            raise Trap("PermitExecuteViolation", PCC_INDEX)
        self._authorised, self._window = self.pcc, self.pcc.bounds

    def enter_trap(self, trap: Trap) -> None:
        """Go to the handler, in machine mode. Source: trap_handler of the Sail model, with cheri_sys_exceptions.sail."""
        self.mcause, self.mtval = trap.cause.mcause, trap.value
        enabled, kept = self.mstatus & MSTATUS_MIE != 0, self.mstatus & ~(MSTATUS_MIE | MSTATUS_MPIE | MSTATUS_MPP)
        self.mstatus = kept | select(enabled, MSTATUS_MPIE, 0) | self.privilege << MPP_SHIFT
        self.privilege = Privilege.MACHINE
        self.is_reserved = False
        self.mepcc = self.pcc_at(self.pc)
        self.pcc, self.pc = self.mtcc, self.mtcc.address & self.format.address_mask - 3

    # -- steps -----------------------------------------------------------------------------------------------------------

    def execute(self, name: str, operands: tuple[Any, ...]) -> None:
        """Execute one operation of the table, its operands in the order of its syntax.

        Raises Trap, with nothing changed, when it is refused.
        """
        self._execute(RULES[name], operands)

    def _execute(self, rule: Rule, operands: tuple[Any, ...], size_bytes: int = INSTRUCTION_BYTES) -> None:
        self.next_pc, self.next_pcc = self.pc + INSTRUCTION_BYTES & self.format.address_mask, self.pcc
        self.check_fetch(size_bytes)
        rule(self, *operands)
        self.pc, self.pcc = self.next_pc, self.next_pcc

    def step(self, name: str, operands: tuple[Any, ...]) -> Trap | None:
        """Execute one operation, or go to the handler where it is refused. Returns the trap."""
        return self._step(RULES[name], operands)

    def _step(self, rule: Rule, operands: tuple[Any, ...], size_bytes: int = INSTRUCTION_BYTES) -> Trap | None:
        try:
            self._execute(rule, operands, size_bytes)
        except Trap as trap:
            self.enter_trap(trap)
            return trap
        return None

    def step_word(self, word: int) -> Trap | None:
        """Execute the instruction that a word of 32 bits encodes in the mode that PCC is in.

        A word with the end of a compressed instruction has one parcel, and is illegal: none of these is modelled.
        """
        found = decode(word, self.format.address_width, self.mode)
        if found is None:
            is_compressed = word & COMPRESSED != COMPRESSED
            return self._step(illegal, (), PARCEL_BYTES if is_compressed else INSTRUCTION_BYTES)
        name, operands = found
        return self._step(RULES[name], operands)


def illegal(_hart: Hart) -> None:
    """The rule of a word that encodes nothing."""
    raise Trap("IllegalInstruction", address=0)
