"""Which information may flow between cVMs: the unwinding conditions of non-interference, as predicates, each said once.

*Output consistency*: what a step answers, stores and where it goes on is settled by what whoever takes it sees. *Weak step
consistency*: two systems that look alike to a cVM and to whoever takes the step look alike to the cVM after it. *Local
respect*: a step changes nothing that a cVM sees, but through a channel. Channels are nesting, live grants and calls; which
rows of the monitor's tables a call reads and changes beyond its caller's own is the table `CHANNELS`.

The predicates are of three kinds: on a step of the machine, or two of them (`model.observation.Step`); on what a cVM sees of
a system; and on what a call leaves of it. Values may be plain or stand for all values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from capvisor.spec import cvm
from capvisor.spec.cvm_invariants import has_put, is_empty, is_plain, some
from capvisor.spec.formats import Permission
from capvisor.spec.invariants import (
    Cap,
    Place,
    Step,
    authorises,
    authority,
    granule_of,
    implies,
    not_,
    same,
    same_bits,
    touches,
)
from capvisor.spec.registers import STATE_NUMBERS

Monitor = Any
Thread = Any

SOURCE = (
    "Rushby, Noninterference, Transitivity, and Channel-Control Security Policies (SRI-CSL-92-02, 1992), the unwinding "
    "theorem for intransitive policies; what is seen and the channels are ours"
)

# -- steps of the machine --------------------------------------------------------------------------------------------------


def looks_alike_where_read(one: Step, other: Step) -> Any:
    """What is supposed of two memories: at what either step reads, they agree as far as the authority permits to load it.

    The tag of a granule counts only where the authority permits to load capabilities.
    """
    holds: Any = True
    mine, its, by = one.before.memory, other.before.memory, authority(one)
    for access in (*one.accesses, *other.accesses):
        if access.is_store:
            continue
        may_load = authorises(by, Permission.LOAD, access.address, access.size_bytes)
        if not access.is_capability:
            held = mine.read(access.address, access.size_bytes) == its.read(access.address, access.size_bytes)
            holds = holds & implies(may_load, held)
            continue
        here, there = mine.read_granule(access.address), its.read_granule(access.address)
        holds = holds & implies(may_load, (here.upper == there.upper) & (here.lower == there.lower))
        may_load_tags = may_load & by.permits(Permission.LOAD_CAPABILITY)
        holds = holds & implies(may_load_tags, here.tag == there.tag)
    return holds


def same_outcome(one: Step, other: Step, place: Place) -> Any:
    """Whether two steps are refused alike, access the same, and leave the same: all registers and numbers, and memory.

    A byte, and a granule's tag, is the same after both, or each is as it was.
    """
    if (one.trap is None) != (other.trap is None) or len(one.accesses) != len(other.accesses):
        return False
    holds: Any = True
    if one.trap is not None:
        holds = (one.trap.cause is other.trap.cause) & (one.trap.value == other.trap.value)
    for mine, its in zip(one.accesses, other.accesses, strict=True):
        if (mine.is_store, mine.is_capability, mine.size_bytes) != (its.is_store, its.is_capability, its.size_bytes):
            return False
        holds = holds & (mine.address == its.address)
    holds = holds & same(one.after.registers[place.register], other.after.registers[place.register])
    for name, cap in one.after.special.items():
        holds = holds & same(cap, other.after.special[name])
    for name, number in one.after.numbers.items():
        holds = holds & (number == other.after.numbers[name])
    unmoved = (byte_kept(one, place), byte_kept(other, place))
    same_byte = one.after.memory.read(place.byte, 1) == other.after.memory.read(place.byte, 1)
    holds = holds & implies(one.before.memory.contains(place.byte, 1), same_byte | unmoved[0] & unmoved[1])
    same_tag = one.after.granule(place.granule).tag == other.after.granule(place.granule).tag
    return holds & (same_tag | tag_kept(one, place) & tag_kept(other, place))


def byte_kept(step: Step, place: Place) -> Any:
    """Whether a byte is as it was."""
    return step.before.memory.read(place.byte, 1) == step.after.memory.read(place.byte, 1)


def tag_kept(step: Step, place: Place) -> Any:
    """Whether a granule's tag is as it was."""
    return step.before.granule(place.granule).tag == step.after.granule(place.granule).tag


