"""The operation table: one row an operation of the guest machine.

The grammar, the printer, the reference's and the fast path's dispatch, random generation, obligations and documentation
derive from these rows. A row without a reference rule and a fast kernel fails the tests.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from capvisor.spec.registers import SPECIAL_NUMBERS, STATUS_NUMBERS


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
    BRANCH_OFFSET = "offset13"
    JUMP_OFFSET = "offset21"
    QUARTER = "quarter"
    MASK = "mask8"
    SPECIAL_REGISTER = "scr"
    STATUS_REGISTER = "csr"
    STATUS_IMMEDIATE = "uimm5"
    SHIFT_AMOUNT = "shamt"
    WORD_SHIFT_AMOUNT = "shamtw"
    VALUE = "value"

    @property
    def is_register(self) -> bool:
        return self.value in ("cd", "cs1", "cs2", "rd", "rs1", "rs2")

    @property
    def is_capability(self) -> bool:
        """Read or written as a capability, so that it prints as `cn`; other registers print as `xn`."""
        return self.value in ("cd", "cs1", "cs2")

    @property
    def is_destination(self) -> bool:
        return self.value in ("cd", "rd")

    @property
    def names(self) -> dict[str, int]:
        """What a number of this kind may be called, beside its value."""
        return {OperandKind.SPECIAL_REGISTER: SPECIAL_NUMBERS, OperandKind.STATUS_REGISTER: STATUS_NUMBERS}.get(self, {})

    @property
    def alignment(self) -> int:
        """What an immediate must be a multiple of."""
        return 2 if self in (OperandKind.BRANCH_OFFSET, OperandKind.JUMP_OFFSET) else 1

    def immediate_range(self, xlen: int) -> tuple[int, int]:
        """The lowest and highest number that an immediate operand can hold.

        Source: The RISC-V Instruction Set Manual, volume I, immediate encodings (12 bits, sign-extended); CHERI ISAv9,
        CSetBounds (immediate, zero-extended).
        """
        return {
            OperandKind.SIGNED_IMMEDIATE: (-2048, 2047),
            OperandKind.UNSIGNED_IMMEDIATE: (0, 4095),
            OperandKind.UPPER_IMMEDIATE: (0, (1 << 20) - 1),
            OperandKind.BRANCH_OFFSET: (-(1 << 12), (1 << 12) - 2),
            OperandKind.JUMP_OFFSET: (-(1 << 20), (1 << 20) - 2),
            OperandKind.SPECIAL_REGISTER: (0, 31),
            OperandKind.STATUS_REGISTER: (0, 4095),
            OperandKind.STATUS_IMMEDIATE: (0, 31),
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
    ATOMIC = "atomic"
    INTEGER = "integer"
    CONTROL = "control flow"
    SYSTEM = "system"


class Mode(Enum):
    """What the flags of PCC say: how an encoding that has two meanings is to be read."""

    INTEGER = "integer"
    CAPABILITY = "capability"


FETCH_TRAPS = ("TagViolation", "SealViolation", "PermitExecuteViolation", "LengthViolation")
"""Why PCC may not authorise an instruction to be executed at all, in the order in which it is checked.

Source: sail-cheri-riscv, cheri_addr_checks.sail, ext_fetch_check_pc.
"""


@dataclass(frozen=True)
class Operation:
    """One operation: `syntax` is its assembler pattern, `traps` its own causes in the order in which they are checked.

    `minimum_xlen` is 64 for what exists on RV64 only. `mode` is the one in which the encoding means this operation, where
    it means another one in the other.
    """

    name: str
    syntax: str
    group: Group
    summary: str
    source: str
    traps: tuple[str, ...] = ()
    minimum_xlen: int = 32
    mode: Mode | None = None

    @cached_property
    def all_traps(self) -> tuple[str, ...]:
        """Every cause for which it may be refused: at its fetch, then its own."""
        return tuple(dict.fromkeys((*FETCH_TRAPS, *self.traps)))

    @cached_property
    def has_ordering(self) -> bool:
        """Whether its word says how it is ordered among others' accesses: that of atomics without explicit addressing."""
        return self.group is Group.ATOMIC and not self.name.endswith((".cap", ".ddc"))

    @cached_property
    def operands(self) -> tuple[OperandKind, ...]:
        return tuple(OperandKind(word) for word in re.findall(r"\w+", self.syntax))

    @cached_property
    def has_address_syntax(self) -> bool:
        """Whether the last two operands are written as an offset and a register: `imm(cs1)`."""
        return "imm(" in self.syntax

    @cached_property
    def has_address_in_parentheses(self) -> bool:
        """Whether the last operand is written `(cs1)`: an address without offset."""
        return ", (" in self.syntax


