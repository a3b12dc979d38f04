"""Loads and stores by capability."""

from capvisor.model import capability
from capvisor.model.bits import not_, sign_extend
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Register, Trap, operation
from capvisor.model.memory import Granule
from capvisor.spec.formats import Permission


def check_authority(authority: Capability, register: Register, permission: Permission) -> None:
    """The checks with which every access by capability begins."""
    if not_(authority.tag):
        raise Trap("TagViolation", register)
    if authority.is_sealed:
        raise Trap("SealViolation", register)
    if not_(authority.permits(permission)):
        raise Trap("PermitLoadViolation" if permission is Permission.LOAD else "PermitStoreViolation", register)


def check_bounds(authority: Capability, register: Register, address: int, size_bytes: int) -> None:
    """The access must lie in the bounds of its authority."""
    if not_(capability.within_bounds(authority, address, size_bytes)):
        raise Trap("LengthViolation", register)


def load_data(hart: Hart, rd: Register, imm: int, cs1: Register, size_bytes: int, *, signed: bool) -> None:
    """Load `size_bytes` at cs1 + imm, at any alignment."""
    # OPERANDS
    authority = hart.capability(cs1)
    address = authority.address + imm & hart.format.address_mask
    # CHECKS
    check_authority(authority, cs1, Permission.LOAD)
    check_bounds(authority, cs1, address, size_bytes)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("LoadAccessFault", address=address)
    # EFFECT
    value = hart.memory.read(address, size_bytes)
    hart.write_integer(rd, sign_extend(value, 8 * size_bytes) if signed else value)


def store_data(hart: Hart, rs2: Register, imm: int, cs1: Register, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2 at cs1 + imm, at any alignment; the tags of the granules touched are cleared."""
    # OPERANDS
    authority, value = hart.capability(cs1), hart.integer(rs2)
    address = authority.address + imm & hart.format.address_mask
    # CHECKS
    check_authority(authority, cs1, Permission.STORE)
    check_bounds(authority, cs1, address, size_bytes)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("StoreAMOAccessFault", address=address)
    # EFFECT
    hart.memory.write(address, size_bytes, value)


@operation("clb")
def clb(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load a byte, sign-extended."""
    load_data(hart, rd, imm, cs1, 1, signed=True)


@operation("clh")
def clh(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 2 bytes, sign-extended."""
    load_data(hart, rd, imm, cs1, 2, signed=True)


@operation("clw")
def clw(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 4 bytes, sign-extended."""
    load_data(hart, rd, imm, cs1, 4, signed=True)


@operation("cld")
def cld(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 8 bytes."""
    load_data(hart, rd, imm, cs1, 8, signed=False)


@operation("clbu")
def clbu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load a byte, zero-extended."""
    load_data(hart, rd, imm, cs1, 1, signed=False)


@operation("clhu")
def clhu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 2 bytes, zero-extended."""
    load_data(hart, rd, imm, cs1, 2, signed=False)


@operation("clwu")
def clwu(hart: Hart, rd: Register, imm: int, cs1: Register) -> None:
    """Load 4 bytes, zero-extended."""
    load_data(hart, rd, imm, cs1, 4, signed=False)


@operation("clc")
def clc(hart: Hart, cd: Register, imm: int, cs1: Register) -> None:
    """Load a capability; without permission to load capabilities its tag is dropped."""
    # OPERANDS
    authority = hart.capability(cs1)
    address, size_bytes = authority.address + imm & hart.format.address_mask, hart.format.capability_bytes
    # CHECKS
    check_authority(authority, cs1, Permission.LOAD)
    check_bounds(authority, cs1, address, size_bytes)
    if address & size_bytes - 1 != 0:
        raise Trap("LoadAddressMisaligned", address=address)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("LoadAccessFault", address=address)
    # EFFECT
    tag, upper, lower = hart.memory.read_granule(address)
    loaded = capability.from_memory(hart.format, tag, upper, lower)
    hart.write(cd, loaded.tagged_if(authority.permits(Permission.LOAD_CAPABILITY)))


@operation("csb")
def csb(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store a byte."""
    store_data(hart, rs2, imm, cs1, 1)


@operation("csh")
def csh(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 2 bytes."""
    store_data(hart, rs2, imm, cs1, 2)


@operation("csw")
def csw(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 4 bytes."""
    store_data(hart, rs2, imm, cs1, 4)


@operation("csd")
def csd(hart: Hart, rs2: Register, imm: int, cs1: Register) -> None:
    """Store 8 bytes."""
    store_data(hart, rs2, imm, cs1, 8)


@operation("csc")
def csc(hart: Hart, cs2: Register, imm: int, cs1: Register) -> None:
    """Store a capability with its tag; a tagged one needs permission, a tagged local one needs more."""
    # OPERANDS
    authority, stored = hart.capability(cs1), hart.capability(cs2)
    address, size_bytes = authority.address + imm & hart.format.address_mask, hart.format.capability_bytes
    # CHECKS
    check_authority(authority, cs1, Permission.STORE)
    if stored.tag & not_(authority.permits(Permission.STORE_CAPABILITY)):
        raise Trap("PermitStoreCapViolation", cs1)
    local = not_(stored.permits(Permission.GLOBAL))
    if stored.tag & local & not_(authority.permits(Permission.STORE_LOCAL_CAPABILITY)):
        raise Trap("PermitStoreLocalCapViolation", cs1)
    check_bounds(authority, cs1, address, size_bytes)
    if address & size_bytes - 1 != 0:
        raise Trap("StoreAMOAddressMisaligned", address=address)
    if not_(hart.memory.contains(address, size_bytes)):
        raise Trap("StoreAMOAccessFault", address=address)
    # EFFECT
    hart.memory.write_granule(address, Granule(stored.tag, capability.memory_meta(stored), stored.address))
