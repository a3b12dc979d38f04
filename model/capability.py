"""Capabilities as values: inspection, derivation, sealing, comparison, memory form.

Rules here say what becomes of the bits and the tag; which register is read and what is refused is `model.isa`'s.
Source: CHERI ISAv9; sail-cheri-riscv, cheri_cap_common.sail.
"""

from typing import NamedTuple

from capvisor.model import bounds
from capvisor.model.bits import not_, select
from capvisor.spec.formats import CapabilityFormat, Field, Permission


def extract(field: Field, meta: int) -> int:
    """The value of a field of meta."""
    return meta >> field.low & field.mask


def insert(field: Field, meta: int, value: int) -> int:
    """`meta` with the field's bits replaced by the lowest bits of `value`."""
    return meta & ~field.in_place | (value & field.mask) << field.low


class Capability(NamedTuple):
    """A capability: format, tag, meta (the half that isn't the address, raw) and address.

    Everything else is derived from meta and address. Two capabilities are the same when all four are.
    """

    format: CapabilityFormat
    tag: bool
    meta: int
    address: int

    @property
    def bounds(self) -> tuple[int, int]:
        """(base, top), top exclusive and possibly 2**A."""
        return bounds.decode_bounds(self.format, self.meta, self.address)

    @property
    def base(self) -> int:
        return self.bounds[0]

    @property
    def top(self) -> int:
        return self.bounds[1]

    @property
    def length(self) -> int:
        """top - base, modulo 2**(A+1) where an untagged encoding has its top below its base. Source: getCapLength."""
        base, top = self.bounds
        return top - base & self.format.length_mask

    @property
    def offset(self) -> int:
        """The address relative to the base, modulo 2**A. Source: getCapOffsetBits."""
        return self.address - self.base & self.format.address_mask

    @property
    def permissions(self) -> int:
        """As CGetPerm returns them: architectural from bit 0, software's from bit 15. Source: getCapPerms."""
        fmt = self.format
        software = extract(fmt.software_permissions, self.meta)
        return extract(fmt.permissions, self.meta) | software << fmt.software_permissions_shift

    @property
    def flags(self) -> int:
        """Bit 0: capability mode. Source: getCapFlags."""
        return extract(self.format.flags, self.meta)

    @property
    def reserved(self) -> int:
        """Reserved bits, zero in every capability that can be derived."""
        return extract(self.format.reserved, self.meta)

    @property
    def otype(self) -> int:
        """The object type as stored, not sign-extended."""
        return extract(self.format.otype, self.meta)

    @property
    def is_sealed(self) -> bool:
        """Source: isCapSealed."""
        return extract(self.format.otype, self.meta) != self.format.otype_unsealed

    @property
    def has_reserved_otype(self) -> bool:
        """Whether the object type is one that CSeal can't give, "unsealed" among them. Source: hasReservedOType."""
        return self.otype > self.format.max_otype

    @property
    def is_sound(self) -> bool:
        """The invariant of a tagged capability: valid bounds bits, base <= top <= 2**A, no reserved bits.

        Valid bits alone don't bound the top (theorem bounds.valid_top). The algebra keeps it: theorems invariant.*.
        """
        base, top = self.bounds
        valid = bounds.bounds_are_valid(self.format, self.meta)
        return valid & (base <= top) & (top <= self.format.address_space) & (self.reserved == 0)

    def permits(self, permission: Permission) -> bool:
        """Whether every bit of `permission` is held."""
        wanted = int(permission) << self.format.permissions.low
        return self.meta & wanted == wanted

    def with_tag(self, tag: bool) -> "Capability":
        return Capability(self.format, tag, self.meta, self.address)

    def with_meta(self, meta: int) -> "Capability":
        return Capability(self.format, self.tag, meta, self.address)

    def tagged_if(self, condition: bool) -> "Capability":
        """Untagged unless the condition holds; never newly tagged. Source: clearTagIf."""
        return Capability(self.format, self.tag & condition, self.meta, self.address)


def null(fmt: CapabilityFormat, address: int = 0) -> Capability:
    """NULL, or the untagged integer `address`: NULL with that address. Source: int_to_cap."""
    return Capability(fmt, False, fmt.null_meta, address)


def root(fmt: CapabilityFormat, address: int = 0) -> Capability:
    """The default capability: tagged, the whole address space, every permission. Source: default_cap."""
    return Capability(fmt, True, fmt.root_meta, address)


