"""Where the systems meet: a para-pass-through VMM, guests of translation pass-through, an Intravisor in one.

A monitor's memory is a guest's virtual memory; the host gives it frames, by tags; the machine below is the VMM's. Of what
lies below it, a monitor needs one thing: that nothing there makes a capability. `outside` is any such step; that it keeps
the monitor's invariants is asked with the other steps (`proofs.cvm`). Translation pass-through needs nothing of what runs in
its guests: its invariants hold for any store to any frame that a guest may store to.

The theorems here say what the layers come to. What each layer's invariants say of what it touches gives S1 and S2 of
`spec.stack_invariants`, with the rules by which the stack looks up owners, executed (`frames`, `region`); these, C1 and O5
give what can be said of any two accesses to one byte of the machine (`guests`, `cvms`, `tenants`), and all of them
together the whole (`stack`). What each layer supposes of the others is a row of `spec.composition`.
"""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import z3

from capvisor.model import vmm
from capvisor.model.bits import not_
from capvisor.model.memory import Granule
from capvisor.model.stack import MemoryAccess, Principal, Stack
from capvisor.model.tpt import Touch
from capvisor.proofs import vmm_state
from capvisor.proofs.contracts import any_bounds
from capvisor.proofs.cvm_state import ID_BITS as CVM_BITS
from capvisor.proofs.cvm_state import INDEX_BITS as GRANT_BITS
from capvisor.proofs.cvm_state import INDUCTIVE, AnyMonitor
from capvisor.proofs.memory import ArrayStore
from capvisor.proofs.orc_state import INDUCTIVE as OBJECTS_INDUCTIVE
from capvisor.proofs.orc_state import TENANT_BITS, AnyObjects
from capvisor.proofs.symbolic import SymBool, as_int, select
from capvisor.proofs.theorem import Given, implies, theorem
from capvisor.proofs.tpt_state import FRAME_BITS, VM_BITS, AnySystem
from capvisor.spec.composition import HELD
from capvisor.spec.cvm_invariants import some
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.object_policy import INTENDED as OBJECTS_INTENDED
from capvisor.spec.orc import SlotKind
from capvisor.spec.orc_invariants import is_own as is_own_slot
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, FREE, HOST
from capvisor.spec.policy import INTENDED
from capvisor.spec.stack import FORMAT, LayerName, Via, Who
from capvisor.spec.stack_invariants import Place, frames_granted, granules_granted, is_granted_frame, region_kept
from capvisor.spec.stack_invariants import Step as StackStep
from capvisor.spec.stack_policy import INTENDED as STACK_INTENDED
from capvisor.spec.tag_policy import INTENDED as TAGS_INTENDED
from capvisor.spec.tpt_invariants import TPT_INVARIANTS, Step
from capvisor.spec.vmm import BLOCK_SHIFT
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_policy import INTENDED as VMM_INTENDED
from capvisor.spec.vmm_words import Step as VmmStep

OUTSIDE = "outside"
"""The step of what lies below: a host that takes frames away, brings them back or clears them; a device that writes."""


class ChangedBelow:
    """Memory in which something below the system has changed any granules: each is as it was, or holds anything untagged."""

    def __init__(self, fmt: CapabilityFormat, before: Any) -> None:
        self._before, self._width = before, fmt.address_width
        self._other = ArrayStore(fmt.address_width, "outside")
        self._is_same = z3.Array("outside_left", z3.BitVecSort(fmt.address_width), z3.BoolSort())

    def get(self, index: Any) -> Granule:
        """The granule at an index."""
        tag, upper, lower = self._before.get(index)
        _tag, *others = self._other.get(index)
        is_same = SymBool(self._is_same[as_int(index).at(self._width)])
        return tag & is_same, select(is_same, upper, others[0]), select(is_same, lower, others[1])


# -- what the layers give --------------------------------------------------------------------------------------------------

_TOUCHED_BY = (("data", Via.CPU, "T1"), ("table", Via.CPU, "T2"), ("update", Via.CPU, "T2"), ("dma", Via.DEVICE, "T9"))
"""Of each kind of touch of a VM's: by what it is made, and which invariant speaks of it."""
_FOR_OTHERS = (Via.CPU, Via.DEVICE, Via.MEDIATOR, Via.EXTENSION)
"""By what the VMM's machine touches blocks."""


