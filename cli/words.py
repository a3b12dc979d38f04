"""`capvisor asm` and `capvisor disasm`."""

import click

from capvisor.cli.output import console
from capvisor.cli.status import InputError, Status
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import instruction_of, print_instruction
from capvisor.dsl.runner import operand_value
from capvisor.dsl.syntax import Instruction
from capvisor.spec.encodings import ORDERING_BIT, WORD_MASK, decode, encodings
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS, Mode

_format = click.option(
    "--format",
    "format_name",
    default="cc128",
    show_default=True,
    type=click.Choice(list(FORMATS)),
    help="The machine's capability format, and with it its XLEN.",
)


@click.command()
@click.argument("instructions", nargs=-1, required=True, metavar="INSTRUCTION...")
@_format
def asm(instructions: tuple[str, ...], format_name: str) -> int:
    """Encode instructions, each one argument: 'csetbounds ca0, ca1, a2'."""
    xlen = FORMATS[format_name].address_width
    for text in instructions:
        plain, ordering = without_ordering(text)
        statements = list(parse(f"machine {format_name} {{}}\n{plain}", "<instruction>").statements)[1:]
        if len(statements) != 1 or not isinstance(statements[0], Instruction):
            raise InputError(f"`{text}` is not one instruction")
        instruction = statements[0]
        encoding = encodings(xlen).get(instruction.name)
        if encoding is None:
            raise InputError(f"`{instruction.name}` is one step of a program, but no instruction: it has no encoding")
        kinds = OPERATIONS[instruction.name].operands
        numbers = tuple(operand_value(*pair) for pair in zip(kinds, instruction.operands, strict=True))
        word = encoding.encode(numbers) | ordering << ORDERING_BIT
        console().print(f"{word:#010x}  {with_ordering(print_instruction(instruction), instruction.name, ordering)}")
    return Status.OK


@click.command()
@click.option(
    "--mode",
    "mode_name",
    default=Mode.CAPABILITY.value,
    show_default=True,
    type=click.Choice([mode.value for mode in Mode]),
    help="The mode that PCC is in: some words mean something else in the other.",
)
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@_format
def disasm(words: tuple[str, ...], format_name: str, mode_name: str) -> int:
    """Decode instruction words, such as 0x208586db. Exit status 1 if one encodes nothing that is modelled."""
    status = Status.OK
    for text in words:
        try:
            word = int(text, 0)
        except ValueError:
            raise InputError(f"`{text}` is no number") from None
        if not 0 <= word <= WORD_MASK:
            raise InputError(f"`{text}` is no word of 32 bits")
        written = disassembled(word, FORMATS[format_name].address_width, Mode(mode_name))
        if written is None:
            status = Status.VIOLATION
        console().print(f"{word:#010x}  {written or ENCODES_NOTHING}")
    return status


ENCODES_NOTHING = "encodes no instruction that is modelled"


def disassembled(word: int, xlen: int, mode: Mode) -> str | None:
    """The instruction that a word encodes, in the language's syntax; None if it encodes nothing that is modelled."""
    decoded = decode(word, xlen, mode)
    if decoded is None:
        return None
    name, numbers = decoded
    return with_ordering(print_instruction(instruction_of(name, numbers)), name, ordering_of(word))


_ORDERINGS = ("", ".rl", ".aq", ".aqrl")


def without_ordering(text: str) -> tuple[str, int]:
    """An instruction's text without the ordering that its mnemonic ends in (`lr.w.aq`), and the number of that ordering."""
    mnemonic, _space, operands = text.strip().partition(" ")
    for number, suffix in reversed(list(enumerate(_ORDERINGS))):
        name = mnemonic.removesuffix(suffix)
        if suffix and name != mnemonic and name in OPERATIONS and OPERATIONS[name].has_ordering:
            return f"{name} {operands}", number
    return text, 0


def with_ordering(text: str, name: str, ordering: int) -> str:
    """An instruction's text with its ordering behind the mnemonic."""
    return text.replace(name, f"{name}{_ORDERINGS[ordering]}", 1) if ordering and OPERATIONS[name].has_ordering else text


def ordering_of(word: int) -> int:
    """The ordering that an atomic instruction's word asks for: bit 1 is aq, bit 0 rl."""
    return word >> ORDERING_BIT & 3
