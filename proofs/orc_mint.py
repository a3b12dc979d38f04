"""Theorems on what the base of shared objects mints, which stand for it in the theorems on steps (`proofs.orc_state`)."""

from typing import Any

from capvisor.model import capability, guests
from capvisor.proofs.theorem import Given, implies, theorem
from capvisor.spec import orc
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.orc import Shape

SHAPE = Shape(20, 12)
"""Slots and objects in the theorems: slots of 2**20 bytes, as many as memory has, and 2**12 objects."""

MINTED = (
    *(orc.READ_PERMISSIONS, orc.DATA_PERMISSIONS, orc.CODE_PERMISSIONS, orc.ENTRY_DATA_PERMISSIONS),
    orc.CODE_PERMISSIONS | orc.STORE_PERMISSIONS,
)
"""What minted capabilities permit, with any guards on or off."""


def whole_sizes(fmt: CapabilityFormat) -> tuple[int, int]:
    """The sizes of what is minted whole: a slot, and a TLS array."""
    return SHAPE.slot_bytes, SHAPE.objects << fmt.granule_shift


def as_asked(cap: Any, base: Any, size: Any, permissions: Permission) -> Any:
    """What is true of a capability that is minted with exact bounds."""
    low, high = cap.bounds
    said = cap.tag & (low == base) & (high == base + size) & (cap.permissions == int(permissions)) & cap.is_sound
    return said & (cap.otype == cap.format.otype_unsealed) & (cap.flags == 0)


@theorem(
    "orc.mint",
    "What the base mints, where it says that the bounds are exact, is tagged, sound and unsealed, with those bounds and "
    "permissions.",
    "ours: spec/orc.md",
    mutants=("set-exact-ignores-top", "set-top-rounded-twice"),
)
def minted(fmt: CapabilityFormat, given: Given) -> Any:
    """For any base and size, and each set of permissions that is minted."""
    base, size = given.word("base", fmt.address_width), given.word("size", fmt.address_width + 1)
    holds: Any = True
    for permissions in MINTED:
        cap, exact = guests.minted(fmt, base, size, permissions)
        holds = holds & implies(exact, as_asked(cap, base, size, permissions) & (cap.address == base))
    return holds


@theorem(
    "orc.whole",
    "A capability to a whole slot or TLS array, which begins at a multiple of its size, has exact bounds, and the same ones "
    "wherever in it the address is.",
    "ours: spec/orc.md",
    mutants=("set-top-rounded-twice",),
)
def whole(fmt: CapabilityFormat, given: Given) -> Any:
    """For any base, at any offset."""
    holds: Any = True
    for size in whole_sizes(fmt):
        number = given.word(f"number_{size}", fmt.address_width - size.bit_length() + 1)
        offset = given.word(f"offset_{size}", size.bit_length() - 1)
        base = number << size.bit_length() - 1
        cap, exact = guests.minted(fmt, base, size, orc.CODE_PERMISSIONS)
        moved = capability.set_address(cap, base + offset)
        holds = holds & exact & as_asked(moved, base, size, orc.CODE_PERMISSIONS) & (moved.address == base + offset)
    return holds
