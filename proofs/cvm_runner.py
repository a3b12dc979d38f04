"""Proving steps of the Intravisor in parallel, with what was proved before kept."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace

from capvisor.proofs import cvm, cvm_guest, isa, matrix, runner, solve
from capvisor.proofs.cache import Cache
from capvisor.proofs.matrix import sources
from capvisor.proofs.runner import Outcome, Settings, Verdict, Workers
from capvisor.proofs.solve import Answer
from capvisor.proofs.theorem import Obligation, obligations
from capvisor.spec.guest import GUEST_STEP
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


def prove_step(
    step: str, fmt: str, policy: MonitorPolicy, timeout_s: float, invariants: tuple[str, ...] = tuple(cvm.KEPT)
) -> StepOutcome:
    """Ask of every invariant whether it can fall in a step."""
    try:
        found = cvm.prove(step, fmt, policy, invariants, timeout_s)
    except Exception as error:
        return StepOutcome(step, fmt, {}, 0.0, f"{type(error).__name__}: {error}")
    seconds = sum(each.seconds for each in found.kept.values())
    answers = {name: each.result for name, each in found.kept.items()}
    leans_on = {name: tuple(sorted(each.leans_on)) for name, each in found.kept.items()}
    return StepOutcome(step, fmt, answers, seconds, "", leans_on, tuple(sorted(found.guards)), tuple(sorted(found.said)))


def prove(
    steps: Sequence[tuple[str, str]],
    policy: MonitorPolicy,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[], None],
) -> tuple[list[StepOutcome], bool]:
    """Prove steps, each of a format, and what they lean on; the outcomes so far, and whether Ctrl-C ended it early.

    `finished` is called as often as `count` says.
    """
    outcomes: dict[tuple[str, str], StepOutcome] = {}
    unproved: dict[str, str] = {}
    waiting: dict[Future[StepOutcome], tuple[str, str]] = {}
    pool = Workers(workers)
    interrupted = False

    def done(outcome: StepOutcome) -> None:
        outcomes[outcome.step, outcome.format] = outcome
        finished()

    try:
        for step, fmt in steps:
            kept = cache.get(key_of(step, fmt, policy)) if cache is not None else None
            if kept is not None:
                done(recalled(step, fmt, kept))
            else:
                waiting[pool.submit(prove_step, step, fmt, policy, timeout_s)] = step, fmt
        for future in as_completed(waiting):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                outcome = StepOutcome(*waiting[future], {}, 0.0, "a worker process was killed (out of memory?)")
            if outcome.is_proved and cache is not None:
                cache.put(key_of(outcome.step, outcome.format, policy), to_keep(outcome))
            done(outcome)
        pool.stop(at_once=False)
        settings = Settings(timeout_s=max(timeout_s, Settings.timeout_s), workers=workers, cache=cache)
        unproved, interrupted = prove_lemmas(lemmas(steps), settings, finished)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=interrupted)
    return [leaning(outcomes[each], unproved) for each in steps if each in outcomes], interrupted


def lemmas(steps: Sequence[tuple[str, str]]) -> list[Obligation]:
    """What steps lean on: of any guest's step, M11 of every operation that it stands for; of all, what is minted."""
    formats = [fmt for step, fmt in steps if step == cvm_guest.NAME]
    names = (f"{isa.PREFIX}.{name}.{GUEST_STEP.name}.{fmt}" for fmt in formats for name in cvm_guest.STANDS_FOR)
    cells = [isa.cells()[name] for name in names if name in isa.cells()]
    minted = sorted({f"monitor.mint.{fmt}" for _step, fmt in steps})
    return [*(obligations()[name] for name in minted), *cells]


def to_keep(outcome: StepOutcome) -> Answer:
    """What is proved of a step, as an answer: its values' names say what is kept, by what, and which guards count."""
    kept = [name for name, answer in outcome.answers.items() if answer == "unsat"]
    leans = (f"leans {name} {other}" for name in kept for other in outcome.leans_on.get(name, ()))
    guards = (*(f"guard {name}" for name in outcome.guards), *(f"said {name}" for name in outcome.said))
    return Answer("unsat", outcome.seconds, dict.fromkeys((*(f"kept {name}" for name in kept), *leans, *guards), 1))


def recalled(step: str, fmt: str, kept: Answer) -> StepOutcome:
    """The outcome that an answer was made of; what isn't proved in it isn't known."""
    found: dict[str, list[list[str]]] = {"kept": [], "leans": [], "guard": [], "said": []}
    for name in kept.values or {}:
        what, *names = name.split(" ")
        found[what].append(names)
    answers = dict.fromkeys(cvm.KEPT, "unknown") | {name: "unsat" for (name,) in found["kept"]}
    leans_on = {name: tuple(other for one, other in found["leans"] if one == name) for name in cvm.KEPT}
    guards, said = (tuple(name for (name,) in found[each]) for each in ("guard", "said"))
    return StepOutcome(step, fmt, answers, kept.seconds, "", leans_on, guards, said)


def count(steps: Sequence[tuple[str, str]]) -> int:
    """How much there is to prove: the steps, and what they lean on."""
    return len(steps) + len(lemmas(steps))


def prove_lemmas(
    chosen: Sequence[Obligation], settings: Settings, finished: Callable[[], None] = lambda: None
) -> tuple[dict[str, str], bool]:
    """Prove what steps lean on, and all that this leans on: what isn't proved, with why; whether Ctrl-C ended it early."""
    cells = [each for each in chosen if isa.is_cell(each)]
    others = [each for each in chosen if not isa.is_cell(each)]
    wanted = {each.id for each in chosen}

    def tell(outcome: Outcome) -> None:
        if outcome.obligation.id in wanted:
            finished()

    outcomes, interrupted = runner.prove(others, settings, tell)
    if cells and not interrupted:
        more, interrupted = matrix.prove(cells, settings, tell)
        outcomes += more
    proved = {each.obligation.id: each.verdict is Verdict.PROVED for each in outcomes}
    reasons = {each.obligation.id: each.reason or each.verdict.name for each in outcomes}
    return {name: reasons.get(name, "not asked") for name in wanted if not proved.get(name)}, interrupted


def leaning(outcome: StepOutcome, unproved: dict[str, str]) -> StepOutcome:
    """A step's outcome, given which lemmas aren't proved."""
    missing = sorted(each.id for each in lemmas([(outcome.step, outcome.format)]) if each.id in unproved)
    if not missing:
        return outcome
    reason = f"leans on what isn't proved: {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
    return replace(outcome, answers=dict.fromkeys(outcome.answers, "unknown"), reason=reason)


def key_of(step: str, fmt: str, policy: MonitorPolicy, *others: object) -> str:
    """What an outcome is kept under: all that it depends on."""
    return f"{sources()}:cvm:{step}:{fmt}:{policy}:{solve.version('z3')}:{others}"