def _capability_row(name: str, syntax: str, group: Group, summary: str, instruction: str) -> Operation:
    return Operation(name, syntax, group, summary, f"CHERI ISAv9, {instruction}; sail-cheri-riscv, cheri_insts.sail")


def _manual(name: str) -> str:
    return f"The RISC-V Instruction Set Manual, volume I, {name.upper()}"


def _integer_row(name: str, syntax: str, summary: str, minimum_xlen: int = 32) -> Operation:
    return Operation(name, syntax, Group.INTEGER, summary, _manual(name), minimum_xlen=minimum_xlen)


def _word_row(name: str, syntax: str, what: str) -> Operation:
    return _integer_row(name, syntax, f"rd = {what}, modulo 2**32 and sign-extended", 64)


_LOAD_TRAPS = ("TagViolation", "SealViolation", "PermitLoadViolation", "LengthViolation")
_STORE_TRAPS = ("TagViolation", "SealViolation", "PermitStoreViolation", "LengthViolation")
_STORE_CAPABILITY_TRAPS = (*_STORE_TRAPS[:3], "PermitStoreCapViolation", "PermitStoreLocalCapViolation", "LengthViolation")
_LOAD_FAULT, _STORE_FAULT = ("LoadAccessFault",), ("StoreAMOAccessFault",)
_ALIGNED_LOAD_FAULT = ("LoadAddressMisaligned", *_LOAD_FAULT)
_ALIGNED_STORE_FAULT = ("StoreAMOAddressMisaligned", *_STORE_FAULT)


@dataclass(frozen=True)
class Width:
    """A width of data in memory, by the letters that name it: its bytes, and whether what is loaded is sign-extended."""

    letters: str
    size_bytes: int
    is_signed: bool

    @property
    def minimum_xlen(self) -> int:
        """Doublewords, and words without a sign, are of RV64 only."""
        return 64 if self.letters in ("d", "wu") else 32

    @property
    def what(self) -> str:
        """The bytes in words, and how they are extended to a register."""
        extension = "" if self.size_bytes == 8 else f", {'sign' if self.is_signed else 'zero'}-extended"
        return f"{self.bytes_in_words}{{}}{extension}"

    @property
    def bytes_in_words(self) -> str:
        return "byte" if self.size_bytes == 1 else f"{self.size_bytes} bytes"


STORE_WIDTHS = (Width("b", 1, True), Width("h", 2, True), Width("w", 4, True), Width("d", 8, True))
LOAD_WIDTHS = (*STORE_WIDTHS, Width("bu", 1, False), Width("hu", 2, False), Width("wu", 4, False))
SWAP_WIDTHS = STORE_WIDTHS[2:]


@dataclass(frozen=True)
class Addressing:
    """How loads and stores say where: by a capability, or in integer mode by DDC; which names and operands they have."""

    base: str
    """The register that is named: `cs1`, or an integer with DDC as authority."""
    prefix: str = ""
    suffix: str = ""
    has_offset: bool = False
    mode: Mode | None = None

    @property
    def operand(self) -> str:
        return f"imm({self.base})" if self.has_offset else f"({self.base})"

    @property
    def where(self) -> str:
        return f"{self.base}{' + imm' if self.has_offset else ''}{', by DDC' if self.base == 'rs1' else ''}"


