"""Programs of systems that fail, of whatever kind: made smaller while they still fail in the same way, and written down.

A case is a system at its start with what is done in it. A kind says how cases are taken, on the reference and on both
implementations, what may be left out of them, and how they are said in the language.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from capvisor.campaign.steps import StepReduction
from capvisor.campaign.systems import Compared, CrashError
from capvisor.dsl.system_kinds import DEFAULT_POLICY, SystemKind
from capvisor.dsl.system_watch import TableWatch


class AnyCase(Protocol):
    """A system at its start, with what is done in it: a named tuple."""

    @property
    def events(self) -> tuple[Any, ...]:
        """What is done, one after the other."""

    @property
    def _replace(self) -> Callable[..., Self]: ...


Case = TypeVar("Case", bound=AnyCase)


class Written(NamedTuple):
    """A case in the language, and what it violates."""

    system: str
    """The line that says what there is."""
    lines: Sequence[str]
    """What is done."""
    violated: set[str]


class Programs(ABC, Generic[Case]):
    """What a kind of system says of its cases."""

    kind: SystemKind
    most_replays, most_pairs = 800, 200
    """How often a program is tried with something left out; on both implementations, which is slower, the second number."""
    rearranges_first = False
    """Whether events are arranged otherwise before any of them is left out."""

    @abstractmethod
    def case_of(self, systems: Any, start: Any, lane: int, count: int) -> Case:
        """What the first events of a campaign were in one lane."""

    @abstractmethod
    def violated(self, policy: Any, case: Case, *, only_last: bool = False) -> Iterator[set[str]]:
        """What the reference violates at the start, and then by each event.

        Invariants that are violated for the first time; of the last event alone, whatever it violates, and nothing of those
        before it. Ends at an event that a program can't say.
        """

    @abstractmethod
    def on_both(self, policy: Any, case: Case) -> Compared | None:
        """Both implementations after all events, or after the first with which one of them ends; None where a program
        can't say that.
        """

    @abstractmethod
    def written(self, policy: Any, case: Case) -> Written:
        """The case in the language; events that can't be said are left out."""

    def prepared(self, policy: Any, case: Case) -> Case:  # noqa: ARG002 - of kinds whose events stand for more
        """The same case with what stands for numbers that depend on others."""
        return case

    def agent_of(self, event: Any) -> str:  # noqa: ARG002 - of kinds whose agents can be left out
        """Who is left out with the event, if anyone."""
        return ""

    @abstractmethod
    def simpler(self, event: Any) -> Iterable[Any]:
        """What an event may be replaced by."""

    def plainer(self, case: Case) -> Iterable[Case]:  # noqa: ARG002 - of kinds that begin with more than they need
        """Cases with one thing less at the start."""
        return ()

    def rearranged(self, fails: "Failing[Case]", case: Case, most: int) -> tuple[Case, int]:
        """A case that fails with less at the start or with other events, and how many were tried."""
        tried, going = 0, True
        while going:
            going = False
            for other in self.plainer(case):
                if tried >= most:
                    return case, tried
                tried += 1
                if fails(other):
                    case, going = other, True
                    break
        return case, tried

    # -- what is the same for all ------------------------------------------------------------------------------------------

    def fails(self, policy: Any, what: str) -> "Failing[Case]":
        """Whether cases fail in one way: an invariant, or `differs`, or `crashes`."""
        return Failing(self, policy, what)

    def reduced(self, policy: Any, case: Case, what: str) -> tuple[Case, int] | None:
        """A smaller case that fails in the same way, and how many were tried; None where this one doesn't by itself."""
        fails, case = self.fails(policy, what), self.prepared(policy, case)
        if not fails(case):
            return None
        small, tried = fails.up_to_the_first(case), 0
        most = self.most_replays if fails.is_invariant else self.most_pairs
        last: Case | None = None
        while tried < most:
            if last is not None or self.rearranges_first:
                small, count = self.rearranged(fails, small, most - tried)
                tried += count
            if small == last:
                break

            def still_fails(events: Sequence[Any], whole: Case = small) -> bool:
                return fails(whole._replace(events=tuple(events)))

            reduction = StepReduction(small.events, still_fails, most - tried, self.agent_of, self.simpler)
            last = small = fails.up_to_the_first(small._replace(events=tuple(reduction.run())))
            tried += reduction.tried
        return small, tried

    def program(self, policy: Any, case: Case) -> list[str]:
        """The case as the lines of a program, which says what it violates."""
        found = self.written(policy, case)
        names = [name for name in self.kind.invariants if name in found.violated]
        expected = [f"expect violates {', '.join(names)}"] if names else []
        return [found.system, *expected, *found.lines]

    def policy_items(self, policy: Any) -> list[str]:
        """A policy, as items of a system: a preset's name, or that of one with the guards that are off."""
        kind, policies = self.kind, self.kind.policies
        off = tuple(guard for guard in kind.guards if not getattr(policy, guard))
        name = next((name for name, preset in policies.items() if preset == policy), None)
        guards = [] if name else [f"policy without {guard}" for guard in off]
        alike = (name for name, preset in policies.items() if kind.switched_off(preset, off) == policy)
        name = name or next(alike, DEFAULT_POLICY)
        return [*([] if policies[name] == kind.intended else [f"policy {name}"]), *guards]


