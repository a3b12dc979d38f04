"""Sealing, unsealing, building, copying a type."""

from capvisor.model import capability
from capvisor.model.machine import Hart, Register, operation


@operation("cseal")
def cseal(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """Seal cs1 with the object type at which cs2 points; untagged when cs2 may not."""
    # EFFECT
    hart.write(cd, capability.seal(hart.capability(cs1), hart.capability(cs2)))


@operation("cunseal")
def cunseal(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """Unseal cs1 by cs2, which must point at its object type; untagged when it may not."""
    # EFFECT
    hart.write(cd, capability.unseal(hart.capability(cs1), hart.capability(cs2)))


@operation("ccseal")
def ccseal(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """As cseal, but cs1 unchanged when cs2 isn't usable for sealing at all."""
    # EFFECT
    hart.write(cd, capability.conditional_seal(hart.capability(cs1), hart.capability(cs2)))


@operation("csealentry")
def csealentry(hart: Hart, cd: Register, cs1: Register) -> None:
    """Seal cs1 as an entry point."""
    # EFFECT
    hart.write(cd, capability.seal_entry(hart.capability(cs1)))


@operation("cbuildcap")
def cbuildcap(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """Tag the bits of cs2 if they are within the authority of cs1 (c0: DDC)."""
    # EFFECT
    hart.write(cd, capability.build(hart.capability_or_ddc(cs1), hart.capability(cs2)))


@operation("ccopytype")
def ccopytype(hart: Hart, cd: Register, cs1: Register, cs2: Register) -> None:
    """Point cs1 at the object type of cs2."""
    # EFFECT
    hart.write(cd, capability.copy_type(hart.capability(cs1), hart.capability(cs2)))
