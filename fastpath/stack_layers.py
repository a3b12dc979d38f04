"""The layers of many machines with all four systems, each its own fast path with what the others owe it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from capvisor.fastpath import requests, storage, vmm
from capvisor.fastpath.capability import Lanes
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.fastpath.objects import BatchObjects
from capvisor.fastpath.stack_memory import ROW_WORDS, Blocks, FrameRows, PagedMemory, write_word
from capvisor.fastpath.tpt import BatchSystem
from capvisor.fastpath.vmm import READ, WRITE, BatchVmm
from capvisor.fastpath.workspace import Causes, Flags, Words
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.orc import SlotKind
from capvisor.spec.stack import Via
from capvisor.spec.tag_policy import TagPolicy
from capvisor.spec.tpt import SWAP_SLOTS, FaultKind
from capvisor.spec.vmm import BLOCK_SHIFT, ChannelState
from capvisor.spec.vmm_policy import VmmPolicy

if TYPE_CHECKING:
    from capvisor.fastpath.stack import BatchStack

_VIAS = {
    **dict.fromkeys(("dma_read", "dma_write", "transfer"), Via.DEVICE),
    "mediate": Via.MEDIATOR,
    **dict.fromkeys(("extension_read", "extension_write"), Via.EXTENSION),
}
"""By what the VMM's operations access memory; the others do by the processor."""
_REFUSED_AS = {
    Via.CPU: vmm_spec.Code.UNMAPPED,
    Via.DEVICE: vmm_spec.Code.IOMMU,
    Via.MEDIATOR: vmm_spec.Code.FAILED,
    Via.EXTENSION: vmm_spec.Code.CONFINED,
}
_WORD = np.uint64


class HostedVmm(BatchVmm):
    """VMMs on whose memory others have views: whom they touch blocks for is looked up in the owners of frames."""

    def __init__(self, stack: "BatchStack", region: tuple[int, int], vcpus: int, devices: int, policy: VmmPolicy) -> None:
        super().__init__(stack.lanes, stack.frame_count, region, vcpus, devices, policy)
        self._stack, self._name = stack, ""
        self.memory = self._blocks = Blocks(stack.tpt)

    def step(self, lanes: Indices, name: str, operands: Sequence[Words]) -> vmm.Results:
        """One operation, by which memory is accessed in its own way."""
        self._name, is_device = name, _VIAS.get(name) is Via.DEVICE
        self._blocks.keeps_tags = is_device and not self._stack.policy.dma_clears_tags
        return super().step(lanes, name, operands)

    def granted(
        self, request: vmm.Request, who: Indices, address: Words, writes: bool | Flags, device: Indices | None = None
    ) -> Indices:
        """Those of some to whom, or to whose owner, the frame belongs; the commands of the others end."""
        stack, via = self._stack, _VIAS.get(self._name, Via.CPU)
        lanes, frame = request.lanes[who], (address[who] >> _WORD(BLOCK_SHIFT)).astype(np.int64)
        own = None if device is None else device[who]
        refused = stack.is_anothers(via, lanes, own, frame)
        if stack.policy.base_memory_kept:
            refused |= (writes[who] if isinstance(writes, np.ndarray) else writes) & stack.is_kept(lanes, frame)
        refused &= ~self.in_region(frame.astype(_WORD))
        if not refused.any():
            return who
        request.end(who[refused], _REFUSED_AS[via])
        if self._name in ("mediate", "transfer"):
            assert own is not None
            place = lanes[refused], own[refused]
            storage.end_command(self, *place, failed=True)
            mediated = self.is_mediated(*place)
            self.channels["state"][place[0][mediated], place[1][mediated]] = ChannelState.ERROR
        return who[~refused]


