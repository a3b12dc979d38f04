"""Printing and parsing are inverse."""

import pytest
from hypothesis import given

from capvisor.dsl import strategies
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.syntax import Program
from tests.tutorial import TUTORIAL


@given(strategies.programs())
def test_parsing_what_was_printed_gives_the_same_tree_and_the_same_text(program: Program) -> None:
    text = print_program(program)
    parsed = parse(text)
    assert parsed == program
    assert print_program(parsed) == text


@pytest.mark.parametrize("path", TUTORIAL, ids=lambda path: path.name)
def test_the_tutorial_is_formatted(path) -> None:
    text = path.read_text()
    assert print_program(parse(text, str(path))) == text


def test_operands_are_printed_as_the_table_has_them() -> None:
    text = "machine cc128 { c1 = root }\ncsetaddr csp,x1,c5 # moved\ncld a0, 0x8 ( c2 )\nassert ra==sp\n"
    lines = print_program(parse(text)).splitlines()
    assert lines[1:] == ["csetaddr   c2, c1, x5  # moved", "cld        x10, 0x8(c2)", "assert x1 == x2"]


def test_blank_lines_and_comments_stay() -> None:
    text = "# one\n\n# two\nmachine cc128 { c1 = root }  # three\n\ncmove      c2, c1\n# four\n"
    assert print_program(parse(text)) == text
