"""The operation table: one row an operation of the guest machine.

The grammar, the printer, the reference's and the fast path's dispatch, random generation, obligations and documentation
derive from these rows. A row without a reference rule and a fast kernel fails the tests.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property


class OperandKind(Enum):
    """What an operand is, with the name by which the assembler patterns below call it."""

    CAPABILITY_DESTINATION = "cd"
    CAPABILITY_SOURCE_1 = "cs1"
    CAPABILITY_SOURCE_2 = "cs2"
    INTEGER_DESTINATION = "rd"
    INTEGER_SOURCE_1 = "rs1"
    INTEGER_SOURCE_2 = "rs2"
    SIGNED_IMMEDIATE = "imm"
    UNSIGNED_IMMEDIATE = "uimm"
    UPPER_IMMEDIATE = "uimm20"
    QUARTER = "quarter"
    MASK = "mask8"
    SHIFT_AMOUNT = "shamt"
    WORD_SHIFT_AMOUNT = "shamtw"
    VALUE = "value"

    @property
    def is_register(self) -> bool:
        return self.value[0] in "cr"

    @property
    def is_capability(self) -> bool:
        """Read or written as a capability, so that it prints as `cn`; other registers print as `xn`."""
        return self.value[0] == "c"

    @property
    def is_destination(self) -> bool:
        return self.value in ("cd", "rd")

    def immediate_range(self, xlen: int) -> tuple[int, int]:
        """The lowest and highest number that an immediate operand can hold.

        Source: The RISC-V Instruction Set Manual, volume I, immediate encodings (12 bits, sign-extended); CHERI ISAv9,
        CSetBounds (immediate, zero-extended).
        """
        return {
            OperandKind.SIGNED_IMMEDIATE: (-2048, 2047),
            OperandKind.UNSIGNED_IMMEDIATE: (0, 4095),
            OperandKind.UPPER_IMMEDIATE: (0, (1 << 20) - 1),
            OperandKind.QUARTER: (0, 3),
            OperandKind.MASK: (0, 255),
            OperandKind.SHIFT_AMOUNT: (0, xlen - 1),
            OperandKind.WORD_SHIFT_AMOUNT: (0, 31),
        }[self]


class Group(Enum):
    """The groups of the table, in the order in which the documentation has them."""

    INSPECTION = "inspection"
    ARITHMETIC = "capability arithmetic"
    SEALING = "sealing"
    COMPARISON = "comparison and conversion"
    LOAD = "loads"
    STORE = "stores"
    INTEGER = "integer"


@dataclass(frozen=True)
class Operation:
    """One operation: `syntax` is its assembler pattern, `traps` its causes in the order in which they are checked.

    `minimum_xlen` is 64 for what exists on RV64 only.
    """

    name: str
    syntax: str
    group: Group
    summary: str
    source: str
    traps: tuple[str, ...] = ()
    minimum_xlen: int = 32

    @cached_property
    def operands(self) -> tuple[OperandKind, ...]:
        return tuple(OperandKind(word) for word in re.findall(r"\w+", self.syntax))

    @cached_property
    def has_address_syntax(self) -> bool:
        """Whether the last two operands are written `imm(cs1)`."""
        return "imm(" in self.syntax

    @cached_property
    def has_address_in_parentheses(self) -> bool:
        """Whether the last operand is written `(cs1)`: an address without offset."""
        return ", (" in self.syntax


def _capability_row(name: str, syntax: str, group: Group, summary: str, instruction: str) -> Operation:
    return Operation(name, syntax, group, summary, f"CHERI ISAv9, {instruction}; sail-cheri-riscv, cheri_insts.sail")


def _integer_row(name: str, syntax: str, summary: str, minimum_xlen: int = 32) -> Operation:
    source = f"The RISC-V Instruction Set Manual, volume I, {name.upper()}"
    return Operation(name, syntax, Group.INTEGER, summary, source, minimum_xlen=minimum_xlen)


def _word_row(name: str, syntax: str, what: str) -> Operation:
    return _integer_row(name, syntax, f"rd = {what}, modulo 2**32 and sign-extended", 64)


_LOAD_TRAPS = ("TagViolation", "SealViolation", "PermitLoadViolation", "LengthViolation")
_STORE_TRAPS = ("TagViolation", "SealViolation", "PermitStoreViolation")
_STORE_CAPABILITY_TRAPS = (*_STORE_TRAPS, "PermitStoreCapViolation", "PermitStoreLocalCapViolation", "LengthViolation")
_ACCESS_SOURCE = "CHERI ISAv9, loads and stores in capability mode; sail-cheri-riscv, cheri_addr_checks.sail"


def _load(name: str, what: str, minimum_xlen: int = 32) -> Operation:
    traps = (*_LOAD_TRAPS, "LoadAccessFault")
    return Operation(name, "rd, imm(cs1)", Group.LOAD, f"rd = {what}", _ACCESS_SOURCE, traps, minimum_xlen)


def _store(name: str, what: str, minimum_xlen: int = 32) -> Operation:
    traps = (*_STORE_TRAPS, "LengthViolation", "StoreAMOAccessFault")
    summary = f"store {what} of rs2; the tags of the granules touched are cleared"
    return Operation(name, "rs2, imm(cs1)", Group.STORE, summary, _ACCESS_SOURCE, traps, minimum_xlen)


_PLAIN_SOURCE = "CHERI ISAv9, loads and stores with explicit addressing; sail-cheri-riscv, cheri_insts.sail"


def _plain_load(name: str, what: str, minimum_xlen: int = 32) -> Operation:
    """A load whose name says whether a capability or DDC authorises it, whatever the mode."""
    is_capability = name.startswith("lc.")
    syntax = f"{'cd' if is_capability else 'rd'}, ({'cs1' if name.endswith('.cap') else 'rs1'})"
    traps = (*_LOAD_TRAPS, *(("LoadAddressMisaligned",) if is_capability else ()), "LoadAccessFault")
    return Operation(name, syntax, Group.LOAD, f"{syntax[:2]} = {what}", _PLAIN_SOURCE, traps, minimum_xlen)


def _plain_store(name: str, what: str, minimum_xlen: int = 32) -> Operation:
    """A store whose name says whether a capability or DDC authorises it, whatever the mode."""
    is_capability = name.startswith("sc.")
    syntax = f"{'cs2' if is_capability else 'rs2'}, ({'cs1' if name.endswith('.cap') else 'rs1'})"
    checks = (*_STORE_CAPABILITY_TRAPS, "StoreAMOAddressMisaligned") if is_capability else (*_STORE_TRAPS, "LengthViolation")
    traps = (*checks, "StoreAMOAccessFault")
    return Operation(name, syntax, Group.STORE, f"store {what}", _PLAIN_SOURCE, traps, minimum_xlen)


def _rows() -> tuple[Operation, ...]:
    cap, get = _capability_row, Group.INSPECTION
    arithmetic, sealing, comparison = Group.ARITHMETIC, Group.SEALING, Group.COMPARISON
    return (
        cap("cgetperm", "rd, cs1", get, "rd = the permissions of cs1", "CGetPerm"),
        cap("cgettype", "rd, cs1", get, "rd = the object type of cs1; reserved types are negative", "CGetType"),
        cap("cgetbase", "rd, cs1", get, "rd = the base of cs1", "CGetBase"),
        cap("cgetlen", "rd, cs1", get, "rd = the length of cs1, at most the highest address", "CGetLen"),
        cap("cgettop", "rd, cs1", get, "rd = the top of cs1, at most the highest address", "CGetTop"),
        cap("cgettag", "rd, cs1", get, "rd = the tag of cs1", "CGetTag"),
        cap("cgetsealed", "rd, cs1", get, "rd = 1 if cs1 is sealed, else 0", "CGetSealed"),
        cap("cgetoffset", "rd, cs1", get, "rd = the address of cs1, relative to its base", "CGetOffset"),
        cap("cgetflags", "rd, cs1", get, "rd = the flags of cs1", "CGetFlags"),
        cap("cgetaddr", "rd, cs1", get, "rd = the address of cs1", "CGetAddr"),
        cap("cgethigh", "rd, cs1", get, "rd = the upper half of cs1 as it lies in memory", "CGetHigh"),
        cap(
            "crrl",
            "rd, rs1",
            get,
            "rd = the length rs1, rounded up to a representable one",
            "CRoundRepresentableLength",
        ),
        cap("cram", "rd, rs1", get, "rd = the mask that aligns a base for length rs1", "CRepresentableAlignmentMask"),
        cap(
            "csetbounds",
            "cd, cs1, rs2",
            arithmetic,
            "cd = cs1 narrowed to [address, address + rs2), rounded outwards",
            "CSetBounds",
        ),
        cap(
            "csetboundsimm",
            "cd, cs1, uimm",
            arithmetic,
            "csetbounds with an immediate length",
            "CSetBounds (immediate)",
        ),
        cap(
            "csetboundsexact",
            "cd, cs1, rs2",
            arithmetic,
            "csetbounds, untagged if bounds had to be rounded",
            "CSetBoundsExact",
        ),
        cap(
            "csetaddr",
            "cd, cs1, rs2",
            arithmetic,
            "cd = cs1 at address rs2, untagged if that changes its bounds",
            "CSetAddr",
        ),
        cap(
            "csetoffset",
            "cd, cs1, rs2",
            arithmetic,
            "cd = cs1 at its base + rs2, untagged if not representable",
            "CSetOffset",
        ),
        cap(
            "cincoffset",
            "cd, cs1, rs2",
            arithmetic,
            "cd = cs1 moved by rs2, untagged if not representable",
            "CIncOffset",
        ),
        cap(
            "cincoffsetimm",
            "cd, cs1, imm",
            arithmetic,
            "cincoffset with an immediate increment",
            "CIncOffset (immediate)",
        ),
        cap(
            "candperm",
            "cd, cs1, rs2",
            arithmetic,
            "cd = cs1 with those of its permissions that rs2 has too",
            "CAndPerm",
        ),
        cap("csetflags", "cd, cs1, rs2", arithmetic, "cd = cs1 with the flags rs2", "CSetFlags"),
        cap(
            "csethigh",
            "cd, cs1, rs2",
            arithmetic,
            "cd = cs1 with the upper half rs2 (memory form), untagged",
            "CSetHigh",
        ),
        cap("cmove", "cd, cs1", arithmetic, "cd = cs1", "CMove"),
        cap("ccleartag", "cd, cs1", arithmetic, "cd = cs1 without its tag", "CClearTag"),
        cap(
            "cclear",
            "quarter, mask8",
            arithmetic,
            "NULL in each register 8 * quarter + i whose bit i is set in mask8; c0 means DDC",
            "CClear",
        ),
        cap("cseal", "cd, cs1, cs2", sealing, "cd = cs1 sealed with the object type at which cs2 points", "CSeal"),
        cap("cunseal", "cd, cs1, cs2", sealing, "cd = cs1 unsealed by the authority cs2", "CUnseal"),
        cap("ccseal", "cd, cs1, cs2", sealing, "cseal, or cs1 unchanged if cs2 isn't usable for sealing", "CCSeal"),
        cap("csealentry", "cd, cs1", sealing, "cd = cs1 sealed as an entry point", "CSealEntry"),
        cap(
            "cbuildcap",
            "cd, cs1, cs2",
            sealing,
            "cd = the bits of cs2, tagged if within the authority of cs1",
            "CBuildCap",
        ),
        cap("ccopytype", "cd, cs1, cs2", sealing, "cd = cs1 pointing at the object type of cs2", "CCopyType"),
        cap("ctestsubset", "rd, cs1, cs2", comparison, "rd = 1 if cs2 is within cs1, tags equal, else 0", "CTestSubset"),
        cap(
            "cseqx",
            "rd, cs1, cs2",
            comparison,
            "rd = 1 if cs1 and cs2 are equal in every bit and tag, else 0",
            "CSetEqualExact",
        ),
        cap("csub", "rd, cs1, cs2", comparison, "rd = the address of cs1 minus that of cs2", "CSub"),
        cap(
            "ctoptr",
            "rd, cs1, cs2",
            comparison,
            "rd = the address of cs1 relative to cs2's base, 0 if cs1 is untagged",
            "CToPtr",
        ),
        cap("cfromptr", "cd, cs1, rs2", comparison, "cd = cs1 at its base + rs2, or NULL if rs2 is 0", "CFromPtr"),
        _load("clb", "the byte at cs1 + imm, sign-extended"),
        _load("clh", "the 2 bytes at cs1 + imm, sign-extended"),
        _load("clw", "the 4 bytes at cs1 + imm, sign-extended"),
        _load("cld", "the 8 bytes at cs1 + imm", minimum_xlen=64),
        _load("clbu", "the byte at cs1 + imm, zero-extended"),
        _load("clhu", "the 2 bytes at cs1 + imm, zero-extended"),
        _load("clwu", "the 4 bytes at cs1 + imm, zero-extended", minimum_xlen=64),
        Operation(
            "clc",
            "cd, imm(cs1)",
            Group.LOAD,
            "cd = the capability at cs1 + imm, untagged if cs1 may not load capabilities",
            "CHERI ISAv9, CLC; sail-cheri-riscv, cheri_insts.sail, handle_load_cap_via_cap",
            (*_LOAD_TRAPS, "LoadAddressMisaligned", "LoadAccessFault"),
        ),
        _store("csb", "the low byte"),
        _store("csh", "the low 2 bytes"),
        _store("csw", "the low 4 bytes"),
        _store("csd", "the low 8 bytes", minimum_xlen=64),
        Operation(
            "csc",
            "cs2, imm(cs1)",
            Group.STORE,
            "store the capability cs2 with its tag",
            "CHERI ISAv9, CSC; sail-cheri-riscv, cheri_insts.sail, handle_store_cap_via_cap",
            (*_STORE_CAPABILITY_TRAPS, "StoreAMOAddressMisaligned", "StoreAMOAccessFault"),
        ),
        Operation(
            "cloadtags",
            "rd, (cs1)",
            Group.LOAD,
            "rd = the tags of the capabilities of the cache line at cs1, the lowest first",
            "CHERI ISAv9, CLoadTags; sail-cheri-riscv, cheri_insts.sail",
            (*_LOAD_TRAPS[:3], "PermitLoadCapViolation", "LengthViolation", "LoadAddressMisaligned", "LoadAccessFault"),
        ),
        _plain_load("lb.cap", "the byte at cs1, sign-extended"),
        _plain_load("lh.cap", "the 2 bytes at cs1, sign-extended"),
        _plain_load("lw.cap", "the 4 bytes at cs1, sign-extended"),
        _plain_load("ld.cap", "the 8 bytes at cs1", minimum_xlen=64),
        _plain_load("lbu.cap", "the byte at cs1, zero-extended"),
        _plain_load("lhu.cap", "the 2 bytes at cs1, zero-extended"),
        _plain_load("lwu.cap", "the 4 bytes at cs1, zero-extended", minimum_xlen=64),
        _plain_load("lc.cap", "the capability at cs1, untagged if that may not load capabilities"),
        _plain_store("sb.cap", "the low byte of rs2 at cs1; clears tags as csb does"),
        _plain_store("sh.cap", "the low 2 bytes of rs2 at cs1; clears tags as csb does"),
        _plain_store("sw.cap", "the low 4 bytes of rs2 at cs1; clears tags as csb does"),
        _plain_store("sd.cap", "the low 8 bytes of rs2 at cs1; clears tags as csb does", minimum_xlen=64),
        _plain_store("sc.cap", "the capability cs2 with its tag at cs1"),
        _plain_load("lb.ddc", "the byte at rs1 relative to DDC, sign-extended"),
        _plain_load("lh.ddc", "the 2 bytes at rs1 relative to DDC, sign-extended"),
        _plain_load("lw.ddc", "the 4 bytes at rs1 relative to DDC, sign-extended"),
        _plain_load("ld.ddc", "the 8 bytes at rs1 relative to DDC", minimum_xlen=64),
        _plain_load("lbu.ddc", "the byte at rs1 relative to DDC, zero-extended"),
        _plain_load("lhu.ddc", "the 2 bytes at rs1 relative to DDC, zero-extended"),
        _plain_load("lwu.ddc", "the 4 bytes at rs1 relative to DDC, zero-extended", minimum_xlen=64),
        _plain_load("lc.ddc", "the capability at rs1 relative to DDC, untagged if that may not load capabilities"),
        _plain_store("sb.ddc", "the low byte of rs2 at rs1 relative to DDC; clears tags as csb does"),
        _plain_store("sh.ddc", "the low 2 bytes of rs2 at rs1 relative to DDC; clears tags as csb does"),
        _plain_store("sw.ddc", "the low 4 bytes of rs2 at rs1 relative to DDC; clears tags as csb does"),
        _plain_store("sd.ddc", "the low 8 bytes of rs2 at rs1 relative to DDC; clears tags as csb does", minimum_xlen=64),
        _plain_store("sc.ddc", "the capability cs2 with its tag at rs1 relative to DDC"),
        Operation(
            "li",
            "rd, value",
            Group.INTEGER,
            "rd = value modulo 2**XLEN; one step, whatever an assembler would make of it",
            "RISC-V Assembly Programmer's Manual, load immediate",
        ),
        _integer_row("addi", "rd, rs1, imm", "rd = rs1 + imm"),
        _integer_row("slti", "rd, rs1, imm", "rd = 1 if rs1 < imm as signed numbers, else 0"),
        _integer_row("sltiu", "rd, rs1, imm", "rd = 1 if rs1 < imm as unsigned numbers, else 0"),
        _integer_row("andi", "rd, rs1, imm", "rd = rs1 and imm, bit by bit"),
        _integer_row("ori", "rd, rs1, imm", "rd = rs1 or imm, bit by bit"),
        _integer_row("xori", "rd, rs1, imm", "rd = rs1 exclusive-or imm"),
        _integer_row("slli", "rd, rs1, shamt", "rd = rs1 shifted left"),
        _integer_row("srli", "rd, rs1, shamt", "rd = rs1 shifted right, zeros moving in"),
        _integer_row("srai", "rd, rs1, shamt", "rd = rs1 shifted right, copies of its sign moving in"),
        _integer_row("add", "rd, rs1, rs2", "rd = rs1 + rs2"),
        _integer_row("sub", "rd, rs1, rs2", "rd = rs1 - rs2"),
        _integer_row("and", "rd, rs1, rs2", "rd = rs1 and rs2, bit by bit"),
        _integer_row("or", "rd, rs1, rs2", "rd = rs1 or rs2, bit by bit"),
        _integer_row("xor", "rd, rs1, rs2", "rd = rs1 exclusive-or rs2"),
        _integer_row("sll", "rd, rs1, rs2", "rd = rs1 shifted left by the low bits of rs2"),
        _integer_row("srl", "rd, rs1, rs2", "rd = rs1 shifted right by the low bits of rs2, zeros moving in"),
        _integer_row("sra", "rd, rs1, rs2", "rd = rs1 shifted right by the low bits of rs2, copies of its sign moving in"),
        _integer_row("lui", "rd, uimm20", "rd = uimm20 shifted left by 12 bits, sign-extended from 32"),
        _word_row("addiw", "rd, rs1, imm", "rs1 + imm"),
        _word_row("addw", "rd, rs1, rs2", "rs1 + rs2"),
        _word_row("subw", "rd, rs1, rs2", "rs1 - rs2"),
        _word_row("slliw", "rd, rs1, shamtw", "rs1 shifted left"),
        _word_row("srliw", "rd, rs1, shamtw", "the low 32 bits of rs1 shifted right, zeros moving in"),
        _word_row("sraiw", "rd, rs1, shamtw", "the low 32 bits of rs1 shifted right, copies of their sign moving in"),
        _word_row("sllw", "rd, rs1, rs2", "rs1 shifted left by the low 5 bits of rs2"),
        _word_row("srlw", "rd, rs1, rs2", "srliw by the low 5 bits of rs2"),
        _word_row("sraw", "rd, rs1, rs2", "sraiw by the low 5 bits of rs2"),
        _integer_row("slt", "rd, rs1, rs2", "rd = 1 if rs1 < rs2 as signed numbers, else 0"),
        _integer_row("sltu", "rd, rs1, rs2", "rd = 1 if rs1 < rs2 as unsigned numbers, else 0"),
    )


OPERATIONS: dict[str, Operation] = {row.name: row for row in _rows()}
