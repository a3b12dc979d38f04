"""What a campaign of all four systems draws: operands, and moves that belong together.

A move is a few steps that all lanes take, each with operands of its own. Every kind of move is made in every unit, in an
order that is drawn, and most of them again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from capvisor.campaign.draw import Draws, Move, make
from capvisor.campaign.stack_start import Deployment
from capvisor.campaign.stack_systems import Systems
from capvisor.campaign.systems import exercise
from capvisor.fastpath.stack import CVM, ORC
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.stack import TPT_LAYER, VMM_LAYER
from capvisor.spec.cvm import ARGUMENT_REGISTERS, CALLS, NUMBER_REGISTER, STORE_SLOTS
from capvisor.spec.paging import FRAME_SHIFT, FREE, WORDS_PER_FRAME, Entry
from capvisor.spec.stack import FORMAT, tag_table_frames
from capvisor.spec.stack_policy import INTENDED, StackPolicy
from capvisor.spec.tpt import SWAP_SLOTS, TLB_SLOTS
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    FIRST_SHADOW_FRAME,
    KEY_FRAME,
    RESET_BIT,
    START_BIT,
    TO_MEMORY_BIT,
    WINDOW_SHIFT,
    Register,
    Space,
    Stage,
)

DISK, NIC, BUS = 1, 2, 3
HOST_CPU = 2
"""The vCPU of the host, behind those of the two VMs."""

CODE, DATA, ADDRESS, VALUE, HELD = 28, 29, 5, 6, 7
"""Registers: a library's pair, an address, a number, what was granted."""

READ_DMA, WRITE_DMA, WRITE_PIO, FLUSH = 0xC8, 0xCA, 0x30, 0xE7
RW = int(Entry.P | Entry.RW | Entry.US)
GRANULE, PAGE = FORMAT.capability_bytes, 1 << FRAME_SHIFT
LOCATIONS = (0x300, 0x310, 0x320, 0x400)
"""Where a cVM puts what it is granted."""

ODD_NUMBERS = (0, 1, 2, 3, 7, 8, 512, 1 << 20, 1 << 40, (1 << 64) - 1)
_ONE = np.uint64(1)


