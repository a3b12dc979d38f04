"""From text to the typed tree."""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any as AnyType

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken, v_args
from lark.exceptions import VisitError

from capvisor.dsl import syntax
from capvisor.dsl.check import check, suggest
from capvisor.dsl.check_system import check_system
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.syntax import Operator, Position, Program
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.registers import REGISTER_NUMBERS

MAXIMUM_NESTING = 100
MAXIMUM_OPERATORS = 150
MAXIMUM_DIGITS = 400
"""How deep parentheses may nest, how many operators a line and how many digits a number may have: more than any program
needs, and little enough for Python's stack and for messages."""


def parse(text: str, source: str = "<program>") -> Program:
    """Parse and check a program. Raises ProgramError, which says where and what was expected."""
    program = parse_unchecked(text, source)
    if program.system is None:
        check(program)
    else:
        check_system(program)
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
            depth += (character in "([") - (character in ")]")
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
        'alice: file_revoke "k" 1',
        'alice: enter file_revoke "k" 1',
    ],
    "missing `)`": ["assert (1 == 1\n", "cld x1, 0(c1\n", "cld x1, 0(c1 !trap A"],
    "missing operand after `,`": ["csetaddr c2,\n", "csetaddr c2, , x5", "csetaddr c2, c1,\n"],
    "missing `=` after the name": ["let x any u64", "let x 5", "let x\n"],
    "missing name after `let`": ["let = 5", "let\n"],
    "missing `{` after the system's kind": ["system cvm alice size 4K", "system cvm\n"],
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
    "missing what the agent does after `:`": ["alice:\n"],
    "missing `:` after the agent": ["alice/2 cld x7, 0(c1)", "alice/2\n"],
    "missing the thread's number after `/`": ["alice/:", "alice/x:", "alice/\n"],
    "missing the call after `enter`": ["alice: enter\n"],
    "missing `ok` or `refused CODE` after `->`": ["alice: wait c11 ->\n", "alice: leave ->\n", "deployer: destroy bob ->\n"],
    "the deployer can `create NAME size SIZE` and `destroy NAME`": [
        "deployer: create\n",
        "deployer: destroy\n",
        "deployer: csetaddr c1, c2, x3",
        "deployer:\n",
    ],
    "missing `size` and the region's size": ["deployer: create bob\n", "deployer: create bob at 5"],
    "missing `violates` and the invariants after `expect`": ["expect C1", "expect\n"],
    "missing the fault's kind after `!fault`": [
        "vm0: flush !fault\n",
        "vm0: load 0 !fault\n",
        "vm0: store 0, 1 !fault\n",
        "vm0: load 0 !fault 5",
    ],
    "missing `refs`, `lookups` or `updates` and a number after `walk`": [
        "expect walk\n",
        "expect walk 5",
        "expect walk refs\n",
    ],
    "missing an invariant's name": ["expect violates\n", "expect violates C1,\n"],
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
    "missing `size` and the region's size": ["system cvm { alice }", "system cvm { alice; bob }"],
    "missing `..` and the last frame": ["system tpt { vm0 frames 0 }", "system tpt { vm0 frames 0; vm1"],
    "missing a number after {previous}": [
        "system tpt { vm0 frames }",
        "system tpt { vm0 frames 0..7 vcpus }",
        "system vmm { device nic { port } }",
    ],
    "missing `;` between the system's parts": [
        "system cvm { alice size 4K bob size 4K }",
        "system cvm { policy intended bob size 4K }",
        "system cvm { format cc64 bob size 4K }",
        "system tpt { frames 64 vm0 frames 0..7 }",
        "system tpt { vm0 frames 0..7 vm1 frames 8..15 }",
        "system vmm { frames 64 vcpus 2 }",
        "system vmm { region 0..63 key 5 }",
        "system vmm { storage disk { encrypt 0..9 deny 10..19 } }",
        "system vmm { device nic { } device sound { } }",
    ],
    "missing a policy's name, or `without` and a guard": ["system cvm { policy }", "system cvm { policy; alice size 4K }"],
    "missing a guard's name after `without`": ["system cvm { policy without }", "system cvm { policy without; }"],
    "missing the name of the region around it": ["system cvm { app size 2K in }", "system cvm { app size 2K in; }"],
    "a register of the machine starts as `root`": ["machine cc128 { c1 = 5 }", "machine cc128 { c1 = other }"],
    "a comment can't stand within these braces": [
        "machine cc128 { # x",
        "machine cc128 { c1 = root # x",
        "machine cc128 { c1 = root\n # x",
        "machine cc128 { memory 0 size 1 # x",
        "system cvm { # x",
        "system cvm { alice size 4K # x",
        "system cvm { alice size 4K\n # x",
        "system vmm { device nic { # x",
        "system vmm { device nic { port 8 # x",
        "system vmm { device nic { } # x",
        "system vmm { region 0..63 # x",
    ],
}


