"""Control flow. The fast twin of `model.isa.control`."""

from typing import Any

import numpy as np

from capvisor.fastpath import capability
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.isa.memory import put_where
from capvisor.fastpath.machine import PARCEL_BYTES, PCC, Block, Register, operation, pcc_at
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.formats import Permission
from capvisor.spec.registers import PCC_INDEX

INVOKED_DATA = 31


def add(block: Block, base: Words, offset: Any, out: Words) -> None:
    """out = base + offset, an address."""
    np.add(base, offset & block.format.address_mask, out=out)
    if block.format.address_width < 64:
        np.bitwise_and(out, block.format.address_mask, out=out)


def check_target(block: Block, cap: Lanes, target: Words, register: Register, needed: Flags | None = None) -> None:
    """The target of a jump must be in the bounds of a capability, where it is needed."""
    passed = block.ws.isa_flags[0]
    capability.within_bounds(block.format, cap, target, PARCEL_BYTES, block.ws, passed)
    if needed is not None:
        np.greater_equal(passed, needed, out=passed)
    block.refuse_unless(passed, "LengthViolation", register)


def write_link(block: Block, cd: Register, return_to: Words, completed: Flags) -> None:
    """cd = a sentry for an address within PCC, in the lanes that are completed."""
    pcc, link = block.capability(PCC), Lanes(block.ws.isa_flags[2], block.ws.isa[4], return_to)
    pcc_at(block.format, pcc, return_to, block.ws, link.tag)
    capability.is_unsealed(block.format, pcc.meta, block.ws, block.ws.isa_flags[3])
    np.logical_and(link.tag, block.ws.isa_flags[3], out=link.tag)
    capability.set_otype(block.format, pcc.meta, block.format.otype_sentry, link.meta)
    put_where(link, block.target(cd), completed)


def install(block: Block, cap: Lanes, target: Words, completed: Flags) -> None:
    """Make a capability PCC, unsealed, and a target the next pc, in the lanes that are completed."""
    pcc, meta = block.special(PCC), block.ws.isa[5]
    capability.set_otype(block.format, cap.meta, block.format.otype_unsealed, meta)
    put_where(Lanes(cap.tag, meta, cap.address), pcc, completed)
    np.copyto(block.next_pc, target, where=completed)


# -- branches --------------------------------------------------------------------------------------------------------------


def branch(block: Block, offset: Any, taken: Flags) -> None:
    """Go to pc + offset where the condition holds."""
    target = block.ws.isa[0]
    add(block, block.pc, offset, target)
    check_target(block, block.capability(PCC), target, PCC_INDEX, taken)
    np.copyto(block.next_pc, target, where=taken)


def signed_less(block: Block, rs1: Register, rs2: Register) -> Flags:
    """Whether rs1 < rs2 as signed numbers, in scratch."""
    a, b = block.ws.isa[:2]
    sign, less = 1 << block.format.address_width - 1, block.ws.isa_flags[1]
    np.bitwise_xor(block.integer(rs1), sign, out=a)
    np.bitwise_xor(block.integer(rs2), sign, out=b)
    np.less(a, b, out=less)
    return less


@operation("beq")
def beq(block: Block, rs1: Register, rs2: Register, offset13: Any) -> None:
    taken = block.ws.isa_flags[1]
    np.equal(block.integer(rs1), block.integer(rs2), out=taken)
    branch(block, offset13, taken)


@operation("bne")
def bne(block: Block, rs1: Register, rs2: Register, offset13: Any) -> None:
    taken = block.ws.isa_flags[1]
    np.not_equal(block.integer(rs1), block.integer(rs2), out=taken)
    branch(block, offset13, taken)


@operation("blt")
def blt(block: Block, rs1: Register, rs2: Register, offset13: Any) -> None:
    branch(block, offset13, signed_less(block, rs1, rs2))


@operation("bge")
def bge(block: Block, rs1: Register, rs2: Register, offset13: Any) -> None:
    taken = signed_less(block, rs1, rs2)
    np.logical_not(taken, out=taken)
    branch(block, offset13, taken)


@operation("bltu")
def bltu(block: Block, rs1: Register, rs2: Register, offset13: Any) -> None:
    taken = block.ws.isa_flags[1]
    np.less(block.integer(rs1), block.integer(rs2), out=taken)
    branch(block, offset13, taken)


@operation("bgeu")
def bgeu(block: Block, rs1: Register, rs2: Register, offset13: Any) -> None:
    taken = block.ws.isa_flags[1]
    np.greater_equal(block.integer(rs1), block.integer(rs2), out=taken)
    branch(block, offset13, taken)


# -- jumps within PCC ------------------------------------------------------------------------------------------------------


def leave(block: Block, target: Words) -> tuple[Words, Flags]:
    """Go to a target in PCC's bounds: where to return to, and the lanes that are completed, both in scratch."""
    return_to, completed = block.ws.isa[1], block.ws.isa_flags[1]
    np.copyto(return_to, block.next_pc)
    check_target(block, block.capability(PCC), target, PCC_INDEX)
    block.completed(completed)
    np.copyto(block.next_pc, target, where=completed)
    return return_to, completed


def even(block: Block, base: Words, offset: Any, out: Words) -> None:
    """out = base + offset without bit 0."""
    add(block, base, offset, out)
    np.bitwise_and(out, block.format.address_mask - 1, out=out)


