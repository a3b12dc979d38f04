"""`capvisor asm` and `capvisor disasm`."""

import click

from capvisor.cli.output import console
from capvisor.cli.status import InputError, Status
from capvisor.dsl.evaluate import constant
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_instruction
from capvisor.dsl.syntax import Expression, Instruction, Integer, Operator, Register, Unary
from capvisor.spec.encodings import WORD_MASK, decode, encodings
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS, OperandKind

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
        statements = list(parse(f"machine {format_name} {{}}\n{text}", "<instruction>").statements)[1:]
        if len(statements) != 1 or not isinstance(statements[0], Instruction):
            raise InputError(f"`{text}` is not one instruction")
        instruction = statements[0]
        encoding = encodings(xlen).get(instruction.name)
        if encoding is None:
            raise InputError(f"`{instruction.name}` is one step of a program, but no instruction: it has no encoding")
        word = encoding.encode(tuple(_number(operand) for operand in instruction.operands))
        console().print(f"{word:#010x}  {print_instruction(instruction)}")
    return Status.OK


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@_format
def disasm(words: tuple[str, ...], format_name: str) -> int:
    """Decode instruction words, such as 0x208586db. Exit status 1 if one encodes nothing that is modelled."""
    status = Status.OK
    for text in words:
        try:
            word = int(text, 0)
        except ValueError:
            raise InputError(f"`{text}` is no number") from None
        if not 0 <= word <= WORD_MASK:
            raise InputError(f"`{text}` is no word of 32 bits")
        decoded = decode(word, FORMATS[format_name].address_width)
        if decoded is None:
            status = Status.VIOLATION
            console().print(f"{word:#010x}  encodes no instruction that is modelled")
            continue
        name, numbers = decoded
        operands = tuple(_operand(kind, value) for kind, value in zip(OPERATIONS[name].operands, numbers, strict=True))
        console().print(f"{word:#010x}  {print_instruction(Instruction(name, operands))}")
    return status


def _number(operand: Expression) -> int:
    return operand.number if isinstance(operand, Register) else constant(operand)


def _operand(kind: OperandKind, value: int) -> Expression:
    if kind.is_register:
        return Register(value, kind.is_capability)
    return Integer(str(value)) if value >= 0 else Unary(Operator.SUBTRACT, Integer(str(-value)))
