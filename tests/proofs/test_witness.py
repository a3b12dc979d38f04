"""Counterexamples as programs: what breaks a theorem makes its program fail, and nothing else does."""

import pytest
from junitparser import JUnitXml

from capvisor.cli import main as command
from capvisor.cli import prove
from capvisor.cli.status import Status
from capvisor.dsl.parser import parse
from capvisor.dsl.runner import run
from capvisor.proofs import lane_memory, runner, witness
from capvisor.proofs.mutants import MUTANTS, in_force
from capvisor.proofs.teeth import bites
from capvisor.proofs.theorem import THEOREMS, Obligation, obligations
from capvisor.spec.formats import FORMATS
from tests.shares import some

assert runner  # imported for the theorems that it brings along

STATED = [each for each in THEOREMS.values() if each.id in witness._STATED]
UNSAID = {
    "bounds.types", "bounds.set.power", "bounds.set.no_tighter",
    "bounds.set.rounds", "bounds.shape", "bounds.set.finer", "bounds.set.monotone", "bounds.move.fast_gap",
    "bounds.move.region", "bounds.valid_field", "permissions.set", "invariant.root", "kernels.floor_log2",
    "monitor.mint", "orc.mint", "orc.whole",
    "kernels.bounds_are_valid", "kernels.permits", "kernels.within_bounds", "kernels.set_permissions", "invariant.fields",
    *lane_memory.LEMMAS,
    *(name for name in THEOREMS if name.startswith("composition.")),
}  # fmt: skip


def test_every_theorem_that_the_language_can_state_is_stated() -> None:
    assert {each.id for each in THEOREMS.values()} - {each.id for each in STATED} == UNSAID
    assert set(witness._STATED) <= set(THEOREMS) | {"sealed.build", "sealed.conditional_seal", "sealed.unseal"}


@pytest.mark.parametrize("theorem", some([each for each in STATED if each.mutants], 3), ids=lambda theorem: theorem.id)
def test_a_counterexample_is_a_program_that_fails_while_the_code_is_broken(theorem) -> None:
    shown = 0
    for bite in list(bites(theorem, 60)):
        assert bite.fallen is not None and bite.values is not None
        with in_force(MUTANTS[bite.mutant.name]):
            # The values that a solver finds differ from machine to machine; those that are drawn don't.
            fallen = [Obligation(theorem, FORMATS[name]) for name in theorem.formats]
            found = (witness.any_program_of(each, bite.values if each == bite.fallen else {}) for each in fallen)
            text = next(filter(None, found), None)
            shown += text is not None
            if text is not None:
                assert not run(parse(text), _lets(text)).passed
        if text is not None:
            assert run(parse(text), _lets(text)).passed
    assert shown, theorem.id


def _lets(text: str) -> dict[str, int]:
    return {line.split()[1]: int(line.split()[3], 0) for line in text.splitlines() if line.startswith("let ")}


@pytest.mark.parametrize("name", ["bounds.valid_top.cc64", "bounds.invalid_order.cc128"])
def test_a_statement_that_is_false_has_its_program(name) -> None:
    obligation = obligations()[name]
    outcomes, _interrupted = runner.prove([obligation], runner.Settings())
    assert witness.program_of(obligation, outcomes[0].counterexample) is not None


def test_the_command_saves_programs_and_writes_junit(tmp_path, capsys) -> None:
    folder, report = tmp_path / "found", tmp_path / "report.xml"
    arguments = ["prove", "bounds.valid_top.cc64", "bounds.round.up.cc64", "--no-cache"]
    assert command.status_of([*arguments, "--save", str(folder), "--junit", str(report)]) == Status.OK
    assert [path.name for path in folder.iterdir()] == ["bounds.valid_top.cc64.cap"]
    assert command.status_of(["run", str(folder)]) == Status.VIOLATION
    cases = list(next(iter(JUnitXml.fromfile(str(report)))))
    assert {(case.classname, case.name) for case in cases} == {
        ("capvisor.bounds", "valid_top.cc64"),
        ("capvisor.bounds", "round.up.cc64"),
    }
    assert all(case.is_passed for case in cases)
    with in_force(MUTANTS["crrl-down"]):
        obligation = obligations()["bounds.round.up.cc64"]
        (bite,) = (each for each in bites(obligation.theorem, 20) if each.mutant.name == "crrl-down")
        outcome = runner.Outcome(obligation, runner.Verdict.REFUTED, counterexample=bite.values)
        assert prove._as_case(outcome).message == "REFUTED" and not prove._as_case(outcome).is_error
    capsys.readouterr()
    assert command.status_of([*arguments, "--junit", str(tmp_path / "no" / "report.xml")]) == Status.USAGE
    assert "there is no folder" in capsys.readouterr().err
