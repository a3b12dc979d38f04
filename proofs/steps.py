"""Proving steps of a system, of whatever kind, in parallel, with what was proved before kept."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from capvisor.proofs import solve
from capvisor.proofs.cache import Cache
from capvisor.proofs.matrix import sources
from capvisor.proofs.runner import Workers
from capvisor.proofs.solve import Answer

Key = tuple[str, str]
"""A step, and a capability format or what the kind of system has in its place."""


@dataclass(frozen=True)
class Kept:
    """Whether an invariant is kept in a step ("unsat": it can't fall), and which invariants were used in showing it."""

    result: str
    seconds: float = 0.0
    reason: str = ""
    leans_on: frozenset[str] = frozenset()

    def and_also(self, answer: Answer, leant_on: Iterable[str]) -> "Kept":
        """With one more part: the worst of the two."""
        worst: Any = self if answer.result == "unsat" or self.result == "sat" else answer
        return Kept(worst.result, self.seconds + answer.seconds, worst.reason, self.leans_on | set(leant_on))


@dataclass(frozen=True)
class Proved:
    """What was found of a step."""

    kept: dict[str, Kept]
    guards: frozenset[str]
    """The guards that the step looked at."""
    said: frozenset[str]
    """Those that the invariants themselves speak of."""


@dataclass(frozen=True)
class StepOutcome:
    """What was found of one step: of each invariant whether it is kept ("unsat": it can't fall)."""

    step: str
    format: str
    answers: dict[str, str]
    seconds: float
    reason: str = ""
    """Why there is no answer, where there is none."""
    leans_on: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each invariant that is kept, which were used of those that are supposed before the step."""
    guards: tuple[str, ...] = ()
    """The guards that the step looks at."""
    said: tuple[str, ...] = ()
    """Those that the invariants themselves speak of."""

    @property
    def is_proved(self) -> bool:
        """Whether every invariant is kept."""
        return bool(self.answers) and all(answer == "unsat" for answer in self.answers.values())


def outcome_of(step: str, fmt: str, find: Callable[[], Proved]) -> StepOutcome:
    """What proving a step comes to, an error in it included."""
    try:
        found = find()
    except Exception as error:
        return StepOutcome(step, fmt, {}, 0.0, f"{type(error).__name__}: {error}")
    seconds = sum(each.seconds for each in found.kept.values())
    answers = {name: each.result for name, each in found.kept.items()}
    leans_on = {name: tuple(sorted(each.leans_on)) for name, each in found.kept.items()}
    return StepOutcome(step, fmt, answers, seconds, "", leans_on, tuple(sorted(found.guards)), tuple(sorted(found.said)))


def to_keep(outcome: StepOutcome) -> Answer:
    """What is proved of a step, as an answer: its values' names say what is kept, by what, and which guards count."""
    kept = [name for name, answer in outcome.answers.items() if answer == "unsat"]
    leans = (f"leans {name} {other}" for name in kept for other in outcome.leans_on.get(name, ()))
    others = (f"open {name}" for name in outcome.answers if name not in kept)
    guards = (*(f"guard {name}" for name in outcome.guards), *(f"said {name}" for name in outcome.said))
    named = (*(f"kept {name}" for name in kept), *others, *leans, *guards)
    return Answer("unsat", outcome.seconds, dict.fromkeys(named, 1))


def recalled(step: str, fmt: str, kept: Answer) -> StepOutcome:
    """The outcome that an answer was made of; what isn't proved in it isn't known."""
    found: dict[str, list[list[str]]] = {"kept": [], "open": [], "leans": [], "guard": [], "said": []}
    for name in kept.values or {}:
        what, *names = name.split(" ")
        found[what].append(names)
    proved = {name: "unsat" for (name,) in found["kept"]}
    leans_on = {name: tuple(other for one, other in found["leans"] if one == name) for name in proved}
    guards, said = (tuple(name for (name,) in found[each]) for each in ("guard", "said"))
    answers = proved | {name: "unknown" for (name,) in found["open"]}
    return StepOutcome(step, fmt, answers, kept.seconds, "", leans_on, guards, said)


class Job(NamedTuple):
    """A step to be proved under a policy: what is supposed before it and asked after it."""

    step: str
    format: str
    policy: Any
    supposed: tuple[str, ...]
    timeout_s: float


@dataclass(frozen=True)
class Prover:
    """How steps of one kind of system are proved."""

    system: str
    prove_step: Callable[..., StepOutcome]
    """Of a job's parts, the outcome: a function that a worker can be told of."""
    policy_for: Callable[[str, Any], Any] = lambda _fmt, policy: policy
    """The policy in what stands for a format."""


def key_of(system: str, job: Job, *, is_proved: bool) -> str:
    """What an outcome is kept under: all that it depends on; what is proved doesn't depend on the time that it was given."""
    asked = job if not is_proved else job[:-1]
    return f"{sources()}:{system}:{asked}:{solve.version('z3')}"


def run(
    jobs: Iterable[Job], prover: Prover, pool: Workers, cache: Cache | None, *, keeps_open: bool = False
) -> Iterator[tuple[Job, StepOutcome]]:
    """Prove steps, each outcome as it comes. What is proved is kept; also what stayed open, if that is wanted.

    A job's policy is the one in its format already. Whoever leaves early, by Ctrl-C or otherwise, stops the pool.
    """
    waiting: dict[Future[StepOutcome], Job] = {}
    for each in jobs:
        job = each._replace(policy=prover.policy_for(each.format, each.policy))
        kept = _kept(prover.system, job, cache, keeps_open)
        if kept is not None:
            yield each, kept
        else:
            waiting[pool.submit(prover.prove_step, *job)] = each
    for future in as_completed(waiting):
        each = waiting[future]
        job = each._replace(policy=prover.policy_for(each.format, each.policy))
        try:
            outcome = future.result()
        except BrokenProcessPool:
            outcome = StepOutcome(each.step, each.format, {}, 0.0, "a worker process was killed (out of memory?)")
        if cache is not None and (outcome.is_proved or (keeps_open and outcome.answers)):
            cache.put(key_of(prover.system, job, is_proved=outcome.is_proved), to_keep(outcome))
        yield each, outcome


def _kept(system: str, job: Job, cache: Cache | None, keeps_open: bool) -> StepOutcome | None:
    if cache is None:
        return None
    kept = cache.get(key_of(system, job, is_proved=True))
    if kept is None and keeps_open:
        kept = cache.get(key_of(system, job, is_proved=False))
    return None if kept is None else recalled(job.step, job.format, kept)


TOGETHER = "together"
"""What stands for a format where a system's formats are parts of one induction."""


def keep_whole(system: str, fmt: str, policy: Any, invariants: Iterable[str], cache: Cache) -> None:
    """Keep which invariants all steps of a system keep, in a format or what stands for one, with what they lean on."""
    cache.put(_whole(system, fmt, policy), Answer("unsat", 0.0, dict.fromkeys(invariants, 1)))


def recalled_whole(system: str, fmt: str, policy: Any, cache: Cache | None) -> frozenset[str] | None:
    """The invariants that all steps were found to keep; None where not all were asked since the code was changed."""
    kept = None if cache is None else cache.get(_whole(system, fmt, policy))
    return None if kept is None else frozenset(kept.values or ())


def _whole(system: str, fmt: str, policy: Any) -> str:
    return f"{sources()}:{system}:whole:{fmt}:{policy}:{solve.version('z3')}"


def not_proved(outcome: StepOutcome, missing: list[str]) -> StepOutcome:
    """A step's outcome, given what it leans on that isn't proved."""
    if not missing:
        return outcome
    reason = f"leans on what isn't proved: {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
    return replace(outcome, answers=dict.fromkeys(outcome.answers, "unknown"), reason=reason)