def _says(invariant: Any, step: Any) -> Any:
    """What an invariant says of a step, whatever it says of states."""
    return invariant.of_step(step, None)


def _of(system: Any, accesses: Iterable[MemoryAccess], layer: LayerName = LayerName.TPT) -> StackStep:
    """A step of the stack that makes some accesses."""
    return StackStep(system, layer.value, "", accesses=tuple(accesses))


def _touched(given: Given, kind: str, via: Via) -> tuple[Touch, MemoryAccess]:
    """Any touch for a VM, and the same as an access to the machine's memory."""
    vm, tag = (given.word(f"{kind}_{part}", VM_BITS) for part in ("vm", "tag"))
    frame, pending, writes = given.word(f"{kind}_frame", FRAME_BITS), given.flag(f"{kind}_pending"), kind == "update"
    given.assume(vm >= FIRST_VM)
    access = MemoryAccess(Principal(Who.VM, vm), via, frame, 0, 1, writes, tag, pending, ())
    return Touch(kind, vm, frame, 0, writes, tag, pending), access


class _OwnedStack(Stack):
    """The stack as far as it looks up the owners of frames: with any tags, devices and IOMMU that T3 to T13 allow."""

    def __init__(self, given: Given) -> None:
        system: Any = AnySystem(given, TAGS_INTENDED)
        system.begin()
        first, behind = given.word("region_first", FRAME_BITS), given.word("region_behind", FRAME_BITS)
        self.policy = STACK_INTENDED
        self.tpt, self.owners = system, system.tags
        self.vmm: Any = SimpleNamespace(in_region=lambda frame: (first <= frame) & (frame < behind))
        self.vcpu = 0
        self.accesses = []
        self._is_kept = given.flag("is_memory_of_objects")
        # What is supposed is the same on all ways through the look-up.
        system.looks_at("vms", system.devices[system.place.device])
        system.tags.looked_up(system.place.frame)
        system.suppose()

    def is_kept(self, frame: Any) -> Any:  # noqa: ARG002 - any frame may be one
        """Whether a frame holds memory of shared objects: some do."""
        return self._is_kept

    def _places(self, _frame: Any, _word: Any) -> tuple[tuple[str, int], ...]:
        return ()


@theorem(
    "composition.frames",
    "What is accessed for a VM, by its processors, their walkers and its devices, or by the VMM's mediator for one of "
    "these, is in frames of the VM or left to it; what for the host, in frames that it has claimed: S2.",
    "ours: S2 of spec/stack.md",
    scope="any one touch; supposed are T1, T2 and T9 of what a step of translation pass-through touches, and T3, T5, T7 to "
    "T9, T11 and T13 of the state in which the stack looks up the owner of what the VMM is to touch",
    replays=False,
)
def frames(_fmt: CapabilityFormat, given: Given) -> Any:
    """Touches of each kind, and each way by which the VMM's machine touches blocks."""
    goal: Any = True
    system: Any = SimpleNamespace(policy=TAGS_INTENDED)
    for kind, via, name in _TOUCHED_BY:
        touch, access = _touched(given, kind, via)
        supposed = _says(TPT_INVARIANTS[name], Step(system, "", vm=touch.vm, touches=(touch,)))
        goal = goal & implies(supposed, is_granted_frame(access))
    stack = _OwnedStack(given)
    place = stack.tpt.place  # type: ignore[attr-defined]
    address = place.frame << BLOCK_SHIFT | given.word("block", BLOCK_SHIFT)
    ways = [(via, is_write) for via in _FOR_OTHERS for is_write in (False, True)]
    way = given.word("way", 3)
    try:
        for number, (via, is_write) in enumerate(ways):
            if way == number:
                stack.check_block(via, place.device, address, is_write)
    except vmm.Refused:
        return goal
    return goal & frames_granted(_of(stack, stack.accesses), Place())


