"""The invariants of translation pass-through, T1 to T11 and T13, predicates on a step of the system, each said once.

A predicate is a function of a step (`Step`) and of a place: any vCPU, slot of its TLB and of its page-walk caches, frame,
word, device, VM and guest frame. It holds if it holds at every place. It is checked while running, and proved.
No predicate speaks of what is in a guest's frames, so that it may be anything.

A frame is *left to* a VM on a vCPU if its tag is the VM's, or if it is nobody's and the vCPU hasn't acknowledged yet.
"""

# ruff: noqa: ARG001 - a predicate takes a place, whether it looks at it or not

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from capvisor.spec.invariants import implies, not_
from capvisor.spec.paging import FIRST_VM, FREE, HOST, LARGEST_LEAF, LEVELS, Entry, Mode, frames_of
from capvisor.spec.tpt import CACHE_SLOTS, OPERATIONS, TLB_SLOTS, Actor, Code, FaultKind

System = Any


class Step(NamedTuple):
    """A step of the system: the operation and its operands, how it ended, what it touched, and the state after it."""

    system: System
    name: str
    operands: tuple[Any, ...] = ()
    code: Any = Code.OK
    fault: Any = None
    """`model.paging.Fault`, or None."""
    value: Any = None
    vm: Any = 0
    """The VM that the vCPU of a guest's operation runs for."""
    touches: tuple[Any, ...] = ()
    retags: tuple[Any, ...] = ()
    handled: tuple[Any, ...] = ()

    @property
    def is_completed(self) -> bool:
        return self.fault is None and self.code is Code.OK


class Place(NamedTuple):
    """Anywhere."""

    vcpu: Any = 0
    slot: Any = 0
    cache_slot: Any = 0
    frame: Any = 0
    word: Any = 0
    device: Any = 0
    vm: Any = FIRST_VM
    guest_frame: Any = 0
    swap_slot: Any = 0


def is_left(system: System, vcpu: Any, frame: Any, vm: Any) -> Any:
    """Whether a frame is left to a VM on a vCPU."""
    tag = system.tags[frame]
    return (vm >= FIRST_VM) & ((tag == vm) | (tag == FREE) & system.is_pending(frame, vcpu))


def is_page_frame(first: Any, level: Any, frame: Any) -> Any:
    """Whether a frame is one of a page of a level."""
    inside: Any = False
    for each in (1, 2, 3):
        inside = inside | (level == each) & (first <= frame) & (frame < first + frames_of(each))
    return inside


# -- the invariants --------------------------------------------------------------------------------------------------------


def accesses(step: Step, place: Place) -> Any:
    """T1."""
    holds: Any = True
    for touch in step.touches:
        if touch.kind == "data":
            left = (touch.tag == FREE) & touch.is_pending
            if step.system.policy.tag_check == "access":
                left = left & (step.system.vms[touch.vm].mode == Mode.NESTED)
            holds = holds & (touch.vm >= FIRST_VM) & ((touch.tag == touch.vm) | left)
    return holds


def walker(step: Step, place: Place) -> Any:
    """T2."""
    holds: Any = True
    for touch in step.touches:
        if touch.kind == "table":
            holds = holds & ((touch.tag == touch.vm) | (touch.tag == FREE) & touch.is_pending)
        if touch.kind == "update":
            holds = holds & (touch.tag == touch.vm)
    return holds


def translation_is_left(step: Step, place: Place) -> Any:
    """What T3 says of a slot of a TLB."""
    system, vcpu, frame = step.system, place.vcpu, place.frame
    entry = system.tlb.translations[vcpu, place.slot]
    named = entry.is_live & is_page_frame(entry.frame, entry.level, frame)
    return implies(named, is_left(system, vcpu, frame, system.asids[vcpu, entry.asid]))


def table_is_left(step: Step, place: Place) -> Any:
    """What T3 says of a slot of a page-walk cache."""
    system, vcpu, frame = step.system, place.vcpu, place.frame
    table = system.tlb.tables[vcpu, place.cache_slot]
    return implies(table.is_live & (table.frame == frame), is_left(system, vcpu, frame, system.asids[vcpu, table.asid]))


def walk_under_way_is_left(step: Step, place: Place) -> Any:
    """What T3 says of the walk under way."""
    return walk_is_left(step.system, place.vcpu, step.system.walks[place.vcpu], place.frame)


