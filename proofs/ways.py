"""Ways through a step with many hypotheses, and goals on each, asked lazily, case by case where that is needed."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import z3

from capvisor.proofs import lazy, solve
from capvisor.proofs.symbolic import as_int, term_of

Cases = dict[str, tuple[z3.BoolRef, ...]]


class Goal(NamedTuple):
    """What is to be shown at a place, and the symbol of the cVM whose place it is, if it is one's."""

    condition: z3.BoolRef
    holder: str = ""


@dataclass(frozen=True)
class Way:
    """One way through a step: what holds on it, and the goal of each invariant."""

    conditions: tuple[z3.BoolRef, ...]
    goals: dict[str, tuple[Goal, ...]]
    """Of each invariant what is to be shown, part by part: of each capability at each place."""
    cases: Cases
    """Of each symbol of a place, the conditions on which it is one that the step wrote to."""
    of_holders: dict[str, tuple[tuple[z3.BoolRef, ...], ...]]
    """Of each cVM whose places goals are about, the conditions on which it, or its outer one, is concerned in the step."""
    looked_at: tuple[z3.BoolRef, ...]
    """The conditions on which the cVM of a place is one that the step looked at."""
    is_completed: bool
    labels: tuple[str, ...]
    """Of each condition, which invariant it supposes, if any."""
    guards: frozenset[str]
    """The guards of the policy that the step looked at."""
    said: frozenset[str]
    """Those that the invariants themselves speak of."""


def which(symbol: Any, numbers: Sequence[Any]) -> tuple[z3.BoolRef, ...]:
    """The conditions on which a symbol is one of some numbers, the last one first, none twice."""
    terms = [(z3.simplify(term), term) for number in reversed(numbers) for term in [_is_at(symbol, number)]]
    found = {short.get_id(): term for short, term in terms if not (z3.is_false(short) or z3.is_true(short))}
    return tuple(found.values())


def name_of(symbol: Any) -> str:
    """The name of a symbol."""
    (name,) = lazy.symbols(as_int(symbol).term)
    return name


def _is_at(symbol: Any, number: Any) -> z3.BoolRef:
    """That a place is the one of a number, as the solver's arrays compare them."""
    bits = as_int(symbol).width - 1
    return z3.simplify(as_int(symbol).at(bits)) == z3.simplify(as_int(number).at(bits))


_OF_GRANULES = ("memory_tags", "slots_is_slot")
"""The arrays of what is known of granules: a goal that looks at neither isn't about one."""


def _split(way: Way, goal: Goal, depth: int) -> Iterator[tuple[z3.BoolRef, ...]]:
    """The cases in which a goal is asked that is too much at once.

    At depth 1, each symbol of its place is one that was written to, the first such, or none; at 2, its holder is a cVM that
    is concerned in the step, or none; at 3, the place's cVM is one that the step looked at, or none.
    """
    names = lazy.symbols(goal.condition)
    if depth == 1:
        of_granule = not names.isdisjoint(_OF_GRANULES)
        concerned = {name for name in way.cases if name in names and (name != "any_granule" or of_granule)}
        ways_to_be = [_one_of(conditions) for name, conditions in way.cases.items() if name in concerned]
    elif depth == 2:
        ways_to_be = [_one_of(conditions) for conditions in way.of_holders.get(goal.holder, ())]
    else:
        ways_to_be = [_one_of(way.looked_at)] if "any_cvm" in names else []
    for chosen in itertools.product(*ways_to_be):
        yield tuple(itertools.chain.from_iterable(chosen))


def _one_of(conditions: tuple[z3.BoolRef, ...]) -> list[tuple[z3.BoolRef, ...]]:
    """That the first of some conditions holds; the second, but not the first; and so on; that none does."""
    none = [z3.Not(each) for each in conditions]
    return [(*none[:place], each) for place, each in enumerate(conditions)] + [tuple(none)]


def parts_of(
    goals: dict[str, tuple[Any, ...]], places: Iterable[str], about: str, holders: Sequence[str]
) -> dict[str, tuple[Goal, ...]]:
    """The parts of goals, none of one goal twice, and none that another way is about."""
    others = set(places) - {about} if about else set[str]()
    found: dict[str, tuple[Goal, ...]] = {}
    for name, said in goals.items():
        # Threads that the step starts have no symbol for their cVM: it is one that the step knows.
        named = itertools.zip_longest(said, holders[: len(said)], fillvalue="")
        parts = [Goal(part, holder) for place, holder in named for part in lazy.conjuncts(term_of(place))]
        parts = [part for part in parts if not others or not others & lazy.symbols(part.condition)]
        seen: set[int] = set()
        new = (part for part in parts if part.condition.get_id() not in seen)
        found[name] = tuple(part for part in new if not seen.add(part.condition.get_id()))  # type: ignore[func-returns-value]
    return found


_BRIEFLY_S = (1.0, 8.0, 12.0, 12.0)
"""How long a goal is asked at once, in few cases, in more, and in parts, before what gave no answer is split further."""

_PARTS = 3
"""Which of these it is that divides goals."""


def ask(
    way: Way, question: lazy.Question, goal: Goal, timeout_s: float, tier: Callable[[str], int] | None = None
) -> solve.Answer:
    """Whether a goal can fall: asked at once, then in ever more cases, and parts, where that gives no answer.

    Before all, briefly, by hypotheses in the order of their tiers, if there are any: so that the answer leans on few.
    """
    seconds = 0.0
    if tier is not None:
        answer = question.ask(goal.condition, min(_BRIEFLY_S[0], timeout_s), (), tier, grows=True)
        seconds += answer.seconds
        if answer.result != "unknown":
            return answer
    pending: list[tuple[z3.BoolRef, tuple[z3.BoolRef, ...]]] = [(goal.condition, ())]
    for step, limit in enumerate((*_BRIEFLY_S, timeout_s)):
        if step == _PARTS:
            pending = [(each, case) for part, case in pending for each in question.parts(part)]
        elif step:
            cases = list(_split(way, goal, min(step, _PARTS)))
            pending = [(part, (*case, *more)) for part, case in pending for more in cases]
        still_open = []
        for part, case in pending:
            answer = question.ask(part, min(limit, timeout_s), case, grows=step == 0)
            seconds += answer.seconds
            if answer.result == "sat":
                return replace(answer, seconds=seconds)
            if answer.result == "unknown":
                still_open.append((part, case))
                if limit >= timeout_s:
                    return replace(answer, seconds=seconds)
        if not still_open:
            break
        pending = still_open
    return replace(answer, result="unsat", seconds=seconds)
