"""The invariants of the Intravisor, C1 to C19, predicates on a step of the whole system, each said once; C3 is M1.

A predicate is a function of a step (`Step`) and of a place: any cVM, another one, any thread of the first, a register, a
granule and a grant. It holds if it holds at every place. What is said here is checked while running, and proved.

What is *plain* isn't sealed, or as a sentry only: the holder can use it. A cVM's *own* memory is its region, which contains
those of the cVMs nested in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from capvisor.spec import cvm
from capvisor.spec.formats import Permission
from capvisor.spec.invariants import has_modes, implies, is_null, not_, same_bits
from capvisor.spec.registers import Privilege

Monitor = Any
Thread = Any
Cap = Any


class Step(NamedTuple):
    """A step of the system: what was done, by which thread, with what it found, and the state after it."""

    monitor: Monitor
    kind: str
    """"instruction", "leave" (the second part of a call) or "deploy"."""
    name: str
    """The instruction, the call, or the deployer's operation."""
    thread: Thread = None
    is_completed: bool = True
    ddc: Cap = None
    """The thread's DDC before the step."""
    frame: Any = None
    """What the monitor had put down when the call was entered."""
    used: tuple[Any, ...] = ()
    """The arguments that it then worked with."""


class Place(NamedTuple):
    """Anywhere: a cVM and another one, a thread that runs for the first, a register, a granule, a grant.

    Without a thread or a granule, none is looked at.
    """

    cvm: Any
    other: Any = 0
    thread: Thread = None
    register: Any = 0
    granule: Any = None
    grant: Any = 0


# -- what a capability is to a cVM -----------------------------------------------------------------------------------------

POWERS = Permission.SEAL | Permission.UNSEAL | Permission.ACCESS_SYSTEM_REGISTERS | Permission.SET_CID
"""What no guest has."""


def is_plain(cap: Cap) -> Any:
    """Whether a capability is tagged and can be used as it is."""
    return cap.tag & cap.has_reserved_otype


def is_empty(cap: Cap) -> Any:
    """Whether no byte is in bounds."""
    base, top = cap.bounds
    return top <= base


def is_own(step: Step, cvm_id: Any, cap: Cap) -> Any:
    """Whether the bounds are within a cVM's region."""
    row = step.monitor.regions[cvm_id]
    base, top = cap.bounds
    return row.is_live & (row.base <= base) & (top <= row.top)


def lacks(cap: Cap, permissions: Permission) -> Any:
    """Whether a capability has none of some permissions."""
    return cap.meta & int(permissions) << cap.format.permissions.low == 0


def is_granted(step: Step, cvm_id: Any, cap: Cap, grant: Any) -> Any:
    """Whether the bounds are within a live grant that a cVM has probed."""
    row = step.monitor.grants[grant]
    base, top = cap.bounds
    return row.is_live & step.monitor.held[grant, cvm_id] & (row.base <= base) & (top <= row.top)


def some(conditions: Iterator[Any]) -> Any:
    """Whether one of some conditions holds."""
    holds: Any = False
    for condition in conditions:
        holds = holds | condition
    return holds


def is_authorised(step: Step, cvm_id: Any, cap: Cap) -> Any:
    """Whether a cVM may hold a plain capability: to its own memory, within one of its live grants, or to nothing."""
    grants = step.monitor.grants_of(cap)
    granted = some(is_granted(step, cvm_id, cap, grant) for grant in grants)
    return is_own(step, cvm_id, cap) | granted | is_empty(cap)


# -- places ----------------------------------------------------------------------------------------------------------------


def held(step: Step, place: Place) -> Iterator[tuple[str, Cap]]:
    """The capabilities that a cVM can use at a place: in a register of a thread that runs for it, DDC, PCC, its memory.

    While a thread is in the monitor, PCC and c31 are the monitor's.
    """
    monitor, thread = step.monitor, place.thread
    if thread is not None:
        runs = thread.is_live & (thread.domain == place.cvm)
        is_guest = thread.frame is None
        hart = thread.hart
        of_monitor = (place.register == 31) & not_(is_guest)
        yield "register", hart.registers[place.register].tagged_if(runs & not_(of_monitor))
        yield "ddc", hart.ddc.tagged_if(runs)
        if is_guest:
            yield "pcc", hart.pcc.tagged_if(runs)
    if place.granule is None:
        return
    yield "granule", monitor.granule(place.granule).tagged_if(is_inside(monitor, place.cvm, place.granule))


