"""The state machine of guests passes on what is right, and finds what is wrong, shown shortly."""

import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from capvisor.dsl.printer import instruction
from capvisor.dsl.stateful import FastPath, GuestMachine, places
from capvisor.dsl.strategies import hart_in_state, operations
from capvisor.model.observation import watch
from capvisor.spec.formats import CC64, CC128
from capvisor.spec.operations import Group
from tests.dsl.test_strategies import run_pytest
from tests.quality.test_seeded_bugs import mutated
from tests.shares import some

QUICK = settings(
    max_examples=60,
    stateful_step_count=20,
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


class Counted(GuestMachine):
    """Counts what is executed."""

    counts: Counter = Counter()

    def execute(self, operation):
        step = super().execute(operation)
        self.counts[step.row.group] += 1
        self.counts["refused" if step.trap else "completed"] += 1
        return step


class Counted64(Counted):
    format = CC64


@pytest.mark.parametrize("machine", [Counted, Counted64], ids=["cc128", "cc64"])
def test_nothing_is_found_where_nothing_is_wrong_and_most_operations_are_completed(machine) -> None:
    machine.counts = Counter()
    run_state_machine_as_test(machine, settings=QUICK)
    assert all(machine.counts[group] for group in Group)
    assert machine.counts["completed"] > 2 * machine.counts["refused"] > 0


BUGS = [
    ("fastpath.machine", "    block.is_reserved.fill(False)\n", ""),
    ("fastpath.isa.control", "np.less(a, b, out=less)", "np.less_equal(a, b, out=less)"),
    ("fastpath.machine", "return self._rows[register or _SINK]", "return self._rows[register]"),
]


@pytest.mark.parametrize("bug", some(BUGS, 2), ids=lambda bug: f"{bug[0]}: {bug[1]}")
def test_a_seeded_bug_is_found_and_shown_in_few_steps(bug) -> None:
    counts = []
    # How far Hypothesis comes depends on which modules have been imported: it draws constants from their sources.
    for steps in (10, 9, 11, 8):
        with mutated(*bug), pytest.raises(AssertionError) as failure:
            run_state_machine_as_test(GuestMachine, settings=settings(QUICK, max_examples=1000, stateful_step_count=steps))
        shown = "\n".join(failure.value.__notes__)
        counts.append(shown.count("operation="))
        if counts[-1] <= 5:
            break
    assert 1 <= min(counts) <= 5
    assert "state.begin(hart=hart_in_state(" in shown
    assert re.match(r"`\w", str(failure.value)) and "reproduce_failure" in shown


def test_an_invariant_that_is_broken_on_both_sides_is_found() -> None:
    # Both write to c0.
    bug = ("model.machine", "if register != 0:", "if True:")

    class Agreeing(FastPath):
        def differences(self, *_both):
            return []

    class Machine(GuestMachine):
        implementation = Agreeing

    with mutated(*bug), pytest.raises(AssertionError, match="not M"):
        run_state_machine_as_test(Machine, settings=settings(QUICK, max_examples=1000, stateful_step_count=10))


def test_a_subclass_may_bring_an_implementation_and_an_invariant() -> None:
    class Forgetful(FastPath):
        """Never takes an operation on c3 notice of."""

        def step(self, name, operands):
            super().step(name, operands)
            self.machine.tags[3] = False

    class Theirs(GuestMachine):
        implementation = Forgetful

    with pytest.raises(AssertionError, match=r"c3: reference"):
        run_state_machine_as_test(Theirs, settings=QUICK)

    class Strict(GuestMachine):
        @invariant()
        def nothing_is_refused(self):
            assert self.last is None or self.last.trap is None

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Strict, settings=QUICK)


def test_places_are_all_that_a_step_has_changed() -> None:
    hart = hart_in_state(CC128)
    step = watch(hart, "cld", (9, 0, 1))
    assert {place.register for place in places(step)} >= {0, 1, 9}
    hart = hart_in_state(CC128)
    hart.registers[1] = hart.ddc._replace(address=0x8000_000C)
    step = watch(hart, "csd", (2, 0, 1))
    assert step.trap is None
    assert {place.granule for place in places(step)} >= {0, 1}
    assert {place.byte for place in places(step)} >= {0x8000_000B, 0x8000_000C, 0x8000_0014}


def test_an_operation_is_printed_as_the_language_has_it() -> None:
    from hypothesis import given

    from capvisor.dsl.parser import parse
    from capvisor.dsl.printer import print_instruction

    @given(operations(CC128))
    def test(operation) -> None:
        text = print_instruction(instruction(*operation))
        program = parse(f"machine cc128 {{ memory 0 size 4K }}\n{text}\n")
        statement = program.lines[1].statement
        assert print_instruction(statement) == text

    test()


def test_a_reproduce_failure_line_works_for_a_machine(tmp_path) -> None:
    text = """
from hypothesis import Phase, reproduce_failure, settings
from hypothesis.stateful import invariant
from capvisor.dsl.stateful import GuestMachine

{}
class Guest(GuestMachine):
    @invariant()
    def nothing_is_refused(self):
        assert self.last is None or self.last.trap is None

class TestGuest(Guest.TestCase):
    settings = settings(print_blob=True, database=None, derandomize=True, deadline=None, phases=[Phase.generate])
"""
    (tmp_path / "test_first.py").write_text(text.format(""))
    printed = run_pytest("test_first.py", folder=tmp_path).stdout
    (line,) = set(re.findall(r"@reproduce_failure\(.*?\)(?= as a decorator)", printed))
    (tmp_path / "test_again.py").write_text(text.format(line))
    again = run_pytest("test_again.py", folder=tmp_path).stdout
    assert "1 failed" in again and "nothing_is_refused" in again and "DidNotReproduce" not in again
