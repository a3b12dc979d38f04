"""Theorems about the reference's functions that stand by wherever those functions are called.

While contracts are in force, every derivation of a capability brings its theorems along, said of the values at hand: what
was tagged is sound, and within what it was derived from. They are consequences of the code, so that nothing new is supposed;
the solver need not find them out again.

For an abstract `Given`, moreover, the functions of bounds are executed no more: each is any function of its arguments at
all, the same wherever it is called, of which only those theorems are known. What is proved so holds of the real functions
too; what isn't says nothing.
"""

import functools
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import z3

from capvisor.model import bounds, capability
from capvisor.model.capability import Capability
from capvisor.model.machine import RULES, Hart
from capvisor.proofs.capability import DERIVATIONS
from capvisor.proofs.symbolic import SymBool, SymInt, as_int
from capvisor.proofs.theorem import Given
from capvisor.spec.formats import CapabilityFormat

_LEMMAS = ("invariant", "monotone")


def lemmas_for(operations: Iterable[str]) -> tuple[str, ...]:
    """The theorems that come along with some operations: those of the derivations that their rules call, by whatever way."""
    return lemmas_of(set().union(*(names_reached(name) for name in operations)))


def lemmas_of(called: Collection[str]) -> tuple[str, ...]:
    """The theorems of some derivations, by name, and of the functions of bounds."""
    derivations = (f"{lemma}.{name}" for name in DERIVATIONS if name in called for lemma in _LEMMAS)
    return (*BOUNDS_LEMMAS, *derivations)


@functools.cache
def names_reached(operation: str) -> frozenset[str]:
    """The names that an operation's rule looks up, and the functions among what it calls, by whatever way."""
    return names_looked_up(RULES[operation], Hart)


def names_looked_up(function: Any, *classes: type) -> frozenset[str]:
    """The names that a function and those that it calls look up, methods of some classes included."""
    reached: set[str] = set()
    seen: set[types.FunctionType] = set()
    pending: list[Any] = [function]
    while pending:
        function = pending.pop()
        if not isinstance(function, types.FunctionType) or function in seen:
            continue
        seen.add(function)
        named = set(_names(function.__code__))
        reached |= {function.__code__.co_name, *named}
        pending += [getattr(capability, name) for name in named & set(DERIVATIONS)]
        pending += [function.__globals__.get(name) for name in named]
        pending += [vars(each).get(name) for name in named for each in classes]
        pending += [cell.cell_contents for cell in function.__closure__ or ()]
    return frozenset(reached)


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function's code looks up, those in functions within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def any_function(name: str, fmt: CapabilityFormat, arguments: Sequence[Any], widths: Sequence[int]) -> tuple[Any, ...]:
    """Results of so many bits (0 for a truth value) of a function that nothing is known of but that it is one."""
    terms = [as_int(argument).at(fmt.address_width + 1) for argument in arguments]
    results: list[Any] = []
    for number, width in enumerate(widths):
        sort = z3.BitVecSort(width) if width else z3.BoolSort()
        function = z3.Function(f"{name}_{number}_{fmt.name}", *(term.sort() for term in terms), sort)
        term = function(*terms)
        results.append(SymInt(z3.ZeroExt(1, term), 0, (1 << width) - 1) if width else SymBool(term))
    return tuple(results)


def _is_known(*arguments: Any) -> bool:
    return all(isinstance(argument, int) for argument in arguments)


def _abstract(name: str, widths: Callable[[CapabilityFormat], Sequence[int]], *, of_meta: bool) -> Callable[..., Any]:
    """A function of bounds of which only the type is kept; one `of_meta` sees nothing of meta but the bounds."""
    original = getattr(bounds, name)

    def call(fmt: CapabilityFormat, first: Any, *rest: Any) -> Any:
        if _is_known(first) if of_meta else _is_known(first, *rest):
            return original(fmt, first, *rest)
        arguments = (first & fmt.bounds.in_place if of_meta else first, *rest)
        results = any_function(name, fmt, arguments, widths(fmt))
        return results if len(results) > 1 else results[0]

    return call


_ABSTRACT: dict[str, Callable[..., Any]] = {
    "decode_bounds": _abstract("decode_bounds", lambda fmt: (fmt.address_width, fmt.address_width + 1), of_meta=True),
    "bounds_are_valid": _abstract("bounds_are_valid", lambda fmt: (0,), of_meta=True),
    "increment_is_representable": _abstract("increment_is_representable", lambda fmt: (0,), of_meta=True),
    "encode_bounds": _abstract("encode_bounds", lambda fmt: (fmt.bounds.in_place.bit_length(), 7, 0), of_meta=False),
}
BOUNDS_LEMMAS = ("bounds.types",)


def of_known(cap: Capability) -> Any:
    """What the functions of bounds give for a capability of plain bits, where they stand for any functions.

    It isn't executed by itself where such a capability is read back from a symbolic memory.
    """
    fmt, bits = cap.format, cap.meta & cap.format.bounds.in_place
    low, high = any_function("decode_bounds", fmt, (bits, cap.address), (fmt.address_width, fmt.address_width + 1))
    (valid,) = any_function("bounds_are_valid", fmt, (bits,), (0,))
    base, top = cap.bounds
    return (low == base) & (high == top) & (valid == bounds.bounds_are_valid(fmt, cap.meta))


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
        with any_bounds() if given.is_abstract else nullcontext():
            yield
    finally:
        vars(capability).update(originals)


@contextmanager
def any_bounds() -> Iterator[None]:
    """Let the functions of bounds be any functions of their arguments."""
    originals = {name: getattr(bounds, name) for name in _ABSTRACT}
    vars(bounds).update(_ABSTRACT)
    try:
        yield
    finally:
        vars(bounds).update(originals)
