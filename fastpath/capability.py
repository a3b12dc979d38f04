"""Capabilities as structures of arrays: the fast twin of `model.capability`.

A capability's lanes are a `Lanes` triple: tags, metas (raw) and addresses. Kernels write the result's arrays, which may be
those of a source: each reads all that it needs before it writes.
"""

from typing import NamedTuple

import numpy as np

from capvisor.fastpath import bounds
from capvisor.fastpath.bits import choose
from capvisor.fastpath.workspace import Flags, Words, Workspace
from capvisor.spec.formats import CapabilityFormat, Field, Permission


class Lanes(NamedTuple):
    """One capability in each lane: bool tags, uint64 metas and addresses, of one length."""

    tag: Flags
    meta: Words
    address: Words


def copy(source: Lanes, out: Lanes) -> None:
    """out = source."""
    np.copyto(out.tag, source.tag)
    np.copyto(out.meta, source.meta)
    np.copyto(out.address, source.address)


def _extract(field: Field, meta: Words, out: Words) -> None:
    np.right_shift(meta, field.low, out=out)
    np.bitwise_and(out, field.mask, out=out)


def is_unsealed(fmt: CapabilityFormat, meta: Words, ws: Workspace, out: Flags) -> None:
    """out = whether the object type says "unsealed"."""
    otype = ws.bounds[0]
    np.bitwise_and(meta, fmt.otype.in_place, out=otype)
    np.equal(otype, fmt.otype_unsealed << fmt.otype.low, out=out)


def has_ordinary_otype(fmt: CapabilityFormat, meta: Words, ws: Workspace, out: Flags) -> None:
    """out = whether the object type is one that CSeal can give."""
    otype = ws.bounds[0]
    np.bitwise_and(meta, fmt.otype.in_place, out=otype)
    np.less_equal(otype, fmt.max_otype << fmt.otype.low, out=out)


def permits(fmt: CapabilityFormat, meta: Words, permission: Permission, ws: Workspace, out: Flags) -> None:
    """out = whether every bit of `permission` is held."""
    wanted = int(permission) << fmt.permissions.low
    np.bitwise_and(meta, wanted, out=ws.bounds[0])
    np.equal(ws.bounds[0], wanted, out=out)


def get_permissions(fmt: CapabilityFormat, meta: Words, ws: Workspace, out: Words) -> None:
    """out = permissions as CGetPerm returns them."""
    software = ws.bounds[0]
    _extract(fmt.software_permissions, meta, software)
    np.left_shift(software, fmt.software_permissions_shift, out=software)
    _extract(fmt.permissions, meta, out)
    np.bitwise_or(out, software, out=out)


def get_flags(fmt: CapabilityFormat, meta: Words, out: Words) -> None:
    """out = the flags."""
    _extract(fmt.flags, meta, out)


def get_otype(fmt: CapabilityFormat, meta: Words, ws: Workspace, out: Words) -> None:
    """out = object types as CGetType returns them: reserved ones are negative, modulo 2**A."""
    ordinary = ws.capability_flags[0]
    has_ordinary_otype(fmt, meta, ws, ordinary)
    _extract(fmt.otype, meta, out)
    np.bitwise_or(out, fmt.address_mask & ~fmt.otype.mask, out=ws.bounds[0])
    np.logical_not(ordinary, out=ordinary)
    np.copyto(out, ws.bounds[0], where=ordinary)


def get_base(fmt: CapabilityFormat, cap: Lanes, ws: Workspace, out: Words) -> None:
    """out = the bases."""
    bounds.decode_bounds(fmt, cap.meta, cap.address, ws, ws.capability[0], ws.capability[1], ws.capability_flags[0])
    np.copyto(out, ws.capability[0])


def get_top(fmt: CapabilityFormat, cap: Lanes, ws: Workspace, out: Words) -> None:
    """out = the tops, or the highest address where that doesn't fit."""
    base, top = ws.capability[:2]
    bounds.decode_bounds(fmt, cap.meta, cap.address, ws, base, top, ws.capability_flags[0])
    choose(ws.capability_flags[0], fmt.address_mask, top, out)


def get_length(fmt: CapabilityFormat, cap: Lanes, ws: Workspace, out: Words) -> None:
    """out = the lengths modulo 2**(A+1), or the highest address where that doesn't fit."""
    base, top = ws.capability[:2]
    high, borrow = ws.capability_flags[:2]
    bounds.decode_bounds(fmt, cap.meta, cap.address, ws, base, top, high)
    np.less(top, base, out=borrow)
    np.not_equal(high, borrow, out=high)
    np.subtract(top, base, out=top)
    if fmt.address_width < 64:
        np.bitwise_and(top, fmt.address_mask, out=top)
    choose(high, fmt.address_mask, top, out)


