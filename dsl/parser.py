"""From text to the typed tree."""

import re
from functools import cache
from importlib import resources
from typing import Any as AnyType

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken, v_args
from lark.exceptions import VisitError

from capvisor.dsl import syntax
from capvisor.dsl.check import check
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.syntax import Operator, Position, Program
from capvisor.spec.registers import REGISTER_NUMBERS

MAXIMUM_NESTING = 100
MAXIMUM_OPERATORS = 150
MAXIMUM_DIGITS = 400
"""How deep parentheses may nest, how many operators a line and how many digits a number may have: more than any program
needs, and little enough for Python's stack and for messages."""


def parse(text: str, source: str = "<program>") -> Program:
    """Parse and check a program. Raises ProgramError, which says where and what was expected."""
    program = parse_unchecked(text, source)
    check(program)
    return program


def parse_unchecked(text: str, source: str = "<program>") -> Program:
    """Parse a program without looking at names, types and ranges. Raises ProgramError for what isn't grammar."""
    _refuse_excess(text, source)
    try:
        tree = _parser().parse(text + "\n")
    except UnexpectedInput as error:
        raise _syntax_error(error, text, source) from None
    try:
        program: Program = _ToSyntax(source, text).transform(tree)
    except VisitError as error:
        if isinstance(error.orig_exc, ProgramError):
            raise error.orig_exc from None
        raise
    return program


@cache
def _parser() -> Lark:
    grammar = resources.files("capvisor.dsl").joinpath("grammar.lark").read_text()
    names = sorted(REGISTER_NUMBERS, key=len, reverse=True)
    grammar = grammar.replace("/REGISTERS\\b/", f"/({'|'.join(names)})\\b/")
    return Lark(grammar, parser="lalr", lexer="contextual", propagate_positions=True, maybe_placeholders=True)


def _refuse_excess(text: str, source: str) -> None:
    depth = 0
    for number, line in enumerate(text.split("\n"), start=1):
        code = line.split("#")[0]
        for column, character in enumerate(code, start=1):
            depth += (character == "(") - (character == ")")
            if depth > MAXIMUM_NESTING:
                raise ProgramError(f"parentheses nest deeper than {MAXIMUM_NESTING}", Position(number, column), source, text)
        if len(_OPERATOR.findall(code)) > MAXIMUM_OPERATORS:
            raise ProgramError(f"more than {MAXIMUM_OPERATORS} operators in one line", Position(number, 1), source, text)
        if re.search(rf"\w{{{MAXIMUM_DIGITS}}}", code):
            raise ProgramError(f"a word of more than {MAXIMUM_DIGITS} characters", Position(number, 1), source, text)


_OPERATOR = re.compile(r"\b(?:and|or|not|implies)\b|<<|>>|[-+*~|^&]")

# What a reader would call the terminals, for "expected ...".
_TERMINALS = {
    "_NEWLINE": "end of line",
    "NAME": "a name",
    "REGISTER": "a register",
    "INTEGER": "a number",
}
_OPERATORS = {
    *("COMPARISON", "SHIFT", "SIGN", "AND", "OR", "IMPLIES", "STAR", "VBAR", "CIRCUMFLEX", "AMPERSAND"),
    *("NOT", "TILDE", "TRUTH", "DOT"),
}

# Programs with one typical mistake each; an error is known by the state in which the parser got stuck.
_EXAMPLES: dict[str, list[str]] = {
    "missing `,` after {previous}": [
        "csetaddr c2 c1, x5",
        "csetaddr c2, c1 x5",
        "csetaddr c2, c1, x5 x6",
        "li x5 1",
        "csetaddr c2, c1 1",
        "li x5, 1 2",
    ],
    "missing `)`": ["assert (1 == 1\n", "cld x1, 0(c1\n", "cld x1, 0(c1 !trap A"],
    "missing operand after `,`": ["csetaddr c2,\n", "csetaddr c2, , x5", "csetaddr c2, c1,\n"],
    "missing `=` after the name": ["let x any u64", "let x 5", "let x\n"],
    "missing name after `let`": ["let = 5", "let\n"],
    "missing `{` after the machine's format": ["machine cc128 memory 0 size 1", "machine cc128\n"],
    "a comparison is `==`; `=` gives a value to a `let`": ["assert x5 = 5", "assert c1.base = 5", "assert 1 + 1 = 2"],
    "comparisons don't chain (write `a < b and b < c`)": ["assert 1 < 2 < 3", "assert 1 == 2 == 3"],
    "missing cause after `!trap`": ["cmove c1, c2 !trap\n", "cmove c1, c2 !trap 5", "cmove c1 !trap\n"],
    "missing condition after `when`": ["cmove c1, c2 !trap A when\n"],
    "missing condition after `assert`": ["assert\n"],
    "missing type after `any`": ["let x = any\n", "let x = any 5"],
    "missing condition after `where`": ["let x = any u64 where\n"],
    "missing value after `=`": ["let x =\n"],
    "missing operand of {previous}": [
        "assert 1 +\n",
        "assert 1 + * 2",
        "assert 1 <\n",
        "assert 1 ==\n",
        "assert true and\n",
        "assert true or\n",
        "assert true implies\n",
        "assert not\n",
        "assert 1 *\n",
        "assert 1 <<\n",
        "assert 1 &\n",
        "assert 1 |\n",
        "assert 1 ^\n",
        "assert ~\n",
        "assert -\n",
    ],
    "missing field after `.`": ["assert c1.\n"],
    "a `given` register is `capability(TAG, HIGH, ADDRESS)`": [
        "given c1 = 5",
        "given c1 = root",
        "given c1 = capability\n",
        "given c1 = capability(1)",
        "given c1 = capability(1, 2)",
        "given c1 = capability(1, 2, 3, 4)",
        "given c1 capability(1, 2, 3)",
        "given x = capability(1, 2, 3)",
    ],
}


