"""The typed tree of a program. Positions are carried along, and don't count when trees are compared."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True)
class Position:
    """Where something stands in its source; lines and columns count from 1."""

    line: int = 0
    column: int = 0


def _position() -> Position:
    return field(default_factory=Position, compare=False, repr=False)


class Operator(Enum):
    """Operators, by the symbol or word that writes them."""

    IMPLIES = "implies"
    OR = "or"
    AND = "and"
    NOT = "not"
    EQUAL = "=="
    NOT_EQUAL = "!="
    LESS_EQUAL = "<="
    GREATER_EQUAL = ">="
    LESS = "<"
    GREATER = ">"
    BIT_OR = "|"
    BIT_XOR = "^"
    BIT_AND = "&"
    SHIFT_LEFT = "<<"
    SHIFT_RIGHT = ">>"
    ADD = "+"
    SUBTRACT = "-"
    MULTIPLY = "*"
    INVERT = "~"


@dataclass(frozen=True)
class Integer:
    """A number as it was written: `0x10`, `64K`."""

    text: str
    position: Position = _position()

    @property
    def value(self) -> int:
        digits, factor = self.text, 1
        if not digits.startswith("0x") and digits[-1] in "KMG":
            factor = 1024 ** ("KMG".index(digits[-1]) + 1)
            digits = digits[:-1]
        if digits.startswith(("0x", "0b")):
            return int(digits, 0)
        return int(digits) * factor


@dataclass(frozen=True)
class Truth:
    """`true` or `false`."""

    value: bool
    position: Position = _position()


@dataclass(frozen=True)
class Name:
    """A value that a `let` names."""

    name: str
    position: Position = _position()


@dataclass(frozen=True)
class Register:
    """A register, in an expression: the integer in it."""

    number: int
    is_capability: bool
    """Whether it was written as a capability's register (`c5`); as an operand, the operation's table decides."""
    position: Position = field(default_factory=Position, compare=False, repr=False)


@dataclass(frozen=True)
class FieldOf:
    """A field of the capability in a register: `c5.base`."""

    register: int
    name: str
    position: Position = _position()


@dataclass(frozen=True)
class Unary:
    operator: Operator
    operand: "Expression"
    position: Position = _position()


@dataclass(frozen=True)
class Binary:
    operator: Operator
    left: "Expression"
    right: "Expression"
    position: Position = _position()


@dataclass(frozen=True)
class Element:
    """A row of a table of the system: `tag[5]`, `memory[5, 0]`."""

    name: str
    indices: tuple["Expression", ...]
    position: Position = _position()


Expression = Integer | Truth | Name | Register | FieldOf | Unary | Binary | Element


@dataclass(frozen=True)
class Any:
    """A value of `bits` bits that stands for all that satisfy the condition."""

    bits: int
    where: Expression | None = None
    position: Position = _position()


@dataclass(frozen=True)
class Let:
    """A name for a value."""

    name: str
    value: Any | Expression
    position: Position = _position()


@dataclass(frozen=True)
class Initial:
    """What a register holds at the start: the tag (0 or not), the upper half as in memory, the address."""

    register: int
    tag: Expression
    high: Expression
    address: Expression
    position: Position = _position()


@dataclass(frozen=True)
class Machine:
    """The machine that a program runs on; memory of size 0 is none."""

    format: str
    memory_base: Expression | None = None
    memory_size: Expression | None = None
    roots: tuple[int, ...] = ()
    position: Position = _position()


@dataclass(frozen=True)
class Expectation:
    """A trap that an operation must give, always or exactly when a condition holds before it."""

    cause: str
    when: Expression | None = None
    position: Position = _position()


@dataclass(frozen=True)
class Instruction:
    """An operation with its operands in the order of its syntax: register numbers as Register, all else as expressions.

    `has_address` says whether the last two were written as an address, where it was written at all.
    """

    name: str
    operands: tuple[Expression, ...]
    expectations: tuple[Expectation, ...] = ()
    has_address: bool | None = field(default=None, compare=False)
    position: Position = _position()


@dataclass(frozen=True)
class Assert:
    condition: Expression
    position: Position = _position()


# -- systems ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A key that is written as text."""

    text: str
    position: Position = _position()


@dataclass(frozen=True)
class Region:
    """A compartment: its name and size, where it is if that is said, what it is nested in, and the kind of its code."""

    name: str
    size: Expression
    at: Expression | None = None
    outer: str | None = None
    is_purecap: bool = False
    position: Position = _position()


@dataclass(frozen=True)
class Guest:
    """A virtual machine: the frames that it has at the start, the first and the last, its vCPUs, what guest it runs.

    It is plain, not enlightened; mapped, it starts with tables that map its frames.
    """

    name: str
    first: Expression
    last: Expression
    vcpus: Expression | None = None
    is_plain: bool = False
    is_mapped: bool = False
    position: Position = _position()


@dataclass(frozen=True)
class Setting:
    """A number of the system's: `frames 64`."""

    name: str
    value: Expression
    position: Position = _position()


@dataclass(frozen=True)
class Tenant:
    """A tenant of shared objects."""

    name: str
    position: Position = _position()


@dataclass(frozen=True)
class Word:
    """A word of an object's data: a global, which each tenant has for itself, or a constant, which all share."""

    name: str
    value: Expression
    is_global: bool = True
    position: Position = _position()


