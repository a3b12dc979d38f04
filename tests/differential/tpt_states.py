"""Systems of both implementations side by side: how their states differ, and drawn operations."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from capvisor.fastpath.tpt import BatchSystem
from capvisor.model.tpt import System
from capvisor.model.tpt_system import perform
from capvisor.spec.paging import FIRST_VM, INDEX_BITS, WORDS_PER_FRAME, Entry, Mode
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import ASIDS, CACHE_SLOTS, MAX_VMS, OPERATIONS, SWAP_SLOTS, TLB_SLOTS, OperandKind

Drawn = tuple[str, tuple[int, ...]]
"""An operation and its operands."""

RIGHTS = {"is_writable": Entry.RW, "is_user": Entry.US, "is_user_page": Entry.US, "is_executable": Entry.NX}


def as_columns(row: Any) -> dict[str, int]:
    """A row of the reference with its rights as the fast path has them. A walk's own `is_user` is no right."""
    values = {name: int(value) for name, value in row._asdict().items()}
    if "is_writable" in values:
        names = ("is_writable", "is_user_page" if "is_user_page" in values else "is_user", "is_executable")
        values["rights"] = sum(int(RIGHTS[name]) for name in names if values.pop(name))
    return values


def rows(model: System, batch: BatchSystem, lane: int) -> Iterator[tuple[str, Any, Any]]:
    """What each row of a system is, in both implementations, by name."""

    def row(columns: dict[str, Any], *place: int) -> dict[str, int]:
        return {name: int(column[(lane, *place)]) for name, column in columns.items()}

    for frame in range(model.frame_count):
        yield f"tag {frame}", model.tags[frame], batch.tags[lane, frame]
        yield f"frame {frame}", as_columns(model.frames[frame]), row(batch.frames, frame)
        for vcpu in range(model.vcpu_count):
            yield f"pending {frame}, {vcpu}", model.is_pending(frame, vcpu), batch.pending[lane, frame, vcpu]
        for device in range(model.device_count):
            yield f"iotlb {device}, {frame}", model.iotlb[frame] >> device & 1, batch.iotlb[lane, device, frame]
    for region in range(batch.large.shape[1]):
        yield f"large {region}", model.tags.is_large(region << INDEX_BITS), batch.large[lane, region]
    for vm in range(FIRST_VM, FIRST_VM + MAX_VMS):
        yield f"vm {vm}", as_columns(model.vms[vm]), row(batch.vms, vm)
    for vcpu in range(model.vcpu_count):
        runs = row(batch.vcpus, vcpu)
        runs["next_tlb"], runs["next_cache"] = (int(each.next[lane, vcpu]) for each in (batch.tlb, batch.caches))
        yield f"vcpu {vcpu}", as_columns(model.vcpus[vcpu]), runs
        yield f"walk {vcpu}", as_columns(model.walks[vcpu]), row(batch.walks, vcpu)
        for asid in range(ASIDS):
            yield f"asid {vcpu}, {asid}", model.asids[vcpu, asid], batch.asids[lane, vcpu, asid]
        for slot in range(TLB_SLOTS):
            yield f"tlb {vcpu}, {slot}", as_columns(model.tlb.translations[vcpu, slot]), row(batch.tlb.columns, vcpu, slot)
        for slot in range(CACHE_SLOTS):
            yield f"cache {vcpu}, {slot}", as_columns(model.tlb.tables[vcpu, slot]), row(batch.caches.columns, vcpu, slot)
    for device in range(model.device_count):
        yield f"device {device}", model.devices[device], batch.devices[lane, device]
    for slot in range(SWAP_SLOTS):
        yield f"swap {slot}", as_columns(model.swaps[slot]), row(batch.swaps, slot)
    mappings = {number: mapping.frame for number, mapping in model.p2m if mapping.is_mapped}
    yield "p2m", mappings, batch.mappings(lane)
    for what, store, words in (("memory", model.memory, batch.words), ("disk", model.disk, batch.disk)):
        yield what, written(store), present(words[lane])


