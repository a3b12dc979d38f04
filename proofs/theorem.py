"""What is to be proved: theorems, declared where their room is, one obligation a capability format.

A theorem's claim is a function of a format and a `Given`. It takes its values from the given, says what it assumes of
them, executes the reference (or the fast path), and returns the goal. The same function runs twice: on symbolic values, to
be proved for all of them, and on plain ints, to replay a counterexample on the code as it is.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import z3

from capvisor.model.capability import Capability
from capvisor.proofs import symbolic
from capvisor.spec.formats import FORMATS, CapabilityFormat


class Given:
    """Where a claim gets its values from, and to which it says its assumptions. This one gives symbolic values."""

    def __init__(self, *, is_abstract: bool = False) -> None:
        self.is_abstract = is_abstract
        """Whether contracts are to stand for functions, rather than by them."""
        self.symbols: dict[str, z3.ExprRef] = {}
        self.assumptions: list[Any] = []
        self.cases: list[Any] = []
        self.leant_on: set[str] = set()

    def word(self, name: str, bits: int) -> Any:
        """Any number of so many bits."""
        self.symbols[name] = z3.BitVec(name, bits)
        return symbolic.unsigned(name, bits)

    def flag(self, name: str) -> Any:
        """Any truth value."""
        self.symbols[name] = z3.Bool(name)
        return symbolic.flag(name)

    def assume(self, condition: Any) -> None:
        """What the theorem supposes."""
        self.assumptions.append(condition)

    def split(self, conditions: Sequence[Any]) -> None:
        """Cases in which the goal is to be proved one by one; that they cover everything is proved too."""
        self.cases = list(conditions)

    def lean_on(self, fmt: CapabilityFormat, name: str, **values: Any) -> None:
        """Suppose what the theorem of that name says of some values: words by name, and capabilities.

        Its own claim is executed on them, so that what is supposed is what is proved. A theorem that leans on another names
        it in its `uses`.
        """
        instance = _Instance(values)
        goal = THEOREMS[name].claim(fmt, instance)
        self.leant_on.add(name)
        supposed: Any = True
        for condition in instance.assumptions:
            supposed = supposed & condition
        self.assume(implies(supposed, goal))

    # -- capabilities ----------------------------------------------------------------------------------------------------

    def capability(self, fmt: CapabilityFormat, name: str) -> Capability:
        """Any bits with any tag."""
        width = fmt.address_width
        return Capability(
            fmt, self.flag(f"{name}_tag"), self.word(f"{name}_meta", width), self.word(f"{name}_address", width)
        )

    def sound_capability(self, fmt: CapabilityFormat, name: str) -> Capability:
        """Any bits that satisfy the invariant of tagged capabilities, with any tag."""
        cap = self.capability(fmt, name)
        self.assume(cap.is_sound)
        return cap


class Replay(Given):
    """Gives the values of a counterexample as plain ints."""

    def __init__(self, values: dict[str, int]) -> None:
        super().__init__()
        self._values = values

    def word(self, name: str, bits: int) -> Any:
        """The number of that name."""
        return self._values[name] & (1 << bits) - 1

    def flag(self, name: str) -> Any:
        """The truth value of that name."""
        return bool(self._values[name])


class _Instance(Given):
    """Gives a lemma the values that it is to be applied to."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self._values = values

    def word(self, name: str, bits: int) -> Any:
        """The value of that name, supposed to have so many bits at most."""
        value = self._values[name]
        self.assume((value >= 0) & (value < 1 << bits))
        return value

    def flag(self, name: str) -> Any:
        """The truth value of that name."""
        return self._values[name]

    def lean_on(self, fmt: CapabilityFormat, name: str, **values: Any) -> None:
        """Nothing: the lemma holds, whatever it leans on itself."""

    def capability(self, fmt: CapabilityFormat, name: str) -> Capability:
        """The capability of that name."""
        cap: Capability = self._values[name]
        assert cap.format is fmt
        return cap


def implies(condition: Any, consequence: Any) -> Any:
    """Implication of truth values, as data."""
    return condition ^ True | consequence


def same_but(before: Capability, after: Capability, *changed: str) -> Any:
    """Whether the fields of meta that aren't named as changed are the same."""
    fmt = before.format
    mask = fmt.address_mask
    for name in changed:
        mask &= ~getattr(fmt, name).in_place
    return before.meta & mask == after.meta & mask


Claim = Callable[[CapabilityFormat, Given], Any]


@dataclass(frozen=True)
class Theorem:
    """A statement in words, its source, and the claim that says it in code.

    `holds` is False for a statement that is known to be false and kept with its counterexample. `mutants` are the names of
    changes to the code (`mutants.MUTANTS`) any of which must make the theorem fall. `uses` are theorems whose goals this one
    assumes of fresh values (contracts): it is proved only if they are. `scope` says what is bounded or assumed beyond the
    statement.
    """

    id: str
    statement: str
    source: str
    claim: Claim
    holds: bool = True
    mutants: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    formats: tuple[str, ...] = tuple(FORMATS)
    scope: str = "all values at full width"
    has_contracts: bool = False
    """Whether the claim is first to be tried with contracts in place of functions (`contracts`)."""
    replays: bool = True
    """Whether the values of its symbols say all, so that the claim can be executed on them: tables aren't among them."""