def is_inside(monitor: Monitor, cvm_id: Any, granule: Any) -> Any:
    """Whether a granule begins in a cVM's region."""
    row = monitor.regions[cvm_id]
    address = monitor.memory.base + (granule << monitor.format.granule_shift)
    return row.is_live & (row.base <= address) & (address < row.top)


def has_put(monitor: Monitor, granule: Any) -> Any:
    """Whether the monitor has put a grant into a granule that is still live."""
    slot = monitor.slots[granule]
    return slot.is_slot & monitor.grants[slot.grant].is_live


def everywhere(step: Step, place: Place, holds: Callable[[str, Cap], Any]) -> Any:
    """Whether something holds of every capability at a place."""
    result: Any = True
    for where, cap in held(step, place):
        if cap.tag is False:
            continue
        result = result & implies(cap.tag, holds(where, cap))
    return result


# -- the invariants --------------------------------------------------------------------------------------------------------


def authority(step: Step, place: Place) -> Any:
    """C1."""

    def allowed(where: str, cap: Cap) -> Any:
        # No grant permits to execute, and so revocation needn't look at PCC.
        own_code = is_own(step, place.cvm, cap) | is_empty(cap)
        return implies(is_plain(cap), own_code if where == "pcc" else is_authorised(step, place.cvm, cap))

    return everywhere(step, place, allowed)


def disjoint(step: Step, place: Place) -> Any:
    """C2."""
    regions = step.monitor.regions
    one, other = regions[place.cvm], regions[place.other]
    apart = (one.top <= other.base) | (other.top <= one.base)
    inside = (one.outer == place.other) & (other.base <= one.base) & (one.top <= other.top)
    around = (other.outer == place.cvm) & (one.base <= other.base) & (other.top <= one.top)
    nested = one.outer != cvm.MONITOR
    outer = regions[one.outer]
    outermost = outer.is_live & (outer.outer == cvm.MONITOR) & (outer.base <= one.base) & (one.top <= outer.top)
    in_order = implies(nested, outermost & not_(one.is_purecap | outer.is_purecap))
    both = one.is_live & other.is_live & (place.cvm != place.other)
    return implies(both, apart | inside | around) & implies(one.is_live, in_order)


def no_powers(step: Step, place: Place) -> Any:
    """C4."""
    return everywhere(step, place, lambda _where, cap: implies(is_plain(cap), lacks(cap, POWERS)))


def paired(step: Step, place: Place) -> Any:
    """C5."""
    if step.name != "cinvoke" or not step.is_completed:
        return True
    thread, monitor = step.thread, step.monitor
    data = thread.hart.registers[31]
    if thread.frame is not None:
        return data.tag & same_bits(data, monitor.monitor_data())
    code = thread.hart.pcc
    return is_own(step, thread.domain, code) & is_own(step, thread.domain, data)


def no_stash(step: Step, place: Place) -> Any:
    """C6."""

    def kept(where: str, cap: Cap) -> Any:
        if where != "granule":
            return True
        slot = step.monitor.slots[place.granule]
        usable = is_plain(cap) & not_(is_empty(cap)) & not_(is_own(step, place.cvm, cap))
        return implies(usable, slot.is_slot & is_granted(step, place.cvm, cap, slot.grant))

    holds = everywhere(step, place, kept)
    if place.granule is None:
        return holds
    put = has_put(step.monitor, place.granule) & is_inside(step.monitor, place.cvm, place.granule)
    return holds & implies(put, step.monitor.held[step.monitor.slots[place.granule].grant, place.cvm])


def no_leak(step: Step, place: Place) -> Any:
    """C7."""
    capabilities = Permission.LOAD_CAPABILITY | Permission.STORE_CAPABILITY
    return everywhere(
        step,
        place,
        lambda _where, cap: implies(
            is_plain(cap) & not_(is_own(step, place.cvm, cap)) & not_(is_empty(cap)), lacks(cap, capabilities)
        ),
    )


def revoked(step: Step, place: Place) -> Any:
    """C8."""
    row = step.monitor.grants[place.grant]

    def gone(_where: str, cap: Cap) -> Any:
        base, top = cap.bounds
        within = not_(row.is_live) & step.monitor.held[place.grant, place.cvm] & (row.base <= base) & (top <= row.top)
        return implies(is_plain(cap) & within, is_authorised(step, place.cvm, cap))

    return everywhere(step, place, gone)