def written(store: Any) -> dict[int, int]:
    """The words of the reference's memory that aren't zero."""
    return {frame * WORDS_PER_FRAME + index: word for frame, index, word in store.written() if word}


def present(words: Any) -> dict[int, int]:
    """Likewise of the fast path's."""
    flat = words.reshape(-1)
    places = np.flatnonzero(flat)
    return dict(zip(places.tolist(), flat[places].tolist(), strict=True))


def differences(model: System, batch: BatchSystem, lane: int) -> list[str]:
    """What differs between a system of the reference and a lane."""
    return [f"{what}: {one}, not {other}" for what, one, other in rows(model, batch, lane) if one != other]


class Pair:
    """Systems of both implementations that do the same, one of the reference for each lane of the fast path's."""

    def __init__(self, lanes: int, frames: int, vcpus: int = 2, devices: int = 2, policy: TagPolicy = INTENDED) -> None:
        self.batch = BatchSystem(lanes, frames, vcpus, devices, policy)
        self.models = [System(frames, vcpus, devices, policy) for _ in range(lanes)]
        self.problems: list[str] = []
        self.ended: set[tuple[str, int, int]] = set()
        """Operations, with the codes and the faults that they ended with."""

    def step(self, operations: list[Drawn], compares: bool = True) -> None:
        """One operation in every lane, compared by how it ends and, unless told otherwise, by the states after it."""
        names = list(OPERATIONS)
        operands = np.zeros((len(operations), 5), np.uint64)
        for lane, (_name, values) in enumerate(operations):
            operands[lane, : len(values)] = values
        results = self.batch.step_divergent(names, np.array([names.index(name) for name, _values in operations]), operands)
        for lane, (model, (name, values)) in enumerate(zip(self.models, operations, strict=True)):
            step = perform(model, name, *values)
            fault = step.fault
            expected = (int(step.code), *((int(fault.kind), int(fault.code), int(fault.frame)) if fault else (0, 0, 0)))
            ended = tuple(int(column[lane]) for column in results[:4])
            self.ended.add((name, ended[0], ended[1]))
            found = []
            if ended != expected:
                found.append(f"ends with {expected}, not {ended}")
            if step.value is not None and int(step.value) != int(results.value[lane]):
                found.append(f"reads {step.value}, not {results.value[lane]}")
            if compares:
                found += differences(model, self.batch, lane)
            self.problems += [f"{name} {values} in lane {lane}: {each}" for each in found]


FLAGS = (0x67, 0x67, 0x67, 0x27, 0x07, 0x07, 0x03, 0x05, 0x163, 0x167, 0x127)
"""Of drawn entries: present, writable, user, accessed, dirty, global."""

OFTEN = (
    *("load", "load", "load", "store", "store", "store", "fetch", "write_pte", "write_pte", "begin_walk", "evict", "invlpg"),
    *("step_walk",) * 8,
)
"""Operations that are drawn more often than the others."""

INDICES = (0, 1, 2, 511)
"""Of tables' entries that are drawn."""


