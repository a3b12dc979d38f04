"""Translation pass-through in many systems: the fast twin of `model.tpt`. The specification is spec/tpt.md.

Every lane is a system of its own: memory, tags, the host's books, vCPUs with their TLBs, devices. A step is one operation in
each of some lanes. Arguments called `lanes`, and what belongs to them, are arrays of one length, one element for each lane
that takes part; no lane is named twice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath import guests as _guests
from capvisor.fastpath import hosts as _hosts  # they declare the kernels
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.requests import OPERATION_KERNELS, VM_NUMBERS, Request, Results
from capvisor.fastpath.tables import Table
from capvisor.fastpath.tlb import CACHED_TABLE, TRANSLATION, Slots
from capvisor.fastpath.walks import WALK
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec import tpt
from capvisor.spec.paging import FRAME_NUMBERS, FRAME_SHIFT, FREE, INDEX_BITS, WORD_BYTES, WORDS_PER_FRAME, Mode
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import ASIDS, CACHE_SLOTS, SWAP_SLOTS, TLB_SLOTS

assert _guests and _hosts

REGION_SHIFT = INDEX_BITS
"""A region is the 512 frames that one large tag may stand for."""

_FLAG, _WORD, _SMALL = np.bool_, np.uint64, np.uint8
FRAME = {"is_clean": _FLAG, "vm": _WORD, "guest_frame": _WORD, "is_leaving": _FLAG}
VM = {"is_live": _FLAG, "mode": _SMALL, "levels": _WORD}
MAPPING = {"is_mapped": _FLAG, "frame": _WORD}
VCPU = {"vm": _WORD, "asid": _WORD, "cr3": _WORD}
SWAP = {"is_live": _FLAG, "vm": _WORD, "guest_frame": _WORD}

_GUEST_FRAME_BITS = FRAME_NUMBERS.bit_length() - 1


def _columns(columns: dict[str, Any], *shape: int) -> dict[str, NDArray[Any]]:
    """Tables of rows that are all zeros."""
    return {name: np.zeros(shape, kind) for name, kind in columns.items()}


def _repeated(columns: dict[str, NDArray[Any]], lanes: int) -> dict[str, NDArray[Any]]:
    """Tables of so many lanes with the rows of the first one."""
    return {name: np.repeat(column[:1], lanes, axis=0) for name, column in columns.items()}


def mapping_numbers(vm: Words, guest_frame: Words) -> Words:
    """The numbers of the rows of guest frames in the host's map."""
    return vm << np.uint64(_GUEST_FRAME_BITS) | guest_frame


