"""How operations are encoded: one row an instruction, from which encoder and decoder derive.

A row is an instruction format, which says where operands lie, and the fixed bits. Loads and stores by capability have the
encodings of RISC-V's own loads and stores: they are what those mean in capability mode.

Sources: The RISC-V Instruction Set Manual, volume I, "RV32/64G Instruction Set Listings"; CHERI ISAv9, "CHERI-RISC-V
encodings"; sail-cheri-riscv, cheri_insts.sail, the clauses of `encdec`.
"""

from dataclasses import dataclass
from functools import cache

from capvisor.spec.operations import OPERATIONS, Mode, OperandKind


@dataclass(frozen=True)
class Place:
    """Where an operand lies: its bits from the highest to the lowest as pieces (lowest bit in the word, width)."""

    pieces: tuple[tuple[int, int], ...]
    is_signed: bool = False
    zeros: int = 0
    """How many of the operand's lowest bits are zero, and not in the word."""

    @property
    def width(self) -> int:
        return sum(width for _low, width in self.pieces) + self.zeros

    @property
    def mask(self) -> int:
        """The bits of the word that hold it."""
        return sum((1 << width) - 1 << low for low, width in self.pieces)

    @property
    def rests(self) -> tuple[int, ...]:
        """For each piece, how many of the operand's bits are below it."""
        below = (sum(width for _low, width in self.pieces[number + 1 :]) for number in range(len(self.pieces)))
        return tuple(self.zeros + bits for bits in below)

    def put(self, value: int) -> int:
        """The word with just this operand in it. Raises ValueError where it doesn't fit."""
        low, high = (-(1 << self.width - 1), 1 << self.width - 1) if self.is_signed else (0, 1 << self.width)
        if not low <= value < high or value & (1 << self.zeros) - 1:
            raise ValueError(
                f"{value} doesn't fit {self.width} bits{f', a multiple of {1 << self.zeros}' if self.zeros else ''}"
            )
        word = 0
        for (position, width), rest in zip(self.pieces, self.rests, strict=True):
            word |= (value >> rest & (1 << width) - 1) << position
        return word

    def take(self, word: int) -> int:
        """The operand that a word holds."""
        value = 0
        for position, width in self.pieces:
            value = value << width | word >> position & (1 << width) - 1
        value <<= self.zeros
        sign = 1 << self.width - 1
        return (value ^ sign) - sign if self.is_signed else value


_DESTINATION, _FIRST, _SECOND = Place(((7, 5),)), Place(((15, 5),)), Place(((20, 5),))
_PLACES = {
    OperandKind.CAPABILITY_DESTINATION: _DESTINATION,
    OperandKind.INTEGER_DESTINATION: _DESTINATION,
    OperandKind.CAPABILITY_SOURCE_1: _FIRST,
    OperandKind.INTEGER_SOURCE_1: _FIRST,
    OperandKind.CAPABILITY_SOURCE_2: _SECOND,
    OperandKind.INTEGER_SOURCE_2: _SECOND,
    OperandKind.SIGNED_IMMEDIATE: Place(((20, 12),), is_signed=True),
    OperandKind.UNSIGNED_IMMEDIATE: Place(((20, 12),)),
    OperandKind.UPPER_IMMEDIATE: Place(((12, 20),)),
    OperandKind.BRANCH_OFFSET: Place(((31, 1), (7, 1), (25, 6), (8, 4)), is_signed=True, zeros=1),
    OperandKind.JUMP_OFFSET: Place(((31, 1), (12, 8), (20, 1), (21, 10)), is_signed=True, zeros=1),
    OperandKind.SPECIAL_REGISTER: _SECOND,
    OperandKind.STATUS_REGISTER: Place(((20, 12),)),
    OperandKind.STATUS_IMMEDIATE: _FIRST,
    OperandKind.WORD_SHIFT_AMOUNT: Place(((20, 5),)),
    OperandKind.QUARTER: Place(((18, 2),)),
    OperandKind.MASK: Place(((15, 3), (7, 5))),
}
_STORE_OFFSET = Place(((25, 7), (7, 5)), is_signed=True)

WORD_MASK = (1 << 32) - 1


def _piece(name: str, low: int, width: int) -> str:
    return f"{name}[{low + width - 1}:{low}]" if width > 1 else f"{name}[{low}]"


