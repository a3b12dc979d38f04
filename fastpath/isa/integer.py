"""Integer operations. The fast twin of `model.isa.integer`."""

from typing import Any

import numpy as np

from capvisor.fastpath.bits import shift_right_signed, sign_extend
from capvisor.fastpath.machine import Block, Register, operation
from capvisor.fastpath.workspace import Words

WORD_BITS = 32
WORD_MASK = (1 << WORD_BITS) - 1


@operation("li")
def li(block: Block, rd: Register, value: Any) -> None:
    number = value & block.format.address_mask
    block.make_integer(rd)
    np.copyto(block.integer_target(rd), number)


@operation("addi")
def addi(block: Block, rd: Register, rs1: Register, imm: Any) -> None:
    binary(block, np.add, rd, block.integer(rs1), immediate(block, imm))


@operation("slti")
def slti(block: Block, rd: Register, rs1: Register, imm: Any) -> None:
    less = block.ws.isa_flags[0]
    sign = 1 << block.format.address_width - 1
    np.bitwise_xor(block.integer(rs1), sign, out=block.ws.isa[0])
    np.less(block.ws.isa[0], immediate(block, imm) ^ sign, out=less)
    block.write_flag(rd, less)


@operation("sltiu")
def sltiu(block: Block, rd: Register, rs1: Register, imm: Any) -> None:
    less = block.ws.isa_flags[0]
    np.less(block.integer(rs1), immediate(block, imm), out=less)
    block.write_flag(rd, less)


@operation("andi")
def andi(block: Block, rd: Register, rs1: Register, imm: Any) -> None:
    binary(block, np.bitwise_and, rd, block.integer(rs1), immediate(block, imm))


@operation("ori")
def ori(block: Block, rd: Register, rs1: Register, imm: Any) -> None:
    binary(block, np.bitwise_or, rd, block.integer(rs1), immediate(block, imm))


@operation("xori")
def xori(block: Block, rd: Register, rs1: Register, imm: Any) -> None:
    binary(block, np.bitwise_xor, rd, block.integer(rs1), immediate(block, imm))


@operation("slli")
def slli(block: Block, rd: Register, rs1: Register, shamt: Any) -> None:
    binary(block, np.left_shift, rd, block.integer(rs1), shamt)


@operation("srli")
def srli(block: Block, rd: Register, rs1: Register, shamt: Any) -> None:
    binary(block, np.right_shift, rd, block.integer(rs1), shamt)


@operation("srai")
def srai(block: Block, rd: Register, rs1: Register, shamt: Any) -> None:
    amount = block.ws.isa[0]
    np.copyto(amount, shamt)
    shift_arithmetic(block, rd, block.integer(rs1), amount)


