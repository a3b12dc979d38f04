"""Encodings: encoder and decoder are inverse, no word is two instructions, and Sail's words mean what Sail says."""

import csv
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capvisor.cli import main as command
from capvisor.cli.status import Status
from capvisor.spec.encodings import WORD_MASK, decode, encode, encodings
from capvisor.spec.operations import OPERATIONS, Mode
from capvisor.spec.registers import REGISTER_NUMBERS, SPECIAL_NUMBERS, STATUS_NUMBERS
from tests.tutorial import ROOT

XLENS = (32, 64)
# Words that the RISC-V manual's listings give, of instructions that the traces lack.
KNOWN = {
    "lui": (0x80004537, (10, 0x80004)),
    "andi": (0x00157513, (10, 10, 1)),
    "xori": (0xFFF54513, (10, 10, -1)),
    "sltiu": (0x00153513, (10, 10, 1)),
    "slti": (0x00052513, (10, 10, 0)),
    "ori": (0x7FF56513, (10, 10, 2047)),
    "srai": (0x40355513, (10, 10, 3)),
    "srl": (0x00C5D533, (10, 11, 12)),
    "sra": (0x40C5D533, (10, 11, 12)),
    "sll": (0x00C59533, (10, 11, 12)),
    "clw": (0x0005A503, (10, 0, 11)),
    "clb": (0xFFF58503, (10, -1, 11)),
    "clbu": (0x0005C503, (10, 0, 11)),
    "clh": (0x00059503, (10, 0, 11)),
    "clhu": (0x0005D503, (10, 0, 11)),
    "csb": (0x00A58023, (10, 0, 11)),
    "csh": (0x00A59023, (10, 0, 11)),
    "csw": (0xFEA5AE23, (10, -4, 11)),
    "beq": (0x00B50463, (10, 11, 8)),
    "bne": (0xFEB51EE3, (10, 11, -4)),
    "blt": (0x00B54863, (10, 11, 16)),
    "bge": (0x00B55463, (10, 11, 8)),
    "bltu": (0x00B56463, (10, 11, 8)),
    "bgeu": (0x80B57063, (10, 11, -4096)),
    "jal": (0x7FE000EF, (1, 2046)),
    "jalr": (0xFFC50067, (0, -4, 10)),
    "cjal": (0x800000EF, (1, -(1 << 20))),
    "cjalr": (0x000500E7, (1, 0, 10)),
    "auipc": (0x00001517, (10, 1)),
    "auipcc": (0xFFFFF517, (10, 0xFFFFF)),
    "csrrw": (0x30051573, (10, 0x300, 10)),
    "csrrc": (0x34253573, (10, 0x342, 10)),
    "csrrwi": (0x3402D573, (10, 0x340, 5)),
    "csrrsi": (0x30046073, (0, 0x300, 8)),
    "csrrci": (0x30047073, (0, 0x300, 8)),
    "ecall": (0x00000073, ()),
    "ebreak": (0x00100073, ()),
    "mret": (0x30200073, ()),
    "sret": (0x10200073, ()),
    "fence": (0x0FF0000F, ()),
    "fence.i": (0x0000100F, ()),
    "lr.w": (0x1005A52F, (10, 11)),
    "sc.w": (0x18C5A52F, (10, 12, 11)),
    "amoswap.w": (0x08C5A52F, (10, 12, 11)),
    # CHERI ISAv9's own tables: loads and stores of one kind differ in a number.
    "lr.b.ddc": (0xFB05855B, (10, 11)),
    "lr.w.cap": (0xFBA5855B, (10, 11)),
    "sc.b.ddc": (0xF8A5885B, (10, 11)),
    "sc.w.cap": (0xF8A58D5B, (10, 11)),
}
KNOWN_64 = {
    "cld": (0x0085B503, (10, 8, 11)),
    "clwu": (0x0005E503, (10, 0, 11)),
    "csd": (0x00A5B423, (10, 8, 11)),
    "addiw": (0x0005051B, (10, 10, 0)),
    "addw": (0x00C5853B, (10, 11, 12)),
    "subw": (0x40C5853B, (10, 11, 12)),
    "slliw": (0x0035951B, (10, 11, 3)),
    "srliw": (0x0035D51B, (10, 11, 3)),
    "sraiw": (0x4035D51B, (10, 11, 3)),
    "sllw": (0x00C5953B, (10, 11, 12)),
    "srlw": (0x00C5D53B, (10, 11, 12)),
    "sraw": (0x40C5D53B, (10, 11, 12)),
    "clc": (0x0105A50F, (10, 16, 11)),
    "csc": (0x00A5C823, (10, 16, 11)),
    "lr.d": (0x1005B52F, (10, 11)),
    "sc.d": (0x18C5B52F, (10, 12, 11)),
    "amoswap.d": (0x08C5B52F, (10, 12, 11)),
    "lr.c": (0x1005C52F, (10, 11)),
    "sc.c": (0x18C5C52F, (10, 12, 11)),
    "amoswap.c": (0x08C5C52F, (10, 12, 11)),
    "lr.c.ddc": (0xFB45855B, (10, 11)),
    "lr.c.cap": (0xFBC5855B, (10, 11)),
    "sc.c.ddc": (0xF8A58A5B, (10, 11)),
    "sc.c.cap": (0xF8A58E5B, (10, 11)),
}
KNOWN_32 = {"clc": (0x0085B503, (10, 8, 11)), "csc": (0x00A5B423, (10, 8, 11)), "lr.c": (0x1005B52F, (10, 11)),
    "lr.c.cap": (0xFBB5855B, (10, 11)), "sc.c.ddc": (0xF8A589DB, (10, 11)),
}  # fmt: skip


