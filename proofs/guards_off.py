"""Which invariants hold all the same with guards off: proved, step by step.

An invariant that falls, by a program, can't be supposed any more, nor one whose proof leans on it. So the invariants that
hold are the largest set of which each is kept by every step, by proofs that lean on that set alone. A step that doesn't look
at the guard is the same step without it: its proof stands, where what it leans on does. The others are proved anew, of what
these leave.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from capvisor.proofs.cache import Cache
from capvisor.proofs.runner import Workers
from capvisor.proofs.steps import Job, Key, Prover, StepOutcome, run


@dataclass(frozen=True)
class Guarded:
    """A kind of system, with guards that can be off."""

    prover: Prover
    kept: tuple[str, ...]
    """What is supposed before steps and asked after them."""
    needed: tuple[str, ...]
    """What every proof supposes: nothing holds where that doesn't."""
    guards: Collection[str]
    without: Callable[[str], Any]
    """The intended policy without a guard."""
    speaking: frozenset[str] = frozenset()
    """The invariants that speak of guards, where it is known which: where all of them fall, none speaks of any."""


@dataclass(frozen=True)
class Held:
    """What holds with a guard off, and the seconds that showing it took."""

    guard: str
    invariants: tuple[str, ...]
    seconds: float


def largest(candidates: Iterable[str], outcomes: Iterable[StepOutcome]) -> set[str]:
    """The largest set of candidates of which each is kept in all steps, by proofs that lean on the set alone.

    A step of which nothing is known keeps nothing; one that isn't asked of an invariant is none that could break it.
    """
    holds, steps = set(candidates), list(outcomes)
    while True:
        lost = {name for name in holds for each in steps if not _keeps(each, name, holds)}
        if not lost:
            return holds
        holds -= lost


def _keeps(outcome: StepOutcome, name: str, supposed: set[str]) -> bool:
    is_kept = bool(outcome.answers) and outcome.answers.get(name, "unsat") == "unsat"
    return is_kept and set(outcome.leans_on.get(name, ())) <= supposed


def holding(system: Guarded, outcomes: Iterable[StepOutcome], fallen: Collection[str]) -> tuple[str, ...]:
    """What holds by some outcomes of all steps, given what falls."""
    holds = largest((name for name in system.kept if name not in fallen), outcomes)
    return tuple(name for name in system.kept if name in holds) if holds.issuperset(system.needed) else ()


def is_another(system: Guarded, outcome: StepOutcome, guard: str, fallen: Collection[str]) -> bool:
    """Whether a step's proof must be made anew with a guard off, given what falls then.

    So it is where the step looks at the guard; and where an invariant speaks of it, unless that one falls.
    """
    is_spoken_of = not system.speaking or not system.speaking <= set(fallen)
    return guard in outcome.guards or (guard in outcome.said and is_spoken_of)


def supposable(system: Guarded, known: Sequence[StepOutcome], guard: str, fallen: Collection[str]) -> tuple[str, ...]:
    """What can hold at most with a guard off, by the steps that are the same without it: nothing else need be supposed."""
    return holding(system, [each for each in known if not is_another(system, each, guard, fallen)], fallen)


def to_prove(
    system: Guarded, known: Sequence[StepOutcome], fallen: Mapping[str, Collection[str]], timeout_s: float = 0
) -> list[tuple[str, Job]]:
    """What is to be proved anew, by guard: the steps that look at it, of what can hold at most."""
    found = []
    for guard in system.guards:
        falls = fallen.get(guard, ())
        supposed, policy = supposable(system, known, guard, falls), system.without(guard)
        others = [each for each in known if supposed and is_another(system, each, guard, falls)]
        found += [(guard, Job(each.step, each.format, policy, supposed, timeout_s)) for each in others]
    return found


def prove(
    system: Guarded,
    known: Sequence[StepOutcome],
    fallen: Mapping[str, Collection[str]],
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[], None],
) -> tuple[list[Held], bool]:
    """What holds without each guard, given what is proved with all of them, and what falls; whether Ctrl-C came."""
    pool = Workers(workers)
    anew: dict[str, dict[Key, StepOutcome]] = {guard: {} for guard in system.guards}
    jobs = to_prove(system, known, fallen, timeout_s)
    guard_of: dict[Any, str] = {job.policy: guard for guard, job in jobs}
    interrupted = False
    try:
        for job, outcome in run((job for _guard, job in jobs), system.prover, pool, cache, keeps_open=True):
            anew[guard_of[job.policy]][job.step, job.format] = outcome
            finished()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=True)
    return [held_by(system, known, guard, anew[guard], fallen.get(guard, ())) for guard in system.guards], interrupted


def held_by(
    system: Guarded, known: Sequence[StepOutcome], guard: str, anew: Mapping[Key, StepOutcome], fallen: Collection[str]
) -> Held:
    """What holds without a guard. A step that looks at it and hasn't been proved anew keeps nothing."""
    others = [each for each in known if is_another(system, each, guard, fallen)]
    nothing = {(each.step, each.format): replace(each, answers={}) for each in others}
    outcomes = [(nothing | dict(anew)).get((each.step, each.format), each) for each in known]
    return Held(guard, holding(system, outcomes, fallen), sum(each.seconds for each in anew.values()))