def get_offset(fmt: CapabilityFormat, cap: Lanes, ws: Workspace, out: Words) -> None:
    """out = the addresses relative to the bases, modulo 2**A."""
    base, top = ws.capability[:2]
    bounds.decode_bounds(fmt, cap.meta, cap.address, ws, base, top, ws.capability_flags[0])
    np.subtract(cap.address, base, out=base)
    if fmt.address_width < 64:
        np.bitwise_and(base, fmt.address_mask, out=base)
    np.copyto(out, base)


def within_bounds(fmt: CapabilityFormat, cap: Lanes, address: Words, size: Words | int, ws: Workspace, out: Flags) -> None:
    """out = whether [address, address + size) lies in the bounds, without wrapping around; 0 <= size < 2**A."""
    base, top = ws.capability[6:8]
    top_high, end_high, below = ws.capability_flags[3:6]
    bounds.decode_bounds(fmt, cap.meta, cap.address, ws, base, top, top_high)
    np.greater_equal(address, base, out=out)
    end = base
    np.add(address, size, out=end)
    if fmt.address_width < 64:
        np.bitwise_and(end, fmt.address_mask, out=end)
    np.less(end, address, out=end_high)
    # (end_high, end) <= (top_high, top), as numbers of A + 1 bits
    np.less_equal(end, top, out=below)
    np.equal(end_high, top_high, out=end_high)
    np.logical_and(below, end_high, out=below)
    np.logical_not(end_high, out=end_high)
    np.logical_and(end_high, top_high, out=end_high)
    np.logical_or(below, end_high, out=below)
    np.logical_and(out, below, out=out)


def set_bounds(fmt: CapabilityFormat, cap: Lanes, length: Words, ws: Workspace, out: Lanes, exact: Flags) -> None:
    """out = cap narrowed to [address, address + length); untagged if it is sealed or the request leaves its bounds."""
    allowed, unsealed = ws.capability_flags[:2]
    meta = ws.capability[0]
    within_bounds(fmt, cap, cap.address, length, ws, allowed)
    is_unsealed(fmt, cap.meta, ws, unsealed)
    np.logical_and(allowed, unsealed, out=allowed)
    bounds.set_bounds(fmt, cap.meta, cap.address, length, ws, meta, exact)
    np.logical_and(cap.tag, allowed, out=out.tag)
    np.copyto(out.meta, meta)
    if out.address is not cap.address:
        np.copyto(out.address, cap.address)


def _move(fmt: CapabilityFormat, cap: Lanes, address: Words, kept: Flags, ws: Workspace, out: Lanes) -> None:
    """out = cap at an address; untagged if it is sealed or its bounds are not `kept`."""
    unsealed = ws.capability_flags[1]
    is_unsealed(fmt, cap.meta, ws, unsealed)
    np.logical_and(kept, unsealed, out=kept)
    np.logical_and(cap.tag, kept, out=out.tag)
    if out.meta is not cap.meta:
        np.copyto(out.meta, cap.meta)
    np.copyto(out.address, address)


def set_address(fmt: CapabilityFormat, cap: Lanes, address: Words, ws: Workspace, out: Lanes) -> None:
    """out = cap at an address; untagged if it is sealed or its bounds would change."""
    kept = ws.capability_flags[0]
    bounds.address_keeps_bounds(fmt, cap.meta, cap.address, address, ws, kept)
    _move(fmt, cap, address, kept, ws, out)


def increment_address(fmt: CapabilityFormat, cap: Lanes, increment: Words, ws: Workspace, out: Lanes) -> None:
    """out = cap moved by an increment modulo 2**A; untagged if it is sealed or the fast check says no."""
    kept, moved = ws.capability_flags[0], ws.capability[0]
    bounds.increment_is_representable(fmt, cap.meta, cap.address, increment, ws, kept)
    np.add(cap.address, increment, out=moved)
    if fmt.address_width < 64:
        np.bitwise_and(moved, fmt.address_mask, out=moved)
    _move(fmt, cap, moved, kept, ws, out)


