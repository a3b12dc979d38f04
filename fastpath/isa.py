"""What each operation does to a block of lanes: the fast twin of `model.isa`.

A kernel reads all sources before it writes its target, which may be the same register. Kernels that can be refused leave
the cause of each lane in `block.cause`, by the order of the table's traps, and touch no other state of a refused lane.
"""

from typing import Any

import numpy as np

from capvisor.fastpath import bounds, capability
from capvisor.fastpath.bits import shift_right_signed, sign_extend
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import Block, operation
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.formats import Permission
from capvisor.spec.traps import CAUSES_BY_NAME

# -- inspection --------------------------------------------------------------------------------------------------------


@operation("cgetperm")
def cgetperm(block: Block, rd: int, cs1: int) -> None:
    result = block.ws.isa[0]
    capability.get_permissions(block.format, block.capability(cs1).meta, block.ws, result)
    write_integer(block, rd, result)


@operation("cgettype")
def cgettype(block: Block, rd: int, cs1: int) -> None:
    result = block.ws.isa[0]
    capability.get_otype(block.format, block.capability(cs1).meta, block.ws, result)
    write_integer(block, rd, result)


@operation("cgetbase")
def cgetbase(block: Block, rd: int, cs1: int) -> None:
    result = block.ws.isa[0]
    capability.get_base(block.format, block.capability(cs1), block.ws, result)
    write_integer(block, rd, result)


@operation("cgetlen")
def cgetlen(block: Block, rd: int, cs1: int) -> None:
    result = block.ws.isa[0]
    capability.get_length(block.format, block.capability(cs1), block.ws, result)
    write_integer(block, rd, result)


@operation("cgettop")
def cgettop(block: Block, rd: int, cs1: int) -> None:
    result = block.ws.isa[0]
    capability.get_top(block.format, block.capability(cs1), block.ws, result)
    write_integer(block, rd, result)


@operation("cgettag")
def cgettag(block: Block, rd: int, cs1: int) -> None:
    write_flag(block, rd, block.capability(cs1).tag)


@operation("cgetsealed")
def cgetsealed(block: Block, rd: int, cs1: int) -> None:
    sealed = block.ws.isa_flags[0]
    capability.is_unsealed(block.format, block.capability(cs1).meta, block.ws, sealed)
    np.logical_not(sealed, out=sealed)
    write_flag(block, rd, sealed)


@operation("cgetoffset")
def cgetoffset(block: Block, rd: int, cs1: int) -> None:
    result = block.ws.isa[0]
    capability.get_offset(block.format, block.capability(cs1), block.ws, result)
    write_integer(block, rd, result)


@operation("cgetflags")
def cgetflags(block: Block, rd: int, cs1: int) -> None:
    result = block.ws.isa[0]
    capability.get_flags(block.format, block.capability(cs1).meta, result)
    write_integer(block, rd, result)


@operation("cgetaddr")
def cgetaddr(block: Block, rd: int, cs1: int) -> None:
    write_integer(block, rd, block.integer(cs1))


@operation("cgethigh")
def cgethigh(block: Block, rd: int, cs1: int) -> None:
    result = block.ws.isa[0]
    capability.to_memory(block.format, block.capability(cs1).meta, result)
    write_integer(block, rd, result)


@operation("crrl")
def crrl(block: Block, rd: int, rs1: int) -> None:
    result = block.ws.isa[0]
    bounds.representable_length(block.format, block.integer(rs1), block.ws, result)
    write_integer(block, rd, result)


@operation("cram")
def cram(block: Block, rd: int, rs1: int) -> None:
    result = block.ws.isa[0]
    bounds.alignment_mask(block.format, block.integer(rs1), block.ws, result)
    write_integer(block, rd, result)


# -- capability arithmetic ---------------------------------------------------------------------------------------------


@operation("csetbounds")
def csetbounds(block: Block, cd: int, cs1: int, rs2: int) -> None:
    exact = block.ws.isa_flags[0]
    length = block.integer(rs2)
    capability.set_bounds(block.format, block.capability(cs1), length, block.ws, block.target(cd), exact)


@operation("csetboundsimm")
def csetboundsimm(block: Block, cd: int, cs1: int, uimm: int) -> None:
    exact, length = block.ws.isa_flags[0], block.ws.isa[0]
    length.fill(uimm)
    capability.set_bounds(block.format, block.capability(cs1), length, block.ws, block.target(cd), exact)


@operation("csetboundsexact")
def csetboundsexact(block: Block, cd: int, cs1: int, rs2: int) -> None:
    exact, target = block.ws.isa_flags[0], block.target(cd)
    capability.set_bounds(block.format, block.capability(cs1), block.integer(rs2), block.ws, target, exact)
    np.logical_and(target.tag, exact, out=target.tag)


