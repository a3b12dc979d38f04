"""From text to the typed tree."""

import re
from functools import cache, partial
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
"""How deep parentheses and operators may nest: enough for any program, and little enough for Python's stack."""


def parse(text: str, source: str = "<program>") -> Program:
    """Parse and check a program. Raises ProgramError, which says where and what was expected."""
    program = parse_unchecked(text, source)
    check(program)
    return program


def parse_unchecked(text: str, source: str = "<program>") -> Program:
    """Parse a program without looking at names, types and ranges. Raises ProgramError for what isn't grammar."""
    _refuse_deep_nesting(text, source)
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


def _refuse_deep_nesting(text: str, source: str) -> None:
    depth = 0
    for number, line in enumerate(text.split("\n"), start=1):
        code = line.split("#")[0]
        for column, character in enumerate(code, start=1):
            depth += (character == "(") - (character == ")")
            if depth > MAXIMUM_NESTING:
                raise ProgramError(f"parentheses nest deeper than {MAXIMUM_NESTING}", Position(number, column), source, text)
        operators = len(re.findall(r"[-~]|\bnot\b", code))
        if operators > 5 * MAXIMUM_NESTING:
            raise ProgramError("too many operators in one line", Position(number, 1), source, text)


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
    "missing `}` at the end of the machine": ["machine cc128 { c1 = root", "machine cc128 { c1 = root\n\n"],
    "missing `{` after the machine's format": ["machine cc128 memory 0 size 1", "machine cc128\n"],
    "missing `size` and the memory's size": ["machine cc128 { memory 0 }", "machine cc128 { memory 0; c1 = root }"],
    "missing `;` between the machine's parts": [
        "machine cc128 { memory 0 size 1 c1 = root }",
        "machine cc128 { c1 = root c2 = root }",
    ],
    "a register of the machine starts as `root`": ["machine cc128 { c1 = 5 }", "machine cc128 { c1 = other }"],
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
    known = _known_mistake(error)
    if known is not None:
        history = error.token_history
        previous = f"`{history[-1]}`" if history else "this"
        return ProgramError(f"{known.replace('{previous}', previous)}: found {found}", position, source, text)
    expected = error.accepts or error.expected
    names = [_TERMINALS.get(name, _terminal_text(name)) for name in sorted(expected - _OPERATORS - {"COMMENT", "$END"})]
    if len(expected & _OPERATORS) > 1:
        names.append("an expression's next part")
    return ProgramError(f"found {found}, expected {_either(names)}", position, source, text)


def _known_mistake(error: UnexpectedToken) -> str | None:
    # The parser's state tells the first line, the second and later ones apart; a mistake may be in any.
    for before in ("", "\n", "\n\n"):
        known = error.match_examples(partial(_parse_example, before), _EXAMPLES, use_accepts=False)
        if known is not None:
            return str(known)
    return None


def _parse_example(before: str, example: str) -> AnyType:
    return _parser().parse(before + example)


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
        operands: list[syntax.Expression] = []
        for child in rest:
            if isinstance(child, list):
                operands += child
            elif not isinstance(child, syntax.Expectation):
                operands.append(child)
        return syntax.Instruction(str(name), tuple(operands), expectations, _token_at(name))

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
