"""A para-pass-through VMM in many machines: the fast twin of `model.vmm`. The specification is spec/vmm.md.

Every lane is a machine of its own: memory, processors, devices with their registers and media, what the VMM's mediators
know. A step is one operation in each of some lanes. Arguments called `lanes`, and what belongs to them, are arrays of one
length, one element for each lane that takes part; no lane is named twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.refusals import Refusals, declaring
from capvisor.fastpath.tables import Table
from capvisor.fastpath.workspace import Causes, Flags, Words
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    BLOCKS_PER_FRAME,
    COUNT_BITS,
    FIRST_APIC_FRAME,
    FIRST_SHADOW_FRAME,
    HIDDEN_FRAMES,
    KEY_FRAME,
    LBA_BITS,
    LEAST_REGION,
    MAPPINGS,
    MAX_DEVICES,
    MAX_EXTENSIONS,
    MAX_FRAMES,
    MAX_VCPUS,
    OPERATIONS,
    SHADOW_BLOCKS,
    WINDOW_FRAME_SHIFT,
    ZERO_FRAME,
    Code,
    Phase,
    Register,
    Space,
    Stage,
)
from capvisor.spec.vmm_policy import INTENDED, VmmPolicy

Columns = dict[str, NDArray[Any]]

_FLAG, _WORD, _SMALL = np.bool_, np.uint64, np.uint8
VMM = {"is_stopped": _FLAG, "has_microcode": _FLAG, "stage": _SMALL, "next_frame": _WORD, "is_iommu_off": _FLAG}
VCPU = {"is_outside": _FLAG, "apic_frame": _WORD}
MAPPING = {"is_live": _FLAG, "frame": _WORD, "level": _SMALL, "is_writable": _FLAG, "is_zero": _FLAG}
DEVICE = {
    "is_storage": _FLAG,
    **dict.fromkeys(("count", "lba", "descriptors", "opcode", "first", "length", "position"), _WORD),
    "is_started": _FLAG,
    "to_memory": _FLAG,
    "entry": _WORD,
    "offset": _WORD,
    "is_failed": _FLAG,
}
CHANNEL = {
    "state": _SMALL,
    **dict.fromkeys(("first", "length", "position"), _WORD),
    "is_write": _FLAG,
    **dict.fromkeys(("seen_count", "seen_lba", "descriptors", "entry", "offset"), _WORD),
    "is_tampered": _FLAG,
}
DEPLOYMENT = {"phase": _SMALL, "size": _WORD, "cursor": _WORD, "is_fetched": _FLAG, "lba": _WORD, "word": _WORD}
EXTENSION = {"is_live": _FLAG, "first": _WORD, "behind": _WORD, "may_write": _FLAG}
SECTOR = {
    **{"word": _WORD, "is_known": _FLAG, "meant": _WORD, "rule": _SMALL, "image": _WORD},
    **{"is_deployed": _FLAG, "is_touched": _FLAG},
}
"""Of a sector: what the medium holds, what the guest takes it to hold and whether that is known, the rule for it, what the
image has, whether it is deployed, and whether a command has written it.
"""
WINDOW = {"decoded": _SMALL, "hooked": _SMALL}
"""Which device's registers are there, and which one the VMM mediates there."""

READ, WRITE = 1, 2
"""What the IOMMU lets a device do to a frame."""

SPACE_SHIFT = 48


class Results(NamedTuple):
    """How one operation ended in each of some lanes: a `Code`, and what was read."""

    code: Causes
    value: Words


