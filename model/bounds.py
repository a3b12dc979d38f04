"""Bounds of compressed capabilities: CHERI Concentrate, for every format of `spec.formats`.

Source: Woodruff et al., "CHERI Concentrate: Practical Compressed Capabilities", IEEE Transactions on Computers 68(10), 2019;
sail-cheri-riscv, cheri_cap_common.sail. Each function names the one of the Sail model that it answers to.
"""

from capvisor.model.bits import bit_length, select, sign_extend
from capvisor.spec.formats import CapabilityFormat


def unpack_bounds(fmt: CapabilityFormat, meta: int) -> tuple[int, int, int]:
    """What `meta` says of the bounds, as (exponent, bottom, top); bottom and top have `mantissa_width` bits.

    The exponent is as stored, which may be above `fmt.max_exponent`. Source: encCapabilityToCapability.
    """
    top_field, bottom_field = fmt.top, fmt.bottom
    internal = meta >> fmt.internal_exponent.low & 1 == fmt.internal_exponent_flag
    top = meta >> top_field.low & top_field.mask
    bottom = meta >> bottom_field.low & bottom_field.mask
    exponent_high = top & internal * fmt.exponent_high_mask
    exponent_low = bottom & internal * fmt.exponent_low_mask
    top = top ^ exponent_high
    bottom = bottom ^ exponent_low
    # T's two highest bits aren't stored: T = B + length, whose highest bit is `internal`, with the carry of the rest.
    carry = top < bottom & top_field.mask
    top_high = (bottom >> top_field.width) + internal + carry & 3
    return exponent_high << fmt.exponent_low_width | exponent_low, bottom, top_high << top_field.width | top


def decode_bounds(fmt: CapabilityFormat, meta: int, address: int) -> tuple[int, int]:
    """The bounds that `meta` gives to a capability at `address`, as (base, top).

    `base` has the format's address width A, `top` one bit more: [base, top) may end at 2**A. An encoding that isn't valid
    may have its top below its base. Source: CHERI Concentrate, section 4.2; getCapBoundsBits.
    """
    exponent, bottom, top = unpack_bounds(fmt, meta)
    exponent = select(exponent < fmt.max_exponent, exponent, fmt.max_exponent)
    shift = fmt.mantissa_width - 3
    limit = (bottom >> shift) - 1 & 7  # the representable region starts an eighth of itself below the base, or less
    address_above = (address >> exponent + shift & 7) < limit
    bottom_above = bottom >> shift < limit
    top_above = top >> shift < limit
    window = (address >> exponent + fmt.mantissa_width) - address_above
    base = ((window + bottom_above << fmt.mantissa_width) + bottom << exponent) & fmt.length_mask
    top = ((window + top_above << fmt.mantissa_width) + top << exponent) & fmt.length_mask
    # Where the region wraps around the address space, the top's highest bit must be chosen so that the length makes sense.
    highest = fmt.address_width - 1
    length_high = (top >> highest) - (base >> highest & 1) & 3
    wrapped = (exponent < fmt.max_exponent - 1) & (length_high > 1)
    return base & fmt.address_mask, top ^ wrapped << fmt.address_width


def bounds_are_valid(fmt: CapabilityFormat, meta: int) -> bool:
    """Whether `meta` encodes bounds that a tagged capability may have.

    Mantissa bits that would stand above the address space must be zero. Source: CHERI Concentrate, section 4.2;
    cheri-compressed-cap, bounds_bits_valid.
    """
    exponent, bottom, top = unpack_bounds(fmt, meta)
    highest = fmt.mantissa_width - 1
    whole = (exponent < fmt.max_exponent) | (top >> highest == 0) & (bottom >> highest - 1 == 0)
    half = (exponent != fmt.max_exponent - 1) | (bottom >> highest == 0)
    return whole & half