class Draw:
    """Draws operations for systems of so many frames."""

    def __init__(self, seed: int, frames: int, vcpus: int = 2, devices: int = 2) -> None:
        self.rng = np.random.default_rng(seed)
        self.frames, self.vcpus, self.devices = frames, vcpus, devices

    def one_of(self, values: Any) -> int:
        return int(values[self.rng.integers(len(values))])

    def chance(self, one_in: int) -> bool:
        return bool(self.rng.integers(one_in) == 0)

    def frame(self) -> int:
        """One of few, now and then of any, or none."""
        if self.chance(40):
            return self.one_of((self.frames, self.frames + 1, 1 << 33, 1 << 34, (1 << 64) - 1))
        if self.chance(3):
            return int(self.rng.integers(self.frames))
        return int(self.rng.integers(min(12, self.frames)))

    def entry(self) -> int:
        """A page-table entry."""
        if self.chance(30):
            return int(self.rng.integers(1 << 63)) * 2 + self.one_of((0, 1))
        frame = self.frame() if self.chance(4) else int(self.rng.integers(min(9, self.frames)))
        entry = (frame & (1 << 34) - 1) << 12 | self.one_of(FLAGS)
        for one_in, bits in ((12, 0x80), (30, 1 << 63), (60, 1 << 50), (60, 0x1000), (40, 1)):
            if self.chance(one_in):
                entry ^= bits
        if self.chance(12):
            entry = entry & ~0x3FFFF000 & ~0x1FF000 | self.one_of((0, 0, 0x200000, 0x1000)) | 0x80
        return entry

    def address(self) -> int:
        """A virtual address, by few indices, canonical but for one in forty."""
        address = self.one_of((0, 0, 8, 0xFF8, 4))
        levels = self.one_of((4, 5))
        for level in range(levels):
            address |= self.one_of(INDICES if level < 3 else (0, 0, 511)) << 12 + 9 * level
        if address >> 11 + 9 * levels + 0 & 1 and levels == 4:
            address |= 0xFFFF << 48
        if levels == 5 and address >> 56 & 1:
            address |= 0x7F << 57
        if self.chance(40):
            address ^= 1 << self.one_of((47, 48, 56, 63))
        return address

    def operand(self, kind: OperandKind) -> int:
        """A value for an operand."""
        number = {
            OperandKind.VCPU: lambda: int(self.rng.integers(self.vcpus)),
            OperandKind.VM: lambda: FIRST_VM + self.one_of((0, 0, 0, 1, 1, 2)),
            OperandKind.FRAME: self.frame,
            OperandKind.GUEST_FRAME: lambda: int(self.rng.integers(12)) if not self.chance(20) else self.frame(),
            OperandKind.INDEX: lambda: self.one_of(INDICES),
            OperandKind.WORD: self.entry,
            OperandKind.ADDRESS: self.address,
            OperandKind.ACCESS: lambda: int(self.rng.integers(3)),
            OperandKind.USER: lambda: int(self.rng.integers(2)),
            OperandKind.ASID: lambda: self.one_of((1, 1, 2, 3)),
            OperandKind.SLOT: lambda: int(self.rng.integers(TLB_SLOTS + CACHE_SLOTS)),
            OperandKind.SWAP_SLOT: lambda: int(self.rng.integers(SWAP_SLOTS)),
            OperandKind.DEVICE: lambda: int(self.rng.integers(self.devices)),
            OperandKind.MODE: lambda: self.one_of((Mode.TPT, Mode.TPT, Mode.NESTED)),
            OperandKind.LEVELS: lambda: self.one_of((4, 4, 5)),
        }[kind]()
        return number if not self.chance(60) else self.one_of((0, 1, 4, 5, 16, 512, 1 << 32, (1 << 64) - 1))

    def operation(self, name: str | None = None) -> Drawn:
        """An operation of that name, or any; accesses and walks are drawn more often."""
        if name is None:
            name = self.one_of_names((*OFTEN, *OFTEN, *OFTEN, *OPERATIONS))
        row = OPERATIONS[name]
        operands = [self.operand(kind) for _name, kind in row.operands]
        for place, (_name, kind) in enumerate(row.operands):
            if name in ("run", "set_cr3") and kind is OperandKind.WORD and not self.chance(20):
                operands[place] = int(self.rng.integers(min(9, self.frames))) << 12
            if name == "acknowledge" and kind is OperandKind.FRAME:
                operands[place] = int(self.rng.integers(min(12, self.frames)))
        return name, tuple(operands)

    def one_of_names(self, names: tuple[str, ...]) -> str:
        return names[self.rng.integers(len(names))]

    def story(self) -> list[Drawn]:
        """A whole walk, or what a host does with a frame, perhaps not all of it."""
        frame, slot, target = int(self.rng.integers(min(12, self.frames))), self.operand(OperandKind.SWAP_SLOT), self.frame()
        vm, guest_frame = FIRST_VM + int(self.rng.integers(2)), int(self.rng.integers(16))
        leave: list[Drawn] = [("reclaim", (frame,)), *(("acknowledge", (vcpu, frame)) for vcpu in range(self.vcpus))]
        give: Drawn = ("assign", (frame, vm, guest_frame))
        ends: tuple[list[Drawn], ...] = (
            [*leave, ("scrub", (frame,)), give],
            [*leave, give],
            [*leave, ("migrate", (frame, target)), ("scrub", (frame,)), give],
            [*leave, ("swap_out", (frame, slot)), ("swap_in", (target, slot))],
            [*leave, ("swap_out", (frame, slot)), ("scrub", (frame,)), give, ("swap_in", (target, slot))],
            [*leave, ("claim", (frame,)), ("release", (frame,))],
            [("merge", (0,)), *leave, ("split", (frame,)), *leave, give],
            [("merge", (0,)), ("split", (frame,))],
            [("merge", (0,)), ("claim", (target,)), give, ("split", (0,))],
        )
        if self.chance(3):
            begun = self.operation("begin_walk")
            return [begun, *[("step_walk", begun[1][:1])] * int(self.rng.integers(2, 14))]
        found = ends[self.rng.integers(len(ends) if self.frames > WORDS_PER_FRAME else len(ends) - 3)]
        return [each for each in found if not self.chance(12)]

    def beginning(self) -> list[Drawn]:
        """Operations after which VMs run, own frames and have tables, most of them of their own frames."""
        steps: list[Drawn] = []
        for vm in range(FIRST_VM, FIRST_VM + 2):
            steps.append(("create", (vm, self.one_of((Mode.TPT, Mode.TPT, Mode.NESTED)), self.one_of((4, 4, 5)))))
        large = self.frames > WORDS_PER_FRAME
        for frame in range(WORDS_PER_FRAME if large else min(12, self.frames)):
            vm = FIRST_VM + int(not large and (frame >= 9 or self.chance(12)))
            steps.append(("assign", (frame, vm, frame if large or not self.chance(6) else int(self.rng.integers(12)))))
        for vcpu in range(self.vcpus - int(self.chance(8))):
            root = int(self.rng.integers(min(8, self.frames))) << 12
            steps.append(("run", (vcpu, FIRST_VM + int(self.chance(10)), 1 + int(self.chance(4)), root)))
        for frame in range(9):
            for index in INDICES:
                good = int(self.rng.integers(9)) << 12 | self.one_of(FLAGS[:6])
                steps.append(("write_pte", (0, frame, index, self.entry() if self.chance(8) else good)))
        return steps


class Lane:
    """Draws what one lane does: stories of a host, and other operations among them."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.ahead: list[Drawn] = []

    def next(self) -> Drawn:
        if not self.ahead and self.draw.chance(6):
            self.ahead = self.draw.story()
        if self.ahead and not self.draw.chance(3):
            return self.ahead.pop(0)
        return self.draw.operation()


def play(seed: int, lanes: int, moves: int, frames: int = 24, policy: TagPolicy = INTENDED, compares: bool = True) -> Pair:
    """Systems after so many drawn operations; whole states are compared after each, unless told otherwise."""
    pair, draw = Pair(lanes, frames, policy=policy), Draw(seed, frames)
    drawn = [Lane(draw) for _ in range(lanes)]
    for operations in zip(*(draw.beginning() for _ in range(lanes)), strict=False):
        pair.step(list(operations), compares=False)
    for _ in range(moves):
        pair.step([lane.next() for lane in drawn], compares)
        if pair.problems:
            break
    return pair
