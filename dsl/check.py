"""What must be right about a program before it is run: names, types, ranges, and the order of things."""

import difflib
from collections.abc import Iterable

from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import constant
from capvisor.dsl.fields import FIELDS
from capvisor.dsl.syntax import (
    Any,
    Assert,
    Binary,
    By,
    Create,
    Destroy,
    Element,
    Expectation,
    Expression,
    FieldOf,
    Initial,
    Instruction,
    Integer,
    Let,
    Machine,
    Measured,
    Name,
    Operator,
    Position,
    Program,
    Register,
    Truth,
    Unary,
    Violates,
    walk,
)
from capvisor.dsl.system_kinds import examples
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.operations import OPERATIONS, OperandKind
from capvisor.spec.registers import REGISTER_NUMBERS
from capvisor.spec.traps import CAUSES_BY_NAME

_LOGICAL = {Operator.IMPLIES, Operator.OR, Operator.AND}
_EQUALITY = {Operator.EQUAL, Operator.NOT_EQUAL}
_ORDER = {Operator.LESS, Operator.LESS_EQUAL, Operator.GREATER, Operator.GREATER_EQUAL}
_SHIFTS = {Operator.SHIFT_LEFT, Operator.SHIFT_RIGHT}
RESERVED = {
    "any",
    "and",
    "or",
    "not",
    "implies",
    "when",
    "where",
    "true",
    "false",
    "let",
    "assert",
    "machine",
    "memory",
    "size",
    "root",
    "given",
    "capability",
}
MAXIMUM_SHIFT = 1024


def check(program: Program) -> None:
    """Raises ProgramError for the first thing that is wrong with a program."""
    Checker(program).check()


