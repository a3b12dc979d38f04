"""Comparison of capabilities, and conversion to and from integers."""

from capvisor.model import capability
from capvisor.model.bits import select
from capvisor.model.machine import Hart, Register, operation


@operation("ctestsubset")
def ctestsubset(hart: Hart, rd: Register, cs1: Register, cs2: Register) -> None:
    """Whether cs2 is within cs1 (c0: DDC)."""
    # EFFECT
    inside = capability.is_subset(hart.capability(cs2), hart.capability_or_ddc(cs1))
    hart.write_integer(rd, select(inside, 1, 0))


@operation("cseqx")
def cseqx(hart: Hart, rd: Register, cs1: Register, cs2: Register) -> None:
    """Whether two capabilities are equal in every bit and tag."""
    # EFFECT
    same = capability.equal(hart.capability(cs1), hart.capability(cs2))
    hart.write_integer(rd, select(same, 1, 0))


@operation("csub")
def csub(hart: Hart, rd: Register, cs1: Register, cs2: Register) -> None:
    """The difference of two addresses."""
    # EFFECT
    hart.write_integer(rd, hart.integer(cs1) - hart.integer(cs2))


@operation("ctoptr")
def ctoptr(hart: Hart, rd: Register, cs1: Register, cs2: Register) -> None:
    """The address of cs1 relative to the base of cs2 (c0: DDC); 0 when cs1 is untagged."""
    # OPERANDS
    pointer, region = hart.capability(cs1), hart.capability_or_ddc(cs2)
    # EFFECT
    hart.write_integer(rd, select(pointer.tag, pointer.address - region.base, 0))


@operation("cfromptr")
def cfromptr(hart: Hart, cd: Register, cs1: Register, rs2: Register) -> None:
    """cs1 (c0: DDC) at its base + rs2, or NULL when rs2 is 0."""
    # OPERANDS
    region, pointer = hart.capability_or_ddc(cs1), hart.integer(rs2)
    # EFFECT
    moved = capability.set_offset(region, pointer)
    hart.write(cd, capability.select_capability(pointer == 0, capability.null(hart.format), moved))
