"""Seeing theorems fall: each named mutant in force, one at a time, and the counterexample that it gives."""

from collections.abc import Iterator
from dataclasses import dataclass

from capvisor.proofs import flows, isa, solve
from capvisor.proofs.mutants import MUTANTS, Mutant, in_force
from capvisor.proofs.theorem import Obligation, Theorem, queries, replay
from capvisor.spec.formats import FORMATS

_STATES = 1000
"""How many drawn states a cell is looked at in."""


@dataclass(frozen=True)
class Bite:
    """What a mutant did to a theorem: the obligation that fell and the values with which it does, or None."""

    theorem: Theorem
    mutant: Mutant
    fallen: Obligation | None
    values: dict[str, int] | None


def bites(theorem: Theorem, timeout_s: float) -> Iterator[Bite]:
    """Try a theorem's mutants, on the narrowest of its formats that one of them breaks."""
    for name in theorem.mutants:
        with in_force(MUTANTS[name]):
            yield _bite(theorem, MUTANTS[name], timeout_s)


def _bite(theorem: Theorem, mutant: Mutant, timeout_s: float) -> Bite:
    for fmt in sorted((FORMATS[name] for name in theorem.formats), key=lambda each: each.address_width):
        obligation = Obligation(theorem, fmt)
        family = next((each for each in (isa, flows) if each.is_cell(obligation)), None)
        if family is not None:
            task = next(iter(family.tasks([obligation])))
            for number in range(_STATES):
                if family.looked_at(task, number)[1]:
                    return Bite(theorem, mutant, obligation, {"drawn_state": number})
            continue
        asked = queries(obligation)
        for label in asked.labels:
            if label in ("assumptions", "cases"):
                continue
            answer = solve.ask("z3", asked.conditions(label), asked.symbols, timeout_s)
            # It counts once the changed code itself fails on plain ints.
            if answer.values is not None and replay(obligation, answer.values) == (True, False):
                return Bite(theorem, mutant, obligation, answer.values)
    return Bite(theorem, mutant, None, None)
