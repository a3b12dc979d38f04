"""Capability arithmetic: bounds, addresses, permissions, flags. The fast twin of `model.isa.arithmetic`."""

from typing import Any

import numpy as np

from capvisor.fastpath import capability
from capvisor.fastpath.machine import DDC, Block, Register, operation


@operation("csetbounds")
def csetbounds(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    exact = block.ws.isa_flags[0]
    length = block.integer(rs2)
    capability.set_bounds(block.format, block.capability(cs1), length, block.ws, block.target(cd), exact)


@operation("csetboundsimm")
def csetboundsimm(block: Block, cd: Register, cs1: Register, uimm: Any) -> None:
    exact, length = block.ws.isa_flags[0], block.ws.isa[0]
    np.copyto(length, uimm)
    capability.set_bounds(block.format, block.capability(cs1), length, block.ws, block.target(cd), exact)


@operation("csetboundsexact")
def csetboundsexact(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    exact, target = block.ws.isa_flags[0], block.target(cd)
    capability.set_bounds(block.format, block.capability(cs1), block.integer(rs2), block.ws, target, exact)
    np.logical_and(target.tag, exact, out=target.tag)


@operation("csetaddr")
def csetaddr(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    capability.set_address(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("csetoffset")
def csetoffset(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    capability.set_offset(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("cincoffset")
def cincoffset(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    capability.increment_address(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("cincoffsetimm")
def cincoffsetimm(block: Block, cd: Register, cs1: Register, imm: Any) -> None:
    increment = block.ws.isa[0]
    np.copyto(increment, imm & block.format.address_mask)
    capability.increment_address(block.format, block.capability(cs1), increment, block.ws, block.target(cd))


@operation("candperm")
def candperm(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    capability.and_permissions(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("csetflags")
def csetflags(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    capability.set_flags(block.format, block.capability(cs1), block.integer(rs2), block.ws, block.target(cd))


@operation("csethigh")
def csethigh(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    upper, target = block.ws.isa[0], block.target(cd)
    capability.to_memory(block.format, block.integer(rs2), upper)
    np.copyto(target.address, block.integer(cs1))
    np.copyto(target.meta, upper)
    target.tag.fill(False)


@operation("cmove")
def cmove(block: Block, cd: Register, cs1: Register) -> None:
    capability.copy(block.capability(cs1), block.target(cd))


@operation("ccleartag")
def ccleartag(block: Block, cd: Register, cs1: Register) -> None:
    capability.copy(block.capability(cs1), block.target(cd))
    block.target(cd).tag.fill(False)


@operation("cclear")
def cclear(block: Block, quarter: int, mask8: int) -> None:
    for register in range(8 * quarter, 8 * quarter + 8):
        if mask8 >> (register & 7) & 1:
            cleared = block.target(register or DDC)
            cleared.tag.fill(False)
            cleared.meta.fill(block.format.null_meta)
            cleared.address.fill(0)