@theorem(
    "composition.region",
    "No step of any layer accesses a frame of the VMM's region, by whatever translation or device, but to read the page of "
    "zeros, and a mediated device its shadow pages: S1.",
    "ours: S1 of spec/stack.md",
    scope="any one touch; supposed are P1, P2 and P9 of what the VMM's machine touches; S2, and that the frames of the "
    "region are nobody's and were never asked for: *untagged* of the steps (`proofs.stack_steps`), by `region_untagged`",
    uses=("composition.frames",),
    replays=False,
)
def region(_fmt: CapabilityFormat, given: Given) -> Any:
    """Touches by the VMM's machine, and by what runs for a VM or the host."""
    goal: Any = True
    machine: Any = vmm_state.AnySystem(given, VMM_INTENDED)
    machine.begin()
    number = machine.place.device
    address = given.word("address", vmm_state.ADDRESS_BITS)
    stack: Any = SimpleNamespace(vmm=machine)
    for actor, name in (("cpu", "P1"), ("device", "P2"), ("mediator", "P9"), ("extension", "P9")):
        for is_write in (False, True):
            touch = vmm.Touch(actor, number, address, is_write)
            supposed = _says(VMM_INVARIANTS[name], VmmStep(machine, "", touches=(touch,)))
            device = number if actor in ("device", "mediator") else 0
            frame = address >> BLOCK_SHIFT
            access = MemoryAccess(Principal(Who.HOST), Via(actor), frame, 0, 1, is_write, 0, False, (), device)
            goal = goal & implies(supposed, region_kept(_of(stack, [access], LayerName.VMM), Place()))
    vm, frame, owner = given.word("vm", VM_BITS), given.word("frame", vmm_state.FRAME_BITS), given.word("owner", VM_BITS)
    pending = given.flag("pending")
    for who in (Who.VM, Who.HOST):
        access = MemoryAccess(Principal(who, vm), Via.CPU, frame, 0, 1, True, owner, pending, ())
        untouched = implies(machine.in_region(frame), (owner == FREE) & not_(pending))
        goal = goal & implies(is_granted_frame(access) & untouched, region_kept(_of(stack, [access]), Place()))
    machine.suppose()
    return goal


# -- two accesses ----------------------------------------------------------------------------------------------------------

_OFFSET = (1 << FRAME_SHIFT) - 1


class _Access:
    """An access to a byte of the machine's memory: for whom, its frame, the byte in that, and what S2 says of the frame."""

    def __init__(self, given: Given, name: str, who: Who = Who.VM, via: Via = Via.CPU) -> None:
        self.who, self.vm = who, given.word(f"{name}_vm", VM_BITS)
        self.frame, self.offset = given.word(f"{name}_frame", FRAME_BITS), given.word(f"{name}_offset", FRAME_SHIFT)
        self.owner = given.word(f"{name}_owner", VM_BITS)
        self.byte: Any = None
        """Its virtual address, of what runs on a monitor's memory."""
        pending, is_write = given.flag(f"{name}_pending"), given.flag(f"{name}_writes")
        principal = Principal(who, FREE if who is Who.HOST else self.vm)
        given.assume(is_granted_frame(MemoryAccess(principal, via, self.frame, 0, 1, is_write, self.owner, pending, ())))

    def is_of_same_byte(self, other: "_Access") -> Any:
        """Whether the two go to one byte of the machine's memory."""
        return (self.frame == other.frame) & (self.offset == other.offset)


def _in_one_state(given: Given, one: _Access, other: _Access) -> None:
    """A frame has one owner."""
    given.assume(implies(one.frame == other.frame, one.owner == other.owner))


def _on_monitors(fmt: CapabilityFormat, given: Given, name: str) -> tuple[_Access, _Access]:
    """Two accesses of threads on the memory of monitors in VMs, no two pages of which a VM's tables map to one frame."""
    one, other = (_Access(given, f"{name}{side}", via=Via.HART) for side in ("one", "other"))
    for side, access in (("one", one), ("other", other)):
        access.byte = given.word(f"{name}{side}_byte", fmt.address_width)
        given.assume(access.byte & _OFFSET == access.offset)
    _in_one_state(given, one, other)
    given.assume(_is_injective(one, other))
    return one, other