class Request(Refusals):
    """One operation in each of some lanes, and how it ends there. Lanes are called by their places among these, `who`."""

    def __init__(self, system: "BatchVmm", lanes: Indices) -> None:
        self.system, self.lanes = system, lanes
        self.results = Results(np.zeros(len(lanes), np.uint8), np.zeros(len(lanes), np.uint64))
        super().__init__(self.results.code, Code.RANGE)

    def address(self, numbers: Words) -> Words:
        """Addresses of blocks; those outside of memory are refused, and are 0 from then on."""
        outside = numbers >> np.uint64(BLOCK_SHIFT) >= np.uint64(self.system.frame_count)
        self.refuse(outside, Code.RANGE)
        return np.where(outside, np.uint64(0), numbers)

    def end(self, who: Indices, code: Code) -> None:
        """Let some that are still going on end so."""
        self.results.code[who] = int(code)

    def panic(self, who: Indices) -> None:
        """The VMM stops the machines of some that are still going on."""
        self.system.vmm["is_stopped"][self.lanes[who]] = True
        self.end(who, Code.PANIC)

    def must_run(self, *, held: bool = True) -> None:
        """Refuse where the VMM has stopped the machine or handed it over; what is held also while the last round is sent."""
        stage = self.system.vmm["stage"][self.lanes]
        ended = self.system.vmm["is_stopped"][self.lanes] | (stage == Stage.HANDED_OVER)
        if held and self.system.policy.stop_before_last_round:
            ended |= stage == Stage.STOPPED
        self.refuse(ended, Code.STOPPED)

    def still(self, who: Indices) -> Indices:
        """Those of some that haven't been refused."""
        going: Indices = who[self.results.code[who] == 0]
        return going


OperationKernel = Callable[..., None]
_ROWS = tuple(OPERATIONS.values())
OPERATION_KERNELS: dict[str, OperationKernel] = {}
"""The kernel of each operation, by name; it takes the system, the request and the operands."""


operation = declaring(OPERATION_KERNELS, OPERATIONS)
"""Declares the kernel of the operation of a name."""


# -- encryption ------------------------------------------------------------------------------------------------------------


class AddedKey:
    """A cipher for tests: a sum."""

    def encrypt(self, key: Words, lba: Words, word: Words) -> Words:
        return word + self._secret(key, lba)

    def decrypt(self, key: Words, lba: Words, word: Words) -> Words:
        return word - self._secret(key, lba)

    @staticmethod
    def _secret(key: Words, lba: Words) -> Words:
        return key + (lba << np.uint64(8))


# -- the state -------------------------------------------------------------------------------------------------------------


def _columns(columns: dict[str, Any], *shape: int) -> Columns:
    """Tables of rows that are all zeros."""
    return {name: np.zeros(shape, kind) for name, kind in columns.items()}


def put(columns: Columns, place: tuple[Any, ...], **values: Any) -> None:
    """Write some columns of rows."""
    for name, column in values.items():
        columns[name][place] = column


def replace(columns: Columns, place: tuple[Any, ...], **values: Any) -> None:
    """Write whole rows; what isn't named is zero."""
    for name, column in columns.items():
        column[place] = values.get(name, 0)


def sector_numbers(device: Indices | Words, lba: Words) -> Words:
    """The numbers of the rows of sectors of devices."""
    return np.asarray(device).astype(np.uint64) << np.uint64(LBA_BITS) | lba


def copy_numbers(device: Indices | Words, position: Words) -> Words:
    """The numbers of the rows of what was copied into shadow buffers."""
    return np.asarray(device).astype(np.uint64) << np.uint64(COUNT_BITS) | position


def frame_numbers(frame: Indices | Words) -> Words:
    """The numbers of the rows of frames."""
    return np.asarray(frame).astype(np.uint64)


def window_numbers(space: Indices | Words, window: Words) -> Words:
    """The numbers of the rows of places of registers."""
    return np.asarray(space).astype(np.uint64) << np.uint64(SPACE_SHIFT) | window


