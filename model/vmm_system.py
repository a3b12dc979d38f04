"""Steps of a para-pass-through VMM: an operation by its name, as what happened.

What `spec.vmm_invariants` says is said of such a step.
"""

from collections.abc import Iterator
from copy import copy
from itertools import zip_longest
from typing import Any

from capvisor.model.tables import Rows
from capvisor.model.vmm import Frame, Refused, System
from capvisor.model.vmm_operations import OPERATION_RULES, page_frames
from capvisor.spec.vmm import BLOCK_SHIFT, MAPPINGS, SHADOW_BLOCKS, Code, Space
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_words import Place, Step


def perform(system: System, name: str, *operands: Any) -> Step:
    """Perform an operation. Raises KeyError for a name that is none."""
    for notes in (system.touches, system.moves, system.answers):
        notes.clear()
    rule, before = OPERATION_RULES[name], _before(system)
    code, value = Code.OK, None
    try:
        value = rule(system, *operands)
    except Refused as refused:
        code = refused.code
    noted = tuple(system.touches), tuple(system.moves)
    return Step(system, name, operands, code, value, *noted, before, tuple(system.answers))


def _before(system: Any) -> Any:
    """The system as it is, whatever becomes of it; nothing of one whose tables aren't plain ones."""
    if not isinstance(system.memory, Rows):
        return None
    kept = copy(system)
    for name, table in vars(system).items():
        if isinstance(table, Rows):
            mine = copy(table)
            mine.rows = {**table.rows}
            setattr(kept, name, mine)
    return kept


def places(step: Step) -> Iterator[Place]:
    """The places of a step of a concrete system at which an invariant may fail: those that its tables have a row for.

    One place stands for several where what is said of one part of it says nothing of the others.
    """
    system = step.system
    known = [address for address, word in system.remote if word != system.memory[address]]
    known += [address for address, word in system.memory if word]
    next_frame, last = system.vmm[0].next_frame, system.frame_count - 1
    frames = {0, next_frame - 1, next_frame, last, *(address >> BLOCK_SHIFT for address in known)}
    blocks = [Place(frame=min(max(frame, 0), last), address=max(frame, 0) << BLOCK_SHIFT) for frame in frames]
    blocks += [Place(frame=address >> BLOCK_SHIFT, address=address) for address in known]
    mapped = [Place(vcpu=vcpu) for vcpu in range(system.vcpu_count)]
    mapped += [
        Place(vcpu=vcpu, slot=slot, frame=frame)
        for vcpu in range(system.vcpu_count)
        for slot in range(MAPPINGS)
        for frame in _of_page(system, vcpu, slot)
    ]
    devices = range(1, system.device_count + 1)
    sectors = {*system.media.rows, *system.meant.rows, *system.deployed.rows, *_looked_at(system)}
    of_devices = [Place(device=device, lba=lba) for device, lba in sectors]
    of_devices += [Place(device=device, position=each) for device in devices for each in range(SHADOW_BLOCKS)]
    windows = {*system.decoded.rows, *system.hooked.rows}
    windows |= {(space, system.windows[device, space]) for device in devices for space in Space}
    of_windows = [Place(space=space, window=window) for space, window in windows]
    for one, other, third in zip_longest(blocks + mapped, of_devices, of_windows, fillvalue=Place()):
        made = one._replace(device=other.device, lba=other.lba, position=other.position)
        yield made._replace(space=third.space, window=third.window)


def _of_page(system: System, vcpu: int, slot: int) -> set[Frame]:
    """The first and last frames of a page that is mapped, and those at the ends of the region in it."""
    row = system.mappings[vcpu, slot]
    behind = row.frame + max(1, page_frames(row.level))
    ends = (system.region_first, system.region_behind - 1, row.frame, behind - 1)
    return {frame for frame in ends if row.is_live and row.frame <= frame < behind}


def _looked_at(system: Any) -> set[tuple[int, int]]:
    """Sectors that something is fetched for, or that are next to be deployed."""
    found = set()
    for device, row in system.deployments.rows.items():
        found |= {(device, row.lba), (device, row.cursor), (device, max(0, row.cursor - 1)), (device, max(0, row.size - 1))}
    return found


def violated(step: Step) -> set[str]:
    """The names of the invariants that don't hold of a step of a concrete system."""
    found = {name for name, row in VMM_INVARIANTS.items() if row.of_event is not None and not row.of_event(step)}
    for place in places(step):
        found |= {name for name, row in VMM_INVARIANTS.items() if name not in found and not row.holds_there(step, place)}
    return found