def _is_injective(one: _Access, other: _Access) -> Any:
    """Whether two accesses in one VM that go to one frame are to one page."""
    same = (one.vm == other.vm) & (one.frame == other.frame)
    return implies(same, one.byte >> FRAME_SHIFT == other.byte >> FRAME_SHIFT)


@theorem(
    "composition.guests",
    "Whatever guests, their devices and the host do, where two accesses go to one byte of the machine, they are for one "
    "guest, or both for the host, or the frame is nobody's: reclaimed, and not acknowledged by the guest's processor.",
    "ours: S2 of spec/stack.md, of two accesses in one state of the tags",
    scope="all accesses, in one state, but those by which the host's operations clear and copy frames; of the guests "
    "nothing is supposed but S2",
    uses=("composition.frames",),
    replays=False,
)
def guests_apart(_fmt: CapabilityFormat, given: Given) -> Any:
    """For any two accesses, for whomever they are."""
    goal: Any = True
    kinds = [(who, via) for who in (Who.VM, Who.HOST) for via in (Via.CPU, Via.DEVICE, Via.MEDIATOR)]

    def made(side: str) -> list[_Access]:
        return [_Access(given, f"{side}_{who.value}_{via.value}", who, via) for who, via in kinds]

    others = made("other")
    for one in made("one"):
        for other in others:
            _in_one_state(given, one, other)
            goal = goal & implies(one.is_of_same_byte(other), _is_one_principal(one, other))
    return goal


def _is_one_principal(one: _Access, other: _Access) -> Any:
    """Whether two accesses are for one guest, or both for the host; or the frame is nobody's."""
    if one.who is other.who is Who.VM:
        return (one.vm == other.vm) | (one.owner == FREE)
    return (one.owner == FREE) | (one.owner == HOST) & (one.who is other.who is Who.HOST)


# -- what a thread reaches -------------------------------------------------------------------------------------------------

_HELD_IN = dict(zip(HELD, ("any of its registers", "DDC", "PCC"), strict=True))
"""Where a thread has what authorises its accesses to memory, in words."""


def _cap_at(given: Given, thread: Any, place: str) -> Any:
    """The capability at a place of a thread's."""
    if place == "register":
        return thread.hart.registers[given.word("register", 5)]
    return getattr(thread.hart, place)


def _accessed(fmt: CapabilityFormat, given: Given, cap: Any) -> tuple[Any, Any]:
    """Any byte that a capability gives access to, and whether it is stored to."""
    byte, is_write = given.word("byte", fmt.address_width), given.flag("is_write")
    base, top = cap.bounds
    permitted = implies(is_write, cap.permits(Permission.STORE))
    given.assume(cap.tag & not_(cap.is_sealed) & permitted & (base <= byte) & (byte < top))
    return byte, is_write


def _granule_is_granted(monitor: Any, who: Who, number: Any, byte: Any, is_write: Any) -> Any:
    """What S6 says of an access to the granule that a byte of a monitor's memory is in."""
    layer = _LAYER_OF[who].value
    address = byte & -FORMAT.capability_bytes
    access = MemoryAccess(Principal(who, FIRST_VM, number), Via.HART, 0, 0, 2, is_write, 0, False, ((layer, address),))
    step = StackStep(SimpleNamespace(monitors={layer: monitor}), layer, "", accesses=(access,))
    return granules_granted(step, Place())


_LAYER_OF = {Who.CVM: LayerName.CVM, Who.TENANT: LayerName.ORC}


def is_cvms(monitor: Any, cvm: Any, byte: Any, grants: Iterable[Any]) -> Any:
    """Whether a byte is a cVM's own, or in one of some grants that is live and that it has probed."""
    row = monitor.regions[cvm]
    lent = ((monitor.grants[grant], monitor.held[grant, cvm]) for grant in grants)
    granted = some(each.is_live & is_held & (each.base <= byte) & (byte < each.top) for each, is_held in lent)
    return row.is_live & (row.base <= byte) & (byte < row.top) | granted


