"""Loads and stores: by capability with an offset, and with explicit addressing, by capability (.cap) or by DDC (.ddc)."""

from typing import NamedTuple

from capvisor.model import capability
from capvisor.model.bits import not_, select, sign_extend
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Register, Trap, operation
from capvisor.model.memory import Granule
from capvisor.spec.formats import CACHE_LINE_BYTES, Permission
from capvisor.spec.registers import DDC_INDEX


class Access(NamedTuple):
    """What authorises an access, the number that a trap value names it by, and the address."""

    authority: Capability
    register: Register
    address: int


def by_capability(hart: Hart, cs1: Register, imm: int = 0) -> Access:
    """The access at cs1 + imm, by cs1."""
    authority = hart.capability(cs1)
    return Access(authority, cs1, authority.address + imm & hart.format.address_mask)


def by_ddc(hart: Hart, rs1: Register) -> Access:
    """The access at DDC's address + rs1, by DDC. Source: ddc_and_resulting_addr."""
    return Access(hart.ddc, DDC_INDEX, hart.ddc.address + hart.integer(rs1) & hart.format.address_mask)


def check_authority(access: Access, permission: Permission) -> None:
    """The checks with which every access begins."""
    if not_(access.authority.tag):
        raise Trap("TagViolation", access.register)
    if access.authority.is_sealed:
        raise Trap("SealViolation", access.register)
    if not_(access.authority.permits(permission)):
        cause = "PermitLoadViolation" if permission is Permission.LOAD else "PermitStoreViolation"
        raise Trap(cause, access.register)


def check_bounds(access: Access, size_bytes: int) -> None:
    """The access must lie in the bounds of its authority."""
    if not_(capability.within_bounds(access.authority, access.address, size_bytes)):
        raise Trap("LengthViolation", access.register)


def load_data(hart: Hart, rd: Register, access: Access, size_bytes: int, *, signed: bool) -> None:
    """Load `size_bytes`, at any alignment."""
    # CHECKS
    check_authority(access, Permission.LOAD)
    check_bounds(access, size_bytes)
    if not_(hart.memory.contains(access.address, size_bytes)):
        raise Trap("LoadAccessFault", address=access.address)
    # EFFECT
    value = hart.memory.read(access.address, size_bytes)
    hart.write_integer(rd, sign_extend(value, 8 * size_bytes) if signed else value)


def load_capability(hart: Hart, cd: Register, access: Access) -> None:
    """Load a capability; without permission to load capabilities its tag is dropped."""
    # OPERANDS
    authority, address, size_bytes = access.authority, access.address, hart.format.capability_bytes
    # CHECKS
    check_authority(access, Permission.LOAD)
    check_bounds(access, size_bytes)
    if address & size_bytes - 1 != 0:
        raise Trap("LoadAddressMisaligned", address=address)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("LoadAccessFault", address=address)
    # EFFECT
    tag, upper, lower = hart.memory.read_granule(address)
    loaded = capability.from_memory(hart.format, tag, upper, lower)
    hart.write(cd, loaded.tagged_if(authority.permits(Permission.LOAD_CAPABILITY)))


