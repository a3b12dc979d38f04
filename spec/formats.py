"""Compressed capability formats, one record each.

A capability is a tag, an address of `address_width` bits, and as many bits of *meta*: permissions, flags, object type and
bounds. Field positions are bit positions within meta, as the architecture sees it ("raw"). In memory, meta is
exclusive-ored with NULL's, so that NULL is all zeros.

The bounds are a mantissa of base (B) and of top (T) and an exponent (E), after CHERI Concentrate (Woodruff et al., IEEE
Transactions on Computers 68(10), 2019). T is stored without its two highest bits. With an internal exponent, the lowest
bits of the T and B fields hold E, and the length's highest mantissa bit is implied.
"""

from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property

CACHE_LINE_BYTES = 64
"""How much memory one CLoadTags asks about. Source: sail-cheri-riscv, caps_per_cache_line (4 of 16 bytes, 8 of 8)."""


class Permission(IntFlag):
    """Architectural permissions, at the bits where CGetPerm and CAndPerm have them.

    Source: CHERI ISAv9 (UCAM-CL-TR-987), CGetPerm and CAndPerm; sail-cheri-riscv, cheri_cap_common.sail, getCapHardPerms.
    """

    GLOBAL = 1 << 0
    EXECUTE = 1 << 1
    LOAD = 1 << 2
    STORE = 1 << 3
    LOAD_CAPABILITY = 1 << 4
    STORE_CAPABILITY = 1 << 5
    STORE_LOCAL_CAPABILITY = 1 << 6
    SEAL = 1 << 7
    CINVOKE = 1 << 8
    UNSEAL = 1 << 9
    ACCESS_SYSTEM_REGISTERS = 1 << 10
    SET_CID = 1 << 11


@dataclass(frozen=True)
class Field:
    """`width` bits of meta, the lowest of them at bit `low`; a field that the format lacks has width 0."""

    low: int
    width: int

    @cached_property
    def mask(self) -> int:
        """The field's bits, moved down to bit 0."""
        return (1 << self.width) - 1

    @cached_property
    def in_place(self) -> int:
        """The field's bits where they stand in meta."""
        return self.mask << self.low


@dataclass(frozen=True)
class CapabilityFormat:
    """How a capability is laid out, and the constants that follow from it.

    `exponent_low_width` bits of E lie at the bottom of the B field and `exponent_high_width` at the bottom of the T field
    when the bit at `internal_exponent` equals `internal_exponent_flag`. `max_exponent` is the largest exponent that is
    needed, not the largest that can be stored. Object types from the highest downwards are reserved, `reserved_otypes` of
    them. Software permissions stand from bit `software_permissions_shift` in what CGetPerm returns.
    """

    name: str
    title: str
    source: str
    address_width: int
    mantissa_width: int
    max_exponent: int
    software_permissions: Field
    permissions: Field
    reserved: Field
    flags: Field
    otype: Field
    internal_exponent: Field
    internal_exponent_flag: int
    top: Field
    bottom: Field
    exponent_high_width: int
    exponent_low_width: int
    reserved_otypes: int
    software_permissions_shift: int = 15

    @cached_property
    def address_mask(self) -> int:
        return (1 << self.address_width) - 1

    @cached_property
    def length_mask(self) -> int:
        """Bounds and lengths have one bit more than addresses: a top may be 2**address_width."""
        return (1 << self.address_width + 1) - 1

    @cached_property
    def address_space(self) -> int:
        """The size of the address space in bytes, 2**address_width."""
        return 1 << self.address_width

    @cached_property
    def capability_bytes(self) -> int:
        """The size of a capability in memory in bytes, which is also a granule's: one tag covers one granule."""
        return self.address_width // 4

    @cached_property
    def granule_shift(self) -> int:
        """log2 of `capability_bytes`."""
        return self.capability_bytes.bit_length() - 1

    @cached_property
    def mantissa_mask(self) -> int:
        return (1 << self.mantissa_width) - 1

    @cached_property
    def exponent_high_mask(self) -> int:
        """The bits of the T field that hold the exponent's upper part when it is internal."""
        return (1 << self.exponent_high_width) - 1

    @cached_property
    def exponent_low_mask(self) -> int:
        """The bits of the B field that hold the exponent's lower part when it is internal."""
        return (1 << self.exponent_low_width) - 1

    @cached_property
    def bounds(self) -> Field:
        """Everything that decides the bounds: internal exponent flag, T and B, which are neighbours."""
        return Field(self.bottom.low, self.bottom.width + self.top.width + self.internal_exponent.width)

    @cached_property
    def permissions_mask(self) -> int:
        """Every bit that CGetPerm can return."""
        return self.permissions.mask | self.software_permissions.mask << self.software_permissions_shift

    @cached_property
    def otype_unsealed(self) -> int:
        """Object type -1. Source: sail-cheri-riscv, cheri_types.sail, otype_unsealed."""
        return self.otype.mask

    @cached_property
    def otype_sentry(self) -> int:
        """Object type -2, a sealed entry capability. Source: sail-cheri-riscv, cheri_types.sail, otype_sentry."""
        return self.otype.mask - 1

    @cached_property
    def max_otype(self) -> int:
        """The highest object type that CSeal can give; above it they are reserved."""
        return self.otype.mask - self.reserved_otypes

    @cached_property
    def null_meta(self) -> int:
        """NULL: no permissions, unsealed, bounds of the whole address space."""
        implied_top = self.max_exponent >> self.exponent_low_width
        implied_bottom = self.max_exponent & self.exponent_low_mask
        return (
            self.otype_unsealed << self.otype.low
            | self.internal_exponent_flag << self.internal_exponent.low
            | implied_top << self.top.low
            | implied_bottom << self.bottom.low
        )

    @cached_property
    def root_meta(self) -> int:
        """The default capability: NULL's bounds with every permission."""
        return self.null_meta | self.permissions.in_place | self.software_permissions.in_place


CC128 = CapabilityFormat(
    name="cc128",
    title="CHERI ISAv9, 128-bit capabilities (RV64)",
    source="CHERI ISAv9 (UCAM-CL-TR-987); sail-cheri-riscv, cheri_prelude_128.sail",
    address_width=64,
    mantissa_width=14,
    max_exponent=52,
    software_permissions=Field(60, 4),
    permissions=Field(48, 12),
    reserved=Field(46, 2),
    flags=Field(45, 1),
    otype=Field(27, 18),
    internal_exponent=Field(26, 1),
    internal_exponent_flag=1,
    top=Field(14, 12),
    bottom=Field(0, 14),
    exponent_high_width=3,
    exponent_low_width=3,
    reserved_otypes=4,
)

CC64 = CapabilityFormat(
    name="cc64",
    title="CHERI ISAv9, 64-bit capabilities (RV32)",
    source="CHERI ISAv9 (UCAM-CL-TR-987); sail-cheri-riscv, cheri_prelude_64.sail",
    address_width=32,
    mantissa_width=8,
    max_exponent=26,
    software_permissions=Field(32, 0),
    permissions=Field(20, 12),
    reserved=Field(32, 0),
    flags=Field(19, 1),
    otype=Field(15, 4),
    internal_exponent=Field(14, 1),
    internal_exponent_flag=1,
    top=Field(8, 6),
    bottom=Field(0, 8),
    exponent_high_width=3,
    exponent_low_width=3,
    reserved_otypes=4,
)

FORMATS: dict[str, CapabilityFormat] = {row.name: row for row in (CC128, CC64)}
