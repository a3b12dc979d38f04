"""Proving steps of the Intravisor in parallel, with what was proved before kept."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from capvisor.proofs import cvm, solve
from capvisor.proofs.cache import Cache
from capvisor.proofs.matrix import sources
from capvisor.proofs.runner import Workers
from capvisor.proofs.solve import Answer
from capvisor.spec.policy import MonitorPolicy


@dataclass(frozen=True)
class StepOutcome:
    """What was found of one step: of each invariant whether it is kept ("unsat": it can't fall)."""

    step: str
    format: str
    answers: dict[str, str]
    seconds: float
    reason: str = ""
    """Why there is no answer, where there is none."""

    @property
    def is_proved(self) -> bool:
        """Whether every invariant is kept."""
        return bool(self.answers) and all(answer == "unsat" for answer in self.answers.values())


def prove_step(step: str, fmt: str, policy: MonitorPolicy, timeout_s: float) -> StepOutcome:
    """Ask of every invariant whether it can fall in a step."""
    try:
        found = cvm.answers(step, fmt, policy, timeout_s=timeout_s)
    except Exception as error:
        return StepOutcome(step, fmt, {}, 0.0, f"{type(error).__name__}: {error}")
    seconds = sum(answer.seconds for answer in found.values())
    return StepOutcome(step, fmt, {name: answer.result for name, answer in found.items()}, seconds)


def prove(
    steps: Sequence[tuple[str, str]],
    policy: MonitorPolicy,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[StepOutcome], None],
) -> tuple[list[StepOutcome], bool]:
    """Prove steps, each of a format; the outcomes so far, and whether Ctrl-C ended it early."""
    outcomes: dict[tuple[str, str], StepOutcome] = {}
    waiting: dict[Future[StepOutcome], tuple[str, str]] = {}
    pool = Workers(workers)
    interrupted = False

    def done(outcome: StepOutcome) -> None:
        outcomes[outcome.step, outcome.format] = outcome
        finished(outcome)

    try:
        for step, fmt in steps:
            kept = cache.get(_key(step, fmt, policy)) if cache is not None else None
            if kept is not None:
                done(StepOutcome(step, fmt, dict.fromkeys(cvm.CVM_INVARIANTS, "unsat"), kept.seconds))
            else:
                waiting[pool.submit(prove_step, step, fmt, policy, timeout_s)] = step, fmt
        for future in as_completed(waiting):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                outcome = StepOutcome(*waiting[future], {}, 0.0, "a worker process was killed (out of memory?)")
            if outcome.is_proved and cache is not None:
                cache.put(_key(outcome.step, outcome.format, policy), Answer("unsat", outcome.seconds))
            done(outcome)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=interrupted)
    return [outcomes[each] for each in steps if each in outcomes], interrupted


def _key(step: str, fmt: str, policy: MonitorPolicy) -> str:
    return f"{sources()}:cvm:{step}:{fmt}:{policy}:{solve.version('z3')}"
