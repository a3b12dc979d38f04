"""What a campaign of a para-pass-through VMM draws: machines, operands, and moves that belong together.

A move is a few operations, in each lane with operands of its own; where a lane is in the middle of something, it goes on
with that. Every kind of move is made in every unit, in an order that is drawn, and most of them again.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign.draw import Draws, make
from capvisor.campaign.systems import exercise
from capvisor.campaign.vmm_systems import Size, Systems
from capvisor.dsl.parser import parse
from capvisor.dsl.vmm_layout import Layout, place
from capvisor.fastpath import storage
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.vmm import System
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    COMMANDS,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    FIRST_SHADOW_FRAME,
    HIDDEN_FRAMES,
    KEY_FRAME,
    LBA_BITS,
    LEVEL_FRAMES,
    MAPPINGS,
    OPERATIONS,
    RESET_BIT,
    SHADOW_BLOCKS,
    START_BIT,
    TO_MEMORY_BIT,
    WINDOW_FRAME_SHIFT,
    WINDOW_SHIFT,
    Actor,
    ChannelState,
    Msr,
    OperandKind,
    Phase,
    Register,
    Space,
    Stage,
)
from capvisor.spec.vmm_policy import INTENDED, VmmPolicy

ODD_NUMBERS = (0, 1, 2, 7, 8, 9, 255, 1 << 16, 1 << 20, 1 << 32, 1 << LBA_BITS, (1 << 64) - 1)
"""What an operand is now and then, whatever it is."""

SMALL_FRAMES, SMALL_REGION, LARGE_FRAMES, LARGE_REGION = 40, (14, 33), 1080, (10, 1065)
TINY_FRAMES, TINY_REGION = 24, (4, 21)
"""Frames, and the first and last one of the VMM's. The large one has more of them than a check of 2009 looks at."""

DISK, MIRRORED, NIC = 1, 2, 3
"""The devices: a disk with rules, one whose image is deployed, one that passes through."""
DEVICES = 3
SECTORS, RULED = 16, "encrypt 4..7; deny 8..9; fault 12..12; encrypt 14..15"
IMAGE_SECTORS = 5
PLACED = {DISK: (0x1F0, 0xFE00_0000 >> 3), MIRRORED: (0x170, 0xFE10_0000 >> 3), NIC: (0x300, 0xFE20_0000 >> 3)}
"""Where registers are at the start: the first port, and the first number in memory."""

OPCODES = tuple(COMMANDS)
READ_PIO, WRITE_PIO, READ_DMA, WRITE_DMA = 0x20, 0x30, 0xC8, 0xCA
DARING = 0.04
"""How often a lane does what makes the VMM stop the machine, which is the end of it, where it could."""

LONGEST = 3
"""Of most commands, how many sectors they have at most."""


class Deployment(NamedTuple):
    """A machine at the start, as a program says it."""

    frames: int
    first: int
    last: int
    """Of the region."""
    vcpus: int
    has_rules: bool
    image: int
    extensions: tuple[tuple[int, int, bool], ...]
    """First and last frame of each, and whether it may write."""
    devices: int = DEVICES

    def text(self, policy: Sequence[str] = ()) -> str:
        """The machine, in the language."""
        items = [f"frames {self.frames}", f"region {self.first}..{self.last}", f"vcpus {self.vcpus}", *policy]
        rules = RULED if self.has_rules else ""
        image = f"image {self.image}" if self.image else ""
        parts = (("storage disk", rules), ("storage other", image), ("device nic", ""))
        for number, (kind, what) in enumerate(parts[: self.devices], 1):
            port, memory = PLACED[number]
            places = f"port {port:#x}; mmio {memory:#x}"
            items.append(f"{kind} {{ {'; '.join(each for each in (places, what) if each)} }}")
        for number, (first, last, may_write) in enumerate(self.extensions, 1):
            items.append(f"extension ext{number} {{ frames {first}..{last}{'; writable 1' * may_write} }}")
        return f"system vmm {{ {'; '.join(items)} }}"

    def layout(self) -> Layout:
        """What names stand for, and where everything is."""
        return _layout(self)

    def start(self, system: System) -> None:
        """Let a machine be so."""
        place(system, self.layout())

    def size(self) -> Size:
        """How much of everything there is."""
        return Size(self.frames, (self.first, self.last + 1), self.vcpus, self.devices)


