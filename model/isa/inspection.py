"""Inspection: what a capability says, as an integer."""

from capvisor.model import bounds, capability
from capvisor.model.bits import select
from capvisor.model.machine import Hart, Register, operation


@operation("cgetperm")
def cgetperm(hart: Hart, rd: Register, cs1: Register) -> None:
    """The permissions, architectural from bit 0 and software's from bit 15."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).permissions)


@operation("cgettype")
def cgettype(hart: Hart, rd: Register, cs1: Register) -> None:
    """The object type; reserved ones, "unsealed" among them, are negative."""
    # EFFECT
    hart.write_integer(rd, capability.otype_as_integer(hart.capability(cs1)))


@operation("cgetbase")
def cgetbase(hart: Hart, rd: Register, cs1: Register) -> None:
    """The base."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).base)


@operation("cgetlen")
def cgetlen(hart: Hart, rd: Register, cs1: Register) -> None:
    """The length, or the highest address where it doesn't fit a register."""
    # OPERANDS
    length = hart.capability(cs1).length
    # EFFECT
    hart.write_integer(rd, select(length > hart.format.address_mask, hart.format.address_mask, length))


@operation("cgettop")
def cgettop(hart: Hart, rd: Register, cs1: Register) -> None:
    """The top, or the highest address where it doesn't fit a register."""
    # OPERANDS
    top = hart.capability(cs1).top
    # EFFECT
    hart.write_integer(rd, select(top > hart.format.address_mask, hart.format.address_mask, top))


@operation("cgettag")
def cgettag(hart: Hart, rd: Register, cs1: Register) -> None:
    """The tag."""
    # EFFECT
    hart.write_integer(rd, select(hart.capability(cs1).tag, 1, 0))


@operation("cgetsealed")
def cgetsealed(hart: Hart, rd: Register, cs1: Register) -> None:
    """1 if sealed, sentries included."""
    # EFFECT
    hart.write_integer(rd, select(hart.capability(cs1).is_sealed, 1, 0))


@operation("cgetoffset")
def cgetoffset(hart: Hart, rd: Register, cs1: Register) -> None:
    """The address relative to the base."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).offset)


@operation("cgetflags")
def cgetflags(hart: Hart, rd: Register, cs1: Register) -> None:
    """The flags."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).flags)


@operation("cgetaddr")
def cgetaddr(hart: Hart, rd: Register, cs1: Register) -> None:
    """The address."""
    # EFFECT
    hart.write_integer(rd, hart.capability(cs1).address)


@operation("cgethigh")
def cgethigh(hart: Hart, rd: Register, cs1: Register) -> None:
    """The upper half, as it lies in memory."""
    # EFFECT
    hart.write_integer(rd, capability.memory_meta(hart.capability(cs1)))


@operation("crrl")
def crrl(hart: Hart, rd: Register, rs1: Register) -> None:
    """The length rounded up to a representable one; 0 where that is 2**XLEN."""
    # EFFECT
    hart.write_integer(rd, bounds.representable_length(hart.format, hart.integer(rs1)))


@operation("cram")
def cram(hart: Hart, rd: Register, rs1: Register) -> None:
    """The mask that aligns a base for that length."""
    # EFFECT
    hart.write_integer(rd, bounds.alignment_mask(hart.format, hart.integer(rs1)))