def encode_bounds(fmt: CapabilityFormat, base: int, top: int) -> tuple[int, int, bool]:
    """The tightest encoding that covers [base, top), as (bounds field, alignment exponent, whether it is exact).

    0 <= base < 2**A, base <= top < 2**(A+1); a top above 2**A gets the bits that the hardware
    gives it, and no promise. Bounds are multiples of 2**(alignment exponent). Source: setCapBounds.
    """
    low = fmt.exponent_low_width
    length = top - base & fmt.length_mask
    exponent = bit_length(length >> fmt.mantissa_width - 1)
    internal = length >> fmt.mantissa_width - 2 != 0
    # The lowest mantissa bits hold the exponent, so that bounds are rounded to multiples of 2**alignment.
    unused = internal * low
    alignment = exponent + unused
    bottom_granule = base >> alignment
    top_granule = top + (1 << alignment) - 1 >> alignment
    # Rounding may have made the length one mantissa bit longer: then the exponent is one higher.
    grown = internal & (top_granule - bottom_granule >> fmt.mantissa_width - 1 - low != 0)
    exponent = exponent + grown
    alignment = alignment + grown
    bottom_granule = bottom_granule >> grown
    top_granule = top_granule + grown >> grown
    exact = (base | top) & (1 << alignment) - 1 == 0

    bottom = bottom_granule << unused & fmt.bottom.mask | exponent & fmt.exponent_low_mask
    top = top_granule << unused & fmt.top.mask | exponent >> low
    flag = internal ^ 1 - fmt.internal_exponent_flag
    field = flag << fmt.internal_exponent.low | top << fmt.top.low | bottom << fmt.bottom.low
    return field, alignment, exact


def set_bounds(fmt: CapabilityFormat, meta: int, base: int, top: int) -> tuple[int, bool]:
    """`meta` with the tightest bounds that cover [base, top), and whether they are exact; the rest of meta stays.

    The domain is that of `encode_bounds`. Source: setCapBounds.
    """
    field, _alignment, exact = encode_bounds(fmt, base, top)
    return meta & ~fmt.bounds.in_place | field, exact


def address_keeps_bounds(fmt: CapabilityFormat, meta: int, address: int, new_address: int) -> bool:
    """The precise check: whether the bounds at `new_address` are those at `address`. Source: setCapAddr."""
    base, top = decode_bounds(fmt, meta, address)
    new_base, new_top = decode_bounds(fmt, meta, new_address)
    return (base == new_base) & (top == new_top)


def increment_is_representable(fmt: CapabilityFormat, meta: int, address: int, increment: int) -> bool:
    """The hardware's fast check of an address moved by `increment` (modulo 2**A): cautious, never wrongly true.

    It compares mantissa-sized pieces of address and increment with the start of the representable region, and needs no
    bounds. Source: CHERI Concentrate, section 4.3; fastRepCheck.
    """
    exponent, bottom, _top = unpack_bounds(fmt, meta)
    shift = fmt.mantissa_width - 3
    region = ((bottom >> shift) - 1 & 7) << shift
    address_middle = address >> exponent & fmt.mantissa_mask
    increment_middle = increment >> exponent & fmt.mantissa_mask
    increment_high = sign_extend(increment, fmt.address_width) >> exponent + fmt.mantissa_width
    room = region - address_middle & fmt.mantissa_mask
    upwards = (increment_high == 0) & (increment_middle < (room - 1 & fmt.mantissa_mask))
    downwards = (increment_high == -1) & (increment_middle >= room) & (region != address_middle)
    return (exponent >= fmt.max_exponent - 2) | upwards | downwards


def alignment_mask(fmt: CapabilityFormat, length: int) -> int:
    """The mask that aligns a base so that `length` bytes from it have exact bounds.

    Source: getRepresentableAlignmentMask.
    """
    _field, alignment, _exact = encode_bounds(fmt, 0, length)
    return fmt.address_mask >> alignment << alignment


def representable_length(fmt: CapabilityFormat, length: int) -> int:
    """`length` rounded up to one that can be exact, modulo 2**A. Source: getRepresentableLength."""
    mask = alignment_mask(fmt, length)
    return length + (mask ^ fmt.address_mask) & mask
