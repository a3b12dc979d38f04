"""The invariants across the layers of the four systems together, S1 to S9, predicates on a step, each said once.

The layers' own invariants hold of every step of every layer too: what P, T, C and O say of states, after each step of any of
them. Here is what none of them can say, because it is of two. A predicate is a function of a step (`Step`) and of a place: a
frame, a granule of a frame, a page of a monitor's memory and another one. It is checked while running, and proved.

Said in one sentence: an unmediated step of a principal touches only what that principal was granted, at every layer. By a
*granted* frame is meant: a VM's own, for the VM, its walker, its devices, and what the VMM's mediator does for those; for
the host, one that it has claimed. A *granted* granule of a cVM lies in its region or in a live grant that it has probed; a
tenant's, in a slot of its own, or to be read in an object that it has mapped.
"""

# ruff: noqa: ARG001 - a predicate takes a place, whether it looks at it or not

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from capvisor.spec import orc_invariants
from capvisor.spec.invariants import implies, not_
from capvisor.spec.paging import FIRST_VM, FREE, HOST
from capvisor.spec.stack import FORMAT, Code, LayerName, Via, Who

Stack = Any


class Step(NamedTuple):
    """A step of the four together: which layer's, how it ended there, what it accessed of the machine's memory."""

    stack: Stack
    layer: str
    name: str
    operands: tuple[Any, ...] = ()
    code: Any = Code.OK
    """Why the layers below didn't let it begin."""
    fault: Any = None
    """Why the monitor's memory wasn't there: `model.paging.Fault`, or None."""
    inner: Any = None
    """The layer's own step; None where it didn't begin."""
    accesses: tuple[Any, ...] = ()
    before: Any = None
    """What was before: `model.stack.Before`."""
    is_completed: bool = True


class Place(NamedTuple):
    """Anywhere. A granule is of the frame; a content and number are those of a granule that is or was tagged."""

    frame: Any = 0
    granule: Any = 0
    page: Any = 0
    other: Any = 0
    content: Any = None


def in_region(step: Step, frame: Any) -> Any:
    """Whether a frame is the VMM's."""
    return step.stack.vmm.in_region(frame)


# -- frames ----------------------------------------------------------------------------------------------------------------


def is_shadow(step: Step, access: Any) -> Any:
    """Whether an access is a mediated device's, to its shadow pages."""
    vmm, device, frame = step.stack.vmm, access.device, access.frame
    own_buffer = frame == vmm.shadow_buffer(device) >> 3
    own_descriptor = (frame == vmm.shadow_descriptor(device) >> 3) & not_(access.is_write)
    return (access.via is Via.DEVICE) & (device != 0) & vmm.is_mediated(device) & (own_buffer | own_descriptor)


def region_kept(step: Step, place: Place) -> Any:
    """S1."""
    holds: Any = True
    for access in step.accesses:
        zeros = (access.via is Via.CPU) & (access.frame == step.stack.vmm.zero_frame) & not_(access.is_write)
        of_vmm = (step.layer == LayerName.VMM.value) & (zeros | is_shadow(step, access))
        holds = holds & implies(in_region(step, access.frame), of_vmm)
    return holds


def is_granted_frame(access: Any) -> Any:
    """Whether a frame is one of those that its principal has."""
    vm, owner = access.principal.vm, access.owner
    if access.principal.who is Who.HOST:
        return owner == HOST
    if access.principal.who is Who.BOOKS:
        return owner == FREE
    left = (owner == FREE) & access.is_pending & (access.via in (Via.CPU, Via.HART))
    return (vm >= FIRST_VM) & ((owner == vm) | left)


def frames_granted(step: Step, place: Place) -> Any:
    """S2."""
    holds: Any = True
    for access in step.accesses:
        holds = holds & (in_region(step, access.frame) | is_granted_frame(access))
    return holds


# -- granules --------------------------------------------------------------------------------------------------------------


class _Granule(NamedTuple):
    """What there is where nothing is tagged."""

    tag: bool = False
    upper: int = 0
    lower: int = 0


UNTAGGED = _Granule()


def tags_from_above(step: Step, place: Place) -> Any:
    """S3."""
    if place.content is None:
        return True
    was, now = (found.get(place.content, UNTAGGED) for found in (step.before.tagged, step.stack.tagged()))
    holds = not_(now.tag) | was.tag & (now.upper == was.upper) & (now.lower == was.lower)
    content, number = place.content
    for access in step.accesses if step.layer in (LayerName.CVM.value, LayerName.ORC.value) else ():
        of_content = step.stack.content_of(access.frame) == content
        holds = holds | access.is_write & of_content & (access.word == 2 * number)
    return holds


def tagged_places(step: Step, place: Place) -> Any:
    """S4."""
    stack, frame = step.stack, place.frame
    tag = stack.memory.get(frame, place.granule).tag
    if tag is False:
        return True
    vm = stack.owners[frame]
    placed = implies(vm >= FIRST_VM, stack.is_bound(frame, vm)) & not_(stack.tpt.frames[frame].is_clean)
    return implies(tag, placed)


def pages_bound(step: Step, place: Place) -> Any:
    """S5."""
    was, now = step.before.bound, step.stack.bound
    if place.page >= len(now):
        return True
    kept = was[place.page] is None or was[place.page] == now[place.page]
    apart = place.page == place.other or now[place.page] is None or now[place.page] != now[place.other]
    return kept and apart