def is_tenants(monitor: Any, tenant: Any, byte: Any, is_write: Any) -> Any:
    """Whether a byte is in a slot of a tenant's own, or, to be read, in an object that it has mapped."""
    slot = monitor.slot_of(byte)
    row = monitor.slots[slot]
    mapped = (row.kind == SlotKind.OBJECT) & monitor.mappings[tenant, slot].is_live
    return is_own_slot(row, tenant) | mapped & not_(is_write)


def _cvm_reaches(place: str) -> Callable[[CapabilityFormat, Given], Any]:
    def claim(fmt: CapabilityFormat, given: Given) -> Any:
        with any_bounds():
            monitor = AnyMonitor(fmt, given, INTENDED, INDUCTIVE)
            thread = monitor.any_thread("")
            monitor.begin()
            monitor.any_grant = 0
            cap = _cap_at(given, thread, place)
            byte, _is_write = _accessed(fmt, given, cap)
            given.assume(thread.is_live)
            return is_cvms(monitor, thread.domain, byte, monitor.grants_of(cap))

    return claim


def _tenant_reaches(place: str) -> Callable[[CapabilityFormat, Given], Any]:
    def claim(fmt: CapabilityFormat, given: Given) -> Any:
        with any_bounds():
            monitor = AnyObjects(fmt, given, OBJECTS_INTENDED, OBJECTS_INDUCTIVE)
            thread = monitor.any_thread("")
            monitor.begin()
            byte, is_write = _accessed(fmt, given, _cap_at(given, thread, place))
            given.assume(thread.is_live)
            return is_tenants(monitor, thread.tenant, byte, is_write)

    return claim


for _place, _said in _HELD_IN.items():
    theorem(
        f"composition.cvm_{_place}",
        f"What an instruction of a cVM's thread accesses by {_said} is a byte of the cVM's region, or of a live grant that "
        "it has probed.",
        "ours: S6 of spec/stack.md; C1 of spec/cvm.md",
        scope="any live thread, in one state; supposed are the Intravisor's invariants of a state (`capvisor prove cvm`). "
        "An access is authorised by such a capability: M2 (`capvisor prove --matrix`); a fetch by PCC: `Hart.check_fetch`",
        replays=False,
    )(_cvm_reaches(_place))
    theorem(
        f"composition.tenant_{_place}",
        f"What an instruction of a tenant's thread accesses by {_said} is a byte of a slot of the tenant's own, or, to be "
        "read, of an object that it has mapped.",
        "ours: S6 of spec/stack.md; O5 and O11 of spec/orc.md",
        scope="any live thread, in one state; supposed are the base's invariants of a state (`capvisor prove orc`). An "
        "access is authorised by such a capability: M2 (`capvisor prove --matrix`); a fetch by PCC: `Hart.check_fetch`",
        replays=False,
    )(_tenant_reaches(_place))


@theorem(
    "composition.granules",
    "The granule of a byte that is a cVM's (of its region, or of a live grant that it has probed) or a tenant's (of a slot "
    "of its own, or, to be read, of an object that it has mapped) is granted to it: S6.",
    "ours: S6 of spec/stack.md",
    scope="any byte of a monitor's memory, in the stack's format; supposed are the monitors' invariants of a state",
    uses=tuple(f"composition.{whose}_{place}" for whose in ("cvm", "tenant") for place in HELD),
    formats=(FORMAT.name,),
    replays=False,
)
def granules(fmt: CapabilityFormat, given: Given) -> Any:
    """For any byte of any cVM, and of any tenant."""
    byte, is_write = given.word("byte", fmt.address_width), given.flag("is_write")
    with any_bounds():
        monitor = AnyMonitor(fmt, given, INTENDED, INDUCTIVE)
        monitor.begin()
        cvm, grant = given.word("cvm", CVM_BITS), given.word("grant", GRANT_BITS)
        monitor.looks_at("regions", cvm)
        rows = [(grant, monitor.grants[grant])]
        seen = SimpleNamespace(regions=monitor.regions, held=monitor.held, grants=rows)
        is_granted = _granule_is_granted(seen, Who.CVM, cvm, byte, is_write)
        goal = implies(is_cvms(monitor, cvm, byte, (grant,)), is_granted)
        base = AnyObjects(fmt, given, OBJECTS_INTENDED, OBJECTS_INDUCTIVE)
        tenant = given.word("tenant", TENANT_BITS)
        is_granted = _granule_is_granted(base, Who.TENANT, tenant, byte, is_write)
        return goal & implies(is_tenants(base, tenant, byte, is_write), is_granted)