def set_offset(fmt: CapabilityFormat, cap: Lanes, offset: Words, ws: Workspace, out: Lanes) -> None:
    """out = cap at its base + offset; untagged if it is sealed or the fast check says no."""
    increment, top = ws.capability[1:3]
    bounds.decode_bounds(fmt, cap.meta, cap.address, ws, increment, top, ws.capability_flags[0])
    np.add(increment, offset, out=increment)
    np.subtract(increment, cap.address, out=increment)
    if fmt.address_width < 64:
        np.bitwise_and(increment, fmt.address_mask, out=increment)
    increment_address(fmt, cap, increment, ws, out)


def set_permissions(fmt: CapabilityFormat, meta: Words, permissions: Words, ws: Workspace, out_meta: Words) -> None:
    """out_meta = meta with exactly these permissions (as CGetPerm returns them). It must not be `permissions`."""
    placed = ws.bounds[0]
    cleared = fmt.address_mask & ~(fmt.permissions.in_place | fmt.software_permissions.in_place)
    np.bitwise_and(meta, cleared, out=out_meta)
    np.bitwise_and(permissions, fmt.permissions.mask, out=placed)
    np.left_shift(placed, fmt.permissions.low, out=placed)
    np.bitwise_or(out_meta, placed, out=out_meta)
    np.right_shift(permissions, fmt.software_permissions_shift, out=placed)
    np.bitwise_and(placed, fmt.software_permissions.mask, out=placed)
    np.left_shift(placed, fmt.software_permissions.low, out=placed)
    np.bitwise_or(out_meta, placed, out=out_meta)


def and_permissions(fmt: CapabilityFormat, cap: Lanes, mask: Words, ws: Workspace, out: Lanes) -> None:
    """out = cap with those of its permissions that mask has too; untagged if it is sealed."""
    permissions, meta = ws.capability[:2]
    unsealed = ws.capability_flags[0]
    is_unsealed(fmt, cap.meta, ws, unsealed)
    get_permissions(fmt, cap.meta, ws, permissions)
    np.bitwise_and(permissions, mask, out=permissions)
    set_permissions(fmt, cap.meta, permissions, ws, meta)
    _replace_meta(cap, meta, unsealed, out)


def _replace_meta(cap: Lanes, meta: Words, keep_tag: Flags, out: Lanes) -> None:
    """out = cap with another meta, and with its tag only where `keep_tag` holds."""
    np.logical_and(cap.tag, keep_tag, out=out.tag)
    if out.address is not cap.address:
        np.copyto(out.address, cap.address)
    np.copyto(out.meta, meta)


def set_flags(fmt: CapabilityFormat, cap: Lanes, flags: Words, ws: Workspace, out: Lanes) -> None:
    """out = cap with these flags; untagged if it is sealed."""
    meta, placed = ws.capability[:2]
    unsealed = ws.capability_flags[0]
    is_unsealed(fmt, cap.meta, ws, unsealed)
    np.bitwise_and(cap.meta, fmt.address_mask & ~fmt.flags.in_place, out=meta)
    np.bitwise_and(flags, fmt.flags.mask, out=placed)
    np.left_shift(placed, fmt.flags.low, out=placed)
    np.bitwise_or(meta, placed, out=meta)
    _replace_meta(cap, meta, unsealed, out)


def set_otype(fmt: CapabilityFormat, meta: Words, otype: int, out_meta: Words) -> None:
    """out_meta = meta with another object type, which may be a reserved one."""
    np.bitwise_and(meta, fmt.address_mask & ~fmt.otype.in_place, out=out_meta)
    np.bitwise_or(out_meta, (otype & fmt.otype.mask) << fmt.otype.low, out=out_meta)


def _set_otypes(fmt: CapabilityFormat, meta: Words, otype: Words, ws: Workspace, out_meta: Words) -> None:
    """out_meta = meta with the lowest bits of otype as object type. It must not be `otype`."""
    placed = ws.bounds[0]
    np.bitwise_and(meta, fmt.address_mask & ~fmt.otype.in_place, out=out_meta)
    np.bitwise_and(otype, fmt.otype.mask, out=placed)
    np.left_shift(placed, fmt.otype.low, out=placed)
    np.bitwise_or(out_meta, placed, out=out_meta)


def _may_seal(fmt: CapabilityFormat, authority: Lanes, ws: Workspace, out: Flags) -> None:
    """out = whether the authority is unsealed, may seal, and points at an object type that can be given.

    Its tag and its bounds are not looked at.
    """
    flag = ws.capability_flags[2]
    is_unsealed(fmt, authority.meta, ws, out)
    permits(fmt, authority.meta, Permission.SEAL, ws, flag)
    np.logical_and(out, flag, out=out)
    np.less_equal(authority.address, fmt.max_otype, out=flag)
    np.logical_and(out, flag, out=out)