BY_MODE = (
    Addressing("cs1", prefix="c", has_offset=True, mode=Mode.CAPABILITY),
    Addressing("rs1", has_offset=True, mode=Mode.INTEGER),
)
EXPLICIT = (Addressing("cs1", suffix=".cap"), Addressing("rs1", suffix=".ddc"))
RESERVING = (
    Addressing("cs1", prefix="c", mode=Mode.CAPABILITY),
    Addressing("rs1", mode=Mode.INTEGER),
    *EXPLICIT,
)
SWAPPING = RESERVING[:2]


def _access_source(where: Addressing, what: str) -> str:
    if where.suffix:
        return f"CHERI ISAv9, {what} with explicit addressing; sail-cheri-riscv, cheri_insts.sail"
    return f"CHERI ISAv9, {what} in {where.mode.value} mode; sail-cheri-riscv, cheri_addr_checks.sail"  # type: ignore[union-attr]


def _loads(where: Addressing) -> tuple[Operation, ...]:
    source = _access_source(where, "loads")
    return (
        *(
            Operation(
                f"{where.prefix}l{width.letters}{where.suffix}",
                f"rd, {where.operand}",
                Group.LOAD,
                f"rd = the {width.what.format(f' at {where.where}')}",
                source,
                (*_LOAD_TRAPS, *_LOAD_FAULT),
                width.minimum_xlen,
                where.mode,
            )
            for width in LOAD_WIDTHS
        ),
        Operation(
            f"{where.prefix}lc{where.suffix}",
            f"cd, {where.operand}",
            Group.LOAD,
            f"cd = the capability at {where.where}, untagged if that authority may not load capabilities",
            f"{source}, handle_load_cap_via_cap",
            (*_LOAD_TRAPS, *_ALIGNED_LOAD_FAULT),
            mode=where.mode,
        ),
    )


def _stores(where: Addressing) -> tuple[Operation, ...]:
    source = _access_source(where, "stores")
    return (
        *(
            Operation(
                f"{where.prefix}s{width.letters}{where.suffix}",
                f"rs2, {where.operand}",
                Group.STORE,
                f"store the low {width.bytes_in_words} of rs2 at {where.where}; clears the tags of the granules touched",
                source,
                (*_STORE_TRAPS, *_STORE_FAULT),
                width.minimum_xlen,
                where.mode,
            )
            for width in STORE_WIDTHS
        ),
        Operation(
            f"{where.prefix}sc{where.suffix}",
            f"cs2, {where.operand}",
            Group.STORE,
            f"store the capability cs2 with its tag at {where.where}",
            f"{source}, handle_store_cap_via_cap",
            (*_STORE_CAPABILITY_TRAPS, *_ALIGNED_STORE_FAULT),
            mode=where.mode,
        ),
    )


def _load_reserved(where: Addressing) -> tuple[Operation, ...]:
    source = _access_source(where, "load-reserved")
    names = [
        (width.letters, "rd", f"the {width.what.format(f' at {where.where}')}", width.minimum_xlen) for width in STORE_WIDTHS
    ]
    names.append(("c", "cd", f"the capability at {where.where}, untagged if that authority may not load capabilities", 32))
    return tuple(
        Operation(
            f"{where.prefix}lr.{letters}{where.suffix}",
            f"{destination}, {where.operand}",
            Group.ATOMIC,
            f"{destination} = {what}; reserves that address",
            source,
            (*_LOAD_TRAPS, *(_LOAD_FAULT if letters == "b" else _ALIGNED_LOAD_FAULT)),
            xlen,
            where.mode,
        )
        for letters, destination, what, xlen in names
    )


def _store_conditional(where: Addressing) -> tuple[Operation, ...]:
    """With explicit addressing, the register that is stored gets the outcome too."""
    source = _access_source(where, "store-conditional")
    rows = []
    for letters, stored, what, xlen, traps in (
        *(
            (width.letters, "rs2", f"the low {width.bytes_in_words} of rs2", width.minimum_xlen, _STORE_TRAPS)
            for width in STORE_WIDTHS
        ),
        ("c", "cs2", "the capability cs2", 32, _STORE_CAPABILITY_TRAPS),
    ):
        outcome = stored if where.suffix else "rd"
        rows.append(
            Operation(
                f"{where.prefix}sc.{letters}{where.suffix}",
                f"{stored}, {where.operand}" if where.suffix else f"rd, {stored}, {where.operand}",
                Group.ATOMIC,
                f"store {what} at {where.where} if that address is reserved; {outcome} = 0 if stored, else 1",
                source,
                (*traps, *(_STORE_FAULT if letters == "b" else _ALIGNED_STORE_FAULT)),
                xlen,
                where.mode,
            )
        )
    return tuple(rows)