@theorem(
    "composition.cvms",
    "Where two cVMs of one Intravisor, in a guest of translation pass-through, access one byte of the machine, by what "
    "their threads have in registers, DDC or PCC, they are one cVM, one is nested in the other, or the byte is in a live "
    "grant that one of them has probed.",
    "ours: C1 and C2 of spec/cvm.md, S2 of spec/stack.md",
    scope="any two bytes that are theirs, as the theorems that this one uses show of what threads access, in one state; "
    "supposed are C2 and the Intravisor's other invariants of a state (`capvisor prove cvm`), and that no two "
    "pages are in one frame: S5 and *placed* of the steps (`proofs.stack_steps`)",
    uses=tuple(f"composition.cvm_{place}" for place in HELD),
    replays=False,
)
def cvms_apart(fmt: CapabilityFormat, given: Given) -> Any:
    """For any two cVMs, and any byte of each that is its own or granted to it."""
    with any_bounds():
        monitor = AnyMonitor(fmt, given, INTENDED, INDUCTIVE)
        monitor.begin()
        accesses = _on_monitors(fmt, given, "")
        given.assume(accesses[0].vm == accesses[1].vm)
        cvms, grants = ([given.word(f"{each}_{what}", bits) for each in ("one", "other")] for what, bits in _NUMBERS)
        for cvm, grant, access in zip(cvms, grants, accesses, strict=True):
            monitor.looks_at("regions", cvm)
            given.assume(is_cvms(monitor, cvm, access.byte, (grant,)))
        one, other = cvms
        nested = (monitor.regions[one].outer == other) | (monitor.regions[other].outer == one)
        lent = [(monitor.grants[grant], monitor.held[grant, cvm]) for grant, cvm in zip(grants, cvms, strict=True)]
        byte = accesses[0].byte
        granted = some(each.is_live & is_held & (each.base <= byte) & (byte < each.top) for each, is_held in lent)
        return implies(accesses[0].is_of_same_byte(accesses[1]), cvms_may_meet(one == other, nested, granted))


_NUMBERS = (("cvm", CVM_BITS), ("grant", GRANT_BITS))


def cvms_may_meet(is_one: Any, is_nested: Any, is_granted: Any) -> Any:
    """Whether two cVMs may access one byte: they are one, or nested, or it is in a live grant that one of them holds."""
    return is_one | is_nested | is_granted


@theorem(
    "composition.tenants",
    "Where two tenants, in a guest of translation pass-through, access one byte of the machine, by what their threads "
    "have in registers, DDC or PCC, they are one tenant, or the byte is in an object that both have mapped, and neither "
    "stores there.",
    "ours: O5 and O11 of spec/orc.md, S2 of spec/stack.md",
    scope="any two bytes that are theirs, as the theorems that this one uses show of what threads access, in one state; "
    "supposed is that no two pages are in one frame: S5 and *placed* of the steps (`proofs.stack_steps`)",
    uses=tuple(f"composition.tenant_{place}" for place in HELD),
    replays=False,
)
def tenants_apart(fmt: CapabilityFormat, given: Given) -> Any:
    """For any two tenants, and any byte of each that is its own or in an object that it reads."""
    monitor = AnyObjects(fmt, given, OBJECTS_INTENDED, OBJECTS_INDUCTIVE)
    monitor.begin()
    accesses = _on_monitors(fmt, given, "")
    given.assume(accesses[0].vm == accesses[1].vm)
    tenants = [given.word(f"{each}_tenant", TENANT_BITS) for each in ("one", "other")]
    slot = monitor.slot_of(accesses[0].byte)
    shared: Any = monitor.slots[slot].kind == SlotKind.OBJECT
    for name, tenant, access in zip(("one", "other"), tenants, accesses, strict=True):
        is_write = given.flag(f"{name}_stores")
        given.assume(is_tenants(monitor, tenant, access.byte, is_write))
        shared = shared & monitor.mappings[tenant, slot].is_live & not_(is_write)
    return implies(accesses[0].is_of_same_byte(accesses[1]), tenants_may_meet(tenants[0] == tenants[1], shared))


