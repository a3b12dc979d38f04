"""Loads and stores. The fast twin of `model.isa.memory`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from capvisor.fastpath import capability
from capvisor.fastpath.bits import sign_extend
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import DDC, Block, Register, operation, trap_register
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.formats import CACHE_LINE_BYTES, Permission
from capvisor.spec.operations import BY_MODE, EXPLICIT, LOAD_WIDTHS, STORE_WIDTHS, Addressing
from capvisor.spec.registers import DDC_INDEX
from capvisor.spec.traps import CAUSES_BY_NAME, OTHER_CAUSE


class Access:
    """One access in every lane: what authorises it, its address in scratch, and its checks.

    Checks are made from the last in the architecture's order to the first, so that what stands in `cause` in the end is
    the cause that comes first.
    """

    def __init__(self, block: Block, authority: Lanes, register: Register, base: Words, imm: Any) -> None:
        """At base + imm, by an authority that a trap value names by that number."""
        self.block, self.register = block, register
        self.authority = authority
        self.address: Words = block.ws.isa[0]
        self._passed: Flags = block.ws.isa_flags[0]
        np.add(base, imm & block.format.address_mask, out=self.address)
        if block.format.address_width < 64:
            np.bitwise_and(self.address, block.format.address_mask, out=self.address)

    @classmethod
    def by_capability(cls, block: Block, imm: Any, cs1: Register) -> "Access":
        """The access at cs1 + imm, by cs1."""
        authority = block.capability(cs1)
        return cls(block, authority, cs1, authority.address, imm)

    @classmethod
    def by_ddc(cls, block: Block, imm: Any, rs1: Register) -> "Access":
        """The access at rs1 + imm, by DDC."""
        return cls(block, block.capability(DDC), DDC_INDEX, block.integer(rs1), imm)

    def refuse_unless(self, passed: Flags, cause: str) -> None:
        """Refuse, for this cause, the lanes in which a check has not been passed. Spoils `passed`."""
        np.logical_not(passed, out=passed)
        np.copyto(self.block.cause, CAUSES_BY_NAME[cause].number, where=passed)

    def check_memory(self, size_bytes: int, fault: str, needed: Flags | None = None) -> None:
        """The access must be in memory, in those lanes where it is needed."""
        self.block.memory.contains(self.address, size_bytes, self.block.ws, self._passed)
        self._excuse(needed)
        self.refuse_unless(self._passed, fault)

    def check_alignment(self, size_bytes: int, misaligned: str) -> None:
        """The address must be a multiple of the size."""
        np.bitwise_and(self.address, size_bytes - 1, out=self.block.ws.bounds[0])
        np.equal(self.block.ws.bounds[0], 0, out=self._passed)
        self.refuse_unless(self._passed, misaligned)

    def check_bounds(self, size_bytes: int) -> None:
        """The access must lie in the bounds of its authority."""
        block = self.block
        capability.within_bounds(block.format, self.authority, self.address, size_bytes, block.ws, self._passed)
        self.refuse_unless(self._passed, "LengthViolation")

    def check_permission(self, permission: Permission, cause: str, needed: Flags | None = None) -> None:
        """The authority must hold a permission, in those lanes where it is needed. Spoils `needed`."""
        capability.permits(self.block.format, self.authority.meta, permission, self.block.ws, self._passed)
        self._excuse(needed)
        self.refuse_unless(self._passed, cause)

    def _excuse(self, needed: Flags | None) -> None:
        if needed is not None:
            np.logical_not(needed, out=needed)
            np.logical_or(self._passed, needed, out=self._passed)

    def check_stored(self, stored: Lanes) -> None:
        """A tagged capability needs permission to be stored, a tagged local one needs more."""
        block, needed = self.block, self.block.ws.isa_flags[1]
        capability.permits(block.format, stored.meta, Permission.GLOBAL, block.ws, needed)
        np.greater(stored.tag, needed, out=needed)  # tagged and not global
        self.check_permission(Permission.STORE_LOCAL_CAPABILITY, "PermitStoreLocalCapViolation", needed)
        np.copyto(needed, stored.tag)
        self.check_permission(Permission.STORE_CAPABILITY, "PermitStoreCapViolation", needed)

    def check_usable(self) -> None:
        """The authority must be unsealed and tagged: the checks that come before all others."""
        capability.is_unsealed(self.block.format, self.authority.meta, self.block.ws, self._passed)
        self.refuse_unless(self._passed, "SealViolation")
        np.copyto(self._passed, self.authority.tag)
        self.refuse_unless(self._passed, "TagViolation")

    def check_load(self) -> None:
        """The checks with which every load begins."""
        self.check_permission(Permission.LOAD, "PermitLoadViolation")
        self.check_usable()

    def check_store(self) -> None:
        """The checks with which every store begins."""
        self.check_permission(Permission.STORE, "PermitStoreViolation")
        self.check_usable()

    def finish(self) -> Flags:
        """The lanes in which every check was passed. In the others the trap value is recorded."""
        block, refused = self.block, self._passed
        np.not_equal(block.cause, 0, out=refused)
        # A capability cause's number is the cause itself; the others here are memory exceptions, with their address.
        value, by_memory = block.ws.bounds[0], block.ws.bounds_flags[0]
        np.copyto(value, block.cause)
        np.bitwise_or(value, trap_register(self.register), out=value)
        np.copyto(block.trap_value, value, where=refused)
        np.greater_equal(block.cause, OTHER_CAUSE, out=by_memory)
        np.copyto(block.trap_value, self.address, where=by_memory)
        np.logical_not(refused, out=refused)
        return refused


def read_data(access: Access, size_bytes: int, *, signed: bool) -> Words:
    """The data that a load reads, extended to a register, in scratch."""
    block, value = access.block, access.block.ws.isa[1]
    block.memory.read(access.address, size_bytes, block.ws, value)
    if signed:
        sign_extend(value, 8 * size_bytes, value)
        if block.format.address_width < 64:
            np.bitwise_and(value, block.format.address_mask, out=value)
    return value


def read_capability(access: Access) -> Lanes:
    """The capabilities that a load reads, in scratch; without permission to load capabilities their tags are dropped."""
    block = access.block
    loaded = Lanes(block.ws.isa_flags[1], block.ws.isa[1], block.ws.isa[2])
    may_load = block.ws.isa_flags[2]
    block.memory.read_granule(access.address, block.ws, *loaded)
    capability.to_memory(block.format, loaded.meta, loaded.meta)
    capability.permits(block.format, access.authority.meta, Permission.LOAD_CAPABILITY, block.ws, may_load)
    np.logical_and(loaded.tag, may_load, out=loaded.tag)
    return loaded


def write_capability(access: Access, stored: Lanes, where: Flags) -> None:
    """Write capabilities with their tags, in some lanes."""
    block, meta = access.block, access.block.ws.isa[3]
    capability.to_memory(block.format, stored.meta, meta)
    block.memory.write_granule(access.address, stored.tag, meta, stored.address, block.ws, where)


def put_where(source: Lanes, target: Lanes, where: Flags) -> None:
    """target = source, in some lanes."""
    for part, own in zip(source, target, strict=True):
        np.copyto(own, part, where=where)


def load_data(block: Block, rd: Register, access: Access, size_bytes: int, *, signed: bool) -> None:
    """Load `size_bytes`, at any alignment."""
    access.check_memory(size_bytes, "LoadAccessFault")
    access.check_bounds(size_bytes)
    access.check_load()
    completed = access.finish()
    block.write_integer_where(rd, read_data(access, size_bytes, signed=signed), completed)


def load_capability(block: Block, cd: Register, access: Access) -> None:
    """Load a capability; without permission to load capabilities its tag is dropped."""
    size_bytes = block.format.capability_bytes
    access.check_memory(size_bytes, "LoadAccessFault")
    access.check_alignment(size_bytes, "LoadAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_load()
    completed = access.finish()
    put_where(read_capability(access), block.target(cd), completed)


def store_data(block: Block, rs2: Register, access: Access, size_bytes: int) -> None:
    """Store the low `size_bytes` of rs2, at any alignment."""
    access.check_memory(size_bytes, "StoreAMOAccessFault")
    access.check_bounds(size_bytes)
    access.check_store()
    completed = access.finish()
    block.memory.write(access.address, size_bytes, block.integer(rs2), block.ws, completed)


def store_capability(block: Block, cs2: Register, access: Access) -> None:
    """Store a capability with its tag; a tagged one needs permission, a tagged local one needs more."""
    stored, size_bytes = block.capability(cs2), block.format.capability_bytes
    access.check_memory(size_bytes, "StoreAMOAccessFault")
    access.check_alignment(size_bytes, "StoreAMOAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_stored(stored)
    access.check_store()
    write_capability(access, stored, access.finish())


@operation("cloadtags")
def cloadtags(block: Block, rd: Register, cs1: Register) -> None:
    access, size_bytes = Access.by_capability(block, 0, cs1), CACHE_LINE_BYTES
    access.check_memory(size_bytes, "LoadAccessFault")
    access.check_alignment(size_bytes, "LoadAddressMisaligned")
    access.check_bounds(size_bytes)
    access.check_permission(Permission.LOAD_CAPABILITY, "PermitLoadCapViolation")
    access.check_load()
    completed = access.finish()
    tag, tags, meta, address = block.ws.isa_flags[1], block.ws.isa[1], block.ws.isa[2], block.ws.bounds[1]
    bit = block.ws.isa[3]
    tags.fill(0)
    for number in range(size_bytes // block.format.capability_bytes):
        block.memory.read_granule(access.address, block.ws, tag, meta, address)
        np.copyto(bit, tag)
        np.left_shift(bit, number, out=bit)
        np.bitwise_or(tags, bit, out=tags)
        np.add(access.address, block.format.capability_bytes, out=access.address)
    block.write_integer_where(rd, tags, completed)


def access_of(where: Addressing) -> Callable[..., Access]:
    """What makes an access of a block and the operands that say where."""
    by_base = Access.by_capability if where.base == "cs1" else Access.by_ddc
    return by_base if where.has_offset else lambda block, base: by_base(block, 0, base)


def declare(name: str, kernel: Callable[..., None], access: Callable[..., Access], **how: Any) -> None:
    """Declare an operation to be a kernel of one register and an access."""

    @operation(name)
    def operate(block: Block, register: Register, *where: Any) -> None:
        kernel(block, register, access(block, *where), **how)


for _where in (*BY_MODE, *EXPLICIT):
    _access, _before, _after = access_of(_where), _where.prefix, _where.suffix
    for _width in LOAD_WIDTHS:
        _how = {"size_bytes": _width.size_bytes, "signed": _width.is_signed}
        declare(f"{_before}l{_width.letters}{_after}", load_data, _access, **_how)
    for _width in STORE_WIDTHS:
        declare(f"{_before}s{_width.letters}{_after}", store_data, _access, size_bytes=_width.size_bytes)
    declare(f"{_before}lc{_after}", load_capability, _access)
    declare(f"{_before}sc{_after}", store_capability, _access)
