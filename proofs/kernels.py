"""Theorems about the fast path: each kernel gives, for every input, what the reference's function of that name gives.

A kernel is executed on symbolic arrays of one lane; its scratch and its outputs hold anything at first. Replayed, the same
claim runs on numpy itself.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from capvisor.fastpath import bits as fast_bits
from capvisor.fastpath import bounds as fast_bounds
from capvisor.fastpath import capability as fast
from capvisor.fastpath.capability import Lanes
from capvisor.model import bounds, capability
from capvisor.model.bits import bit_length, not_, select
from capvisor.model.capability import Capability
from capvisor.proofs.bounds import by_exponent
from capvisor.proofs.symarray import SymArray, empty, lane, primitives, put, value, workspace
from capvisor.proofs.theorem import Given, implies, theorem
from capvisor.spec.formats import CapabilityFormat, Permission

SOURCE = "ours: fastpath/ is an implementation independent of model/"
SCOPE = "all values at full width, one lane; blocks of lanes and overlapping outputs are tested, not proved"


# Kernels of bounds whose theorems stand for them in kernels of capabilities.
CONTRACTS = tuple(
    f"kernels.{name}"
    for name in ("decode_bounds", "encode_bounds", "set_bounds", "address_keeps_bounds", "increment_is_representable")
)


class Run:
    """One execution of a kernel: makes its arrays, and reads what it has written.

    With contracts, kernels of bounds are not executed but give what their theorems say: the reference's answers. Those
    theorems are about numbers of the format's width, so that a call with a wider one makes `met` false; and they say nothing
    of scratch, which holds anything afterwards.
    """

    def __init__(self, like: Any, *, contracts: bool = False) -> None:
        self._symbolic = isinstance(lane(like), SymArray)
        self._contracts = contracts and self._symbolic
        self.ws = workspace(lane(like))
        self.met: Any = True

    def lanes(self, cap: Capability) -> Lanes:
        """A capability as arrays."""
        return Lanes(lane(cap.tag), lane(cap.meta), lane(cap.address))

    def words(self) -> Any:
        """An output of numbers."""
        return empty(self.ws, np.uint64)

    def flags(self) -> Any:
        """An output of truth values."""
        return empty(self.ws, np.bool_)

    def out(self) -> Lanes:
        """An output of capabilities."""
        return Lanes(self.flags(), self.words(), self.words())

    def __call__(self, kernel: Callable[..., Any], *arguments: Any) -> None:
        """Execute a kernel."""
        with ExitStack() as stack:
            if self._symbolic:
                stack.enter_context(primitives())
            if self._contracts:
                stack.enter_context(self._standing_in())
            kernel(*arguments)

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        stand_ins = {name.removeprefix("kernels."): getattr(self, name.replace("kernels.", "_")) for name in CONTRACTS}
        originals = {name: getattr(fast_bounds, name) for name in stand_ins}
        vars(fast_bounds).update(stand_ins)
        try:
            yield
        finally:
            vars(fast_bounds).update(originals)

    def _given(self, fmt: CapabilityFormat, *arrays: SymArray) -> list[Any]:
        """What arrays hold, as numbers of the format's width."""
        numbers = [value(array) for array in arrays]
        for number in numbers:
            self.met = self.met & (number <= fmt.address_mask)
        self.ws.forget_bounds()
        return [number & fmt.address_mask for number in numbers]

    def _decode_bounds(self, fmt: Any, meta: Any, address: Any, _ws: Any, base: Any, top: Any, top_high: Any) -> None:
        expected = bounds.decode_bounds(fmt, *self._given(fmt, meta, address))
        put(base, expected[0])
        put(top, expected[1] & fmt.address_mask)
        put(top_high, expected[1] >> fmt.address_width == 1)

    def _encode_bounds(self, fmt: Any, base: Any, length: Any, ws: Any, alignment: Any, exact: Any) -> Any:
        start, size = self._given(fmt, base, length)
        field, shift, is_exact = bounds.encode_bounds(fmt, start, start + size)
        put(alignment, shift)
        put(exact, is_exact)
        put(ws.bounds_shorts[0], field)
        return ws.bounds_shorts[0]

    def _set_bounds(self, fmt: Any, meta: Any, base: Any, length: Any, _ws: Any, out_meta: Any, exact: Any) -> None:
        before, start, size = self._given(fmt, meta, base, length)
        after, is_exact = bounds.set_bounds(fmt, before, start, start + size)
        put(out_meta, after)
        put(exact, is_exact)

    def _address_keeps_bounds(self, fmt: Any, meta: Any, address: Any, new_address: Any, _ws: Any, out: Any) -> None:
        put(out, bounds.address_keeps_bounds(fmt, *self._given(fmt, meta, address, new_address)))

    def _increment_is_representable(self, fmt: Any, meta: Any, address: Any, increment: Any, _ws: Any, out: Any) -> None:
        put(out, bounds.increment_is_representable(fmt, *self._given(fmt, meta, address, increment)))