def changes_where_it_may(step: Step, place: Place) -> Any:
    """Whether a step stores only by authority to store, and changes nothing else.

    A byte that changes is within a store; a tag that changes is of a granule that a store touches, and one that comes is of
    a granule that is stored whole by authority to store capabilities.
    """
    by = authority(step)
    holds: Any = True
    byte_stored: Any = False
    touched: Any = False
    tag_stored: Any = False
    for access in step.accesses:
        if not access.is_store:
            continue
        holds = holds & authorises(by, Permission.STORE, access.address, access.size_bytes)
        byte_stored = byte_stored | (access.address <= place.byte) & (place.byte < access.address + access.size_bytes)
        touched = touched | touches(step, access, place.granule)
        if access.is_capability:
            here = granule_of(step, access.address) == place.granule
            tag_stored = tag_stored | here & by.permits(Permission.STORE_CAPABILITY)
    holds = holds & implies(step.before.memory.contains(place.byte, 1), byte_kept(step, place) | byte_stored)
    now = step.after.granule(place.granule).tag
    return holds & (tag_kept(step, place) | touched & implies(now, tag_stored))


def follows_from_what_it_may_read(one: Step, other: Step, place: Place) -> Any:
    """What is asked of every operation, of two steps that begin alike but for memory that the authority can't load."""
    outcome = implies(looks_alike_where_read(one, other), same_outcome(one, other, place))
    return outcome & changes_where_it_may(one, place)


# -- what a cVM sees of a system -------------------------------------------------------------------------------------------


def owns(monitor: Monitor, cvm_id: Any, address: Any, size_bytes: int = 1) -> Any:
    """Whether bytes are of a cVM's region: it sees them and their tags."""
    row = monitor.regions[cvm_id]
    return row.is_live & (row.base <= address) & (address + size_bytes <= row.top)


def is_open_to(monitor: Monitor, cvm_id: Any, address: Any, grant: Any) -> Any:
    """Whether a byte is of a live grant that a cVM has probed: it sees it, without its tag."""
    row = monitor.grants[grant]
    return row.is_live & monitor.held[grant, cvm_id] & (row.base <= address) & (address < row.top)


def sees_region(monitor: Monitor, cvm_id: Any, number: Any) -> Any:
    """Whether a cVM sees the row of a region: its own, that of the cVM around it, or of one that is nested in it."""
    return (number == cvm_id) | (number == monitor.regions[cvm_id].outer) | is_nested(monitor.regions[number], cvm_id)


def is_nested(row: Any, cvm_id: Any) -> Any:
    """Whether a region's row is that of a live cVM which is nested in another."""
    return row.is_live & (row.outer == cvm_id)


def sees_grant(monitor: Monitor, cvm_id: Any, number: Any) -> Any:
    """Whether a cVM sees where a grant is: it is live, and the cVM has probed it."""
    return monitor.grants[number].is_live & monitor.held[number, cvm_id]


def sees_granule(monitor: Monitor, cvm_id: Any, index: Any) -> Any:
    """Whether a cVM sees a granule with its tag, and what the monitor's books say of it: it is of its region."""
    address = monitor.memory.base + (index << monitor.format.granule_shift)
    return owns(monitor, cvm_id, address, monitor.format.capability_bytes)


def overlaps_open(monitor: Monitor, cvm_id: Any, base: Any, top: Any, grant: Any) -> Any:
    """Whether a range has a byte of a live grant that a cVM has probed."""
    row = monitor.grants[grant]
    return row.is_live & monitor.held[grant, cvm_id] & (row.base < top) & (base < row.top)


# -- steps of guests -------------------------------------------------------------------------------------------------------