def call_scope(step: Step, place: Place) -> Any:
    """C9."""
    grant, portal = step.monitor.grants[place.grant], step.monitor.portals[place.grant - cvm.KEYS & cvm.KEYS - 1]
    owner = step.monitor.regions[portal.owner]
    is_callee = (place.cvm == portal.owner) | (place.cvm == owner.outer)
    of_call = (place.grant >= cvm.KEYS) & grant.is_live
    return implies(of_call, portal.is_live & portal.is_busy & implies(step.monitor.held[place.grant, place.cvm], is_callee))


def deputy(step: Step, place: Place) -> Any:
    """C10."""
    holds: Any = True
    for access in step.monitor.accesses:
        row = step.monitor.regions[access.domain]
        holds = holds & row.is_live & (row.base <= access.address) & (access.address + access.size_bytes <= row.top)
    return holds


def own_stack(step: Step, place: Place) -> Any:
    """C11."""
    holds: Any = True
    if step.kind == "leave" and step.frame is not None:
        for found, put_down in zip(step.used, step.frame.arguments, strict=True):
            holds = holds & (found == put_down)
    return holds


def returns(step: Step, place: Place) -> Any:
    """C12."""
    thread = step.thread
    if step.kind != "leave" or step.name in ("inner_return", "thread_exit") or thread.frame is not None:
        return True
    code, hart = step.monitor.region_code(thread.domain), thread.hart
    to_caller = hart.pcc.tag & same_bits(hart.pcc, code) & (hart.pc == code.address)
    return to_caller & same_bits(hart.ddc, step.ddc) & implies(hart.ddc.tag, step.ddc.tag)


def identity(step: Step, place: Place) -> Any:
    """C13."""
    if step.frame is None:
        return True
    return step.frame.caller == step.frame.domain


def program_apart(step: Step, place: Place) -> Any:
    """C14."""
    row = step.monitor.regions[place.cvm]
    around = step.monitor.regions[row.outer]

    def apart(_where: str, cap: Cap) -> Any:
        base, top = cap.bounds
        overlaps = (base < around.top) & (around.base < top) & (row.outer != cvm.MONITOR)
        return implies(is_plain(cap) & overlaps, is_authorised(step, place.cvm, cap))

    return everywhere(step, place, apart)


def by_handle(step: Step, place: Place) -> Any:
    """C15."""
    if step.kind != "leave" or step.name != "portal_call" or not step.is_completed:
        return True
    return step.monitor.probed[step.used[0], step.frame.caller]


def from_owner(step: Step, place: Place) -> Any:
    """C16."""
    grant = step.monitor.grants[place.grant]
    row = step.monitor.regions[grant.owner]
    return implies(grant.is_live, row.is_live & (row.base <= grant.base) & (grant.top <= row.top))


def stores_nothing(step: Step, place: Place) -> Any:
    """C17."""
    row = step.monitor.regions[place.cvm]

    def kept(_where: str, cap: Cap) -> Any:
        foreign = not_(is_own(step, place.cvm, cap)) & not_(is_empty(cap))
        none = lacks(cap, Permission.STORE_LOCAL_CAPABILITY) & implies(
            not_(row.is_purecap), lacks(cap, Permission.STORE_CAPABILITY)
        )
        return implies(is_plain(cap), none & implies(foreign, lacks(cap, Permission.GLOBAL | Permission.EXECUTE)))

    return everywhere(step, place, kept)


def sealed_as_made(step: Step, place: Place) -> Any:
    """C18."""
    monitor, fmt = step.monitor, step.monitor.format
    row = monitor.regions[place.cvm]

    def kept(_where: str, cap: Cap) -> Any:
        otype = cap.otype
        by_monitor, is_handle = otype == cvm.FIRST_OTYPE, otype == cvm.HANDLE_OTYPE
        by_outer = (row.outer != cvm.MONITOR) & (otype == cvm.FIRST_OTYPE + row.outer)
        theirs = some(same_bits(cap, each) for each in monitor.monitor_pair()) & (row.outer == cvm.MONITOR)
        outers = some(same_bits(cap, each) for each in monitor.own_pair(row.outer))
        handle = lacks(cap, Permission(fmt.permissions.mask))
        own = is_own(step, place.cvm, cap) & lacks(cap, POWERS | Permission.STORE_LOCAL_CAPABILITY)
        own = own & implies(not_(row.is_purecap), lacks(cap, Permission.STORE_CAPABILITY))
        ordinary = not_(by_monitor | is_handle | by_outer)
        fits = implies(by_monitor, theirs) & implies(is_handle, handle) & implies(by_outer, outers) & implies(ordinary, own)
        return implies(not_(cap.has_reserved_otype), fits)

    return everywhere(step, place, kept)


