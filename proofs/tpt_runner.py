"""Proving steps of translation pass-through in parallel, and what they lean on.

A step is proved in both variants of the tag check, which stand where other systems' steps have a capability format; where
neither it nor what is asked of it looks at the variant, once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import get_args

import z3

from capvisor.proofs import tpt
from capvisor.proofs.cache import Cache
from capvisor.proofs.guards_off import Guarded
from capvisor.proofs.runner import Workers
from capvisor.proofs.steps import Job, Key, Prover, StepOutcome, not_proved, outcome_of, run
from capvisor.spec.tag_policy import TAG_GUARDS, TagCheck, TagPolicy, without


def prove_step(
    step: str, variant: str, policy: TagPolicy, invariants: tuple[str, ...] = tpt.KEPT, timeout_s: float = 60
) -> StepOutcome:
    """Ask of every invariant whether it can fall in a step."""
    z3.z3.Z3_DEBUG = False  # Checks of arguments of z3's Python, a tenth of the time.
    return outcome_of(step, variant, lambda: tpt.prove(step, policy, invariants, timeout_s))


def _of_variant(variant: str, policy: TagPolicy) -> TagPolicy:
    return next((replace(policy, tag_check=each) for each in get_args(TagCheck) if each == variant), policy)


PROVER = Prover("tpt", prove_step, _of_variant)
GUARDED = Guarded(PROVER, tpt.KEPT, (tpt.TOUCHED, tpt.APART), TAG_GUARDS, without)


def prove(
    steps: Sequence[Key],
    policy: TagPolicy,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[], None],
    supposed: Iterable[str] = tpt.KEPT,
) -> tuple[list[StepOutcome], bool]:
    """Prove steps, each in a variant, and what they lean on; the outcomes so far, and whether Ctrl-C ended it early.

    `finished` is called as often as `count` says.
    """
    pool = Workers(workers)
    outcomes: dict[Key, StepOutcome] = {}
    wanted, interrupted = needed(steps), False

    def prove_some(chosen: Sequence[Key]) -> None:
        jobs = (Job(*each, policy, tuple(supposed), timeout_s) for each in chosen)
        for job, outcome in run(jobs, PROVER, pool, cache):
            outcomes[job.step, job.format] = outcome
            finished()

    try:
        # What doesn't depend on the variant is proved in the first that is wanted, and holds in the others.
        first = dict(reversed(wanted))
        prove_some([each for each in wanted if first[each[0]] == each[1]])
        for step, variant in wanted:
            known = outcomes[step, first[step]]
            if (step, variant) not in outcomes and known.answers and not depends_on_variant(known):
                outcomes[step, variant] = replace(known, format=variant, seconds=0.0)
                finished()
        prove_some([each for each in wanted if each not in outcomes])
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=interrupted)
    return [leaning(outcomes[each], outcomes) for each in steps if each in outcomes], interrupted


def needed(steps: Sequence[Key]) -> list[Key]:
    """Steps and what they lean on, those that take long first."""
    lemmas = [(lemma, variant) for step, variant in steps for lemma in tpt.LEANS_ON.get(step, ())]
    return sorted(dict.fromkeys((*lemmas, *steps)), key=lambda each: _length(each[0]))


def count(steps: Sequence[Key]) -> int:
    """How much there is to prove: the steps, and what they lean on."""
    return len(needed(steps))


def _length(step: str) -> int:
    return 0 if step in tpt.WALK_STEPS else 1 if step in tpt.LEANS_ON else 2


def leaning(outcome: StepOutcome, outcomes: dict[Key, StepOutcome]) -> StepOutcome:
    """A step's outcome, given those of the steps that it leans on."""
    lemmas = [(lemma, outcome.format) for lemma in tpt.LEANS_ON.get(outcome.step, ())]
    return not_proved(outcome, [".".join(each) for each in lemmas if each not in outcomes or not outcomes[each].is_proved])


def depends_on_variant(outcome: StepOutcome) -> bool:
    """Whether the step, or what is asked of it, looks at the variant."""
    return "tag_check" in {*outcome.guards, *outcome.said}