@operation("csetaddr")
def csetaddr(block: Block, cd: int, cs1: int, rs2: int) -> None:
    capability.set_address(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("csetoffset")
def csetoffset(block: Block, cd: int, cs1: int, rs2: int) -> None:
    capability.set_offset(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("cincoffset")
def cincoffset(block: Block, cd: int, cs1: int, rs2: int) -> None:
    capability.increment_address(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("cincoffsetimm")
def cincoffsetimm(block: Block, cd: int, cs1: int, imm: int) -> None:
    increment = block.ws.isa[0]
    increment.fill(imm & block.format.address_mask)
    capability.increment_address(block.format, block.capability(cs1), increment, block.ws, block.target(cd))


@operation("candperm")
def candperm(block: Block, cd: int, cs1: int, rs2: int) -> None:
    capability.and_permissions(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("csetflags")
def csetflags(block: Block, cd: int, cs1: int, rs2: int) -> None:
    capability.set_flags(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("csethigh")
def csethigh(block: Block, cd: int, cs1: int, rs2: int) -> None:
    upper, target = block.ws.isa[0], block.target(cd)
    capability.to_memory(block.format, block.integer(rs2), upper)
    np.copyto(target.address, block.integer(cs1))
    np.copyto(target.meta, upper)
    target.tag.fill(False)


@operation("cmove")
def cmove(block: Block, cd: int, cs1: int) -> None:
    capability.copy(block.capability(cs1), block.target(cd))


@operation("ccleartag")
def ccleartag(block: Block, cd: int, cs1: int) -> None:
    capability.copy(block.capability(cs1), block.target(cd))
    block.target(cd).tag.fill(False)


# -- sealing -----------------------------------------------------------------------------------------------------------


@operation("cseal")
def cseal(block: Block, cd: int, cs1: int, cs2: int) -> None:
    capability.seal(block.format, block.capability(cs1), block.capability(cs2), block.ws, block.target(cd))


@operation("cunseal")
def cunseal(block: Block, cd: int, cs1: int, cs2: int) -> None:
    capability.unseal(block.format, block.capability(cs1), block.capability(cs2), block.ws, block.target(cd))


@operation("ccseal")
def ccseal(block: Block, cd: int, cs1: int, cs2: int) -> None:
    capability.conditional_seal(block.format, block.capability(cs1), block.capability(cs2), block.ws, block.target(cd))


@operation("csealentry")
def csealentry(block: Block, cd: int, cs1: int) -> None:
    capability.seal_entry(block.format, block.capability(cs1), block.ws, block.target(cd))


@operation("cbuildcap")
def cbuildcap(block: Block, cd: int, cs1: int, cs2: int) -> None:
    capability.build(block.format, block.capability_or_ddc(cs1), block.capability(cs2), block.ws, block.target(cd))


@operation("ccopytype")
def ccopytype(block: Block, cd: int, cs1: int, cs2: int) -> None:
    capability.copy_type(block.format, block.capability(cs1), block.capability(cs2), block.ws, block.target(cd))


# -- comparison and conversion -----------------------------------------------------------------------------------------


@operation("ctestsubset")
def ctestsubset(block: Block, rd: int, cs1: int, cs2: int) -> None:
    inside = block.ws.isa_flags[0]
    capability.is_subset(block.format, block.capability(cs2), block.capability_or_ddc(cs1), block.ws, inside)
    write_flag(block, rd, inside)


@operation("cseqx")
def cseqx(block: Block, rd: int, cs1: int, cs2: int) -> None:
    same = block.ws.isa_flags[0]
    capability.equal(block.capability(cs1), block.capability(cs2), block.ws, same)
    write_flag(block, rd, same)


@operation("csub")
def csub(block: Block, rd: int, cs1: int, cs2: int) -> None:
    binary(block, np.subtract, rd, block.integer(cs1), block.integer(cs2))


@operation("ctoptr")
def ctoptr(block: Block, rd: int, cs1: int, cs2: int) -> None:
    pointer, base = block.capability(cs1), block.ws.isa[0]
    capability.get_base(block.format, block.capability_or_ddc(cs2), block.ws, base)
    np.subtract(pointer.address, base, out=base)
    np.multiply(base, pointer.tag, out=base)
    write_integer(block, rd, base)


@operation("cfromptr")
def cfromptr(block: Block, cd: int, cs1: int, rs2: int) -> None:
    is_null, target = block.ws.isa_flags[0], block.target(cd)
    np.equal(block.integer(rs2), 0, out=is_null)
    capability.set_offset(block.format, block.capability_or_ddc(cs1), block.integer(rs2), block.ws, target)
    np.copyto(target.tag, False, where=is_null)
    np.copyto(target.meta, block.format.null_meta, where=is_null)
    np.copyto(target.address, 0, where=is_null)


# -- loads and stores --------------------------------------------------------------------------------------------------


class Access:
    """One access by capability in every lane: its address, and its checks.

    Checks are made from the last in the architecture's order to the first, so that what stands in `cause` in the end is
    the cause that comes first.
    """

    def __init__(self, block: Block, register: int, offset: int) -> None:
        self.block, self.register = block, register
        self.authority: Lanes = block.capability(register)
        self.address: Words = block.ws.isa[0]
        self._passed: Flags = block.ws.isa_flags[0]
        np.add(self.authority.address, offset & block.format.address_mask, out=self.address)
        if block.format.address_width < 64:
            np.bitwise_and(self.address, block.format.address_mask, out=self.address)
        block.cause.fill(0)

    def refuse_unless(self, passed: Flags, cause: str) -> None:
        """Refuse, for this cause, the lanes in which a check has not been passed. Spoils `passed`."""
        np.logical_not(passed, out=passed)
        np.copyto(self.block.cause, CAUSES_BY_NAME[cause].number, where=passed)

    def check_memory(self, size_bytes: int, fault: str, misaligned: str | None = None) -> None:
        """The access must be in memory, and aligned if that matters."""
        block = self.block
        block.memory.contains(self.address, size_bytes, block.ws, self._passed)
        self.refuse_unless(self._passed, fault)
        if misaligned is not None:
            np.bitwise_and(self.address, size_bytes - 1, out=block.ws.bounds[0])
            np.equal(block.ws.bounds[0], 0, out=self._passed)
            self.refuse_unless(self._passed, misaligned)

    def check_bounds(self, size_bytes: int) -> None:
        """The access must lie in the bounds of its authority."""
        block = self.block
        capability.within_bounds(block.format, self.authority, self.address, size_bytes, block.ws, self._passed)
        self.refuse_unless(self._passed, "LengthViolation")

    def check_permission(self, permission: Permission, cause: str, needed: Flags | None = None) -> None:
        """The authority must hold a permission, in those lanes where it is needed."""
        capability.permits(self.block.format, self.authority.meta, permission, self.block.ws, self._passed)
        if needed is not None:
            np.logical_not(needed, out=needed)
            np.logical_or(self._passed, needed, out=self._passed)
        self.refuse_unless(self._passed, cause)

    def check_usable(self) -> None:
        """The authority must be unsealed and tagged: the checks that come before all others."""
        capability.is_unsealed(self.block.format, self.authority.meta, self.block.ws, self._passed)
        self.refuse_unless(self._passed, "SealViolation")
        np.copyto(self._passed, self.authority.tag)
        self.refuse_unless(self._passed, "TagViolation")

    def finish(self) -> Flags:
        """The lanes in which every check was passed. In the others the trap value is recorded."""
        block, refused = self.block, self._passed
        np.not_equal(block.cause, 0, out=refused)
        if refused.any():
            # A capability cause's number is the cause itself; numbers from 32 are memory exceptions, with their address.
            value, by_memory = block.ws.bounds[0], block.ws.bounds_flags[0]
            np.copyto(value, block.cause)
            np.bitwise_or(value, self.register << 5, out=value)
            np.copyto(block.trap_value, value, where=refused)
            np.greater_equal(block.cause, 32, out=by_memory)
            np.copyto(block.trap_value, self.address, where=by_memory)
        np.logical_not(refused, out=refused)
        return refused


def load_data(block: Block, rd: int, imm: int, cs1: int, size_bytes: int, *, signed: bool) -> None:
    """Load `size_bytes` at cs1 + imm, at any alignment."""
    access = Access(block, cs1, imm)
    access.check_memory(size_bytes, "LoadAccessFault")
    access.check_bounds(size_bytes)
    access.check_permission(Permission.LOAD, "PermitLoadViolation")
    access.check_usable()
    completed = access.finish()
    value = block.ws.isa[1]
    block.memory.read(access.address, size_bytes, block.ws, value)
    if signed:
        sign_extend(value, 8 * size_bytes, value)
        if block.format.address_width < 64:
            np.bitwise_and(value, block.format.address_mask, out=value)
    target = block.target(rd)
    np.copyto(target.tag, False, where=completed)
    np.copyto(target.meta, block.format.null_meta, where=completed)
    np.copyto(target.address, value, where=completed)


def store_data(block: Block, rs2: int, imm: int, cs1: int, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2 at cs1 + imm, at any alignment."""
    access = Access(block, cs1, imm)
    access.check_memory(size_bytes, "StoreAMOAccessFault")
    access.check_bounds(size_bytes)
    access.check_permission(Permission.STORE, "PermitStoreViolation")
    access.check_usable()
    completed = access.finish()
    block.memory.write(access.address, size_bytes, block.integer(rs2), block.ws, completed)


@operation("clb")
def clb(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(block, rd, imm, cs1, 1, signed=True)


@operation("clh")
def clh(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(block, rd, imm, cs1, 2, signed=True)


@operation("clw")
def clw(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(block, rd, imm, cs1, 4, signed=True)


@operation("cld")
def cld(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(block, rd, imm, cs1, 8, signed=False)


@operation("clbu")
def clbu(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(block, rd, imm, cs1, 1, signed=False)


@operation("clhu")
def clhu(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(block, rd, imm, cs1, 2, signed=False)


@operation("clwu")
def clwu(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(block, rd, imm, cs1, 4, signed=False)


@operation("clc")
def clc(block: Block, cd: int, imm: int, cs1: int) -> None:
    access = Access(block, cs1, imm)
    size_bytes = block.format.capability_bytes
    access.check_memory(size_bytes, "LoadAccessFault", "LoadAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_permission(Permission.LOAD, "PermitLoadViolation")
    access.check_usable()
    completed = access.finish()
    tag, may_load, meta, address = block.ws.isa_flags[1], block.ws.isa_flags[2], block.ws.isa[1], block.ws.isa[2]
    block.memory.read_granule(access.address, block.ws, tag, meta, address)
    capability.to_memory(block.format, meta, meta)
    capability.permits(block.format, access.authority.meta, Permission.LOAD_CAPABILITY, block.ws, may_load)
    np.logical_and(tag, may_load, out=tag)
    target = block.target(cd)
    np.copyto(target.tag, tag, where=completed)
    np.copyto(target.meta, meta, where=completed)
    np.copyto(target.address, address, where=completed)


@operation("csb")
def csb(block: Block, rs2: int, imm: int, cs1: int) -> None:
    store_data(block, rs2, imm, cs1, 1)


@operation("csh")
def csh(block: Block, rs2: int, imm: int, cs1: int) -> None:
    store_data(block, rs2, imm, cs1, 2)


@operation("csw")
def csw(block: Block, rs2: int, imm: int, cs1: int) -> None:
    store_data(block, rs2, imm, cs1, 4)


@operation("csd")
def csd(block: Block, rs2: int, imm: int, cs1: int) -> None:
    store_data(block, rs2, imm, cs1, 8)


@operation("csc")
def csc(block: Block, cs2: int, imm: int, cs1: int) -> None:
    access, stored = Access(block, cs1, imm), block.capability(cs2)
    size_bytes = block.format.capability_bytes
    needed, meta = block.ws.isa_flags[1], block.ws.isa[1]
    access.check_memory(size_bytes, "StoreAMOAccessFault", "StoreAMOAddressMisaligned")
    access.check_bounds(size_bytes)
    capability.permits(block.format, stored.meta, Permission.GLOBAL, block.ws, needed)
    np.greater(stored.tag, needed, out=needed)  # tagged and not global
    access.check_permission(Permission.STORE_LOCAL_CAPABILITY, "PermitStoreLocalCapViolation", needed)
    np.copyto(needed, stored.tag)
    access.check_permission(Permission.STORE_CAPABILITY, "PermitStoreCapViolation", needed)
    access.check_permission(Permission.STORE, "PermitStoreViolation")
    access.check_usable()
    completed = access.finish()
    capability.to_memory(block.format, stored.meta, meta)
    block.memory.write_granule(access.address, stored.tag, meta, stored.address, block.ws, completed)


# -- integer -----------------------------------------------------------------------------------------------------------


@operation("li")
def li(block: Block, rd: int, value: Any) -> None:
    lanes = value[block.start : block.stop] if isinstance(value, np.ndarray) else value & block.format.address_mask
    block.make_integer(rd)
    np.copyto(block.integer_target(rd), lanes)


@operation("addi")
def addi(block: Block, rd: int, rs1: int, imm: int) -> None:
    binary(block, np.add, rd, block.integer(rs1), immediate(block, imm))


@operation("slti")
def slti(block: Block, rd: int, rs1: int, imm: int) -> None:
    less = block.ws.isa_flags[0]
    sign = 1 << block.format.address_width - 1
    np.bitwise_xor(block.integer(rs1), sign, out=block.ws.isa[0])
    np.less(block.ws.isa[0], immediate(block, imm) ^ sign, out=less)
    write_flag(block, rd, less)


@operation("sltiu")
def sltiu(block: Block, rd: int, rs1: int, imm: int) -> None:
    less = block.ws.isa_flags[0]
    np.less(block.integer(rs1), immediate(block, imm), out=less)
    write_flag(block, rd, less)


@operation("andi")
def andi(block: Block, rd: int, rs1: int, imm: int) -> None:
    binary(block, np.bitwise_and, rd, block.integer(rs1), immediate(block, imm))


@operation("ori")
def ori(block: Block, rd: int, rs1: int, imm: int) -> None:
    binary(block, np.bitwise_or, rd, block.integer(rs1), immediate(block, imm))


@operation("xori")
def xori(block: Block, rd: int, rs1: int, imm: int) -> None:
    binary(block, np.bitwise_xor, rd, block.integer(rs1), immediate(block, imm))


@operation("slli")
def slli(block: Block, rd: int, rs1: int, shamt: int) -> None:
    binary(block, np.left_shift, rd, block.integer(rs1), shamt)


@operation("srli")
def srli(block: Block, rd: int, rs1: int, shamt: int) -> None:
    binary(block, np.right_shift, rd, block.integer(rs1), shamt)


@operation("srai")
def srai(block: Block, rd: int, rs1: int, shamt: int) -> None:
    amount = block.ws.isa[0]
    amount.fill(shamt)
    shift_arithmetic(block, rd, block.integer(rs1), amount)


@operation("add")
def add(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.add, rd, block.integer(rs1), block.integer(rs2))


@operation("sub")
def sub(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.subtract, rd, block.integer(rs1), block.integer(rs2))


@operation("and")
def and_(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.bitwise_and, rd, block.integer(rs1), block.integer(rs2))


@operation("or")
def or_(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.bitwise_or, rd, block.integer(rs1), block.integer(rs2))


@operation("xor")
def xor(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.bitwise_xor, rd, block.integer(rs1), block.integer(rs2))


@operation("sll")
def sll(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.left_shift, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("srl")
def srl(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.right_shift, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("sra")
def sra(block: Block, rd: int, rs1: int, rs2: int) -> None:
    shift_arithmetic(block, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("slt")
def slt(block: Block, rd: int, rs1: int, rs2: int) -> None:
    less = block.ws.isa_flags[0]
    a, b = block.ws.isa[:2]
    sign = 1 << block.format.address_width - 1
    np.bitwise_xor(block.integer(rs1), sign, out=a)
    np.bitwise_xor(block.integer(rs2), sign, out=b)
    np.less(a, b, out=less)
    write_flag(block, rd, less)


@operation("sltu")
def sltu(block: Block, rd: int, rs1: int, rs2: int) -> None:
    less = block.ws.isa_flags[0]
    np.less(block.integer(rs1), block.integer(rs2), out=less)
    write_flag(block, rd, less)


def write_integer(block: Block, rd: int, values: Words) -> None:
    """rd = values, modulo 2**XLEN."""
    block.make_integer(rd)
    target = block.integer_target(rd)
    if block.format.address_width < 64:
        np.bitwise_and(values, block.format.address_mask, out=target)
    elif values is not target:
        np.copyto(target, values)


def write_flag(block: Block, rd: int, flags: Flags) -> None:
    """rd = 1 where the flag is set, else 0."""
    target = block.integer_target(rd)
    np.copyto(target, flags)
    block.make_integer(rd)


def binary(block: Block, function: np.ufunc, rd: int, a: Words, b: Words | int) -> None:
    """rd = function(a, b), modulo 2**XLEN."""
    target = block.integer_target(rd)
    function(a, b, out=target)
    write_integer(block, rd, target)


def immediate(block: Block, imm: int) -> int:
    """A sign-extended immediate as a register's value."""
    return imm & block.format.address_mask


def shift_amount(block: Block, register: int) -> Words:
    """How far a register says to shift: its lowest log2(XLEN) bits."""
    amount = block.ws.isa[0]
    np.bitwise_and(block.integer(register), block.format.address_width - 1, out=amount)
    return amount


def shift_arithmetic(block: Block, rd: int, values: Words, amount: Words) -> None:
    """rd = values, as numbers in two's complement, shifted right with copies of the sign moving in."""
    extended = block.ws.isa[1]
    if block.format.address_width < 64:
        sign_extend(values, block.format.address_width, extended)
        values = extended
    shift_right_signed(values, amount, extended)
    write_integer(block, rd, extended)