def same(out: Lanes, cap: Capability) -> Any:
    """Whether arrays hold a capability."""
    return (value(out.tag) == cap.tag) & (value(out.meta) == cap.meta) & (value(out.address) == cap.address)


def _kernel(
    name: str,
    *,
    mutants: tuple[str, ...],
    statement: str = "",
    uses: tuple[str, ...] = (),
) -> Callable[[Any], Any]:
    text = statement or f"fastpath's {name} gives what the reference's {name} gives, for every input."
    return theorem(f"kernels.{name}", text, SOURCE, mutants=mutants, uses=uses, scope=SCOPE)


# -- fastpath/bits.py ------------------------------------------------------------------------------------------------------


@_kernel(
    "floor_log2",
    mutants=("fast-log2-of-zero",),
    statement="fastpath's floor_log2, which goes through a float, is the number of the highest bit that is set, for every number "
    "below 2**52, and 0 for 0.",
)
def floor_log2(fmt: CapabilityFormat, given: Given) -> Any:
    number = given.word("number", min(52, fmt.address_width))
    run = Run(number)
    out = run.words()
    # The code itself, not what stands for it in other kernels.
    fast_bits.floor_log2(lane(number), out)
    return value(out) == bit_length(number | 1) - 1


# -- fastpath/bounds.py ----------------------------------------------------------------------------------------------------


