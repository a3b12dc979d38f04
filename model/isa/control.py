"""Control flow: branches, jumps in either mode, CInvoke."""

from collections.abc import Callable

from capvisor.model import capability
from capvisor.model.bits import not_
from capvisor.model.capability import Capability
from capvisor.model.isa.integer import signed, upper
from capvisor.model.machine import PARCEL_BYTES, Hart, Register, Trap, operation
from capvisor.spec.formats import Permission
from capvisor.spec.registers import PCC_INDEX


def check_target(hart: Hart, target: int) -> None:
    """The target of a jump within PCC must be in its bounds. Source: ext_control_check_pc, ext_control_check_addr."""
    if not_(capability.within_bounds(hart.pcc, target, PARCEL_BYTES)):
        raise Trap("LengthViolation", PCC_INDEX)


def relative(hart: Hart, offset: int) -> int:
    """The address at an offset from pc."""
    return hart.pc + offset & hart.format.address_mask


def even(hart: Hart, address: int) -> int:
    """An address without bit 0, which no target has."""
    return address & hart.format.address_mask - 1


def sentry(cap: Capability) -> Capability:
    """`cap` sealed as an entry point, whatever it is. Source: sealCap."""
    return capability.set_otype(cap, cap.format.otype_sentry)


def unsealed(cap: Capability) -> Capability:
    """`cap` without its seal. Source: unsealCap."""
    return capability.set_otype(cap, cap.format.otype_unsealed)


def link(hart: Hart) -> Capability:
    """Where a call returns to: PCC at the next pc, as a sentry."""
    return sentry(hart.pcc_at(hart.next_pc).tagged_if(not_(hart.pcc.is_sealed)))


# -- branches --------------------------------------------------------------------------------------------------------------


def branch(hart: Hart, offset: int, taken: bool) -> None:
    """Go to pc + offset if the condition holds."""
    if taken:
        # OPERANDS
        target = relative(hart, offset)
        # CHECKS
        check_target(hart, target)
        # EFFECT
        hart.next_pc = target


@operation("beq")
def beq(hart: Hart, rs1: Register, rs2: Register, offset13: int) -> None:
    """Branch if equal."""
    branch(hart, offset13, hart.integer(rs1) == hart.integer(rs2))


@operation("bne")
def bne(hart: Hart, rs1: Register, rs2: Register, offset13: int) -> None:
    """Branch if not equal."""
    branch(hart, offset13, hart.integer(rs1) != hart.integer(rs2))


@operation("blt")
def blt(hart: Hart, rs1: Register, rs2: Register, offset13: int) -> None:
    """Branch if less, as signed numbers."""
    branch(hart, offset13, signed(hart, hart.integer(rs1)) < signed(hart, hart.integer(rs2)))


@operation("bge")
def bge(hart: Hart, rs1: Register, rs2: Register, offset13: int) -> None:
    """Branch if greater or equal, as signed numbers."""
    branch(hart, offset13, signed(hart, hart.integer(rs1)) >= signed(hart, hart.integer(rs2)))


@operation("bltu")
def bltu(hart: Hart, rs1: Register, rs2: Register, offset13: int) -> None:
    """Branch if less, as unsigned numbers."""
    branch(hart, offset13, hart.integer(rs1) < hart.integer(rs2))


@operation("bgeu")
def bgeu(hart: Hart, rs1: Register, rs2: Register, offset13: int) -> None:
    """Branch if greater or equal, as unsigned numbers."""
    branch(hart, offset13, hart.integer(rs1) >= hart.integer(rs2))


# -- jumps within PCC ------------------------------------------------------------------------------------------------------


def jump(hart: Hart, target: int, write_link: Callable[[], None]) -> None:
    """Go to a target in PCC's bounds, and say where to return to."""
    # CHECKS
    check_target(hart, target)
    # EFFECT
    write_link()
    hart.next_pc = target


@operation("jal")
def jal(hart: Hart, rd: Register, offset21: int) -> None:
    """Jump by an offset; rd is the address of the next instruction."""
    jump(hart, relative(hart, offset21), lambda: hart.write_integer(rd, hart.next_pc))


