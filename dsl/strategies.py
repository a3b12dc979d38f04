"""Hypothesis strategies for programs: any that the language can say, correct by construction.

`programs()` draws whole programs that pass `dsl.check`; they are meant for testing tools of the language. Their
assertions and expectations are arbitrary, so most of them fail when they are run.
"""

from hypothesis import strategies as st

from capvisor.dsl import syntax
from capvisor.dsl.fields import FIELDS
from capvisor.dsl.syntax import Expression, Operator
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.operations import OPERATIONS, OperandKind, Operation
from capvisor.spec.registers import REGISTER_COUNT

NAMES = ("off", "len", "value", "where_to")
_NUMBER_OPERATORS = (
    *(Operator.ADD, Operator.SUBTRACT, Operator.MULTIPLY),
    *(Operator.BIT_AND, Operator.BIT_OR, Operator.BIT_XOR),
)
_COMPARISONS = (
    *(Operator.EQUAL, Operator.NOT_EQUAL, Operator.LESS),
    *(Operator.LESS_EQUAL, Operator.GREATER, Operator.GREATER_EQUAL),
)

registers = st.integers(0, REGISTER_COUNT - 1)


@st.composite
def integers(draw: st.DrawFn) -> syntax.Integer:
    """A literal, written in any of the ways there are."""
    number = draw(st.integers(0, 2**65))
    kind = draw(st.sampled_from(["decimal", "hexadecimal", "binary", "K", "M", "G"]))
    if kind in ("K", "M", "G"):
        return syntax.Integer(f"{number % 4096}{kind}")
    return syntax.Integer({"decimal": f"{number}", "hexadecimal": hex(number), "binary": bin(number)}[kind])