@_kernel("decode_bounds", mutants=("fast-decode-carry", "fast-decode-eighth", "fast-decode-clamp"))
def decode_bounds(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address = given.word("meta", fmt.address_width), given.word("address", fmt.address_width)
    by_exponent(fmt, given, meta)
    run = Run(meta)
    base, top, high = run.words(), run.words(), run.flags()
    run(fast_bounds.decode_bounds, fmt, lane(meta), lane(address), run.ws, base, top, high)
    expected = bounds.decode_bounds(fmt, meta, address)
    return (value(base) == expected[0]) & (value(top) | value(high) << fmt.address_width == expected[1])


@_kernel("bounds_are_valid", mutants=("fast-valid-half",))
def bounds_are_valid(fmt: CapabilityFormat, given: Given) -> Any:
    meta = given.word("meta", fmt.address_width)
    run = Run(meta)
    out = run.flags()
    run(fast_bounds.bounds_are_valid, fmt, lane(meta), run.ws, out)
    return value(out) == bounds.bounds_are_valid(fmt, meta)


@_kernel(
    "encode_bounds",
    uses=("kernels.floor_log2",),
    mutants=("fast-set-carry", "fast-set-grown", "fast-set-exact", "fast-set-grown-alignment"),
)
def encode_bounds(fmt: CapabilityFormat, given: Given) -> Any:
    base, length = given.word("base", fmt.address_width), given.word("length", fmt.address_width)
    run = Run(base)
    alignment, exact, field = run.words(), run.flags(), run.words()

    def kernel() -> None:
        np.copyto(field, fast_bounds.encode_bounds(fmt, lane(base), lane(length), run.ws, alignment, exact))

    run(kernel)
    expected = bounds.encode_bounds(fmt, base, base + length)
    return (value(field) == expected[0]) & (value(alignment) == expected[1]) & (value(exact) == expected[2])


@_kernel("set_bounds", uses=("kernels.floor_log2",), mutants=("fast-set-carry", "fast-set-grown", "fast-set-exact"))
def set_bounds(fmt: CapabilityFormat, given: Given) -> Any:
    meta, base = given.word("meta", fmt.address_width), given.word("base", fmt.address_width)
    length = given.word("length", fmt.address_width)
    run = Run(meta)
    out, exact = run.words(), run.flags()
    run(fast_bounds.set_bounds, fmt, lane(meta), lane(base), lane(length), run.ws, out, exact)
    expected, expected_exact = bounds.set_bounds(fmt, meta, base, base + length)
    return (value(out) == expected) & (value(exact) == expected_exact)


@_kernel("address_keeps_bounds", mutants=("fast-decode-eighth",))
def address_keeps_bounds(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address = given.word("meta", fmt.address_width), given.word("address", fmt.address_width)
    new_address = given.word("new_address", fmt.address_width)
    by_exponent(fmt, given, meta)
    run = Run(meta)
    out = run.flags()
    run(fast_bounds.address_keeps_bounds, fmt, lane(meta), lane(address), lane(new_address), run.ws, out)
    return value(out) == bounds.address_keeps_bounds(fmt, meta, address, new_address)


@_kernel("increment_is_representable", mutants=("fast-increment-limit", "fast-increment-region"))
def increment_is_representable(fmt: CapabilityFormat, given: Given) -> Any:
    meta, address = given.word("meta", fmt.address_width), given.word("address", fmt.address_width)
    increment = given.word("increment", fmt.address_width)
    by_exponent(fmt, given, meta)
    run = Run(meta)
    out = run.flags()
    run(fast_bounds.increment_is_representable, fmt, lane(meta), lane(address), lane(increment), run.ws, out)
    return value(out) == bounds.increment_is_representable(fmt, meta, address, increment)


@_kernel("alignment_mask", uses=("kernels.floor_log2",), mutants=("fast-set-grown-alignment",))
def alignment_mask(fmt: CapabilityFormat, given: Given) -> Any:
    length = given.word("length", fmt.address_width)
    run = Run(length)
    out = run.words()
    run(fast_bounds.alignment_mask, fmt, lane(length), run.ws, out)
    return value(out) == bounds.alignment_mask(fmt, length)


@_kernel("representable_length", uses=("kernels.floor_log2",), mutants=("fast-crrl",))
def representable_length(fmt: CapabilityFormat, given: Given) -> Any:
    length = given.word("length", fmt.address_width)
    run = Run(length)
    out = run.words()
    run(fast_bounds.representable_length, fmt, lane(length), run.ws, out)
    return value(out) == bounds.representable_length(fmt, length)


# -- fastpath/capability.py: fields ------------------------------------------------------------------------------------------

_FIELDS: dict[str, tuple[str, Callable[..., Any], Callable[[Capability], Any]]] = {
    "is_unsealed": (
        "fast-otype-unsealed",
        lambda run, fmt, cap, out: fast.is_unsealed(fmt, cap.meta, run.ws, out),
        lambda cap: not_(cap.is_sealed),
    ),
    "has_ordinary_otype": (
        "fast-otype-ordinary",
        lambda run, fmt, cap, out: fast.has_ordinary_otype(fmt, cap.meta, run.ws, out),
        lambda cap: not_(cap.has_reserved_otype),
    ),
    "permits": (
        "fast-permits-any",
        lambda run, fmt, cap, out: fast.permits(fmt, cap.meta, Permission.LOAD | Permission.SEAL, run.ws, out),
        lambda cap: cap.permits(Permission.LOAD | Permission.SEAL),
    ),
    "get_permissions": (
        "fast-permissions-hard",
        lambda run, fmt, cap, out: fast.get_permissions(fmt, cap.meta, run.ws, out),
        lambda cap: cap.permissions,
    ),
    "get_flags": ("fast-extract", lambda run, fmt, cap, out: fast.get_flags(fmt, cap.meta, out), lambda cap: cap.flags),
    "get_otype": (
        "fast-otype-ordinary",
        lambda run, fmt, cap, out: fast.get_otype(fmt, cap.meta, run.ws, out),
        capability.otype_as_integer,
    ),
    "get_base": ("fast-base-is-top", lambda run, fmt, cap, out: fast.get_base(fmt, cap, run.ws, out), lambda cap: cap.base),
    "get_top": (
        "fast-top-unclipped",
        lambda run, fmt, cap, out: fast.get_top(fmt, cap, run.ws, out),
        lambda cap: select(cap.top > cap.format.address_mask, cap.format.address_mask, cap.top),
    ),
    "get_length": (
        "fast-length-borrow",
        lambda run, fmt, cap, out: fast.get_length(fmt, cap, run.ws, out),
        lambda cap: select(cap.length > cap.format.address_mask, cap.format.address_mask, cap.length),
    ),
    "get_offset": (
        "fast-offset-added",
        lambda run, fmt, cap, out: fast.get_offset(fmt, cap, run.ws, out),
        lambda cap: cap.offset,
    ),
}
_CONDITIONS = {"is_unsealed", "has_ordinary_otype", "permits"}


def _declare_field(name: str) -> None:
    mutant, kernel, expected = _FIELDS[name]

    @_kernel(
        name,
        mutants=(mutant,),
        uses=CONTRACTS,
        statement=f"fastpath's {name} gives what the reference's field or function gives, for every input.",
    )
    def field(fmt: CapabilityFormat, given: Given) -> Any:
        cap = given.capability(fmt, "c")
        run = Run(cap.meta, contracts=True)
        out = run.flags() if name in _CONDITIONS else run.words()
        run(kernel, run, fmt, run.lanes(cap), out)
        return (value(out) == expected(cap)) & run.met


for _name in _FIELDS:
    _declare_field(_name)


# -- fastpath/capability.py: derivations and comparisons -----------------------------------------------------------------------


@_kernel("within_bounds", mutants=("fast-within-carry",), uses=CONTRACTS)
def within_bounds(fmt: CapabilityFormat, given: Given) -> Any:
    cap, address = given.capability(fmt, "c"), given.word("at", fmt.address_width)
    size = given.word("size", fmt.address_width)
    run = Run(cap.meta, contracts=True)
    out = run.flags()
    run(fast.within_bounds, fmt, run.lanes(cap), lane(address), lane(size), run.ws, out)
    return (value(out) == capability.within_bounds(cap, address, size)) & run.met


@_kernel(
    "set_bounds_of",
    mutants=("fast-setbounds-sealed",),
    uses=CONTRACTS,
    statement="fastpath's set_bounds of capabilities gives what the reference's gives, for every input.",
)
def set_bounds_of(fmt: CapabilityFormat, given: Given) -> Any:
    cap, length = given.capability(fmt, "c"), given.word("length", fmt.address_width)
    run = Run(cap.meta, contracts=True)
    out, exact = run.out(), run.flags()
    run(fast.set_bounds, fmt, run.lanes(cap), lane(length), run.ws, out, exact)
    expected, expected_exact = capability.set_bounds(cap, length)
    return same(out, expected) & (value(exact) == expected_exact) & run.met & run.met


# With one number: name, the mutant, the kernel, the reference's function.
_WITH_NUMBER: dict[str, tuple[str, Callable[..., None], Callable[..., Capability]]] = {
    "set_address": ("fast-move-sealed", fast.set_address, capability.set_address),
    "increment_address": ("fast-move-sealed", fast.increment_address, capability.increment_address),
    "set_offset": ("fast-move-sealed", fast.set_offset, capability.set_offset),
    "and_permissions": ("fast-permissions-hard", fast.and_permissions, capability.and_permissions),
    "set_flags": ("fast-flags-kept", fast.set_flags, capability.set_flags),
}
# With another capability.
_WITH_CAPABILITY: dict[str, tuple[str, Callable[..., None], Callable[..., Capability]]] = {
    "seal": ("fast-seal-any-type", fast.seal, capability.seal),
    "conditional_seal": ("fast-seal-any-type", fast.conditional_seal, capability.conditional_seal),
    "unseal": ("fast-unseal-any-type", fast.unseal, capability.unseal),
    "copy_type": ("fast-otype-ordinary", fast.copy_type, capability.copy_type),
}


def _declare_with_number(name: str) -> None:
    mutant, kernel, reference = _WITH_NUMBER[name]

    @_kernel(name, mutants=(mutant,), uses=CONTRACTS)
    def derivation(fmt: CapabilityFormat, given: Given) -> Any:
        cap, number = given.capability(fmt, "c"), given.word("n", fmt.address_width)
        run = Run(cap.meta, contracts=True)
        out = run.out()
        run(kernel, fmt, run.lanes(cap), lane(number), run.ws, out)
        return same(out, reference(cap, number)) & run.met


def _declare_with_capability(name: str) -> None:
    mutant, kernel, reference = _WITH_CAPABILITY[name]

    @_kernel(name, mutants=(mutant,), uses=CONTRACTS)
    def derivation(fmt: CapabilityFormat, given: Given) -> Any:
        cap, other = given.capability(fmt, "c"), given.capability(fmt, "other")
        run = Run(cap.meta, contracts=True)
        out = run.out()
        run(kernel, fmt, run.lanes(cap), run.lanes(other), run.ws, out)
        return same(out, reference(cap, other)) & run.met


for _name in _WITH_NUMBER:
    _declare_with_number(_name)
for _name in _WITH_CAPABILITY:
    _declare_with_capability(_name)


@_kernel("seal_entry", mutants=("fast-with-otype",), uses=CONTRACTS)
def seal_entry(fmt: CapabilityFormat, given: Given) -> Any:
    cap = given.capability(fmt, "c")
    run = Run(cap.meta, contracts=True)
    out = run.out()
    run(fast.seal_entry, fmt, run.lanes(cap), run.ws, out)
    return same(out, capability.seal_entry(cap)) & run.met


@_kernel("set_permissions", mutants=("fast-permissions-set",), uses=CONTRACTS)
def set_permissions(fmt: CapabilityFormat, given: Given) -> Any:
    cap, permissions = given.capability(fmt, "c"), given.word("permissions", fmt.address_width)
    run = Run(cap.meta, contracts=True)
    out = run.words()
    run(fast.set_permissions, fmt, lane(cap.meta), lane(permissions), run.ws, out)
    return (value(out) == capability.set_permissions(cap, permissions).meta) & run.met


@_kernel("is_subset", mutants=("fast-subset-tags",), uses=CONTRACTS)
def is_subset(fmt: CapabilityFormat, given: Given) -> Any:
    inner, outer = given.capability(fmt, "inner"), given.capability(fmt, "outer")
    run = Run(inner.meta, contracts=True)
    out = run.flags()
    run(fast.is_subset, fmt, run.lanes(inner), run.lanes(outer), run.ws, out)
    return (value(out) == capability.is_subset(inner, outer)) & run.met


@_kernel("equal", mutants=("fast-equal-address",), uses=CONTRACTS)
def equal(fmt: CapabilityFormat, given: Given) -> Any:
    a, b = given.capability(fmt, "a"), given.capability(fmt, "b")
    run = Run(a.meta, contracts=True)
    out = run.flags()
    run(fast.equal, run.lanes(a), run.lanes(b), run.ws, out)
    return (value(out) == capability.equal(a, b)) & run.met


@_kernel(
    "build",
    mutants=("fast-build-reserved", "fast-build-whole"),
    uses=CONTRACTS,
    statement="fastpath's build gives what the reference's gives, wherever a tagged authority satisfies the invariant; also "
    "where the output is one of the inputs.",
)
def build(fmt: CapabilityFormat, given: Given) -> Any:
    authority, requested = given.capability(fmt, "authority"), given.capability(fmt, "requested")
    given.assume(implies(authority.tag, authority.is_sound))
    run = Run(authority.meta, contracts=True)
    out = run.out()
    run(fast.build, fmt, run.lanes(authority), run.lanes(requested), run.ws, out)
    expected = capability.build(authority, requested)
    goal = same(out, expected) & run.met
    # Also where the output is one of the inputs: nothing is written before all has been read.
    for overlapping in range(2):
        run = Run(authority.meta, contracts=True)
        inputs = run.lanes(authority), run.lanes(requested)
        run(fast.build, fmt, *inputs, run.ws, inputs[overlapping])
        goal = goal & same(inputs[overlapping], expected)
    return goal
