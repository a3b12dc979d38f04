"""Instruction words as the emulators generated from the Sail model print them.

Their notation is that of traces: registers have the calling convention's names, with `c` in front where a capability is
meant; immediates are hexadecimal and without a sign.
"""

from functools import cache

from capvisor.spec.encodings import ORDERING_BIT, decode, encodings
from capvisor.spec.operations import OPERATIONS, Mode, OperandKind
from capvisor.spec.registers import ABI_NAMES

_NAMES = tuple("fp" if name == "s0" else name for name in ABI_NAMES)
_ORDERINGS = ("", ".rl", ".aq", ".aqrl")


@cache
def sail_assembly(word: int, xlen: int, mode: Mode) -> str:
    """The text of a word; of one that encodes no instruction, `illegal` and the word."""
    decoded = decode(word, xlen, mode)
    if decoded is None:
        return f"illegal {word:#010x}"
    name, numbers = decoded
    row = OPERATIONS[name]
    widths = [place.width for place in encodings(xlen)[name].places]
    operands = [_operand(*each) for each in zip(row.operands, numbers, widths, strict=True)]
    if row.has_address_syntax:
        offset, base = operands[-2:]
        operands[-2:] = [f"{offset}({base})"]
    if row.has_address_in_parentheses:
        operands[-1] = f"({operands[-1]})"
    ordering = _ORDERINGS[word >> ORDERING_BIT & 3] if row.has_ordering else ""
    return f"{name}{ordering} {', '.join(operands)}".rstrip()


def _operand(kind: OperandKind, value: int, width: int) -> str:
    if kind.is_capability:
        return "cnull" if value == 0 else f"c{_NAMES[value]}"
    if kind.is_register:
        return _NAMES[value]
    if value in kind.names.values():
        return next(name for name, number in kind.names.items() if number == value)
    return hex(value & (1 << width) - 1)
