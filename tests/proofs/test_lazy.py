"""Questions that are asked by few of their hypotheses: the answers are the solver's own."""

import random

import pytest
import z3

from capvisor.proofs import lazy
from capvisor.proofs.flat import Terms

X, Y, Z = z3.BitVecs("x y z", 4)
ARRAY = z3.Array("table", z3.BitVecSort(4), z3.BitVecSort(4))
FLAGS = z3.Array("flags", z3.BitVecSort(4), z3.BoolSort())
FUNCTION = z3.Function("function", z3.BitVecSort(4), z3.BitVecSort(4), z3.BitVecSort(4))


def any_number(random: random.Random, depth: int) -> z3.BitVecRef:
    if depth == 0:
        return random.choice((X, Y, Z, z3.BitVecVal(random.randrange(16), 4)))
    a, b, c = (any_number(random, depth - 1) for _ in range(3))
    stored = z3.Store(z3.Store(ARRAY, a, b), c, a)
    empty = z3.Store(z3.K(z3.BitVecSort(4), b), a, c)
    made = (a + b, a & b, ARRAY[a], stored[b], empty[b], FUNCTION(a, b), z3.If(FLAGS[a], b, c), z3.If(a == b, c, a))
    return random.choice(made)


def any_condition(random: random.Random) -> z3.BoolRef:
    a, b = any_number(random, 2), any_number(random, 2)
    return random.choice((a == b, a != b, z3.ULE(a, b), z3.Implies(a == X, FLAGS[b]), z3.Or(FLAGS[a], a == b)))


def test_the_answer_is_that_of_all_hypotheses_together() -> None:
    seen = set()
    for seed in (*range(6), *range(16, 20)):
        chosen = random.Random(seed)
        hypotheses = [any_condition(chosen) for _ in range(4 + 3 * seed)]
        goal, case = any_condition(chosen), any_condition(chosen)
        solver = z3.Solver()
        solver.add(*hypotheses, case, z3.Not(goal))
        for grows in (False, True):
            answer = lazy.Question(hypotheses).ask(goal, 60, (case,), grows=grows).result
            assert answer == str(solver.check()), seed
            seen.add(answer)
    assert seen == {"sat", "unsat"}


def test_what_was_proved_may_be_supposed() -> None:
    question = lazy.Question([z3.ULE(X, Y)])
    assert question.ask(z3.ULE(X, Z), 60).result == "sat"
    question.suppose(z3.ULE(Y, Z))
    assert question.ask(z3.ULE(X, Z), 60).result == "unsat"


def test_arrays_that_cannot_be_made_flat_are_refused() -> None:
    chosen = z3.If(X == Y, ARRAY, z3.Store(ARRAY, X, Y))
    with pytest.raises(ValueError, match="can't be made flat"):
        lazy.Question([chosen[Z] == X])


def test_an_answer_takes_no_longer_than_it_may() -> None:
    assert lazy.Question([]).ask(X == Y, 0).result == "unknown"


def test_what_is_supposed_is_known_at_sight_with_where_it_is_from() -> None:
    question = lazy.Question([z3.ULE(X, Y), z3.And(FLAGS[X], ARRAY[Y] == Z)], ["C1", ""])
    assert question.known(z3.And(ARRAY[Y] == Z, z3.ULE(X, Y))) == {"C1"}
    assert question.known(z3.BoolVal(True)) == frozenset() == question.known(FLAGS[X])
    assert question.known(z3.ULE(X, Z)) is None and question.known(z3.And(FLAGS[X], FLAGS[Y])) is None
    assert z3.is_true(question.flat(z3.Store(ARRAY, X, Z)[X] == Z))


def test_questions_that_share_terms_are_answered_as_each_alone() -> None:
    shared, answers = Terms(), []
    for seed in range(8):
        chosen = random.Random(seed)
        hypotheses = [any_condition(chosen) for _ in range(3)]
        goal = hypotheses[seed % 3] if seed % 2 else any_condition(chosen)
        together, alone = (lazy.Question(hypotheses, terms=each).ask(goal, 60).result for each in (shared, Terms()))
        assert together == alone
        answers.append(alone)
    assert set(answers) == {"sat", "unsat"}
