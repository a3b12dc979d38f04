"""Special capability registers, CSRs, traps by instruction and the return from them. The fast twin of `model.isa.system`."""

from typing import Any

import numpy as np

from capvisor.fastpath import capability
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.isa.memory import put_where
from capvisor.fastpath.machine import MEPCC, MTCC, PCC, SPECIAL_ROWS, Block, Register, operation, pcc_at
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.formats import Permission
from capvisor.spec.registers import (
    MSTATUS_MIE,
    MSTATUS_MPIE,
    MSTATUS_MPP,
    PCC_INDEX,
    SPECIAL_REGISTERS,
    STATUS_REGISTERS,
)

_SPECIAL = {row.number: row for row in SPECIAL_REGISTERS.values()}
_STATUS = {row.number: row.name for row in STATUS_REGISTERS.values()}


def check_system_access(block: Block, register: int = PCC_INDEX) -> Flags:
    """PCC must permit access to system registers; the lanes in which it does, in scratch."""
    passed = block.ws.isa_flags[0]
    capability.permits(block.format, block.capability(PCC).meta, Permission.ACCESS_SYSTEM_REGISTERS, block.ws, passed)
    block.refuse_unless(passed, "AccessSystemRegsViolation", register)
    return block.completed(passed)


def refuse_all(block: Block, cause: str, value: Words | int) -> None:
    """Refuse every lane."""
    everywhere = block.ws.isa_flags[0]
    everywhere.fill(True)
    block.refuse(everywhere, cause, value)


def legal_vector(block: Block, address: Words, out: Words) -> None:
    """out = a trap vector as it may be written to MTCC: one of a mode above 1 keeps the mode that is there."""
    mode, unknown, before = block.ws.isa[5], block.ws.isa_flags[5], block.capability(MTCC).address
    np.bitwise_and(address, 2, out=mode)
    np.not_equal(mode, 0, out=unknown)
    np.bitwise_and(before, 3, out=mode)
    np.bitwise_xor(mode, address, out=mode)
    np.bitwise_and(mode, 3, out=mode)
    # Where the mode is unknown, its two bits become those that are there.
    np.multiply(mode, unknown, out=mode)
    np.bitwise_xor(address, mode, out=out)


def legal_mepcc(block: Block, out: Lanes) -> None:
    """out = MEPCC at an even address, untagged where a sealed one had to be moved."""
    mepcc, address, odd = block.capability(MEPCC), block.ws.isa[5], block.ws.isa_flags[5]
    np.bitwise_and(mepcc.address, block.format.address_mask - 1, out=address)
    np.not_equal(mepcc.address, address, out=odd)
    capability.set_address(block.format, mepcc, address, block.ws, out)
    np.logical_not(odd, out=odd)
    np.copyto(out.tag, mepcc.tag, where=odd)


@operation("cspecialrw")
def cspecialrw(block: Block, cd: Register, scr: int, cs1: Register) -> None:
    fmt, ws = block.format, block.ws
    row = _SPECIAL.get(scr)
    if row is None:
        refuse_all(block, "IllegalInstruction", 0)
        return
    writes = ws.isa_flags[1]
    np.copyto(writes, np.not_equal(cs1, 0))
    completed = ws.isa_flags[0]
    completed.fill(True)
    if row.needs_system_access:
        completed = check_system_access(block, PCC_INDEX + scr)
    if not row.is_writable:
        block.refuse(writes, "IllegalInstruction", 0)
        block.completed(completed)
    np.logical_and(writes, completed, out=writes)
    value, before = (Lanes(ws.isa_flags[2 + n], ws.isa[1 + 2 * n], ws.isa[2 + 2 * n]) for n in range(2))
    capability.copy(block.capability(cs1), value)
    if row.name == "pcc":
        pcc = block.capability(PCC)
        np.copyto(before.meta, pcc.meta)
        np.copyto(before.address, block.pc)
        pcc_at(fmt, pcc, block.pc, ws, before.tag)
    elif row.name == "mepcc":
        legal_mepcc(block, before)
    else:
        capability.copy(block.capability(SPECIAL_ROWS[row.name]), before)
    if row.name == "mtcc":
        vector = ws.isa[0]
        legal_vector(block, value.address, vector)
        capability.set_address(fmt, value, vector, ws, value)
    put_where(value, block.special(SPECIAL_ROWS[row.name]), writes)
    put_where(before, block.target(cd), completed)


# -- CSRs ------------------------------------------------------------------------------------------------------------------


def read_status(block: Block, name: str, out: Words) -> None:
    """out = the CSR."""
    match name:
        case "mtvec":
            np.copyto(out, block.capability(MTCC).address)
        case "mepc":
            np.bitwise_and(block.capability(MEPCC).address, block.format.address_mask - 1, out=out)
        case _:
            np.copyto(out, block.number(name))


