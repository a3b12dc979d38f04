"""Asking a question with many hypotheses by as few of them as it takes.

A question on tables has hundreds of hypotheses, of which a proof needs a few dozen. So the goal is refuted without any at
first; where values can be found, the hypotheses that they break are added, until none can be found, which proves the goal,
or none is broken, which refutes it. Reads of arrays and results of functions are numbers of their own, and that equal
arguments give equal results is added in the same way, where values break it: what the solver sees is bits alone.
"""

import functools
import itertools
import operator
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import z3

from capvisor.proofs.flat import Result, Terms
from capvisor.proofs.solve import Answer

_TOGETHER = 40
"""How many broken hypotheses are added at a time."""

_FIRST_ROUNDS, _MORE_ROUNDS = 14, 1.5
"""After how many rounds hypotheses are put in another order, and by what factor that grows."""

_FIRST_CHECK_S = 3.0
"""After how long a round is given up, and hypotheses are put in another order: that grows by the same factor."""


def conjuncts(goal: z3.BoolRef) -> Iterator[z3.BoolRef]:
    """The parts of a conjunction."""
    if not z3.is_and(goal):
        yield goal
        return
    for part in goal.children():
        yield from conjuncts(part)


def _clauses(goal: z3.BoolRef) -> Iterator[z3.BoolRef]:
    """The parts of a goal that is a conjunction, or one in some other conditions: not all ways of dividing it."""
    within = [each for each in goal.children() if z3.is_and(each)] if z3.is_or(goal) else []
    if z3.is_and(goal):
        for part in goal.children():
            yield from _clauses(part)
    elif within:
        others = [each for each in goal.children() if not each.eq(within[-1])]
        yield from (z3.Or(*others, part) for part in conjuncts(within[-1]))
    else:
        yield goal


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


_Pairs = list[tuple[z3.ExprRef, z3.ExprRef]]


