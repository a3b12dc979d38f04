"""Load-reserved, store-conditional and AMOSWAP, of data and capabilities.

One hart runs, so that an operation is never interrupted and its ordering bits mean nothing. A reservation is of an address;
store-conditional, traps and their return end it.
"""

from collections.abc import Callable
from typing import Any

from capvisor.model.bits import sign_extend
from capvisor.model.isa.memory import (
    Access,
    access_of,
    check_alignment,
    check_authority,
    check_bounds,
    check_memory,
    check_stored,
    declare,
    loaded,
    put,
)
from capvisor.model.machine import Hart, Register, operation
from capvisor.spec.formats import Permission
from capvisor.spec.operations import RESERVING, STORE_WIDTHS, SWAP_WIDTHS, SWAPPING


def load_reserved(hart: Hart, rd: Register, access: Access, size_bytes: int) -> None:
    """Load `size_bytes`, sign-extended, and reserve the address."""
    # CHECKS
    check_authority(access, Permission.LOAD)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "LoadAddressMisaligned")
    check_memory(hart, access, size_bytes, "LoadAccessFault")
    # EFFECT
    hart.write_integer(rd, sign_extend(hart.memory.read(access.address, size_bytes), 8 * size_bytes))
    hart.is_reserved, hart.reservation = True, access.address


def load_capability_reserved(hart: Hart, cd: Register, access: Access) -> None:
    """Load a capability, without its tag where that isn't permitted, and reserve the address."""
    # OPERANDS
    size_bytes = hart.format.capability_bytes
    # CHECKS
    check_authority(access, Permission.LOAD)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "LoadAddressMisaligned")
    check_memory(hart, access, size_bytes, "LoadAccessFault")
    # EFFECT
    hart.write(cd, loaded(hart, access))
    hart.is_reserved, hart.reservation = True, access.address


def is_held(hart: Hart, access: Access) -> bool:
    """Whether the address is the one that is reserved."""
    return hart.is_reserved & (hart.reservation == access.address)


def store_conditional(hart: Hart, rd: Register, rs2: Register, access: Access, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2 if the address is reserved; rd says whether: 0 if so, else 1."""
    # OPERANDS
    value = hart.integer(rs2)
    # CHECKS
    check_authority(access, Permission.STORE)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "StoreAMOAddressMisaligned")
    if is_held(hart, access):
        check_memory(hart, access, size_bytes, "StoreAMOAccessFault")
        # EFFECT
        hart.memory.write(access.address, size_bytes, value)
        hart.write_integer(rd, 0)
    else:
        hart.write_integer(rd, 1)
    hart.is_reserved = False


def store_capability_conditional(hart: Hart, rd: Register, cs2: Register, access: Access) -> None:
    """Store a capability with its tag if the address is reserved; rd says whether: 0 if so, else 1."""
    # OPERANDS
    stored, size_bytes = hart.capability(cs2), hart.format.capability_bytes
    # CHECKS
    check_authority(access, Permission.STORE)
    check_stored(access, stored)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "StoreAMOAddressMisaligned")
    if is_held(hart, access):
        check_memory(hart, access, size_bytes, "StoreAMOAccessFault")
        # EFFECT
        put(hart, access, stored)
        hart.write_integer(rd, 0)
    else:
        hart.write_integer(rd, 1)
    hart.is_reserved = False


def swap(hart: Hart, rd: Register, rs2: Register, access: Access, size_bytes: int) -> None:
    """Exchange `size_bytes` of memory, sign-extended to rd, with the low bytes of rs2."""
    # OPERANDS
    value = hart.integer(rs2)
    # CHECKS
    check_authority(access, Permission.LOAD)
    check_authority(access, Permission.STORE)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "StoreAMOAddressMisaligned")
    check_memory(hart, access, size_bytes, "StoreAMOAccessFault")
    # EFFECT
    before = hart.memory.read(access.address, size_bytes)
    hart.memory.write(access.address, size_bytes, value)
    hart.write_integer(rd, sign_extend(before, 8 * size_bytes))


def swap_capability(hart: Hart, cd: Register, cs2: Register, access: Access) -> None:
    """Exchange a capability in memory, to cd as clc would load it, with cs2, as csc would store it."""
    # OPERANDS
    stored, size_bytes = hart.capability(cs2), hart.format.capability_bytes
    # CHECKS
    check_authority(access, Permission.LOAD)
    check_authority(access, Permission.STORE)
    check_stored(access, stored)
    check_bounds(access, size_bytes)
    check_alignment(access, size_bytes, "StoreAMOAddressMisaligned")
    check_memory(hart, access, size_bytes, "StoreAMOAccessFault")
    # EFFECT
    before = loaded(hart, access)
    put(hart, access, stored)
    hart.write(cd, before)


def declare_two(name: str, rule: Callable[..., None], access: Callable[..., Access], **how: Any) -> None:
    """Declare an operation to be a rule of two registers and an access."""

    @operation(name, rule)
    def operate(hart: Hart, destination: Register, source: Register, *where: Any) -> None:
        rule(hart, destination, source, access(hart, *where), **how)


def declare_explicit(name: str, rule: Callable[..., None], access: Callable[..., Access], **how: Any) -> None:
    """Declare an operation to be a rule of two registers and an access, where one register is both."""

    @operation(name, rule)
    def operate(hart: Hart, both: Register, *where: Any) -> None:
        rule(hart, both, both, access(hart, *where), **how)


for _where in RESERVING:
    _access, _before, _after = access_of(_where), _where.prefix, _where.suffix
    _store = declare_explicit if _after else declare_two
    for _width in STORE_WIDTHS:
        declare(f"{_before}lr.{_width.letters}{_after}", load_reserved, _access, size_bytes=_width.size_bytes)
        _store(f"{_before}sc.{_width.letters}{_after}", store_conditional, _access, size_bytes=_width.size_bytes)
    declare(f"{_before}lr.c{_after}", load_capability_reserved, _access)
    _store(f"{_before}sc.c{_after}", store_capability_conditional, _access)
for _where in SWAPPING:
    _access, _before = access_of(_where), _where.prefix
    for _width in SWAP_WIDTHS:
        declare_two(f"{_before}amoswap.{_width.letters}", swap, _access, size_bytes=_width.size_bytes)
    declare_two(f"{_before}amoswap.c", swap_capability, _access)