def numbers(names: tuple[str, ...], *, with_registers: bool) -> st.SearchStrategy[Expression]:
    """Expressions that are numbers."""
    leaves: list[st.SearchStrategy[Expression]] = [integers()]
    if names:
        leaves.append(st.sampled_from(names).map(syntax.Name))
    if with_registers:
        leaves.append(st.builds(syntax.Register, registers, st.booleans()))
        fields = [name for name, row in FIELDS.items() if not row.is_condition]
        leaves.append(st.builds(syntax.FieldOf, registers, st.sampled_from(fields)))

    def extend(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        return st.one_of(
            st.builds(syntax.Unary, st.sampled_from([Operator.SUBTRACT, Operator.INVERT]), inner),
            st.builds(syntax.Binary, st.sampled_from(_NUMBER_OPERATORS), inner, inner),
            st.builds(
                syntax.Binary,
                st.sampled_from([Operator.SHIFT_LEFT, Operator.SHIFT_RIGHT]),
                inner,
                st.integers(0, 70).map(lambda distance: syntax.Integer(str(distance))),
            ),
        )

    return st.recursive(st.one_of(leaves), extend, max_leaves=6)


def conditions(names: tuple[str, ...], *, with_registers: bool) -> st.SearchStrategy[Expression]:
    """Expressions that are conditions."""
    inner = numbers(names, with_registers=with_registers)
    leaves: list[st.SearchStrategy[Expression]] = [
        st.builds(syntax.Truth, st.booleans()),
        st.builds(syntax.Binary, st.sampled_from(_COMPARISONS), inner, inner),
    ]
    if with_registers:
        fields = [name for name, row in FIELDS.items() if row.is_condition]
        leaves.append(st.builds(syntax.FieldOf, registers, st.sampled_from(fields)))

    def extend(part: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        return st.one_of(
            st.builds(syntax.Unary, st.just(Operator.NOT), part),
            st.builds(
                syntax.Binary,
                st.sampled_from([Operator.AND, Operator.OR, Operator.IMPLIES, Operator.EQUAL, Operator.NOT_EQUAL]),
                part,
                part,
            ),
        )

    return st.recursive(st.one_of(leaves), extend, max_leaves=5)


@st.composite
def instructions(draw: st.DrawFn, fmt: CapabilityFormat, names: tuple[str, ...] = ()) -> syntax.Instruction:
    """An operation of the table with operands that fit it, and expectations that it could meet."""
    row = draw(st.sampled_from([row for row in OPERATIONS.values() if row.minimum_xlen <= fmt.address_width]))
    operands = tuple(draw(_operand(kind, fmt, names)) for kind in row.operands)
    return syntax.Instruction(row.name, operands, draw(_expectations(row, names)))


def _operand(kind: OperandKind, fmt: CapabilityFormat, names: tuple[str, ...]) -> st.SearchStrategy[Expression]:
    if kind.is_register:
        return st.builds(syntax.Register, registers, st.just(kind.is_capability))
    if kind is OperandKind.VALUE:
        return numbers(names, with_registers=False)
    low, high = kind.immediate_range(fmt.address_width)
    literals = st.integers(low // kind.alignment, high // kind.alignment).map(lambda count: _literal(count * kind.alignment))
    return st.one_of(st.sampled_from(sorted(kind.names)).map(syntax.Name), literals) if kind.names else literals


def _literal(number: int) -> Expression:
    digits = syntax.Integer(str(abs(number)))
    return syntax.Unary(Operator.SUBTRACT, digits) if number < 0 else digits


@st.composite
def _expectations(draw: st.DrawFn, row: Operation, names: tuple[str, ...]) -> tuple[syntax.Expectation, ...]:
    causes = st.sampled_from(row.all_traps)
    found = [
        syntax.Expectation(draw(causes), draw(conditions(names, with_registers=True)))
        for _ in range(draw(st.integers(0, 2)))
    ]
    if draw(st.booleans()):
        found.append(syntax.Expectation(draw(causes)))
    return tuple(found)


@st.composite
def machines(draw: st.DrawFn) -> syntax.Machine:
    """A machine of any format, with or without memory and roots."""
    fmt = draw(st.sampled_from(list(FORMATS.values())))
    roots = tuple(draw(st.lists(st.integers(1, REGISTER_COUNT - 1), unique=True, max_size=3)))
    if draw(st.booleans()):
        return syntax.Machine(fmt.name, roots=roots)
    granules = draw(st.integers(1, 256))
    base = draw(st.integers(0, (fmt.address_space - 1) // fmt.capability_bytes - 256)) * fmt.capability_bytes
    size = syntax.Integer(hex(granules * fmt.capability_bytes))
    return syntax.Machine(fmt.name, syntax.Integer(hex(base)), size, roots)


comments = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=" "), max_size=20).map(
    lambda text: f"# {text}".rstrip()
)


@st.composite
def programs(draw: st.DrawFn, max_lines: int = 12) -> syntax.Program:
    """A program that passes `dsl.check`: a machine, then values, operations and assertions in any order."""
    machine = draw(machines())
    fmt, names = FORMATS[machine.format], list(NAMES)
    known: tuple[str, ...] = ()
    given, begun = set(machine.roots), False
    lines = [syntax.Line(None, draw(st.none() | comments)), syntax.Line(machine, draw(st.none() | comments))]
    for _ in range(draw(st.integers(0, max_lines))):
        statement: syntax.Statement | None
        kind = draw(st.sampled_from(["given", "let", "instruction", "assert", "nothing"]))
        if kind == "given" and not begun and len(given) < REGISTER_COUNT - 4:
            register = draw(st.integers(1, REGISTER_COUNT - 1).filter(lambda number: number not in given))
            given.add(register)
            tag, high, address = (draw(numbers(known, with_registers=False)) for _ in range(3))
            statement = syntax.Initial(register, tag, high, address)
        elif kind == "let" and names:
            name = names.pop()
            where = conditions((*known, name), with_registers=False)
            any_value = st.builds(syntax.Any, st.integers(1, 64), st.none() | where)
            statement = syntax.Let(name, draw(any_value | numbers(known, with_registers=False)))
            known = (*known, name)
        elif kind == "assert":
            statement = syntax.Assert(draw(conditions(known, with_registers=True)))
        elif kind == "instruction":
            statement, begun = draw(instructions(fmt, known)), True
        else:
            statement = None
        lines.append(syntax.Line(statement, draw(st.none() | comments)))
    return syntax.Program(tuple(_one_blank_line_at_most(lines)))


def _one_blank_line_at_most(lines: list[syntax.Line]) -> list[syntax.Line]:
    """What the printer leaves: no two blank lines in a row, none at the beginning or end."""
    blank, kept = syntax.Line(), list[syntax.Line]()
    for line in lines:
        if line != blank or (kept and kept[-1] != blank):
            kept.append(line)
    while kept and kept[-1] == blank:
        kept.pop()
    return kept
