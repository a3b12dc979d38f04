"""Load-reserved, store-conditional and AMOSWAP. The fast twin of `model.isa.atomic`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from capvisor.fastpath.isa.memory import (
    Access,
    access_of,
    declare,
    put_where,
    read_capability,
    read_data,
    write_capability,
)
from capvisor.fastpath.machine import Block, Register, operation
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.formats import Permission
from capvisor.spec.operations import RESERVING, STORE_WIDTHS, SWAP_WIDTHS, SWAPPING


def reserve(access: Access, where: Flags) -> None:
    """Reserve the addresses of some lanes."""
    block = access.block
    np.copyto(block.is_reserved, True, where=where)
    np.copyto(block.number("reservation"), access.address, where=where)


def load_reserved(block: Block, rd: Register, access: Access, size_bytes: int) -> None:
    """Load `size_bytes`, sign-extended, and reserve the address."""
    access.check_memory(size_bytes, "LoadAccessFault")
    access.check_alignment(size_bytes, "LoadAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_load()
    completed = access.finish()
    reserve(access, completed)
    block.write_integer_where(rd, read_data(access, size_bytes, signed=True), completed)


def load_capability_reserved(block: Block, cd: Register, access: Access) -> None:
    """Load a capability, without its tag where that isn't permitted, and reserve the address."""
    size_bytes = block.format.capability_bytes
    access.check_memory(size_bytes, "LoadAccessFault")
    access.check_alignment(size_bytes, "LoadAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_load()
    completed = access.finish()
    reserve(access, completed)
    put_where(read_capability(access), block.target(cd), completed)


def find_held(access: Access) -> Flags:
    """Whether the address is the one that is reserved, in scratch."""
    block, held = access.block, access.block.ws.isa_flags[3]
    np.equal(block.number("reservation"), access.address, out=held)
    np.logical_and(held, block.is_reserved, out=held)
    return held


def conclude(block: Block, rd: Register, completed: Flags, held: Flags) -> None:
    """End the reservation, and say whether it was held: rd = 0 if so, else 1. Spoils `held`."""
    outcome = block.ws.isa[1]
    np.copyto(block.is_reserved, False, where=completed)
    np.logical_not(held, out=held)
    np.copyto(outcome, held)
    block.write_integer_where(rd, outcome, completed)


def store_conditional(block: Block, rd: Register, rs2: Register, access: Access, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2 if the address is reserved; rd says whether: 0 if so, else 1."""
    value, stores = block.integer(rs2), block.ws.isa_flags[4]
    held = find_held(access)
    np.copyto(stores, held)
    access.check_memory(size_bytes, "StoreAMOAccessFault", stores)
    access.check_alignment(size_bytes, "StoreAMOAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_store()
    completed = access.finish()
    np.logical_and(held, completed, out=stores)
    block.memory.write(access.address, size_bytes, value, block.ws, stores)
    conclude(block, rd, completed, held)


def store_capability_conditional(block: Block, rd: Register, cs2: Register, access: Access) -> None:
    """Store a capability with its tag if the address is reserved; rd says whether: 0 if so, else 1."""
    stored, stores, size_bytes = block.capability(cs2), block.ws.isa_flags[4], block.format.capability_bytes
    held = find_held(access)
    np.copyto(stores, held)
    access.check_memory(size_bytes, "StoreAMOAccessFault", stores)
    access.check_alignment(size_bytes, "StoreAMOAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_stored(stored)
    access.check_store()
    completed = access.finish()
    np.logical_and(held, completed, out=stores)
    write_capability(access, stored, stores)
    conclude(block, rd, completed, held)


def swap(block: Block, rd: Register, rs2: Register, access: Access, size_bytes: int) -> None:
    """Exchange `size_bytes` of memory, sign-extended to rd, with the low bytes of rs2."""
    value: Words = block.ws.isa[2]
    np.copyto(value, block.integer(rs2))
    access.check_memory(size_bytes, "StoreAMOAccessFault")
    access.check_alignment(size_bytes, "StoreAMOAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_permission(Permission.STORE, "PermitStoreViolation")
    access.check_load()
    completed = access.finish()
    before = read_data(access, size_bytes, signed=True)
    block.memory.write(access.address, size_bytes, value, block.ws, completed)
    block.write_integer_where(rd, before, completed)


def swap_capability(block: Block, cd: Register, cs2: Register, access: Access) -> None:
    """Exchange a capability in memory, to cd as clc would load it, with cs2, as csc would store it."""
    stored, size_bytes = block.capability(cs2), block.format.capability_bytes
    access.check_memory(size_bytes, "StoreAMOAccessFault")
    access.check_alignment(size_bytes, "StoreAMOAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_stored(stored)
    access.check_permission(Permission.STORE, "PermitStoreViolation")
    access.check_load()
    completed = access.finish()
    before = read_capability(access)
    write_capability(access, stored, completed)
    put_where(before, block.target(cd), completed)


def declare_two(name: str, kernel: Callable[..., None], access: Callable[..., Access], **how: Any) -> None:
    """Declare an operation to be a kernel of two registers and an access."""

    @operation(name)
    def operate(block: Block, destination: Register, source: Register, *where: Any) -> None:
        kernel(block, destination, source, access(block, *where), **how)


def declare_explicit(name: str, kernel: Callable[..., None], access: Callable[..., Access], **how: Any) -> None:
    """Declare an operation to be a kernel of two registers and an access, where one register is both."""

    @operation(name)
    def operate(block: Block, both: Register, *where: Any) -> None:
        kernel(block, both, both, access(block, *where), **how)


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
