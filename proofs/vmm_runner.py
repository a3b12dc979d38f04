"""Proving steps of a para-pass-through VMM in parallel. They lean on nothing but what they suppose."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import z3

from capvisor.proofs import vmm
from capvisor.proofs.cache import Cache
from capvisor.proofs.guards_off import Guarded
from capvisor.proofs.runner import Workers
from capvisor.proofs.steps import Job, Key, Prover, StepOutcome, outcome_of, run
from capvisor.spec.vmm_policy import VMM_GUARDS, VmmPolicy, without


def prove_step(
    step: str, part: str, policy: VmmPolicy, invariants: tuple[str, ...] = vmm.KEPT, timeout_s: float = 60
) -> StepOutcome:
    """Ask of every invariant whether it can fall in a part of a step."""
    z3.z3.Z3_DEBUG = False  # Checks of arguments of z3's Python, a tenth of the time.
    return outcome_of(step, part, lambda: vmm.prove(step, part, policy, invariants, timeout_s))


PROVER = Prover("vmm", prove_step)
GUARDED = Guarded(PROVER, vmm.KEPT, (vmm.FITS,), VMM_GUARDS, without)


def prove(
    steps: Sequence[Key],
    policy: VmmPolicy,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[], None],
    supposed: Iterable[str] = vmm.KEPT,
) -> tuple[list[StepOutcome], bool]:
    """Prove parts of steps; the outcomes so far, and whether Ctrl-C ended it early. `finished` is called for each.

    Of what isn't supposed, as it doesn't hold under the policy, it is asked in which of the steps that look at a guard that
    is off it falls, from a state that has every invariant.
    """
    supposed = tuple(supposed)
    fallen = [name for name in vmm.KEPT if name not in supposed]
    off = {guard for guard in VMM_GUARDS if not getattr(policy, guard)}
    pool = Workers(workers)
    outcomes: dict[Key, StepOutcome] = {}
    interrupted = False
    try:
        jobs = (Job(*each, policy, supposed, timeout_s) for each in steps)
        for job, outcome in run(jobs, PROVER, pool, cache):
            outcomes[job.step, job.format] = outcome
            finished()
        breaking = [each for each, outcome in outcomes.items() if fallen and off & {*outcome.guards, *outcome.said}]
        for job, outcome in run((Job(*each, policy, vmm.KEPT, timeout_s) for each in breaking), PROVER, pool, cache):
            outcomes[job.step, job.format] = _with_fallen(outcomes[job.step, job.format], outcome, fallen, policy)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=interrupted)
    return [outcomes[each] for each in steps if each in outcomes], interrupted


def _with_fallen(outcome: StepOutcome, other: StepOutcome, fallen: Sequence[str], policy: VmmPolicy) -> StepOutcome:
    """An outcome, with what else falls in the step by another one, and values with which it does."""
    falls = [name for name in fallen if other.answers.get(name) == "sat"]
    if not falls:
        return outcome
    values = vmm.counterexample(outcome.step, outcome.format, policy, falls[0])
    said = "" if values is None else "".join(f", {name} {number:#x}" for name, number in values.items())
    reason = f"{', '.join(falls)} can fall{said}"
    return replace(outcome, answers=outcome.answers | dict.fromkeys(falls, "sat"), reason=outcome.reason or reason)
