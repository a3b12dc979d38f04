"""What a campaign of translation pass-through draws: systems, operands, and moves that belong together.

A move is a few operations, the same in all lanes but for their operands; now and then a lane leaves one out. Every kind of
move is made in every unit, in an order that is drawn, and most of them again.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.draw import Draws, make
from capvisor.campaign.systems import exercise
from capvisor.campaign.tpt_systems import Begun, Size, Systems
from capvisor.dsl.parser import parse
from capvisor.dsl.tpt_layout import Layout
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, FREE, WORDS_PER_FRAME, Mode
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import CACHE_SLOTS, MAX_VMS, OPERATIONS, SWAP_SLOTS, TLB_SLOTS, OperandKind

FLAGS = (0x67, 0x67, 0x67, 0x27, 0x07, 0x07, 0x03, 0x05, 0x163, 0x167, 0x127)
"""Of drawn entries: present, writable, user, accessed, dirty, global."""

INDICES = (0, 0, 1, 2, 511)
"""Of entries of tables, and so parts of addresses, that are drawn."""

ODD_NUMBERS = (0, 1, 4, 5, 16, 512, 1 << 32, 1 << 34, (1 << 64) - 1)
"""What an operand is now and then, whatever it is."""

SMALL_FRAMES, LARGE_FRAMES = 24, 528
HOT_ADDRESSES = 3
"""How many addresses each lane accesses again and again."""


ACCESSES = 40
"""How many accesses are made one after the other: as with real programs, most of them are translated by the TLB."""


class GuestOf(NamedTuple):
    """A VM at the start: its frames and vCPUs, and what guest it runs."""

    first: int
    last: int
    vcpus: int
    is_plain: bool
    is_mapped: bool


class Deployment(NamedTuple):
    """A system at the start, as a program says it."""

    frames: int
    levels: int
    devices: int
    guests: tuple[GuestOf, ...]

    def text(self, policy: Sequence[str] = ()) -> str:
        """The system, in the language."""
        items = [f"frames {self.frames}", f"levels {self.levels}", f"devices {self.devices}", *policy]
        for number, guest in enumerate(self.guests):
            kind = " plain" * guest.is_plain + " mapped" * guest.is_mapped
            items.append(f"vm{number} frames {guest.first}..{guest.last} vcpus {guest.vcpus}{kind}")
        return f"system tpt {{ {'; '.join(items)} }}"

    def layout(self) -> Layout:
        """Numbers of VMs and vCPUs."""
        return _layout(self)

    def start(self) -> list[Begun]:
        """The operations that lead there."""
        layout = self.layout()
        return [(name, tuple(operands)) for guest in layout.placed for name, *operands in layout.start_of(guest)]

    def size(self) -> Size:
        """How many frames, vCPUs and devices."""
        return Size(self.frames, sum(guest.vcpus for guest in self.guests), self.devices)


@lru_cache
def _layout(deployment: Deployment) -> Layout:
    program = parse(deployment.text() + "\n")
    assert program.system is not None
    return Layout(program.system)


def draw_deployment(rng: np.random.Generator, is_large: bool) -> Deployment:
    """Two VMs, enlightened or plain; in a large system the first has a whole region of frames."""
    levels = int(rng.choice([4, 4, 5]))
    if is_large:
        guests = [GuestOf(0, 511, 2, False, True), GuestOf(512, 521, 1, False, bool(rng.integers(2)))]
        return Deployment(LARGE_FRAMES, levels, 1, tuple(guests))
    is_mapped, is_plain, second_is_mapped = (rng.random(3) < (0.9, 0.35, 0.8)).tolist()
    guests = [GuestOf(0, 8, 2, False, is_mapped), GuestOf(9, 17, 1, is_plain, second_is_mapped)]
    return Deployment(SMALL_FRAMES, levels, 2, tuple(guests))


class Mover(Draws):
    """Makes moves of well-behaved and hostile guests, processors, devices and the host."""

    def __init__(
        self, rng: np.random.Generator, systems: Systems, deployment: Deployment, hostility: float, turn: int
    ) -> None:
        super().__init__(rng, systems.lanes, hostility)
        self.systems, self.size, self.levels = systems, systems.size, deployment.levels
        self.is_large = self.size.frames > WORDS_PER_FRAME
        self._turn = turn
        self._pages = (0, 1, 2, 4, 507, 511) if self.is_large else (0, 0, 1, 1, 2, 3, 4, 511)
        self.roots = np.zeros((self.lanes, FIRST_VM + MAX_VMS), np.uint64)
        """Of each VM, the frame that holds its best table of the highest level."""
        for number, guest in enumerate(deployment.guests):
            self.roots[:, FIRST_VM + number] = 0 if guest.is_plain else guest.first
        self.busy = self.vcpu()
        """The vCPU that does most of the accesses."""
        self.hot = np.zeros((self.lanes, HOT_ADDRESSES), np.uint64)
        self.find_addresses()

    # -- drawing -----------------------------------------------------------------------------------------------------------

    def vcpu(self) -> Words:
        return self.below(self.size.vcpus)

    def frame(self, wanted: NDArray[np.bool_] | None = None, odd: float = 0.02) -> Words:
        """A frame in each lane, one of those that are wanted where there are any; now and then none that is there."""
        found = self.below(self.size.frames)
        if self.is_large:
            found = self.mixed(found, self.each([0, 4, 5, 511, 512, 513, 522, 523]), 0.6)
        if wanted is not None:
            found = self.among(wanted, found)
        return self.mixed(found, self.each([self.size.frames, self.size.frames + 1, *ODD_NUMBERS]), odd)

    def owned(self, vm: Words | None = None) -> NDArray[np.bool_]:
        """The frames that are a VM's, or any VM's."""
        tags = self.systems.batch.tags
        return tags >= FIRST_VM if vm is None else tags == vm[:, None]

    def of_nobody(self) -> NDArray[np.bool_]:
        """The frames that nobody owns."""
        found: NDArray[np.bool_] = self.systems.batch.tags == FREE
        return found

    def runs(self, vcpu: Words) -> Words:
        """The VMs that vCPUs run for."""
        found: Words = self.systems.batch.vcpus["vm"][self._everyone, vcpu.astype(np.int64)]
        return found

    def entry(self, vcpu: Words) -> Words:
        """An entry of a table of the VM that a vCPU runs for: of a frame of its own, or of any."""
        vm = self.runs(vcpu)
        frame = self.mixed(self.frame(self.owned(vm)), self.frame(), 0.15 + 0.3 * self.hostility * self.chance(0.5))
        frame = np.where(self.plain(vm), self.below(10), frame) & np.uint64((1 << 34) - 1)
        entry = frame << np.uint64(FRAME_SHIFT) | self.each(FLAGS)
        for probability, bits in ((0.06, 0x80), (0.02, 1 << 63), (0.01, 1 << 50), (0.01, 0x1000), (0.02, 1)):
            entry = np.where(self.some(probability), entry ^ np.uint64(bits), entry)
        large = self.each([0, 0, 0, 0x200000, 0x1000]) | self.each(FLAGS) | np.uint64(0x80)
        return self.mixed(entry, large, 0.2 if self.is_large else 0.06)

    def address(self, above: Words | None = None) -> Words:
        """A virtual address of few indices, of which those above the lowest may be given."""
        address = self.each([0, 0, 8, 0xFF8]) | self.each(self._pages) << np.uint64(FRAME_SHIFT)
        address |= self.above() if above is None else above
        bits = FRAME_SHIFT + 9 * self.levels
        high = address >> np.uint64(bits - 1) & np.uint64(1) != 0
        return np.where(high, address | np.uint64((1 << 64) - (1 << bits)), address)

    def above(self) -> Words:
        """The indices of an address above the lowest, most often zeros."""
        found = np.zeros(self.lanes, np.uint64)
        for level in range(1, self.levels):
            found |= self.each((0, 1, 2, 511) if level < 3 else (0, 0, 511)) << np.uint64(FRAME_SHIFT + 9 * level)
        return np.where(self.some(0.15), found, np.uint64(0))

    def hot_address(self) -> Words:
        """An address that is accessed often, or sometimes another."""
        chosen = self.hot[self._everyone, self.rng.integers(0, HOT_ADDRESSES, self.lanes)]
        found = self.mixed(chosen, self.address(), 0.06)
        wrong = found ^ self.each([1 << 47, 1 << 48, 1 << 63, 4])
        return self.mixed(found, wrong, 0.01)

    def user(self) -> Words:
        return self.each([0, 0, 1])

    def used_frame(self) -> Words:
        """A frame that a vCPU has cached, or that its walk is at; any VM's where there is none."""
        batch, vcpu = self.systems.batch, self.vcpu().astype(np.int64)
        slots = self.rng.integers(0, TLB_SLOTS, self.lanes)
        tables = self.rng.integers(0, CACHE_SLOTS, self.lanes)
        pages, caches, walks = batch.tlb.columns, batch.caches.columns, batch.walks
        found = self.frame(self.owned())
        kind = self.rng.integers(0, 4, self.lanes)
        for number, live, frame in (
            (0, pages["is_live"][self._everyone, vcpu, slots], pages["frame"][self._everyone, vcpu, slots]),
            (1, caches["is_live"][self._everyone, vcpu, tables], caches["frame"][self._everyone, vcpu, tables]),
            (2, walks["is_live"][self._everyone, vcpu], walks["frame"][self._everyone, vcpu]),
        ):
            found = np.where((kind == number) & live, frame, found)
        if self.is_large:
            # Another frame of a large page than its first.
            found = np.where(self.some(0.4) & (found < 512), self.each([1, 3, 5, 100, 511]), found)
        return found

    def operand(self, kind: OperandKind, vcpu: Words) -> Words:
        """An operand of some kind, most often one that is there."""
        draw: dict[OperandKind, Callable[[], Words]] = {
            OperandKind.VCPU: lambda: vcpu,
            OperandKind.VM: lambda: self.each([2, 2, 3, 3, 4, 5]),
            OperandKind.FRAME: self.frame,
            OperandKind.GUEST_FRAME: lambda: self.mixed(self.below(24), self.each([1 << 33, 1 << 34]), 0.03),
            OperandKind.INDEX: lambda: self.each(INDICES),
            OperandKind.WORD: lambda: self.entry(vcpu),
            OperandKind.ADDRESS: self.hot_address,
            OperandKind.ACCESS: lambda: self.below(3),
            OperandKind.USER: self.user,
            OperandKind.ASID: lambda: self.each([1, 1, 2, 3]),
            OperandKind.SLOT: lambda: self.below(TLB_SLOTS + CACHE_SLOTS),
            OperandKind.SWAP_SLOT: lambda: self.below(SWAP_SLOTS),
            OperandKind.DEVICE: lambda: self.below(max(self.size.devices, 1)),
            OperandKind.MODE: lambda: self.each([Mode.TPT, Mode.TPT, Mode.NESTED]),
            OperandKind.LEVELS: lambda: self.each([4, 4, 5]),
        }
        return draw[kind]()

    # -- doing -------------------------------------------------------------------------------------------------------------

    def do(self, name: str, *operands: Words, share: float = 1.0) -> None:
        """An operation, in so many of the lanes."""
        self.systems.step(name, operands, None if share == 1.0 else self.some(share))

    def any_operation(self) -> None:
        """Some operation, each in turn, with drawn operands; one of them now and then odd."""
        names = list(OPERATIONS)
        name = names[self._turn % len(names)]
        self._turn += 1
        vcpu = self.vcpu()
        operands = [self.operand(kind, vcpu) for _name, kind in OPERATIONS[name].operands]
        if name in ("run", "set_cr3"):
            operands[-1] = self.mixed(self.frame(self.owned(self.runs(vcpu))), self.frame(), 0.3) << np.uint64(FRAME_SHIFT)
        # A program can't name a vCPU or a device that isn't there.
        can_be_odd = [
            place
            for place, (_name, kind) in enumerate(OPERATIONS[name].operands)
            if kind is not OperandKind.DEVICE and (kind is not OperandKind.VCPU or name in ("run", "acknowledge"))
        ]
        if can_be_odd and self.chance(0.3):
            place = self.one(can_be_odd)
            operands[place] = self.mixed(operands[place], self.each(ODD_NUMBERS), 0.2)
        self.do(name, *operands)

    def accesses(self) -> None:
        """Loads, stores and fetches, most of them of what is accessed often; a guest that meets a fault stops."""
        going, name = np.ones(self.lanes, np.bool_), ""
        vcpu, place = self.mixed(self.busy, self.vcpu(), 0.1), self.below(HOT_ADDRESSES).astype(np.int64)
        for _ in range(ACCESSES):
            if not name or self.chance(0.08):
                name = self.one(("load", "load", "load", "store", "store", "fetch"))
            if self.chance(0.05):
                place = self.below(HOT_ADDRESSES).astype(np.int64)
            address = self.hot[self._everyone, place] if self.chance(0.93) else self.hot_address()
            operands = [vcpu, address, self.user()]
            if name == "store":
                operands.insert(2, self.mixed(self.below(1 << 16), self.entry(vcpu), 0.3))
            self.systems.step(name, tuple(operands), going)
            going &= ~self.systems.faulted | self.some(0.1)

    def tables(self) -> None:
        """Entries of tables, most of the own frames, and an access through them."""
        for _ in range(2):
            vcpu = self.vcpu()
            own = self.owned(self.runs(vcpu))
            frame = self.mixed(self.frame(own), self.frame(), 0.05 + 0.1 * self.hostility)
            table = self.systems.batch.vcpus["cr3"][self._everyone, vcpu.astype(np.int64)] >> np.uint64(FRAME_SHIFT)
            frame = self.mixed(frame, table + self.below(self.levels), 0.1)
            self.do("write_pte", vcpu, frame, self.each(INDICES), self.entry(vcpu))
        self.do("invlpg", vcpu, self.hot_address(), share=0.7)
        self.do("load", vcpu, self.hot_address(), self.user())

    def find_addresses(self) -> None:
        """Other addresses are accessed often from now on, most of them of one table."""
        above = self.above()
        for place in range(HOT_ADDRESSES):
            self.hot[:, place] = self.address(above)

    def mend(self) -> None:
        """A well-behaved guest makes tables for what is accessed often, in frames of its own."""
        vcpu, rw, levels = self.vcpu(), np.uint64(0x67), self.levels
        vm = self.runs(vcpu)
        self.busy = vcpu
        if self.chance(0.5):
            self.find_addresses()
        own = self.own_frames(vm, levels + HOT_ADDRESSES)
        shift = np.uint64(FRAME_SHIFT)
        for level in range(levels, 1, -1):
            index = self.hot[:, 0] >> np.uint64(FRAME_SHIFT + 9 * (level - 1)) & np.uint64(511)
            self.do("write_pte", vcpu, own[levels - level], index, own[levels - level + 1] << shift | rw, share=0.97)
        for place in range(HOT_ADDRESSES):
            index = self.hot[:, place] >> shift & np.uint64(511)
            flags = self.mixed(np.full(self.lanes, rw), self.each(FLAGS), 0.1)
            self.do("write_pte", vcpu, own[levels - 1], index, own[levels + place] << shift | flags, share=0.97)
        self.do("set_cr3", vcpu, own[0] << shift)
        self.roots[self._everyone, vm.astype(np.int64)] = own[0]
        self.accesses()

    def own_frames(self, vm: Words, count: int) -> list[Words]:
        """So many frames of VMs, as their tables name them, over and over where there are fewer; 0 where there is none."""
        mappings = self.systems.batch.p2m
        owners, guest_frames = self.systems.batch.mapping_keys(mappings.numbers)
        scores = self.rng.random(owners.shape, np.float32) * (mappings["is_mapped"] & (owners == vm[:, None]))
        # A few of a large VM's are enough.
        best = np.argsort(-scores[:, : 2 * SMALL_FRAMES], axis=1)
        names = np.where(self.plain(vm)[:, None], guest_frames, mappings["frame"])
        there = np.clip((scores > 0).sum(axis=1), 1, best.shape[1])
        return [names[self._everyone, best[self._everyone, place % there]] for place in range(count)]

    def plain(self, vm: Words) -> Flags:
        """Whether VMs run plain guests."""
        found: Flags = self.systems.batch.vms["mode"][self._everyone, vm.astype(np.int64)] == Mode.NESTED
        return found

    def forget(self) -> None:
        """A guest forgets an address, or everything, or loads another root; a processor evicts."""
        vcpu = self.vcpu()
        kind = int(self.rng.integers(4))
        if kind == 0:
            self.do("invlpg", vcpu, self.hot_address())
        elif kind == 1:
            self.do("flush", vcpu, share=0.5)
        elif kind == 2:
            root = self.mixed(self.frame(self.owned(self.runs(vcpu))), self.frame(), 0.3)
            same = self.systems.batch.vcpus["cr3"][self._everyone, vcpu.astype(np.int64)]
            self.do("set_cr3", vcpu, self.mixed(same, root << np.uint64(FRAME_SHIFT), 0.5))
        else:
            self.do("evict", vcpu, self.below(TLB_SLOTS + CACHE_SLOTS))
        self.accesses()

    def walk(self) -> None:
        """A walk, step by step, into which others come."""
        vcpu = self.vcpu()
        self.do("begin_walk", vcpu, self.hot_address(), self.below(3), self.user())
        steps = int(self.rng.integers(2, 12))
        comes = int(self.rng.integers(steps + 4))
        for step in range(steps):
            if step == comes:
                self.interrupt(vcpu)
            self.do("step_walk", vcpu)

    def interrupt(self, vcpu: Words) -> None:
        """What comes into a walk: the frame that it needs is taken and perhaps acknowledged, or the vCPU gets other work."""
        walks, at = self.systems.batch.walks, (self._everyone, vcpu.astype(np.int64))
        kind = int(self.rng.integers(4))
        if kind <= 1:
            page = self.some(0.5) & (walks["leaf_level"][at] != 0)
            frame = np.where(page, walks["leaf_frame"][at], walks["frame"][at])
            self.do("reclaim", frame, share=0.8)
            self.do("acknowledge", vcpu, frame, share=0.6)
        elif kind == 2:
            self.run(vcpu)
        else:
            self.do("write_pte", vcpu, walks["frame"][at], self.each(INDICES), self.entry(vcpu))

    def run(self, vcpu: Words | None = None) -> None:
        """A vCPU gets another VM, or another ASID, or goes on."""
        vcpu = self.vcpu() if vcpu is None else vcpu
        self.busy = vcpu
        vm = self.mixed(self.each([2, 3]), self.runs(vcpu), 0.3)
        root = self.mixed(self.roots[self._everyone, vm.astype(np.int64)], self.frame(self.owned(vm), odd=0.01), 0.2)
        self.do("run", vcpu, vm, self.each([1, 1, 1, 2, 3]), root << np.uint64(FRAME_SHIFT), share=0.7)

    def switch(self) -> None:
        """A vCPU gets other work, and does it."""
        self.run()
        self.accesses()

    def take(self) -> Words:
        """A frame is taken from its VM, and vCPUs acknowledge, most of them, while guests go on."""
        frame = self.mixed(self.frame(self.owned()), self.used_frame(), 0.7)
        self.do("reclaim", frame)
        for vcpu in self.rng.permutation(self.size.vcpus).tolist():
            if self.chance(0.3):
                self.do("load", self.vcpu(), self.hot_address(), self.user())
            self.do("acknowledge", np.full(self.lanes, vcpu, np.uint64), frame, share=0.95)
        return frame

    def reuse(self) -> None:
        """A frame is taken, cleared, and given to a VM."""
        frame = self.take()
        if self.chance(0.8):
            self.do("scrub", frame, share=0.9)
        self.do("assign", frame, self.each([2, 3]), self.below(28))

    def give(self) -> None:
        """A frame of nobody's is cleared and given to a VM."""
        frame = self.mixed(self.frame(self.of_nobody()), self.frame(), 0.15)
        self.do("scrub", frame, share=0.7)
        self.do("assign", frame, self.each([2, 3, 3]), self.below(28))
        if self.chance(0.3):
            other = self.frame(self.of_nobody())
            self.do("claim", other)
            self.do("release", self.mixed(other, self.frame(), 0.5))

    def move(self) -> None:
        """A frame's content goes to another one, or away and back."""
        frame = self.take()
        target, slot = self.frame(self.of_nobody()), self.below(SWAP_SLOTS)
        self.do("scrub", target, share=0.7)
        if self.chance(0.5):
            self.do("migrate", frame, target)
        else:
            self.do("swap_out", frame, slot)
            self.do("swap_in", target, slot, share=0.9)

    def device(self) -> None:
        """A device accesses frames, among them one that is taken, or gets another VM in between."""
        if not self.size.devices:
            return
        device = self.below(self.size.devices)
        if self.chance(0.8):
            self.do("attach", device, self.each([2, 3]), share=0.7)
        vm = self.systems.batch.devices[self._everyone, device.astype(np.int64)]
        frame = self.mixed(self.frame(self.owned(vm)), self.frame(), 0.2)
        self.do("dma_write", device, frame, self.each(INDICES), self.entry(self.vcpu()))
        if self.chance(0.7):
            self.do("reclaim", frame, share=0.7)
        self.do("dma_read", device, frame, self.each(INDICES))

    def large(self) -> None:
        """Frames are put under a large tag, or it is split; a large page is accessed, and one of its frames taken."""
        if not self.is_large:
            return
        vcpu, zero = self.below(2), np.zeros(self.lanes, np.uint64)
        self.do("merge", zero, share=0.7)
        if self.chance(0.7):
            # The table of level 2 of a mapped VM, whose entry 1 becomes a large page.
            index = np.full(self.lanes, 1, np.uint64)
            entry = self.each([0xE7, 0xE7, 0x1E7, 0x87])
            self.do("write_pte", vcpu, np.full(self.lanes, self.levels - 2, np.uint64), index, entry)
            self.hot[:, 0] = self.each([0x200000, 0x201000, 0x3FF008])
            self.do("load", vcpu, self.hot[:, 0], zero)
            self.do("begin_walk", self.below(2), self.hot[:, 0], self.below(2), zero, share=0.5)
        self.do("split", self.mixed(zero, self.frame(), 0.1), share=0.6)
        if self.chance(0.6):
            self.do("store", vcpu, self.hot[:, 0], self.below(100), zero)
            self.take()

    def moves(self) -> list[tuple[Callable[[], None], float]]:
        """All kinds of moves, and how often each is made beyond once a unit."""
        return [
            (self.accesses, 8),
            (self.mend, 5),
            (self.tables, 2 + 2 * self.hostility),
            (self.walk, 4),
            (self.forget, 1.5),
            (self.switch, 1.5),
            (self.reuse, 1),
            (self.give, 1),
            (self.move, 1),
            (self.device, 1),
            (self.any_operation, 1 + 3 * self.hostility),
            (self.large, 4 * self.is_large),
        ]

    def make(self, count: int) -> None:
        """Make so many moves, or as many as it takes until all lanes differ."""
        make(self.order(self.moves(), count), self.systems.alive.any)


def play(
    seed: Sequence[int],
    lanes: int,
    moves: int,
    policy: TagPolicy = INTENDED,
    *,
    is_large: bool = False,
    turn: int = 0,
    **options: Any,
) -> tuple[Systems, Deployment]:
    """Draw and make moves, in all lanes and on both implementations."""
    rng = np.random.default_rng(seed)
    deployment = draw_deployment(rng, is_large)
    systems = Systems(deployment.size(), lanes, policy, deployment.start(), **options)
    mover = Mover(rng, systems, deployment, float(rng.choice([0.1, 0.6, 1.0])), turn)
    exercise(systems, lambda: mover.make(moves))
    return systems, deployment