# The same within the machine's braces, where the parser's states are shared with other places.
_MACHINE_EXAMPLES: dict[str, list[str]] = {
    "missing `size` and the memory's size": ["machine cc128 { memory 0 }", "machine cc128 { memory 0; c1 = root }"],
    "missing `;` between the machine's parts": [
        "machine cc128 { memory 0 size 1 c1 = root }",
        "machine cc128 { c1 = root c2 = root }",
    ],
    "a register of the machine starts as `root`": ["machine cc128 { c1 = 5 }", "machine cc128 { c1 = other }"],
    "a comment can't stand within the machine's braces": [
        "machine cc128 { # x",
        "machine cc128 { c1 = root # x",
        "machine cc128 { c1 = root\n # x",
        "machine cc128 { memory 0 size 1 # x",
    ],
}


def _syntax_error(error: UnexpectedInput, text: str, source: str) -> ProgramError:
    """Lark's error, in the words of the language."""
    position = Position(max(error.line, 1), max(error.column, 1))
    if isinstance(error, UnexpectedCharacters):
        return ProgramError(f"unexpected character `{error.char}`", position, source, text)
    assert isinstance(error, UnexpectedToken)
    at_end = error.token.type in ("_NEWLINE", "$END")
    found = "end of line" if at_end else f"`{error.token}`"
    if error.token.type == "$END":
        position = Position(len(text.split("\n")), len(text.rsplit("\n", maxsplit=1)[-1]) + 1)
    lines = text.split("\n")
    before = "\n".join([*lines[: position.line - 1], lines[position.line - 1][: position.column - 1]])
    in_machine = before.count("{") > before.count("}")
    known = _known_mistake(error, _MACHINE_EXAMPLES if in_machine else _EXAMPLES)
    if known is not None:
        history = error.token_history
        previous = f"`{history[-1]}`" if history else "this"
        return ProgramError(f"{known.replace('{previous}', previous)}: found {found}", position, source, text)
    expected = error.accepts or error.expected
    names = [_TERMINALS.get(name, _terminal_text(name)) for name in sorted(expected - _OPERATORS - {"COMMENT", "$END"})]
    if len(expected & _OPERATORS) > 1:
        names.append("an expression's next part")
    return ProgramError(f"found {found}, expected {_either(names)}", position, source, text)


def _known_mistake(error: UnexpectedToken, examples: dict[str, list[str]]) -> str | None:
    """The mistake whose example gets stuck in the same state of the parser, best on the same kind of token."""
    stuck = [(label, each) for label, texts in examples.items() for text in texts for each in _stuck(text)]
    same = [(label, each) for label, each in stuck if each.state == error.state]
    exact = [label for label, each in same if each.token.type == error.token.type]
    return next(iter([*exact, *(label for label, _each in same)]), None)


@cache
def _stuck(example: str) -> list[UnexpectedToken]:
    """The errors of an example: the parser's state tells the first line, the second and later ones apart."""
    errors = []
    for before in ("", "\n", "\n\n"):
        try:
            _parser().parse(before + example)
        except UnexpectedToken as error:
            errors.append(error)
    return errors


def _terminal_text(name: str) -> str:
    for terminal in _parser().terminals:
        if terminal.name == name and terminal.pattern.type == "str":
            return f"`{terminal.pattern.value}`"
    return name


