"""Special capability registers, CSRs, traps by instruction and the return from them. The fast twin of `model.isa.system`."""

from typing import Any

import numpy as np

from capvisor.fastpath import capability
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.isa.memory import put_where
from capvisor.fastpath.machine import MEPCC, PCC, SEPCC, SPECIAL_ROWS, Block, Register, operation, pcc_at
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.formats import Permission
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

_SPECIAL = {row.number: row for row in SPECIAL_REGISTERS.values()}
_STATUS_ROWS = STATUS_REGISTERS
_STATUS = {row.number: row.name for row in _STATUS_ROWS.values()}
_ALL = 0xFFFF_FFFF_FFFF_FFFF
_FIELDS = {"mstatus": MSTATUS_FIELDS, "sstatus": SSTATUS_FIELDS}
_ENVIRONMENT_CALLS = {
    Privilege.USER: "UserEnvironmentCall",
    Privilege.SUPERVISOR: "SupervisorEnvironmentCall",
    Privilege.MACHINE: "EnvironmentCall",
}
VECTORS, RETURNS = ("mtcc", "stcc"), ("mepcc", "sepcc")
"""The special registers that hold a trap vector, and those that hold where a return from a trap goes."""


def check_system_access(block: Block, least: Privilege, register: int = PCC_INDEX) -> Flags:
    """The mode must have some privilege, and PCC permit access to system registers; the lanes in which both, in scratch."""
    passed = block.ws.isa_flags[0]
    capability.permits(block.format, block.capability(PCC).meta, Permission.ACCESS_SYSTEM_REGISTERS, block.ws, passed)
    block.refuse_unless(passed, "AccessSystemRegsViolation", register)
    np.less(block.number("privilege"), least, out=passed)
    block.refuse(passed, "IllegalInstruction", 0)
    return block.completed(passed)


def refuse_all(block: Block, cause: str, value: Words | int) -> None:
    """Refuse every lane."""
    everywhere = block.ws.isa_flags[0]
    everywhere.fill(True)
    block.refuse(everywhere, cause, value)


def legal_vector(block: Block, before: Words, address: Words, out: Words) -> None:
    """out = a trap vector as it may be written: one of a mode above 1 keeps the mode that was there."""
    mode, unknown = block.ws.isa[5], block.ws.isa_flags[5]
    np.bitwise_and(address, 2, out=mode)
    np.not_equal(mode, 0, out=unknown)
    np.bitwise_and(before, 3, out=mode)
    np.bitwise_xor(mode, address, out=mode)
    np.bitwise_and(mode, 3, out=mode)
    # Where the mode is unknown, its two bits become those that are there.
    np.multiply(mode, unknown, out=mode)
    np.bitwise_xor(address, mode, out=out)


def legal_epcc(block: Block, cap: Lanes, out: Lanes) -> None:
    """out = MEPCC or SEPCC at an even address, untagged where a sealed one had to be moved."""
    address, odd = block.ws.isa[5], block.ws.isa_flags[5]
    np.bitwise_and(cap.address, block.format.address_mask - 1, out=address)
    np.not_equal(cap.address, address, out=odd)
    capability.set_address(block.format, cap, address, block.ws, out)
    np.logical_not(odd, out=odd)
    np.copyto(out.tag, cap.tag, where=odd)


@operation("cspecialrw")
def cspecialrw(block: Block, cd: Register, scr: int, cs1: Register) -> None:
    fmt, ws = block.format, block.ws
    row = _SPECIAL.get(scr)
    if row is None:
        refuse_all(block, "IllegalInstruction", 0)
        return
    completed = ws.isa_flags[0]
    completed.fill(True)
    if row.needs_system_access:
        completed = check_system_access(block, row.privilege, PCC_INDEX + scr)
    writes = ws.isa_flags[1]
    np.copyto(writes, np.not_equal(cs1, 0))
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
    elif row.name in RETURNS:
        legal_epcc(block, block.capability(SPECIAL_ROWS[row.name]), before)
    else:
        capability.copy(block.capability(SPECIAL_ROWS[row.name]), before)
    if row.name in VECTORS:
        vector = ws.isa[0]
        legal_vector(block, block.capability(SPECIAL_ROWS[row.name]).address, value.address, vector)
        capability.set_address(fmt, value, vector, ws, value)
    put_where(value, block.special(SPECIAL_ROWS[row.name]), writes)
    put_where(before, block.target(cd), completed)


# -- CSRs ------------------------------------------------------------------------------------------------------------------