def select_capability(condition: bool, when_true: Capability, when_false: Capability) -> Capability:
    """One of two capabilities of one format, as data."""
    return Capability(
        when_true.format,
        select(condition, when_true.tag, when_false.tag),
        select(condition, when_true.meta, when_false.meta),
        select(condition, when_true.address, when_false.address),
    )


def unsealed_only(cap: Capability) -> Capability:
    """`cap`, untagged if it is sealed: no derivation changes a sealed capability. Source: clearTagIfSealed."""
    return cap.tagged_if(not_(cap.is_sealed))


def within_bounds(cap: Capability, address: int, size: int) -> bool:
    """Whether [address, address + size) lies in the bounds, without wrapping around. Source: inCapBounds."""
    base, top = cap.bounds
    return (address >= base) & (address + size <= top)


def set_bounds(cap: Capability, length: int) -> tuple[Capability, bool]:
    """`cap` narrowed to [address, address + length), rounded outwards, and whether nothing was rounded.

    Untagged if `cap` is sealed or the request leaves its bounds. Source: CSetBounds; setCapBounds.
    """
    meta, exact = bounds.set_bounds(cap.format, cap.meta, cap.address, cap.address + length)
    allowed = not_(cap.is_sealed) & within_bounds(cap, cap.address, length)
    return Capability(cap.format, cap.tag & allowed, meta, cap.address), exact


def set_address(cap: Capability, address: int) -> Capability:
    """`cap` at another address, untagged if it is sealed or its bounds would change (the precise check).

    Source: CSetAddr; setCapAddr.
    """
    kept = bounds.address_keeps_bounds(cap.format, cap.meta, cap.address, address)
    return Capability(cap.format, cap.tag & not_(cap.is_sealed) & kept, cap.meta, address)


def increment_address(cap: Capability, increment: int) -> Capability:
    """`cap` moved by `increment` modulo 2**A, untagged if it is sealed or the fast check says no.

    Source: CIncOffset; incCapOffset.
    """
    kept = bounds.increment_is_representable(cap.format, cap.meta, cap.address, increment)
    address = cap.address + increment & cap.format.address_mask
    return Capability(cap.format, cap.tag & not_(cap.is_sealed) & kept, cap.meta, address)


def set_offset(cap: Capability, offset: int) -> Capability:
    """`cap` at its base + `offset`, untagged if it is sealed or the fast check says no. Source: CSetOffset; setCapOffset."""
    return increment_address(cap, cap.base + offset - cap.address & cap.format.address_mask)


def set_permissions(cap: Capability, permissions: int) -> Capability:
    """`cap` with exactly these permissions (as CGetPerm returns them); the tag isn't looked at. Source: setCapPerms."""
    fmt = cap.format
    meta = insert(fmt.permissions, cap.meta, permissions)
    return cap.with_meta(insert(fmt.software_permissions, meta, permissions >> fmt.software_permissions_shift))


def and_permissions(cap: Capability, mask: int) -> Capability:
    """`cap` with those of its permissions that `mask` has too, untagged if it is sealed. Source: CAndPerm."""
    return set_permissions(unsealed_only(cap), cap.permissions & mask)


def set_flags(cap: Capability, flags: int) -> Capability:
    """`cap` with these flags, untagged if it is sealed. Source: CSetFlags."""
    return unsealed_only(cap).with_meta(insert(cap.format.flags, cap.meta, flags))


def set_otype(cap: Capability, otype: int) -> Capability:
    """`cap` with the lowest bits of `otype` as object type; the tag isn't looked at. Source: sealCap, unsealCap."""
    return cap.with_meta(insert(cap.format.otype, cap.meta, otype))


def otype_as_integer(cap: Capability) -> int:
    """The object type as CGetType returns it: reserved ones are negative, modulo 2**A. Source: CGetType."""
    reserved = cap.format.address_mask & ~cap.format.otype.mask
    return cap.otype | select(cap.has_reserved_otype, reserved, 0)


def points_at_otype(authority: Capability) -> bool:
    """Whether the authority's address, as an object type, is within its bounds."""
    return within_bounds(authority, authority.address, 1)


def seal(cap: Capability, authority: Capability) -> Capability:
    """`cap` sealed with the authority's address as object type; untagged if that isn't permitted. Source: CSeal."""
    permitted = (
        authority.tag
        & not_(authority.is_sealed)
        & authority.permits(Permission.SEAL)
        & points_at_otype(authority)
        & (authority.address <= cap.format.max_otype)
    )
    return set_otype(unsealed_only(cap), authority.address).tagged_if(permitted)


