"""Corpora: what programs say of themselves and do, whether they pass, which are needed; the one that ships finds bugs."""

import pytest

from capvisor.campaign.corpus import (
    Share,
    behaviours_of,
    content_of,
    examine,
    is_reducible,
    needed,
    operations_of,
    reduced,
    shown_by,
    signature_of,
    stepping_of,
    title_of,
    told_again,
)
from capvisor.dsl.errors import NoValuesError, ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.proofs.mutants import MUTANTS, Mutant, in_force
from capvisor.spec.traps import CAUSES_BY_NAME
from tests.quality.bugs import OPERATION_BUGS, STEP_BUGS
from tests.tutorial import ROOT

MACHINE = "machine cc128 { memory 0x80000000 size 4K; c1 = root }\n"
CORPUS = [parse(path.read_text(), str(path)) for path in sorted((ROOT / "programs" / "regress").glob("*.cap"))]
SEALED_BUG = MUTANTS["setbounds-of-sealed"]


def program(text: str, machine: str = MACHINE):
    return parse(machine + text, "a.cap")


def found_by_the_corpus() -> list[str]:
    return [each.source for each in CORPUS if not examine(each).passed]


# -- what ships ------------------------------------------------------------------------------------------------------------


def test_the_corpus_that_ships_passes() -> None:
    assert len(CORPUS) >= 10
    assert not found_by_the_corpus()


@pytest.mark.parametrize("each", CORPUS, ids=lambda each: each.source.rsplit("/", 1)[1])
def test_a_program_that_ships_is_small_formatted_and_says_what_it_pins_down(each) -> None:
    assert operations_of(each) <= 6
    assert print_program(each) == each.text
    assert title_of(each) and is_reducible(each) is ("assert" not in each.text)


def test_no_program_that_ships_is_needless_or_there_twice() -> None:
    assert len({content_of(each) for each in CORPUS}) == len(CORPUS)
    assert len(needed([Share(each.source, shown_by(each), operations_of(each), False) for each in CORPUS])) == len(CORPUS)


# (module, what stands there, what the bug makes of it, the program that is for it)
PINNED_DOWN = [
    ("fastpath.memory", "if straddles.any():", "if False:", "store_across_granules"),
    (
        "fastpath.memory",
        "np.add(address, size_bytes - 1, out=index)",
        "np.copyto(index, address)",
        "store_across_granules_cc64",
    ),
    ("model.capability", "allowed = not_(cap.is_sealed) & within_bounds", "allowed = within_bounds", "change_of_sealed"),
    ("fastpath.isa.memory", "np.logical_and(loaded.tag, may_load, out=loaded.tag)", "pass", "load_without_load_capability"),
    (
        "model.isa.memory",
        'raise Trap("PermitStoreLocalCapViolation", access.register)',
        "pass",
        "store_of_a_local_capability",
    ),
    ("model.isa.memory", 'raise Trap("PermitStoreCapViolation", access.register)', "pass", "store_without_store_capability"),
    ("fastpath.capability", "np.logical_and(permitted, authority.tag, out=permitted)", "pass", "seal_by_untagged"),
    ("fastpath.bounds", "np.less(top, base, out=top_high)", "top_high.fill(False)", "top_of_the_address_space"),
    ("model.machine", "self.is_reserved = False\n        self.mepcc", "self.mepcc", "store_conditional_after_trap"),
    ("fastpath.isa.atomic", "np.copyto(value, block.integer(rs2))", "value.fill(0)", "destination_is_base"),
    ("model.isa.control", "if data.permits(Permission.EXECUTE):", "if False:", "invoke_with_executable_data"),
    ("model.isa.control", "if code.otype != data.otype:", "if False:", "invoke_of_different_types"),
    ("fastpath.isa.control", "target, PCC_INDEX, taken)", "target, PCC_INDEX)", "branch_out_of_pcc"),
    ("fastpath.machine", "if leaves and len(completed):", "if False:", "branch_to_the_end_of_pcc"),
]


@pytest.mark.parametrize(("module", "before", "after", "name"), PINNED_DOWN, ids=[name for *_, name in PINNED_DOWN])
def test_the_bug_that_a_program_is_for_makes_it_fail(module: str, before: str, after: str, name: str) -> None:
    with in_force(Mutant("seeded", f"capvisor.{module}", before, after)):
        assert any(source.endswith(f"/{name}.cap") for source in found_by_the_corpus())