NAMES = {**REGISTER_NUMBERS, **SPECIAL_NUMBERS, **STATUS_NUMBERS}
# Of a family of instructions that differ in a width or an addressing alone, some are known.
FAMILIES = re.compile(r"c?(l|s|lr\.|sc\.|amoswap\.)[bhwdc]u?(\.cap|\.ddc)?")


def mode_of(name: str) -> Mode:
    return OPERATIONS[name].mode or Mode.CAPABILITY


def golden(xlen: int) -> list[tuple[int, str]]:
    with (ROOT / "tests" / "words" / f"rv{xlen}.csv").open() as file:
        return [(int(row["word"], 0), row["assembly"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("xlen", XLENS)
def test_every_operation_of_a_machine_but_li_has_an_encoding(xlen: int) -> None:
    wanted = {row.name for row in OPERATIONS.values() if row.minimum_xlen <= xlen}
    assert set(encodings(xlen)) == wanted - {"li"}


@pytest.mark.parametrize("xlen", XLENS)
def test_words_of_the_emulator_generated_from_sail(xlen: int) -> None:
    rows = golden(xlen)
    known = {**KNOWN, **(KNOWN_64 if xlen == 64 else KNOWN_32)}
    seen = set(known)
    for word, assembly in rows:
        name, *texts = re.findall(r"[^\s,()]+", assembly)
        operands = tuple(NAMES[text] if text in NAMES else int(text, 0) for text in texts)
        # Sail prints immediates without their sign.
        places = encodings(xlen)[name].places
        operands = tuple(v - 4096 if p.is_signed and v > 2047 else v for v, p in zip(operands, places, strict=True))
        assert decode(word, xlen, mode_of(name)) == (name, operands) and encode(name, operands, xlen) == word
        seen.add(name)
    for name, (word, operands) in known.items():
        assert encode(name, operands, xlen) == word and decode(word, xlen, mode_of(name)) == (name, operands)
    assert {name for name in set(encodings(xlen)) - seen if not FAMILIES.fullmatch(name)} == set()


@pytest.mark.parametrize("xlen", XLENS)
def test_no_word_is_two_instructions(xlen: int) -> None:
    for a, b in itertools.combinations(encodings(xlen).values(), 2):
        modes = {OPERATIONS[a.name].mode, OPERATIONS[b.name].mode}
        if modes != set(Mode):
            assert (a.fixed ^ b.fixed) & a.mask & b.mask, (a.name, b.name)


@pytest.mark.parametrize("xlen", XLENS)
def test_operands_and_fixed_bits_share_no_bit(xlen: int) -> None:
    for encoding in encodings(xlen).values():
        for a, b in itertools.combinations([encoding.fixed, *(place.mask for place in encoding.places)], 2):
            assert a & b == 0, encoding.name


@given(st.sampled_from(XLENS), st.data())
def test_decoding_is_the_inverse_of_encoding(xlen: int, data: st.DataObject) -> None:
    encoding = data.draw(st.sampled_from(list(encodings(xlen).values())))
    operands = tuple(
        data.draw(st.integers(-(1 << place.width - 1) if place.is_signed else 0, (1 << place.width - place.is_signed) - 1))
        >> place.zeros
        << place.zeros
        for place in encoding.places
    )
    word = encode(encoding.name, operands, xlen)
    assert 0 <= word <= WORD_MASK and decode(word, xlen, mode_of(encoding.name)) == (encoding.name, operands)


OPCODES = [0x5B, 0x03, 0x23, 0x13, 0x33, 0x0F, 0x17, 0x63, 0x67, 0x6F, 0x73, 0x2F, None]


@given(st.sampled_from(XLENS), st.sampled_from(Mode), st.integers(0, WORD_MASK), st.sampled_from(OPCODES))
def test_encoding_is_the_inverse_of_decoding(xlen: int, mode: Mode, word: int, opcode: int | None) -> None:
    if opcode is not None:
        word = word & ~0x7F | opcode
    decoded = decode(word, xlen, mode)
    if decoded is not None:
        encoding = encodings(xlen)[decoded[0]]
        meaningless = ~encoding.mask & ~sum(place.mask for place in encoding.places)
        assert (encode(*decoded, xlen) ^ word) & ~meaningless == 0
        assert meaningless & WORD_MASK == 0 or OPERATIONS[decoded[0]].has_ordering or decoded[0] in ("fence", "fence.i")


@pytest.mark.parametrize("operands", [(32, 0, 0), (0, 0, 2048), (0, 0, -2049), (-1, 0, 0)])
def test_an_operand_that_does_not_fit_is_refused(operands: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="doesn't fit"):
        encode("addi", operands, 64)


def test_words_are_pictured_as_the_manuals_do() -> None:
    assert encodings(64)["cgetbase"].picture() == "1111111 00010 cs1 000 rd 1011011"
    assert encodings(64)["csw"].picture() == "imm[11:5] rs2 cs1 010 imm[4:0] 0100011"
    assert encodings(64)["srai"].picture() == "010000 shamt rs1 101 rd 0010011"
    assert encodings(32)["srai"].picture() == "0100000 shamt rs1 101 rd 0010011"
    assert encodings(64)["clc"].picture() == "imm cs1 010 cd 0001111"


def test_the_commands_encode_and_decode(capsys) -> None:
    assert command.status_of(["asm", "csetaddr cra, cra, s1", "sw a0, -4(ca1)".replace("sw", "csw")]) == Status.OK
    out = capsys.readouterr().out
    assert "0x209080db  csetaddr   c1, c1, x9" in out and "0xfea5ae23  csw        x10, -4(c11)" in out
    assert command.status_of(["disasm", "0x209080db", "0xfea5ae23"]) == Status.OK
    assert capsys.readouterr().out == out
    assert command.status_of(["disasm", "--format", "cc64", "0x0085b503"]) == Status.OK
    assert "clc        c10, 8(c11)" in capsys.readouterr().out
    assert command.status_of(["disasm", "0"]) == Status.VIOLATION


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["asm", "li x5, 1"], "has no encoding"),
        (["asm", "assert 1 == 1"], "is not one instruction"),
        (["asm", "cmove c1, c2\ncmove c1, c2"], "is not one instruction"),
        (["asm", "cmove c1"], "2 operands"),
        (["asm", "addi x1, x1, 5000"], "doesn't fit"),
        (["asm", "--format", "cc64", "cld x1, 0(c1)"], "needs a 64-bit machine"),
        (["disasm", "five"], "is no number"),
        (["disasm", "0x100000000"], "no word of 32 bits"),
    ],
)
def test_bad_input_gets_one_message(arguments: list[str], message: str, capsys) -> None:
    assert command.status_of(arguments) == Status.USAGE
    assert message in capsys.readouterr().err