def store_data(hart: Hart, rs2: Register, access: Access, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2, at any alignment; the tags of the granules touched are cleared."""
    # CHECKS
    check_authority(access, Permission.STORE)
    check_bounds(access, size_bytes)
    if not_(hart.memory.contains(access.address, size_bytes)):
        raise Trap("StoreAMOAccessFault", address=access.address)
    # EFFECT
    hart.memory.write(access.address, size_bytes, hart.integer(rs2))


def store_capability(hart: Hart, cs2: Register, access: Access) -> None:
    """Store a capability with its tag; a tagged one needs permission, a tagged local one needs more."""
    # OPERANDS
    authority, register, address = access
    stored, size_bytes = hart.capability(cs2), hart.format.capability_bytes
    # CHECKS
    check_authority(access, Permission.STORE)
    if stored.tag & not_(authority.permits(Permission.STORE_CAPABILITY)):
        raise Trap("PermitStoreCapViolation", register)
    local = not_(stored.permits(Permission.GLOBAL))
    if stored.tag & local & not_(authority.permits(Permission.STORE_LOCAL_CAPABILITY)):
        raise Trap("PermitStoreLocalCapViolation", register)
    check_bounds(access, size_bytes)
    if address & size_bytes - 1 != 0:
        raise Trap("StoreAMOAddressMisaligned", address=address)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("StoreAMOAccessFault", address=address)
    # EFFECT
    hart.memory.write_granule(address, Granule(stored.tag, capability.memory_meta(stored), stored.address))


@operation("clb")
def clb(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load a byte, sign-extended."""
    load_data(hart, rd, by_capability(hart, cs1, imm), 1, signed=True)


@operation("clh")
def clh(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 2 bytes, sign-extended."""
    load_data(hart, rd, by_capability(hart, cs1, imm), 2, signed=True)


@operation("clw")
def clw(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 4 bytes, sign-extended."""
    load_data(hart, rd, by_capability(hart, cs1, imm), 4, signed=True)


@operation("cld")
def cld(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 8 bytes."""
    load_data(hart, rd, by_capability(hart, cs1, imm), 8, signed=False)


@operation("clbu")
def clbu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load a byte, zero-extended."""
    load_data(hart, rd, by_capability(hart, cs1, imm), 1, signed=False)


@operation("clhu")
def clhu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 2 bytes, zero-extended."""
    load_data(hart, rd, by_capability(hart, cs1, imm), 2, signed=False)


@operation("clwu")
def clwu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 4 bytes, zero-extended."""
    load_data(hart, rd, by_capability(hart, cs1, imm), 4, signed=False)


@operation("clc")
def clc(hart: Hart, cd: Register, imm: int, cs1: Register) -> None:
    """Load a capability; without permission to load capabilities its tag is dropped."""
    load_capability(hart, cd, by_capability(hart, cs1, imm))


@operation("csb")
def csb(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store a byte."""
    store_data(hart, rs2, by_capability(hart, cs1, imm), 1)


@operation("csh")
def csh(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 2 bytes."""
    store_data(hart, rs2, by_capability(hart, cs1, imm), 2)


@operation("csw")
def csw(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 4 bytes."""
    store_data(hart, rs2, by_capability(hart, cs1, imm), 4)


@operation("csd")
def csd(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 8 bytes."""
    store_data(hart, rs2, by_capability(hart, cs1, imm), 8)


@operation("csc")
def csc(hart: Hart, cs2: Register, imm: int, cs1: Register) -> None:
    """Store a capability with its tag; a tagged one needs permission, a tagged local one needs more."""
    store_capability(hart, cs2, by_capability(hart, cs1, imm))


@operation("cloadtags")
def cloadtags(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load the tags of the cache line at cs1, as bits from the lowest address on."""
    # OPERANDS
    access, size_bytes = by_capability(hart, cs1), CACHE_LINE_BYTES
    # CHECKS
    check_authority(access, Permission.LOAD)
    if not_(access.authority.permits(Permission.LOAD_CAPABILITY)):
        raise Trap("PermitLoadCapViolation", cs1)
    check_bounds(access, size_bytes)
    if access.address & size_bytes - 1 != 0:
        raise Trap("LoadAddressMisaligned", address=access.address)
    if not_(hart.memory.contains(access.address, size_bytes)):
        raise Trap("LoadAccessFault", address=access.address)
    # EFFECT
    tags = 0
    for number, offset in enumerate(range(0, size_bytes, hart.format.capability_bytes)):
        tags = tags | select(hart.memory.read_granule(access.address + offset).tag, 1 << number, 0)
    hart.write_integer(rd, tags)


@operation("lb.cap")
def lb_cap(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load a byte by capability, without offset, sign-extended."""
    load_data(hart, rd, by_capability(hart, cs1), 1, signed=True)


@operation("lh.cap")
def lh_cap(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load 2 bytes by capability, without offset, sign-extended."""
    load_data(hart, rd, by_capability(hart, cs1), 2, signed=True)


@operation("lw.cap")
def lw_cap(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load 4 bytes by capability, without offset, sign-extended."""
    load_data(hart, rd, by_capability(hart, cs1), 4, signed=True)


@operation("ld.cap")
def ld_cap(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load 8 bytes by capability, without offset."""
    load_data(hart, rd, by_capability(hart, cs1), 8, signed=False)


@operation("lbu.cap")
def lbu_cap(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load a byte by capability, without offset, zero-extended."""
    load_data(hart, rd, by_capability(hart, cs1), 1, signed=False)


@operation("lhu.cap")
def lhu_cap(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load 2 bytes by capability, without offset, zero-extended."""
    load_data(hart, rd, by_capability(hart, cs1), 2, signed=False)


@operation("lwu.cap")
def lwu_cap(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load 4 bytes by capability, without offset, zero-extended."""
    load_data(hart, rd, by_capability(hart, cs1), 4, signed=False)


@operation("lc.cap")
def lc_cap(hart: Hart, cd: Register, cs1: Register) -> None:
    """Load a capability by capability, without offset; without permission to load capabilities its tag is dropped."""
    load_capability(hart, cd, by_capability(hart, cs1))


@operation("sb.cap")
def sb_cap(hart: Hart, rs2: Register, cs1: Register) -> None:
    """Store a byte by capability, without offset."""
    store_data(hart, rs2, by_capability(hart, cs1), 1)


@operation("sh.cap")
def sh_cap(hart: Hart, rs2: Register, cs1: Register) -> None:
    """Store 2 bytes by capability, without offset."""
    store_data(hart, rs2, by_capability(hart, cs1), 2)


@operation("sw.cap")
def sw_cap(hart: Hart, rs2: Register, cs1: Register) -> None:
    """Store 4 bytes by capability, without offset."""
    store_data(hart, rs2, by_capability(hart, cs1), 4)


@operation("sd.cap")
def sd_cap(hart: Hart, rs2: Register, cs1: Register) -> None:
    """Store 8 bytes by capability, without offset."""
    store_data(hart, rs2, by_capability(hart, cs1), 8)


@operation("sc.cap")
def sc_cap(hart: Hart, cs2: Register, cs1: Register) -> None:
    """As csc, without offset."""
    store_capability(hart, cs2, by_capability(hart, cs1))


@operation("lb.ddc")
def lb_ddc(hart: Hart, rd: Register, rs1: Register) -> None:
    """Load a byte by DDC, sign-extended."""
    load_data(hart, rd, by_ddc(hart, rs1), 1, signed=True)


@operation("lh.ddc")
def lh_ddc(hart: Hart, rd: Register, rs1: Register) -> None:
    """Load 2 bytes by DDC, sign-extended."""
    load_data(hart, rd, by_ddc(hart, rs1), 2, signed=True)


@operation("lw.ddc")
def lw_ddc(hart: Hart, rd: Register, rs1: Register) -> None:
    """Load 4 bytes by DDC, sign-extended."""
    load_data(hart, rd, by_ddc(hart, rs1), 4, signed=True)


@operation("ld.ddc")
def ld_ddc(hart: Hart, rd: Register, rs1: Register) -> None:
    """Load 8 bytes by DDC."""
    load_data(hart, rd, by_ddc(hart, rs1), 8, signed=False)


@operation("lbu.ddc")
def lbu_ddc(hart: Hart, rd: Register, rs1: Register) -> None:
    """Load a byte by DDC, zero-extended."""
    load_data(hart, rd, by_ddc(hart, rs1), 1, signed=False)


@operation("lhu.ddc")
def lhu_ddc(hart: Hart, rd: Register, rs1: Register) -> None:
    """Load 2 bytes by DDC, zero-extended."""
    load_data(hart, rd, by_ddc(hart, rs1), 2, signed=False)


@operation("lwu.ddc")
def lwu_ddc(hart: Hart, rd: Register, rs1: Register) -> None:
    """Load 4 bytes by DDC, zero-extended."""
    load_data(hart, rd, by_ddc(hart, rs1), 4, signed=False)


@operation("lc.ddc")
def lc_ddc(hart: Hart, cd: Register, rs1: Register) -> None:
    """Load a capability by DDC; without permission to load capabilities its tag is dropped."""
    load_capability(hart, cd, by_ddc(hart, rs1))


@operation("sb.ddc")
def sb_ddc(hart: Hart, rs2: Register, rs1: Register) -> None:
    """Store a byte by DDC."""
    store_data(hart, rs2, by_ddc(hart, rs1), 1)


@operation("sh.ddc")
def sh_ddc(hart: Hart, rs2: Register, rs1: Register) -> None:
    """Store 2 bytes by DDC."""
    store_data(hart, rs2, by_ddc(hart, rs1), 2)


@operation("sw.ddc")
def sw_ddc(hart: Hart, rs2: Register, rs1: Register) -> None:
    """Store 4 bytes by DDC."""
    store_data(hart, rs2, by_ddc(hart, rs1), 4)


@operation("sd.ddc")
def sd_ddc(hart: Hart, rs2: Register, rs1: Register) -> None:
    """Store 8 bytes by DDC."""
    store_data(hart, rs2, by_ddc(hart, rs1), 8)


@operation("sc.ddc")
def sc_ddc(hart: Hart, cs2: Register, rs1: Register) -> None:
    """As csc, by DDC."""
    store_capability(hart, cs2, by_ddc(hart, rs1))
