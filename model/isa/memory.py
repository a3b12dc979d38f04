"""Loads and stores: by mode with an offset, and with explicit addressing, by capability (.cap) or by DDC (.ddc).

The rules are four, for data and capabilities; an operation is one of them for a width and a way to say where.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from capvisor.model import capability
from capvisor.model.bits import not_, select, sign_extend
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Register, Trap, operation
from capvisor.model.memory import Granule
from capvisor.spec.formats import CACHE_LINE_BYTES, Permission
from capvisor.spec.operations import BY_MODE, EXPLICIT, LOAD_WIDTHS, STORE_WIDTHS, Addressing
from capvisor.spec.registers import DDC_INDEX


class Access(NamedTuple):
    """What authorises an access, the number that a trap value names it by, and the address."""

    authority: Capability
    register: Register
    address: int


def by_capability(hart: Hart, imm: int, cs1: Register) -> Access:
    """The access at cs1 + imm, by cs1."""
    authority = hart.capability(cs1)
    return Access(authority, cs1, authority.address + imm & hart.format.address_mask)


def by_ddc(hart: Hart, imm: int, rs1: Register) -> Access:
    """The access at rs1 + imm, by DDC, whose own address doesn't matter. Source: ddc_and_resulting_addr."""
    return Access(hart.ddc, DDC_INDEX, hart.integer(rs1) + imm & hart.format.address_mask)


def access_of(where: Addressing) -> Callable[..., Access]:
    """What makes an access of a hart and the operands that say where."""
    by_base = by_capability if where.base == "cs1" else by_ddc
    return by_base if where.has_offset else lambda hart, base: by_base(hart, 0, base)


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


def check_stored(access: Access, stored: Capability) -> None:
    """A tagged capability needs permission to be stored, a tagged local one needs more."""
    if stored.tag & not_(access.authority.permits(Permission.STORE_CAPABILITY)):
        raise Trap("PermitStoreCapViolation", access.register)
    local = not_(stored.permits(Permission.GLOBAL))
    if stored.tag & local & not_(access.authority.permits(Permission.STORE_LOCAL_CAPABILITY)):
        raise Trap("PermitStoreLocalCapViolation", access.register)


def check_alignment(access: Access, size_bytes: int, cause: str) -> None:
    """The address must be a multiple of the size, a power of two."""
    if access.address & size_bytes - 1 != 0:
        raise Trap(cause, address=access.address)


def check_memory(hart: Hart, access: Access, size_bytes: int, cause: str) -> None:
    """The access must be in memory."""
    if not_(hart.memory.contains(access.address, size_bytes)):
        raise Trap(cause, address=access.address)


def loaded(hart: Hart, access: Access) -> Capability:
    """The capability that is read; without permission to load capabilities its tag is dropped."""
    tag, upper, lower = hart.memory.read_granule(access.address)
    found = capability.from_memory(hart.format, tag, upper, lower)
    return found.tagged_if(access.authority.permits(Permission.LOAD_CAPABILITY))


def put(hart: Hart, access: Access, stored: Capability) -> None:
    """Write a capability with its tag."""
    hart.memory.write_granule(access.address, Granule(stored.tag, capability.memory_meta(stored), stored.address))


def load_data(hart: Hart, rd: Register, access: Access, size_bytes: int, *, signed: bool) -> None:
    """Load `size_bytes`, at any alignment."""
    # CHECKS
    check_authority(access, Permission.LOAD)
    check_bounds(access, size_bytes)
    check_memory(hart, access, size_bytes, "LoadAccessFault")
    # EFFECT
    value = hart.memory.read(access.address, size_bytes)
    hart.write_integer(rd, sign_extend(value, 8 * size_bytes) if signed else value)


def load_capability(hart: Hart, cd: Register, access: Access) -> None:
    """Load a capability; without permission to load capabilities its tag is dropped."""
    # OPERANDS
    size_bytes = hart.format.capability_bytes
    # CHECKS
    check_authority(access, Permission.LOAD)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "LoadAddressMisaligned")
    check_memory(hart, access, size_bytes, "LoadAccessFault")
    # EFFECT
    hart.write(cd, loaded(hart, access))


def store_data(hart: Hart, rs2: Register, access: Access, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2, at any alignment; the tags of the granules touched are cleared."""
    # CHECKS
    check_authority(access, Permission.STORE)
    check_bounds(access, size_bytes)
    check_memory(hart, access, size_bytes, "StoreAMOAccessFault")
    # EFFECT
    hart.memory.write(access.address, size_bytes, hart.integer(rs2))


def store_capability(hart: Hart, cs2: Register, access: Access) -> None:
    """Store a capability with its tag; a tagged one needs permission, a tagged local one needs more."""
    # OPERANDS
    stored, size_bytes = hart.capability(cs2), hart.format.capability_bytes
    # CHECKS
    check_authority(access, Permission.STORE)
    check_stored(access, stored)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "StoreAMOAddressMisaligned")
    check_memory(hart, access, size_bytes, "StoreAMOAccessFault")
    # EFFECT
    put(hart, access, stored)


@operation("cloadtags")
def cloadtags(hart: Hart, rd: Register, cs1: Register) -> None:
    """Load the tags of the cache line at cs1, as bits from the lowest address on."""
    # OPERANDS
    access, size_bytes = by_capability(hart, 0, cs1), CACHE_LINE_BYTES
    # CHECKS
    check_authority(access, Permission.LOAD)
    if not_(access.authority.permits(Permission.LOAD_CAPABILITY)):
        raise Trap("PermitLoadCapViolation", cs1)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "LoadAddressMisaligned")
    check_memory(hart, access, size_bytes, "LoadAccessFault")
    # EFFECT
    tags = 0
    for number, offset in enumerate(range(0, size_bytes, hart.format.capability_bytes)):
        tags = tags | select(hart.memory.read_granule(access.address + offset).tag, 1 << number, 0)
    hart.write_integer(rd, tags)


def declare(name: str, rule: Callable[..., None], access: Callable[..., Access], **how: Any) -> None:
    """Declare an operation to be a rule of one register and an access."""

    @operation(name, rule)
    def operate(hart: Hart, register: Register, *where: Any) -> None:
        rule(hart, register, access(hart, *where), **how)


for _where in (*BY_MODE, *EXPLICIT):
    _access, _before, _after = access_of(_where), _where.prefix, _where.suffix
    for _width in LOAD_WIDTHS:
        _how = {"size_bytes": _width.size_bytes, "signed": _width.is_signed}
        declare(f"{_before}l{_width.letters}{_after}", load_data, _access, **_how)
    for _width in STORE_WIDTHS:
        declare(f"{_before}s{_width.letters}{_after}", store_data, _access, size_bytes=_width.size_bytes)
    declare(f"{_before}lc{_after}", load_capability, _access)
    declare(f"{_before}sc{_after}", store_capability, _access)
