"""What monitors of guests on harts have in common: a guest's instruction, and capabilities that are minted."""

from typing import Any

from capvisor.model import capability
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.capability import Capability
from capvisor.model.machine import INSTRUCTION_BYTES, Hart, Trap
from capvisor.spec.formats import CapabilityFormat, Permission

assert _rules


def guest_instruction(hart: Hart, name: str, operands: tuple[Any, ...]) -> Trap | None:
    """One instruction of a guest. Refused, it is skipped by the kernel below; the guest goes on behind it."""
    pcc, pc, status, privilege = hart.pcc, hart.pc, hart.mstatus, hart.privilege
    trap = hart.step(name, operands)
    if trap is not None:
        hart.pcc, hart.pc = pcc, pc + INSTRUCTION_BYTES & hart.format.address_mask
        hart.mstatus, hart.privilege = status, privilege
    return trap


def minted(fmt: CapabilityFormat, base: int, size: int, permissions: Permission) -> tuple[Capability, bool]:
    """A capability to [base, base + size), and whether bounds can say that exactly."""
    whole = capability.set_address(capability.root(fmt), base)
    cap, exact = capability.set_bounds(whole, size)
    return capability.and_permissions(cap, int(permissions)), exact & cap.tag