def is_granted_granule(step: Step, access: Any, layer: str, address: Any) -> Any:
    """Whether an address is one of those that a cVM or tenant has."""
    monitor, number = step.stack.monitors[layer], access.principal.number
    size = access.words * (FORMAT.address_width // 8)
    if layer == LayerName.CVM.value:
        row = monitor.regions[number]
        found = row.is_live & (row.base <= address) & (address + size <= row.top)
        for grant, lent in [*monitor.grants]:
            # Grants are of bytes, and a granule is accessed whole.
            inside = (lent.base < address + size) & (address < lent.top)
            found = found | lent.is_live & monitor.held[grant, number] & inside
        return found & (access.principal.who is Who.CVM)
    slot = monitor.slot_of(address)
    row = monitor.slots[slot]
    reads = monitor.mappings[number, slot].is_live & not_(access.is_write)
    return (orc_invariants.is_own(row, number) | reads) & (access.principal.who is Who.TENANT)


def granules_granted(step: Step, place: Place) -> Any:
    """S6."""
    holds: Any = True
    for access in step.accesses:
        if access.principal.who in (Who.CVM, Who.TENANT):
            holds = holds & (len(access.places) > 0)
            for layer, address in access.places:
                holds = holds & is_granted_granule(step, access, layer, address)
    return holds


# -- devices, tables, the end ----------------------------------------------------------------------------------------------


def commands(step: Step, place: Place) -> Any:
    """S7."""
    if step.layer != LayerName.VMM.value or not step.is_completed:
        return True
    stack = step.stack
    if step.name in ("input", "output"):
        device = stack.device_at(*step.operands[1:3])
        return implies(device != 0, stack.tpt.devices[device] == stack.issuer)
    if step.name in ("mediate", "transfer"):
        device = step.operands[0]
        return stack.started.get(device, FREE) == stack.tpt.devices[device]
    return True


def tables_kept(step: Step, place: Place) -> Any:
    """What S8 says of a step."""
    holds: Any = True
    for access in step.accesses:
        holds = holds & not_(step.stack.memory.is_table(access.frame))
    return holds


def owners_kept(step: Step, place: Place) -> Any:
    """What S8 says of a frame."""
    owner = step.stack.owners[place.frame]
    holds = owner == step.before.owners.get(place.frame, FREE)
    if step.layer == LayerName.TPT.value and step.inner is not None:
        for change in step.inner.retags:
            is_changed = change.frame == place.frame
            holds = is_changed & (owner == change.new) | not_(is_changed) & holds
    return holds


def all_stopped(step: Step, place: Place) -> Any:
    """S9."""
    return implies(step.before.is_stopped & (step.layer != LayerName.VMM.value), not_(step.is_completed))


Predicate = Callable[[Step, Place], Any]


@dataclass(frozen=True)
class Invariant:
    """One invariant: its name and title, what it says, where it is from, and the predicates."""

    name: str
    title: str
    statement: str
    source: str
    of_step: Predicate | None = None
    """What it says of a step, whatever the place."""
    of_place: Predicate | None = None

    def holds(self, step: Step, place: Place) -> Any:
        """Whether it holds of a step at a place."""
        of_step = True if self.of_step is None else self.of_step(step, place)
        return of_step & (True if self.of_place is None else self.of_place(step, place))


_OURS = "ours: what the systems owe each other"

STACK_INVARIANTS: dict[str, Invariant] = {
    row.name: row
    for row in (
        Invariant(
            "S1",
            "the region, from all sides",
            "No step of any layer accesses a frame of the VMM's region, by whatever translation or device, but to read the "
            "page of zeros, and a mediated device its shadow pages.",
            "P1 and P2 of spec/vmm.md, of all that runs on the machine",
            region_kept,
        ),
        Invariant(
            "S2",
            "frames granted",
            "What is accessed for a VM, by its processors, their walkers, its devices, or the VMM's mediator for these, is "
            "in frames of the VM or left to it; what is accessed for the host, in frames that it has claimed; what the "
            "host's operations clear and copy, in frames that are nobody's.",
            "T1, T2 and T9 of spec/tpt.md, of all that acts for a VM",
            frames_granted,
        ),
        Invariant(
            "S3",
            "capabilities come from above",
            "A granule is tagged, and what is under a tag is changed, only by a store of a cVM, a tenant or their monitor; "
            "whatever else happens, tags are cleared or go along with their content.",
            "what `outside` of the proofs of cVMs supposes",
            of_place=tags_from_above,
        ),
        Invariant(
            "S4",
            "where capabilities are",
            "A tagged granule of a VM's frame is in a page of one of its monitors; a clean frame has none.",
            _OURS,
            of_place=tagged_places,
        ),
        Invariant(
            "S5",
            "pages bound",
            "Each page of a monitor's memory is one content, through all moves and swaps, and no two are the same.",
            "what C2 and O3 suppose of memory",
            of_place=pages_bound,
        ),
        Invariant(
            "S6",
            "granules granted",
            "What an instruction of a cVM accesses of the machine's memory is in its region or in a live grant that it has "
            "probed; of a tenant, in its slots, or, to be read, in an object that it has mapped.",
            "C1 and O5, of the machine's bytes",
            granules_granted,
        ),
        Invariant(
            "S7",
            "commands",
            "A register of a device is accessed by the device's owner, and data are moved and copied only while the device "
            "is still that of whom the command was started for.",
            _OURS,
            commands,
        ),
        Invariant(
            "S8",
            "tables of tags",
            "Nothing accesses the tables of tags, and owners change by the host's operations alone.",
            "T4 of spec/tpt.md, of all that runs on the machine",
            tables_kept,
            owners_kept,
        ),
        Invariant(
            "S9",
            "one stop",
            "Once the VMM has stopped the machine or its guest, no step of a layer above is completed.",
            _OURS,
            all_stopped,
        ),
    )
}
