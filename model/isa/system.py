"""Special capability registers, CSRs, traps by instruction and the return from them."""

from collections.abc import Callable

from capvisor.model import capability
from capvisor.model.bits import select
from capvisor.model.capability import Capability
from capvisor.model.isa.control import even, unsealed
from capvisor.model.machine import Hart, Register, Trap, operation
from capvisor.spec.registers import (
    MPP_SHIFT,
    MSTATUS_FIELDS,
    MSTATUS_MIE,
    MSTATUS_MPIE,
    MSTATUS_MPP,
    MSTATUS_SIE,
    MSTATUS_SPIE,
    MSTATUS_SPP,
    PCC_INDEX,
    SPECIAL_REGISTERS,
    SPP_SHIFT,
    SSTATUS_FIELDS,
    STATUS_REGISTERS,
    STATUS_WIDTHS,
    Privilege,
)

DIRECT_OR_VECTORED = 1
"""The highest mode of a trap vector that there is; the two bits can hold more."""

_UNKNOWN_MODE = 2 << MPP_SHIFT
"""What MPP is never made to hold."""


def legal_vector(hart: Hart, before: int, address: int) -> int:
    """A trap vector as it may be written: one of an unknown mode keeps the mode that was there.

    Source: legalize_tvec of the Sail model.
    """
    kept = address & hart.format.address_mask - 3 | before & 3
    return select(address & 3 > DIRECT_OR_VECTORED, kept, address)


def legal_tcc(hart: Hart, before: Capability, value: Capability) -> Capability:
    """A capability as it may be written to MTCC or STCC; untagged if it is sealed. Source: legalize_tcc."""
    return capability.set_address(value, legal_vector(hart, before.address, value.address))


def legal_epcc(hart: Hart, cap: Capability) -> Capability:
    """MEPCC or SEPCC as it is read: at an even address, untagged where a sealed one is moved. Source: legalize_epcc."""
    moved = capability.set_address(cap, even(hart, cap.address))
    return capability.select_capability(cap.address & 1 == 0, cap, moved)


@operation("cspecialrw")
def cspecialrw(hart: Hart, cd: Register, scr: int, cs1: Register) -> None:
    """Read a special capability register, and write it unless cs1 is c0."""
    # OPERANDS
    row = next((each for each in SPECIAL_REGISTERS.values() if each.number == scr), None)
    # CHECKS
    if row is None:
        raise Trap("IllegalInstruction", address=0)
    if not row.is_writable and cs1 != 0:
        raise Trap("IllegalInstruction", address=0)
    hart.check_privilege(row.privilege)
    if row.needs_system_access:
        hart.check_system_access(PCC_INDEX + row.number)
    # EFFECT
    value = hart.capability(cs1)
    hart.write(cd, read_special(hart, row.name))
    if cs1 != 0:
        setattr(hart, row.name, legal_tcc(hart, getattr(hart, row.name), value) if row.name in VECTORS else value)


VECTORS, RETURNS = ("mtcc", "stcc"), ("mepcc", "sepcc")
"""The special registers that hold a trap vector, and those that hold where a return from a trap goes."""


def read_special(hart: Hart, name: str) -> Capability:
    """What a special capability register reads as: PCC at pc, MEPCC and SEPCC at an even address, the others as they are."""
    if name == "pcc":
        return hart.pcc_at(hart.pc)
    cap: Capability = getattr(hart, name)
    return legal_epcc(hart, cap) if name in RETURNS else cap


# -- CSRs ------------------------------------------------------------------------------------------------------------------


def read_status(hart: Hart, name: str) -> int:
    """The value of a CSR."""
    held, value = STATUS_REGISTERS[name].part_of or name, 0
    if held in VECTORS:
        value = getattr(hart, held).address
    elif held in RETURNS:
        value = even(hart, getattr(hart, held).address)
    elif held == "mstatus":
        seen = MSTATUS_FIELDS if name == held else SSTATUS_FIELDS
        value = hart.mstatus & seen | STATUS_WIDTHS[name, hart.format.address_width]
    else:
        value = getattr(hart, name)
    return value


def write_status(hart: Hart, name: str, value: int) -> None:
    """Write a CSR; those that are a special register's address move it, and untag it where it can't be moved."""
    held = STATUS_REGISTERS[name].part_of or name
    if held in VECTORS:
        before: Capability = getattr(hart, held)
        setattr(hart, held, capability.set_address(before, legal_vector(hart, before.address, value)))
    elif held in RETURNS:
        setattr(hart, held, capability.set_address(getattr(hart, held), value))
    elif held == "mstatus":
        seen = MSTATUS_FIELDS if name == held else SSTATUS_FIELDS
        hart.mstatus = legal_mstatus(hart.mstatus, hart.mstatus & ~seen | value & seen)
    else:
        setattr(hart, name, value)


def legal_mstatus(before: int, value: int) -> int:
    """mstatus as it may be written: MPP stays what it was where it would be no mode.

    Source: The RISC-V Instruction Set Manual, volume II, which lets MPP hold the modes that there are.
    """
    is_unknown = value & MSTATUS_MPP == _UNKNOWN_MODE
    return select(is_unknown, value & ~MSTATUS_MPP | before & MSTATUS_MPP, value)