class Mover(Draws):
    """Makes moves of VMs and their guests, of the host, devices, extensions, and of the VMM."""

    def __init__(self, rng: np.random.Generator, systems: Systems) -> None:
        super().__init__(rng, systems.lanes, 1.0)
        self.systems, self.batch = systems, systems.batch
        layout = systems.deployment.layout()
        self.placed = list(layout.tpt.placed.values())
        self.cvm_pages = layout.mapped[CVM].frames
        self.orc_pages = layout.mapped[ORC].frames
        entries = layout.mapped[CVM].entries[-len(self.cvm_pages) :]
        self.entry_table, self.first_entry = entries[0][:2]
        self.base, self.regions = layout.memory(CVM)[0], layout.part(CVM)
        self.orc_base = layout.memory(ORC)[0]
        first, last = layout.vmm.region
        self.region, self.frames = (first, last), layout.vmm.frames
        self.free = [frame for frame in range(first) if not any(one.first <= frame <= one.last for one in self.placed)]
        self.hidden = [first + KEY_FRAME, first + 1, *range(first + FIRST_SHADOW_FRAME, first + 8), last - 1, last]
        tables = {entry >> FRAME_SHIFT for _table, _index, entry in layout.mapped[CVM].entries} | {
            entry >> FRAME_SHIFT for _table, _index, entry in layout.mapped[ORC].entries
        }
        one, other = self.placed
        self.plain = [frame for frame in range(one.first + 1, one.last + 1) if frame not in tables]
        """Frames of the first VM that its kernel has no table or monitor in."""
        self.others = list(range(other.first, other.last + 1))
        self.windows = {device: each.windows for device, each in enumerate(layout.vmm.devices.values(), 1)}
        self.tables = [*range(first - sum(tag_table_frames(self.frames)), first)]
        """Where the tables of tags are if they aren't in the region."""
        self.key = 0

    # -- drawing -----------------------------------------------------------------------------------------------------------

    def word(self) -> Words:
        """What is written."""
        return self.mixed(self.below(1 << 20), self.each([0, 1 << 16, 0x11D0_0000_0001_8004]), 0.1)

    def page(self) -> Words:
        """Where a page of the cVMs' memory is, or was last."""
        location = self.batch.pages[CVM].location
        found = location[self._everyone, self.rng.integers(0, location.shape[1], self.lanes)]
        return np.maximum(found, 0).astype(np.uint64)

    def frame(self) -> Words:
        """A frame: of a VM, of a monitor, free, of the region."""
        found = self.mixed(self.each(self.plain + self.others), self.each(self.free), 0.35)
        found = self.mixed(found, self.page(), 0.2)
        found = self.mixed(found, self.each(self.orc_pages), 0.1)
        return self.mixed(found, self.each(self.hidden), 0.05)

    def free_frame(self) -> Words:
        """A frame that is nobody's now, most often."""
        owners = self.batch.tpt.tags[:, : self.region[0]] != FREE
        clean = self.batch.tpt.frames["is_clean"][:, : self.region[0]]
        order = self.rng.random(owners.shape, np.float32) + owners * 4 + ~clean
        order[:, :2] += 2
        found: Words = order.argmin(axis=1).astype(np.uint64)
        return found

    def block(self, frame: Words) -> Words:
        """A block of a frame."""
        return frame << np.uint64(BLOCK_SHIFT) | self.each([0, 0, 1, 2, 5, 7])

    # -- doing -------------------------------------------------------------------------------------------------------------

    def tpt(self, name: str, *operands: Words, where: Flags | None = None) -> None:
        """An operation of translation pass-through."""
        self.systems.step(TPT_LAYER, name, operands, self.goes_on if where is None else where & self.goes_on)

    def vmm(self, name: str, *operands: Words, where: Flags | None = None) -> None:
        """An operation of the VMM's machine."""
        self.systems.step(VMM_LAYER, name, operands, self.goes_on if where is None else where & self.goes_on)

    @property
    def goes_on(self) -> Flags:
        """Lanes in which something may happen yet, and a few others."""
        stopped = self.batch.is_stopped(self._everyone) & (self.batch.vmm.vmm["stage"] != Stage.STOPPED)
        found: Flags = ~stopped | self.some(0.1)
        return found

    def do(self, layer: str, thread: int, name: str, *operands: int | Words, where: Flags | None = None) -> None:
        """One instruction of a thread."""
        lanes = self.goes_on if where is None else where & self.goes_on
        self.systems.instruction(layer, thread, name, operands, lanes)

    # -- cVMs --------------------------------------------------------------------------------------------------------------

    def region_of(self, thread: int) -> Words:
        """Where the region of the cVM that a thread runs for begins."""
        return self.same(self.base + thread * PAGE)

    def place(self, thread: int) -> Words:
        """An address that a cVM may access, or the other's; a multiple of 8."""
        offset = self.each([0, 8, 0x100, 0x108, 0x200, 0x208, 0x800, *LOCATIONS])
        return self.region_of(thread) + self.mixed(offset, offset ^ np.uint64(PAGE), 0.1 if not thread else 0.05)

    def access(self) -> None:
        """A cVM loads and stores words and capabilities."""
        thread = self.one([0, 1])
        self.do(CVM, thread, "li", ADDRESS, self.place(thread))
        if self.chance(0.7):
            self.do(CVM, thread, "li", VALUE, self.word())
            self.do(CVM, thread, "sd.ddc", VALUE, ADDRESS)
        self.do(CVM, thread, "ld.ddc", VALUE, ADDRESS)
        if self.chance(0.4):
            self.do(CVM, thread, "li", ADDRESS, self.region_of(thread) + self.each([0x100, 0x200, *LOCATIONS]))
            self.do(CVM, thread, self.one(["lc.ddc", "sc.ddc", "lc.ddc"]), HELD, ADDRESS)

    def enter(self, thread: int, name: str, *arguments: Words) -> None:
        """The first part of a call, as a library makes it."""
        for register, argument in zip(ARGUMENT_REGISTERS, arguments, strict=False):
            self.do(CVM, thread, "li", register, argument)
        self.do(CVM, thread, "li", NUMBER_REGISTER, self.same(CALLS[name].number))
        top = self.region_of(thread) + np.uint64(PAGE)
        machine, live = self.systems.cvms.harts, self.systems.able(CVM, thread)
        held = (
            machine.tags[CODE, thread * self.lanes + self._everyone]
            & machine.tags[DATA, thread * self.lanes + self._everyone]
        )
        missing = live & ~held
        for register, slot in ((CODE, "call code"), (DATA, "call data")):
            back = (len(STORE_SLOTS) - STORE_SLOTS.index(slot)) * GRANULE
            self.do(CVM, thread, "li", register, top - np.uint64(back), where=missing)
            self.do(CVM, thread, "lc.ddc", register, register, where=missing)
        self.do(CVM, thread, "cinvoke", CODE, DATA)

    def leave(self, thread: int) -> None:
        """The second part."""
        self.systems.leave(thread, self.goes_on)

    def grant(self) -> None:
        """A cVM lends memory to the other one, which keeps it in memory and in a register; then it takes it back."""
        thread = self.one([0, 1])
        other = 1 - thread
        self.key += 1
        key, location = self.same(self.key % 7), self.each(LOCATIONS)
        self.enter(thread, "file_advertise", key, self.each([0x100, 0x200, 0x800]), self.each([16, 64, 256]))
        self.leave(thread)
        self.enter(other, "file_probe", key, location)
        self.leave(other)
        self.do(CVM, other, "li", ADDRESS, self.region_of(other) + location)
        self.do(CVM, other, "lc.ddc", HELD, ADDRESS)
        self.use(other)
        if self.chance(0.3):
            self.word_of_device()
        self.enter(thread, "file_revoke", key)
        if self.chance(0.5):
            self.take_away(self.some(0.5))
        self.leave(thread)
        self.use(other)
        self.mend()

    def use(self, thread: int) -> None:
        """What was granted is used."""
        self.do(CVM, thread, self.one(["ld.cap", "sd.cap", "ld.cap"]), VALUE, HELD)

    # -- shared objects ----------------------------------------------------------------------------------------------------

    def tenant(self) -> None:
        """A tenant works on its memory, gets slots and has images verified."""
        self.do(ORC, 0, "li", ADDRESS, self.same(self.orc_base) + self.each([0, 8, 0x100, 0x408, 0x800, 0x810]))
        self.do(ORC, 0, "li", VALUE, self.word())
        self.do(ORC, 0, "csetaddr", HELD, 2, ADDRESS)
        self.do(ORC, 0, self.one(["csd", "cld", "csd"]), VALUE, 0, HELD)
        slot = self.each([2, 2, 3, 0])
        name = self.one(["allocate", "submit", "withdraw", "publish", "collect"])
        operands = {"submit": (slot, self.each([64, 32]), self.each([16, 0]), self.each([32, 16]))}.get(name, (slot,))
        thread = None if name == "collect" else 0
        self.systems.operation(thread, name, operands, self.goes_on)

    # -- kernels of VMs ----------------------------------------------------------------------------------------------------

    def kernel(self) -> None:
        """A VM's kernel writes to its frames, and accesses what it has mapped; now and then others' frames."""
        cpu = self.one([0, 1])
        own = self.each(self.plain if cpu == 0 else self.others[-2:])
        frame = self.mixed(own, self.frame(), 0.15)
        if cpu == 0:
            frame = self.mixed(frame, self.each(self.orc_pages), 0.08)
            frame = self.mixed(frame, self.page(), 0.1)
        # Of the monitors' frames, what isn't a cVM's store of capabilities.
        self.tpt("write_pte", self.same(cpu), frame, self.below(256), self.word())
        address = self.each([0, 8, 0x1000, 0x1008]) if cpu else self.same(self.base) + self.below(96) * np.uint64(8)
        if self.chance(0.6):
            self.tpt("store", self.same(cpu), address, self.word(), self.same(0))
        self.tpt("load", self.same(cpu), address, self.below(2))

    def map_elsewhere(self) -> None:
        """A VM's kernel maps a page of its monitor's memory to another frame, and goes on as if it hadn't."""
        number = int(self.rng.integers(len(self.cvm_pages)))
        some = self.some(0.6)
        other = self.mixed(self.each(self.plain), self.page(), 0.6)
        other = self.mixed(other, self.each(self.orc_pages), 0.1)
        self._map_page(self.same(number), other, some)
        self.access()
        self.mend()

    def _map_page(self, number: Words, frame: Words, where: Flags) -> None:
        entry = frame << np.uint64(FRAME_SHIFT) | np.uint64(RW)
        table, index = self.same(self.entry_table), number + np.uint64(self.first_entry)
        self.tpt("write_pte", self.same(0), table, index, entry, where=where)
        self.tpt("invlpg", self.same(0), np.uint64(self.base) + (number << np.uint64(FRAME_SHIFT)), where=where)

    def mend(self) -> None:
        """What is put away comes back, and pages of the cVMs' memory are mapped to where their content is."""
        swaps = self.batch.tpt.swaps["is_live"]
        is_away: Flags = np.logical_or.reduce(swaps, axis=1)
        if is_away.any():
            self.tpt("swap_in", self.free_frame(), swaps.argmax(axis=1).astype(np.uint64), where=is_away)
        pages = self.batch.pages[CVM]
        table = self.batch.tpt.words[:, self.entry_table]
        for number in range(pages.count):
            at = self.batch.contents == pages.bound[:, number][:, None]
            lost: Flags = at.any(axis=1) & (pages.bound[:, number] != 0)
            frame = at.argmax(axis=1).astype(np.uint64)
            lost &= table[:, self.first_entry + number] >> np.uint64(FRAME_SHIFT) != frame
            lost &= self.some(0.95)
            if lost.any():
                self._map_page(self.same(number), frame, lost)

    # -- the host ----------------------------------------------------------------------------------------------------------

    def take_away(self, where: Flags) -> Words:
        """The host takes a frame of the cVMs' memory, and processors forget it; the frame."""
        frame = self.page()
        self.tpt("reclaim", frame, where=where)
        for cpu in (0, 1):
            self.tpt("acknowledge", self.same(cpu), frame, where=where & self.some(0.98))
        if self.chance(0.4):
            self.access()
        if self.chance(0.5):
            self.tpt("migrate", frame, self.free_frame(), where=where)
        else:
            self.tpt("swap_out", frame, self.below(SWAP_SLOTS), where=where)
        return frame

    def move(self) -> None:
        """Content of the cVMs' memory moves, and the frame that it leaves is cleared or given away."""
        where = self.some(0.6)
        frame = self.take_away(where)
        if self.chance(0.5):
            self.access()
        self.mend()
        self.tpt("scrub", frame, where=where & self.some(0.8))
        if self.chance(0.4):
            self.give(frame, where)
        self.access()

    def give(self, frame: Words, where: Flags) -> None:
        """The host gives a frame to a VM, whose kernel uses it."""
        vm = self.each([2, 3])
        self.tpt("assign", frame, vm, self.each([20, 21, 22, 23, 24]), where=where)
        self.tpt("write_pte", vm - np.uint64(2), frame, self.below(WORDS_PER_FRAME), self.word(), where=where)

    def hand_round(self) -> None:
        """Frames are cleared, claimed, released, given away and taken: those of nobody's, of the region, of tables."""
        frame = self.mixed(self.free_frame(), self.each(self.hidden), 0.15)
        self.tpt("scrub", frame, where=self.some(0.5))
        if self.chance(0.5):
            self.give(frame, self.some(0.5))
            self.tpt("reclaim", frame, where=self.some(0.5))
        else:
            self.tpt("claim", frame, where=self.some(0.7))
            self.vmm("map", self.same(HOST_CPU), self.same(0), frame, self.same(0), self.same(1))
            self.vmm("store", self.same(HOST_CPU), self.same(0), self.below(8), self.word())
            self.tpt("release", frame, where=self.some(0.6))
        for cpu in (0, 1):
            self.tpt("acknowledge", self.same(cpu), frame)

    def table_of_tags(self) -> None:
        """Where the tables of tags would be outside the region: a VM gets a frame there and writes to it."""
        frame, vm = self.each(self.tables), self.each([2, 3])
        where = self.some(0.3)
        self.tpt("assign", frame, vm, self.each([25, 26]), where=where)
        page = self.page()
        tags = page * np.uint64(4) + self.each([0, 1, 2])
        index = self.mixed(tags, np.minimum(page, np.uint64(WORDS_PER_FRAME - 1)), 0.3)
        value = self.mixed(self.each([1 << 16, 3 << 40]), self.each([0, 2, 3]), 0.3)
        self.tpt("write_pte", vm - np.uint64(2), frame, index, value, where=where)

    def guest(self) -> None:
        """The kernel of the VMM's guest, and extensions, access memory anywhere."""
        slot, frame = self.below(3), self.frame()
        cpu = self.mixed(self.same(HOST_CPU), self.below(3), 0.05)
        self.vmm("map", cpu, slot, frame, self.same(0), self.same(1))
        name = self.one(["store", "store", "load"])
        self.vmm(name, cpu, slot, self.below(8), *([self.word()] if name == "store" else []))
        address = self.block(self.frame())
        if self.chance(0.5):
            self.vmm("extension_write", self.same(1), address, self.word(), where=self.some(0.5))
        else:
            self.vmm("extension_read", self.same(1), address, where=self.some(0.5))

    # -- devices -----------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """The host gives devices away."""
        self.tpt("attach", self.each([DISK, NIC, NIC, BUS]), self.each([2, 3]), where=self.some(0.4))

    def word_of_device(self) -> None:
        """Devices access words of frames: of their VM's, and of others'."""
        device = self.each([NIC, NIC, NIC, BUS, DISK])
        frame = self.mixed(self.frame(), self.page(), 0.4)
        index = self.mixed(self.below(224), self.each([504, 505, 508, 510]), 0.02)
        index = self.mixed(index, self.each([at // 8 for at in LOCATIONS]), 0.4)
        self.tpt("dma_write", device, frame, index, self.word())
        if self.chance(0.3):
            self.tpt("dma_read", device, frame, index)

    def block_of_device(self) -> None:
        """Devices access blocks."""
        device, address = self.each([DISK, NIC, BUS, BUS]), self.block(self.frame())
        # A block that is written clears the words behind, and the store of capabilities lies in the last one.
        address &= ~self.each([7, 7, 6]) | self.below(3)
        self.vmm("dma_write", device, address, self.word())
        if self.chance(0.3):
            self.vmm("dma_read", device, address)

    def out(self, cpu: Words, device: int, register: int, value: Words, where: Flags | None = None) -> None:
        """A register of a device is written."""
        number = self.windows[device][Space.PORT] << WINDOW_SHIFT | register
        self.vmm("output", cpu, self.same(Space.PORT), self.same(number), value, where=where)

    def disk(self) -> None:
        """A driver, of the VM's that has the disk, moves a block; others come in between."""
        owner = self.batch.tpt.devices[:, DISK]
        cpu = np.where(owner == FREE, np.uint64(HOST_CPU), owner - np.uint64(2))
        opcode = self.one([READ_DMA, READ_DMA, READ_DMA, WRITE_DMA, self.one([WRITE_PIO, FLUSH])])
        table = np.where(cpu == 0, self.each(self.plain), self.each(self.others[-2:]))
        buffer = np.where(cpu == 0, self.each(self.plain), self.each(self.others[-2:]))
        buffer = self.mixed(buffer, self.frame(), 0.3)
        described = self.block(buffer) | np.uint64(1 << DESCRIPTOR_COUNT_SHIFT | DESCRIPTOR_END)
        is_vms = cpu != HOST_CPU
        self.tpt("write_pte", cpu, table, self.same(0), described, where=is_vms)
        for register, value in (
            (Register.COUNT, self.same(1)),
            (Register.LBA, self.below(4)),
            (Register.DESCRIPTORS, table << np.uint64(BLOCK_SHIFT)),
            (Register.COMMAND, self.same(opcode)),
        ):
            self.out(self.mixed(cpu, self.below(3), 0.02), DISK, register, value)
        changes_hands = self.one([0, 1, 1, 1, 2, 3, None])
        direction = TO_MEMORY_BIT if opcode == READ_DMA else 0
        if changes_hands == 0:
            self._change_hands()
        self.out(cpu, DISK, Register.START, self.same(START_BIT | direction))
        for number in range(4):
            if changes_hands == number + 1:
                self._change_hands()
            self.vmm(("mediate", "transfer")[number % 2], self.same(DISK))
            if number == 1:
                status = self.same(self.windows[DISK][Space.PORT] << WINDOW_SHIFT | Register.MASTER_STATUS)
                self.vmm("input", cpu, self.same(Space.PORT), status)
        self.out(cpu, DISK, Register.CONTROL, self.same(RESET_BIT), where=self.some(0.7))

    def _change_hands(self) -> None:
        """The host gives the disk away."""
        self.tpt("attach", self.same(DISK), self.each([2, 3]), where=self.some(0.3))

    def meddle(self) -> None:
        """Registers are accessed by whoever wants to."""
        device, cpu = self.one([DISK, DISK, NIC]), self.below(3)
        number = self.windows[device][Space.PORT] << WINDOW_SHIFT | self.one(list(Register))
        self.vmm("input", cpu, self.same(Space.PORT), self.same(number))
        self.out(cpu, device, self.one([Register.LBA, Register.COUNT]), self.below(8))

    # -- moving the machine ------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """The machine's memory is sent, and then written by everybody."""
        stage = self.batch.vmm.vmm["stage"]
        self.vmm("begin_move", where=(stage == Stage.NONE) & self.some(0.7))
        for _ in range(2):
            self.vmm("send", self.mixed(self.frame(), self.page(), 0.6))
        self.one([self.access, self.kernel, self.word_of_device, self.move, self.tenant])()

    def stop(self) -> None:
        """The last round, in some lanes: whatever runs then should be stopped. It is the end of these."""
        stage = self.batch.vmm.vmm["stage"]
        some = self.some(0.3)
        self.vmm("begin_move", where=some & (stage == Stage.NONE))
        self.vmm("stop", where=some)
        self.vmm("send_next", where=some)
        self.kernel()
        self.access()
        self.tenant()

    # -- all of it ---------------------------------------------------------------------------------------------------------

    def walk(self) -> None:
        """A processor walks step by step, forgets, or runs for a VM under another ASID."""
        cpu = self.one([0, 1])
        address = self.mixed(self.same(self.base if cpu == 0 else 0), self.below(4) << np.uint64(FRAME_SHIFT), 0.3)
        self.tpt("begin_walk", self.same(cpu), address, self.below(3), self.same(0))
        for _ in range(3):
            self.tpt("step_walk", self.same(cpu))
        name, operands = self.one(
            [
                ("evict", (self.below(TLB_SLOTS),)),
                ("flush", ()),
                ("set_tag", (self.frame(),)),
                ("invlpg", (address,)),
            ]
        )
        self.tpt(name, self.same(cpu), *operands)

    def moves(self) -> list[tuple[Move, float]]:
        """All kinds of moves, and how often each is made beyond once a unit."""
        return [
            (self.access, 3),
            (self.grant, 0.8),
            (self.tenant, 1),
            (self.kernel, 9),
            (self.map_elsewhere, 1),
            (self.move, 1),
            (self.hand_round, 3),
            (self.table_of_tags, 1.5),
            (self.guest, 7),
            (self.attach, 2),
            (self.word_of_device, 6),
            (self.block_of_device, 4),
            (self.disk, 6),
            (self.meddle, 4),
            (self.send, 2),
            (self.walk, 2),
        ]

    def order_of(self, count: int) -> list[Move]:
        """So many moves; the last one stops machines."""
        return [*self.order(self.moves(), count), self.stop]


def play(seed: Sequence[int], lanes: int, moves: int, policy: StackPolicy = INTENDED, **options: Any) -> Systems:
    """Draw and make moves, in all lanes and on both implementations."""
    rng = np.random.default_rng(seed)
    systems = Systems(lanes, policy, Deployment(), sets_up=False, **options)
    acts = [systems.set_up, *Mover(rng, systems).order_of(moves)]
    exercise(systems, lambda: make(acts, lambda: bool(systems.alive.any())))
    return systems