@operation("jalr")
def jalr(hart: Hart, rd: Register, imm: int, rs1: Register) -> None:
    """Jump to rs1 + imm; rd is the address of the next instruction."""
    jump(hart, even(hart, hart.integer(rs1) + imm), lambda: hart.write_integer(rd, hart.next_pc))


@operation("jalr.pcc")
def jalr_pcc(hart: Hart, rd: Register, rs1: Register) -> None:
    """As jalr, without offset."""
    jalr(hart, rd, 0, rs1)


@operation("cjal")
def cjal(hart: Hart, cd: Register, offset21: int) -> None:
    """Jump by an offset; cd is a sentry for the next instruction."""
    jump(hart, relative(hart, offset21), lambda: hart.write(cd, link(hart)))


@operation("auipc")
def auipc(hart: Hart, rd: Register, uimm20: int) -> None:
    """Add an upper immediate to pc."""
    # EFFECT
    hart.write_integer(rd, hart.pc + upper(uimm20))


@operation("auipcc")
def auipcc(hart: Hart, cd: Register, uimm20: int) -> None:
    """PCC at pc plus an upper immediate; untagged if its bounds would change."""
    # EFFECT
    hart.write(cd, hart.pcc_at(hart.pc + upper(uimm20) & hart.format.address_mask))


# -- jumps to another PCC --------------------------------------------------------------------------------------------------


@operation("cjalr")
def cjalr(hart: Hart, cd: Register, imm: int, cs1: Register) -> None:
    """Install cs1 + imm as PCC, unsealed if it is a sentry (no offset then); cd is a sentry for the next instruction."""
    # OPERANDS
    callee = hart.capability(cs1)
    target = even(hart, callee.address + imm)
    # CHECKS
    if not_(callee.tag):
        raise Trap("TagViolation", cs1)
    if callee.is_sealed & ((callee.otype != hart.format.otype_sentry) | (imm != 0)):
        raise Trap("SealViolation", cs1)
    if not_(callee.permits(Permission.EXECUTE)):
        raise Trap("PermitExecuteViolation", cs1)
    if not_(capability.within_bounds(callee, target, PARCEL_BYTES)):
        raise Trap("LengthViolation", cs1)
    # EFFECT
    hart.write(cd, link(hart))
    hart.next_pc, hart.next_pcc = target, unsealed(callee)


@operation("jalr.cap")
def jalr_cap(hart: Hart, cd: Register, cs1: Register) -> None:
    """As cjalr, without offset."""
    cjalr(hart, cd, 0, cs1)


INVOKED_DATA = 31
"""The register in which CInvoke hands over the data capability."""


@operation("cinvoke")
def cinvoke(hart: Hart, cs1: Register, cs2: Register) -> None:
    """Enter another domain: its code capability cs1 becomes PCC, its data capability cs2 c31, both unsealed.

    They must be sealed with the same ordinary object type.
    """
    # OPERANDS
    code, data = hart.capability(cs1), hart.capability(cs2)
    target = even(hart, code.address)
    # CHECKS
    if not_(code.tag):
        raise Trap("TagViolation", cs1)
    if not_(data.tag):
        raise Trap("TagViolation", cs2)
    if code.has_reserved_otype:
        raise Trap("SealViolation", cs1)
    if data.has_reserved_otype:
        raise Trap("SealViolation", cs2)
    if code.otype != data.otype:
        raise Trap("TypeViolation", cs1)
    if not_(code.permits(Permission.CINVOKE)):
        raise Trap("PermitCInvokeViolation", cs1)
    if not_(data.permits(Permission.CINVOKE)):
        raise Trap("PermitCInvokeViolation", cs2)
    if not_(code.permits(Permission.EXECUTE)):
        raise Trap("PermitExecuteViolation", cs1)
    if data.permits(Permission.EXECUTE):
        raise Trap("PermitExecuteViolation", cs2)
    if not_(capability.within_bounds(code, target, PARCEL_BYTES)):
        raise Trap("LengthViolation", cs1)
    # EFFECT
    hart.write(INVOKED_DATA, unsealed(data))
    hart.next_pc, hart.next_pcc = target, unsealed(code)