@dataclass(frozen=True)
class Export:
    """A place of an object's code at which it can be entered: its start, where nothing is said."""

    name: str
    at: Expression | None = None
    position: Position = _position()


@dataclass(frozen=True)
class Relocation:
    """An entry of an object's table: the kind, and the export or word that it is for."""

    kind: str
    name: str
    position: Position = _position()


ObjectItem = Setting | Word | Export | Relocation


@dataclass(frozen=True)
class Object:
    """The file of an object, as every tenant knows it."""

    name: str
    items: tuple[ObjectItem, ...] = ()
    position: Position = _position()


@dataclass(frozen=True)
class Span:
    """Numbers from the first to the last: `region 16..47`."""

    name: str
    first: Expression
    last: Expression
    position: Position = _position()


@dataclass(frozen=True)
class Part:
    """A device or an extension of a system: `storage disk { encrypt 0..9 }`."""

    kind: str
    name: str
    items: tuple[Setting | Span, ...] = ()
    position: Position = _position()


@dataclass(frozen=True)
class System:
    """A system of compartments under a monitor: what there is at the start, and the monitor's policy.

    Without memory it has that of `DEFAULT_MEMORY`. The guards in `without` are off.
    """

    kind: str
    format: str | None = None
    memory_base: Expression | None = None
    memory_size: Expression | None = None
    policy: str | None = None
    without: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    guests: tuple[Guest, ...] = ()
    settings: tuple[Setting, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    objects: tuple[Object, ...] = ()
    spans: tuple[Span, ...] = ()
    parts: tuple[Part, ...] = ()
    layers: tuple["System", ...] = ()
    """Systems that share one machine."""
    position: Position = _position()


@dataclass(frozen=True)
class Agent:
    """A thread, by the compartment that it belongs to and its number there; `alice` is `alice/1`."""

    name: str
    thread: int = 1
    position: Position = _position()


@dataclass(frozen=True)
class Result:
    """What a call answers: `ok`, or the reason for which it is refused; or until which refusal it is repeated."""

    code: str
    is_repeated: bool = False
    position: Position = _position()


@dataclass(frozen=True)
class Fault:
    """A fault that an operation must give, and a field of it: `tag frame 9`, `page code 2`."""

    kind: str
    field: str | None = None
    value: Expression | None = None
    position: Position = _position()


@dataclass(frozen=True)
class Call:
    """A call of the monitor, or another operation of a system, with its arguments in the order of the kind's table."""

    name: str
    operands: tuple[Expression | Text, ...] = ()
    result: Result | None = None
    fault: Fault | None = None
    position: Position = _position()


@dataclass(frozen=True)
class Enter:
    """The first part of a call alone; or, with no operands, the invocation of the outer compartment of that name."""

    name: str
    operands: tuple[Expression | Text, ...] = ()
    position: Position = _position()


@dataclass(frozen=True)
class Leave:
    """The second part of a call."""

    result: Result | None = None
    position: Position = _position()


@dataclass(frozen=True)
class By:
    """What an agent does."""

    agent: Agent
    action: Instruction | Assert | Call | Enter | Leave
    position: Position = _position()


@dataclass(frozen=True)
class Create:
    """The deployer creates a compartment, which starts with one thread."""

    region: Region
    result: Result | None = None
    position: Position = _position()


@dataclass(frozen=True)
class Destroy:
    """The deployer ends a compartment."""

    name: str
    result: Result | None = None
    position: Position = _position()


@dataclass(frozen=True)
class Violates:
    """The invariants that the program violates; without such a line, none."""

    names: tuple[str, ...]
    position: Position = _position()


@dataclass(frozen=True)
class Measured:
    """How much of something the last walk took: `walk refs 4`."""

    field: str
    value: Expression
    position: Position = _position()


Statement = Machine | Let | Initial | Instruction | Assert | System | By | Create | Destroy | Violates | Measured


@dataclass(frozen=True)
class Line:
    """A line of source: its statement and its comment (with the #), where it has them."""

    statement: Statement | None = None
    comment: str | None = None


@dataclass(frozen=True)
class Program:
    """A program, and what it is called in messages (its file)."""

    lines: tuple[Line, ...]
    source: str = field(default="<program>", compare=False)
    text: str = field(default="", compare=False, repr=False)

    @property
    def statements(self) -> Iterator[Statement]:
        return (line.statement for line in self.lines if line.statement is not None)

    @property
    def machine(self) -> Machine:
        """The machine; a checked program has exactly one."""
        return next(statement for statement in self.statements if isinstance(statement, Machine))

    @property
    def system(self) -> System | None:
        """The system, where the program is about one."""
        return next((statement for statement in self.statements if isinstance(statement, System)), None)

    @property
    def setup(self) -> Machine | System:
        """What the program runs on."""
        return self.system or self.machine

    @property
    def lets(self) -> Iterator[Let]:
        return (statement for statement in self.statements if isinstance(statement, Let))

    @property
    def initials(self) -> Iterator[Initial]:
        return (statement for statement in self.statements if isinstance(statement, Initial))


def walk(expression: Expression) -> Iterator[Expression]:
    """The expression and all that it is made of."""
    yield expression
    if isinstance(expression, Unary):
        yield from walk(expression.operand)
    elif isinstance(expression, Binary):
        yield from walk(expression.left)
        yield from walk(expression.right)
    elif isinstance(expression, Element):
        for index in expression.indices:
            yield from walk(index)