class Reach(NamedTuple):
    """Any access, any byte of it, and the address of any granule."""

    address: Any
    size_bytes: Any
    byte: Any
    granule: Any

    def is_byte_by(self, cap: Cap, permission: Permission) -> Any:
        """Whether a capability authorises the access, and the byte is of it."""
        within = (self.address <= self.byte) & (self.byte < self.address + self.size_bytes)
        return within & authorises(cap, permission, self.address, self.size_bytes)


def loads_what_is_seen(monitor: Monitor, cvm_id: Any, by: Cap, reach: Reach) -> Any:
    """Whether each byte of what a capability of a cVM's authorises to load is one that the cVM sees.

    The granules that it authorises to load with their tags are of the cVM's region.
    """
    size_bytes = by.format.capability_bytes
    seen = owns(monitor, cvm_id, reach.byte)
    seen = seen | some(is_open_to(monitor, cvm_id, reach.byte, grant) for grant in monitor.grants_of(by))
    with_tag = authorises(by, Permission.LOAD | Permission.LOAD_CAPABILITY, reach.granule, size_bytes)
    own_granule = owns(monitor, cvm_id, reach.granule, size_bytes)
    return implies(reach.is_byte_by(by, Permission.LOAD), seen) & implies(with_tag, own_granule)


def stores_where_it_is_seen(monitor: Monitor, cvm_id: Any, by: Cap, reach: Reach) -> Any:
    """Whether where a capability of a cVM's authorises to store is the cVM's own memory, or a live grant that it has probed.

    It clears the tag of a granule that has a byte of one of these, and puts a tag into none but its own.
    """
    size_bytes, grants, granule = by.format.capability_bytes, tuple(monitor.grants_of(by)), reach.granule
    stores = reach.is_byte_by(by, Permission.STORE)
    here = owns(monitor, cvm_id, reach.byte) | some(is_open_to(monitor, cvm_id, reach.byte, grant) for grant in grants)
    touches_granule = stores & (granule <= reach.byte) & (reach.byte < granule + size_bytes)
    opened = some(overlaps_open(monitor, cvm_id, granule, granule + size_bytes, grant) for grant in grants)
    clears = implies(touches_granule, owns(monitor, cvm_id, granule, size_bytes) | opened)
    with_tag = authorises(by, Permission.STORE | Permission.STORE_CAPABILITY, granule, size_bytes)
    return implies(stores, here) & clears & implies(with_tag, owns(monitor, cvm_id, granule, size_bytes))


# -- calls -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Channel:
    """What a call reads and changes beyond what its caller sees, all of it in rows that the call names."""

    summary: str
    file: bool = False
    """The file of the key: its row."""
    portal: bool = False
    """The portal of the key: its row, whether the caller has probed it, and its row among the grants, for the buffer."""
    served: bool = False
    """The call that the thread serves: its portal's row, and its buffer's."""
    home: bool = False
    """The cVM that the thread belongs to, which the caller contains: its region's row."""
    counts: tuple[str, ...] = ()
    """Tables and threads of which it counts how many are live: that a full one refuses is seen by all."""
    clock: bool = False
    """The host's clock, which counts the calls of all."""
    starts: bool = False
    """It may start a thread: of its caller's, or of the owner of the portal that it names."""


CHANNELS: dict[str, Channel] = {
    "host_print": Channel("the host gets a word of the caller's memory"),
    "host_time": Channel("the host's clock says how often all have asked", clock=True),
    "thread_create": Channel("how many threads there are", counts=("threads",), starts=True),
    "file_advertise": Channel("whether the key is taken, and how many grants there are", file=True, counts=("grants",)),
    "file_probe": Channel("where the file is, which is open to the caller from then on", file=True),
    "file_revoke": Channel("the file ends: what has been put into slots and registers is untagged", file=True),
    "portal_advertise": Channel(
        "whether the key is taken, and how many portals there are", portal=True, counts=("portals",)
    ),
    "portal_probe": Channel("whether there is such a portal", portal=True),
    "portal_call": Channel(
        "whether the portal is busy; a thread of its owner's starts, with the key",
        portal=True,
        counts=("threads", "grants"),
        starts=True,
    ),
    "portal_fetch": Channel("where the caller's buffer is, which is open to the callee from then on", served=True),
    "portal_finish": Channel("the buffer's grant ends, as a file does; who waits for the portal goes on", served=True),
    "wait": Channel("whether the portal is busy", portal=True),
    "inner_return": Channel("the thread goes on for the nested cVM, with a number as result", home=True),
    "thread_exit": Channel("as portal_finish, where the thread serves a call", served=True),
}
"""By call: what goes over it."""