def read_status(block: Block, name: str, out: Words) -> None:
    """out = the CSR."""
    held = _STATUS_ROWS[name].part_of or name
    if held in VECTORS:
        np.copyto(out, block.capability(SPECIAL_ROWS[held]).address)
    elif held in RETURNS:
        np.bitwise_and(block.capability(SPECIAL_ROWS[held]).address, block.format.address_mask - 1, out=out)
    elif held == "mstatus":
        np.bitwise_and(block.number(held), _FIELDS[name], out=out)
        np.bitwise_or(out, STATUS_WIDTHS[name, block.format.address_width], out=out)
    else:
        np.copyto(out, block.number(name))


def write_status(block: Block, name: str, value: Words, where: Flags) -> None:
    """Write a CSR in some lanes. Spoils `value`."""
    held = _STATUS_ROWS[name].part_of or name
    if held in (*VECTORS, *RETURNS):
        row = SPECIAL_ROWS[held]
        moved = Lanes(block.ws.isa_flags[2], block.ws.isa[3], block.ws.isa[4])
        if held in VECTORS:
            legal_vector(block, block.capability(row).address, value, value)
        capability.set_address(block.format, block.capability(row), value, block.ws, moved)
        put_where(moved, block.special(row), where)
    elif held == "mstatus":
        merge_status(block, block.number(held), _FIELDS[name], value)
        np.copyto(block.number(held), value, where=where)
    else:
        np.copyto(block.number(name), value, where=where)


def merge_status(block: Block, status: Words, fields: int, value: Words) -> None:
    """value = mstatus with some fields of the value, but not with an MPP that is no mode."""
    changed, unknown = block.ws.isa[3], block.ws.isa_flags[2]
    np.bitwise_xor(value, status, out=changed)
    np.bitwise_and(changed, fields, out=changed)
    np.bitwise_xor(changed, status, out=value)
    np.bitwise_and(value, MSTATUS_MPP, out=value)
    np.equal(value, 2 << MPP_SHIFT, out=unknown)
    np.bitwise_and(changed, _ALL & ~MSTATUS_MPP, out=value)
    np.copyto(changed, value, where=unknown)
    np.bitwise_xor(changed, status, out=value)


def access_status(block: Block, rd: Register, csr: int, source: Any, function: np.ufunc | None, writes: Any) -> None:
    """rd = the CSR; in the lanes that write, it becomes the source, or a function of itself and the source."""
    name = _STATUS.get(csr)
    if name is None:
        refuse_all(block, "IllegalInstruction", 0)
        return
    ws = block.ws
    completed = check_system_access(block, _STATUS_ROWS[name].privilege)
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
    here = block.ws.isa_flags[0]
    for mode, cause in _ENVIRONMENT_CALLS.items():
        np.equal(block.number("privilege"), mode, out=here)
        block.refuse(here, cause, 0)


@operation("ebreak")
def ebreak(block: Block) -> None:
    refuse_all(block, "Breakpoint", block.pc)


@operation("mret")
def mret(block: Block) -> None:
    return_from_trap(block, Privilege.MACHINE, (MSTATUS_MPIE, MSTATUS_MIE, MSTATUS_MPP, MPP_SHIFT), MEPCC)


@operation("sret")
def sret(block: Block) -> None:
    return_from_trap(block, Privilege.SUPERVISOR, (MSTATUS_SPIE, MSTATUS_SIE, MSTATUS_SPP, SPP_SHIFT), SEPCC)


def return_from_trap(block: Block, least: Privilege, fields: tuple[int, int, int, int], row: int) -> None:
    """Go on at the address in MEPCC or SEPCC, in the mode of a field of mstatus: two flags, that field, and where it is."""
    fmt, ws = block.format, block.ws
    completed = check_system_access(block, least)
    enabled_before, enables, previous, shift = fields
    status, enabled, value, mode = block.number("mstatus"), ws.isa_flags[1], ws.isa[0], ws.isa[1]
    np.bitwise_and(status, previous, out=mode)
    np.right_shift(mode, shift, out=mode)
    np.copyto(block.number("privilege"), mode, where=completed)
    np.bitwise_and(status, enabled_before, out=value)
    np.not_equal(value, 0, out=enabled)
    np.multiply(enabled, np.uint64(enables), out=value)
    np.bitwise_or(value, enabled_before, out=value)
    np.bitwise_and(status, _ALL & ~(enabled_before | enables | previous), out=mode)
    np.bitwise_or(value, mode, out=value)
    np.copyto(status, value, where=completed)
    np.copyto(block.is_reserved, False, where=completed)
    target = Lanes(ws.isa_flags[2], ws.isa[1], ws.isa[2])
    legal_epcc(block, block.capability(row), target)
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


@operation("fence.i")
def fence_i(block: Block) -> None:
    """Nothing: operations are injected."""
