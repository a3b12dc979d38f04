"""Running programs: what passes, what fails and how that is said, on either implementation and on both."""

import numpy as np
import pytest

from capvisor.dsl.draw import draw, fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.fields import FIELDS
from capvisor.dsl.parser import parse
from capvisor.dsl.runner import Implementation, check_memory, run, with_values
from capvisor.fastpath import isa as fast_isa
from capvisor.fastpath.machine import KERNELS
from tests.tutorial import TUTORIAL

assert fast_isa
MACHINE = "machine cc128 { memory 0x80000000 size 4K; c1 = root }\n"
EVERY = list(Implementation)


def failure_of(text: str, implementation: Implementation = Implementation.BOTH):
    program = parse(MACHINE + text)
    return run(program, fix(program, {}, 0), implementation).failure


@pytest.mark.parametrize("implementation", EVERY)
@pytest.mark.parametrize("path", TUTORIAL, ids=lambda path: path.name)
def test_the_tutorial_passes(path, implementation: Implementation) -> None:
    program = parse(path.read_text(), str(path))
    for seed in range(3):
        verdict = run(program, fix(program, {}, seed), implementation)
        assert verdict.passed, verdict.failure
        assert verdict.operations > 0
        assert verdict.comparisons == (verdict.operations if implementation is Implementation.BOTH else 0)


@pytest.mark.parametrize("implementation", EVERY)
def test_an_assertion_that_does_not_hold_shows_its_values(implementation: Implementation) -> None:
    failure = failure_of("li x5, 7\nassert x5 == 8 or c1.sealed\n", implementation)
    assert (failure.line, failure.kind) == (3, "assertion")
    assert "x5 = 0x7, c1.sealed = false" in failure.message


@pytest.mark.parametrize("implementation", EVERY)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cld x5, 0(c0)", "TagViolation, no trap expected"),
        ("cld x5, 0(c2)  !trap TagViolation", "completed, TagViolation expected"),
        ("cld x5, 0(c0)  !trap SealViolation", "TagViolation, SealViolation expected"),
        ("cld x5, 0(c2)  !trap TagViolation when 1 == 1", "completed, TagViolation expected"),
        ("cld x5, 0(c0)  !trap TagViolation when 1 == 2", "TagViolation, no trap expected"),
    ],
)
def test_a_trap_other_than_expected_fails(line: str, message: str, implementation: Implementation) -> None:
    failure = failure_of(f"li x5, 0x80000000\ncsetaddr c2, c1, x5\n{line}\n", implementation)
    assert (failure.line, failure.kind) == (4, "trap")
    assert message in failure.message


def test_the_first_expectation_whose_condition_holds_applies() -> None:
    text = "let x = any u8\nli x5, x\ncld x6, 0(c0)  !trap TagViolation when x == 5  !trap SealViolation when x != 7\n"
    program = parse(MACHINE + text)
    assert run(program, {"x": 5}).passed
    assert "SealViolation expected" in run(program, {"x": 6}).failure.message
    assert "no trap expected" in run(program, {"x": 7}).failure.message


def test_conditions_of_expectations_are_those_before_the_operation() -> None:
    assert failure_of("li x5, 0x80000000\ncsetaddr c2, c1, x5\ncld c2, 0(c2)  !trap TagViolation when not c2.tag\n") is None


def test_implementations_that_differ_are_a_failure(monkeypatch) -> None:
    def wrong(block, rd, rs1, rs2):
        KERNELS["sub"](block, rd, rs1, rs2)

    monkeypatch.setitem(KERNELS, "add", wrong)
    failure = failure_of("li x5, 7\nadd x6, x5, x5\n")
    assert (failure.line, failure.kind) == (3, "implementations differ")
    assert "c6: reference 0xe" in failure.message
    assert failure_of("li x5, 7\nadd x6, x5, x5\n", Implementation.FAST) is None


def test_fields_are_read_alike_on_both_implementations() -> None:
    number_fields = [name for name, row in FIELDS.items() if not row.is_condition]
    lines = ["let a = any u64", "let b = any u64", "li x5, a", "csetaddr c2, c1, x5", "li x6, b", "csetbounds c3, c2, x6"]
    lines += ["csetaddr c4, c3, x6", "csethigh c5, c3, x6", "csealentry c6, c2"]
    for register in range(1, 7):
        lines += [f"assert c{register}.{name} == 12345" for name in number_fields]
        lines += [f"assert c{register}.{name}" for name, row in FIELDS.items() if row.is_condition]
    for index in range(9, len(lines)):
        program = parse(MACHINE + "\n".join([*lines[:9], lines[index]]) + "\n")
        for seed in range(4):
            failure = run(program, fix(program, {}, seed)).failure
            assert failure is None or failure.kind == "assertion", failure
            reference = run(program, fix(program, {}, seed), Implementation.REFERENCE).failure
            fast = run(program, fix(program, {}, seed), Implementation.FAST).failure
            assert reference == fast


def test_values_can_be_given() -> None:
    program = parse(MACHINE + "let a = any u8\nlet b = a * 2\nli x5, b\nassert x5 == 10\n")
    assert fix(program, {"a": 5}, 0) == {"a": 5, "b": 10}
    assert run(program, fix(program, {"a": 5}, 0)).passed
    for given, message in [({"c": 1}, "no `any` value"), ({"b": 1}, "no `any` value"), ({"a": 256}, "256 isn't a u8")]:
        with pytest.raises(ProgramError, match=message):
            fix(program, given, 0)


def test_a_where_is_met_or_said_to_be_impossible() -> None:
    program = parse(MACHINE + "let a = any u64 where a > 5 and a < 8 and a & 1 == 0\nlet b = any u64 where b + 1 == a\n")
    assert fix(program, {}, 0) == {"a": 6, "b": 5}
    with pytest.raises(ProgramError, match="no values of the others were found with which it satisfies its `where`"):
        fix(program, {"a": 7}, 0)
    with pytest.raises(ProgramError, match="no value was found"):
        fix(parse(MACHINE + "let a = any u8 where a > 255\n"), {}, 0)


def test_drawn_values_satisfy_their_wheres_and_touch_the_edges() -> None:
    text = (
        "let a = any u64 where a >= 0x1000 and a <= 0xffff\nlet b = any u64 where b < a and (b & 3) == 0\nlet c = any u7\n"
    )
    values, met = draw(parse(MACHINE + text), np.random.default_rng(0), 20_000)
    a, b, c = (values[name].array for name in "abc")
    assert met.mean() > 0.999
    assert ((a >= 0x1000) & (a <= 0xFFFF)).all() and ((b < a) & (b & 3 == 0))[met].all()
    assert {0x1000, 0xFFFF} <= set(a.tolist())
    assert {0, 127} <= set(c.tolist())


def test_a_program_with_its_values_filled_in_is_that_case() -> None:
    program = parse(MACHINE + "let a = any u64 where a > 3  # big\nli x5, a\nassert x5 != 9\n")
    case = with_values(program, {"a": 9})
    assert run(case, fix(case, {}, 0)).failure.line == 4
    assert next(iter(case.lets)).value.text == "0x9"


def test_memory_too_large_for_this_machine_is_said_so() -> None:
    program = parse("machine cc128 { memory 0 size 1048576G }\n")
    with pytest.raises(ProgramError, match="too large for this one"):
        check_memory(program, 1)
    assert run(program, {}, Implementation.REFERENCE).passed