def channel_of(call: str) -> Channel:
    """What goes over a call: nothing, where nobody has said anything of it."""
    return CHANNELS.get(call, Channel(""))


@dataclass(frozen=True)
class Named:
    """The rows of the monitor's tables that a call may read and change, by number."""

    grants: tuple[Any, ...] = ()
    portals: tuple[Any, ...] = ()
    ended: tuple[Any, ...] = ()
    """Grants that it may take back."""
    is_entitled: Any = True
    """Whether it may: the file is the caller's, or the thread serves the call whose buffer it is."""

    def is_grant(self, number: Any) -> Any:
        """Whether a grant is one of these."""
        return some(number == each for each in self.grants)

    def is_portal(self, number: Any) -> Any:
        """Whether a portal is one of these."""
        return some(number == each for each in self.portals)


def named(before: Monitor, call: str, thread: Thread, words: tuple[Any, ...]) -> Named:
    """The rows that a call of a thread's names, by its arguments and by what the thread serves."""
    channel = channel_of(call)
    buffer = cvm.KEYS + thread.portal
    if channel.file:
        if call != "file_revoke":
            return Named((words[0],))
        return Named((words[0],), (), (words[0],), before.grants[words[0]].owner == thread.domain)
    if channel.portal:
        return Named((cvm.KEYS + words[0],), (words[0],))
    if channel.served:
        return Named((buffer,), (thread.portal,), () if call == "portal_fetch" else (buffer,), thread.serves)
    return Named()


def granule_respected(before: Monitor, after: Monitor, caller: Any, rows: Named, granule: Any, cvm_id: Any) -> Any:
    """Whether a granule is as it was, or its tag was taken with a live grant that was put there, or it is the caller's.

    Any cVM whose granule it is had probed that grant.
    """
    was, now = before.granule(granule), after.granule(granule)
    slot = before.slots[granule]
    taken = same_bits(was, now) & not_(now.tag) & has_put(before, granule) & some(slot.grant == each for each in rows.ended)
    taken = taken & rows.is_entitled
    taken = taken & implies(sees_granule(before, cvm_id, granule), sees_grant(before, cvm_id, slot.grant))
    return same(was, now) | taken | sees_granule(before, caller, granule)


def capability_respected(before: Monitor, holder: Thread, was: Cap, now: Cap, rows: Named) -> Any:
    """Whether what a thread of others holds, in a register or DDC, is as it was, or its tag was taken with a grant.

    It was to memory of others, then, and if there was a byte in bounds, within a live grant of its own that overlaps the one
    that ended.
    """
    base, top = was.bounds
    region = before.regions[holder.domain]
    own = (region.base <= base) & (top <= region.top)
    taken = same_bits(was, now) & not_(now.tag) & is_plain(was) & not_(own)

    def by(grant: Any) -> Any:
        row = before.grants[grant]
        held = row.is_live & before.held[grant, holder.domain] & (row.base <= base) & (top <= row.top)
        ended = (before.grants[each] for each in rows.ended)
        return held & some((row.base < each.top) & (each.base < row.top) for each in ended)

    within = is_empty(was) | some(by(grant) for grant in before.grants_of(was))
    return implies(holder.is_live, same(was, now) | bool(rows.ended) & rows.is_entitled & taken & within)


def thread_respected(before: Thread, after: Thread, rows: Named) -> Any:
    """Whether a thread that didn't call is as it was, but for registers; it may go on where it waited for what is over."""
    holds = same(before.hart.pcc, after.hart.pcc) & (before.hart.pc == after.hart.pc)
    for name in ("home", "domain", "is_live", "serves", "portal", "waits_for"):
        holds = holds & (getattr(before, name) == getattr(after, name))
    woken = rows.is_entitled & not_(after.waits) & some(before.waits_for == each for each in rows.portals)
    woken = bool(rows.ended) & woken
    return holds & (before.frame is after.frame) & ((before.waits == after.waits) | woken)