@operation("add")
def add(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    binary(block, np.add, rd, block.integer(rs1), block.integer(rs2))


@operation("sub")
def sub(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    binary(block, np.subtract, rd, block.integer(rs1), block.integer(rs2))


@operation("and")
def and_(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    binary(block, np.bitwise_and, rd, block.integer(rs1), block.integer(rs2))


@operation("or")
def or_(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    binary(block, np.bitwise_or, rd, block.integer(rs1), block.integer(rs2))


@operation("xor")
def xor(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    binary(block, np.bitwise_xor, rd, block.integer(rs1), block.integer(rs2))


@operation("sll")
def sll(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    binary(block, np.left_shift, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("srl")
def srl(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    binary(block, np.right_shift, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("sra")
def sra(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    shift_arithmetic(block, rd, block.integer(rs1), shift_amount(block, rs2))


@operation("slt")
def slt(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    less = block.ws.isa_flags[0]
    a, b = block.ws.isa[:2]
    sign = 1 << block.format.address_width - 1
    np.bitwise_xor(block.integer(rs1), sign, out=a)
    np.bitwise_xor(block.integer(rs2), sign, out=b)
    np.less(a, b, out=less)
    block.write_flag(rd, less)


@operation("sltu")
def sltu(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    less = block.ws.isa_flags[0]
    np.less(block.integer(rs1), block.integer(rs2), out=less)
    block.write_flag(rd, less)


@operation("lui")
def lui(block: Block, rd: Register, uimm20: Any) -> None:
    result = block.ws.isa[0]
    np.copyto(result, uimm20 << 12)
    write_word(block, rd, result)


@operation("addiw")
def addiw(block: Block, rd: Register, rs1: Register, imm: Any) -> None:
    result = block.ws.isa[0]
    np.add(block.integer(rs1), immediate(block, imm), out=result)
    write_word(block, rd, result)


@operation("addw")
def addw(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    result = block.ws.isa[0]
    np.add(block.integer(rs1), block.integer(rs2), out=result)
    write_word(block, rd, result)


@operation("subw")
def subw(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    result = block.ws.isa[0]
    np.subtract(block.integer(rs1), block.integer(rs2), out=result)
    write_word(block, rd, result)


@operation("slliw")
def slliw(block: Block, rd: Register, rs1: Register, shamtw: Any) -> None:
    result = block.ws.isa[0]
    np.left_shift(block.integer(rs1), shamtw, out=result)
    write_word(block, rd, result)


@operation("srliw")
def srliw(block: Block, rd: Register, rs1: Register, shamtw: Any) -> None:
    result = low_word(block, rs1)
    np.right_shift(result, shamtw, out=result)
    write_word(block, rd, result)


@operation("sraiw")
def sraiw(block: Block, rd: Register, rs1: Register, shamtw: Any) -> None:
    result, amount = low_word(block, rs1), block.ws.isa[0]
    sign_extend(result, WORD_BITS, result)
    np.copyto(amount, shamtw)
    shift_right_signed(result, amount, result)
    write_word(block, rd, result)


@operation("sllw")
def sllw(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    result, amount = block.ws.isa[1], word_shift_amount(block, rs2)
    np.left_shift(block.integer(rs1), amount, out=result)
    write_word(block, rd, result)


@operation("srlw")
def srlw(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    result, amount = low_word(block, rs1), word_shift_amount(block, rs2)
    np.right_shift(result, amount, out=result)
    write_word(block, rd, result)


@operation("sraw")
def sraw(block: Block, rd: Register, rs1: Register, rs2: Register) -> None:
    result, amount = low_word(block, rs1), word_shift_amount(block, rs2)
    sign_extend(result, WORD_BITS, result)
    shift_right_signed(result, amount, result)
    write_word(block, rd, result)


def low_word(block: Block, register: Register) -> Words:
    """The lowest 32 bits of a register, in scratch."""
    result = block.ws.isa[1]
    np.bitwise_and(block.integer(register), WORD_MASK, out=result)
    return result


def word_shift_amount(block: Block, register: Register) -> Words:
    """How far a register says to shift a word: its lowest 5 bits, in scratch."""
    amount = block.ws.isa[0]
    np.bitwise_and(block.integer(register), WORD_BITS - 1, out=amount)
    return amount


def write_word(block: Block, rd: Register, values: Words) -> None:
    """rd = the lowest 32 bits of scratch, sign-extended."""
    np.bitwise_and(values, WORD_MASK, out=values)
    sign_extend(values, WORD_BITS, values)
    block.write_integer(rd, values)


def binary(block: Block, function: np.ufunc, rd: Register, a: Words, b: Words | int) -> None:
    """rd = function(a, b), modulo 2**XLEN."""
    target = block.integer_target(rd)
    function(a, b, out=target)
    block.write_integer(rd, target)


def immediate(block: Block, imm: Any) -> Any:
    """A sign-extended immediate as a register's value."""
    return imm & block.format.address_mask


def shift_amount(block: Block, register: Register) -> Words:
    """How far a register says to shift: its lowest log2(XLEN) bits."""
    amount = block.ws.isa[0]
    np.bitwise_and(block.integer(register), block.format.address_width - 1, out=amount)
    return amount


def shift_arithmetic(block: Block, rd: Register, values: Words, amount: Words) -> None:
    """rd = values, as numbers in two's complement, shifted right with copies of the sign moving in."""
    extended = block.ws.isa[1]
    if block.format.address_width < 64:
        sign_extend(values, block.format.address_width, extended)
        values = extended
    shift_right_signed(values, amount, extended)
    block.write_integer(rd, extended)
