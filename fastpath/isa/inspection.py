"""Inspection: what a capability says, as an integer. The fast twin of `model.isa.inspection`."""

import numpy as np

from capvisor.fastpath import bounds, capability
from capvisor.fastpath.machine import Block, Register, operation


@operation("cgetperm")
def cgetperm(block: Block, rd: Register, cs1: Register) -> None:
    result = block.ws.isa[0]
    capability.get_permissions(block.format, block.capability(cs1).meta, block.ws, result)
    block.write_integer(rd, result)


@operation("cgettype")
def cgettype(block: Block, rd: Register, cs1: Register) -> None:
    result = block.ws.isa[0]
    capability.get_otype(block.format, block.capability(cs1).meta, block.ws, result)
    block.write_integer(rd, result)


@operation("cgetbase")
def cgetbase(block: Block, rd: Register, cs1: Register) -> None:
    result = block.ws.isa[0]
    capability.get_base(block.format, block.capability(cs1), block.ws, result)
    block.write_integer(rd, result)


@operation("cgetlen")
def cgetlen(block: Block, rd: Register, cs1: Register) -> None:
    result = block.ws.isa[0]
    capability.get_length(block.format, block.capability(cs1), block.ws, result)
    block.write_integer(rd, result)


@operation("cgettop")
def cgettop(block: Block, rd: Register, cs1: Register) -> None:
    result = block.ws.isa[0]
    capability.get_top(block.format, block.capability(cs1), block.ws, result)
    block.write_integer(rd, result)


@operation("cgettag")
def cgettag(block: Block, rd: Register, cs1: Register) -> None:
    block.write_flag(rd, block.capability(cs1).tag)


@operation("cgetsealed")
def cgetsealed(block: Block, rd: Register, cs1: Register) -> None:
    sealed = block.ws.isa_flags[0]
    capability.is_unsealed(block.format, block.capability(cs1).meta, block.ws, sealed)
    np.logical_not(sealed, out=sealed)
    block.write_flag(rd, sealed)


@operation("cgetoffset")
def cgetoffset(block: Block, rd: Register, cs1: Register) -> None:
    result = block.ws.isa[0]
    capability.get_offset(block.format, block.capability(cs1), block.ws, result)
    block.write_integer(rd, result)


@operation("cgetflags")
def cgetflags(block: Block, rd: Register, cs1: Register) -> None:
    result = block.ws.isa[0]
    capability.get_flags(block.format, block.capability(cs1).meta, result)
    block.write_integer(rd, result)


@operation("cgetaddr")
def cgetaddr(block: Block, rd: Register, cs1: Register) -> None:
    block.write_integer(rd, block.integer(cs1))


@operation("cgethigh")
def cgethigh(block: Block, rd: Register, cs1: Register) -> None:
    result = block.ws.isa[0]
    capability.to_memory(block.format, block.capability(cs1).meta, result)
    block.write_integer(rd, result)


@operation("crrl")
def crrl(block: Block, rd: Register, rs1: Register) -> None:
    result = block.ws.isa[0]
    bounds.representable_length(block.format, block.integer(rs1), block.ws, result)
    block.write_integer(rd, result)


@operation("cram")
def cram(block: Block, rd: Register, rs1: Register) -> None:
    result = block.ws.isa[0]
    bounds.alignment_mask(block.format, block.integer(rs1), block.ws, result)
    block.write_integer(rd, result)