@dataclass(frozen=True)
class Obligation:
    """A theorem for one format."""

    theorem: Theorem
    format: CapabilityFormat

    @property
    def id(self) -> str:
        """The name by which it is proved alone."""
        return f"{self.theorem.id}.{self.format.name}"

    @property
    def uses(self) -> tuple[str, ...]:
        """The ids of the obligations that it leans on: of the theorems that there are for its format."""
        own = self.format.name
        return tuple(f"{name}.{own}" for name in self.theorem.uses if own in THEOREMS[name].formats)


THEOREMS: dict[str, Theorem] = {}


def theorem(
    name: str,
    statement: str,
    source: str,
    *,
    holds: bool = True,
    mutants: tuple[str, ...] = (),
    uses: tuple[str, ...] = (),
    formats: tuple[str, ...] = tuple(FORMATS),
    scope: str = "all values at full width",
    replays: bool = True,
) -> Callable[[Claim], Claim]:
    """Declare a claim to be a theorem."""

    def declare(claim: Claim) -> Claim:
        if name in THEOREMS:
            raise ValueError(f"two theorems are called {name}")
        THEOREMS[name] = Theorem(name, statement, source, claim, holds, mutants, uses, formats, scope, replays=replays)
        return claim

    return declare


def obligations() -> dict[str, Obligation]:
    """Every theorem for every format, by id."""
    found = [Obligation(each, FORMATS[name]) for each in THEOREMS.values() for name in each.formats]
    return {obligation.id: obligation for obligation in found}


@dataclass(frozen=True)
class Queries:
    """What has to be asked for an obligation: whether some choice of values satisfies

    - the assumptions (it must: else the theorem says nothing),
    - the assumptions and none of the cases (it mustn't: else the split has a gap), where the proof is split,
    - the assumptions, one case and the negated goal (it mustn't: that is a counterexample).
    """

    symbols: dict[str, z3.ExprRef]
    assumptions: tuple[z3.BoolRef, ...]
    cases: tuple[z3.BoolRef, ...]
    refuted: z3.BoolRef
    abstract: tuple[z3.BoolRef, ...] | None = None
    """Conditions that hold wherever the goal is refuted, with contracts in place of functions: if they can't, it isn't."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The questions, by name: "assumptions", "cases" where the proof is split, then the cases by number."""
        split = ("cases",) if self.cases else ()
        return ("assumptions", *split, *(str(number) for number in range(max(1, len(self.cases)))))

    def conditions(self, label: str) -> tuple[z3.BoolRef, ...]:
        """What one question asks to hold together."""
        if label == "assumptions":
            return self.assumptions
        if label == "cases":
            return (*self.assumptions, z3.Not(z3.Or(*self.cases)))
        case = (self.cases[int(label)],) if self.cases else ()
        return (*self.assumptions, *case, self.refuted)

    def key(self) -> str:
        """A digest of all that is asked: equal questions have equal keys."""
        terms = (*self.assumptions, *self.cases, self.refuted)
        return hashlib.sha256("\n".join(term.sexpr() for term in terms).encode()).hexdigest()


def queries(obligation: Obligation) -> Queries:
    """Execute an obligation's claim on symbolic values, along all its paths."""
    given, refuted = _execute(obligation, is_abstract=False)
    undeclared = given.leant_on - set(obligation.theorem.uses)
    if undeclared:
        raise ValueError(f"{obligation.theorem.id} leans on {', '.join(sorted(undeclared))} without naming it in `uses`")
    abstract = None
    if obligation.theorem.has_contracts:
        other, also_refuted = _execute(obligation, is_abstract=True)
        abstract = (*(symbolic.term_of(condition) for condition in other.assumptions), also_refuted)
    return Queries(
        given.symbols,
        tuple(symbolic.term_of(condition) for condition in given.assumptions),
        tuple(symbolic.term_of(case) for case in given.cases),
        refuted,
        abstract,
    )


def _execute(obligation: Obligation, *, is_abstract: bool) -> tuple[Given, z3.BoolRef]:
    """A claim along all its paths: what it was given and supposes, and when its goal is refuted."""
    attempts: list[Given] = []

    def run() -> Any:
        attempts.append(Given(is_abstract=is_abstract))
        return obligation.theorem.claim(obligation.format, attempts[-1])

    paths = symbolic.explore(run, most=500)
    # On each path, what had to hold for it implies its own goal. Each supposes what is true of all.
    goals = [z3.Implies(z3.And(*path.conditions), symbolic.term_of(path.result)) for path in paths]
    return attempts[0], z3.Not(z3.And(*goals))


def replay(obligation: Obligation, values: dict[str, int]) -> tuple[bool, bool]:
    """A claim on plain ints: whether its assumptions hold there, and whether its goal does."""
    given = Replay(values)
    goal = obligation.theorem.claim(obligation.format, given)
    return all(bool(condition) for condition in given.assumptions), bool(goal)
