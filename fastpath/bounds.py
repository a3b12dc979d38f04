"""Bounds of compressed capabilities, in blocks of lanes: the fast twin of `model.bounds`.

The formulas differ from the specification's text. With B the stored bottom and a' the address in units of 2**E, the base
in those units is the largest number <= a' + 1/8 region + (B modulo 1/8 region) that is congruent to B modulo the region:
no corrections, no comparisons of three-bit pieces, no 65-bit values. The length in those units needs no address, and gives
the top.

The bounds stand in the lowest 32 bits of meta, B below T, in every format so far: mantissas and exponents are worked on as
uint32, which takes two thirds of the time.
"""

import numpy as np

from capvisor.fastpath.bits import floor_log2, shift_right_signed
from capvisor.fastpath.workspace import Flags, Shorts, Words, Workspace
from capvisor.spec.formats import CapabilityFormat


def narrow(values: Words, out: Shorts) -> None:
    """out = the lowest 32 bits of values."""
    np.copyto(out, values, casting="unsafe")


def unpack_bounds(fmt: CapabilityFormat, meta: Words, ws: Workspace) -> tuple[Shorts, Shorts, Shorts]:
    """The exponent as stored, meta with the exponent's bits cleared, and the internal exponent flag.

    They are ws.bounds_shorts[:3].
    """
    exponent, mantissas, internal = ws.bounds_shorts[:3]
    narrow(meta, mantissas)
    np.right_shift(mantissas, fmt.internal_exponent.low, out=internal)
    if fmt.internal_exponent_flag == 0:
        np.invert(internal, out=internal)
    np.bitwise_and(internal, 1, out=internal)
    np.multiply(internal, fmt.exponent_high_mask << fmt.top.low | fmt.exponent_low_mask, out=exponent)
    np.bitwise_and(mantissas, exponent, out=exponent)
    np.bitwise_xor(mantissas, exponent, out=mantissas)
    # The exponent's upper part comes down next to its lower part: x + (x >> distance), as one product.
    distance = fmt.top.low - fmt.exponent_low_width
    np.multiply(exponent, (1 << distance) + 1, out=exponent)
    np.right_shift(exponent, distance, out=exponent)
    np.bitwise_and(exponent, (1 << fmt.exponent_low_width + fmt.exponent_high_width) - 1, out=exponent)
    return exponent, mantissas, internal


def _base_units(
    fmt: CapabilityFormat, exponent: Words, mantissas: Shorts, address: Words, ws: Workspace, out: Words
) -> None:
    """out = the base in units of 2**exponent, modulo 2**64. Uses ws.bounds[0] and ws.bounds_shorts[3]."""
    wide, short = ws.bounds[0], ws.bounds_shorts[3]
    eighth = 1 << fmt.mantissa_width - 3
    np.right_shift(address, exponent, out=out)
    np.bitwise_and(mantissas, eighth - 1, out=short)
    np.bitwise_or(short, eighth, out=short)
    np.copyto(wide, short)
    np.add(out, wide, out=out)
    narrow(out, short)
    np.subtract(short, mantissas, out=short)
    np.bitwise_and(short, fmt.mantissa_mask, out=short)
    np.copyto(wide, short)
    np.subtract(out, wide, out=out)


def _length_units(fmt: CapabilityFormat, mantissas: Shorts, internal: Shorts, out: Shorts) -> None:
    """out = the length in units of 2**exponent: T - B, and above it the bit that an internal exponent implies."""
    np.right_shift(mantissas, fmt.top.low, out=out)
    np.subtract(out, mantissas, out=out)
    np.bitwise_and(out, fmt.top.mask, out=out)
    np.left_shift(internal, fmt.top.width, out=internal)
    np.bitwise_or(out, internal, out=out)


def _to_address(fmt: CapabilityFormat, values: Words) -> None:
    """Reduce values modulo 2**A, in place."""
    if fmt.address_width < 64:
        np.bitwise_and(values, fmt.address_mask, out=values)


def decode_bounds(
    fmt: CapabilityFormat, meta: Words, address: Words, ws: Workspace, base: Words, top: Words, top_high: Flags
) -> None:
    """base and top of each capability; the top's bit A is in `top_high`, the rest of it in `top`.

    `base` and `top` must not be `meta` or `address`.
    """
    shift, length = ws.bounds[1], ws.bounds_shorts[4]
    exponent, mantissas, internal = unpack_bounds(fmt, meta, ws)
    np.minimum(exponent, fmt.max_exponent, out=exponent)
    np.copyto(shift, exponent)
    _base_units(fmt, shift, mantissas, address, ws, base)
    np.left_shift(base, shift, out=base)
    _to_address(fmt, base)
    _length_units(fmt, mantissas, internal, length)
    np.copyto(top, length)
    np.left_shift(top, shift, out=top)
    np.add(top, base, out=top)
    _to_address(fmt, top)
    np.less(top, base, out=top_high)
    # Mantissa bits that stand at or above 2**A, which only the two largest exponents have, count into the top's bit A.
    np.bitwise_and(mantissas, fmt.mantissa_mask, out=mantissas)
    np.bitwise_xor(length, mantissas, out=length)
    np.subtract(fmt.address_width, exponent, out=exponent)
    np.right_shift(length, exponent, out=length)
    np.bitwise_and(length, 1, out=length)
    np.not_equal(length, top_high, out=top_high)