def walk_is_left(system: System, vcpu: Any, walk: Any, frame: Any) -> Any:
    """What T3 says of a walk on a vCPU."""
    return implies(walk_names(walk, frame), is_left(system, vcpu, frame, system.vcpus[vcpu].vm))


def walk_names(walk: Any, frame: Any) -> Any:
    """Whether a walk relies on an earlier look-up of a frame: its page, or a cached table."""
    page = (walk.leaf_level != 0) & is_page_frame(walk.leaf_frame, walk.leaf_level, frame)
    return walk.is_live & (page | walk.is_cached & (walk.leaf_level == 0) & (walk.frame == frame))


def host_tags(step: Step, place: Place) -> Any:
    """T4."""
    holds: Any = True
    for change in step.retags:
        by_host = OPERATIONS[step.name].actor is Actor.HOST
        holds = holds & by_host & ((change.old == FREE) | (change.new == FREE))
    return holds


def clean_is_zero(step: Step, place: Place) -> Any:
    """What T5 says of a frame."""
    return implies(step.system.frames[place.frame].is_clean, step.system.memory.get(place.frame, place.word) == 0)


def handed_over(step: Step, place: Place) -> Any:
    """What T5 says of a step."""
    system, word = step.system, place.word
    holds: Any = True
    for handled in step.handled:
        holds = holds & (handled.pending == 0)
    if step.is_completed and step.name == "assign":
        holds = holds & (system.memory.get(step.operands[0], word) == 0)
    if step.is_completed and step.name == "migrate":
        source, target = step.operands
        holds = holds & (system.memory.get(target, word) == system.memory.get(source, word))
    if step.is_completed and step.name == "swap_in":
        frame, slot = step.operands
        holds = holds & (system.memory.get(frame, word) == system.disk.get(slot, word))
    return holds


def passed_through(step: Step, place: Place) -> Any:
    """T6."""
    if not step.is_completed or step.name not in ("store", "write_pte"):
        return True
    touch, value = step.touches[-1], step.operands[2 if step.name == "store" else 3]
    written = step.system.memory.get(touch.frame, touch.word) == value
    return written & touch.is_write & (touch.kind == "data") & (len(step.retags) == 0)


def large_tag_is_uniform(step: Step, place: Place) -> Any:
    """What T7 says of a frame."""
    tags, frame = step.system.tags, place.frame
    first = frame >> 9 << 9
    return implies(tags.is_large(frame), (tags[frame] == tags[first]) & (tags[first] >= FIRST_VM))


def large_page_is_left(step: Step, place: Place) -> Any:
    """What T7 says of a slot of a TLB."""
    system, vcpu, frame = step.system, place.vcpu, place.frame
    entry = system.tlb.translations[vcpu, place.slot]
    named = entry.is_live & (entry.level > 1) & is_page_frame(entry.frame, entry.level, frame)
    return implies(named, is_left(system, vcpu, frame, system.asids[vcpu, entry.asid]))


def hosts_untouched(step: Step, _place: Place) -> Any:
    """What T8 says of a step."""
    holds: Any = True
    for touch in step.touches:
        holds = holds & (touch.tag != HOST)
    for change in step.retags:
        holds = holds & implies(change.old == HOST, change.new == FREE)
    return holds


def hosts_unmapped(step: Step, place: Place) -> Any:
    """What T8 says of a guest frame."""
    row = step.system.p2m[place.vm, place.guest_frame]
    return implies(row.is_mapped, step.system.tags[row.frame] != HOST)


def devices_touch(step: Step, _place: Place) -> Any:
    """What T9 says of a step."""
    holds: Any = True
    for touch in step.touches:
        if touch.kind == "dma":
            holds = holds & (touch.vm >= FIRST_VM) & (touch.tag == touch.vm)
    return holds


def devices_remember(step: Step, place: Place) -> Any:
    """What T9 says of what the IOMMU has looked up."""
    system = step.system
    is_checked = system.iotlb[place.frame] >> place.device & 1 != 0
    vm = system.devices[place.device]
    return implies(is_checked, (vm >= FIRST_VM) & (system.tags[place.frame] == vm))