def _either(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def _at(meta: AnyType) -> Position:
    return Position(meta.line, meta.column)


def _token_at(token: Token) -> Position:
    return Position(token.line or 0, token.column or 0)


@v_args(meta=True)
class _ToSyntax(Transformer[Token, Program]):
    """Lark's tree to ours, one method a rule of the grammar."""

    def __init__(self, source: str, text: str) -> None:
        super().__init__()
        self._source, self._text = source, text

    def start(self, meta: AnyType, lines: list[syntax.Line]) -> Program:
        while lines and lines[-1] == syntax.Line():
            lines.pop()  # the newline at the end, and blank lines there
        return Program(tuple(lines), self._source, self._text)

    def line(self, meta: AnyType, children: list[AnyType]) -> syntax.Line:
        statement, comment = children
        return syntax.Line(statement, None if comment is None else str(comment).rstrip())

    def machine(self, meta: AnyType, children: list[AnyType]) -> syntax.Machine:
        name, items = children[0], children[1:]
        memories = [item for item in items if isinstance(item, tuple)]
        roots = [item for item in items if isinstance(item, int)]
        if len(memories) > 1:
            raise ProgramError("a machine has one memory", _at(meta), self._source, self._text)
        base, size = memories[0] if memories else (None, None)
        return syntax.Machine(str(name), base, size, tuple(roots), _at(meta))

    def memory(self, meta: AnyType, children: list[AnyType]) -> tuple[AnyType, AnyType]:
        return children[0], children[1]

    def initial(self, meta: AnyType, children: list[Token]) -> int:
        return REGISTER_NUMBERS[str(children[0])]

    def let(self, meta: AnyType, children: list[AnyType]) -> syntax.Let:
        return syntax.Let(str(children[0]), children[1], _token_at(children[0]))

    def given(self, meta: AnyType, children: list[AnyType]) -> syntax.Initial:
        register = self._register(children[0])
        _register, tag, high, address = children
        return syntax.Initial(register.number, tag, high, address, _token_at(children[0]))

    def any(self, meta: AnyType, children: list[AnyType]) -> syntax.Any:
        name, where = children
        match = re.fullmatch(r"u(\d{1,3})", str(name))
        if match is None or not 1 <= int(match[1]) <= 64:
            message = f"unknown type `{name}`: expected u1 to u64, an unsigned number of so many bits"
            raise ProgramError(message, _token_at(name), self._source, self._text)
        return syntax.Any(int(match[1]), where, _token_at(name))

    def assertion(self, meta: AnyType, children: list[AnyType]) -> syntax.Assert:
        return syntax.Assert(children[0], _at(meta))

    def instruction(self, meta: AnyType, children: list[AnyType]) -> syntax.Instruction:
        name, rest = children[0], [child for child in children[1:] if child is not None]
        expectations = tuple(child for child in rest if isinstance(child, syntax.Expectation))
        written = [child for child in rest if not isinstance(child, syntax.Expectation)]
        addresses = [isinstance(child, list) for child in written]
        if any(addresses[:-1]):
            raise ProgramError("an address `0(c1)` is the last operand, or none", _token_at(name), self._source, self._text)
        operands: list[syntax.Expression] = []
        for child in written:
            operands += child if isinstance(child, list) else [child]
        return syntax.Instruction(str(name), tuple(operands), expectations, any(addresses), _token_at(name))

    def address(self, meta: AnyType, children: list[AnyType]) -> list[syntax.Expression]:
        return [children[0], self._register(children[1])]

    def expectation(self, meta: AnyType, children: list[AnyType]) -> syntax.Expectation:
        return syntax.Expectation(str(children[0]), children[1], _token_at(children[0]))

    def _register(self, token: Token) -> syntax.Register:
        return syntax.Register(REGISTER_NUMBERS[str(token)], token.startswith("c"), _token_at(token))

    def _binary(self, meta: AnyType, operator: Operator, children: list[AnyType]) -> syntax.Binary:
        return syntax.Binary(operator, children[0], children[-1], _at(meta))

    def implies(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator.IMPLIES, children)

    def or_(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator.OR, children)

    def and_(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator.AND, children)

    def not_(self, meta: AnyType, children: list[AnyType]) -> syntax.Unary:
        return syntax.Unary(Operator.NOT, children[0], _at(meta))

    def compare(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator(str(children[1])), children)

    def bit_or(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator.BIT_OR, children)

    def bit_xor(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator.BIT_XOR, children)

    def bit_and(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator.BIT_AND, children)

    def shift(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator(str(children[1])), children)

    def sum(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator(str(children[1])), children)

    def product(self, meta: AnyType, children: list[AnyType]) -> syntax.Binary:
        return self._binary(meta, Operator.MULTIPLY, children)

    def sign(self, meta: AnyType, children: list[AnyType]) -> syntax.Expression:
        if children[0] == "+":
            operand: syntax.Expression = children[1]
            return operand
        return syntax.Unary(Operator.SUBTRACT, children[1], _at(meta))

    def invert(self, meta: AnyType, children: list[AnyType]) -> syntax.Unary:
        return syntax.Unary(Operator.INVERT, children[0], _at(meta))

    def integer(self, meta: AnyType, children: list[Token]) -> syntax.Integer:
        return syntax.Integer(str(children[0]), _token_at(children[0]))

    def truth(self, meta: AnyType, children: list[Token]) -> syntax.Truth:
        return syntax.Truth(children[0] == "true", _token_at(children[0]))

    def name(self, meta: AnyType, children: list[Token]) -> syntax.Name:
        return syntax.Name(str(children[0]), _token_at(children[0]))

    def register(self, meta: AnyType, children: list[Token]) -> syntax.Register:
        return self._register(children[0])

    def field(self, meta: AnyType, children: list[Token]) -> syntax.FieldOf:
        register = REGISTER_NUMBERS[str(children[0])]
        return syntax.FieldOf(register, str(children[1]), _token_at(children[0]))