class BatchSystem:
    """`lanes` systems, each with so many frames, vCPUs and devices, all memory free and clean.

    Raises ValueError for numbers outside of the limits of spec/tpt.py.
    """

    def __init__(self, lanes: int, frames: int, vcpus: int, devices: int, policy: TagPolicy = INTENDED) -> None:
        limits = {"frames": (1, tpt.MAX_FRAMES), "vCPUs": (1, tpt.MAX_VCPUS), "devices": (0, tpt.MAX_DEVICES)}
        for (what, (least, most)), number in zip(limits.items(), (frames, vcpus, devices), strict=True):
            if not least <= number <= most:
                raise ValueError(f"{number} {what}: a system has {least} to {most}")
        self.lanes, self.frame_count, self.vcpu_count, self.device_count = lanes, frames, vcpus, devices
        self.policy = policy
        regions = (frames >> REGION_SHIFT) + 1
        # One device at least, never reached: what is looked at in refused lanes has to be somewhere.
        devices = max(devices, 1)
        self.words = np.zeros((lanes, frames, WORDS_PER_FRAME), np.uint64)
        self.tags = np.zeros((lanes, frames), np.uint64)
        self.large = np.zeros((lanes, regions), np.bool_)
        self.frames = _columns(FRAME, lanes, frames)
        self.frames["is_clean"].fill(True)
        self.pending = np.zeros((lanes, frames, vcpus), np.bool_)
        self.vms = _columns(VM, lanes, VM_NUMBERS)
        self.p2m = Table(lanes, MAPPING)
        self.vcpus = _columns(VCPU, lanes, vcpus)
        self.asids = np.zeros((lanes, vcpus, ASIDS), np.uint64)
        self.tlb = Slots(lanes, vcpus, TLB_SLOTS, TRANSLATION)
        self.caches = Slots(lanes, vcpus, CACHE_SLOTS, CACHED_TABLE)
        self.walks = _columns(WALK, lanes, vcpus)
        self.devices = np.zeros((lanes, devices), np.uint64)
        self.iotlb = np.zeros((lanes, devices, frames), np.bool_)
        self.disk = np.zeros((lanes, SWAP_SLOTS, WORDS_PER_FRAME), np.uint64)
        self.swaps = _columns(SWAP, lanes, SWAP_SLOTS)

    def repeated(self, lanes: int) -> "BatchSystem":
        """So many systems, each as the first of these is."""
        other = BatchSystem(0, self.frame_count, self.vcpu_count, self.device_count, self.policy)
        other.lanes, other.p2m = lanes, self.p2m.repeated(lanes)
        for name in ("tags", "large", "pending", "asids", "devices", "iotlb"):
            setattr(other, name, np.repeat(getattr(self, name)[:1], lanes, axis=0))
        for slots, mine in ((other.tlb, self.tlb), (other.caches, self.caches)):
            slots.columns, slots.next = _repeated(mine.columns, lanes), np.repeat(mine.next[:1], lanes, axis=0)
        for name in ("frames", "vms", "vcpus", "walks", "swaps"):
            setattr(other, name, _repeated(getattr(self, name), lanes))
        for name in ("words", "disk"):
            # Frames that hold nothing stay untouched, and take no memory.
            held, words = getattr(self, name)[0], np.zeros((lanes, *getattr(self, name).shape[1:]), np.uint64)
            for frame in np.flatnonzero(held.any(axis=1)):
                words[:, frame] = held[frame]
            setattr(other, name, words)
        return other

    # -- steps -------------------------------------------------------------------------------------------------------------

    def step(self, lanes: Indices, name: str, operands: Sequence[Words]) -> Results:
        """One operation in each of some lanes; the operands, in the order of its row, have one element a lane."""
        request = Request(self, lanes)
        OPERATION_KERNELS[name](self, request, *operands)
        return request.results

    # -- memory ------------------------------------------------------------------------------------------------------------

    def read(self, lanes: Indices, address: Words) -> Words:
        """The words at addresses; 0 outside of memory."""
        frame, word, inside = self._place(address)
        found: Words = np.where(inside, self.words[lanes, frame, word], np.uint64(0))
        return found

    def write(self, lanes: Indices, address: Words, values: Words) -> None:
        """Write words at addresses; nothing outside of memory."""
        frame, word, inside = self._place(address)
        self.words[lanes[inside], frame[inside], word[inside]] = values[inside]

    def is_kept(self, _lanes: Indices, address: Words) -> Flags:
        """Whether others who share the machine keep addresses from being written: here nobody does."""
        return np.zeros(len(address), np.bool_)

    def reached(
        self, _request: Request, _who: Indices, _devices: Indices, _frame: Words, where: Flags, _writes: bool
    ) -> Flags:
        """Of some devices, those that reach frames as far as those others are concerned; the rest meet a fault."""
        return where

    def _place(self, address: Words) -> tuple[Indices, Indices, Flags]:
        """The frame and the word in it of addresses, and whether they are in memory."""
        frame = address >> np.uint64(FRAME_SHIFT)
        inside: Flags = frame < np.uint64(self.frame_count)
        word = address // np.uint64(WORD_BYTES) % np.uint64(WORDS_PER_FRAME)
        return np.where(inside, frame, np.uint64(0)).astype(np.int64), word.astype(np.int64), inside

    # -- tags --------------------------------------------------------------------------------------------------------------

    def looked_up(self, lanes: Indices, frame: Words) -> Words:
        """The tags of frames, by the large ones that they are under; outside of memory FREE."""
        inside = frame < np.uint64(self.frame_count)
        places = np.where(inside, frame, np.uint64(0)).astype(np.int64)
        first = places >> REGION_SHIFT << REGION_SHIFT
        at = np.where(self.large[lanes, places >> REGION_SHIFT], first, places)
        found: Words = np.where(inside, self.tags[lanes, at], np.uint64(FREE))
        return found

    def owns_page(self, lanes: Indices, base: Words, size: int, vm: Words) -> Flags:
        """Whether all of `size` frames have the tags of VMs."""
        if size == 1:
            owned: Flags = self.looked_up(lanes, base) == vm
            return owned
        inside: Flags = (base < np.uint64(self.frame_count)) & (np.uint64(size) <= np.uint64(self.frame_count) - base)
        whole = np.flatnonzero(inside)
        offsets: Words = np.arange(size, dtype=np.uint64)
        frames: Words = base[whole][:, None] + offsets
        foreign = self.looked_up(lanes[whole, None], frames) != vm[whole, None]
        inside[whole] = ~np.logical_or.reduce(foreign, axis=1)
        return inside

    def is_nested(self, lanes: Indices, vm: Words) -> Flags:
        """Whether VMs are translated by the host's map."""
        found: Flags = self.vms["mode"][lanes, vm.astype(np.int64)] == Mode.NESTED
        return found

    # -- the host's map of guest frames ------------------------------------------------------------------------------------

    def mapped(self, lanes: Indices, vm: Words, guest_frame: Words) -> tuple[Flags, Words]:
        """Whether guest frames of VMs are mapped, and to which frames."""
        exists = guest_frame < np.uint64(FRAME_NUMBERS)
        numbers = mapping_numbers(vm, np.where(exists, guest_frame, np.uint64(0)))
        at = self.p2m.find(lanes, numbers)
        is_mapped = exists & self.p2m["is_mapped"][lanes, at]
        return is_mapped, np.where(is_mapped, self.p2m["frame"][lanes, at], np.uint64(0))

    def map(self, lanes: Indices, vm: Words, guest_frame: Words, frame: Words) -> None:
        """Let guest frames be frames."""
        self.p2m.put(lanes, mapping_numbers(vm, guest_frame), is_mapped=True, frame=frame)

    def unmap(self, lanes: Indices, vm: Words, guest_frame: Words) -> None:
        """Let guest frames, which are mapped, be none."""
        self.p2m.put(lanes, mapping_numbers(vm, guest_frame), is_mapped=False, frame=0)

    def mappings(self, lane: int) -> dict[tuple[int, int], int]:
        """The frames of all guest frames that are mapped in one lane, by VM and guest frame."""
        found = {}
        for number, row in self.p2m.rows(lane):
            if row["is_mapped"]:
                found[number >> _GUEST_FRAME_BITS, number & FRAME_NUMBERS - 1] = row["frame"]
        return found

    @staticmethod
    def mapping_keys(numbers: Words) -> tuple[Words, Words]:
        """The VMs and guest frames of rows of the map, by their numbers."""
        return numbers >> np.uint64(_GUEST_FRAME_BITS), numbers & np.uint64(FRAME_NUMBERS - 1)

    # -- the host's books --------------------------------------------------------------------------------------------------

    def write_books(self, lanes: Indices, frames: Indices, **values: Any) -> None:
        """Write rows of frames; what isn't named is zero."""
        for name, column in self.frames.items():
            column[lanes, frames] = values.get(name, 0)

    def is_pending(self, lanes: Indices, frames: Indices) -> Flags:
        """Whether a vCPU has yet to forget frames."""
        found: Flags = np.logical_or.reduce(self.pending[lanes, frames], axis=1)
        return found

    def drop_walks(self, lanes: Indices, vcpus: Indices) -> None:
        """Let vCPUs have no walks under way."""
        for column in self.walks.values():
            column[lanes, vcpus] = 0