def books(step: Step, place: Place) -> Any:
    """C19."""
    monitor = step.monitor
    row, memory = monitor.regions[place.cvm], monitor.memory
    granule = monitor.format.capability_bytes - 1
    store_bytes = len(cvm.STORE_SLOTS) * monitor.format.capability_bytes
    _cap, exact = monitor.mint(row.base, row.top - row.base, cvm.CODE_PERMISSIONS)
    placed = (row.base > 0) & (row.base + store_bytes < row.top) & memory.contains(row.base, row.top - row.base) & exact
    placed = placed & (row.base & granule == 0) & (row.top & granule == 0)
    numbered = (place.cvm != cvm.MONITOR) & (monitor.otype(place.cvm) <= monitor.format.max_otype)
    holds = implies(row.is_live, placed & numbered)
    grant = monitor.grants[place.grant]
    _cap, exact = monitor.mint(grant.base, grant.top - grant.base, cvm.GRANT_PERMISSIONS)
    said = exact & (grant.base < grant.top) & (grant.top <= monitor.format.address_space)
    holds = holds & implies(grant.is_live, said & (place.grant < 2 * cvm.KEYS))
    holds = holds & implies(monitor.held[place.grant, place.cvm], row.is_live)
    passed_on = implies(row.outer != cvm.MONITOR, monitor.held[place.grant, row.outer])
    holds = holds & implies(row.is_live & grant.is_live & monitor.held[place.grant, place.cvm], passed_on)
    portal = monitor.portals[place.grant]
    owner = monitor.regions[portal.owner]
    outermost = monitor.regions[grant.owner].outer == cvm.MONITOR
    holds = holds & implies(grant.is_live, outermost)
    served = owner.is_live & (owner.outer == cvm.MONITOR) & (portal.entry <= owner.top - owner.base)
    holds = holds & implies(portal.is_live, served & (place.grant < cvm.KEYS))
    thread = place.thread
    if thread is not None:
        home = monitor.regions[thread.home]
        known = (thread.domain == thread.home) | (thread.domain == home.outer) & (home.outer != cvm.MONITOR)
        serving = monitor.portals[thread.portal]
        serves = serving.is_live & (serving.owner == thread.home) & (thread.portal < cvm.KEYS)
        holds = holds & implies(thread.is_live, home.is_live & known & implies(thread.serves, serves))
        if thread.frame is not None:
            caller = thread.frame.domain
            outermost = monitor.regions[caller].outer == cvm.MONITOR
            holds = holds & implies(thread.is_live, (caller == thread.domain) & outermost)
    return holds


def sound_harts(step: Step, place: Place) -> Any:
    """M7 to M9, of a system's threads and memory."""
    holds: Any = True
    if place.granule is not None:
        cap = step.monitor.granule(place.granule)
        holds = holds & implies(cap.tag, cap.is_sound)
    if place.thread is not None:
        hart = place.thread.hart
        for cap in (hart.registers[place.register], hart.ddc, hart.pcc):
            holds = holds & implies(cap.tag, cap.is_sound)
        holds = holds & is_null(hart.registers[0]) & (hart.pc & 1 == 0)
        holds = holds & (hart.privilege == int(Privilege.USER)) & has_modes(vars(hart))
    return holds


Predicate = Callable[[Step, Place], Any]


@dataclass(frozen=True)
class Invariant:
    """One invariant: its name and title, what it says, where it is from, and the predicate."""

    name: str
    title: str
    statement: str
    source: str
    holds: Predicate


_SYSTEMS = "ours, after the CAP-VMs abstract (OSDI 2022) and lsds/intravisor"

