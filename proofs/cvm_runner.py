"""Proving steps of the Intravisor in parallel, and what they lean on."""

from collections.abc import Callable, Iterable, Sequence

import z3

from capvisor.proofs import cvm, cvm_guest, isa, matrix, runner
from capvisor.proofs.cache import Cache
from capvisor.proofs.guards_off import Guarded
from capvisor.proofs.runner import Outcome, Settings, Verdict, Workers
from capvisor.proofs.steps import Job, Key, Prover, StepOutcome, not_proved, outcome_of, run
from capvisor.proofs.theorem import Obligation, obligations
from capvisor.spec.guest import GUEST_STEP
from capvisor.spec.policy import GUARDS, MonitorPolicy, without


def prove_step(
    step: str, fmt: str, policy: MonitorPolicy, invariants: tuple[str, ...] = tuple(cvm.KEPT), timeout_s: float = 60
) -> StepOutcome:
    """Ask of every invariant whether it can fall in a step."""
    z3.z3.Z3_DEBUG = False  # Checks of arguments of z3's Python, a tenth of the time.
    return outcome_of(step, fmt, lambda: cvm.prove(step, fmt, policy, invariants, timeout_s))


PROVER = Prover("cvm", prove_step)
GUARDED = Guarded(PROVER, tuple(cvm.KEPT), (cvm.SOUND.name,), GUARDS, without, frozenset({"C18"}))
"""What is sealed is as the policy has it made, says C18: no other invariant speaks of guards."""


def prove(
    steps: Sequence[Key],
    policy: MonitorPolicy,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[], None],
    supposed: Iterable[str] = tuple(cvm.KEPT),
) -> tuple[list[StepOutcome], bool]:
    """Prove steps, each of a format, and what they lean on; the outcomes so far, and whether Ctrl-C ended it early.

    `finished` is called as often as `count` says.
    """
    outcomes: dict[Key, StepOutcome] = {}
    unproved: dict[str, str] = {}
    pool = Workers(workers)
    interrupted = False
    try:
        jobs = (Job(*each, policy, tuple(supposed), timeout_s) for each in sorted(steps, key=_length))
        for job, outcome in run(jobs, PROVER, pool, cache):
            outcomes[job.step, job.format] = outcome
            finished()
        pool.stop(at_once=False)
        settings = Settings(timeout_s=max(timeout_s, Settings.timeout_s), workers=workers, cache=cache)
        unproved, interrupted = prove_lemmas(lemmas(steps), settings, finished)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=interrupted)
    return [leaning(outcomes[each], unproved) for each in steps if each in outcomes], interrupted


_LONG = ("create", "portal_call", "guest", "file_advertise", "file_probe", "cinvoke")
"""The steps that take longest: begun first, so that all workers have something to do until the end."""


def _length(key: Key) -> int:
    return _LONG.index(key[0]) if key[0] in _LONG else len(_LONG)


def lemmas(steps: Sequence[Key]) -> list[Obligation]:
    """What steps lean on: of any guest's step, M11 of every operation that it stands for; of all, what is minted."""
    formats = [fmt for step, fmt in steps if step == cvm_guest.NAME]
    rows = (isa.FETCH, *cvm_guest.STANDS_FOR)
    names = (f"{isa.PREFIX}.{name}.{GUEST_STEP.name}.{fmt}" for fmt in formats for name in rows)
    cells = [isa.cells()[name] for name in names if name in isa.cells()]
    minted = sorted({f"monitor.mint.{fmt}" for _step, fmt in steps})
    return [*(obligations()[name] for name in minted), *cells]


def count(steps: Sequence[Key]) -> int:
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
    return not_proved(outcome, sorted(each.id for each in lemmas([(outcome.step, outcome.format)]) if each.id in unproved))
