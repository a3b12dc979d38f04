"""Proving steps of translation pass-through in parallel, with what was proved before kept.

A step is proved in both variants of the tag check; where neither it nor what is asked of it looks at the variant, once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import get_args

import z3

from capvisor.proofs import solve, tpt
from capvisor.proofs.cache import Cache
from capvisor.proofs.cvm_runner import StepOutcome, to_keep
from capvisor.proofs.matrix import sources
from capvisor.proofs.runner import Workers
from capvisor.proofs.steps import recalled
from capvisor.spec.tag_policy import TagCheck, TagPolicy

Key = tuple[str, str]
"""A step and a variant, which stands where other systems' steps have a capability format: when a tag is looked up."""


def prove_step(
    step: str, variant: str, policy: TagPolicy, timeout_s: float, invariants: tuple[str, ...] = tpt.KEPT
) -> StepOutcome:
    """Ask of every invariant whether it can fall in a step."""
    z3.z3.Z3_DEBUG = False  # Checks of arguments of z3's Python, a tenth of the time.
    try:
        found = tpt.prove(step, _of_variant(policy, variant), invariants, timeout_s)
    except Exception as error:
        return StepOutcome(step, variant, {}, 0.0, f"{type(error).__name__}: {error}")
    seconds = sum(each.seconds for each in found.kept.values())
    answers = {name: each.result for name, each in found.kept.items()}
    leans_on = {name: tuple(sorted(each.leans_on)) for name, each in found.kept.items()}
    return StepOutcome(step, variant, answers, seconds, "", leans_on, tuple(sorted(found.guards)), tuple(sorted(found.said)))


def _of_variant(policy: TagPolicy, variant: str) -> TagPolicy:
    return next((replace(policy, tag_check=each) for each in get_args(TagCheck) if each == variant), policy)


def prove(
    steps: Sequence[Key],
    policy: TagPolicy,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    finished: Callable[[], None],
) -> tuple[list[StepOutcome], bool]:
    """Prove steps, each in a variant, and what they lean on; the outcomes so far, and whether Ctrl-C ended it early.

    `finished` is called as often as `count` says.
    """
    run = _Run(needed(steps), policy, timeout_s, workers, cache, finished)
    interrupted = run.run()
    return [leaning(run.outcomes[each], run.outcomes) for each in steps if each in run.outcomes], interrupted


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
    missing = [".".join(each) for each in lemmas if each not in outcomes or not outcomes[each].is_proved]
    if not missing:
        return outcome
    reason = f"leans on what isn't proved: {', '.join(missing)}"
    return replace(outcome, answers=dict.fromkeys(outcome.answers, "unknown"), reason=reason)


def depends_on_variant(outcome: StepOutcome) -> bool:
    """Whether the step, or what is asked of it, looks at the variant."""
    return "tag_check" in {*outcome.guards, *outcome.said}


class _Run:
    """Steps that are being proved."""

    def __init__(
        self,
        steps: Sequence[Key],
        policy: TagPolicy,
        timeout_s: float,
        workers: int,
        cache: Cache | None,
        finished: Callable[[], None],
    ) -> None:
        self._steps, self._policy, self._timeout_s, self._cache, self._finished = steps, policy, timeout_s, cache, finished
        self._pool = Workers(workers)
        self.outcomes: dict[Key, StepOutcome] = {}

    def run(self) -> bool:
        """Prove them; whether Ctrl-C ended it."""
        done = False
        try:
            # What doesn't depend on the variant is proved in the first that is wanted, and holds in the others.
            first = [each for each in self._steps if each[1] == self._first_variant(each[0])]
            self._prove(first)
            others = [each for each in self._steps if each not in first]
            for step, variant in others:
                known = self.outcomes[step, self._first_variant(step)]
                if known.answers and not depends_on_variant(known):
                    self._done(replace(known, format=variant, seconds=0.0))
            self._prove([each for each in others if each not in self.outcomes])
            done = True
        except KeyboardInterrupt:
            return True
        finally:
            self._pool.stop(at_once=not done)
        return False

    def _first_variant(self, step: str) -> str:
        return next(variant for name, variant in self._steps if name == step)

    def _prove(self, steps: Sequence[Key]) -> None:
        waiting: dict[Future[StepOutcome], Key] = {}
        for step, variant in steps:
            kept = self._cache.get(self._key(step, variant)) if self._cache is not None else None
            if kept is not None:
                self._done(recalled(step, variant, kept))
            else:
                waiting[self._pool.submit(prove_step, step, variant, self._policy, self._timeout_s)] = step, variant
        for future in as_completed(waiting):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                outcome = StepOutcome(*waiting[future], {}, 0.0, "a worker process was killed (out of memory?)")
            if outcome.is_proved and self._cache is not None:
                self._cache.put(self._key(*waiting[future]), to_keep(outcome))
            self._done(outcome)

    def _done(self, outcome: StepOutcome) -> None:
        self.outcomes[outcome.step, outcome.format] = outcome
        self._finished()

    def _key(self, step: str, variant: str) -> str:
        """What an outcome is kept under: all that it depends on."""
        return f"{sources()}:tpt:{step}:{variant}:{_of_variant(self._policy, variant)}:{solve.version('z3')}"
