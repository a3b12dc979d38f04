"""Which invariants hold all the same with a guard off: proved, step by step.

An invariant that falls, by a program, can't be supposed any more, nor one whose proof leans on it. So the invariants that
hold are the largest set of which each is kept by every step, by proofs that lean on that set alone. A step that doesn't look
at the guard is the same step without it: its proof stands, where what it leans on does. The others are proved anew.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass

from capvisor.proofs import cvm
from capvisor.proofs.cvm_runner import StepOutcome, prove_step
from capvisor.proofs.runner import Workers
from capvisor.spec.policy import GUARDS, without

Key = tuple[str, str]
"""A step and a format."""


@dataclass(frozen=True)
class Held:
    """What holds with a guard off, and the seconds that showing it took."""

    guard: str
    invariants: tuple[str, ...]
    seconds: float


def largest(candidates: Iterable[str], outcomes: Iterable[StepOutcome]) -> set[str]:
    """The largest set of candidates of which each is kept in all steps, by proofs that lean on the set alone."""
    holds, steps = set(candidates), list(outcomes)
    while True:
        lost = {
            name
            for name in holds
            for each in steps
            if each.answers.get(name) != "unsat" or not set(each.leans_on.get(name, ())) <= holds
        }
        if not lost:
            return holds
        holds -= lost


def to_prove(known: Sequence[StepOutcome]) -> list[tuple[str, Key]]:
    """The steps that are others with a guard off, by guard: those that look at it."""
    return [(guard, (each.step, each.format)) for guard in GUARDS for each in known if guard in each.guards]


def prove(
    known: Sequence[StepOutcome],
    fallen: Mapping[str, frozenset[str]],
    timeout_s: float,
    workers: int,
    finished: Callable[[], None],
) -> list[Held]:
    """What holds without each guard, given what is proved with all of them, and what falls without each.

    Nothing holds without what every proof supposes: the harts' soundness (M8).
    """
    pool = Workers(workers)
    waiting: dict[Future[StepOutcome], tuple[str, Key]] = {}
    anew: dict[str, dict[Key, StepOutcome]] = {guard: {} for guard in GUARDS}
    try:
        for guard, (step, fmt) in to_prove(known):
            supposed = tuple(name for name in cvm.KEPT if name not in fallen.get(guard, ()))
            future = pool.submit(prove_step, step, fmt, without(guard), timeout_s, supposed)
            waiting[future] = guard, (step, fmt)
        for future in as_completed(waiting):
            guard, key = waiting[future]
            anew[guard][key] = future.result()
            finished()
    finally:
        pool.stop(at_once=True)
    found = []
    for guard in GUARDS:
        outcomes = [anew[guard].get((each.step, each.format), each) for each in known]
        holds = largest((name for name in cvm.KEPT if name not in fallen.get(guard, ())), outcomes)
        seconds = sum(each.seconds for each in anew[guard].values())
        found.append(
            Held(guard, tuple(name for name in cvm.KEPT if name in holds) if cvm.SOUND.name in holds else (), seconds)
        )
    return found