def bounds_are_valid(fmt: CapabilityFormat, meta: Words, ws: Workspace, out: Flags) -> None:
    """out = whether meta encodes bounds that a tagged capability may have."""
    top, flag, other = ws.bounds_shorts[4], *ws.bounds_flags[:2]
    exponent, mantissas, internal = unpack_bounds(fmt, meta, ws)
    _length_units(fmt, mantissas, internal, top)
    np.add(top, mantissas, out=top)  # T = B + length
    highest = 1 << fmt.mantissa_width - 1
    np.bitwise_and(top, highest, out=top)
    np.bitwise_and(mantissas, highest | highest >> 1, out=internal)
    np.bitwise_or(top, internal, out=top)
    np.equal(top, 0, out=out)
    np.less(exponent, fmt.max_exponent, out=flag)
    np.logical_or(out, flag, out=out)
    np.bitwise_and(mantissas, highest, out=mantissas)
    np.equal(mantissas, 0, out=flag)
    np.not_equal(exponent, fmt.max_exponent - 1, out=other)
    np.logical_or(flag, other, out=flag)
    np.logical_and(out, flag, out=out)


def encode_bounds(
    fmt: CapabilityFormat, base: Words, length: Words, ws: Workspace, alignment: Words, exact: Flags
) -> Shorts:
    """The tightest bounds field that covers [base, base + length), its alignment exponent, and whether it is exact.

    Lengths are below 2**A. The field is ws.bounds_shorts[0]; `alignment` must not be `base` or `length`.
    """
    wide, mask, offset, units = ws.bounds[:4]
    bottom, top, exponent, internal, unused, grown = ws.bounds_shorts[:6]
    flag = ws.bounds_flags[0]
    low, length_bits = fmt.exponent_low_width, fmt.mantissa_width - 1
    np.right_shift(length, length_bits - 1, out=wide)
    np.not_equal(wide, 0, out=flag)
    np.copyto(internal, flag)
    floor_log2(wide, wide)
    narrow(wide, exponent)
    np.multiply(internal, low, out=unused)
    np.add(exponent, unused, out=top)
    np.copyto(alignment, top)
    np.left_shift(np.uint64(1), alignment, out=mask)
    np.subtract(mask, 1, out=mask)
    # How many units of 2**alignment the request touches: the length's whole ones, and those of the rest.
    np.bitwise_and(base, mask, out=offset)
    np.bitwise_and(length, mask, out=units)
    np.bitwise_or(offset, units, out=wide)
    np.equal(wide, 0, out=exact)
    np.add(offset, units, out=offset)
    np.add(offset, mask, out=offset)
    np.right_shift(offset, alignment, out=offset)
    np.right_shift(length, alignment, out=units)
    np.right_shift(base, alignment, out=wide)
    narrow(wide, bottom)
    np.add(units, offset, out=units)
    narrow(units, top)
    # One more bit than fits: units twice as large. Only rounding can lead there, so that `exact` is false already.
    np.right_shift(top, length_bits - low, out=grown)
    np.bitwise_and(grown, internal, out=grown)
    np.add(top, bottom, out=top)
    np.right_shift(bottom, grown, out=bottom)
    np.add(top, grown, out=top)
    np.right_shift(top, grown, out=top)
    np.add(exponent, grown, out=exponent)
    np.copyto(wide, grown)
    np.add(alignment, wide, out=alignment)
    _pack(fmt, bottom, top, exponent, internal, unused)
    return bottom


def _pack(fmt: CapabilityFormat, bottom: Shorts, top: Shorts, exponent: Shorts, internal: Shorts, unused: Shorts) -> None:
    """bottom = the bounds field, of B and T in units that leave `unused` bits of them to the exponent. Spoils all."""
    # The exponent's upper part goes below T, its lower part below B.
    np.left_shift(bottom, unused, out=bottom)
    np.bitwise_and(bottom, fmt.bottom.mask, out=bottom)
    np.left_shift(top, unused, out=top)
    np.bitwise_and(top, fmt.top.mask, out=top)
    np.left_shift(top, fmt.top.low, out=top)
    np.bitwise_or(bottom, top, out=bottom)
    np.multiply(exponent, (1 << fmt.top.low - fmt.exponent_low_width) + 1, out=exponent)
    np.bitwise_and(exponent, fmt.exponent_high_mask << fmt.top.low | fmt.exponent_low_mask, out=exponent)
    np.bitwise_or(bottom, exponent, out=bottom)
    if fmt.internal_exponent_flag == 0:
        np.bitwise_xor(internal, 1, out=internal)
    np.left_shift(internal, fmt.internal_exponent.low, out=internal)
    np.bitwise_or(bottom, internal, out=bottom)