def _syntax_error(error: UnexpectedInput, text: str, source: str) -> ProgramError:
    """Lark's error, in the words of the language."""
    position = Position(max(error.line, 1), max(error.column, 1))
    if isinstance(error, UnexpectedCharacters) and error.char == '"':
        return ProgramError('missing `"` at the end of the text', position, source, text)
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


@dataclass(frozen=True)
class _Setting:
    """A word that a system's braces give: its policy, a guard that is off, its capability format."""

    kind: str
    name: str


@v_args(meta=True)
class _ToSyntax(Transformer[Token, Program]):
    """Lark's tree to ours, one method a rule of the grammar."""

    def __init__(self, source: str, text: str) -> None:
        super().__init__()
        self._source, self._text = source, text
        self._calls = {name for kind in SYSTEM_KINDS.values() for name in kind.calls}
        """What isn't an instruction: the calls of the system's kind, known from its line on: lines come here in order."""

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

    def system(self, meta: AnyType, children: list[AnyType]) -> syntax.System:
        if str(children[0]) in SYSTEM_KINDS:
            self._calls = {*SYSTEM_KINDS[str(children[0])].calls}
        return self.layer(meta, children)

    def layer(self, meta: AnyType, children: list[AnyType]) -> syntax.System:
        items = children[1:]
        base, size = self._only(meta, "memory", [item for item in items if isinstance(item, tuple)]) or (None, None)
        settings = [item for item in items if isinstance(item, _Setting)]
        formats = [each.name for each in settings if each.kind == "format"]
        policies = [each.name for each in settings if each.kind == "policy"]
        return syntax.System(
            str(children[0]),
            self._only(meta, "format", formats),
            base,
            size,
            self._only(meta, "policy", policies),
            tuple(each.name for each in settings if each.kind == "without"),
            tuple(item for item in items if isinstance(item, syntax.Region)),
            tuple(item for item in items if isinstance(item, syntax.Guest)),
            tuple(item for item in items if isinstance(item, syntax.Setting)),
            tuple(tenant for item in items if isinstance(item, list) for tenant in item),
            tuple(item for item in items if isinstance(item, syntax.Object)),
            tuple(item for item in items if isinstance(item, syntax.Span)),
            tuple(item for item in items if isinstance(item, syntax.Part)),
            tuple(item for item in items if isinstance(item, syntax.System)),
            _at(meta),
        )

    def _only(self, meta: AnyType, what: str, found: list[AnyType]) -> AnyType:
        """The one that there may be of something."""
        if len(found) > 1:
            raise ProgramError(f"a system has one {what}", _at(meta), self._source, self._text)
        return found[0] if found else None

    def policy(self, meta: AnyType, children: list[Token]) -> "_Setting":
        return _Setting("policy", str(children[0]))

    def without(self, meta: AnyType, children: list[Token]) -> "_Setting":
        return _Setting("without", str(children[0]))

    def format(self, meta: AnyType, children: list[Token]) -> "_Setting":
        return _Setting("format", str(children[0]))

    def region(self, meta: AnyType, children: list[AnyType]) -> syntax.Region:
        name, size, at, outer, purecap = children
        outer = None if outer is None else str(outer)
        return syntax.Region(str(name), size, at, outer, purecap is not None, _token_at(name))

    def guest(self, meta: AnyType, children: list[AnyType]) -> syntax.Guest:
        name, first, last, vcpus, *flags = children
        plain, mapped = (flag is not None for flag in flags)
        return syntax.Guest(str(name), first, last, vcpus, plain, mapped, _token_at(name))

    def setting(self, meta: AnyType, children: list[AnyType]) -> syntax.Setting:
        return syntax.Setting(str(children[0]), children[1], _token_at(children[0]))

    def tenant(self, meta: AnyType, children: list[Token]) -> list[syntax.Tenant]:
        return [syntax.Tenant(str(name), _token_at(name)) for name in children]

    def object(self, meta: AnyType, children: list[AnyType]) -> syntax.Object:
        return syntax.Object(str(children[0]), tuple(children[1:]), _token_at(children[0]))

    def part(self, meta: AnyType, children: list[AnyType]) -> syntax.Part:
        return syntax.Part(str(children[0]), str(children[1]), tuple(children[2:]), _token_at(children[0]))

    def span(self, meta: AnyType, children: list[AnyType]) -> syntax.Span:
        return syntax.Span(str(children[0]), children[1], children[2], _token_at(children[0]))

    def global_(self, meta: AnyType, children: list[AnyType]) -> syntax.Word:
        return syntax.Word(str(children[0]), children[1], True, _token_at(children[0]))

    def constant(self, meta: AnyType, children: list[AnyType]) -> syntax.Word:
        return syntax.Word(str(children[0]), children[1], False, _token_at(children[0]))

    def exported(self, meta: AnyType, children: list[AnyType]) -> syntax.Export:
        return syntax.Export(str(children[0]), children[1], _token_at(children[0]))

    def relocation(self, meta: AnyType, children: list[Token]) -> syntax.Relocation:
        return syntax.Relocation(str(children[0]), str(children[1]), _token_at(children[0]))

    def agent(self, meta: AnyType, children: list[Token]) -> syntax.Agent:
        name, thread = children
        number = 1 if thread is None else syntax.Integer(str(thread)).value
        return syntax.Agent(str(name), number, _token_at(name))

    def by(self, meta: AnyType, children: list[AnyType]) -> syntax.By:
        return syntax.By(children[0], children[1], _at(meta))

    def act(self, meta: AnyType, children: list[AnyType]) -> syntax.Call | syntax.Instruction:
        name, rest, fault, result = children[0], children[1:-2], children[-2], children[-1]
        if str(name) not in self._calls:
            if fault is not None:
                meant = "" if str(name) in OPERATIONS else suggest(str(name), self._calls)
                raise self._error(f"`{name}` gives no fault{meant or '; of an instruction, say `!trap`'}", fault.position)
            if result is not None:
                meant = "" if str(name) in OPERATIONS else suggest(str(name), self._calls)
                message = (
                    f"only a call has a result (`->`), and `{name}` is none{meant or '; of an instruction, say `!trap`'}"
                )
                raise self._error(message, result.position)
            texts = [child for child in rest if isinstance(child, syntax.Text)]
            if texts:
                meant = "" if str(name) in OPERATIONS else suggest(str(name), self._calls)
                raise self._error(f"`{name}` is no call, and takes no text{meant}", texts[0].position)
            return self.instruction(meta, [name, *rest])
        expectations = [child for child in rest if isinstance(child, syntax.Expectation)]
        if expectations:
            raise self._error(
                "a call is refused with a code, `-> refused CODE`, and gives no trap", expectations[0].position
            )
        if fault is not None and result is not None:
            raise self._error("an operation has a result or a fault, not both", result.position)
        return syntax.Call(str(name), self._arguments(name, rest), result, fault, _token_at(name))

    def enter(self, meta: AnyType, children: list[AnyType]) -> syntax.Enter:
        return syntax.Enter(str(children[0]), self._arguments(children[0], children[1:]), _token_at(children[0]))

    def leave(self, meta: AnyType, children: list[AnyType]) -> syntax.Leave | syntax.Call:
        name, result = Token("NAME", "leave"), children[-1]
        operands = self._arguments(name, children[:-1])
        if name in self._calls:
            return syntax.Call(str(name), operands, result, None, _at(meta))
        if operands:
            raise self._error("`leave` takes nothing", _at(meta))
        return syntax.Leave(result, _at(meta))

    def _arguments(self, name: Token, children: list[AnyType]) -> tuple[AnyType, ...]:
        """The operands of a call: no addresses."""
        written = [child for child in children if child is not None]
        if any(isinstance(child, list) for child in written):
            raise self._error(f"`{name}` takes no address `0(c1)`", _token_at(name))
        return tuple(written)

    def text(self, meta: AnyType, children: list[Token]) -> syntax.Text:
        return syntax.Text(str(children[0])[1:-1], _token_at(children[0]))

    def result(self, meta: AnyType, children: list[AnyType]) -> syntax.Result:
        word, code = children
        if word == "ok" and code is None:
            return syntax.Result("OK", position=_token_at(word))
        if word not in ("refused", "until") or code is None:
            raise self._error("a result is `-> ok` or `-> refused CODE`", _token_at(word))
        return syntax.Result(str(code), word == "until", _token_at(code))

    def created(self, meta: AnyType, children: list[AnyType]) -> syntax.Create:
        return syntax.Create(children[0], children[1], _at(meta))

    def destroyed(self, meta: AnyType, children: list[AnyType]) -> syntax.Destroy:
        return syntax.Destroy(str(children[0]), children[1], _token_at(children[0]))

    def violated(self, meta: AnyType, children: list[Token]) -> syntax.Violates:
        return syntax.Violates(tuple(str(name) for name in children), _at(meta))

    def fault(self, meta: AnyType, children: list[AnyType]) -> syntax.Fault:
        kind, field, value = children
        return syntax.Fault(str(kind), None if field is None else str(field), value, _token_at(kind))

    def measured(self, meta: AnyType, children: list[AnyType]) -> syntax.Measured:
        return syntax.Measured(str(children[0]), children[1], _token_at(children[0]))

    def _error(self, message: str, position: Position) -> ProgramError:
        return ProgramError(message, position, self._source, self._text)

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

    def element(self, meta: AnyType, children: list[AnyType]) -> syntax.Element:
        return syntax.Element(str(children[0]), tuple(children[1:]), _token_at(children[0]))

    def name(self, meta: AnyType, children: list[Token]) -> syntax.Name:
        return syntax.Name(str(children[0]), _token_at(children[0]))

    def register(self, meta: AnyType, children: list[Token]) -> syntax.Register:
        return self._register(children[0])

    def field(self, meta: AnyType, children: list[Token]) -> syntax.FieldOf:
        register = REGISTER_NUMBERS[str(children[0])]
        return syntax.FieldOf(register, str(children[1]), _token_at(children[0]))