class BatchVmm:
    """`lanes` machines, each with so many frames, vCPUs and devices, and a region [first, behind) of the VMM's.

    Devices are numbered from 1, as extensions are: their rows of number 0 stay empty.
    Raises ValueError for numbers outside of the limits of spec/vmm.py.
    """

    def __init__(
        self,
        lanes: int,
        frames: int,
        region: tuple[int, int],
        vcpus: int = 1,
        devices: int = 1,
        policy: VmmPolicy = INTENDED,
    ) -> None:
        limits = {"frames": (1, MAX_FRAMES), "vCPUs": (1, MAX_VCPUS), "devices": (0, MAX_DEVICES)}
        for (what, (least, most)), number in zip(limits.items(), (frames, vcpus, devices), strict=True):
            if not least <= number <= most:
                raise ValueError(f"{number} {what}: a machine has {least} to {most}")
        first, behind = self.region_first, self.region_behind = region
        if not 0 <= first <= behind - LEAST_REGION <= frames - LEAST_REGION or first <= FIRST_APIC_FRAME < behind:
            raise ValueError(
                f"region {region}: it has {LEAST_REGION} at least, all the machine's, without {FIRST_APIC_FRAME:#x}"
            )
        self.lanes, self.frame_count, self.vcpu_count, self.device_count = lanes, frames, vcpus, devices
        self.policy, self.cipher = policy, AddedKey()
        self.begun = ""
        """The operation that was begun last, where each lane has one of its own."""
        # One device at least, never reached: what is looked at in refused lanes has to be somewhere.
        rows = max(devices, 1) + 1
        self.vmm = _columns(VMM, lanes)
        self.memory: Any = np.zeros((lanes, frames * BLOCKS_PER_FRAME), np.uint64)
        self.vcpus = _columns(VCPU, lanes, vcpus)
        self.vcpus["apic_frame"].fill(FIRST_APIC_FRAME)
        self.mappings = _columns(MAPPING, lanes, vcpus, MAPPINGS)
        self.devices = _columns(DEVICE, lanes, rows)
        self.decoding = Table(lanes, WINDOW)
        self.traps = Table(lanes, {"trapped": _WORD})
        self.windows = np.zeros((lanes, rows, len(Space)), np.uint64)
        self.registers = np.zeros((lanes, rows, len(Register)), np.uint64)
        self.channels = _columns(CHANNEL, lanes, rows)
        self.copies = Table(lanes, {"plain": _WORD})
        self.keys = np.zeros(lanes, np.uint64)
        self.sectors = Table(lanes, SECTOR)
        self.deployments = _columns(DEPLOYMENT, lanes, rows)
        self.extensions = _columns(EXTENSION, lanes, MAX_EXTENSIONS + 1)
        self.clean = np.zeros((lanes, frames), np.bool_)
        self.remote: Any = np.zeros((lanes, frames * BLOCKS_PER_FRAME), np.uint64)

    # -- steps -------------------------------------------------------------------------------------------------------------

    def step_each(self, lanes: Indices, numbers: Indices, operands: Sequence[Words]) -> Results:
        """In each of some lanes an operation of its own, by its number in the table of operations.

        The operands have one element a lane, and there are as many as any of the operations takes.
        """
        results = Results(np.zeros(len(lanes), np.uint8), np.zeros(len(lanes), np.uint64))
        for number in np.unique(numbers).tolist():
            row = _ROWS[number]
            self.begun = row.name
            who = np.flatnonzero(numbers == number)
            own = [each[who] for each in operands[: len(row.operands)]]
            results.code[who], results.value[who] = self.step(lanes[who], row.name, own)
        return results

    def step(self, lanes: Indices, name: str, operands: Sequence[Words]) -> Results:
        """One operation in each of some lanes; the operands, in the order of its row, have one element a lane."""
        request = Request(self, lanes)
        OPERATION_KERNELS[name](self, request, *operands)
        return request.results

    # -- the region --------------------------------------------------------------------------------------------------------

    @property
    def hidden_behind(self) -> int:
        """The frame behind the last one that the VMM takes for its own."""
        if self.policy.hide_whole_region:
            return self.region_behind
        return min(self.region_behind, self.region_first + HIDDEN_FRAMES)

    def is_recognised(self, frame: Words) -> Flags:
        """Whether the VMM takes frames for its own."""
        found: Flags = (frame >= np.uint64(self.region_first)) & (frame < np.uint64(self.hidden_behind))
        return found

    def in_region(self, frame: Words) -> Flags:
        """Whether frames are the VMM's."""
        found: Flags = (frame >= np.uint64(self.region_first)) & (frame < np.uint64(self.region_behind))
        return found

    @property
    def zero_frame(self) -> int:
        """The page of zeros."""
        return self.region_first + ZERO_FRAME

    def key(self, lanes: Indices) -> Words:
        """What the blocks of the key hold."""
        found: Words = self.memory[lanes, np.full(len(lanes), self.region_first + KEY_FRAME << BLOCK_SHIFT)]
        return found

    def shadow_descriptor(self, device: Indices) -> Indices:
        """Where the VMM has its descriptors for storage devices."""
        return self.region_first + FIRST_SHADOW_FRAME + 2 * (device - 1) << BLOCK_SHIFT

    def shadow_buffer(self, device: Indices) -> Indices:
        """Where the VMM has its buffers for storage devices."""
        return self.shadow_descriptor(device) + SHADOW_BLOCKS

    # -- memory ------------------------------------------------------------------------------------------------------------

    def read(self, lanes: Indices, address: Words) -> Words:
        """What blocks hold."""
        found: Words = self.memory[lanes, address.astype(np.int64)]
        return found

    def write(self, lanes: Indices, address: Words, values: Words, *, tracked: bool) -> None:
        """Write blocks for the guest, devices or extensions; if tracked, what was sent of their frames isn't clean."""
        places = address.astype(np.int64)
        self.memory[lanes, places] = values
        if tracked:
            self.clean[lanes, places >> BLOCK_SHIFT] = False

    def granted(
        self, _request: Request, who: Indices, _address: Words, _writes: bool | Flags, _device: Indices | None = None
    ) -> Indices:
        """Those of some that may access blocks as far as others are concerned who share the machine: here all may.

        Addresses, and the devices that blocks are accessed by or for, have an element for each lane of the request.
        """
        return who

    # -- devices -----------------------------------------------------------------------------------------------------------

    def is_mediated(self, lanes: Indices, device: Indices) -> Flags:
        """Whether devices are storage devices that the VMM hasn't left to the guest."""
        found: Flags = self.devices["is_storage"][lanes, device] & (self.deployments["phase"][lanes, device] != Phase.GONE)
        return found

    def rights(self, lanes: Indices, device: Indices, frame: Words) -> Indices:
        """What the IOMMU lets devices do to frames, which are in memory: bits, READ and WRITE."""
        mediated, number = self.is_mediated(lanes, device), frame.astype(np.int64) << BLOCK_SHIFT
        own = np.where(number == self.shadow_buffer(device), READ | WRITE, 0)
        own[number == self.shadow_descriptor(device)] = READ
        refused = self.is_trapped(lanes, frame)
        if self.policy.iommu_hides_region:
            refused = refused | self.in_region(frame)
        if self.policy.iommu_confines_mediated:
            refused = refused | mediated
        found = np.where(refused, np.where(mediated, own, 0), READ | WRITE)
        found[self.vmm["is_iommu_off"][lanes]] = READ | WRITE
        if self.policy.stop_before_last_round:
            found[self.vmm["stage"][lanes] == Stage.STOPPED] = 0
        return found

    # -- registers in memory -----------------------------------------------------------------------------------------------

    def hook(self, lanes: Indices, spaces: Indices, windows: Words, device: Indices | int) -> None:
        """Let the VMM intercept windows for devices, or for none."""
        self.decoding.put(lanes, window_numbers(spaces, windows), hooked=device)
        memory = spaces == Space.MEMORY
        lanes, windows, hooked = lanes[memory], windows[memory], np.broadcast_to(device, len(memory))[memory] != 0
        frames = windows >> np.uint64(WINDOW_FRAME_SHIFT)
        bit = np.uint64(1) << (windows & np.uint64((1 << WINDOW_FRAME_SHIFT) - 1))
        others = self.traps.get("trapped", lanes, frames) & ~bit
        self.traps.put(lanes, frames, trapped=np.where(hooked, others | bit, others))

    def is_trapped(self, lanes: Indices, frame: Words) -> Flags:
        """Whether frames have registers of mediated devices in them."""
        if not self.policy.unmap_registers:
            return np.zeros(len(lanes), np.bool_)
        found: Flags = self.traps.get("trapped", lanes, frame) != 0
        return found