def set_bounds(
    fmt: CapabilityFormat, meta: Words, base: Words, length: Words, ws: Workspace, out_meta: Words, exact: Flags
) -> None:
    """out_meta = meta with the tightest bounds that cover [base, base + length), and whether they are exact.

    Lengths are below 2**A. `out_meta` must not be `base` or `length`.
    """
    wide = ws.bounds[0]
    field = encode_bounds(fmt, base, length, ws, ws.bounds[4], exact)
    np.copyto(wide, field)
    np.bitwise_and(meta, ~fmt.bounds.in_place & fmt.address_mask, out=out_meta)
    np.bitwise_or(out_meta, wide, out=out_meta)


def address_keeps_bounds(
    fmt: CapabilityFormat, meta: Words, address: Words, new_address: Words, ws: Workspace, out: Flags
) -> None:
    """out = whether the bounds at the new address are those at the address (the precise check).

    The length doesn't depend on the address, so that bounds are equal when bases are.
    """
    shift, base, new_base = ws.bounds[1:4]
    exponent, mantissas, _internal = unpack_bounds(fmt, meta, ws)
    np.minimum(exponent, fmt.max_exponent, out=exponent)
    np.copyto(shift, exponent)
    _base_units(fmt, shift, mantissas, address, ws, base)
    _base_units(fmt, shift, mantissas, new_address, ws, new_base)
    np.bitwise_xor(base, new_base, out=base)
    np.left_shift(base, shift, out=base)
    _to_address(fmt, base)
    np.equal(base, 0, out=out)


def increment_is_representable(
    fmt: CapabilityFormat, meta: Words, address: Words, increment: Words, ws: Workspace, out: Flags
) -> None:
    """out = the hardware's fast check of addresses moved by increments modulo 2**A.

    With v the distance of the address from the start of the representable region plus the increment, both in units of
    2**E, the check is 0 <= v < region size - 1 (upwards) or region size (downwards).
    """
    shift, moved, distance = ws.bounds[:3]
    short, flag = ws.bounds_shorts[3], ws.bounds_flags[0]
    exponent, mantissas, _internal = unpack_bounds(fmt, meta, ws)
    eighth = 1 << fmt.mantissa_width - 3
    np.copyto(shift, exponent)
    np.right_shift(address, shift, out=moved)
    narrow(moved, short)
    np.bitwise_and(mantissas, -eighth & fmt.mantissa_mask, out=mantissas)
    np.subtract(short, mantissas, out=short)
    np.add(short, eighth, out=short)
    np.bitwise_and(short, fmt.mantissa_mask, out=short)
    np.copyto(distance, short)
    # Exponents from max_exponent - 2 upwards have the whole address space as region.
    np.greater_equal(exponent, fmt.max_exponent - 2, out=flag)
    if fmt.address_width < 64:
        np.left_shift(increment, 64 - fmt.address_width, out=moved)
        np.add(shift, 64 - fmt.address_width, out=shift)
        shift_right_signed(moved, shift, moved)
    else:
        shift_right_signed(increment, shift, moved)
    np.add(distance, moved, out=distance)
    limit = moved
    np.right_shift(increment, fmt.address_width - 1, out=limit)
    np.add(limit, fmt.mantissa_mask, out=limit)
    np.less(distance, limit, out=out)
    np.logical_or(out, flag, out=out)


def alignment_mask(fmt: CapabilityFormat, length: Words, ws: Workspace, out: Words) -> None:
    """out = the mask that aligns a base so that `length` bytes from it have exact bounds. `out` must not be `length`."""
    alignment, zero = ws.bounds[4], out
    zero.fill(0)
    encode_bounds(fmt, zero, length, ws, alignment, ws.bounds_flags[1])
    np.right_shift(np.uint64(fmt.address_mask), alignment, out=out)
    np.left_shift(out, alignment, out=out)


def representable_length(fmt: CapabilityFormat, length: Words, ws: Workspace, out: Words) -> None:
    """out = lengths rounded up to ones that can be exact, modulo 2**A. `out` must not be `length`."""
    alignment_mask(fmt, length, ws, out)
    rounded = ws.bounds[0]
    np.bitwise_xor(out, fmt.address_mask, out=rounded)
    np.add(rounded, length, out=rounded)
    np.bitwise_and(out, rounded, out=out)
