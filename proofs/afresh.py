"""Executing along all ways, and asking goals, with a solver that begins anew for each question.

Where states are tables of the solver's arrays and hypotheses a hundred, a solver that is asked once answers in a tenth of
the time of one that goes on from question to question.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import z3

from capvisor.proofs import solve, symbolic
from capvisor.proofs.incremental import Way
from capvisor.proofs.steps import Kept, Proved
from capvisor.proofs.symbolic import Path, term_of

_FEASIBLE_MS = 5000
"""After how long a way is taken without its being known to be possible."""

MOST_ALONE = 40
"""How many parts of what is asked are asked one by one at most."""


class _Explorer(symbolic._Explorer):
    """Asks only for the other way than the one that the last known state takes."""

    _model: z3.ModelRef | None = None

    def start(self, prefix: list[bool]) -> None:
        super().start(prefix)
        self._model, self._known = None, dict[int, tuple[z3.BoolRef, bool]]()

    def decide(self, condition: symbolic.SymBool) -> bool:
        depth, term = len(self.taken), z3.simplify(condition.term)
        if term.get_id() in self._known:
            # It was decided before, and is no choice.
            return self._known[term.get_id()][1]
        if depth < len(self._prefix):
            choice = self._prefix[depth]
        else:
            choice, is_open = self._chosen(condition)
            if is_open:
                self.pending.append([*self.taken, not choice])
        self.taken.append(choice)
        self.conditions.append(condition.term if choice else z3.Not(condition.term))
        self._known[term.get_id()] = term, choice
        return choice

    def _chosen(self, condition: symbolic.SymBool) -> tuple[bool, bool]:
        """A way that is possible, and whether the other one may be."""
        if self._model is not None and not all(map(self._holds, self.conditions[self._seen :])):
            self._model = None
        self._seen = len(self.conditions)
        if self._model is None and not self._feasible(condition, True):
            return False, False
        choice = self._model is None or self._holds(condition.term)
        kept = self._model
        is_open = self._feasible(condition, not choice)
        self._model = kept
        return choice, is_open

    _seen = 0

    def _holds(self, term: z3.BoolRef) -> bool:
        assert self._model is not None
        return z3.is_true(self._model.eval(term, model_completion=True))

    def _feasible(self, condition: symbolic.SymBool, value: bool) -> bool:
        solver = z3.SolverFor("QF_ABV")
        solver.set("timeout", _FEASIBLE_MS)
        solver.add(*self.conditions, condition.term if value else z3.Not(condition.term))
        result = solver.check()
        if result == z3.sat:
            self._model = solver.model()
        return bool(result != z3.unsat)


def suppose(condition: Any) -> None:
    """Suppose a condition on the way that is being executed: ways on which it doesn't hold aren't taken."""
    symbolic._explorers[-1].conditions.append(term_of(condition))


def explore(function: Callable[[], Any], most: int = 5000) -> list[Path]:
    """As symbolic.explore, of a function that raises nothing. Raises Unfaithful for more than `most` ways."""
    explorer = _Explorer([], 0)
    paths: list[Path] = []
    while explorer.pending:
        explorer.start(explorer.pending.pop())
        with symbolic._exploring(explorer):
            result = function()
        paths.append(Path(tuple(explorer.conditions), result, None))
        if len(paths) > most:
            raise symbolic.Unfaithful(f"more than {most} ways through a function")
    return paths


def asked_of(ways: Iterable[Way], asked: Iterable[str], timeout_s: float) -> Proved:
    """Whether each of what is asked holds on every way, part by part, or, where these are many, all of them at once."""
    result: dict[str, Kept] = {}
    guards: frozenset[str] = frozenset()
    for way in ways:
        guards = guards | way.guards
        for name in asked:
            if result.get(name, Kept("unsat")).result == "sat":
                continue
            goals = list(
                {goal.get_id(): goal for goal in map(z3.simplify, way.goals[name]) if not z3.is_true(goal)}.values()
            )
            together = [goals] if len(goals) > MOST_ALONE else [[goal] for goal in goals]
            kept = result.get(name, Kept("unsat"))
            for each in together:
                kept = kept.and_also(_ask(way, z3.And(*each), timeout_s), ())
                if kept.result == "sat":
                    break
            result[name] = kept
    return Proved(result, guards, frozenset())


def _ask(way: Way, goal: z3.BoolRef, timeout_s: float) -> solve.Answer:
    """Whether a goal can fall on a way ("unsat": it can't)."""
    start = time.perf_counter()
    solver = z3.SolverFor("QF_ABV")
    solver.set("timeout", max(1, int(timeout_s * 1000)))
    solver.add(*way.conditions, z3.Not(goal))
    result = solver.check()
    reason = solver.reason_unknown() if result == z3.unknown else ""
    return solve.Answer(str(result), time.perf_counter() - start, reason=reason)
