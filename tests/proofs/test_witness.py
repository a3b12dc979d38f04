"""Counterexamples as programs: what breaks a theorem makes its program fail, and nothing else does."""

import pytest

from capvisor.dsl.parser import parse
from capvisor.dsl.runner import run
from capvisor.proofs import runner, witness
from capvisor.proofs.mutants import MUTANTS, in_force
from capvisor.proofs.teeth import bites
from capvisor.proofs.theorem import THEOREMS, obligations

assert runner  # imported for the theorems that it brings along

STATED = [each for each in THEOREMS.values() if each.id in witness._STATED]
UNSAID = {
    "bounds.types", "bounds.set.power", "bounds.set.no_tighter",
    "bounds.set.rounds", "bounds.shape", "bounds.set.finer", "bounds.set.monotone", "bounds.move.fast_gap",
    "bounds.move.region", "bounds.valid_field", "permissions.set", "invariant.root", "kernels.floor_log2",
    "kernels.bounds_are_valid", "kernels.permits", "kernels.within_bounds", "kernels.set_permissions",
}  # fmt: skip


def test_every_theorem_that_the_language_can_state_is_stated() -> None:
    assert {each.id for each in THEOREMS.values()} - {each.id for each in STATED} == UNSAID
    assert set(witness._STATED) <= set(THEOREMS) | {"sealed.build", "sealed.conditional_seal", "sealed.unseal"}


@pytest.mark.parametrize("theorem", [each for each in STATED if each.mutants], ids=lambda theorem: theorem.id)
def test_a_counterexample_is_a_program_that_fails_while_the_code_is_broken(theorem) -> None:
    shown = 0
    for bite in list(bites(theorem, 60)):
        assert bite.fallen is not None and bite.values is not None
        with in_force(MUTANTS[bite.mutant.name]):
            text = witness.program_of(bite.fallen, bite.values)
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
