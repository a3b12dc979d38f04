"""Comparison of capabilities, and conversion to and from integers. The fast twin of `model.isa.comparison`."""

import numpy as np

from capvisor.fastpath import capability
from capvisor.fastpath.machine import Block, Register, operation


@operation("ctestsubset")
def ctestsubset(block: Block, rd: Register, cs1: Register, cs2: Register) -> None:
    inside = block.ws.isa_flags[0]
    capability.is_subset(block.format, block.capability(cs2), block.capability_or_ddc(cs1), block.ws, inside)
    block.write_flag(rd, inside)


@operation("cseqx")
def cseqx(block: Block, rd: Register, cs1: Register, cs2: Register) -> None:
    same = block.ws.isa_flags[0]
    capability.equal(block.capability(cs1), block.capability(cs2), block.ws, same)
    block.write_flag(rd, same)


@operation("csub")
def csub(block: Block, rd: Register, cs1: Register, cs2: Register) -> None:
    difference = block.ws.isa[0]
    np.subtract(block.integer(cs1), block.integer(cs2), out=difference)
    block.write_integer(rd, difference)


@operation("ctoptr")
def ctoptr(block: Block, rd: Register, cs1: Register, cs2: Register) -> None:
    pointer, base = block.capability(cs1), block.ws.isa[0]
    capability.get_base(block.format, block.capability_or_ddc(cs2), block.ws, base)
    np.subtract(pointer.address, base, out=base)
    np.multiply(base, pointer.tag, out=base)
    block.write_integer(rd, base)


@operation("cfromptr")
def cfromptr(block: Block, cd: Register, cs1: Register, rs2: Register) -> None:
    is_null, target = block.ws.isa_flags[0], block.target(cd)
    np.equal(block.integer(rs2), 0, out=is_null)
    capability.set_offset(block.format, block.capability_or_ddc(cs1), block.integer(rs2), block.ws, target)
    np.copyto(target.tag, False, where=is_null)
    np.copyto(target.meta, block.format.null_meta, where=is_null)
    np.copyto(target.address, 0, where=is_null)
