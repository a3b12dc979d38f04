"""Special capability registers, CSRs, traps by instruction and the return from them."""

from collections.abc import Callable

from capvisor.model import capability
from capvisor.model.bits import select
from capvisor.model.capability import Capability
from capvisor.model.isa.control import even, unsealed
from capvisor.model.machine import Hart, Register, Trap, operation
from capvisor.spec.registers import (
    MSTATUS_MIE,
    MSTATUS_MPIE,
    MSTATUS_MPP,
    PCC_INDEX,
    SPECIAL_REGISTERS,
    STATUS_REGISTERS,
)

DIRECT_OR_VECTORED = 1
"""The highest mode of a trap vector that there is; the two bits can hold more."""


def legal_vector(hart: Hart, address: int) -> int:
    """A trap vector as it may be written to MTCC: one of an unknown mode keeps the mode that is there.

    Source: legalize_tvec of the Sail model.
    """
    kept = address & hart.format.address_mask - 3 | hart.mtcc.address & 3
    return select(address & 3 > DIRECT_OR_VECTORED, kept, address)


def legal_mtcc(hart: Hart, value: Capability) -> Capability:
    """A capability as it may be written to MTCC; untagged if it is sealed. Source: legalize_tcc."""
    return capability.set_address(value, legal_vector(hart, value.address))


def legal_mepcc(hart: Hart) -> Capability:
    """MEPCC as it is read: at an even address, untagged where a sealed one had to be moved. Source: legalize_epcc."""
    address = hart.mepcc.address
    moved = capability.set_address(hart.mepcc, even(hart, address))
    return capability.select_capability(address & 1 == 0, hart.mepcc, moved)


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
    if row.needs_system_access:
        hart.check_system_access(PCC_INDEX + row.number)
    # EFFECT
    value = hart.capability(cs1)
    hart.write(cd, read_special(hart, row.name))
    if cs1 != 0:
        setattr(hart, row.name, legal_mtcc(hart, value) if row.name == "mtcc" else value)


def read_special(hart: Hart, name: str) -> Capability:
    """What a special capability register reads as: PCC at pc, MEPCC at an even address, the others as they are."""
    if name == "pcc":
        return hart.pcc_at(hart.pc)
    cap: Capability = legal_mepcc(hart) if name == "mepcc" else getattr(hart, name)
    return cap


# -- CSRs ------------------------------------------------------------------------------------------------------------------


def read_status(hart: Hart, name: str) -> int:
    """The value of a CSR."""
    value: int = {
        "mstatus": hart.mstatus,
        "mtvec": hart.mtcc.address,
        "mscratch": hart.mscratch,
        "mepc": even(hart, hart.mepcc.address),
        "mcause": hart.mcause,
        "mtval": hart.mtval,
    }[name]
    return value


def write_status(hart: Hart, name: str, value: int) -> None:
    """Write a CSR; those that are a special register's address move it, and untag it where it can't be moved."""
    match name:
        case "mstatus":
            hart.mstatus = value & (MSTATUS_MIE | MSTATUS_MPIE) | MSTATUS_MPP
        case "mtvec":
            hart.mtcc = capability.set_address(hart.mtcc, legal_vector(hart, value))
        case "mepc":
            hart.mepcc = capability.set_address(hart.mepcc, value)
        case _:
            setattr(hart, name, value)


def access_status(hart: Hart, rd: Register, csr: int, update: Callable[[int], int] | None) -> None:
    """Read a CSR into rd and write what `update` makes of it, if anything."""
    # OPERANDS
    row = next((each for each in STATUS_REGISTERS.values() if each.number == csr), None)
    # CHECKS
    if row is None:
        raise Trap("IllegalInstruction", address=0)
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
    """Trap to the environment."""
    # CHECKS
    raise Trap("EnvironmentCall", address=0)


@operation("ebreak")
def ebreak(hart: Hart) -> None:
    """Trap to the debugger."""
    # CHECKS
    raise Trap("Breakpoint", address=hart.pc)


@operation("mret")
def mret(hart: Hart) -> None:
    """Return from a trap to MEPCC, unsealed if it is a sentry."""
    # CHECKS
    hart.check_system_access()
    # EFFECT
    enabled = hart.mstatus & MSTATUS_MPIE != 0
    hart.mstatus = MSTATUS_MPP | MSTATUS_MPIE | select(enabled, MSTATUS_MIE, 0)
    hart.is_reserved = False
    target = legal_mepcc(hart)
    is_sentry = target.otype == hart.format.otype_sentry
    hart.next_pc, hart.next_pcc = target.address, capability.select_capability(is_sentry, unsealed(target), target)


@operation("fence")
def fence(hart: Hart) -> None:
    """Order memory accesses: nothing to do."""