def progress(step: Step, place: Place) -> Any:
    """T10."""
    system = step.system
    if step.fault is not None and step.fault.kind is FaultKind.TAG:
        return not_(system.tags.owned(step.fault.frame, frames_of(step.fault.level), step.vm))
    if step.name == "reclaim" and step.code is not Code.OK:
        frame = step.operands[0]
        owned = (frame < system.frame_count) & (system.tags[frame] >= FIRST_VM)
        return implies(owned, system.tags.is_large(frame))
    return True


def mapped(step: Step, place: Place) -> Any:
    """T11."""
    system = step.system
    row = system.p2m[place.vm, place.guest_frame]
    frame = system.frames[row.frame]
    there = (
        (place.vm >= FIRST_VM)
        & (system.tags[row.frame] == place.vm)
        & (frame.vm == place.vm)
        & (frame.guest_frame == place.guest_frame)
    )
    return implies(row.is_mapped, there)


def frame_books(step: Step, place: Place) -> Any:
    """What T13 says of a frame."""
    system = step.system
    tag, row, pending = system.tags[place.frame], system.frames[place.frame], system.pending[place.frame]
    holds = implies(pending != 0, (tag == FREE) & not_(row.is_clean)) & (pending < 1 << system.vcpu_count)
    holds = holds & implies(row.is_clean, (tag == FREE) & (row.vm == FREE)) & not_(row.is_leaving)
    holds = holds & implies(tag >= FIRST_VM, system.vms[tag].is_live & (row.vm == tag))
    holds = holds & implies(place.frame >= system.frame_count, (tag == FREE) & (pending == 0))
    return holds & implies(row.vm != FREE, system.vms[row.vm].is_live)


def vm_books(step: Step, place: Place) -> Any:
    """What T13 says of a VM."""
    vm = step.system.vms[place.vm]
    known = ((vm.mode == Mode.TPT) | (vm.mode == Mode.NESTED)) & ((vm.levels == LEVELS[0]) | (vm.levels == LEVELS[1]))
    return implies(vm.is_live, (place.vm >= FIRST_VM) & known)


def holder_books(step: Step, place: Place) -> Any:
    """What T13 says of what is put away, and of a device."""
    system, vm = step.system, step.system.devices[place.device]
    swap = system.swaps[place.swap_slot]
    return implies(swap.is_live, system.vms[swap.vm].is_live) & implies(vm != FREE, system.vms[vm].is_live)


def vcpu_books(step: Step, place: Place) -> Any:
    """What T13 says of a vCPU."""
    system, vcpu = step.system, step.system.vcpus[place.vcpu]
    owner = system.asids[place.vcpu, vcpu.asid]
    holds = implies(vcpu.vm != FREE, system.vms[vcpu.vm].is_live & (owner == vcpu.vm))
    return holds & (vcpu.next_tlb < TLB_SLOTS) & (vcpu.next_cache < CACHE_SLOTS)


def slot_books(step: Step, place: Place) -> Any:
    """What T13 says of a slot of a TLB, and of a page-walk cache."""
    system = step.system
    entry, table = system.tlb.translations[place.vcpu, place.slot], system.tlb.tables[place.vcpu, place.cache_slot]
    holds = implies(entry.is_live, (entry.level >= 1) & (entry.level <= LARGEST_LEAF))
    owner = system.vms[system.asids[place.vcpu, table.asid]]
    return holds & implies(table.is_live, owner.is_live & (table.level >= 1) & (table.level < owner.levels))


def walk_books(step: Step, place: Place) -> Any:
    """What T13 says of the walk under way."""
    return walk_in_range(step.system, place.vcpu, step.system.walks[place.vcpu])


def walk_in_range(system: System, vcpu: Any, walk: Any) -> Any:
    """What T13 says of a walk on a vCPU."""
    vm = system.vcpus[vcpu].vm
    in_range = (walk.level >= 1) & (walk.level <= system.vms[vm].levels) & (walk.leaf_level <= walk.level)
    at_page = (walk.level == 1) | (walk.level <= LARGEST_LEAF) & (walk.entry & Entry.PS.value != 0)
    has_page = (walk.stage == 2) | (walk.stage == 1) & at_page
    in_range = in_range & ((walk.leaf_level >= 1) == has_page) & (walk.leaf_level <= LARGEST_LEAF) & (walk.stage <= 2)
    return implies(walk.is_live, (vm != FREE) & in_range)