CVM_INVARIANTS: dict[str, Invariant] = {
    row.name: row
    for row in (
        Invariant(
            "C1",
            "authority",
            "What a cVM can use, in the registers of threads that run for it or in its memory, has bounds within its region "
            "or within one live grant that it has probed; what it executes, within its region.",
            _SYSTEMS,
            authority,
        ),
        Invariant(
            "C2",
            "disjoint regions",
            "Two regions are disjoint, or one is nested in the other; what is nested is so once, inside, and hybrid.",
            _SYSTEMS,
            disjoint,
        ),
        Invariant(
            "C4",
            "only the monitor seals",
            "No cVM holds, unsealed, authority to seal, to unseal, to access system registers or to set the compartment.",
            _SYSTEMS,
            no_powers,
        ),
        Invariant(
            "C5",
            "pairing",
            "A completed CInvoke enters the monitor with the monitor's data, or leaves code and data of one cVM, for which "
            "the thread runs then.",
            _SYSTEMS,
            paired,
        ),
        Invariant(
            "C6",
            "no stash",
            "What a cVM can use from its memory is its own, or stands where the monitor has put a live grant, within it; "
            "and it has probed every live grant that the monitor has put there.",
            _SYSTEMS,
            no_stash,
        ),
        Invariant(
            "C7",
            "no leak",
            "What a cVM can use of others' memory permits neither to load nor to store capabilities.",
            _SYSTEMS,
            no_leak,
        ),
        Invariant(
            "C8",
            "revocation",
            "Once a grant is revoked, nothing within it can be used any more, in registers or memory, but by another grant.",
            _SYSTEMS,
            revoked,
        ),
        Invariant(
            "C9",
            "scope of calls",
            "The grant of a caller's buffer is live only during the portal's call, and held by the callee alone.",
            _SYSTEMS,
            call_scope,
        ),
        Invariant(
            "C10",
            "no confused deputy",
            "What the monitor loads and stores for a cVM is in that cVM's region.",
            _SYSTEMS,
            deputy,
        ),
        Invariant(
            "C11",
            "the monitor's stack",
            "The monitor works with the arguments that it has checked.",
            _SYSTEMS,
            own_stack,
        ),
        Invariant(
            "C12",
            "returns",
            "A call returns to the caller's return entry, with the caller's DDC or an untagged one.",
            _SYSTEMS,
            returns,
        ),
        Invariant(
            "C13",
            "identity",
            "The monitor takes a caller to be the cVM that the thread runs for.",
            _SYSTEMS,
            identity,
        ),
        Invariant(
            "C14",
            "program and library",
            "What a nested cVM can use has no byte of the outer cVM's memory that isn't its own or granted to it.",
            _SYSTEMS,
            program_apart,
        ),
        Invariant(
            "C15",
            "handles",
            "A portal is called only for a cVM that has probed it.",
            "ours: the public code takes any number (host_cap_calls.c)",
            by_handle,
        ),
        Invariant(
            "C16",
            "grants come from their owner",
            "A live grant lies in its owner's region.",
            "ours: the public code takes any range (host_cap_file.c)",
            from_owner,
        ),
        Invariant(
            "C17",
            "what may be stored",
            "What a cVM can use doesn't permit to store local capabilities, nor, for hybrid code, any; what it can use of "
            "others' memory is local and not to be executed.",
            "ours: what C6 rests on",
            stores_nothing,
        ),
        Invariant(
            "C18",
            "sealed as made",
            "What a cVM holds sealed with the monitor's, a handle's or its outer cVM's type is what the monitor made; "
            "sealed with another, it is to the cVM's own memory.",
            "ours: what C5 rests on",
            sealed_as_made,
        ),
        Invariant(
            "C19",
            "the monitor's books",
            "Regions lie in memory, hold more than their capability store, and their bounds can be said exactly; a live "
            "cVM has an object type; only live ones have probed anything, and what an inner one has, its outer has; grants "
            "and portals are those of cVMs that call the monitor, which nested ones don't; a portal's owner is live; a "
            "thread runs for its own cVM or the outer one, and serves a portal of its own cVM's.",
            "ours: what the others rest on",
            books,
        ),
    )
}

SOUND = Invariant(
    "M8",
    "sound harts",
    "Every tagged capability in a thread's registers, DDC, PCC or in memory is sound; c0 is NULL, pc is even, and threads "
    "are in user mode.",
    "M7 to M9 of spec/invariants.py, for the monitor's steps too: what proofs about systems suppose of every state",
    sound_harts,
)