@dataclass(frozen=True)
class Encoding:
    """The encoding of one operation on machines of one XLEN: the fixed bits under a mask, and where the operands lie.

    `fixed` may have bits beyond the mask: those that mean nothing here (the ordering of atomics and fences), as they are
    encoded; any are decoded.
    """

    name: str
    fixed: int
    mask: int
    places: tuple[Place, ...]

    def picture(self) -> str:
        """The word from bit 31 to 0, operands by their names: `1111111 00010 cs1 000 rd 1011011`."""
        kinds = OPERATIONS[self.name].operands
        pieces = {
            low: (width, _piece(kind.value, rest, width) if len(place.pieces) > 1 else kind.value)
            for kind, place in zip(kinds, self.places, strict=True)
            for (low, width), rest in zip(place.pieces, place.rests, strict=True)
        }
        parts, high = [], 32
        # Fixed fields end where operands begin, and where the manual's formats have their fields.
        ends = {low + width for low, (width, _name) in pieces.items()} - {32}
        for low in sorted({*pieces, *ends, 25, 20, 15, 12, 7, 0}, reverse=True):
            if any(start < low < start + width for start, (width, _name) in pieces.items()):
                continue
            width = high - low
            parts.append(pieces[low][1] if low in pieces else f"{self.fixed >> low & (1 << width) - 1:0{width}b}")
            high = low
        return " ".join(parts)

    def encode(self, operands: tuple[int, ...]) -> int:
        """The word, operands in the order of the operation's syntax. Raises ValueError where one doesn't fit."""
        word = self.fixed
        for place, value in zip(self.places, operands, strict=True):
            word |= place.put(value)
        return word

    def decode(self, word: int) -> tuple[int, ...]:
        """The operands of a word that matches."""
        return tuple(place.take(word) for place in self.places)


def _places(name: str, xlen: int) -> tuple[Place, ...]:
    kinds = OPERATIONS[name].operands
    store = OperandKind.SIGNED_IMMEDIATE in kinds and not kinds[0].is_destination
    places = {
        **_PLACES,
        OperandKind.SHIFT_AMOUNT: Place(((20, 6 if xlen == 64 else 5),)),
        **({OperandKind.SIGNED_IMMEDIATE: _STORE_OFFSET} if store else {}),
    }
    return tuple(places[kind] for kind in kinds)


_XCHERI, _LOAD, _STORE, _FENCE, _IMMEDIATE, _REGISTER = 0x5B, 0x03, 0x23, 0x0F, 0x13, 0x33
_UPPER, _WORD_IMMEDIATE, _WORD_REGISTER, _ATOMIC, _SYSTEM = 0x37, 0x1B, 0x3B, 0x2F, 0x73
_UPPER_PC, _BRANCH, _JUMP, _JUMP_REGISTER = 0x17, 0x63, 0x6F, 0x67

COMPRESSED = 3
"""The lowest bits of a word that isn't a compressed instruction: one of another end has 16 bits, and none is modelled."""

ORDERING_BIT = 25
"""The lower of the two bits, rl and aq, that say how an atomic instruction is ordered among others."""

_FENCE_SETS, _ORDERING = 0xFFF_F_8_F80, 3 << ORDERING_BIT
"""The bits that say what is ordered: of FENCE and FENCE.I all but opcode and funct3, of atomics aq and rl."""

# By operation: opcode, funct3, and what stands above the operands: (lowest bit, value).
_Fixed = tuple[int, int, tuple[tuple[int, int], ...]]


def _two_operands(number: int) -> _Fixed:
    """Xcheri's instructions of a destination and one source."""
    return _XCHERI, 0, ((25, 0x7F), (20, number))


def _three_operands(number: int) -> _Fixed:
    """Xcheri's instructions of a destination and two sources."""
    return _XCHERI, 0, ((25, number),)


def _integer(opcode: int, funct3: int, funct7: int = 0) -> _Fixed:
    return opcode, funct3, ((25, funct7),)


def _load(number: int) -> _Fixed:
    """Xcheri's loads with explicit addressing."""
    return _XCHERI, 0, ((25, 0x7D), (20, number))


def _store(number: int) -> _Fixed:
    """Xcheri's stores with explicit addressing."""
    return _XCHERI, 0, ((25, 0x7C), (7, number))


