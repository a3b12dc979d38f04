"""Loads and stores. The fast twin of `model.isa.memory`."""

import numpy as np

from capvisor.fastpath import capability
from capvisor.fastpath.bits import sign_extend
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import DDC, Block, operation
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.formats import CACHE_LINE_BYTES, Permission
from capvisor.spec.registers import DDC_INDEX
from capvisor.spec.traps import CAUSES_BY_NAME


class Access:
    """One access by capability in every lane: its address, and its checks.

    Checks are made from the last in the architecture's order to the first, so that what stands in `cause` in the end is
    the cause that comes first.
    """

    def __init__(self, block: Block, authority: Lanes, register: int) -> None:
        """Of an address that already stands in scratch, not yet reduced to the address width."""
        self.block, self.register = block, register
        self.authority = authority
        self.address: Words = block.ws.isa[0]
        self._passed: Flags = block.ws.isa_flags[0]
        if block.format.address_width < 64:
            np.bitwise_and(self.address, block.format.address_mask, out=self.address)
        block.cause.fill(0)

    @classmethod
    def by_capability(cls, block: Block, cs1: int, imm: int = 0) -> "Access":
        """The access at cs1 + imm, by cs1."""
        authority = block.capability(cs1)
        np.add(authority.address, imm & block.format.address_mask, out=block.ws.isa[0])
        return cls(block, authority, cs1)

    @classmethod
    def by_ddc(cls, block: Block, rs1: int) -> "Access":
        """The access at DDC's address + rs1, by DDC."""
        ddc = block.capability(DDC)
        np.add(ddc.address, block.integer(rs1), out=block.ws.isa[0])
        return cls(block, ddc, DDC_INDEX)

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


def load_data(access: Access, rd: int, size_bytes: int, *, signed: bool) -> None:
    """Load `size_bytes`, at any alignment."""
    block = access.block
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


def load_capability(access: Access, cd: int) -> None:
    """Load a capability; without permission to load capabilities its tag is dropped."""
    block = access.block
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