@operation("jal")
def jal(block: Block, rd: Register, offset21: Any) -> None:
    target = block.ws.isa[0]
    add(block, block.pc, offset21, target)
    block.write_integer_where(rd, *leave(block, target))


@operation("jalr")
def jalr(block: Block, rd: Register, imm: Any, rs1: Register) -> None:
    target = block.ws.isa[0]
    even(block, block.integer(rs1), imm, target)
    block.write_integer_where(rd, *leave(block, target))


@operation("jalr.pcc")
def jalr_pcc(block: Block, rd: Register, rs1: Register) -> None:
    jalr(block, rd, 0, rs1)


@operation("cjal")
def cjal(block: Block, cd: Register, offset21: Any) -> None:
    target = block.ws.isa[0]
    add(block, block.pc, offset21, target)
    write_link(block, cd, *leave(block, target))


def upper(uimm20: Any) -> Any:
    """An upper immediate's number, to be taken modulo 2**XLEN: bits 31 to 12, sign-extended."""
    return (uimm20 << 12 ^ 1 << 31) - (1 << 31)


@operation("auipc")
def auipc(block: Block, rd: Register, uimm20: Any) -> None:
    result = block.ws.isa[0]
    add(block, block.pc, upper(uimm20), result)
    block.write_integer(rd, result)


@operation("auipcc")
def auipcc(block: Block, cd: Register, uimm20: Any) -> None:
    pcc, address, tag = block.capability(PCC), block.ws.isa[0], block.ws.isa_flags[0]
    add(block, block.pc, upper(uimm20), address)
    pcc_at(block.format, pcc, address, block.ws, tag)
    capability.copy(Lanes(tag, pcc.meta, address), block.target(cd))


# -- jumps to another PCC --------------------------------------------------------------------------------------------------


@operation("cjalr")
def cjalr(block: Block, cd: Register, imm: Any, cs1: Register) -> None:
    fmt, ws = block.format, block.ws
    callee, passed, other = block.capability(cs1), ws.isa_flags[0], ws.isa_flags[1]
    target, return_to = ws.isa[0], ws.isa[1]
    even(block, callee.address, imm, target)
    np.copyto(return_to, block.next_pc)
    check_target(block, callee, target, cs1)
    capability.permits(fmt, callee.meta, Permission.EXECUTE, ws, passed)
    block.refuse_unless(passed, "PermitExecuteViolation", cs1)
    # Unsealed, or a sentry without offset.
    otype = ws.isa[2]
    np.bitwise_and(callee.meta, fmt.otype.in_place, out=otype)
    np.equal(otype, (fmt.otype_sentry & fmt.otype.mask) << fmt.otype.low, out=other)
    np.logical_and(other, imm == 0, out=other)
    capability.is_unsealed(fmt, callee.meta, ws, passed)
    np.logical_or(passed, other, out=passed)
    block.refuse_unless(passed, "SealViolation", cs1)
    np.copyto(passed, callee.tag)
    block.refuse_unless(passed, "TagViolation", cs1)
    completed = block.completed(other)
    installed = Lanes(ws.isa_flags[4], ws.isa[2], ws.isa[3])
    capability.copy(callee, installed)
    write_link(block, cd, return_to, completed)
    install(block, installed, target, completed)


@operation("jalr.cap")
def jalr_cap(block: Block, cd: Register, cs1: Register) -> None:
    cjalr(block, cd, 0, cs1)


@operation("cinvoke")
def cinvoke(block: Block, cs1: Register, cs2: Register) -> None:
    fmt, ws = block.format, block.ws
    code, data, passed = block.capability(cs1), block.capability(cs2), ws.isa_flags[0]
    target, difference = ws.isa[0], ws.isa[1]
    even(block, code.address, 0, target)
    check_target(block, code, target, cs1)
    capability.permits(fmt, data.meta, Permission.EXECUTE, ws, passed)
    np.logical_not(passed, out=passed)
    block.refuse_unless(passed, "PermitExecuteViolation", cs2)
    capability.permits(fmt, code.meta, Permission.EXECUTE, ws, passed)
    block.refuse_unless(passed, "PermitExecuteViolation", cs1)
    for cap, register in ((data, cs2), (code, cs1)):
        capability.permits(fmt, cap.meta, Permission.CINVOKE, ws, passed)
        block.refuse_unless(passed, "PermitCInvokeViolation", register)
    np.bitwise_xor(code.meta, data.meta, out=difference)
    np.bitwise_and(difference, fmt.otype.in_place, out=difference)
    np.equal(difference, 0, out=passed)
    block.refuse_unless(passed, "TypeViolation", cs1)
    for cap, register in ((data, cs2), (code, cs1)):
        capability.has_ordinary_otype(fmt, cap.meta, ws, passed)
        block.refuse_unless(passed, "SealViolation", register)
    for cap, register in ((data, cs2), (code, cs1)):
        np.copyto(passed, cap.tag)
        block.refuse_unless(passed, "TagViolation", register)
    completed = block.completed(ws.isa_flags[1])
    install(block, code, target, completed)
    opened = Lanes(ws.isa_flags[2], ws.isa[1], ws.isa[2])
    capability.copy(data, opened)
    capability.set_otype(fmt, opened.meta, fmt.otype_unsealed, opened.meta)
    put_where(opened, block.target(INVOKED_DATA), completed)
