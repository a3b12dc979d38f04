"""Integer operations. The fast twin of `model.isa.integer`."""

from typing import Any

import numpy as np

from capvisor.fastpath.bits import shift_right_signed, sign_extend
from capvisor.fastpath.machine import Block, operation
from capvisor.fastpath.workspace import Words


@operation("li")
def li(block: Block, rd: int, value: Any) -> None:
    lanes = value[block.start : block.stop] if isinstance(value, np.ndarray) else value & block.format.address_mask
    block.make_integer(rd)
    np.copyto(block.integer_target(rd), lanes)


@operation("addi")
def addi(block: Block, rd: int, rs1: int, imm: int) -> None:
    binary(block, np.add, rd, block.integer(rs1), immediate(block, imm))


@operation("slti")
def slti(block: Block, rd: int, rs1: int, imm: int) -> None:
    less = block.ws.isa_flags[0]
    sign = 1 << block.format.address_width - 1
    np.bitwise_xor(block.integer(rs1), sign, out=block.ws.isa[0])
    np.less(block.ws.isa[0], immediate(block, imm) ^ sign, out=less)
    block.write_flag(rd, less)


@operation("sltiu")
def sltiu(block: Block, rd: int, rs1: int, imm: int) -> None:
    less = block.ws.isa_flags[0]
    np.less(block.integer(rs1), immediate(block, imm), out=less)
    block.write_flag(rd, less)


@operation("andi")
def andi(block: Block, rd: int, rs1: int, imm: int) -> None:
    binary(block, np.bitwise_and, rd, block.integer(rs1), immediate(block, imm))


@operation("ori")
def ori(block: Block, rd: int, rs1: int, imm: int) -> None:
    binary(block, np.bitwise_or, rd, block.integer(rs1), immediate(block, imm))


@operation("xori")
def xori(block: Block, rd: int, rs1: int, imm: int) -> None:
    binary(block, np.bitwise_xor, rd, block.integer(rs1), immediate(block, imm))


@operation("slli")
def slli(block: Block, rd: int, rs1: int, shamt: int) -> None:
    binary(block, np.left_shift, rd, block.integer(rs1), shamt)


@operation("srli")
def srli(block: Block, rd: int, rs1: int, shamt: int) -> None:
    binary(block, np.right_shift, rd, block.integer(rs1), shamt)


@operation("srai")
def srai(block: Block, rd: int, rs1: int, shamt: int) -> None:
    amount = block.ws.isa[0]
    amount.fill(shamt)
    shift_arithmetic(block, rd, block.integer(rs1), amount)


@operation("add")
def add(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.add, rd, block.integer(rs1), block.integer(rs2))


@operation("sub")
def sub(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.subtract, rd, block.integer(rs1), block.integer(rs2))


@operation("and")
def and_(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.bitwise_and, rd, block.integer(rs1), block.integer(rs2))


@operation("or")
def or_(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.bitwise_or, rd, block.integer(rs1), block.integer(rs2))


@operation("xor")
def xor(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.bitwise_xor, rd, block.integer(rs1), block.integer(rs2))


@operation("sll")
def sll(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.left_shift, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("srl")
def srl(block: Block, rd: int, rs1: int, rs2: int) -> None:
    binary(block, np.right_shift, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("sra")
def sra(block: Block, rd: int, rs1: int, rs2: int) -> None:
    shift_arithmetic(block, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("slt")
def slt(block: Block, rd: int, rs1: int, rs2: int) -> None:
    less = block.ws.isa_flags[0]
    a, b = block.ws.isa[:2]
    sign = 1 << block.format.address_width - 1
    np.bitwise_xor(block.integer(rs1), sign, out=a)
    np.bitwise_xor(block.integer(rs2), sign, out=b)
    np.less(a, b, out=less)
    block.write_flag(rd, less)


@operation("sltu")
def sltu(block: Block, rd: int, rs1: int, rs2: int) -> None:
    less = block.ws.isa_flags[0]
    np.less(block.integer(rs1), block.integer(rs2), out=less)
    block.write_flag(rd, less)


def binary(block: Block, function: np.ufunc, rd: int, a: Words, b: Words | int) -> None:
    """rd = function(a, b), modulo 2**XLEN."""
    target = block.integer_target(rd)
    function(a, b, out=target)
    block.write_integer(rd, target)


def immediate(block: Block, imm: int) -> int:
    """A sign-extended immediate as a register's value."""
    return imm & block.format.address_mask


def shift_amount(block: Block, register: int) -> Words:
    """How far a register says to shift: its lowest log2(XLEN) bits."""
    amount = block.ws.isa[0]
    np.bitwise_and(block.integer(register), block.format.address_width - 1, out=amount)
    return amount


def shift_arithmetic(block: Block, rd: int, values: Words, amount: Words) -> None:
    """rd = values, as numbers in two's complement, shifted right with copies of the sign moving in."""
    extended = block.ws.isa[1]
    if block.format.address_width < 64:
        sign_extend(values, block.format.address_width, extended)
        values = extended
    shift_right_signed(values, amount, extended)
    block.write_integer(rd, extended)
