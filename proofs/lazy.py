"""Asking a question with many hypotheses by as few of them as it takes.

A question on tables has hundreds of hypotheses, of which a proof needs a few dozen. So the goal is refuted without any at
first; where values can be found, the hypotheses that they break are added, until none can be found, which proves the goal,
or none is broken, which refutes it. Reads of arrays and results of functions are numbers of their own, and that equal
arguments give equal results is added in the same way, where values break it: what the solver sees is bits alone.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import z3

from capvisor.proofs.solve import Answer

_TOGETHER = 40
"""How many broken hypotheses are added at a time."""


def conjuncts(goal: z3.BoolRef) -> Iterator[z3.BoolRef]:
    """The parts of a conjunction."""
    if not z3.is_and(goal):
        yield goal
        return
    for part in goal.children():
        yield from conjuncts(part)


def symbols(term: z3.ExprRef) -> frozenset[str]:
    """The names of the symbols in a term."""
    return frozenset(each.decl().name() for each in _leaves(term))


def _leaves(term: z3.ExprRef) -> Iterator[z3.ExprRef]:
    seen: set[int] = set()
    pending = [term]
    while pending:
        each = pending.pop()
        if each.get_id() in seen:
            continue
        seen.add(each.get_id())
        if each.num_args() == 0:
            yield each
        pending += each.children()


class _Flat:
    """Terms in which each read of an array and each result of a function is a symbol of its own."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[z3.ExprRef, z3.ExprRef]] = {}
        self._symbols: dict[tuple[str, tuple[int, ...]], z3.ExprRef] = {}
        self.results: dict[str, list[tuple[tuple[z3.ExprRef, ...], z3.ExprRef]]] = {}
        """Of each array and function, the arguments and the symbols of the results."""

    def term(self, term: z3.ExprRef) -> z3.ExprRef:
        """A term made flat."""
        known = self._known.get(term.get_id())
        if known is not None:
            return known[1]
        if z3.is_select(term):
            flat = self._read(term.arg(0), z3.simplify(self.term(term.arg(1))))
        elif term.num_args() == 0:
            flat = term
        else:
            parts = [self.term(each) for each in term.children()]
            flat = self._combined(term, parts)
        # The term is kept, so that its number isn't given to another one.
        self._known[term.get_id()] = term, flat
        return flat

    def _combined(self, term: z3.ExprRef, parts: list[z3.ExprRef]) -> z3.ExprRef:
        declaration = term.decl()
        if declaration.kind() == z3.Z3_OP_UNINTERPRETED:
            return self._result(declaration.name(), tuple(parts), term.sort())
        if z3.is_and(term):
            return z3.And(*parts)
        if z3.is_or(term):
            return z3.Or(*parts)
        return declaration(*parts)

    def _read(self, array: z3.ExprRef, index: z3.ExprRef) -> z3.ExprRef:
        """What an array holds at an index: what was stored last, or what was there at first."""
        if z3.is_K(array):
            return self.term(array.arg(0))
        if not z3.is_store(array):
            if array.num_args():
                raise ValueError(f"{array.decl()} of arrays can't be made flat")
            return self._result(array.decl().name(), (index,), array.sort().range())
        here = z3.simplify(index == self.term(array.arg(1)))
        if z3.is_true(here):
            return self.term(array.arg(2))
        before = self._read(array.arg(0), index)
        return before if z3.is_false(here) else z3.If(here, self.term(array.arg(2)), before)

    def _result(self, name: str, arguments: tuple[z3.ExprRef, ...], sort: z3.SortRef) -> z3.ExprRef:
        key = name, tuple(each.get_id() for each in arguments)
        if key not in self._symbols:
            self._symbols[key] = z3.Const(f"{name}!{len(self._symbols)}", sort)
            self.results.setdefault(name, []).append((arguments, self._symbols[key]))
        return self._symbols[key]