class Failing(Generic[Case]):
    """Whether programs fail in one way: an invariant that the last step violates, a difference after it, or a crash."""

    def __init__(self, programs: Programs[Case], policy: Any, what: str) -> None:
        self._programs, self.policy, self._what = programs, policy, what
        self.is_invariant = what in programs.kind.invariants

    def __call__(self, case: Case) -> bool:
        if self.is_invariant:
            ends = list(self._programs.violated(self.policy, case, only_last=True))
            return len(ends) > len(case.events) and self._what in ends[-1]
        both = self._programs.on_both(self.policy, case)
        return both is not None and any(
            found.what == self._what and found.events == len(both.events) for found in both.found
        )

    def up_to_the_first(self, case: Case) -> Case:
        """The events up to the first that fails."""
        if self.is_invariant:
            for count, violated in enumerate(self._programs.violated(self.policy, case)):
                if self._what in violated:
                    return case._replace(events=case.events[:count])
        return case


class OperationPrograms(Programs[Case]):
    """What a kind says of its cases where each event is one operation, with a name and operands that are numbers."""

    watch: type[TableWatch]
    """What holds the reference's steps against the invariants."""
    perform: Callable[..., Any]
    """Makes one step of the reference."""

    @abstractmethod
    def can_be(self, case: Case) -> bool:
        """Whether a program can name who performs the operations."""

    @abstractmethod
    def system(self, policy: Any, case: Case) -> Any:
        """The reference at its start. Raises AssertionError where that is refused."""

    @abstractmethod
    def pair(self, policy: Any, case: Case) -> Any:
        """Both implementations at their start, in one lane. Raises AssertionError where that is refused."""

    def violated(self, policy: Any, case: Case, *, only_last: bool = False) -> Iterator[set[str]]:
        if not self.can_be(case):
            return
        try:
            system = self.system(policy, case)
        except AssertionError:
            return
        yield set()
        watch = self.watch()
        for left, event in zip(range(len(case.events))[::-1], case.events, strict=True):
            step = self.perform(system, event.name, *event.operands)
            yield set() if only_last and left else {found.invariant for found in watch.violated(step)}

    def on_both(self, policy: Any, case: Case) -> Compared | None:
        if not self.can_be(case):
            return None
        try:
            both = self.pair(policy, case)
        except AssertionError:
            return None
        with suppress(CrashError):
            for event in case.events:
                both.step(event.name, tuple(np.full(1, each, np.uint64) for each in event.operands))
            both.finish()
        return both if len(both.events) == len(case.events) else None


def with_operand(operands: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    """Operands, one of them replaced."""
    return (*operands[:place], value, *operands[place + 1 :])


def in_lane(operands: Iterable[Any], lane: int) -> tuple[int, ...]:
    """Operands of which each has one number for each lane, in one of them."""
    return tuple(int(each[lane]) for each in operands)
