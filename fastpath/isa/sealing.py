"""Sealing, unsealing, building, copying a type. The fast twin of `model.isa.sealing`."""

from capvisor.fastpath import capability
from capvisor.fastpath.machine import Block, Register, operation


@operation("cseal")
def cseal(block: Block, cd: Register, cs1: Register, cs2: Register) -> None:
    capability.seal(block.format, block.capability(cs1), block.capability(cs2), block.ws, block.target(cd))


@operation("cunseal")
def cunseal(block: Block, cd: Register, cs1: Register, cs2: Register) -> None:
    capability.unseal(block.format, block.capability(cs1), block.capability(cs2), block.ws, block.target(cd))


@operation("ccseal")
def ccseal(block: Block, cd: Register, cs1: Register, cs2: Register) -> None:
    capability.conditional_seal(block.format, block.capability(cs1), block.capability(cs2), block.ws, block.target(cd))


@operation("csealentry")
def csealentry(block: Block, cd: Register, cs1: Register) -> None:
    capability.seal_entry(block.format, block.capability(cs1), block.ws, block.target(cd))


@operation("cbuildcap")
def cbuildcap(block: Block, cd: Register, cs1: Register, cs2: Register) -> None:
    capability.build(block.format, block.capability_or_ddc(cs1), block.capability(cs2), block.ws, block.target(cd))


@operation("ccopytype")
def ccopytype(block: Block, cd: Register, cs1: Register, cs2: Register) -> None:
    capability.copy_type(block.format, block.capability(cs1), block.capability(cs2), block.ws, block.target(cd))