@lru_cache
def _layout(deployment: Deployment) -> Layout:
    program = parse(deployment.text() + "\n")
    assert program.system is not None
    return Layout(program.system)


def draw_deployment(rng: np.random.Generator, size: str) -> Deployment:
    """A machine of a size: `small`, `tiny` or `large`."""
    frames, (first, last) = {
        "small": (SMALL_FRAMES, SMALL_REGION),
        "tiny": (TINY_FRAMES, TINY_REGION),
        "large": (LARGE_FRAMES, LARGE_REGION),
    }[size]
    extensions = ((1, 2, True), (2, first, False), (last, frames - 1, True))
    return Deployment(frames, first, last, int(rng.choice([1, 2, 2])), True, IMAGE_SECTORS, extensions)


_NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}
MOST_OPERANDS = max(len(row.operands) for row in OPERATIONS.values())


class Turn:
    """One step in which each lane has an operation of its own, or none."""

    def __init__(self, lanes: int) -> None:
        self.numbers = np.full(lanes, -1, np.int64)
        self.operands = tuple(np.zeros(lanes, np.uint64) for _ in range(MOST_OPERANDS))

    def let(self, where: Flags, name: str, *operands: Words) -> None:
        """Let lanes that have nothing to do yet do an operation."""
        where = where & (self.numbers < 0)
        self.numbers[where] = _NUMBERS[name]
        for mine, given in zip(self.operands, operands, strict=False):
            np.copyto(mine, given, where=where)