def test_the_corpus_finds_more_than_half_of_the_bugs_seeded_in_operations_and_steps() -> None:
    bugs = [bug[:3] for bug in (*OPERATION_BUGS, *STEP_BUGS)]
    found = 0
    for module, before, after in bugs:
        with in_force(Mutant("seeded", f"capvisor.{module}", before, after)):
            found += any(not examine(each).passed for each in CORPUS)
    assert found > len(bugs) / 2


# -- what a file says of itself --------------------------------------------------------------------------------------------


def test_a_finding_says_its_signature_and_how_it_was_stepped() -> None:
    finding = parse(
        f"# `csc` is wrong\n# signature: csc differs memory\n# stepping: words\n# again: x\n{MACHINE}csc c1, 0(c1)\n"
    )
    assert signature_of(finding) == "csc differs memory" and stepping_of(finding) == "words"
    assert title_of(finding) == "`csc` is wrong"
    assert "# again: capvisor run there.cap\n" in print_program(told_again(finding, "capvisor run there.cap"))
    plain = program("cmove c2, c1  # signature: none, this is behind an operation\n")
    assert signature_of(plain) is None and stepping_of(plain) == "lock step" and told_again(plain, "x") is plain


def test_a_stepping_that_there_is_not_is_refused_with_its_line() -> None:
    with pytest.raises(
        ProgramError, match=r"a\.cap:2:1: unknown stepping `backwards`: there are lock step, divergent, words"
    ):
        stepping_of(program("# stepping: backwards\ncmove c2, c1\n"))


@pytest.mark.parametrize(
    "text",
    [
        "li x5, 16\ncmove c2, c1\n",
        "# a comment\nli x5, 0x10\ncmove c2, c1\nassert x5 == 16\n",
        "let number = 8 + 8\nli x5, number\ncmove c2, c1  !trap TagViolation\n",
    ],
)
def test_content_is_what_is_executed_whatever_is_said_of_it(text: str) -> None:
    assert content_of(program(text)) == content_of(program("li x5, 0x10\ncmove c2, c1\n"))


@pytest.mark.parametrize(
    "other",
    [
        program("li x5, 17\ncmove c2, c1\n"),
        program("li x5, 16\ncmove c3, c1\n"),
        program("li x5, 16\n"),
        program("li x5, 16\ncmove c2, c1\n", "machine cc64 { memory 0x80000000 size 4K; c1 = root }\n"),
        program("li x5, 16\ncmove c2, c1\n", "machine cc128 { memory 0x80000000 size 8K; c1 = root }\n"),
        program("let x = any u64\nli x5, x\ncmove c2, c1\n"),
        program("given c3 = capability(1, 0, 0)\nli x5, 16\ncmove c2, c1\n"),
    ],
    ids=["number", "register", "shorter", "format", "memory", "any", "given"],
)
def test_content_differs_with_the_machine_and_the_operations(other) -> None:
    assert content_of(other) != content_of(program("li x5, 16\ncmove c2, c1\n"))


def test_content_differs_with_what_an_any_may_be() -> None:
    texts = ["let x = any u64\n", "let x = any u8\n", "let x = any u64\nlet y = x + 1\n", "let x = any u64\nlet y = x + 2\n"]
    assert len({content_of(program(f"{text}li x5, x\n")) for text in texts}) == len(texts)


# -- what programs do ------------------------------------------------------------------------------------------------------


def test_behaviours_tell_operations_causes_and_operands_apart() -> None:
    tag, length = (CAUSES_BY_NAME[name].number for name in ("TagViolation", "LengthViolation"))
    found = behaviours_of(
        program("clb x5, 0(c0)  !trap TagViolation\ncsetboundsimm c2, c1, 1\nclw x5, 0(c2)  !trap LengthViolation\n")
    )
    assert {(name, cause) for name, cause, _class in found} == {("clb", tag), ("csetboundsimm", 0), ("clw", length)}
    twice = behaviours_of(program("cmove c2, c1\ncmove c2, c1\n"))
    assert len(twice) == 1 and twice != behaviours_of(program("cmove c2, c0\n"))


def test_behaviours_of_a_program_are_the_same_each_time_and_need_no_reset() -> None:
    each = program("let x = any u64\ngiven c4 = capability(1, x, x)\ncmove c2, c4\n")
    assert behaviours_of(each) == behaviours_of(each) != frozenset()
    with pytest.raises(NoValuesError):
        behaviours_of(program("let x = any u64 where x & 0xffffffff == 0x12345678\nli x5, x\n"))


