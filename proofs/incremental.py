"""Steps of a system that are executed along all their ways: the goals on each, asked one by one.

A way has a hundred hypotheses at most, so that the solver takes them all at once, and keeps what it learns from one goal to
the next. Where there are many more, `lazy` does better.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import z3

from capvisor.proofs import lazy, solve
from capvisor.proofs.steps import Kept, Proved


@dataclass(frozen=True)
class Way:
    """One way through a step: what holds on it, and the goals."""

    conditions: tuple[z3.BoolRef, ...]
    goals: dict[str, tuple[z3.BoolRef, ...]]
    """Of each invariant what is to be shown, part by part."""
    is_completed: bool
    labels: tuple[str, ...]
    """Of each condition, which invariant it supposes, if any."""
    guards: frozenset[str]
    """The guards of the policy that the step looked at."""
    said: frozenset[str]
    """Those that the invariants themselves speak of."""


_LEANER_MS = 200
"""How long it is tried to do without an invariant that an answer leans on."""


def asked_of(ways: Iterable[Way], asked: Iterable[str], timeout_s: float, leaner_ms: int = _LEANER_MS) -> Proved:
    """Whether each of what is asked holds on every way; `leaner_ms` is tried to do without an invariant that is leant on."""
    result: dict[str, Kept] = {}
    guards: frozenset[str] = frozenset()
    said: frozenset[str] = frozenset()
    for way in ways:
        guards, said = guards | way.guards, said | way.said
        # What falls on one way needn't be asked on others.
        pending = [name for name in asked if way.goals.get(name) and result.get(name, Kept("unsat")).result != "sat"]
        if not pending:
            continue
        question = _Question(way, leaner_ms)
        for name in pending:
            for goal in way.goals[name]:
                answer, leant_on = question.ask(goal, timeout_s)
                result[name] = result.get(name, Kept("unsat")).and_also(answer, leant_on)
    return Proved(result, guards, said)


_BRIEFLY_S = 2.0
"""How long a goal is asked of the solver that goes on from goal to goal, before ones that begin anew are asked."""


class _Question:
    """What holds on a way, of which goals are asked one by one, and which invariants answers lean on."""

    def __init__(self, way: Way, leaner_ms: int) -> None:
        self._leaner_ms = leaner_ms
        self._solver = _switched(z3.SolverFor("QF_ABV"), way)
        self._way = way
        self._supposed: dict[int, str] = {}
        for condition, label in zip(way.conditions, way.labels, strict=True):
            self._supposed |= {part.get_id(): label for part in lazy.conjuncts(condition)}
        self._switches = {label: _switch(label) for label in dict.fromkeys(way.labels) if label}

    def ask(self, goal: z3.BoolRef, timeout_s: float) -> tuple[solve.Answer, set[str]]:
        """Whether a goal can fall ("unsat": it can't), and the labels of what that leans on."""
        if goal.get_id() in self._supposed:
            # What hasn't been touched is as it was.
            return solve.Answer("unsat", 0.0), {self._supposed[goal.get_id()]} - {""}
        self._solver.push()
        answer, leant_on = self._asked(self._solver, goal, min(_BRIEFLY_S, timeout_s))
        self._solver.pop()
        if answer.result == "unknown":
            # How long the first solver takes depends on what it was asked before.
            answer, leant_on = self._asked(_switched(z3.SimpleSolver(), self._way), goal, timeout_s)
        if answer.result == "unknown":
            answer, leant_on = self._asked(_switched(z3.SolverFor("QF_ABV"), self._way), goal, timeout_s)
        return answer, leant_on

    def _asked(self, solver: z3.Solver, goal: z3.BoolRef, timeout_s: float) -> tuple[solve.Answer, set[str]]:
        start = time.perf_counter()
        solver.set("timeout", max(1, int(timeout_s * 1000)))
        solver.add(z3.Not(goal))
        result = solver.check(*self._switches.values())
        seconds = time.perf_counter() - start
        reason = solver.reason_unknown() if result == z3.unknown else ""
        if result != z3.unsat:
            return solve.Answer(str(result), seconds, reason=reason), set()
        core = self._of_core(solver)
        solver.set("timeout", self._leaner_ms)
        for label in sorted(core):
            # What is called a core may have more in it than is needed.
            others = [self._switches[each] for each in core if each != label]
            if label in core and solver.check(*others) == z3.unsat:
                core = self._of_core(solver)
        return solve.Answer(str(result), seconds), core

    def _of_core(self, solver: z3.Solver) -> set[str]:
        core = {each.get_id() for each in solver.unsat_core()}
        return {label for label, switch in self._switches.items() if switch.get_id() in core}


def _switch(label: str) -> z3.BoolRef:
    return z3.Bool(f"supposed {label}")


def _switched(solver: z3.Solver, way: Way) -> z3.Solver:
    """A solver that supposes what holds on a way, invariants where their switches are on."""
    for condition, label in zip(way.conditions, way.labels, strict=True):
        solver.add(z3.Implies(_switch(label), condition) if label else condition)
    return solver


def can_hold(way: Way, timeout_s: float) -> bool:
    """Whether all that is supposed on a way can hold together: else what is proved on it says nothing."""
    solver = z3.SolverFor("QF_ABV")
    solver.set("timeout", int(timeout_s * 1000))
    solver.add(*way.conditions)
    return bool(solver.check() == z3.sat)