def _explicit(wide: bool) -> dict[str, _Fixed]:
    """Loads and stores with explicit addressing; a capability is one step above the widest data."""
    widths = "bhwd" if wide else "bhw"
    rows: dict[str, _Fixed] = {}
    for authority, number in (("ddc", 0), ("cap", 8)):
        for size, letter in enumerate(widths):
            rows[f"l{letter}.{authority}"] = _load(number + size)
            rows[f"s{letter}.{authority}"] = _store(number + size)
            if letter != widths[-1]:
                rows[f"l{letter}u.{authority}"] = _load(number + size + 4)
        for size, letter in enumerate(f"{widths}c"):
            rows[f"lr.{letter}.{authority}"] = _load(number + size + 0x10)
            rows[f"sc.{letter}.{authority}"] = _store(number + size + 0x10)
        rows[f"sc.{authority}"] = _store(number + len(widths))
        rows[f"lc.{authority}"] = _load(number + (0x17 if wide else 0x03))
    return rows


def _by_mode(wide: bool) -> dict[str, _Fixed]:
    """RISC-V's loads, stores, jumps and atomics, which have a meaning in either mode.

    Doublewords on RV64 are encoded as capabilities on RV32 are; RV64's capabilities are where RV128 has quadwords.
    """
    widths = "bhwd" if wide else "bhw"
    rows: dict[str, _Fixed] = {
        "lc": (_FENCE, 2, ()) if wide else (_LOAD, 3, ()),
        "sc": (_STORE, 4 if wide else 3, ()),
    }
    for size, letter in enumerate(widths):
        rows[f"l{letter}"] = _LOAD, size, ()
        rows[f"s{letter}"] = _STORE, size, ()
        if letter != widths[-1]:
            rows[f"l{letter}u"] = _LOAD, size + 4, ()
    for size, letter in enumerate(f"{widths}c"):
        rows[f"lr.{letter}"] = _ATOMIC, size, ((27, 2), (20, 0))
        rows[f"sc.{letter}"] = _ATOMIC, size, ((27, 3),)
        if size >= 2:
            rows[f"amoswap.{letter}"] = _ATOMIC, size, ((27, 1),)
    rows |= {"jal": (_JUMP, 0, ()), "jalr": (_JUMP_REGISTER, 0, ()), "auipc": (_UPPER_PC, 0, ())}
    return rows | {"auipcc" if name == "auipc" else f"c{name}": row for name, row in rows.items()}


def _fixed(xlen: int) -> dict[str, _Fixed]:
    """The fixed bits of every instruction, by operation. `li` has none: it is no instruction."""
    wide = xlen == 64
    return {
        "cgetperm": _two_operands(0x00),
        "cgettype": _two_operands(0x01),
        "cgetbase": _two_operands(0x02),
        "cgetlen": _two_operands(0x03),
        "cgettag": _two_operands(0x04),
        "cgetsealed": _two_operands(0x05),
        "cgetoffset": _two_operands(0x06),
        "cgetflags": _two_operands(0x07),
        "crrl": _two_operands(0x08),
        "cram": _two_operands(0x09),
        "cmove": _two_operands(0x0A),
        "ccleartag": _two_operands(0x0B),
        "cgetaddr": _two_operands(0x0F),
        "csealentry": _two_operands(0x11),
        "cgethigh": _two_operands(0x17),
        "cgettop": _two_operands(0x18),
        "cclear": (_XCHERI, 0, ((25, 0x7F), (20, 0x0E))),
        "cloadtags": _two_operands(0x12),
        "csetbounds": _three_operands(0x08),
        "csetboundsexact": _three_operands(0x09),
        "cseal": _three_operands(0x0B),
        "cunseal": _three_operands(0x0C),
        "candperm": _three_operands(0x0D),
        "csetflags": _three_operands(0x0E),
        "csetoffset": _three_operands(0x0F),
        "csetaddr": _three_operands(0x10),
        "cincoffset": _three_operands(0x11),
        "ctoptr": _three_operands(0x12),
        "cfromptr": _three_operands(0x13),
        "csub": _three_operands(0x14),
        "csethigh": _three_operands(0x16),
        "cbuildcap": _three_operands(0x1D),
        "ccopytype": _three_operands(0x1E),
        "ccseal": _three_operands(0x1F),
        "ctestsubset": _three_operands(0x20),
        "cseqx": _three_operands(0x21),
        "cincoffsetimm": (_XCHERI, 1, ()),
        "csetboundsimm": (_XCHERI, 2, ()),
        "cspecialrw": _three_operands(0x01),
        "jalr.cap": _two_operands(0x0C),
        "jalr.pcc": _two_operands(0x14),
        "cinvoke": (_XCHERI, 0, ((25, 0x7E), (7, 1))),
        **_by_mode(wide),
        **_explicit(wide),
        "beq": (_BRANCH, 0, ()),
        "bne": (_BRANCH, 1, ()),
        "blt": (_BRANCH, 4, ()),
        "bge": (_BRANCH, 5, ()),
        "bltu": (_BRANCH, 6, ()),
        "bgeu": (_BRANCH, 7, ()),
        "csrrw": (_SYSTEM, 1, ()),
        "csrrs": (_SYSTEM, 2, ()),
        "csrrc": (_SYSTEM, 3, ()),
        "csrrwi": (_SYSTEM, 5, ()),
        "csrrsi": (_SYSTEM, 6, ()),
        "csrrci": (_SYSTEM, 7, ()),
        "ecall": (_SYSTEM, 0, ((20, 0x000),)),
        "ebreak": (_SYSTEM, 0, ((20, 0x001),)),
        "mret": (_SYSTEM, 0, ((20, 0x302),)),
        "sret": (_SYSTEM, 0, ((20, 0x102),)),
        "fence": (_FENCE, 0, ((20, 0x0FF),)),
        "fence.i": (_FENCE, 1, ()),
        "addi": (_IMMEDIATE, 0, ()),
        "slti": (_IMMEDIATE, 2, ()),
        "sltiu": (_IMMEDIATE, 3, ()),
        "xori": (_IMMEDIATE, 4, ()),
        "ori": (_IMMEDIATE, 6, ()),
        "andi": (_IMMEDIATE, 7, ()),
        "slli": _integer(_IMMEDIATE, 1),
        "srli": _integer(_IMMEDIATE, 5),
        "srai": _integer(_IMMEDIATE, 5, 0x20),
        "add": _integer(_REGISTER, 0),
        "sub": _integer(_REGISTER, 0, 0x20),
        "sll": _integer(_REGISTER, 1),
        "slt": _integer(_REGISTER, 2),
        "sltu": _integer(_REGISTER, 3),
        "xor": _integer(_REGISTER, 4),
        "srl": _integer(_REGISTER, 5),
        "sra": _integer(_REGISTER, 5, 0x20),
        "or": _integer(_REGISTER, 6),
        "and": _integer(_REGISTER, 7),
        "lui": (_UPPER, 0, ()),
        **(_words() if wide else {}),
    }


