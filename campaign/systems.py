"""What campaigns of systems of all kinds share: units, what is found in a lane, and findings."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from capvisor.campaign.findings import file_name, rule_of
from capvisor.campaign.unit import Work
from capvisor.dsl.system_kinds import DEFAULT_POLICY, SYSTEM_KINDS


class Found(NamedTuple):
    """Something wrong in a lane: a difference, or an invariant that was violated."""

    what: str
    lane: int
    details: tuple[str, ...]
    events: int
    """How many events it took."""
    step: str
    """The instruction, the call, or the deployer's operation."""


DIFFERS, CRASHES = "differs", "crashes"
"""What is found beside violated invariants: other states, and an error that ends the fast path."""

MOST_DETAILS = 5
"""How many differences of a lane are kept."""


class CrashError(Exception):
    """The fast path has ended with an error."""


ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What an implementation may end with."""


class Compared(Protocol):
    """Systems in both implementations, one for each lane."""

    @property
    def events(self) -> Sequence[Any]:
        """What was done, each with `lanes`, which took part in it."""

    @property
    def found(self) -> list[Found]:
        """What went wrong, in the order in which it did."""

    def finish(self) -> None:
        """To be called at the end."""


def exercise(systems: Compared, moves: Callable[[], None]) -> None:
    """Make moves, until the fast path ends with an error; it is among what was found."""
    # A unit makes many small tuples, none of them in a cycle.
    collecting = gc.isenabled()
    gc.disable()
    try:
        moves()
        systems.finish()
    except CrashError:
        assert systems.found
    finally:
        if collecting:
            gc.enable()


# -- units, failures and findings ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SystemWork(Work):
    """A unit of work on systems."""

    policy: str = DEFAULT_POLICY


@dataclass(frozen=True)
class SystemFailure:
    """A step of a system that went wrong, and everything that was done in its lane up to it."""

    profile: str
    """The kind of system."""
    kind: str
    """`breaks` an invariant, `differs` from the reference, or `crashes`."""
    what: str
    """The invariant, the part of the state that differs, or the error."""
    step: str
    """The instruction, call or operation."""
    case: Any
    policy: str
    shard: int
    lane: int
    details: tuple[str, ...]

    @property
    def signature(self) -> str:
        """What makes two failures the same."""
        return f"{self.step} {self.kind} {self.what}"


@dataclass(frozen=True)
class SystemFinding:
    """A failure of a system as small as it could be made."""

    failure: SystemFailure
    lines: tuple[str, ...]
    """The program that shows it."""
    shrunk: bool
    """Whether it fails on its own, so that it could be made smaller."""
    tried: int = 0

    @property
    def signature(self) -> str:
        """What makes two failures the same."""
        return self.failure.signature

    @property
    def details(self) -> tuple[str, ...]:
        """What differs, or what the invariant says."""
        return self.failure.details

    @property
    def name(self) -> str:
        """The name of its file."""
        return file_name(f"{self.failure.profile} {self.signature}", self.lines)

    @property
    def title(self) -> str:
        """What went wrong, in a line."""
        failure = self.failure
        if failure.kind == "breaks":
            return f"`{failure.step}` violates {failure.what}, {self._invariants[failure.what].title}"
        if failure.kind == CRASHES:
            who, _space, error = failure.what.rpartition(" ")
            return f"`{failure.step}` ends the {who or 'fast path'} with {error}"
        return f"`{failure.step}`: the implementations differ in {failure.what}"

    @property
    def rule(self) -> tuple[str, str]:
        """What kind of failure it is."""
        return rule_of(self.failure.kind, self.failure.what, self._invariants)

    @property
    def _invariants(self) -> Mapping[str, Any]:
        return SYSTEM_KINDS[self.failure.profile].invariants

    @property
    def steps(self) -> tuple[str, ...]:
        """The statements that are executed."""
        return tuple(line for line in self.lines if not line.startswith(("system", "expect")))

    def text(self, again: str) -> str:
        """The finding's file."""
        comments = [self.title, *self.details, f"signature: {self.signature}"]
        if not self.shrunk:
            comments.append("not made smaller: on its own, the program doesn't fail")
        comments.append(f"again: {again}")
        return "\n".join([*(f"# {each}" for each in comments), *self.lines]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The finding for a report."""
        failure = self.failure
        return {
            "signature": self.signature,
            "title": self.title,
            "kind": failure.kind,
            "what": failure.what,
            "stepping": "lock step",
            "shard": failure.shard,
            "lane": failure.lane,
            "operations": len(self.steps),
            "shrunk": self.shrunk,
            "details": list(self.details),
            "file": f"{self.name}.cap",
            "program": "\n".join(self.lines) + "\n",
        }