def rows_respected(before: Monitor, after: Monitor, caller: Any, rows: Named, number: Any, other: Any) -> Iterator[Any]:
    """Whether rows of the tables that a call doesn't name are as they were, of any number, and for any other cVM."""
    yield same_row(before.regions[number], after.regions[number])
    may_change = rows.is_grant(number) & (rows.is_entitled if rows.ended else True)
    yield may_change | same_row(before.grants[number], after.grants[number])
    yield rows.is_portal(number) | same_row(before.portals[number], after.portals[number])
    ended = has_put(before, number) & not_(has_put(after, number)) & rows.is_entitled
    ended = ended & some(before.slots[number].grant == each for each in rows.ended)
    yield sees_granule(before, caller, number) | same_slot(before, after, number) | ended
    # What the others hold and have probed goes only with a file or a portal that had ended.
    was, now = before.held[number, other], after.held[number, other]
    yield (was == now) | rows.is_grant(number) & (not_(before.grants[number].is_live) & not_(now) | (other == caller))
    was, now = before.probed[number, other], after.probed[number, other]
    yield (was == now) | rows.is_portal(number) & (not_(before.portals[number].is_live) & not_(now) | (other == caller))


def same_row(one: Any, other: Any) -> Any:
    """Whether two rows are the same."""
    holds: Any = True
    for mine, its in zip(one, other, strict=True):
        holds = holds & (mine == its)
    return holds


def same_slot(one: Monitor, other: Monitor, granule: Any) -> Any:
    """Whether the monitor has put the same live grant into a granule, or none: of one that has ended nothing comes."""
    put, others_put = has_put(one, granule), has_put(other, granule)
    return (put == others_put) & implies(put, one.slots[granule].grant == other.slots[granule].grant)


def threads_alike(one: Thread, other: Thread, register: Any) -> Iterator[Any]:
    """Whether a thread is the same in two systems: any register, DDC, PCC, numbers, and what the monitor knows of it."""
    yield same(one.hart.registers[register], other.hart.registers[register])
    yield same(one.hart.ddc, other.hart.ddc) & same(one.hart.pcc, other.hart.pcc)
    for name in ("pc", *STATE_NUMBERS, "is_reserved", "reservation"):
        yield getattr(one.hart, name) == getattr(other.hart, name)
    for name in ("home", "domain", "is_live", "serves", "portal", "waits", "waits_for"):
        yield getattr(one, name) == getattr(other, name)
    yield (one.frame is None) == (other.frame is None)
    if one.frame is not None and other.frame is not None:
        yield (one.frame.refusal is other.frame.refusal) and len(one.frame.arguments) == len(other.frame.arguments)
        for name in ("number", "domain", "caller", "has_handle", "stack"):
            yield getattr(one.frame, name) == getattr(other.frame, name)
        for mine, its in zip(one.frame.arguments, other.frame.arguments, strict=True):
            yield mine == its


INVOKED_DATA = 31
"""The register in which CInvoke hands over data: the monitor's, while a thread is in it."""


class System(NamedTuple):
    """A system before a step and after it."""

    before: Monitor
    after: Monitor


def systems_alike(one: System, other: System, cvm_id: Any, index: Any, byte: Any, number: Any) -> Iterator[Any]:
    """Whether what a cVM saw before a step is the same after it in two systems, and what it sees of the books is.

    `index` is any granule's, `byte` any byte's address, `number` any grant's.
    """
    seen, (mine, its) = sees_granule(one.before, cvm_id, index), (one.after, other.after)
    for part, its_part in zip(mine.memory.store.get(index), its.memory.store.get(index), strict=True):
        yield implies(seen, part == its_part)
    yield implies(seen, same_slot(mine, its, index))
    opened = is_open_to(one.before, cvm_id, byte, number) & one.before.memory.contains(byte, 1)
    yield implies(opened, mine.memory.read(byte, 1) == its.memory.read(byte, 1))
    yield same_row(mine.regions[cvm_id], its.regions[cvm_id])
    sees, others_see = sees_grant(mine, cvm_id, number), sees_grant(its, cvm_id, number)
    here, there = mine.grants[number], its.grants[number]
    yield (sees == others_see) & implies(sees, (here.base == there.base) & (here.top == there.top))