def write_status(block: Block, name: str, value: Words, where: Flags) -> None:
    """Write a CSR in some lanes. Spoils `value`."""
    match name:
        case "mstatus":
            np.bitwise_and(value, MSTATUS_MIE | MSTATUS_MPIE, out=value)
            np.bitwise_or(value, MSTATUS_MPP, out=value)
            np.copyto(block.number(name), value, where=where)
        case "mtvec" | "mepc":
            row = MTCC if name == "mtvec" else MEPCC
            moved = Lanes(block.ws.isa_flags[2], block.ws.isa[3], block.ws.isa[4])
            if row == MTCC:
                legal_vector(block, value, value)
            capability.set_address(block.format, block.capability(row), value, block.ws, moved)
            put_where(moved, block.special(row), where)
        case _:
            np.copyto(block.number(name), value, where=where)


def access_status(block: Block, rd: Register, csr: int, source: Any, function: np.ufunc | None, writes: Any) -> None:
    """rd = the CSR; in the lanes that write, it becomes the source, or a function of itself and the source."""
    name = _STATUS.get(csr)
    if name is None:
        refuse_all(block, "IllegalInstruction", 0)
        return
    ws = block.ws
    completed = check_system_access(block)
    before, value, where = ws.isa[0], ws.isa[1], ws.isa_flags[1]
    read_status(block, name, before)
    if function is None:
        np.copyto(value, source)
    else:
        function(before, source, out=value)
    np.logical_and(completed, writes, out=where)
    write_status(block, name, value, where)
    block.write_integer_where(rd, before, completed)


@operation("csrrw")
def csrrw(block: Block, rd: Register, csr: int, rs1: Register) -> None:
    access_status(block, rd, csr, block.integer(rs1), None, True)


@operation("csrrs")
def csrrs(block: Block, rd: Register, csr: int, rs1: Register) -> None:
    access_status(block, rd, csr, block.integer(rs1), np.bitwise_or, np.not_equal(rs1, 0))


@operation("csrrc")
def csrrc(block: Block, rd: Register, csr: int, rs1: Register) -> None:
    kept = block.ws.isa[2]
    np.bitwise_xor(block.integer(rs1), block.format.address_mask, out=kept)
    access_status(block, rd, csr, kept, np.bitwise_and, np.not_equal(rs1, 0))


@operation("csrrwi")
def csrrwi(block: Block, rd: Register, csr: int, uimm5: Any) -> None:
    access_status(block, rd, csr, uimm5, None, True)


@operation("csrrsi")
def csrrsi(block: Block, rd: Register, csr: int, uimm5: Any) -> None:
    access_status(block, rd, csr, uimm5, np.bitwise_or, np.not_equal(uimm5, 0))


@operation("csrrci")
def csrrci(block: Block, rd: Register, csr: int, uimm5: Any) -> None:
    access_status(block, rd, csr, uimm5 ^ block.format.address_mask, np.bitwise_and, np.not_equal(uimm5, 0))


# -- traps -----------------------------------------------------------------------------------------------------------------


@operation("ecall")
def ecall(block: Block) -> None:
    refuse_all(block, "EnvironmentCall", 0)


@operation("ebreak")
def ebreak(block: Block) -> None:
    refuse_all(block, "Breakpoint", block.pc)


@operation("mret")
def mret(block: Block) -> None:
    fmt, ws = block.format, block.ws
    completed = check_system_access(block)
    status, enabled, value = block.number("mstatus"), ws.isa_flags[1], ws.isa[0]
    np.bitwise_and(status, MSTATUS_MPIE, out=value)
    np.not_equal(value, 0, out=enabled)
    np.multiply(enabled, np.uint64(MSTATUS_MIE), out=value)
    np.bitwise_or(value, MSTATUS_MPP | MSTATUS_MPIE, out=value)
    np.copyto(status, value, where=completed)
    np.copyto(block.is_reserved, False, where=completed)
    target = Lanes(ws.isa_flags[2], ws.isa[1], ws.isa[2])
    legal_mepcc(block, target)
    otype, is_sentry = ws.isa[3], ws.isa_flags[3]
    np.bitwise_and(target.meta, fmt.otype.in_place, out=otype)
    np.equal(otype, (fmt.otype_sentry & fmt.otype.mask) << fmt.otype.low, out=is_sentry)
    capability.set_otype(fmt, target.meta, fmt.otype_unsealed, otype)
    np.copyto(target.meta, otype, where=is_sentry)
    put_where(target, block.special(PCC), completed)
    np.copyto(block.next_pc, target.address, where=completed)


@operation("fence")
def fence(block: Block) -> None:
    """Nothing, on one hart."""