class Question:
    """Hypotheses, of which goals are asked one by one."""

    def __init__(
        self,
        hypotheses: Iterable[z3.BoolRef],
        labels: Iterable[str] = (),
        *,
        terms: Terms | None = None,
    ) -> None:
        """A label says where a hypothesis is from; without labels, nothing is said of that.

        Questions that have much in common may share their `terms`.
        """
        self._terms = terms or Terms()
        self.flat = self._terms.flat
        """A goal as it is asked: two that come to the same here are one question."""
        self._symbols_of = self._terms.symbols
        self._present = 0
        self._results: dict[str, list[Result]] = {}
        """Of each array and function, the results that this question is about; their symbols are `_present`."""
        self._hypotheses: list[z3.BoolRef] = []
        self._labels: dict[int, str] = {}
        self.leant_on: set[str] = set()
        """The labels of what has been used in answers so far."""
        seen: set[int] = set()
        for each, label in itertools.zip_longest(hypotheses, labels, fillvalue=""):
            for part in conjuncts(each):
                flat = self.flat(part)
                if not z3.is_true(flat) and flat.get_id() not in seen:
                    seen.add(flat.get_id())
                    self._hypotheses.append(flat)
                    self._labels[flat.get_id()] = label
        self._look_at(self._hypotheses)

    def _look_at(self, flat: Iterable[z3.ExprRef]) -> None:
        """The results in flat terms, those in their arguments included, are what this question is about."""
        found = functools.reduce(operator.or_, map(self._symbols_of, flat), 0)
        while new := found & self._terms.of_results & ~self._present:
            self._present |= new
            while new:
                bit = new & -new
                new ^= bit
                name, result = self._terms.result_of[bit]
                self._results.setdefault(name, []).append(result)
                found |= result.within

    def suppose(self, proved: z3.BoolRef, label: str = "") -> None:
        """One more hypothesis: the first that is looked at."""
        flat = self.flat(proved)
        self._hypotheses.insert(0, flat)
        self._labels.setdefault(flat.get_id(), label)
        self._look_at([flat])

    def known(self, goal: z3.BoolRef) -> frozenset[str] | None:
        """The labels of the hypotheses that a goal consists of, if it does: what a step hasn't touched needn't be asked."""
        parts = [each for each in map(self.flat, conjuncts(goal)) if not z3.is_true(each)]
        if any(each.get_id() not in self._labels for each in parts):
            return None
        return frozenset(label for each in parts if (label := self._labels[each.get_id()]))

    def parts(self, goal: z3.BoolRef) -> list[z3.BoolRef]:
        """Goals that together are a goal."""
        return list(_clauses(self.flat(goal)))

    def ask(
        self,
        goal: z3.BoolRef,
        timeout_s: float,
        case: Iterable[z3.BoolRef] = (),
        tier: Callable[[str], int] = lambda _label: 0,
        *,
        grows: bool = False,
    ) -> Answer:
        """Whether the hypotheses can hold in a case where the goal doesn't: "unsat" says that the goal is proved.

        A solver that `grows` is kept from round to round, and knows arithmetic of bits: it is the quickest where a question
        is easy. Else each round has one of its own, which knows bits alone: what is hard takes a fifth of the time.

        Which hypotheses are met first decides between a moment and minutes. So after some rounds it is tried again with
        them in another order, by the other kind of solver, and with more rounds each time. Those whose label is of a higher
        tier are used only where values break nothing else: so a proof leans on few labels of high tiers.
        """
        start = time.process_time()
        flat = [self._terms.term(each) for each in (*case, z3.Not(goal))]
        self._look_at(flat)
        asked = [*map(z3.simplify, flat), *self._merged(flat[:-1])]
        tiers: list[list[z3.BoolRef]] = []
        for each in self._hypotheses:
            number = tier(self._labels[each.get_id()])
            tiers += [[] for _ in range(number + 1 - len(tiers))]
            tiers[number].append(each)
        rounds, check_s, mixing = float(_FIRST_ROUNDS), _FIRST_CHECK_S, random.Random(0)
        while True:
            solver = _Growing() if grows else _Anew()
            answer = self._search(asked, tiers, int(rounds), start + timeout_s, check_s, solver)
            if answer is not None:
                return replace(answer, seconds=time.process_time() - start)
            for each in tiers:
                mixing.shuffle(each)
            rounds, check_s, grows = rounds * _MORE_ROUNDS, check_s * _MORE_ROUNDS, not grows

    def _search(
        self,
        asked: list[z3.BoolRef],
        tiers: Sequence[Sequence[z3.BoolRef]],
        rounds: int,
        end_s: float,
        check_s: float,
        solver: "_Growing",
    ) -> Answer | None:
        """An answer by as few hypotheses as it takes, if so many rounds of so many seconds are enough."""
        used, pending = asked, list(tiers)
        solver.add(asked)
        equal_arguments: set[tuple[str, int, int]] = set()
        for _round in range(rounds):
            left_s = end_s - time.process_time()
            if left_s <= 0:
                return Answer("unknown", 0.0, reason="time limit")
            result = solver.check(min(left_s, check_s))
            if result == z3.unknown and check_s < left_s:
                return None
            if result != z3.sat:
                self.leant_on |= {label for each in used if (label := self._labels.get(each.get_id()))}
                return Answer(str(result), 0.0, reason=solver.reason() if result == z3.unknown else "")
            values = _Values(solver.model())
            broken: list[z3.BoolRef] = []
            present = functools.reduce(operator.or_, map(self._symbols_of, used))
            for number, each in enumerate(pending):
                if number and (broken := self._unequal(values, present, equal_arguments)):
                    break
                broken, pending[number] = _broken(values, each)
                if broken:
                    break
            # Values of symbols that nothing has been said of yet matter only in the end.
            broken += self._unequal(values, present if broken else None, equal_arguments)
            if not broken:
                return Answer("sat", 0.0)
            used = used + broken
            solver.add(broken)
        return None

    def _merged(self, case: Sequence[z3.BoolRef]) -> list[z3.BoolRef]:
        """Results that are equal as the equalities of a case make arguments the same."""
        known = [pair for each in case if (pair := _definition(each))]
        false = [(z3.simplify(each.arg(0)), z3.BoolVal(False)) for each in case if z3.is_not(each)]
        names = functools.reduce(operator.or_, (self._symbols_of(each) for each, _ in (*known, *false)), 0)
        found: list[z3.BoolRef] = []
        merged = 0
        while True:
            pairs = []
            alive: list[z3.ExprRef] = []  # So that a term's number isn't given to another one.
            for results in self._results.values():
                first: dict[tuple[int, ...], z3.ExprRef] = {}
                for arguments, symbol, numbers, bit, within in results:
                    if bit & merged:
                        continue
                    key = numbers
                    if within & names:
                        terms = [self._replaced(each, false, known, names) for each in arguments]
                        key = tuple(each.get_id() for each in terms)
                        alive += terms
                    other = first.setdefault(key, symbol)
                    if other is not symbol:
                        pairs.append((symbol, other))
                        merged |= bit
            found += [symbol == other for symbol, other in pairs]
            known += pairs
            names = functools.reduce(operator.or_, (self._symbols_of(symbol) for symbol, _other in pairs), names)
            if not pairs:
                break
        return found

    def _replaced(self, term: z3.ExprRef, false: _Pairs, known: _Pairs, names: int) -> z3.ExprRef:
        if not self._symbols_of(term) & names:
            return term
        for pairs in (false, known):
            term = z3.substitute(term, *pairs) if pairs else term
        return z3.simplify(term)

    def _unequal(self, values: "_Values", present: int | None, known: set[tuple[str, int, int]]) -> list[z3.BoolRef]:
        """What says that equal arguments give equal results, where values break it."""
        found = []
        for name, results in self._results.items():
            first: dict[tuple[int, ...], int] = {}
            for number, (arguments, symbol, _key, bit, _within) in enumerate(results):
                if present is not None and not bit & present:
                    continue
                other = first.setdefault(tuple(map(values.of, arguments)), number)
                key = name, other, number
                if other == number or key in known:
                    continue
                others, other_symbol = results[other][:2]
                if values.of(symbol) == values.of(other_symbol):
                    continue
                known.add(key)
                same = z3.And(*(one == two for one, two in zip(arguments, others, strict=True)))
                found.append(z3.Implies(same, symbol == other_symbol))
        return found