def stays(call: str, thread: Thread, caller: Any, home: Any) -> Iterator[Any]:
    """Whether the thread that called runs for its caller on, if it runs at all; or for the cVM that it belongs to."""
    runs_for = (thread.domain == caller) | (thread.domain == home) if channel_of(call).home else thread.domain == caller
    yield runs_for & (thread.home == home)


def starts(before: Monitor, call: str, thread: Thread, caller: Any, rows: Named) -> Any:
    """Whether a thread that a call starts is its caller's, or the owner's of a portal that it names."""
    owners = [before.portals[each].owner for each in rows.portals]
    return (
        channel_of(call).starts & (thread.domain == thread.home) & some(thread.home == each for each in owners or [caller])
    )


class Anywhere(NamedTuple):
    """Any place of a system: a cVM, a register, a granule's index, a byte's address, the number of a row."""

    cvm: Any
    register: Any
    granule: Any
    byte: Any
    number: Any


class Held(NamedTuple):
    """A thread before a step and after it, what some register held, and the state before it, to say whose that was."""

    before: Thread
    after: Thread
    register: Cap
    monitor: Monitor


Threads = tuple[Thread, ...]
Goals = dict[str, list[Any]]


def respects(
    system: System, call: str, caller: Held, others: tuple[Held, ...], started: Threads, rows: Named, place: Anywhere
) -> Goals:
    """Local respect: what is asked of a call's second part, by what it is about. `others` are threads that didn't call."""
    before, after = system
    cvm_id = caller.before.domain
    registers = []
    for each in others:
        now = each.after.hart.registers[place.register]
        in_register = capability_respected(each.monitor, each.before, each.register, now, rows)
        # c31 is the monitor's while the thread is in it.
        is_inside = each.before.frame is not None
        registers.append(implies(place.register != INVOKED_DATA, in_register) if is_inside else in_register)
        registers.append(capability_respected(each.monitor, each.before, each.before.hart.ddc, each.after.hart.ddc, rows))
    return {
        "memory": [granule_respected(before, after, cvm_id, rows, place.granule, place.cvm)],
        "rows": list(rows_respected(before, after, cvm_id, rows, place.number, place.cvm)),
        "threads": [thread_respected(each.before, each.after, rows) for each in others],
        "registers": registers,
        "caller": list(stays(call, caller.after, cvm_id, caller.before.home)),
        "started": [starts(before, call, each, cvm_id, rows) for each in started],
    }


class Half(NamedTuple):
    """One of two systems: before and after a step, with the thread that acts, those that watch, and those that it starts."""

    system: System
    acting: Thread
    watching: Threads
    started: Threads


def look_alike(one: Half, other: Half, acting: Any, place: Anywhere) -> Goals:
    """Output consistency and weak step consistency: what is asked of a step in two systems that were alike to the cVM that
    acts and to the one that watches, `place.cvm`.
    """
    goals = {"thread acting": list(threads_alike(one.acting, other.acting, place.register)), "threads watching": []}
    for mine, its in zip(one.watching, other.watching, strict=True):
        goals["threads watching"] += threads_alike(mine, its, place.register)
    for name, cvm_id in (("cVM acting", acting), ("cVM watching", place.cvm)):
        goals[name] = list(systems_alike(one.system, other.system, cvm_id, place.granule, place.byte, place.number))
    goals["started"] = [len(one.started) == len(other.started)]
    for mine, its in zip(one.started, other.started, strict=False):
        sees = (mine.domain == acting) | (mine.domain == place.cvm)
        goals["started"] += [implies(sees, alike) for alike in threads_alike(mine, its, place.register)]
    return goals