def _swaps(where: Addressing) -> tuple[Operation, ...]:
    checks = (*_LOAD_TRAPS[:3], "PermitStoreViolation")
    source = _access_source(where, "AMOSWAP")
    return (
        *(
            Operation(
                f"{where.prefix}amoswap.{width.letters}",
                f"rd, rs2, {where.operand}",
                Group.ATOMIC,
                f"rd = the {width.what.format(f' at {where.where}')}; rs2 is stored there",
                source,
                (*checks, "LengthViolation", *_ALIGNED_STORE_FAULT),
                width.minimum_xlen,
                where.mode,
            )
            for width in SWAP_WIDTHS
        ),
        Operation(
            f"{where.prefix}amoswap.c",
            f"cd, cs2, {where.operand}",
            Group.ATOMIC,
            f"cd = the capability at {where.where}, untagged if not permitted to load capabilities; cs2 is stored there",
            source,
            (*checks, *_STORE_CAPABILITY_TRAPS[3:], *_ALIGNED_STORE_FAULT),
            mode=where.mode,
        ),
    )


_CALL_TRAPS = ("TagViolation", "SealViolation", "PermitExecuteViolation", "LengthViolation")
_INVOKE_TRAPS = (
    *("TagViolation", "SealViolation", "TypeViolation", "PermitCInvokeViolation", "PermitExecuteViolation"),
    "LengthViolation",
)


def _branch(name: str, condition: str) -> Operation:
    summary = f"jump by offset13 bytes if {condition}"
    return Operation(name, "rs1, rs2, offset13", Group.CONTROL, summary, _manual(name), ("LengthViolation",))


def _jump(name: str, syntax: str, summary: str, traps: tuple[str, ...], mode: Mode | None = None) -> Operation:
    source = f"CHERI ISAv9, {name.upper()}; sail-cheri-riscv, cheri_insts.sail"
    return Operation(name, syntax, Group.CONTROL, summary, source, traps, mode=mode)


