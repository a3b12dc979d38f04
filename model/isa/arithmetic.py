"""Capability arithmetic: bounds, addresses, permissions, flags."""

from capvisor.model import capability
from capvisor.model.machine import Hart, Register, operation


@operation("csetbounds")
def csetbounds(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Narrow cs1 to [address, address + rs2), rounded outwards to what the format can hold.

    The result is untagged when cs1 is sealed or the request leaves its bounds.
    """
    # OPERANDS
    parent, length = hart.capability(cs1), hart.integer(rs2)
    # EFFECT
    narrowed, _exact = capability.set_bounds(parent, length)
    hart.write(cd, narrowed)


@operation("csetboundsimm")
def csetboundsimm(hart: Hart, cd: Register, cs1: Register, uimm: int) -> None:
    """As csetbounds, with an immediate length."""
    # EFFECT
    narrowed, _exact = capability.set_bounds(hart.capability(cs1), uimm)
    hart.write(cd, narrowed)


@operation("csetboundsexact")
def csetboundsexact(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """As csetbounds, untagged also when the bounds had to be rounded."""
    # OPERANDS
    parent, length = hart.capability(cs1), hart.integer(rs2)
    # EFFECT
    narrowed, exact = capability.set_bounds(parent, length)
    hart.write(cd, narrowed.tagged_if(exact))


@operation("csetaddr")
def csetaddr(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Move cs1 to an address; untagged when it is sealed or its bounds would change."""
    # EFFECT
    hart.write(cd, capability.set_address(hart.capability(cs1), hart.integer(rs2)))


@operation("csetoffset")
def csetoffset(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Move cs1 to an offset from its base; untagged when it is sealed or the fast check refuses."""
    # EFFECT
    hart.write(cd, capability.set_offset(hart.capability(cs1), hart.integer(rs2)))


@operation("cincoffset")
def cincoffset(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Move cs1 by an increment; untagged when it is sealed or the fast check refuses."""
    # EFFECT
    hart.write(cd, capability.increment_address(hart.capability(cs1), hart.integer(rs2)))


@operation("cincoffsetimm")
def cincoffsetimm(hart: Hart, cd: Register, cs1: Register, imm: int) -> None:
    """As cincoffset, with an immediate increment."""
    # EFFECT
    increment = imm & hart.format.address_mask
    hart.write(cd, capability.increment_address(hart.capability(cs1), increment))


@operation("candperm")
def candperm(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Keep the permissions that rs2 has too; untagged when cs1 is sealed."""
    # EFFECT
    hart.write(cd, capability.and_permissions(hart.capability(cs1), hart.integer(rs2)))


@operation("csetflags")
def csetflags(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Set the flags; untagged when cs1 is sealed."""
    # EFFECT
    hart.write(cd, capability.set_flags(hart.capability(cs1), hart.integer(rs2)))


@operation("csethigh")
def csethigh(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """Replace the upper half by rs2, which is in memory form; never tagged."""
    # OPERANDS
    lower, upper = hart.capability(cs1).address, hart.integer(rs2)
    # EFFECT
    hart.write(cd, capability.from_memory(hart.format, False, upper, lower))


@operation("cmove")
def cmove(hart: Hart, cd: Register, cs1: Register) -> None:
    """Copy."""
    # EFFECT
    hart.write(cd, hart.capability(cs1))


@operation("ccleartag")
def ccleartag(hart: Hart, cd: Register, cs1: Register) -> None:
    """Copy without the tag."""
    # EFFECT
    hart.write(cd, hart.capability(cs1).with_tag(False))


@operation("cclear")
def cclear(hart: Hart, quarter: int, mask8: int) -> None:
    """Put NULL in each register 8 * quarter + i whose bit i is set in the mask; c0 means DDC."""
    # EFFECT
    null = capability.null(hart.format)
    for bit in range(8):
        register, chosen = 8 * quarter + bit, mask8 >> bit & 1 == 1
        if bit == 0 and quarter == 0:
            hart.ddc = capability.select_capability(chosen, null, hart.ddc)
        else:
            hart.write(register, capability.select_capability(chosen, null, hart.capability(register)))