def _words() -> dict[str, _Fixed]:
    """The instructions of RV64 that work on words."""
    return {
        "addiw": (_WORD_IMMEDIATE, 0, ()),
        "slliw": _integer(_WORD_IMMEDIATE, 1),
        "srliw": _integer(_WORD_IMMEDIATE, 5),
        "sraiw": _integer(_WORD_IMMEDIATE, 5, 0x20),
        "addw": _integer(_WORD_REGISTER, 0),
        "subw": _integer(_WORD_REGISTER, 0, 0x20),
        "sllw": _integer(_WORD_REGISTER, 1),
        "srlw": _integer(_WORD_REGISTER, 5),
        "sraw": _integer(_WORD_REGISTER, 5, 0x20),
    }


@cache
def encodings(xlen: int) -> dict[str, Encoding]:
    """The encodings of machines of XLEN 32 or 64, by operation."""
    rows = {}
    for name, (opcode, funct3, above) in _fixed(xlen).items():
        places = _places(name, xlen)
        mask = WORD_MASK & ~sum(place.mask for place in places)
        mask &= ~(_ORDERING if OPERATIONS[name].has_ordering else _FENCE_SETS if name in ("fence", "fence.i") else 0)
        fixed = opcode | funct3 << 12 | sum(value << low for low, value in above)
        rows[name] = Encoding(name, fixed, mask, places)
    return rows


def encode(name: str, operands: tuple[int, ...], xlen: int) -> int:
    """The instruction word of an operation. Raises KeyError for what has none, ValueError where an operand doesn't fit."""
    return encodings(xlen)[name].encode(operands)


def decode(word: int, xlen: int, mode: Mode) -> tuple[str, tuple[int, ...]] | None:
    """The operation and operands that a word encodes in a mode; None if it encodes nothing that is modelled."""
    for encoding in _by_opcode(xlen, mode).get(word & 0x7F, ()):
        if word & encoding.mask == encoding.fixed & encoding.mask:
            return encoding.name, encoding.decode(word)
    return None


@cache
def _by_opcode(xlen: int, mode: Mode) -> dict[int, tuple[Encoding, ...]]:
    found: dict[int, tuple[Encoding, ...]] = {}
    for encoding in encodings(xlen).values():
        if OPERATIONS[encoding.name].mode in (None, mode):
            opcode = encoding.fixed & 0x7F
            found[opcode] = (*found.get(opcode, ()), encoding)
    return found