def access_status(hart: Hart, rd: Register, csr: int, update: Callable[[int], int] | None) -> None:
    """Read a CSR into rd and write what `update` makes of it, if anything."""
    # OPERANDS
    row = next((each for each in STATUS_REGISTERS.values() if each.number == csr), None)
    # CHECKS
    if row is None:
        raise Trap("IllegalInstruction", address=0)
    hart.check_privilege(row.privilege)
    hart.check_system_access()
    # EFFECT
    before = read_status(hart, row.name)
    if update is not None:
        write_status(hart, row.name, update(before))
    hart.write_integer(rd, before)


@operation("csrrw")
def csrrw(hart: Hart, rd: Register, csr: int, rs1: Register) -> None:
    """Exchange a CSR with a register."""
    value = hart.integer(rs1)
    access_status(hart, rd, csr, lambda before: value)


@operation("csrrs")
def csrrs(hart: Hart, rd: Register, csr: int, rs1: Register) -> None:
    """Read a CSR and set the bits of rs1 in it; x0 only reads."""
    value = hart.integer(rs1)
    access_status(hart, rd, csr, None if rs1 == 0 else lambda before: before | value)


@operation("csrrc")
def csrrc(hart: Hart, rd: Register, csr: int, rs1: Register) -> None:
    """Read a CSR and clear the bits of rs1 in it; x0 only reads."""
    value = hart.integer(rs1)
    access_status(hart, rd, csr, None if rs1 == 0 else lambda before: before & (value ^ hart.format.address_mask))


@operation("csrrwi")
def csrrwi(hart: Hart, rd: Register, csr: int, uimm5: int) -> None:
    """Read a CSR and write an immediate."""
    access_status(hart, rd, csr, lambda before: uimm5)


@operation("csrrsi")
def csrrsi(hart: Hart, rd: Register, csr: int, uimm5: int) -> None:
    """Read a CSR and set the bits of an immediate in it; 0 only reads."""
    access_status(hart, rd, csr, None if uimm5 == 0 else lambda before: before | uimm5)


@operation("csrrci")
def csrrci(hart: Hart, rd: Register, csr: int, uimm5: int) -> None:
    """Read a CSR and clear the bits of an immediate in it; 0 only reads."""
    access_status(hart, rd, csr, None if uimm5 == 0 else lambda before: before & (uimm5 ^ hart.format.address_mask))


# -- traps -----------------------------------------------------------------------------------------------------------------


@operation("ecall")
def ecall(hart: Hart) -> None:
    """Trap to the environment, with the cause of the mode that the hart is in."""
    # CHECKS
    if hart.privilege == Privilege.USER:
        raise Trap("UserEnvironmentCall", address=0)
    if hart.privilege == Privilege.SUPERVISOR:
        raise Trap("SupervisorEnvironmentCall", address=0)
    raise Trap("EnvironmentCall", address=0)


@operation("ebreak")
def ebreak(hart: Hart) -> None:
    """Trap to the debugger."""
    # CHECKS
    raise Trap("Breakpoint", address=hart.pc)


@operation("mret")
def mret(hart: Hart) -> None:
    """Return from a trap to MEPCC, unsealed if it is a sentry, and to the mode in MPP."""
    # CHECKS
    hart.check_privilege(Privilege.MACHINE)
    hart.check_system_access()
    # EFFECT
    before = hart.mstatus
    kept = before & ~(MSTATUS_MIE | MSTATUS_MPIE | MSTATUS_MPP)
    hart.mstatus = kept | MSTATUS_MPIE | select(before & MSTATUS_MPIE != 0, MSTATUS_MIE, 0)
    hart.privilege = (before & MSTATUS_MPP) >> MPP_SHIFT
    return_to(hart, hart.mepcc)


@operation("sret")
def sret(hart: Hart) -> None:
    """Return from a trap to SEPCC, unsealed if it is a sentry, and to the mode in SPP."""
    # CHECKS
    hart.check_privilege(Privilege.SUPERVISOR)
    hart.check_system_access()
    # EFFECT
    before = hart.mstatus
    kept = before & ~(MSTATUS_SIE | MSTATUS_SPIE | MSTATUS_SPP)
    hart.mstatus = kept | MSTATUS_SPIE | select(before & MSTATUS_SPIE != 0, MSTATUS_SIE, 0)
    hart.privilege = (before & MSTATUS_SPP) >> SPP_SHIFT
    return_to(hart, hart.sepcc)


def return_to(hart: Hart, saved: Capability) -> None:
    """Go on at MEPCC or SEPCC. Source: sail-cheri-riscv, cheri_sys_exceptions.sail, prepare_xret_target."""
    hart.is_reserved = False
    target = legal_epcc(hart, saved)
    is_sentry = target.otype == hart.format.otype_sentry
    hart.next_pc, hart.next_pcc = target.address, capability.select_capability(is_sentry, unsealed(target), target)


@operation("fence")
def fence(hart: Hart) -> None:
    """Order memory accesses: nothing to do."""


@operation("fence.i")
def fence_i(hart: Hart) -> None:
    """Order stores and fetches: nothing to do."""
