"""Integer operations."""

from capvisor.model.bits import select, sign_extend
from capvisor.model.machine import Hart, Register, operation

WORD_BITS = 32
WORD_MASK = (1 << WORD_BITS) - 1


@operation("li")
def li(hart: Hart, rd: Register, value: int) -> None:
    """Load a constant."""
    # EFFECT
    hart.write_integer(rd, value)


@operation("addi")
def addi(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Add an immediate."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) + imm)


@operation("slti")
def slti(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Compare with an immediate, as signed numbers."""
    # EFFECT
    hart.write_integer(rd, select(signed(hart, hart.integer(rs1)) < imm, 1, 0))


@operation("sltiu")
def sltiu(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Compare with a sign-extended immediate, as unsigned numbers."""
    # EFFECT
    hart.write_integer(rd, select(hart.integer(rs1) < (imm & hart.format.address_mask), 1, 0))


@operation("andi")
def andi(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """And with an immediate."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) & imm)


@operation("ori")
def ori(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Or with an immediate."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) | imm)


@operation("xori")
def xori(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Exclusive-or with an immediate."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) ^ imm)


@operation("slli")
def slli(hart: Hart, rd: Register, rs1: Register, shamt: int) -> None:
    """Shift left by a constant."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) << shamt)


@operation("srli")
def srli(hart: Hart, rd: Register, rs1: Register, shamt: int) -> None:
    """Shift right by a constant, zeros moving in."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) >> shamt)


@operation("srai")
def srai(hart: Hart, rd: Register, rs1: Register, shamt: int) -> None:
    """Shift right by a constant, copies of the sign moving in."""
    # EFFECT
    hart.write_integer(rd, signed(hart, hart.integer(rs1)) >> shamt)


@operation("add")
def add(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Add."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) + hart.integer(rs2))


@operation("sub")
def sub(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Subtract."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) - hart.integer(rs2))


@operation("and")
def and_(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """And, bit by bit."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) & hart.integer(rs2))


@operation("or")
def or_(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Or, bit by bit."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) | hart.integer(rs2))


@operation("xor")
def xor(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Exclusive-or."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) ^ hart.integer(rs2))


@operation("sll")
def sll(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift left by the low bits of rs2."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) << shift_amount(hart, rs2))


@operation("srl")
def srl(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift right by the low bits of rs2, zeros moving in."""
    # EFFECT
    hart.write_integer(rd, hart.integer(rs1) >> shift_amount(hart, rs2))


@operation("sra")
def sra(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift right by the low bits of rs2, copies of the sign moving in."""
    # EFFECT
    hart.write_integer(rd, signed(hart, hart.integer(rs1)) >> shift_amount(hart, rs2))


@operation("slt")
def slt(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Compare as signed numbers."""
    # EFFECT
    hart.write_integer(rd, select(signed(hart, hart.integer(rs1)) < signed(hart, hart.integer(rs2)), 1, 0))


@operation("sltu")
def sltu(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Compare as unsigned numbers."""
    # EFFECT
    hart.write_integer(rd, select(hart.integer(rs1) < hart.integer(rs2), 1, 0))


@operation("lui")
def lui(hart: Hart, rd: Register, uimm20: int) -> None:
    """Load an upper immediate: bits 31 to 12."""
    # EFFECT
    hart.write_integer(rd, upper(uimm20))


@operation("addiw")
def addiw(hart: Hart, rd: Register, rs1: Register, imm: int) -> None:
    """Add an immediate; of the sum, a word."""
    # EFFECT
    write_word(hart, rd, hart.integer(rs1) + imm)


@operation("addw")
def addw(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Add; of the sum, a word."""
    # EFFECT
    write_word(hart, rd, hart.integer(rs1) + hart.integer(rs2))


@operation("subw")
def subw(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Subtract; of the difference, a word."""
    # EFFECT
    write_word(hart, rd, hart.integer(rs1) - hart.integer(rs2))


@operation("slliw")
def slliw(hart: Hart, rd: Register, rs1: Register, shamtw: int) -> None:
    """Shift a word left by a constant."""
    # EFFECT
    write_word(hart, rd, hart.integer(rs1) << shamtw)


@operation("srliw")
def srliw(hart: Hart, rd: Register, rs1: Register, shamtw: int) -> None:
    """Shift a word right by a constant, zeros moving in."""
    # EFFECT
    write_word(hart, rd, (hart.integer(rs1) & WORD_MASK) >> shamtw)


@operation("sraiw")
def sraiw(hart: Hart, rd: Register, rs1: Register, shamtw: int) -> None:
    """Shift a word right by a constant, copies of its sign moving in."""
    # EFFECT
    write_word(hart, rd, sign_extend(hart.integer(rs1), WORD_BITS) >> shamtw)


@operation("sllw")
def sllw(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift a word left by the low 5 bits of rs2."""
    # EFFECT
    write_word(hart, rd, hart.integer(rs1) << (hart.integer(rs2) & WORD_BITS - 1))


@operation("srlw")
def srlw(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift a word right by the low 5 bits of rs2, zeros moving in."""
    # EFFECT
    write_word(hart, rd, (hart.integer(rs1) & WORD_MASK) >> (hart.integer(rs2) & WORD_BITS - 1))


@operation("sraw")
def sraw(hart: Hart, rd: Register, rs1: Register, rs2: Register) -> None:
    """Shift a word right by the low 5 bits of rs2, copies of its sign moving in."""
    # EFFECT
    write_word(hart, rd, sign_extend(hart.integer(rs1), WORD_BITS) >> (hart.integer(rs2) & WORD_BITS - 1))


def write_word(hart: Hart, register: Register, value: int) -> None:
    """Put the lowest 32 bits of a value in a register, sign-extended."""
    hart.write_integer(register, sign_extend(value, WORD_BITS))


def upper(uimm20: int) -> int:
    """An upper immediate's number: bits 31 to 12, sign-extended."""
    return sign_extend(uimm20 << 12, WORD_BITS)


def signed(hart: Hart, value: int) -> int:
    """A register's value as a number in two's complement."""
    return sign_extend(value, hart.format.address_width)


def shift_amount(hart: Hart, register: Register) -> int:
    """How far a register says to shift: its lowest log2(XLEN) bits."""
    return hart.integer(register) & hart.format.address_width - 1