def seal(fmt: CapabilityFormat, cap: Lanes, authority: Lanes, ws: Workspace, out: Lanes) -> None:
    """out = cap sealed with the authority's address as object type; untagged if that isn't permitted."""
    permitted, flag = ws.capability_flags[:2]
    meta = ws.capability[0]
    _may_seal(fmt, authority, ws, permitted)
    within_bounds(fmt, authority, authority.address, 1, ws, flag)
    np.logical_and(permitted, flag, out=permitted)
    np.logical_and(permitted, authority.tag, out=permitted)
    is_unsealed(fmt, cap.meta, ws, flag)
    np.logical_and(permitted, flag, out=permitted)
    _set_otypes(fmt, cap.meta, authority.address, ws, meta)
    _replace_meta(cap, meta, permitted, out)


def conditional_seal(fmt: CapabilityFormat, cap: Lanes, authority: Lanes, ws: Workspace, out: Lanes) -> None:
    """out = `seal`, except that cap stays as it is where sealing isn't possible at all."""
    permitted, usable = ws.capability_flags[:2]
    meta = ws.capability[0]
    within_bounds(fmt, authority, authority.address, 1, ws, usable)
    np.logical_and(usable, authority.tag, out=usable)
    is_unsealed(fmt, cap.meta, ws, permitted)
    np.logical_and(usable, permitted, out=usable)
    np.not_equal(authority.address, fmt.address_mask, out=permitted)
    np.logical_and(usable, permitted, out=usable)
    _may_seal(fmt, authority, ws, permitted)
    _set_otypes(fmt, cap.meta, authority.address, ws, meta)
    np.logical_not(usable, out=usable)
    np.copyto(meta, cap.meta, where=usable)
    np.logical_or(permitted, usable, out=permitted)
    _replace_meta(cap, meta, permitted, out)


def unseal(fmt: CapabilityFormat, cap: Lanes, authority: Lanes, ws: Workspace, out: Lanes) -> None:
    """out = cap unsealed, global only if both are; untagged if the authority doesn't match."""
    permitted, flag = ws.capability_flags[:2]
    meta, scratch = ws.capability[:2]
    within_bounds(fmt, authority, authority.address, 1, ws, permitted)
    np.logical_and(permitted, authority.tag, out=permitted)
    is_unsealed(fmt, authority.meta, ws, flag)
    np.logical_and(permitted, flag, out=permitted)
    has_ordinary_otype(fmt, cap.meta, ws, flag)  # such a type is never "unsealed"
    np.logical_and(permitted, flag, out=permitted)
    permits(fmt, authority.meta, Permission.UNSEAL, ws, flag)
    np.logical_and(permitted, flag, out=permitted)
    _extract(fmt.otype, cap.meta, scratch)
    np.equal(scratch, authority.address, out=flag)
    np.logical_and(permitted, flag, out=permitted)
    set_otype(fmt, cap.meta, fmt.otype_unsealed, meta)
    # The authority's global bit, with all others set, masks cap's.
    local = fmt.address_mask & ~(int(Permission.GLOBAL) << fmt.permissions.low)
    np.bitwise_or(authority.meta, local, out=scratch)
    np.bitwise_and(meta, scratch, out=meta)
    _replace_meta(cap, meta, permitted, out)


def seal_entry(fmt: CapabilityFormat, cap: Lanes, ws: Workspace, out: Lanes) -> None:
    """out = cap sealed as an entry point; untagged if it was sealed."""
    unsealed, meta = ws.capability_flags[0], ws.capability[0]
    is_unsealed(fmt, cap.meta, ws, unsealed)
    set_otype(fmt, cap.meta, fmt.otype_sentry, meta)
    _replace_meta(cap, meta, unsealed, out)


