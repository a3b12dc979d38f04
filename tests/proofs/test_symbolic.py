"""The engine against Python itself: expressions and small programs, on ints and symbolically at the same point."""

import operator
from typing import Any

import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from capvisor.model.bits import bit_length, not_, select, sign_extend
from capvisor.proofs import symbolic
from capvisor.proofs.symbolic import SymBool, SymInt, Unfaithful, explore, unsigned

BITS = 9
VALUES = st.tuples(*[st.integers(0, 2**BITS - 1)] * 3)
BINARY = [operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor]
COMPARE = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> Any:
    """A function of three numbers, as a tree of what the reference's code uses."""
    kind = draw(st.integers(0, 9)) if depth else draw(st.integers(0, 1))
    if kind == 0:
        return ("variable", draw(st.integers(0, 2)))
    if kind == 1:
        return ("constant", draw(st.integers(-70, 70)))
    a = draw(expressions(depth - 1))
    if kind == 2:
        return ("shift left", a, draw(expressions(depth - 1)))
    if kind == 3:
        return ("shift right", a, draw(expressions(depth - 1)))
    if kind == 4:
        return ("bit length", a)
    if kind == 5:
        return ("sign extend", a, draw(st.integers(1, 12)))
    b = draw(expressions(depth - 1))
    if kind == 6:
        return ("compare as number", draw(st.sampled_from(COMPARE)), a, b)
    if kind == 7:
        return ("select", draw(st.sampled_from(COMPARE)), a, b, draw(expressions(depth - 1)))
    return ("binary", draw(st.sampled_from(BINARY)), a, b)


def compute(tree: Any, variables: tuple[Any, ...]) -> Any:
    kind, *rest = tree
    if kind == "variable":
        return variables[rest[0]]
    if kind == "constant":
        return rest[0]
    if kind == "binary":
        return rest[0](compute(rest[1], variables), compute(rest[2], variables))
    if kind == "compare as number":
        return rest[0](compute(rest[1], variables), compute(rest[2], variables)) * 3 + 1
    if kind == "select":
        a, b = compute(rest[1], variables), compute(rest[2], variables)
        return select(not_(rest[0](a, b)), compute(rest[3], variables), a)
    a = compute(rest[0], variables)
    if kind == "bit length":
        return bit_length(a & 1023)
    if kind == "sign extend":
        return sign_extend(a, rest[1])
    distance = compute(rest[1], variables) & 15
    return a << distance if kind == "shift left" else a >> distance


def at_point(value: Any, point: dict[str, int]) -> int:
    """The value of a symbolic result where its variables have these values."""
    if not isinstance(value, SymInt | SymBool):
        return int(value)
    term = symbolic.as_int(value).term
    substitutions = [(z3.BitVec(name, BITS), z3.BitVecVal(number, BITS)) for name, number in point.items()]
    return int(z3.simplify(z3.substitute(term, *substitutions)).as_signed_long())


@given(expressions(), VALUES)
def test_expressions_are_worth_the_same(tree: Any, values: tuple[int, int, int]) -> None:
    names = ("a", "b", "c")
    result = compute(tree, tuple(unsigned(name, BITS) for name in names))
    expected = compute(tree, values)
    assert at_point(result, dict(zip(names, values, strict=True))) == expected
    if isinstance(result, SymInt):
        assert result.low <= expected <= result.high


@given(expressions(2), expressions(2), expressions(2), VALUES)
def test_ifs_take_the_way_that_python_takes(first: Any, second: Any, third: Any, values: tuple[int, int, int]) -> None:
    def program(variables: tuple[Any, ...]) -> Any:
        if compute(first, variables) < compute(second, variables):
            if compute(third, variables) == 5:
                raise KeyError
            return compute(third, variables)
        return compute(first, variables) + 1

    names = ("a", "b", "c")
    point = dict(zip(names, values, strict=True))
    paths = explore(lambda: program(tuple(unsigned(name, BITS) for name in names)), expected=(KeyError,))
    substitutions = [(z3.BitVec(name, BITS), z3.BitVecVal(number, BITS)) for name, number in point.items()]
    taken = [p for p in paths if z3.is_true(z3.simplify(z3.substitute(z3.And(*p.conditions, True), *substitutions)))]
    assert len(taken) == 1
    try:
        expected = program(values)
    except KeyError:
        assert isinstance(taken[0].exception, KeyError)
        return
    assert taken[0].exception is None
    assert at_point(taken[0].result, point) == expected


@pytest.mark.parametrize(
    "use",
    [
        lambda x: [1, 2, 3][x],
        lambda x: {x: 1},
        lambda x: {1: 2}[x],
        range,
        int,
        float,
        lambda x: f"{x}",
        str,
        lambda x: 1 if x else 2,
        lambda x: x // 2,
        lambda x: x % 2,
        lambda x: x / 2,
        lambda x: x**2,
        lambda x: 2**x,
        lambda x: 1 << (x - 300),
        lambda x: 1 << (x << 12),
        lambda x: (x - 300).bit_length(),
        lambda x: x + 1.5,
        lambda x: x == "text",
        lambda x: bool(x == 3),
        lambda x: [1, 2][x == 3],
        lambda x: {x == 3: 1},
    ],
)
def test_what_cannot_be_carried_faithfully_is_refused(use: Any) -> None:
    with pytest.raises(Unfaithful):
        use(unsigned("x", 9))


def test_impossible_ways_are_not_taken() -> None:
    x = unsigned("x", 8)

    def program() -> int:
        if x > 10:
            return 1 if x > 5 else 2
        return 3

    assert sorted(path.result for path in explore(program)) == [1, 3]
    assert [path.result for path in explore(program, [(x > 20).term])] == [1]


def test_too_many_ways_are_refused() -> None:
    def program() -> int:
        return sum(1 for bit in range(12) if unsigned("x", 12) >> bit & 1 == 1)

    with pytest.raises(Unfaithful, match="more than 100 ways"):
        explore(program, most=100)


def test_an_operation_on_the_same_terms_is_made_once_and_no_other_is_taken_for_it() -> None:
    a, b = unsigned("a", 8), unsigned("b", 8)
    assert a + b is unsigned("a", 8) + b and (a < b) is (a < b)
    narrow = SymInt(a.term, 0, 7)  # the same term, of which less is known
    assert (narrow + b).high == 7 + 255 and (a + b).high == 255 + 255
    condition = a < b
    assert isinstance(condition & True, SymBool) and isinstance(condition & 1, SymInt)
    assert (a == 1).term.eq((a == True).term) and select(condition, a, 1).low == 0  # noqa: E712 - True is 1


def test_what_was_made_is_forgotten_when_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "_MOST_MADE", 2)
    a = unsigned("a", 8)
    results = [a + number for number in range(1, 9)]
    assert len(symbolic._made_before) <= 2
    assert [
        z3.simplify(z3.substitute(each.term, (z3.BitVec("a", 8), z3.BitVecVal(3, 8)))).as_long() for each in results
    ] == [*range(4, 12)]
