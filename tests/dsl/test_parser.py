"""Errors name the place, what was found and what was expected."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse

MACHINE = "machine cc128 { memory 0x80000000 size 64K; c1 = root }\n"

WRONG_LINES = [
    ("csetaddr c2 c1, x5", 13, "missing `,` after `c2`: found `c1`"),
    ("csetaddr c2, c1 x5", 17, "missing `,` after `c1`: found `x5`"),
    ("csetaddr c2,", 13, "missing operand after `,`: found end of line"),
    ("csetaddr c2, c1", 1, "`csetaddr` takes `cd, cs1, rs2`: 3 operands, found 2"),
    ("csetaddr c2, c1, 5", 18, "`rs2` must be a register"),
    ("csetadr c2, c1, x5", 1, "unknown operation `csetadr`; did you mean `csetaddr`?"),
    ("cmove c2, q7", 11, "`cs1` must be a register"),
    ("cmove c2, c32", 11, "`cs1` must be a register"),
    ("cld x7, c3", 1, "an address is an offset and a register, `0(c1)`"),
    ("cld x1, 0(c1", 13, "missing `)`: found end of line"),
    ("addi x1, x2, 2048", 14, "2048 doesn't fit the immediate of `addi`: -2048 to 2047"),
    ("csetboundsimm c1, c2, -1", 23, "-1 doesn't fit the immediate of `csetboundsimm`: 0 to 4095"),
    ("slli x1, x2, 64", 14, "64 doesn't fit the immediate of `slli`: 0 to 63"),
    ("cld x1, 0(c1) !trap", 20, "missing cause after `!trap`: found end of line"),
    ("cld x1, 0(c1) !trap TagVioltion", 21, "unknown trap cause `TagVioltion`; did you mean `TagViolation`?"),
    ("cld x1, 0(c1) !trap TypeViolation", 21, "this operation never gives TypeViolation: it can give TagViolation,"),
    ("cmove c1, c2 !trap LoadAccessFault", 20, "this operation never gives LoadAccessFault"),
    ("cld x1, 0(c1) !trap TagViolation !trap SealViolation", 40, "nothing can follow a `!trap` without `when`"),
    ("let x any u64", 7, "missing `=` after the name: found `any`"),
    ("let x = any u65", 13, "unknown type `u65`: expected u1 to u64"),
    ("let c1 = 5", 5, "`c1` can't name a value: it is a register"),
    ("let not = 5", 5, "`not` can't name a value: it is a word of the language"),
    ("let x = x5", 9, "a `let` can't read a register"),
    ("let x = any u64 where c1.tag", 23, "`where` can't read a register"),
    ("let x = 1 == 1", 9, "a `let` names a number, found a condition"),
    ("li x5, foo", 8, "`foo` has no value: no `let` names it"),
    ("li x5, 1 < 2", 8, "`li` needs a number, found a condition"),
    ("assert 1", 8, "`assert` needs a condition, found a number"),
    ("assert (1 == 1", 15, "missing `)`: found end of line"),
    ("assert 1 +", 11, "missing operand of `+`: found end of line"),
    ("assert 1 < 2 < 3", 14, "comparisons don't chain"),
    ("assert c1.tga", 8, "a capability has no field `tga`; did you mean `tag`?"),
    ("assert c1.tag == 1", 8, "`==` compares a condition with a number"),
    ("assert c1.tag + 1 == 2", 8, "`+` needs numbers, found a condition"),
    ("assert not x1", 12, "`not` needs a condition, found a number"),
    ("assert 1 << x1 == 2", 13, "a shift's distance must be a constant"),
    ("assert 1 << 5000 == 2", 13, "a shift's distance is 0 to 1024"),
    ("assert x5 = 5", 11, "a comparison is `==`"),
    ("li x5, 99 99", 11, "missing `,` after `99`: found `99`"),
    ("assert $", 8, "unexpected character `$`"),
    ("machine cc64 { }", 9, "a program has one machine"),
]


@pytest.mark.parametrize(("line", "column", "message"), WRONG_LINES, ids=[line for line, _, _ in WRONG_LINES])
@pytest.mark.parametrize("before", ["", "li x5, 1\n", "li x5, 1\nli x6, 2\n\n"], ids=["second line", "third", "later"])
def test_a_wrong_line_is_named_with_its_place(line: str, column: int, message: str, before: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(MACHINE + before + line + "\n", "file.cap")
    error = caught.value
    number = 2 + before.count("\n")
    assert message in error.message
    if "one machine" not in message:
        assert (error.position.line, error.position.column) == (number, column)
    assert str(error).startswith(f"file.cap:{error.position.line}:{error.position.column}: ")
    assert f"    {line}" in str(error) or "one machine" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a program needs a machine"),
        ("# only a comment\n", "a program needs a machine"),
        ("li x1, 5\nmachine cc128 { }", "the machine must come first"),
        ("machine cc127 { }", "unknown capability format `cc127`; did you mean `cc128`?"),
        ("machine cc128", "missing `{` after the machine's format"),
        ("machine cc128 { memory 0 size 64K c1 = root }", "missing `;` between the machine's parts"),
        ("machine cc128 { memory 0 }", "missing `size` and the memory's size"),
        ("machine cc128 { memory 0 size 16; memory 0 size 16 }", "a machine has one memory"),
        ("machine cc128 { memory 8 size 16 }", "must start and end at a multiple of 16 bytes"),
        ("machine cc128 { memory 0 size 0 }", "isn't within the 64-bit address space"),
        ("machine cc64 { memory 0xfffffff8 size 16 }", "isn't within the 32-bit address space"),
        ("machine cc128 { c1 = 5 }", "a register of the machine starts as `root`"),
        ("machine cc128 { c0 = root }", "c0 is always NULL"),
        ("machine cc128 { c1 = root; c1 = root }", "a register is given twice"),
        ("machine cc64 { }\ncld x1, 0(c1)", "`cld` needs a 64-bit machine; cc64 has 32 bits"),
        ("machine cc128 { }\nlet a = 1\nlet a = 2", "`a` already has a value, from line 2"),
        ("machine cc128 { }\nassert " + "(" * 200, "parentheses nest deeper than 100"),
        ("machine cc128 { }\nassert " + "not " * 3000 + "true", "more than 150 operators in one line"),
        ("machine cc128 { # hi\n}", "a comment can't stand within these braces"),
        ("machine cc128 { }\ncmove c3(c1)", "`cmove` takes `cd, cs1`, and no address"),
        ("machine cc128 { }\ncld x7, 0, c2", "an address is an offset and a register"),
        ("machine cc128 { }\ncld 0(c2), x7", "an address `0(c1)` is the last operand"),
        ("machine cc128 { }\nli x5, 0x_", "missing `,`"),
    ],
)
def test_a_wrong_program_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(text)
    assert message in caught.value.message


WORDS = [
    "c1",
    "x5",
    ",",
    "(",
    ")",
    "csetaddr",
    "assert",
    "let",
    "=",
    "any",
    "u64",
    "where",
    "!trap",
    "when",
    "5",
    "-",
    "not",
]


@given(
    st.text(st.characters(codec="ascii"), max_size=60)
    | st.lists(st.sampled_from([*WORDS, ".tag", "and", "\n"])).map(" ".join)
)
def test_any_text_is_a_program_or_has_an_error_with_a_place(text: str) -> None:
    with contextlib.suppress(ProgramError):
        assert parse(MACHINE + text).machine.format == "cc128"


def test_a_machine_may_stand_on_several_lines() -> None:
    program = parse("machine cc128 {\n  memory 0x1000 size 4K\n  c1 = root;\n  c2 = root\n}\ncmove c3, c1\n")
    assert program.machine.roots == (1, 2)