def store_data(access: Access, rs2: int, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2, at any alignment."""
    block = access.block
    access.check_memory(size_bytes, "StoreAMOAccessFault")
    access.check_bounds(size_bytes)
    access.check_permission(Permission.STORE, "PermitStoreViolation")
    access.check_usable()
    completed = access.finish()
    block.memory.write(access.address, size_bytes, block.integer(rs2), block.ws, completed)


def store_capability(access: Access, cs2: int) -> None:
    """Store a capability with its tag; a tagged one needs permission, a tagged local one needs more."""
    block = access.block
    stored = block.capability(cs2)
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


@operation("clb")
def clb(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1, imm), rd, 1, signed=True)


@operation("clh")
def clh(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1, imm), rd, 2, signed=True)


@operation("clw")
def clw(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1, imm), rd, 4, signed=True)


@operation("cld")
def cld(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1, imm), rd, 8, signed=False)


@operation("clbu")
def clbu(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1, imm), rd, 1, signed=False)


@operation("clhu")
def clhu(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1, imm), rd, 2, signed=False)


@operation("clwu")
def clwu(block: Block, rd: int, imm: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1, imm), rd, 4, signed=False)


@operation("clc")
def clc(block: Block, cd: int, imm: int, cs1: int) -> None:
    load_capability(Access.by_capability(block, cs1, imm), cd)


@operation("csb")
def csb(block: Block, rs2: int, imm: int, cs1: int) -> None:
    store_data(Access.by_capability(block, cs1, imm), rs2, 1)


@operation("csh")
def csh(block: Block, rs2: int, imm: int, cs1: int) -> None:
    store_data(Access.by_capability(block, cs1, imm), rs2, 2)


@operation("csw")
def csw(block: Block, rs2: int, imm: int, cs1: int) -> None:
    store_data(Access.by_capability(block, cs1, imm), rs2, 4)


@operation("csd")
def csd(block: Block, rs2: int, imm: int, cs1: int) -> None:
    store_data(Access.by_capability(block, cs1, imm), rs2, 8)


@operation("csc")
def csc(block: Block, cs2: int, imm: int, cs1: int) -> None:
    store_capability(Access.by_capability(block, cs1, imm), cs2)


@operation("cloadtags")
def cloadtags(block: Block, rd: int, cs1: int) -> None:
    access, size_bytes = Access.by_capability(block, cs1), CACHE_LINE_BYTES
    access.check_memory(size_bytes, "LoadAccessFault", "LoadAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_permission(Permission.LOAD_CAPABILITY, "PermitLoadCapViolation")
    access.check_permission(Permission.LOAD, "PermitLoadViolation")
    access.check_usable()
    completed = access.finish()
    tag, tags, meta, address = block.ws.isa_flags[1], block.ws.isa[1], block.ws.isa[2], block.ws.bounds[1]
    tags.fill(0)
    for number in range(size_bytes // block.format.capability_bytes):
        block.memory.read_granule(access.address, block.ws, tag, meta, address)
        np.bitwise_or(tags, 1 << number, out=tags, where=tag)
        np.add(access.address, block.format.capability_bytes, out=access.address)
    target = block.target(rd)
    np.copyto(target.tag, False, where=completed)
    np.copyto(target.meta, block.format.null_meta, where=completed)
    np.copyto(target.address, tags, where=completed)


@operation("lb.cap")
def lb_cap(block: Block, rd: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1), rd, 1, signed=True)


@operation("lh.cap")
def lh_cap(block: Block, rd: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1), rd, 2, signed=True)


@operation("lw.cap")
def lw_cap(block: Block, rd: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1), rd, 4, signed=True)


@operation("ld.cap")
def ld_cap(block: Block, rd: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1), rd, 8, signed=False)


@operation("lbu.cap")
def lbu_cap(block: Block, rd: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1), rd, 1, signed=False)


@operation("lhu.cap")
def lhu_cap(block: Block, rd: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1), rd, 2, signed=False)


@operation("lwu.cap")
def lwu_cap(block: Block, rd: int, cs1: int) -> None:
    load_data(Access.by_capability(block, cs1), rd, 4, signed=False)


@operation("lc.cap")
def lc_cap(block: Block, cd: int, cs1: int) -> None:
    load_capability(Access.by_capability(block, cs1), cd)


@operation("sb.cap")
def sb_cap(block: Block, rs2: int, cs1: int) -> None:
    store_data(Access.by_capability(block, cs1), rs2, 1)


@operation("sh.cap")
def sh_cap(block: Block, rs2: int, cs1: int) -> None:
    store_data(Access.by_capability(block, cs1), rs2, 2)


@operation("sw.cap")
def sw_cap(block: Block, rs2: int, cs1: int) -> None:
    store_data(Access.by_capability(block, cs1), rs2, 4)


@operation("sd.cap")
def sd_cap(block: Block, rs2: int, cs1: int) -> None:
    store_data(Access.by_capability(block, cs1), rs2, 8)


@operation("sc.cap")
def sc_cap(block: Block, cs2: int, cs1: int) -> None:
    store_capability(Access.by_capability(block, cs1), cs2)


@operation("lb.ddc")
def lb_ddc(block: Block, rd: int, rs1: int) -> None:
    load_data(Access.by_ddc(block, rs1), rd, 1, signed=True)


@operation("lh.ddc")
def lh_ddc(block: Block, rd: int, rs1: int) -> None:
    load_data(Access.by_ddc(block, rs1), rd, 2, signed=True)


@operation("lw.ddc")
def lw_ddc(block: Block, rd: int, rs1: int) -> None:
    load_data(Access.by_ddc(block, rs1), rd, 4, signed=True)


@operation("ld.ddc")
def ld_ddc(block: Block, rd: int, rs1: int) -> None:
    load_data(Access.by_ddc(block, rs1), rd, 8, signed=False)


@operation("lbu.ddc")
def lbu_ddc(block: Block, rd: int, rs1: int) -> None:
    load_data(Access.by_ddc(block, rs1), rd, 1, signed=False)


@operation("lhu.ddc")
def lhu_ddc(block: Block, rd: int, rs1: int) -> None:
    load_data(Access.by_ddc(block, rs1), rd, 2, signed=False)


@operation("lwu.ddc")
def lwu_ddc(block: Block, rd: int, rs1: int) -> None:
    load_data(Access.by_ddc(block, rs1), rd, 4, signed=False)


@operation("lc.ddc")
def lc_ddc(block: Block, cd: int, rs1: int) -> None:
    load_capability(Access.by_ddc(block, rs1), cd)


@operation("sb.ddc")
def sb_ddc(block: Block, rs2: int, rs1: int) -> None:
    store_data(Access.by_ddc(block, rs1), rs2, 1)


@operation("sh.ddc")
def sh_ddc(block: Block, rs2: int, rs1: int) -> None:
    store_data(Access.by_ddc(block, rs1), rs2, 2)


@operation("sw.ddc")
def sw_ddc(block: Block, rs2: int, rs1: int) -> None:
    store_data(Access.by_ddc(block, rs1), rs2, 4)


@operation("sd.ddc")
def sd_ddc(block: Block, rs2: int, rs1: int) -> None:
    store_data(Access.by_ddc(block, rs1), rs2, 8)


@operation("sc.ddc")
def sc_ddc(block: Block, cs2: int, rs1: int) -> None:
    store_capability(Access.by_ddc(block, rs1), cs2)