def conditional_seal(cap: Capability, authority: Capability) -> Capability:
    """`seal`, except that `cap` stays as it is where sealing isn't possible at all. Source: CCSeal."""
    fmt = cap.format
    unusable = (
        not_(authority.tag)
        | cap.is_sealed
        | not_(points_at_otype(authority))
        | (authority.address == fmt.address_mask)  # the object type -1
    )
    permitted = not_(authority.is_sealed) & authority.permits(Permission.SEAL) & (authority.address <= fmt.max_otype)
    return select_capability(unusable, cap, set_otype(cap, authority.address).tagged_if(permitted))


def unseal(cap: Capability, authority: Capability) -> Capability:
    """`cap` unsealed, global only if both are; untagged if the authority doesn't match. Source: CUnseal."""
    permitted = (
        authority.tag
        & cap.is_sealed
        & not_(authority.is_sealed)
        & not_(cap.has_reserved_otype)
        & (authority.address == cap.otype)
        & authority.permits(Permission.UNSEAL)
        & points_at_otype(authority)
    )
    opened = set_otype(cap, cap.format.otype_unsealed)
    local = opened.permissions & ~int(Permission.GLOBAL)
    is_global = cap.permits(Permission.GLOBAL) & authority.permits(Permission.GLOBAL)
    return set_permissions(opened, local | select(is_global, int(Permission.GLOBAL), 0)).tagged_if(permitted)


def seal_entry(cap: Capability) -> Capability:
    """`cap` sealed as an entry point (a sentry), untagged if it was sealed. Source: CSealEntry."""
    return set_otype(unsealed_only(cap), cap.format.otype_sentry)


def build(authority: Capability, requested: Capability) -> Capability:
    """`requested` with a tag, if the authority could have derived just those bits; else without one.

    A requested sentry stays one, any other object type becomes "unsealed". Source: CBuildCap.
    """
    fmt = requested.format
    is_sentry = requested.otype == fmt.otype_sentry
    wanted = set_otype(requested, select(is_sentry, fmt.otype_sentry, fmt.otype_unsealed)).with_tag(True)

    base, top = authority.bounds
    wanted_base, wanted_top = wanted.bounds
    permissions = wanted.permissions
    subset = (
        (wanted_base >= base)
        & (wanted_top <= top)
        & (wanted_base <= wanted_top)
        & (permissions & authority.permissions == permissions)
    )
    # The authority is taken through the same steps that software would take, and must arrive at the same bits.
    meta, _exact = bounds.set_bounds(fmt, authority.meta, wanted_base, wanted_top)
    narrowed = Capability(fmt, unsealed_only(authority).tag, meta, wanted_base)
    offset = wanted.address - wanted_base
    moved = Capability(fmt, narrowed.tag, meta, narrowed.base + offset & fmt.address_mask)
    derived = set_permissions(moved, permissions)
    derived = derived.with_meta(insert(fmt.flags, derived.meta, wanted.flags))
    derived = set_otype(derived, select(is_sentry, fmt.otype_sentry, derived.otype))
    return wanted.with_tag(subset & equal(derived, wanted))


def copy_type(cap: Capability, sealed: Capability) -> Capability:
    """`cap` pointing at the object type of `sealed`, untagged if that type is reserved or out of reach.

    Source: CCopyType.
    """
    return set_address(cap, otype_as_integer(sealed)).tagged_if(not_(sealed.has_reserved_otype))


def is_subset(inner: Capability, outer: Capability) -> bool:
    """Whether bounds and permissions of `inner` are within those of `outer`, tags being equal. Source: CTestSubset."""
    base, top = outer.bounds
    inner_base, inner_top = inner.bounds
    permissions = inner.permissions
    return (
        (inner.tag == outer.tag)
        & (inner_base >= base)
        & (inner_top <= top)
        & (permissions & outer.permissions == permissions)
    )


def equal(a: Capability, b: Capability) -> bool:
    """Equality of every bit and of the tag. Source: CSEQX."""
    return (a.tag == b.tag) & (a.meta == b.meta) & (a.address == b.address)


def memory_meta(cap: Capability) -> int:
    """Meta as it lies in memory, where NULL is all zeros. Source: capToMemBits."""
    return cap.meta ^ cap.format.null_meta


def from_memory(fmt: CapabilityFormat, tag: bool, memory_meta: int, address: int) -> Capability:
    """The capability that a granule holds. Source: memBitsToCapability."""
    return Capability(fmt, tag, memory_meta ^ fmt.null_meta, address)