def test_a_behaviour_in_another_format_is_another_one() -> None:
    narrow = program("cmove c2, c1\n", "machine cc64 { c1 = root }\n")
    assert not shown_by(narrow) & shown_by(program("cmove c2, c1\n"))


# -- whether they pass -----------------------------------------------------------------------------------------------------


def test_a_wrong_expectation_and_implementations_that_differ_both_fail() -> None:
    wrong = examine(program("li x5, 1\nassert x5 == 2\n"))
    assert not wrong.passed and wrong.failure is None and "3: assertion:" in wrong.messages[0]
    seal = program("csealentry c2, c1\ncsetboundsimm c3, c2, 16\n")
    with in_force(SEALED_BUG):
        differs = examine(seal)
    assert not differs.passed and differs.failure is not None
    assert differs.failure.signature == "csetboundsimm differs registers"
    assert any("csetboundsimm differs registers" in message for message in differs.messages)
    assert examine(seal).passed


@pytest.mark.parametrize(
    "each",
    [
        program("given c4 = capability(1, 0, 0)\ncmove c2, c4\n"),
        program("clb x5, 0(c1)  !trap LoadAccessFault\n", "machine cc128 { c1 = root }\n"),
    ],
    ids=["given registers", "no memory"],
)
def test_programs_that_start_where_no_case_does_are_run_and_not_judged(each) -> None:
    result = examine(each)
    assert result.passed and not result.judged and result.verdict.comparisons == 1


def test_a_finding_is_judged_with_its_own_stepping() -> None:
    # A bug of divergent lanes alone: in lock step nothing is seen.
    bug = Mutant(
        "seeded", "capvisor.fastpath.machine", "            np.copyto(self.pc, self.next_pc)\n", "            pass\n"
    )
    text = "cmove c2, c1\ncmove c2, c1\n"
    with in_force(bug):
        assert examine(program(text)).passed
        assert not examine(program(f"# stepping: divergent\n{text}")).passed


def test_an_implementation_that_crashes_is_a_failure_with_its_line() -> None:
    bug = Mutant(
        "seeded", "capvisor.fastpath.capability", "np.logical_and(permitted, authority.tag, out=permitted)", "[][0]"
    )
    with in_force(bug):
        result = examine(program("cmove c2, c1\ncseal c3, c2, c2\n"))
    assert not result.passed and result.messages[0].startswith("3: crash: IndexError")
    assert result.failure is not None and result.failure.signature == "cseal crashes IndexError"


# -- which are needed, and how small they get ------------------------------------------------------------------------------


def share(name: str, shown: str, operations: int = 1, stays: bool = False) -> Share:
    return Share(name, frozenset(("cc128", (each, 0, 0)) for each in shown), operations, stays)


def test_what_is_needed_shows_everything_with_few_and_small_programs() -> None:
    assert needed([share("a", "xy"), share("b", "x"), share("c", "z")]) == {"a", "c"}
    assert needed([share("long", "xy", 5), share("short", "xy", 2)]) == {"short"}
    assert needed([share("b", "x"), share("a", "x")]) == {"a"}
    assert needed([share("nothing", "")]) == frozenset()
    assert needed([]) == frozenset()


def test_what_stays_stays_and_counts() -> None:
    assert needed([share("finding", "x", stays=True), share("a", "x"), share("b", "xy")]) == {"finding", "b"}


def test_a_failing_program_is_reduced_and_says_what_is_wrong() -> None:
    text = (
        "# What I saw.\n" + MACHINE + "li x5, 7\ncmove c4, c1\ncsealentry c2, c4\nadd x6, x5, x5\ncsetboundsimm c3, c2, 16\n"
    )
    long = parse(text, "a.cap")
    with in_force(SEALED_BUG):
        result = examine(long)
        assert result.failure is not None
        small = reduced(long, result.failure, "capvisor run a.cap")
        assert small is not None
        again = parse(small, "a.cap")
        failure = examine(again).failure
        assert operations_of(again) == 2 and failure is not None
        assert reduced(again, failure, "capvisor run a.cap") is None
    assert small.startswith("# What I saw.\n") and "# again: capvisor run a.cap" in small
    assert signature_of(again) == "csetboundsimm differs registers"
    assert examine(again).passed


def test_what_says_more_than_its_operations_is_not_to_be_reduced() -> None:
    assert is_reducible(program("let x = 5\nli x5, x\n"))
    assert not is_reducible(program("li x5, 5\nassert x5 == 5\n"))
    assert not is_reducible(program("let x = any u64\nli x5, x\n"))