def is_subset(fmt: CapabilityFormat, inner: Lanes, outer: Lanes, ws: Workspace, out: Flags) -> None:
    """out = whether bounds and permissions of inner are within those of outer, tags being equal."""
    base, top, outer_base, outer_top = ws.capability[2:6]
    high, outer_high, flag = ws.capability_flags[3:6]
    bounds.decode_bounds(fmt, inner.meta, inner.address, ws, base, top, high)
    bounds.decode_bounds(fmt, outer.meta, outer.address, ws, outer_base, outer_top, outer_high)
    np.less_equal(top, outer_top, out=out)
    np.equal(high, outer_high, out=flag)
    np.logical_and(out, flag, out=out)
    np.less(high, outer_high, out=flag)
    np.logical_or(out, flag, out=out)
    np.greater_equal(base, outer_base, out=flag)
    np.logical_and(out, flag, out=out)
    np.equal(inner.tag, outer.tag, out=flag)
    np.logical_and(out, flag, out=out)
    # No permission bit of inner that outer lacks: permissions are single bits of meta.
    np.invert(outer.meta, out=base)
    np.bitwise_and(base, inner.meta, out=base)
    np.bitwise_and(base, fmt.permissions.in_place | fmt.software_permissions.in_place, out=base)
    np.equal(base, 0, out=flag)
    np.logical_and(out, flag, out=out)


def equal(a: Lanes, b: Lanes, ws: Workspace, out: Flags) -> None:
    """out = equality of every bit and of the tag."""
    flag = ws.capability_flags[0]
    np.equal(a.meta, b.meta, out=out)
    np.equal(a.address, b.address, out=flag)
    np.logical_and(out, flag, out=out)
    np.equal(a.tag, b.tag, out=flag)
    np.logical_and(out, flag, out=out)


def build(fmt: CapabilityFormat, authority: Lanes, requested: Lanes, ws: Workspace, out: Lanes) -> None:
    """out = requested with a tag, if the authority could have derived just those bits; else without one."""
    wanted_meta, field, length = ws.capability[:3]
    is_sentry, tag, flag = ws.capability_flags[:3]
    # A requested sentry stays one, any other object type becomes "unsealed".
    _extract(fmt.otype, requested.meta, field)
    np.equal(field, fmt.otype_sentry, out=is_sentry)
    set_otype(fmt, requested.meta, fmt.otype_unsealed, wanted_meta)
    # Its bounds and permissions within those of a tagged, unsealed authority.
    wanted = Lanes(authority.tag, wanted_meta, requested.address)
    is_subset(fmt, wanted, authority, ws, tag)
    np.logical_and(tag, authority.tag, out=tag)
    is_unsealed(fmt, authority.meta, ws, flag)
    np.logical_and(tag, flag, out=tag)
    base, top, high = ws.capability[3], ws.capability[4], ws.capability_flags[3]
    bounds.decode_bounds(fmt, wanted_meta, requested.address, ws, base, top, high)
    # Encoding those bounds anew must give the same bits. (Then it was exact, as the same bits have the same length, and the
    # top isn't below the base.) The whole address space is the one length that a word can't hold; NULL's encoding has it.
    np.subtract(top, base, out=length)
    if fmt.address_width < 64:
        np.bitwise_and(length, fmt.address_mask, out=length)
    np.greater_equal(top, base, out=flag)
    np.logical_and(flag, high, out=high)
    np.copyto(field, bounds.encode_bounds(fmt, base, length, ws, ws.capability[5], flag))
    np.copyto(field, fmt.null_meta & fmt.bounds.in_place, where=high)
    np.bitwise_xor(field, wanted_meta, out=field)
    np.bitwise_and(field, fmt.bounds.in_place, out=field)
    np.equal(field, 0, out=flag)
    np.logical_and(tag, flag, out=tag)
    # Reserved bits come from the authority.
    np.bitwise_xor(authority.meta, wanted_meta, out=field)
    np.bitwise_and(field, fmt.reserved.in_place, out=field)
    np.equal(field, 0, out=flag)
    np.logical_and(tag, flag, out=tag)
    set_otype(fmt, requested.meta, fmt.otype_sentry, field)
    np.copyto(wanted_meta, field, where=is_sentry)
    np.copyto(out.address, requested.address)
    np.copyto(out.meta, wanted_meta)
    np.copyto(out.tag, tag)


def copy_type(fmt: CapabilityFormat, cap: Lanes, sealed: Lanes, ws: Workspace, out: Lanes) -> None:
    """out = cap pointing at the object type of sealed; untagged if that type is reserved or out of reach."""
    otype, ordinary = ws.capability[0], ws.capability_flags[2]
    get_otype(fmt, sealed.meta, ws, otype)
    has_ordinary_otype(fmt, sealed.meta, ws, ordinary)
    set_address(fmt, cap, otype, ws, out)
    np.logical_and(out.tag, ordinary, out=out.tag)


def to_memory(fmt: CapabilityFormat, meta: Words, out: Words) -> None:
    """out = metas in memory form, or back: an exclusive-or with NULL's."""
    np.bitwise_xor(meta, fmt.null_meta, out=out)