class Mover(Draws):
    """Makes moves of well-behaved and hostile guests, devices and extensions, and of the VMM."""

    def __init__(self, rng: np.random.Generator, systems: Systems, deployment: Deployment, hostility: float) -> None:
        super().__init__(rng, systems.lanes, hostility)
        self.systems, self.size, self.deployment = systems, systems.size, deployment
        first, last, frames = deployment.first, deployment.last, deployment.frames
        self.guest_frames = [*range(min(first, 6)), *range(last + 1, min(frames, last + 5))]
        shadows = [first + FIRST_SHADOW_FRAME + place for place in range(2 * DEVICES)]
        self.hidden_frames = [first + KEY_FRAME, first + 1, *shadows, *shadows, last]
        tail = first + HIDDEN_FRAMES
        if tail <= last:
            self.hidden_frames += [tail - 1, tail, tail + 1, last, last]
        self.tables = self.guest_address()
        """Of each lane, where its driver has the table of descriptors."""

    # -- drawing -----------------------------------------------------------------------------------------------------------

    def vcpu(self) -> Words:
        return self.below(self.size.vcpus)

    def guest_frame(self) -> Words:
        """A frame of the guest's."""
        return self.each(self.guest_frames)

    def frame(self, hidden: float | None = None) -> Words:
        """A frame: one of the guest's, or one of the VMM's; now and then none that is there."""
        probability = 0.05 + 0.25 * self.hostility if hidden is None else hidden
        found = self.mixed(self.guest_frame(), self.each(self.hidden_frames), probability)
        found = self.mixed(found, self.below(self.size.frames), 0.1)
        return self.mixed(found, self.each([self.size.frames, self.size.frames + 1]), 0.02)

    def _block(self, frame: Words) -> Words:
        return frame << np.uint64(BLOCK_SHIFT) | self.each([0, 0, 1, 2, 5, 7])

    def guest_address(self) -> Words:
        """A block of the guest's."""
        return self._block(self.guest_frame())

    def address(self, hidden: float | None = None) -> Words:
        """A block: one of the guest's, or one of the VMM's; now and then none that is there."""
        return self._block(self.frame(hidden))

    def word(self) -> Words:
        """What is written."""
        return self.mixed(self.below(1 << 20), self.descriptor(), 0.2)

    def descriptor(self) -> Words:
        """A descriptor of a few blocks, most often the last one."""
        address = self.mixed(self.guest_address(), self.address(), DARING)
        count = self.each([1, 1, 2, 2, 3, 8, 0])
        end = self.each([DESCRIPTOR_END, DESCRIPTOR_END, 0])
        return address | count << np.uint64(DESCRIPTOR_COUNT_SHIFT) | end

    def disk(self) -> Words:
        """A storage device."""
        return self.each([DISK, DISK, MIRRORED])

    def lba(self, device: Words) -> Words:
        """A sector."""
        found = np.where(device == MIRRORED, self.below(IMAGE_SECTORS + 2), self.below(SECTORS))
        return self.mixed(found, self.each([(1 << LBA_BITS) - 1, (1 << LBA_BITS) - 2, 1 << LBA_BITS]), 0.01)

    def count(self) -> Words:
        """How many sectors."""
        found = self.below(LONGEST) + np.uint64(1)
        found = self.mixed(found, self.each([0, 4, SHADOW_BLOCKS]), 0.06)
        return self.mixed(found, self.each([SHADOW_BLOCKS + 1, SHADOW_BLOCKS + 4]), DARING / 2)

    def opcode(self) -> Words:
        """A command."""
        found = self.each([READ_PIO, WRITE_PIO, WRITE_PIO, READ_DMA, WRITE_DMA, WRITE_DMA, WRITE_DMA])
        found = self.mixed(found, self.each(OPCODES), 0.12 + 0.3 * self.hostility)
        return self.mixed(found, self.each([0, 1, 0xFF, 0x100 | WRITE_PIO]), 0.02)

    def space(self) -> Words:
        return self.each([Space.PORT, Space.PORT, Space.MEMORY])

    def number(self, device: Words, space: Words, register: Words) -> Words:
        """Where a register of a device is."""
        window = self.systems.batch.windows[self._everyone, device.astype(np.int64), space.astype(np.int64)]
        return window << np.uint64(WINDOW_SHIFT) | register

    def window(self, space: Words) -> Words:
        """A place for registers: of a few, or over the region, or where others are."""
        ports = np.array([[places[0] >> WINDOW_SHIFT for places in PLACED.values()]], np.uint64)
        memory = np.array([[places[1] >> WINDOW_SHIFT for places in PLACED.values()]], np.uint64)
        at = self.rng.integers(0, len(PLACED), self.lanes)
        known = np.where(space == Space.PORT, ports[0, at], memory[0, at])
        found = self.mixed(known + self.each([1, 2, 64]), known, 0.3)
        paged = self.guest_frame() << np.uint64(WINDOW_FRAME_SHIFT) | self.below(3)
        found = np.where((space == Space.MEMORY) & self.some(0.15), paged, found)
        over = self.each(self.hidden_frames) << np.uint64(WINDOW_FRAME_SHIFT) | self.below(3)
        return np.where((space == Space.MEMORY) & self.some(0.1 + 0.2 * self.hostility), over, found)

    def operand(self, kind: OperandKind) -> Words:
        """An operand of some kind, most often one that is there."""
        draw: dict[OperandKind, Callable[[], Words]] = {
            OperandKind.VCPU: self.vcpu,
            OperandKind.SLOT: lambda: self.below(4),
            OperandKind.FRAME: self.frame,
            OperandKind.LEVEL: lambda: self.each([0, 0, 1, 2]),
            OperandKind.FLAG: lambda: self.each([0, 1, 1]),
            OperandKind.OFFSET: lambda: self.below(1 << BLOCK_SHIFT),
            OperandKind.ADDRESS: self.address,
            OperandKind.WORD: self.word,
            OperandKind.DEVICE: lambda: self.below(DEVICES) + np.uint64(1),
            OperandKind.SPACE: self.space,
            OperandKind.NUMBER: lambda: self.number(self.disk(), self.same(Space.PORT), self.below(len(Register))),
            OperandKind.WINDOW: lambda: self.window(self.space()),
            OperandKind.MSR: lambda: self.each([Msr.APIC_BASE, Msr.MICROCODE, 0x10]),
            OperandKind.LBA: lambda: self.below(IMAGE_SECTORS + 1),
            OperandKind.EXTENSION: lambda: self.below(len(self.deployment.extensions)) + np.uint64(1),
        }
        return draw[kind]()

    # -- doing -------------------------------------------------------------------------------------------------------------

    def do(self, name: str, *operands: Words, share: float = 1.0, where: Flags | None = None) -> None:
        """An operation, in so many of the lanes, or of some of them; seldom where all has come to an end."""
        lanes = self.goes_on if share == 1.0 else self.goes_on & self.some(share)
        self.systems.step(name, operands, lanes if where is None else lanes & where)

    def take(self, turn: Turn) -> None:
        """A step of lanes that do different things."""
        self.systems.step_each(np.where(self.goes_on, turn.numbers, -1), turn.operands)

    @property
    def goes_on(self) -> Flags:
        """Lanes in which something may happen yet, and a few others."""
        vmm = self.systems.batch.vmm
        going: Flags = ~(vmm["is_stopped"] | (vmm["stage"] == Stage.HANDED_OVER)) | self.some(0.01)
        return going

    def out(self, device: Words, register: int, value: Words, share: float = 1.0) -> None:
        """Write a register of a device, where it is."""
        space = self.space()
        self.do("output", self.vcpu(), space, self.number(device, space, self.same(register)), value, share=share)

    def any_operation(self) -> None:
        """In each lane some operation, with drawn operands; one of them now and then odd."""
        turn, names = Turn(self.lanes), [name for name in OPERATIONS if name not in _RARE or self.chance(0.04)]
        which = self.rng.integers(0, len(names), self.lanes)
        for number, name in enumerate(names):
            mine = which == number
            if not mine.any():
                continue
            row = OPERATIONS[name]
            operands = [self.operand(kind) for _name, kind in row.operands]
            # A program can't name a vCPU, a device or an extension as who acts that isn't there.
            first = 0 if row.actor is Actor.VMM else 1
            if len(operands) > first and self.chance(0.5):
                place = int(self.rng.integers(first, len(operands)))
                operands[place] = self.mixed(operands[place], self.each(ODD_NUMBERS), 0.2)
            turn.let(mine, name, *operands)
        self.take(turn)

    # -- processors --------------------------------------------------------------------------------------------------------

    def pages(self) -> None:
        """Pages are mapped, near and over the region, and accessed."""
        vcpu, slot = self.vcpu(), self.below(4)
        frame = self.frame(0.3)
        level = self.each([0, 0, 0, 1, 1, 2])
        self.do("map", vcpu, slot, frame, level, self.each([0, 1, 1, 1]))
        for _ in range(int(self.rng.integers(1, 4))):
            self.access(vcpu, slot)

    def access(self, vcpu: Words, slot: Words) -> None:
        """A block of a page is read or written; of a large one, often one of the VMM's."""
        mappings = self.systems.batch.mappings
        place = self._everyone, vcpu.astype(np.int64), slot.astype(np.int64)
        offset = self.below(1 << BLOCK_SHIFT)
        within = self.address(0.6) - (mappings["frame"][place] << np.uint64(BLOCK_SHIFT))
        large = np.array(LEVEL_FRAMES, np.uint64)[mappings["level"][place]] << np.uint64(BLOCK_SHIFT)
        offset = np.where((mappings["level"][place] > 0) & (within < large), within, offset)
        offset = self.mixed(offset, self.each([8, 9, 1 << 40]), 0.02)
        turn, loads = Turn(self.lanes), self.some(0.4) | mappings["is_zero"][place] & self.some(1 - DARING)
        turn.let(loads, "load", vcpu, slot, offset)
        turn.let(~loads, "store", vcpu, slot, offset, self.word())
        self.take(turn)

    def use(self) -> None:
        """Pages that are mapped are accessed."""
        for _ in range(3):
            self.access(self.vcpu(), self.below(4))

    def escape(self) -> None:
        """What could end interception is tried, and then something that is intercepted."""
        turn, vcpu = Turn(self.lanes), self.vcpu()
        base = self.mixed(self.each([0xFEE00, 0xFEE00, 0x1000]), self.each(self.hidden_frames), DARING)
        value = base << np.uint64(12) | np.uint64(0x900)
        msr = self.each([Msr.APIC_BASE, Msr.MICROCODE, Msr.MICROCODE, 0x10])
        for name, operands, share in (
            ("write_msr", (vcpu, msr, value), 0.4),
            ("enter_vmx", (vcpu,), 0.4),
            ("init", (vcpu,), 0.5),
            ("sleep", (vcpu,), 1.0),
        ):
            turn.let(self.some(share), name, *operands)
        self.take(turn)
        if self.chance(0.5):
            self.pages()
        else:
            self.command()

    # -- registers ---------------------------------------------------------------------------------------------------------

    def describe(self, count: Words) -> None:
        """A driver writes its table: of a few descriptors for so many blocks, now and then of fewer, or somewhere else."""
        table = self.tables
        split = self.some(0.4) & (count > 1)
        parts = np.where(split, np.uint64(1), count)
        parts = self.mixed(parts, self.each([0, 1, 2, 3]), 0.12)
        first = self.buffer() | parts << np.uint64(DESCRIPTOR_COUNT_SHIFT)
        self.poke(table, np.where(split, first, first | np.uint64(DESCRIPTOR_END)))
        if split.any():
            rest = count - np.uint64(1)
            second = self.buffer() | rest << np.uint64(DESCRIPTOR_COUNT_SHIFT) | self.each([DESCRIPTOR_END] * 9 + [0])
            self.poke(table + np.uint64(1), second, split)

    def buffer(self) -> Words:
        """Where a driver has data."""
        return self.mixed(self.guest_address(), self.address(0.5), DARING / 2)

    def poke(self, address: Words, value: Words, lanes: Flags | None = None) -> None:
        """The guest's memory is written: by a device, or by a processor that has it mapped."""
        if self.chance(0.7):
            self.do("dma_write", self.same(NIC), address, value, where=lanes)
            return
        vcpu, slot = self.vcpu(), self.same(MAPPINGS - 1)
        self.do("map", vcpu, slot, address >> np.uint64(BLOCK_SHIFT), self.same(0), self.same(1), where=lanes)
        self.do("store", vcpu, slot, address & np.uint64((1 << BLOCK_SHIFT) - 1), value, where=lanes)

    def command(self, device: Words | None = None) -> None:
        """A driver has a storage device do something; others, or it itself, meddle."""
        device, count = self.disk() if device is None else device, self.count()
        if self.chance(0.3):
            self.tables = self.mixed(self.guest_address(), self.address(), DARING / 4)
        self.describe(count)
        skips = 0.85 if self.chance(0.3) else 1.0
        self.out(device, Register.COUNT, count, skips)
        self.out(device, Register.LBA, self.lba(device), skips)
        self.out(device, Register.DESCRIPTORS, self.tables, skips)
        if self.chance(0.15):
            self.meddle(device)
        self.out(device, Register.COMMAND, self.opcode())
        if self.chance(0.2 + 0.3 * self.hostility):
            self.meddle(device)
        self.proceed(device, int(self.rng.integers(2, 12)))

    def meddle(self, device: Words) -> None:
        """A register is written, a descriptor changed, memory accessed by a device, or its registers moved, out of turn."""
        turn = Turn(self.lanes)
        space = self.space()
        register = self.each(list(Register))
        values = {
            Register.COUNT: self.count(),
            Register.LBA: self.lba(device),
            Register.COMMAND: self.opcode(),
            Register.DESCRIPTORS: self.mixed(self.guest_address(), self.address(), DARING),
            Register.START: self.each([0, TO_MEMORY_BIT, START_BIT, START_BIT | TO_MEMORY_BIT]),
            Register.CONTROL: self.each([0, RESET_BIT, RESET_BIT]),
        }
        value = self.word()
        for each, drawn in values.items():
            value = np.where(register == np.uint64(each), drawn, value)
        vcpu, number = self.vcpu(), self.number(device, space, register)
        turn.let(self.some(0.45), "output", vcpu, space, number, value)
        turn.let(self.some(0.25), "input", vcpu, space, number)
        place = self.tables + self.each([0, 0, 1])
        other = self.mixed(self.descriptor(), self.address(1.0) | np.uint64(DESCRIPTOR_END), 2 * DARING)
        turn.let(self.some(0.4), "dma_write", self.same(NIC), place, other)
        shadow = self.each([KEY_FRAME, *(FIRST_SHADOW_FRAME + number for number in range(2 * DEVICES))])
        shadow = self._block(shadow + np.uint64(self.deployment.first))
        where = self.mixed(shadow, self.address(), 0.4)
        turn.let(self.some(0.4), "dma_write", device, where, self.word())
        turn.let(self.some(0.5), "dma_read", device, where)
        turn.let(self.some(0.9), "transfer", device)
        turn.let(self.some(1.0), "mediate", device)
        self.take(turn)

    def proceed(self, device: Words, steps: int) -> None:
        """Everybody goes on with what is under way at a device: drivers, mediator, hardware."""
        batch, at = self.systems.batch, (self._everyone, device.astype(np.int64))
        for step in range(steps):
            state = batch.channels["state"][at]
            moves, gone = batch.devices["is_started"][at], batch.deployments["phase"][at] == Phase.GONE
            gives, takes = (storage.is_at(batch, *at, kind) for kind in (storage.PIO_IN, storage.PIO_OUT))
            reads, writes = (storage.is_at(batch, *at, kind) for kind in (storage.DMA_IN, storage.DMA_OUT))
            turn, vcpu, space = Turn(self.lanes), self.vcpu(), self.space()
            data = self.number(device, space, self.same(Register.DATA))
            turn.let((state == ChannelState.PIO_OUT) | gone & takes, "output", vcpu, space, data, self.word())
            given = (state == ChannelState.PIO_IN) | (state == ChannelState.THROUGH) | gone & gives
            turn.let(given, "input", vcpu, space, data)
            starts = np.where(reads, np.uint64(TO_MEMORY_BIT), np.uint64(0)) | np.uint64(START_BIT)
            starts = np.where(self.some(0.04), starts ^ self.each([START_BIT, TO_MEMORY_BIT]), starts)
            start = self.number(device, space, self.same(Register.START))
            waits = (state == ChannelState.DMA_READY) | gone & (reads | writes) & ~moves
            turn.let(waits, "output", vcpu, space, start, starts)
            turn.let(gone & moves & self.some(0.1), "output", vcpu, space, start, starts & self.each([0, TO_MEMORY_BIT]))
            copying = (state == ChannelState.COPYING_OUT) | (state == ChannelState.COPYING_IN)
            turn.let(copying, "mediate", device)
            turn.let(moves, "transfer", device)
            status = self.number(device, space, self.same(Register.MASTER_STATUS))
            turn.let((state == ChannelState.MOVING), "input", vcpu, space, status)
            if (turn.numbers < 0).all():
                return
            self.take(turn)
            if step and self.chance(0.04 + 0.1 * self.hostility):
                self.meddle(device)

    def again(self) -> None:
        """A driver issues a command without writing its address anew."""
        device = self.disk()
        self.out(device, Register.COUNT, self.count(), 0.5)
        self.out(device, Register.COMMAND, self.opcode())
        self.proceed(device, int(self.rng.integers(2, 9)))

    def go_on(self) -> None:
        """What is under way somewhere goes on."""
        self.proceed(self.disk(), int(self.rng.integers(2, 9)))

    def look(self) -> None:
        """Registers are read."""
        device, space = self.disk(), self.space()
        for _ in range(2):
            register = self.each(list(Register))
            self.do("input", self.vcpu(), space, self.number(device, space, register))

    def windows(self) -> None:
        """Registers are moved, and what is at the new place or the old one is accessed."""
        device, space = self.mixed(self.disk(), self.same(NIC), 0.2), self.space()
        old = self.number(device, space, self.each([Register.LBA, Register.COMMAND]))
        self.do("move_window", self.vcpu(), device, space, self.window(space))
        if self.chance(0.3):
            self.near_registers(device)
        self.do("output", self.vcpu(), space, old, self.lba(device), share=0.5)
        if self.chance(0.5):
            self.command()

    def near_registers(self, device: Words) -> None:
        """Pages with registers in them are reached as memory."""
        window = self.systems.batch.windows[self._everyone, device.astype(np.int64), Space.MEMORY]
        frame, vcpu, slot, turn = window >> np.uint64(WINDOW_FRAME_SHIFT), self.vcpu(), self.below(4), Turn(self.lanes)
        there = frame < np.uint64(self.size.frames)
        self.do("map", vcpu, slot, frame, self.same(0), self.same(1), where=there)
        turn.let(there & self.some(0.3), "load", vcpu, slot, self.below(8))
        turn.let(there & self.some(0.5), "store", vcpu, slot, self.below(8), self.word())
        address = self._block(np.where(there, frame, np.uint64(0)))
        turn.let(there & self.some(0.5), "dma_read", self.same(NIC), address)
        turn.let(there & self.some(0.9), "dma_write", self.same(NIC), address, self.word())
        turn.let(there, "extension_write", self.operand(OperandKind.EXTENSION), address, self.word())
        self.take(turn)

    # -- devices -----------------------------------------------------------------------------------------------------------

    def dma(self) -> None:
        """Devices access memory, wherever they can."""
        turn, device = Turn(self.lanes), self.below(DEVICES) + np.uint64(1)
        address, reads = self.address(0.4), self.some(0.4)
        turn.let(reads, "dma_read", device, address)
        turn.let(~reads, "dma_write", device, address, self.word())
        self.take(turn)

    # -- the VMM -----------------------------------------------------------------------------------------------------------

    def deploy(self) -> None:
        """Sectors of the image are fetched and written, and the guest comes in between."""
        device = self.same(MIRRORED)
        cursor = self.systems.batch.deployments["cursor"][:, MIRRORED]
        lba = np.where(self.some(0.6), cursor, self.below(IMAGE_SECTORS + 1))
        self.do("fetch", self.mixed(device, self.same(DISK), 0.03), lba)
        if self.chance(0.6):
            self.out(device, Register.COUNT, self.same(1))
            self.out(device, Register.LBA, lba)
            self.out(device, Register.COMMAND, self.each([WRITE_PIO, WRITE_PIO, 0x06, WRITE_DMA]))
            self.out(device, Register.DATA, self.word())
        self.do("deploy", device, share=0.9)
        if self.chance(0.2):
            self.do("leave", device)

    def leave(self) -> None:
        """All is deployed, and the VMM leaves; a guest may have a command under way."""
        device = self.same(MIRRORED)
        for lba in range(IMAGE_SECTORS):
            self.do("fetch", device, self.same(lba), share=0.98)
            self.do("deploy", device)
        if self.chance(0.5):
            self.out(device, Register.CONTROL, self.same(RESET_BIT), 0.7)
        self.do("leave", device)
        self.command(device)

    def send(self) -> None:
        """Frames are sent, and then written by everybody."""
        turn, stage = Turn(self.lanes), self.systems.batch.vmm["stage"]
        turn.let((stage == Stage.NONE) & self.some(0.5), "begin_move")
        turn.let(self.some(0.97), "send", self.frame(0.05))
        self.take(turn)
        for _ in range(3):
            self.do("send", self.mixed(self.guest_frame(), self.frame(), 0.1))
        address = self.guest_address()
        turn = Turn(self.lanes)
        turn.let(self.some(0.3), "dma_write", self.same(NIC), address, self.word())
        turn.let(self.some(0.5), "extension_write", self.operand(OperandKind.EXTENSION), self.address(0.1), self.word())
        turn.let(self.some(1.0), "store", self.vcpu(), self.below(4), self.below(1 << BLOCK_SHIFT), self.word())
        self.take(turn)

    def hand_over(self) -> None:
        """In some lanes, the last round; something writes in between, or it is cut short."""
        some = self.some(0.15)
        stage = self.systems.batch.vmm["stage"]
        self.do("begin_move", where=some & (stage == Stage.NONE))
        for device in (DISK, MIRRORED):
            ends = self.number(self.same(device), self.same(Space.PORT), self.same(Register.CONTROL))
            self.do("output", self.same(0), self.same(Space.PORT), ends, self.same(RESET_BIT), where=some & self.some(0.9))
        self.do("stop", where=some)
        rounds = self.size.frames if self.size.frames <= SMALL_FRAMES else 3
        for number in range(rounds + 1):
            going = some & (stage == Stage.STOPPED)
            self.do("send_next", where=going)
            if number % 8 == 3:
                turn = Turn(self.lanes)
                turn.let(going & self.some(0.4), "dma_write", self.same(NIC), self.guest_address(), self.word())
                turn.let(going & self.some(0.5), "store", self.vcpu(), self.below(4), self.below(8), self.word())
                turn.let(going & self.some(0.5), "mediate", self.disk())
                turn.let(going & self.some(0.1), "hand_over")
                self.take(turn)
        self.do("hand_over", where=some)

    def extend(self) -> None:
        """Extensions access memory, within their policies and beyond."""
        turn, extension = Turn(self.lanes), self.operand(OperandKind.EXTENSION)
        rows, at = self.systems.batch.extensions, (self._everyone, extension.astype(np.int64))
        frame = np.where(self.some(0.5), rows["first"][at], rows["behind"][at] - self.each([0, 1, 1]))
        address = self.mixed(self._block(frame), self.address(0.3), 0.3)
        reads = self.some(0.4)
        turn.let(reads, "extension_read", extension, address)
        turn.let(~reads, "extension_write", extension, address, self.word())
        self.take(turn)

    # -- all of it ---------------------------------------------------------------------------------------------------------

    def moves(self) -> list[tuple[Callable[[], None], float]]:
        """All kinds of moves, and how often each is made beyond once a unit."""
        return [
            (self.command, 8),
            (self.go_on, 3),
            (self.again, 2),
            (self.pages, 3),
            (self.use, 2),
            (self.dma, 2),
            (self.look, 1),
            (self.windows, 1),
            (self.deploy, 2),
            (self.send, 2),
            (self.extend, 1),
            (self.escape, 0.5),
            (self.any_operation, 1 + 3 * self.hostility),
        ]

    def make(self, count: int) -> None:
        """Make so many moves, or as many as it takes until all lanes differ; the last ones are those that end something."""
        acts = self.order(self.moves(), count)
        acts.insert(2 * len(acts) // 3, self.leave)
        make([*acts, self.hand_over], self.systems.alive.any)


_RARE = ("stop", "hand_over", "sleep", "begin_move")
"""What ends a good deal of what else could happen."""


def play(
    seed: Sequence[int],
    lanes: int,
    moves: int,
    policy: VmmPolicy = INTENDED,
    *,
    size: str = "small",
    **options: Any,
) -> tuple[Systems, Deployment]:
    """Draw and make moves, in all lanes and on both implementations."""
    rng = np.random.default_rng(seed)
    deployment = draw_deployment(rng, size)
    systems = Systems(deployment.size(), lanes, policy, deployment.start, **options)
    mover = Mover(rng, systems, deployment, float(rng.choice([0.1, 0.6, 1.0])))
    exercise(systems, lambda: mover.make(moves))
    return systems, deployment
