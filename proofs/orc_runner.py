"""Proving steps of systems of shared objects in parallel, and what they lean on."""

from collections.abc import Callable, Iterable, Sequence

import z3

from capvisor.proofs import cvm_runner, isa, orc, orc_guest
from capvisor.proofs.cache import Cache
from capvisor.proofs.guards_off import Guarded
from capvisor.proofs.runner import Settings, Workers
from capvisor.proofs.steps import Job, Key, Prover, StepOutcome, not_proved, outcome_of, run
from capvisor.proofs.theorem import Obligation, obligations
from capvisor.spec.guest import APART, GUEST_STEP
from capvisor.spec.object_policy import OBJECT_GUARDS, ObjectPolicy, without
from capvisor.spec.orc_invariants import FLOWS


def prove_step(
    step: str, fmt: str, policy: ObjectPolicy, invariants: tuple[str, ...] = tuple(orc.KEPT), timeout_s: float = 60
) -> StepOutcome:
    """Ask of every invariant whether it can fall in a step."""
    z3.z3.Z3_DEBUG = False  # Checks of arguments of z3's Python, a tenth of the time.
    return outcome_of(step, fmt, lambda: orc.prove(step, fmt, policy, invariants, timeout_s))


PROVER = Prover("orc", prove_step)
_INVARIANTS = tuple(name for name in orc.KEPT if name not in FLOWS)
GUARDED = Guarded(PROVER, _INVARIANTS, (orc.SOUND.name,), OBJECT_GUARDS, without, frozenset({"O14"}))
"""What is sealed is as the policy has it made, says O14: no other invariant speaks of guards."""


def prove(
    steps: Sequence[Key],
    policy: ObjectPolicy,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[], None],
    supposed: Iterable[str] = tuple(orc.KEPT),
) -> tuple[list[StepOutcome], bool]:
    """Prove steps, each of a format, and what they lean on; the outcomes so far, and whether Ctrl-C ended it early.

    `finished` is called as often as `count` says.
    """
    outcomes: dict[Key, StepOutcome] = {}
    unproved: dict[str, str] = {}
    wanted = needed(steps)
    pool = Workers(workers)
    interrupted = False
    try:
        # What flows is asked of every step, and supposed of none.
        asked = tuple(dict.fromkeys((*supposed, *FLOWS)))
        jobs = (Job(*each, policy, asked, timeout_s) for each in wanted)
        for job, outcome in run(jobs, PROVER, pool, cache):
            outcomes[job.step, job.format] = outcome
            finished()
        pool.stop(at_once=False)
        settings = Settings(timeout_s=max(timeout_s, Settings.timeout_s), workers=workers, cache=cache)
        unproved, interrupted = cvm_runner.prove_lemmas(lemmas(wanted), settings, finished)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=interrupted)
    unproved |= {".".join(each): "open" for each in wanted if each not in outcomes or not outcomes[each].is_proved}
    return [leaning(outcomes[each], unproved) for each in steps if each in outcomes], interrupted


OF_GUESTS = (GUEST_STEP.name, "M2")
"""What any guest's step is known to keep: what M11 says, and that whole capabilities are loaded where they are aligned."""

LEANS_ON = {orc_guest.NAME: (orc_guest.LOADED,)}
"""What a step leans on among the others: any guest's, on what it can load."""

_LONG = (orc_guest.NAME, "map", "unmap", "submit", APART)
"""The steps that take longest, which are begun first."""


def needed(steps: Sequence[Key]) -> list[Key]:
    """Steps and those that they lean on, the long ones first."""
    others = [(other, fmt) for step, fmt in steps for other in LEANS_ON.get(step, ())]
    return sorted(dict.fromkeys((*steps, *others)), key=lambda key: _LONG.index(key[0]) if key[0] in _LONG else len(_LONG))


def lemmas(steps: Sequence[Key]) -> list[Obligation]:
    """What steps lean on: any guest's step, M11 and M2 of every operation that it stands for; all, what is minted."""
    formats = [fmt for step, fmt in steps if step == orc_guest.NAME]
    names = (
        f"{isa.PREFIX}.{name}.{invariant}.{fmt}"
        for fmt in formats
        for name in (isa.FETCH, *orc_guest.STANDS_FOR)
        for invariant in OF_GUESTS
    )
    cells = [isa.cells()[name] for name in names if name in isa.cells()]
    minted = sorted({f"{name}.{fmt}" for _step, fmt in steps for name in ("orc.mint", "orc.whole")})
    return [*(obligations()[name] for name in minted), *cells]


def count(steps: Sequence[Key]) -> int:
    """How much there is to prove: the steps, and what they lean on."""
    return len(needed(steps)) + len(lemmas(steps))


def leaning(outcome: StepOutcome, unproved: dict[str, str]) -> StepOutcome:
    """A step's outcome, given which lemmas, and other steps, aren't proved."""
    others = {f"{step}.{outcome.format}" for step in LEANS_ON.get(outcome.step, ())}
    leant_on = others | {each.id for each in lemmas([(outcome.step, outcome.format)])}
    return not_proved(outcome, sorted(leant_on & set(unproved)))