class Checker:
    """Walks through the statements of a program for one machine, and keeps what has been said so far."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lets: dict[str, Let] = {}
        self._format: CapabilityFormat | None = None
        self._started: set[int] = set()
        self._has_begun = False

    def _error(self, message: str, position: Position) -> ProgramError:
        return ProgramError(message, position, self._program.source, self._program.text)

    def check(self) -> None:
        """Look at every statement, in order."""
        statements = list(self._program.statements)
        of_systems = [each for each in statements if isinstance(each, By | Create | Destroy | Violates | Measured)]
        if of_systems:
            message = f"agents are of a system: the program needs {examples()}, and no machine"
            raise self._error(message, of_systems[0].position)
        for statement in statements:
            if not isinstance(statement, Machine) and self._format is None:
                raise self._error("the machine must come first: `machine cc128 { ... }`", statement.position)
            match statement:
                case Machine():
                    self._machine(statement)
                case Let():
                    self._let(statement)
                case Initial():
                    self._initial(statement)
                case Instruction():
                    self._instruction(statement)
                case Assert():
                    self._condition(statement.condition, "`assert` needs a condition")
        if self._format is None:
            raise self._error(
                "a program needs a machine: `machine cc128 { memory 0x80000000 size 64K; c1 = root }`", Position(1, 1)
            )

    def _machine(self, machine: Machine) -> None:
        if self._format is not None:
            raise self._error("a program has one machine", machine.position)
        if machine.format not in FORMATS:
            message = f"unknown capability format `{machine.format}`{suggest(machine.format, FORMATS)}"
            raise self._error(message, machine.position)
        self._format = FORMATS[machine.format]
        for register in machine.roots:
            if register == 0:
                raise self._error("c0 is always NULL: it can't start as root", machine.position)
        if len(set(machine.roots)) != len(machine.roots):
            raise self._error("a register is given twice", machine.position)
        self._started |= set(machine.roots)
        self._memory(machine.memory_base, machine.memory_size, "the machine's memory")

    def _memory(self, memory_base: Expression | None, memory_size: Expression | None, what: str) -> None:
        """Memory, where there is one, consists of granules of the address space."""
        if memory_base is None or memory_size is None:
            return
        assert self._format is not None
        fmt = self._format
        base, size = (self._constant(part, what) for part in (memory_base, memory_size))
        granule = fmt.capability_bytes
        if base < 0 or size <= 0 or base + size > fmt.address_space:
            raise self._error(
                f"memory of {_short(size)} bytes at {_short(base)} isn't within the {fmt.address_width}-bit address space",
                memory_base.position,
            )
        if base % granule or size % granule:
            message = f"memory must start and end at a multiple of {granule} bytes, a capability's size in {fmt.name}"
            raise self._error(message, memory_base.position)

    def _operation_names(self) -> Iterable[str]:
        """What a statement can begin with, for a name that is none of it."""
        return OPERATIONS

    def _let(self, let: Let) -> None:
        if let.name in REGISTER_NUMBERS or let.name in RESERVED or not let.name.isidentifier():
            what = "a register" if let.name in REGISTER_NUMBERS else "a word of the language"
            reason = what if let.name.isidentifier() else "no plain name"
            raise self._error(f"`{let.name}` can't name a value: it is {reason}", let.position)
        if let.name in self._lets:
            line = self._lets[let.name].position.line
            raise self._error(f"`{let.name}` already has a value, from line {line}", let.position)
        if isinstance(let.value, Any):
            self._lets[let.name] = let
            if let.value.where is not None:
                self._condition(let.value.where, "`where` needs a condition")
                self._no_registers(let.value.where, "`where`")
        else:
            self._number(let.value, "a `let` names a number")
            self._no_registers(let.value, "a `let`")
            self._lets[let.name] = let

    def _initial(self, initial: Initial) -> None:
        if initial.register == 0:
            raise self._error("c0 is always NULL: nothing can be given for it", initial.position)
        if initial.register in self._started:
            raise self._error("a register is given twice", initial.position)
        self._started.add(initial.register)
        if self._has_begun:
            raise self._error("a `given` says what is there at the start: it comes before all operations", initial.position)
        for part in (initial.tag, initial.high, initial.address):
            self._number(part, "`given` needs numbers")
            self._no_registers(part, "`given`")

    def _no_registers(self, expression: Expression, where: str) -> None:
        for part in walk(expression):
            if isinstance(part, Register | FieldOf):
                raise self._error(
                    f"{where} can't read a register: its value is chosen before the program runs", part.position
                )

    def _constant(self, expression: Expression, where: str) -> int:
        self._number(expression, f"{where} needs a number")
        for part in walk(expression):
            if isinstance(part, Name | Register | FieldOf):
                raise self._error(f"{where} must be a constant", part.position)
        return constant(expression)

    # -- operations ----------------------------------------------------------------------------------------------------

    def _instruction(self, instruction: Instruction) -> None:
        assert self._format is not None
        self._has_begun = True
        row = OPERATIONS.get(instruction.name)
        if row is None:
            message = f"unknown operation `{instruction.name}`{suggest(instruction.name, self._operation_names())}"
            raise self._error(message, instruction.position)
        if row.minimum_xlen > self._format.address_width:
            width = self._format.address_width
            message = f"`{row.name}` needs a {row.minimum_xlen}-bit machine; {self._format.name} has {width} bits"
            raise self._error(message, instruction.position)
        if len(instruction.operands) != len(row.operands):
            expected, found = len(row.operands), len(instruction.operands)
            message = f"`{row.name}` takes `{row.syntax}`: {count(expected, 'operand')}, found {found}"
            if not (row.has_address_syntax and found == expected - 1):
                raise self._error(message, instruction.position)
        if row.has_address_syntax and not (instruction.has_address or instruction.has_address is None):
            message = f"`{row.name}` takes `{row.syntax}`: an address is an offset and a register, `0(c1)`"
            raise self._error(message, instruction.position)
        if instruction.has_address and not row.has_address_syntax:
            raise self._error(f"`{row.name}` takes `{row.syntax}`, and no address", instruction.position)
        for kind, operand in zip(row.operands, instruction.operands, strict=True):
            self._operand(row.name, row.syntax, kind, operand)
        self._expectations(instruction.expectations, row.all_traps)

    def _operand(self, name: str, syntax: str, kind: OperandKind, operand: Expression) -> None:
        assert self._format is not None
        if kind.is_register:
            if not isinstance(operand, Register):
                raise self._error(f"`{name}` takes `{syntax}`: `{kind.value}` must be a register", operand.position)
        elif kind is OperandKind.VALUE:
            self._number(operand, f"`{name}` needs a number")
            self._no_registers(operand, f"`{name}`")
        else:
            if isinstance(operand, Register):
                raise self._error(f"`{name}` takes `{syntax}`: `{kind.value}` must be a number", operand.position)
            if kind.names and isinstance(operand, Name):
                if operand.name not in kind.names:
                    known = suggest(operand.name, kind.names) or f": there are {listed(kind.names)}"
                    raise self._error(f"`{name}` knows no register `{operand.name}`{known}", operand.position)
                return
            value = self._constant(operand, f"the immediate of `{name}`")
            low, high = kind.immediate_range(self._format.address_width)
            if not low <= value <= high:
                raise self._error(
                    f"{_short(value)} doesn't fit the immediate of `{name}`: {low} to {high}", operand.position
                )
            if value % kind.alignment:
                raise self._error(
                    f"the offset of `{name}` must be even: instructions are at even addresses", operand.position
                )

    def _expectations(self, expectations: tuple[Expectation, ...], traps: tuple[str, ...]) -> None:
        for index, expectation in enumerate(expectations):
            if expectation.cause not in CAUSES_BY_NAME:
                message = f"unknown trap cause `{expectation.cause}`{suggest(expectation.cause, CAUSES_BY_NAME)}"
                raise self._error(message, expectation.position)
            if expectation.cause not in traps:
                known = f"it can give {', '.join(traps)}"
                raise self._error(f"this operation never gives {expectation.cause}: {known}", expectation.position)
            if expectation.when is not None:
                self._condition(expectation.when, "`when` needs a condition")
            elif index != len(expectations) - 1:
                raise self._error("nothing can follow a `!trap` without `when`", expectations[index + 1].position)

    def _value_names(self) -> Iterable[str]:
        """The names that stand for numbers."""
        return self._lets

    # -- types -----------------------------------------------------------------------------------------------------------

    def _condition(self, expression: Expression, what: str) -> None:
        if not self._is_condition(expression):
            raise self._error(f"{what}, found a number", expression.position)

    def _number(self, expression: Expression, what: str) -> None:
        if self._is_condition(expression):
            raise self._error(f"{what}, found a condition", expression.position)

    def _is_condition(self, expression: Expression) -> bool:
        """Whether an expression is a condition rather than a number. Raises for what is neither."""
        match expression:
            case Truth():
                return True
            case Integer() | Register():
                return False
            case Name(name):
                known = self._value_names()
                if name not in known:
                    raise self._error(
                        f"`{name}` has no value{suggest(name, known) or ': no `let` names it'}",
                        expression.position,
                    )
                return False
            case FieldOf(_, name):
                if name not in FIELDS:
                    message = f"a capability has no field `{name}`{suggest(name, FIELDS) or f': it has {listed(FIELDS)}'}"
                    raise self._error(message, expression.position)
                return FIELDS[name].is_condition
            case Element():
                return self._element(expression)
            case Unary(Operator.NOT, operand):
                self._condition(operand, "`not` needs a condition")
                return True
            case Unary(operator, operand):
                self._number(operand, f"`{operator.value}` needs a number")
                return False
            case Binary(operator, left, right) if operator in _LOGICAL:
                for side in (left, right):
                    self._condition(side, f"`{operator.value}` needs conditions")
                return True
            case Binary(operator, left, right) if operator in _EQUALITY:
                if self._is_condition(left) != self._is_condition(right):
                    raise self._error(f"`{operator.value}` compares a condition with a number", expression.position)
                return True
            case Binary(operator, left, right):
                for side in (left, right):
                    self._number(side, f"`{operator.value}` needs numbers")
                if operator in _SHIFTS:
                    distance = self._constant(right, "a shift's distance")
                    if not 0 <= distance <= MAXIMUM_SHIFT:
                        raise self._error(f"a shift's distance is 0 to {MAXIMUM_SHIFT}", right.position)
                return operator in _ORDER

    def _element(self, element: Element) -> bool:
        """Whether a row of a table is a condition."""
        raise self._error(f"there is no table `{element.name}` here", element.position)


def _short(number: int) -> str:
    """A number for a message, however long it is."""
    text = str(number) if abs(number) < 1 << 20 else hex(number)
    return text if len(text) <= 40 else f"{text[:20]}...{text[-8:]}"


def suggest(word: str, known: Iterable[str]) -> str:
    """The known word that is meant, for the end of a message; nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(names)


def count(number: int, noun: str) -> str:
    """So many of something, in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
