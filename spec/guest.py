"""M11: all that a step of a guest in user mode can do, in one predicate.

It is what proofs about a system of guests rest on in place of each instruction: it is proved of every operation, like the
other invariants of `spec.invariants`, and then known of any step. `cinvoke` isn't among them: whom it enters is the system's
matter, which looks at it itself.

Each part is a function of its own, of what was somewhere before and is there after: so it can be said of a step that was
watched, and of one of which nothing else is known.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from capvisor.spec.formats import Permission
from capvisor.spec.invariants import (
    Cap,
    Invariant,
    Place,
    Step,
    authorises,
    authority,
    granule_of,
    has_modes,
    implies,
    is_within,
    not_,
    same,
    same_bits,
    stored,
    tags_something,
    zero_is_null,
)
from capvisor.spec.registers import Privilege

APART = "cinvoke"
"""The operation that M11 says nothing of."""


class Source(NamedTuple):
    """A capability that a step may have derived others from, on a condition."""

    condition: Any
    cap: Cap


class CapabilityStore(NamedTuple):
    """A store of a whole capability: by which authority, of what, where."""

    authority: Cap
    stored: Cap
    address: Any


class ByteStore(NamedTuple):
    """A store to one byte, of whatever: by which authority, where."""

    authority: Cap
    address: Any


def has_power(sources: Iterable[Source]) -> Any:
    """Whether one of the sources is authority to seal or to unseal."""
    return some(
        condition & cap.tag & not_(cap.is_sealed) & (cap.permits(Permission.SEAL) | cap.permits(Permission.UNSEAL))
        for condition, cap in sources
    )


def ways_to_keep(before: Cap, after: Cap, sources: Sequence[Source]) -> Iterator[Any]:
    """How something can come into a register or DDC: it was there, or is within a source, which if sealed is the same."""
    yield same(before, after)
    for condition, cap in sources:
        intact = same_bits(after, cap) | not_(cap.is_sealed) & after.has_reserved_otype
        yield condition & cap.tag & is_within(after, cap) & intact
    yield has_power(sources)


def ways_to_run(before: Cap, after: Cap, sources: Sequence[Source]) -> Iterator[Any]:
    """How something can come into PCC: it was there, or executes, within a source that is unsealed or a sentry."""
    yield same(before, after)
    for condition, cap in sources:
        usable = cap.has_reserved_otype & after.has_reserved_otype & after.permits(Permission.EXECUTE)
        yield condition & cap.tag & is_within(after, cap) & usable
    yield has_power(sources)


def ways_to_stand(before: Cap, after: Cap, address: Any, stores: Iterable[CapabilityStore]) -> Iterator[Any]:
    """How something can come into memory: it was there, or was stored, by an authority that may."""
    yield same(before, after)
    for by, cap, at in stores:
        local = not_(cap.permits(Permission.GLOBAL))
        allowed = authorises(by, Permission.STORE | Permission.STORE_CAPABILITY, at, by.format.capability_bytes)
        allowed = allowed & implies(local, by.permits(Permission.STORE_LOCAL_CAPABILITY))
        yield (at == address) & same(after, cap) & allowed


def ways_to_change(before: Cap, after: Cap, address: Any, stores: Iterable[ByteStore]) -> Iterator[Any]:
    """How what is in memory can be what it is, tagged or not: it was so, or a byte of it was stored to by authority."""
    yield same(before, after)
    for by, at in stores:
        yield (address <= at) & (at < address + by.format.capability_bytes) & authorises(by, Permission.STORE, at, 1)


def is_runnable(cap: Cap) -> Any:
    """Whether a capability that has come into PCC is unsealed, and has a byte in bounds."""
    base, top = cap.bounds
    return not_(cap.is_sealed) & (base < top)


def some(conditions: Iterable[Any]) -> Any:
    """Whether one of some conditions holds."""
    holds: Any = False
    for condition in conditions:
        holds = holds | condition
    return holds


def is_kept(after: Cap, ways: Iterable[Any]) -> Any:
    """Whether what is tagged somewhere is sound, and came there in one of some ways."""
    return implies(after.tag, after.is_sound & some(ways))


def sources_of(step: Step) -> Iterator[Source]:
    """What a step could reach: the registers that it names, PCC, DDC, and what it loads, if it may load capabilities."""
    before = step.before
    for register in step.register_operands:
        yield Source(True, before.registers[register])
    yield Source(True, before.special["pcc"])
    yield Source(True, before.special["ddc"])
    needed = Permission.LOAD | Permission.LOAD_CAPABILITY
    for access in step.accesses:
        if access.is_capability and not access.is_store:
            loaded = before.granule(granule_of(step, access.address))
            yield Source(authorises(authority(step), needed, access.address, access.size_bytes), loaded)


def guest_step(step: Step, place: Place) -> Any:
    """M11."""
    if step.row.name == APART:
        return True
    before, after = step.before, step.after
    sources = tuple(sources_of(step))
    holds = zero_is_null(step, place) & has_modes(after.numbers)
    held, now = before.registers[place.register], after.registers[place.register]
    holds = holds & is_kept(now, ways_to_keep(held, now, sources))
    held, now = before.special["ddc"], after.special["ddc"]
    holds = holds & is_kept(now, ways_to_keep(held, now, sources))
    for name in before.special:
        holds = holds & implies(after.special[name].tag, after.special[name].is_sound)
    stores = [
        CapabilityStore(authority(step), stored(step), access.address)
        for access in step.accesses
        if access.is_store and access.is_capability
    ]
    address = before.memory.base + (place.granule << step.format.granule_shift)
    held, now = before.granule(place.granule), after.granule(place.granule)
    holds = holds & is_kept(now, ways_to_stand(held, now, address, stores))
    ends = (
        ByteStore(authority(step), at)
        for access in step.accesses
        if access.is_store
        for at in (access.address, access.address + access.size_bytes - 1)
    )
    holds = holds & some(ways_to_change(held, now, address, ends))
    if step.trap is None:
        held, now = before.special["pcc"], after.special["pcc"]
        holds = holds & is_kept(now, ways_to_run(held, now, sources))
        holds = holds & implies(now.tag, same(held, now) | is_runnable(now))
        holds = holds & (after.numbers["privilege"] == int(Privilege.USER)) & (after.numbers["pc"] & 1 == 0)
    return implies(before.numbers["privilege"] == int(Privilege.USER), holds)


GUEST_STEP = Invariant(
    "M11",
    "a guest's step",
    "In user mode, each tagged capability that a step leaves in a register, DDC or PCC was there, or is within one that "
    "the step reached: in a register that it names, PCC, DDC, or loaded by authority to load capabilities. Sealed, it is "
    "the same as that; in PCC, it executes and comes from what isn't sealed, or from a sentry; unless the step reached "
    "authority to seal or to unseal. What comes into PCC is unsealed, and has a byte in bounds. In memory, it was there or "
    "was stored from a register by authority to store capabilities, and local ones if it is local; whatever changes there, "
    "tagged or not, was stored to by authority to store. All tagged capabilities are sound, c0 is NULL, the mode stays the "
    "user's. cinvoke excepted; a refused step's PCC too, which is M4's.",
    "ours: what a system's proofs rest on; from M1, M3 to M9",
    guest_step,
    tags_something,
)