def _status(name: str, source: str, what: str) -> Operation:
    manual = "The RISC-V Instruction Set Manual, volume I, Zicsr; CHERI ISAv9, access to CSRs"
    summary = f"rd = the CSR; the CSR = {what}"
    traps = ("IllegalInstruction", "AccessSystemRegsViolation")
    return Operation(name, f"rd, csr, {source}", Group.SYSTEM, summary, manual, traps)


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
        *(row for where in BY_MODE for row in _loads(where)),
        *(row for where in BY_MODE for row in _stores(where)),
        Operation(
            "cloadtags",
            "rd, (cs1)",
            Group.LOAD,
            "rd = the tags of the capabilities of the cache line at cs1, the lowest first",
            "CHERI ISAv9, CLoadTags; sail-cheri-riscv, cheri_insts.sail",
            (*_LOAD_TRAPS[:3], "PermitLoadCapViolation", "LengthViolation", *_ALIGNED_LOAD_FAULT),
        ),
        *(row for where in EXPLICIT for row in _loads(where)),
        *(row for where in EXPLICIT for row in _stores(where)),
        *(row for where in RESERVING for row in _load_reserved(where)),
        *(row for where in RESERVING for row in _store_conditional(where)),
        *(row for where in SWAPPING for row in _swaps(where)),
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
        _branch("beq", "rs1 = rs2"),
        _branch("bne", "rs1 and rs2 differ"),
        _branch("blt", "rs1 < rs2 as signed numbers"),
        _branch("bge", "rs1 >= rs2 as signed numbers"),
        _branch("bltu", "rs1 < rs2 as unsigned numbers"),
        _branch("bgeu", "rs1 >= rs2 as unsigned numbers"),
        _jump("jal", "rd, offset21", "rd = the next pc; jump by offset21 bytes", ("LengthViolation",), Mode.INTEGER),
        _jump("jalr", "rd, imm(rs1)", "rd = the next pc; jump to rs1 + imm", ("LengthViolation",), Mode.INTEGER),
        _jump("jalr.pcc", "rd, rs1", "jalr without offset, in either mode", ("LengthViolation",)),
        _jump(
            "cjal",
            "cd, offset21",
            "cd = PCC at the next pc, as a sentry; jump by offset21 bytes",
            ("LengthViolation",),
            Mode.CAPABILITY,
        ),
        _jump(
            "cjalr",
            "cd, imm(cs1)",
            "cd = PCC at the next pc, as a sentry; PCC = cs1 + imm, unsealed if a sentry",
            _CALL_TRAPS,
            Mode.CAPABILITY,
        ),
        _jump("jalr.cap", "cd, cs1", "cjalr without offset, in either mode", _CALL_TRAPS),
        _jump(
            "cinvoke",
            "cs1, cs2",
            "PCC = cs1 and c31 = cs2, both unsealed, if they are sealed with one object type",
            _INVOKE_TRAPS,
        ),
        Operation(
            "auipc",
            "rd, uimm20",
            Group.CONTROL,
            "rd = pc + uimm20 shifted left by 12 bits",
            _manual("auipc"),
            mode=Mode.INTEGER,
        ),
        _jump(
            "auipcc",
            "cd, uimm20",
            "cd = PCC at pc + uimm20 shifted left by 12 bits, untagged if not representable",
            (),
            Mode.CAPABILITY,
        ),
        Operation(
            "cspecialrw",
            "cd, scr, cs1",
            Group.SYSTEM,
            "cd = the special capability register; that = cs1, unless it is c0",
            "CHERI ISAv9, CSpecialRW; sail-cheri-riscv, cheri_insts.sail",
            ("IllegalInstruction", "AccessSystemRegsViolation"),
        ),
        _status("csrrw", "rs1", "rs1"),
        _status("csrrs", "rs1", "itself or rs1, bit by bit, unless that is x0"),
        _status("csrrc", "rs1", "itself without the bits of rs1, unless that is x0"),
        _status("csrrwi", "uimm5", "uimm5"),
        _status("csrrsi", "uimm5", "itself or uimm5, bit by bit, unless that is 0"),
        _status("csrrci", "uimm5", "itself without the bits of uimm5, unless that is 0"),
        Operation(
            "ecall",
            "",
            Group.SYSTEM,
            "trap to the environment, with a cause for each mode",
            _manual("ecall"),
            ("UserEnvironmentCall", "SupervisorEnvironmentCall", "EnvironmentCall"),
        ),
        Operation("ebreak", "", Group.SYSTEM, "trap to the debugger", _manual("ebreak"), ("Breakpoint",)),
        Operation(
            "mret",
            "",
            Group.SYSTEM,
            "return from a trap to the mode in MPP: PCC = MEPCC, unsealed if it is a sentry",
            "The RISC-V Instruction Set Manual, volume II, MRET; sail-cheri-riscv, cheri_sys_exceptions.sail",
            ("IllegalInstruction", "AccessSystemRegsViolation"),
        ),
        Operation(
            "sret",
            "",
            Group.SYSTEM,
            "return from a trap to the mode in SPP: PCC = SEPCC, unsealed if it is a sentry",
            "The RISC-V Instruction Set Manual, volume II, SRET; sail-cheri-riscv, cheri_sys_exceptions.sail",
            ("IllegalInstruction", "AccessSystemRegsViolation"),
        ),
        Operation("fence", "", Group.SYSTEM, "order memory accesses: nothing, on one hart", _manual("fence")),
        Operation("fence.i", "", Group.SYSTEM, "order stores and fetches: nothing, on one hart", _manual("fence.i")),
    )


OPERATIONS: dict[str, Operation] = {row.name: row for row in _rows()}