_EXTENDED = (z3.Z3_OP_ZERO_EXT, z3.Z3_OP_SIGN_EXT)


def _definition(condition: z3.BoolRef) -> tuple[z3.ExprRef, z3.ExprRef] | None:
    """The symbol that a condition makes equal to a term, and the term."""
    if z3.is_eq(condition):
        one, other = condition.children()
        for side, term in ((one, other), (other, one)):
            symbol = side
            while z3.is_app(symbol) and symbol.decl().kind() in _EXTENDED:
                symbol = symbol.arg(0)
            if z3.is_const(symbol) and symbol.decl().kind() == z3.Z3_OP_UNINTERPRETED:
                is_shorter = z3.is_bv(symbol) and symbol.size() < term.size()
                return symbol, z3.Extract(symbol.size() - 1, 0, term) if is_shorter else term
    return None


class _Growing:
    """A solver that what it is asked is added to, and which keeps what it has learnt of it."""

    def __init__(self) -> None:
        self._solver = z3.SimpleSolver()

    def add(self, conditions: Sequence[z3.BoolRef]) -> None:
        """More conditions."""
        self._solver.add(*conditions)

    def check(self, timeout_s: float) -> z3.CheckSatResult:
        """Whether all conditions can hold."""
        self._solver.set("timeout", max(1, int(timeout_s * 1000)))
        return self._solver.check()

    def model(self) -> z3.ModelRef:
        """Values with which they hold."""
        return self._solver.model()

    def reason(self) -> str:
        """Why that isn't known."""
        return self._solver.reason_unknown()


class _Anew(_Growing):
    """A solver that is asked of all conditions anew each time, of their bits."""

    _new_solver: Callable[[], z3.Solver] = z3.Then(
        "simplify", "propagate-values", "solve-eqs", "simplify", "bit-blast", "sat"
    ).solver

    def __init__(self) -> None:
        self._conditions: list[z3.BoolRef] = []

    def add(self, conditions: Sequence[z3.BoolRef]) -> None:
        self._conditions += conditions

    def check(self, timeout_s: float) -> z3.CheckSatResult:
        self._solver = self._new_solver()
        self._solver.add(*self._conditions)
        return super().check(timeout_s)


class _Values:
    """Values of all symbols. The library itself is asked: what z3's Python does around a call takes longer than the call."""

    _true = z3.BoolVal(True)

    def __init__(self, model: z3.ModelRef) -> None:
        self._model = model
        self._kept: dict[int, z3.AstRef] = {}

    def of(self, term: z3.ExprRef) -> int:
        """A term's value: the number of an expression, the same for equal values."""
        found = (z3.Ast * 1)()
        z3.Z3_model_eval(self._model.ctx.ref(), self._model.model, term.as_ast(), True, found)
        value = found[0]
        if value.value not in self._kept:
            # Kept, so that the number isn't given to another value.
            self._kept[value.value] = z3.AstRef(value, self._model.ctx)
        return int(value.value)

    def is_true(self, condition: z3.BoolRef) -> bool:
        """Whether a condition holds."""
        return self.of(condition) == self._true.as_ast().value


def _broken(values: _Values, hypotheses: Sequence[z3.BoolRef]) -> tuple[list[z3.BoolRef], list[z3.BoolRef]]:
    """The first hypotheses that values break, and all others."""
    broken: list[z3.BoolRef] = []
    others: list[z3.BoolRef] = []
    for each in hypotheses:
        breaks = len(broken) < _TOGETHER and not values.is_true(each)
        (broken if breaks else others).append(each)
    return broken, others
