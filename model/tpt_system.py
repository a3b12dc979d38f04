"""Steps of a system with translation pass-through: an operation by its name, as what happened.

What `spec.tpt_invariants` says is said of such a step.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from capvisor.model.paging import Fault
from capvisor.model.tpt import Refused, System
from capvisor.model.tpt_operations import OPERATION_RULES
from capvisor.spec.paging import FIRST_VM, frames_of
from capvisor.spec.tpt import CACHE_SLOTS, OPERATIONS, TLB_SLOTS, Code, OperandKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS, Place, Step


def perform(system: System, name: str, *operands: Any) -> Step:
    """Perform an operation. Raises KeyError for a name that is none."""
    for log in (system.touches, system.retags, system.handled):
        log.clear()
    by_vcpu = OPERATIONS[name].operands[0][1] is OperandKind.VCPU
    vm = system.vcpus[operands[0]].vm if by_vcpu else 0
    code, fault, value = Code.OK, None, None
    try:
        value = OPERATION_RULES[name](system, *operands)
    except Refused as refused:
        code = refused.code
    except Fault as raised:
        fault = raised
    logs = tuple(system.touches), tuple(system.retags), tuple(system.handled)
    return Step(system, name, operands, code, fault, value, vm, *logs)


def places(step: Step) -> Iterator[Place]:
    """The places of a step of a concrete system at which an invariant may fail: those that its tables have a row for.

    One place stands for several where what is said of one part of it says nothing of the others.
    """
    system = step.system
    known = {*system.frames.rows, *system.tags.tags.rows, *system.pending.rows, *system.iotlb.rows}
    found = [place for vcpu in range(system.vcpu_count) for place in _of_vcpu(system, vcpu, known)]
    found += [Place(frame=frame) for frame in known - {place.frame for place in found}]
    for frame in known:
        found += [Place(frame=frame, device=device) for device in range(1, system.device_count) if system.iotlb[frame]]
        if system.frames[frame].is_clean or frame in step.operands:
            found += [Place(frame=frame, word=word) for word in system.memory.words.get(frame, {})]
    found += [Place(swap_slot=slot) for slot in system.swaps.rows]
    for place, key in zip_longest(found, system.p2m.rows):
        vm, guest_frame = key or (FIRST_VM, 0)
        yield (place or Place())._replace(vm=vm, guest_frame=guest_frame)


def _of_vcpu(system: Any, vcpu: int, known: set[int]) -> Iterator[Place]:
    """What a vCPU has cached or is about to."""
    walk = system.walks[vcpu]
    for slot in range(max(TLB_SLOTS, CACHE_SLOTS)):
        entry, table = system.tlb.translations[vcpu, slot], system.tlb.tables[vcpu, slot]
        if entry.is_live:
            yield from (Place(vcpu, slot, 0, frame) for frame in _of_page(entry.frame, entry.level, known))
        if table.is_live:
            yield Place(vcpu, 0, slot, table.frame)
    yield Place(vcpu, frame=walk.frame)
    if walk.leaf_level:
        yield from (Place(vcpu, frame=frame) for frame in _of_page(walk.leaf_frame, walk.leaf_level, known))


def _of_page(first: int, level: int, known: set[int]) -> set[int]:
    """The first and last frames of a page, and those that something is known of."""
    behind = first + frames_of(level)
    return {first, behind - 1, *(frame for frame in known if first <= frame < behind)}


def violated(step: Step) -> set[str]:
    """The names of the invariants that don't hold of a step of a concrete system."""
    found = set()
    for place in places(step):
        found |= {name for name, row in TPT_INVARIANTS.items() if name not in found and not row.holds(step, place)}
    return found