def tenants_may_meet(is_one: Any, is_shared: Any) -> Any:
    """Whether two tenants may access one byte: they are one, or both have mapped its object, and neither stores there."""
    return is_one | is_shared


# -- the whole -------------------------------------------------------------------------------------------------------------

_PRINCIPALS = (Who.VM, Who.CVM, Who.TENANT, Who.HOST)
"""For whom memory is accessed: a VM's kernel, with its walkers, devices and the mediator; cVMs; tenants; the host."""


@theorem(
    "composition.stack",
    "Where two accesses to the machine's memory go to one byte, each for a VM's kernel (by its processors, walkers, "
    "devices, or the VMM's mediator), for a cVM or a tenant by what threads have in registers, DDC or PCC, or for the host, "
    "the byte isn't in the VMM's region, and either its frame is nobody's, or both are for the host, or both for one VM; "
    "and there one is for that VM's kernel, or both are for cVMs, which are one, or nested, or the byte is in a live grant "
    "that one has probed, or both for tenants, which are one, or have both mapped the object with the byte, and don't store "
    "there.",
    "ours: spec/stack.md",
    scope="any two accesses, in one state, but those that S1 excepts and those by which the host's operations clear and "
    "copy; what the other theorems show of pairs of one kind, this one supposes and puts together; of a thread's "
    "instruction S2 is supposed too, and the Intravisor's memory and that of shared objects to be different frames of their "
    "guest: S2, S5 and *placed* of the steps (`proofs.stack_steps`)",
    uses=("composition.region", "composition.guests", "composition.cvms", "composition.tenants"),
    replays=False,
)
def stack_apart(fmt: CapabilityFormat, given: Given) -> Any:
    """For each pair of principals: what the theorems say of it gives what is to be shown of it."""
    goal: Any = True
    for first in _PRINCIPALS:
        for second in _PRINCIPALS:
            goal = goal & _pair_apart(fmt, given, (first, second))
    return goal


def _pair_apart(fmt: CapabilityFormat, given: Given, whom: tuple[Who, Who]) -> Any:
    name = f"{whom[0].value}_{whom[1].value}_"
    if set(whom) <= {Who.CVM, Who.TENANT}:
        one, other = _on_monitors(fmt, given, name)
    else:
        made = zip(("one", "other"), whom, strict=True)
        one, other = (_Access(given, f"{name}{side}", Who.HOST if who is Who.HOST else Who.VM) for side, who in made)
        _in_one_state(given, one, other)
    in_region = given.flag(f"{name}in_region")
    given.assume(not_(in_region))  # composition.region, of what isn't excepted there
    for_one_vm = (one.vm == other.vm) & _may_meet(given, name, whom, (one, other)) if Who.HOST not in whom else False
    permitted = (one.owner == FREE) | (one.who is other.who is Who.HOST) | for_one_vm
    return implies(one.is_of_same_byte(other), not_(in_region) & permitted)


def _may_meet(given: Given, name: str, whom: tuple[Who, Who], accesses: tuple[_Access, _Access]) -> Any:
    """Whether two principals of one VM may access one byte, with what is known of such a pair."""
    one, other = accesses
    if Who.VM in whom:
        return True
    meeting = one.is_of_same_byte(other) & (one.vm == other.vm)
    if whom == (Who.CVM, Who.CVM):
        related = cvms_may_meet(*(given.flag(f"{name}{part}") for part in ("is_one", "is_nested", "is_granted")))
        given.assume(implies(meeting, related))  # composition.cvms
        return related
    if whom == (Who.TENANT, Who.TENANT):
        related = tenants_may_meet(*(given.flag(f"{name}{part}") for part in ("is_one", "is_shared")))
        given.assume(implies(meeting, related))  # composition.tenants
        return related
    # The pages of the one monitor's memory aren't those of the other's.
    given.assume(implies(one.vm == other.vm, one.byte >> FRAME_SHIFT != other.byte >> FRAME_SHIFT))
    return False