class HostedSystem(BatchSystem):
    """Translation pass-through among the others, over the memory of all."""

    def __init__(self, stack: "BatchStack", first_table: int, vcpus: int, devices: int, policy: TagPolicy) -> None:
        super().__init__(stack.lanes, stack.frame_count, vcpus, devices, policy)
        self._stack = stack
        self.words: Any = FrameRows(stack.lanes, stack.frame_count, first_table, self.tags)
        self.rows: FrameRows = self.words
        self.disk = np.zeros((stack.lanes, SWAP_SLOTS, ROW_WORDS), _WORD)

    def write(self, lanes: Indices, address: Words, values: Words) -> None:
        """Write words at addresses, where nobody keeps these."""
        stack = self._stack
        frame, word, inside = self._place(address)
        kept = inside & self.is_kept(lanes, address)
        stack.halted[lanes[kept]] = True
        good = np.flatnonzero(inside & ~kept)
        lanes, frame, word = lanes[good], frame[good], word[good]
        keeps = stack.via is Via.DEVICE and not stack.policy.dma_clears_tags
        write_word(self.words, lanes, frame, word, values[good], keeps_tags=keeps)
        stack.note_written(lanes, frame)

    def is_kept(self, lanes: Indices, address: Words) -> Flags:
        """Whether the base of shared objects keeps addresses."""
        frame, _word, inside = self._place(address)
        if not self._stack.policy.base_memory_kept:
            return np.zeros(len(lanes), np.bool_)
        return inside & self._stack.is_kept(lanes, frame)

    def reached(
        self,
        request: requests.Request,
        who: Indices,
        devices: Indices,
        frame: Words,
        where: Flags,
        writes: bool,
    ) -> Flags:
        """Of some devices, those that the VMM's domains, and the base of shared objects, let access frames."""
        stack, lanes = self._stack, request.lanes[who]
        at = np.where(where, frame, _WORD(0))
        refused = stack.vmm.rights(lanes, devices, at) & (WRITE if writes else READ) == 0
        if writes and stack.policy.base_memory_kept:
            refused |= stack.is_kept(lanes, at.astype(np.int64))
        refused &= where
        request.fault(who[refused], FaultKind.IOMMU, frame[refused])
        found: Flags = where & ~refused
        return found


class HostedMonitor(BatchMonitor):
    """Intravisors whose memory may not be there."""

    memory_type = PagedMemory
    memory: PagedMemory

    def is_there(self, lanes: Indices, address: Words, where: Flags) -> Flags:
        """Of some places, those whose pages are there."""
        self.memory.meet(lanes[where], address[where])
        found: Flags = where & (self.memory.met[lanes] == 0)
        return found

    def _go_back(self, harts: Indices, stack: Words, codes: Causes) -> None:
        """Callers whose calls a fault has ended don't go on: they are where they were."""
        stays = self.memory.met[harts % self.lanes] != 0
        self.frames["is_inside"][harts[stays]] = True
        super()._go_back(harts[~stays], stack[~stays], codes[~stays])


class HostedObjects(BatchObjects):
    """Bases of shared objects in VMs' memory. They say where they write, be it what is there already."""

    memory_type = PagedMemory
    memory: PagedMemory

    def put(self, lanes: Indices, index: Indices, cap: Lanes) -> None:
        """Put capabilities in granules."""
        self.memory.granules_written.append((lanes, index))
        super().put(lanes, index, cap)

    def clear_tags(self, lanes: Indices, slot: Indices) -> None:
        """Untag all that is in slots."""
        self.memory.granules_written.append((lanes, slot * self.slot_granules))
        super().clear_tags(lanes, slot)

    def take(self, lanes: Indices, slot: Indices, kind: SlotKind, owner: Indices, of_object: Any = 0) -> None:
        """Give slots away."""
        if self.policy.scrub_on_reuse:
            self.memory.granules_written.append((lanes, slot * self.slot_granules))
        super().take(lanes, slot, kind, owner, of_object)

    def copy_data(self, lanes: Indices, source: Indices, target: Indices) -> None:
        """Copy the data segments of objects, untagged."""
        some = self.slots["data"][lanes, source] != 0
        self.memory.granules_written.append((lanes[some], target[some] * self.slot_granules))
        super().copy_data(lanes, source, target)