Predicate = Callable[[Step, Place], Any]


@dataclass(frozen=True)
class Invariant:
    """One invariant: its name and title, what it says, where it is from, and the predicates."""

    name: str
    title: str
    statement: str
    source: str
    of_step: Predicate | None = None
    """What it says of a step."""
    of_state: tuple[Predicate, ...] = ()
    """What it says of a state, part by part: of these, the operands of a step are no matter."""

    def holds(self, step: Step, place: Place) -> Any:
        """Whether it holds of a step at a place."""
        found: Any = True if self.of_step is None else self.of_step(step, place)
        for part in self.of_state:
            found = found & part(step, place)
        return found


_ABSTRACT = "TPT abstract (ATC 2023): the host isolates VMs by tags of physical memory"
_OURS = "ours, after the TPT abstract"

TPT_INVARIANTS: dict[str, Invariant] = {
    row.name: row
    for row in (
        Invariant(
            "T1",
            "accesses",
            "A guest's access that completes is to a frame of its VM, or, where tags are looked up at fills only, to one "
            "that is nobody's and that the vCPU hasn't acknowledged.",
            _ABSTRACT,
            accesses,
        ),
        Invariant(
            "T2",
            "the walker",
            "What the walker reads of tables is in frames left to the VM; accessed and dirty bits it writes only in frames "
            "that are the VM's at that moment.",
            _OURS,
            walker,
        ),
        Invariant(
            "T3",
            "forgotten",
            "Every frame of a page in a TLB, every table in a page-walk cache, and what a walk under way has looked up, is "
            "left to the VM on that vCPU.",
            _OURS,
            None,
            (translation_is_left, table_is_left, walk_under_way_is_left),
        ),
        Invariant(
            "T4",
            "tags are the host's",
            "Only the host's operations change a tag, and only from nobody's or to nobody's.",
            _ABSTRACT,
            host_tags,
        ),
        Invariant(
            "T5",
            "scrubbed",
            "A frame that a VM gets is zero, or holds what was that VM's; it is cleared, copied and given away only when no "
            "vCPU has still to acknowledge.",
            _OURS,
            handed_over,
            (clean_is_zero,),
        ),
        Invariant(
            "T6",
            "passed through",
            "What a guest stores stands as stored, whatever it is, tables too; that changes no tag.",
            "TPT abstract (ATC 2023): the guest controls its tables",
            passed_through,
        ),
        Invariant(
            "T7",
            "large pages",
            "All frames under a large tag are one VM's; all frames of a large page in a TLB are left to the VM.",
            _OURS,
            None,
            (large_tag_is_uniform, large_page_is_left),
        ),
        Invariant(
            "T8",
            "the host's frames",
            "No VM touches a frame of the host's, none is a guest frame, and none becomes a VM's at once.",
            _ABSTRACT,
            hosts_untouched,
            (hosts_unmapped,),
        ),
        Invariant(
            "T9",
            "devices",
            "A device accesses frames of its VM only, and what the IOMMU has looked up is so still.",
            _OURS,
            devices_touch,
            (devices_remember,),
        ),
        Invariant(
            "T10",
            "progress",
            "A tag fault has a cause: a frame that isn't the VM's. The host can reclaim any frame of a VM's, whatever the "
            "guest does; one under a large tag after a split.",
            _OURS,
            progress,
        ),
        Invariant(
            "T11",
            "one map",
            "Where the host's map has a guest frame, there is a frame of that VM's, and the books call it that guest frame.",
            _OURS,
            None,
            (mapped,),
        ),
        Invariant(
            "T13",
            "the host's books",
            "A frame that a vCPU has still to acknowledge is nobody's and not clean, and no owned frame is clean; owners, "
            "holders of content, of devices and of cached tables, and whom vCPUs run for are live VMs, the latter under an "
            "ASID of their own; numbers of slots and levels are in range.",
            "ours: what the others rest on",
            None,
            (frame_books, vm_books, holder_books, vcpu_books, slot_books, walk_books),
        ),
    )
}
"""T12, that a guest learns numbers of the machine's frames, is no invariant but an accepted leak: spec/tpt.md, 9."""
