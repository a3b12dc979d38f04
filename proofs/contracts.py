"""Theorems about the reference's functions that stand by wherever those functions are called.

While contracts are in force, every derivation of a capability brings its theorems along, said of the values at hand: what was
tagged is sound, and within what it was derived from. They are consequences of the code, so that nothing new is supposed; the
solver need not find them out again.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import RULES
from capvisor.proofs.capability import DERIVATIONS
from capvisor.proofs.theorem import Given

_LEMMAS = ("invariant", "monotone")


def lemmas_for(operations: Iterable[str]) -> tuple[str, ...]:
    """The theorems that come along with some operations: those of the derivations that their rules call."""
    called: set[str] = set()
    pending = [RULES[name].__code__ for name in operations]
    while pending:
        for name in set(pending.pop().co_names) & set(DERIVATIONS) - called:
            called.add(name)
            pending.append(getattr(capability, name).__code__)
    return tuple(f"{lemma}.{name}" for name in DERIVATIONS if name in called for lemma in _LEMMAS)


@contextmanager
def in_force(given: Given) -> Iterator[None]:
    """Let every derivation tell `given` what its theorems say of it."""
    originals = {name: getattr(capability, name) for name in DERIVATIONS}
    within: list[str] = []

    def contracted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(cap: Capability, *arguments: Any) -> Any:
            result = original(cap, *arguments)
            if not within:
                within.append(name)
                others = [each for each in arguments if isinstance(each, Capability)]
                numbers = [each for each in arguments if not isinstance(each, Capability)]
                values = {"c": cap, "other": (*others, cap)[0], "n": (*numbers, 0)[0]}
                for lemma in _LEMMAS:
                    given.lean_on(cap.format, f"{lemma}.{name}", **values)
                within.pop()
            return result

        return call

    vars(capability).update({name: contracted(name, original) for name, original in originals.items()})
    try:
        yield
    finally:
        vars(capability).update(originals)