class Question:
    """Hypotheses, of which goals are asked one by one."""

    def __init__(self, hypotheses: Iterable[z3.BoolRef], labels: Iterable[str] = ()) -> None:
        """A label says where a hypothesis is from; without labels, nothing is said of that."""
        self._flat = _Flat()
        self._symbols: dict[int, tuple[z3.ExprRef, frozenset[int]]] = {}
        self._hypotheses: list[z3.BoolRef] = []
        self._labels: dict[int, str] = {}
        self.leant_on: set[str] = set()
        """The labels of what has been used in answers so far."""
        seen: set[int] = set()
        for each, label in itertools.zip_longest(hypotheses, labels, fillvalue=""):
            for part in conjuncts(each):
                flat = z3.simplify(self._flat.term(part))
                if not z3.is_true(flat) and flat.get_id() not in seen:
                    seen.add(flat.get_id())
                    self._hypotheses.append(flat)
                    self._labels[flat.get_id()] = label

    def suppose(self, proved: z3.BoolRef, label: str = "") -> None:
        """One more hypothesis: the first that is looked at."""
        flat = z3.simplify(self._flat.term(proved))
        self._hypotheses.insert(0, flat)
        self._labels.setdefault(flat.get_id(), label)

    def ask(self, goal: z3.BoolRef, timeout_s: float, case: Iterable[z3.BoolRef] = ()) -> Answer:
        """Whether the hypotheses can hold in a case where the goal doesn't: "unsat" says that the goal is proved."""
        start = time.perf_counter()
        refuted = (*case, z3.Not(goal))
        used, pending = [z3.simplify(self._flat.term(each)) for each in refuted], self._hypotheses
        equal_arguments: set[tuple[str, int, int]] = set()
        while True:
            seconds = time.perf_counter() - start
            if seconds >= timeout_s:
                return Answer("unknown", seconds, reason="time limit")
            result, solver = _check(used, timeout_s - seconds)
            if result != z3.sat:
                self.leant_on |= {label for each in used if (label := self._labels.get(each.get_id()))}
                seconds = time.perf_counter() - start
                return Answer(str(result), seconds, reason=solver.reason_unknown() if result == z3.unknown else "")
            model = solver.model()
            broken, pending = _broken(model, pending)
            # Values of symbols that nothing has been said of yet matter only in the end.
            present = frozenset().union(*map(self._symbols_of, used)) if broken else None
            broken += self._unequal(model, present, equal_arguments)
            if not broken:
                return Answer("sat", time.perf_counter() - start)
            used = used + broken

    def _unequal(
        self, model: z3.ModelRef, present: frozenset[int] | None, known: set[tuple[str, int, int]]
    ) -> list[z3.BoolRef]:
        """What says that equal arguments give equal results, where values break it."""
        found = []
        for name, results in self._flat.results.items():
            first: dict[tuple[object, ...], int] = {}
            for number, (arguments, symbol) in enumerate(results):
                if present is not None and symbol.get_id() not in present:
                    continue
                values = tuple(model.eval(each, model_completion=True).sexpr() for each in arguments)
                other = first.setdefault(values, number)
                key = name, other, number
                if other == number or key in known:
                    continue
                others, other_symbol = results[other]
                if model.eval(symbol, model_completion=True).eq(model.eval(other_symbol, model_completion=True)):
                    continue
                known.add(key)
                same = z3.And(*(one == two for one, two in zip(arguments, others, strict=True)))
                found.append(z3.Implies(same, symbol == other_symbol))
        return found

    def _symbols_of(self, term: z3.ExprRef) -> frozenset[int]:
        """The numbers of the symbols in a term."""
        key = term.get_id()
        if key not in self._symbols:
            self._symbols[key] = term, frozenset(each.get_id() for each in _leaves(term))
        return self._symbols[key][1]


_new_solver: Callable[[], z3.Solver] = z3.Then(
    "simplify", "propagate-values", "solve-eqs", "simplify", "bit-blast", "sat"
).solver


def _check(conditions: Sequence[z3.BoolRef], timeout_s: float) -> tuple[z3.CheckSatResult, z3.Solver]:
    solver = _new_solver()
    solver.set("timeout", max(1, int(timeout_s * 1000)))
    solver.add(*conditions)
    return solver.check(), solver


def _broken(model: z3.ModelRef, hypotheses: Sequence[z3.BoolRef]) -> tuple[list[z3.BoolRef], list[z3.BoolRef]]:
    """The first hypotheses that values break, and all others."""
    broken: list[z3.BoolRef] = []
    others: list[z3.BoolRef] = []
    for each in hypotheses:
        breaks = len(broken) < _TOGETHER and not z3.is_true(model.eval(each, model_completion=True))
        (broken if breaks else others).append(each)
    return broken, others
