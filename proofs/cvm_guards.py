"""Which invariants hold all the same with a guard off: proved, step by step.

An invariant that falls, by a program, can't be supposed any more, nor one whose proof leans on it. So the invariants that
hold are the largest set of which each is kept by every step, by proofs that lean on that set alone. A step that doesn't look
at the guard is the same step without it: its proof stands, where what it leans on does. The others are proved anew.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace

from capvisor.proofs import cvm
from capvisor.proofs.cache import Cache
from capvisor.proofs.cvm_runner import StepOutcome, key_of, prove_step, recalled, to_keep
from capvisor.proofs.runner import Workers
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
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


def is_another(outcome: StepOutcome, guard: str, fallen: Collection[str]) -> bool:
    """Whether a step's proof must be made anew with a guard off, given what falls then.

    So it is where the step looks at the guard; and where an invariant speaks of it, unless that one falls.
    """
    return guard in outcome.guards or (guard in outcome.said and SPEAKING not in fallen)


SPEAKING = "C18"
"""The invariant that speaks of guards: what is sealed is as the policy has it made."""


def to_prove(known: Sequence[StepOutcome], fallen: Mapping[str, Collection[str]]) -> list[tuple[str, Key]]:
    """What is to be proved anew, by guard."""
    return [
        (guard, (each.step, each.format))
        for guard in GUARDS
        for each in known
        if is_another(each, guard, fallen.get(guard, ()))
    ]


def prove(
    known: Sequence[StepOutcome],
    fallen: Mapping[str, Collection[str]],
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[], None],
) -> tuple[list[Held], bool]:
    """What holds without each guard, given what is proved with all of them, and what falls; whether Ctrl-C ended it early.

    Nothing holds without what every proof supposes: the harts' soundness (M8).
    """
    pool = Workers(workers)
    waiting: dict[Future[StepOutcome], tuple[str, Key, str]] = {}
    anew: dict[str, dict[Key, StepOutcome]] = {guard: {} for guard in GUARDS}
    interrupted = False
    try:
        for guard, (step, fmt) in to_prove(known, fallen):
            supposed = tuple(name for name in cvm.KEPT if name not in fallen.get(guard, ()))
            key = key_of(step, fmt, without(guard), supposed, timeout_s)
            kept = cache.get(key) if cache is not None else None
            if kept is not None:
                anew[guard][step, fmt] = recalled(step, fmt, kept)
                finished()
            else:
                future = pool.submit(prove_step, step, fmt, without(guard), timeout_s, supposed)
                waiting[future] = guard, (step, fmt), key
        for future in as_completed(waiting):
            guard, step_and_format, key = waiting[future]
            anew[guard][step_and_format] = outcome = future.result()
            if cache is not None and outcome.answers:
                cache.put(key, to_keep(outcome))
            finished()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=True)
    return [held_by(known, guard, anew[guard], fallen) for guard in GUARDS], interrupted


def held_by(
    known: Sequence[StepOutcome], guard: str, anew: Mapping[Key, StepOutcome], fallen: Mapping[str, Collection[str]]
) -> Held:
    """What holds without a guard. A step that looks at it and hasn't been proved anew keeps nothing."""
    others = [each for each in known if is_another(each, guard, fallen.get(guard, ()))]
    nothing = {(each.step, each.format): replace(each, answers={}) for each in others}
    outcomes = [(nothing | dict(anew)).get((each.step, each.format), each) for each in known]
    holds = largest((name for name in cvm.KEPT if name not in fallen.get(guard, ())), outcomes)
    names = tuple(name for name in CVM_INVARIANTS if name in holds and cvm.SOUND.name in holds)
    return Held(guard, names, sum(each.seconds for each in anew.values()))
