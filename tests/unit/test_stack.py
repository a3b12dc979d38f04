"""The four systems on one machine: steps of all layers in any order, held against the invariants of all."""

import random
from collections import Counter
from typing import Any

import pytest

from capvisor.model import stack_system
from capvisor.model.memory import EMPTY, Granule, Memory
from capvisor.model.monitor import Monitor
from capvisor.model.stack import CVM, ORC, Blocks, Stack
from capvisor.model.stack_memory import MachineMemory
from capvisor.model.tags import TagTable
from capvisor.spec import orc
from capvisor.spec import tpt as tpt_spec
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.cvm import CALLS
from capvisor.spec.paging import FRAME_SHIFT, FREE, Mode
from capvisor.spec.stack import FORMAT, Code
from capvisor.spec.stack_invariants import Step
from capvisor.spec.stack_policy import INTENDED, STACK_GUARDS, StackPolicy, without
from tests.unit.stack import (
    CPU_A,
    CPU_B,
    CPU_HOST,
    CVM_BASE,
    CVM_PAGES,
    DISK,
    FREE_FRAME,
    HOSTS_NIC,
    NIC,
    ORC_BASE,
    ORC_PAGES,
    PAGE,
    REGION,
    SECRET,
    TABLES,
    A,
    B,
    Rig,
)

FRAMES = (*range(1, 9), *ORC_PAGES, *CVM_PAGES, 20, 23, 24, 25, 27, 29, FREE_FRAME, 31, 36, 37, 38, 39, 40, 42, 43, 62, 63)


class Player:
    """Draws steps of all layers, many of them of the kind that meet others."""

    def __init__(self, seed: int, policy: StackPolicy = INTENDED) -> None:
        self.random = random.Random(seed)
        self.rig = QuietRig(policy)
        self.machine = self.rig.machine
        self.machine.vmm.extensions[1] = self.machine.vmm.extensions[1]._replace(
            is_live=True, first=0, behind=REGION[0], may_write=True
        )
        self.ends: Counter[tuple[str, str]] = Counter()
        self.found: set[str] = set()
        self.steps = 0

    # -- steps

    def hold(self, step: Step) -> Step:
        """Hold a step against its own layer's invariants and those across; now and then, against all."""
        self.steps += 1
        self.found |= stack_system.violated(step, everywhere=self.steps % 12 == 0)
        self.ends[step.layer, "done" if step.is_completed else "refused"] += 1
        self.ends[f"{step.layer} {step.name}", "done" if step.is_completed else "refused"] += 1
        return step

    def play(self, turns: int) -> set[str]:
        of_guests = (self.guest, self.device, self.disk, self.cvm, self.cvm, self.tenant)
        acts = (*of_guests, self.host, self.host, self.vmm, self.kernel, self.move, self.move)
        for _ in range(turns):
            self.random.choice(acts)()
            if self.found:
                return self.found
        last = stack_system.perform_tpt(self.machine, "evict", CPU_A, 0)
        return self.found | stack_system.violated(last)

    def one(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def tpt(self, name: str, *operands: Any) -> Step:
        return self.hold(stack_system.perform_tpt(self.machine, name, *operands))

    # -- translation pass-through

    def operand(self, kind: tpt_spec.OperandKind) -> Any:
        kinds = tpt_spec.OperandKind
        address = self.one(0, PAGE, CVM_BASE, CVM_BASE + PAGE + 0x100, CVM_BASE + 2 * PAGE, ORC_BASE, ORC_BASE + 0x408)
        values = {
            kinds.VCPU: self.one(CPU_A, CPU_B),
            kinds.VM: self.one(A, B),
            kinds.FRAME: self.one(*FRAMES),
            kinds.GUEST_FRAME: self.one(*range(8, 20)),
            kinds.INDEX: self.one(0, 1, 2, 32, 64),
            kinds.WORD: self.one(SECRET, self.one(*FRAMES) << FRAME_SHIFT | 7),
            kinds.ADDRESS: address,
            kinds.ACCESS: self.one(0, 1, 2),
            kinds.USER: 0,
            kinds.ASID: self.one(1, 2),
            kinds.SLOT: self.random.randrange(12),
            kinds.SWAP_SLOT: self.one(0, 1),
            kinds.DEVICE: self.one(DISK, NIC, HOSTS_NIC),
            kinds.MODE: Mode.TPT.value,
            kinds.LEVELS: 4,
        }
        return values[kind]

    def drawn(self, name: str) -> tuple[Any, ...]:
        return tuple(self.operand(kind) for _name, kind in tpt_spec.OPERATIONS[name].operands)

    def host(self) -> None:
        names = ("assign", "reclaim", "acknowledge", "acknowledge", "scrub", "claim", "release", "migrate", "attach")
        name = self.one(*names, "swap_out", "swap_in")
        operands = self.drawn(name)
        if name == "reclaim" and self.random.random() < 0.7:
            operands = (self.one(24, 25, 27, FREE_FRAME, 31),)
        pending = [frame for frame, rest in self.machine.tpt.pending.rows.items() if rest]
        if name == "acknowledge" and pending:
            operands = (self.one(CPU_A, CPU_B), self.one(*pending))
        if name in ("assign", "scrub", "claim") and self.one(True, False):
            operands = (self.one(*TABLES, REGION[0], REGION[0] + 3), *operands[1:])
        self.tpt(name, *operands)

    def guest(self) -> None:
        rows = [
            row.name for row in tpt_spec.OPERATIONS.values() if row.actor in (tpt_spec.Actor.GUEST, tpt_spec.Actor.PROCESSOR)
        ]
        name = self.one(*(each for each in rows if each not in ("set_cr3", "set_tag")))
        operands = self.drawn(name)
        if name == "write_pte" and operands[0] == CPU_A and operands[1] in (2, 3, 4, 5, 6, 7) and self.random.random() < 0.8:
            operands = (CPU_B, self.one(23, 24, 25, TABLES[0]), *operands[2:])
        self.tpt(name, *operands)

    def device(self) -> None:
        device, frame = self.one(DISK, NIC, HOSTS_NIC), self.one(*FRAMES)
        if self.one(True, False):
            device, frame = NIC, self.one(*CVM_PAGES, *ORC_PAGES)
        if self.one(True, False):
            tagged = list(self.machine.memory.of_frame(frame))
            index = 2 * self.one(*tagged) if tagged else self.one(0, 64)
            if self.one(True, False):
                self.tpt("dma_read", device, frame, index)
            else:
                self.tpt("dma_write", device, frame, index, self.one(SECRET, 0))
        elif self.one(True, False):
            self.top("dma_read", device, frame << 3 | self.one(0, 1, 4))
        else:
            self.top("dma_write", device, frame << 3 | self.one(0, 1, 4), self.one(SECRET, 0))

    # -- the VMM

    def top(self, name: str, *operands: Any) -> Step:
        return self.hold(stack_system.perform_vmm(self.machine, name, *operands))

    def output(self, vcpu: int, register: int, value: int) -> Step:
        return self.top("output", vcpu, 0, DISK << 3 | register, value)

    def disk(self) -> None:
        """A command of the disk's, mostly by its owner, or parts of one in any order."""
        parts = (self.describe, self.command, self.start, self.transfer, self.transfer)
        drawn = tuple(self.one(*parts, self.reset, self.hand_over) for _ in range(3))
        for part in parts if self.random.random() < 0.3 else drawn:
            owner = self.machine.tpt.devices[DISK]
            vcpu = {A: CPU_A, B: CPU_B, FREE: CPU_HOST}[owner]
            part(vcpu if self.random.random() < 0.9 else self.one(CPU_A, CPU_B, CPU_HOST), 10 if owner == A else 24)

    def describe(self, _vcpu: int, table: int) -> None:
        # One of the region would be the end of it all: the VMM panics.
        frames = [frame for frame in FRAMES if frame < REGION[0]]
        buffer = self.one(table, table + 1, *frames) << 3 | self.one(1, 2) << vmm_spec.DESCRIPTOR_COUNT_SHIFT
        self.tpt("write_pte", CPU_A if table == 10 else CPU_B, table, 0, buffer | vmm_spec.DESCRIPTOR_END)

    def command(self, vcpu: int, table: int) -> None:
        self.output(vcpu, vmm_spec.Register.COUNT, self.one(1, 1, 2))
        self.output(vcpu, vmm_spec.Register.LBA, self.one(0, 1))
        self.output(vcpu, vmm_spec.Register.DESCRIPTORS, table << 3)
        self.output(vcpu, vmm_spec.Register.COMMAND, self.one(0xC8, 0xCA))

    def start(self, vcpu: int, _table: int) -> None:
        is_write = self.machine.vmm.channels[DISK].is_write ^ (self.random.random() < 0.1)
        self.output(vcpu, vmm_spec.Register.START, vmm_spec.START_BIT | (0 if is_write else vmm_spec.TO_MEMORY_BIT))
        self.top("mediate", DISK)

    def transfer(self, vcpu: int, _table: int) -> None:
        self.top("transfer", DISK)
        self.top("input", vcpu, 0, DISK << 3 | vmm_spec.Register.MASTER_STATUS)
        self.top("mediate", DISK)

    def reset(self, vcpu: int, _table: int) -> None:
        self.output(vcpu, vmm_spec.Register.CONTROL, vmm_spec.RESET_BIT)

    def hand_over(self, _vcpu: int, _table: int) -> None:
        self.tpt("attach", DISK, self.one(A, B))
        self.top("transfer", DISK)

    def vmm(self) -> None:
        frame = self.one(*FRAMES)
        match self.random.randrange(10):
            case 0 | 1:
                self.top("map", self.one(CPU_A, CPU_HOST, CPU_HOST), 0, frame if frame < REGION[0] else FREE_FRAME, 0, 1)
            case 2 | 3:
                self.top("load", CPU_HOST, 0, self.one(0, 1))
            case 4:
                self.top("store", CPU_HOST, 0, self.one(0, 1), SECRET)
            case 5:
                self.top("extension_read", 1, frame << 3)
            case 6:
                self.top("extension_write", 1, frame << 3, SECRET)
            case 7:
                self.top("begin_move")
            case 8:
                self.top("send", self.one(frame, *CVM_PAGES, *ORC_PAGES))
            case 9:
                if self.steps > 150:
                    self.top("stop")

    # -- cVMs and tenants

    def taken(self, taken: tuple[Step, Any]) -> bool:
        return self.hold(taken[0]).is_completed

    def instruction(self, thread: Any, name: str, *operands: int) -> bool:
        return self.taken(stack_system.instruction(self.machine, thread, name, operands))

    def cvm(self) -> None:
        threads = [thread for thread in self.machine.monitors[CVM].threads if thread.is_live]
        thread = self.one(*threads)
        if thread.frame is not None:
            self.taken(stack_system.leave(self.machine, thread))
            return
        if self.random.random() < 0.5:
            calls = {
                "host_print": (0x100,),
                "host_time": (self.one(0x100, PAGE),),
                "file_advertise": (5, self.one(0x200, 0xE00), 0x100),
                "file_probe": (5, self.one(0x300, 0x400)),
                "file_revoke": (5,),
                "portal_advertise": (7, 0),
                "portal_probe": (7,),
            }
            name = self.one(*calls, "file_revoke", "file_probe")
            is_entered = all(self.instruction(thread, *each) for each in self.library(thread, name, calls[name]))
            if is_entered and thread.frame is not None and self.one(True, False):
                self.taken(stack_system.leave(self.machine, thread))
            return
        address = CVM_BASE + self.one(0x100, 0x300, 0x400, PAGE + 0x300, PAGE + 0x200, 2 * PAGE, PAGE - 32)
        self.instruction(thread, "li", 5, address)
        name = self.one("ld.ddc", "sd.ddc", "lc.ddc", "sc.ddc", "ld.cap", "sd.cap", "lc.cap")
        self.instruction(thread, name, self.one(6, 7), 5 if name.endswith("ddc") else self.one(6, 7))

    def library(self, thread: Any, name: str, arguments: tuple[int, ...]) -> list[tuple[Any, ...]]:
        top = self.machine.monitors[CVM].regions[thread.domain].top
        loads: list[tuple[Any, ...]] = [("li", 10 + place, each) for place, each in enumerate(arguments)]
        loads.append(("li", 30, CALLS[name].number))
        for register, slot in ((28, 2), (29, 3)):
            loads += [("li", register, top - (4 - slot) * FORMAT.capability_bytes), ("lc.ddc", register, register)]
        return [*loads, ("cinvoke", 28, 29)]

    def tenant(self) -> None:
        monitor = self.machine.monitors[ORC]
        threads = [thread for thread in monitor.threads if thread.is_live]
        if not threads:
            self.taken(stack_system.operation(self.machine, None, "create", 1, 0, 1))
            return
        thread, slot = self.one(*threads), self.one(2, 3, 4)
        match self.random.randrange(9):
            case 0:
                self.taken(stack_system.operation(self.machine, thread, "allocate", slot))
            case 1:
                self.taken(stack_system.operation(self.machine, thread, "submit", slot, 64, 32, 16))
                self.taken(stack_system.operation(self.machine, thread, "export", slot, 0))
                self.taken(stack_system.operation(self.machine, thread, "publish", slot))
            case 2:
                identity = monitor.slots[slot].identity
                self.taken(stack_system.operation(self.machine, thread, "map", slot, identity, self.one(5, 6)))
            case 3:
                self.taken(stack_system.operation(self.machine, thread, self.one("unmap", "withdraw"), slot))
            case 4:
                self.taken(stack_system.operation(self.machine, thread, "bind", slot, 0))
            case 5:
                self.taken(stack_system.operation(self.machine, None, "collect", slot))
            case 6:
                self.instruction(thread, "li", 6, SECRET)
                self.instruction(thread, self.one("sd.cap", "ld.cap"), 6, self.one(2, orc.RESULTS[0]))
            case 7:
                self.instruction(thread, self.one("lc.cap", "sc.cap"), self.one(6, 7), self.one(2, 4, orc.RESULTS[0]))
            case 8:
                self.instruction(thread, "cmove", 7, orc.RESULTS[0])

    # -- what a VM's kernel and the host do together

    def kernel(self) -> None:
        """A's kernel maps the pages of its monitors to where they are now."""
        contents = {self.machine.content_of(frame): frame for frame in range(REGION[0])}
        for layer, table in ((CVM, 5), (ORC, 7)):
            for page, content in enumerate(self.machine.pages[layer].bound):
                if content in contents and self.machine.owners[contents[content]] == A:
                    entry = contents[content] << FRAME_SHIFT | 7
                    if self.machine.memory.word(table, page) >> FRAME_SHIFT != contents[content]:
                        self.tpt("write_pte", CPU_A, table, page, entry)
        if self.random.random() < 0.2:
            frame = self.one(*CVM_PAGES, *ORC_PAGES)
            self.tpt("write_pte", CPU_A, self.one(5, 7), self.one(0, 1), frame << FRAME_SHIFT | 7)
        if self.random.random() < 0.4:
            self.tpt("flush", CPU_A)

    def move(self) -> None:
        """The host takes the frame of a monitor's page away, and puts what it holds elsewhere."""
        contents = [content for content in self.machine.bound if content is not None]
        frames = [frame for frame in range(REGION[0]) if self.machine.content_of(frame) in contents]
        if not frames:
            return
        frame, target = self.one(*frames), self.one(FREE_FRAME, 31, 29)
        self.tpt("reclaim", frame)
        self.tpt("acknowledge", CPU_A, frame)
        self.tpt("acknowledge", CPU_B, frame)
        for _ in range(self.random.randrange(4)):
            self.cvm()
        if self.one(True, False):
            self.tpt("migrate", frame, target)
        else:
            self.tpt("swap_out", frame, 0)
            self.tpt("scrub", frame)
            self.tpt("swap_in", frame, 0)
        if self.random.random() < 0.8:
            self.kernel()
        self.tpt("scrub", frame)


class QuietRig(Rig):
    """One whose invariants the player looks at."""

    watches = False


# -- memory ----------------------------------------------------------------------------------------------------------------

TAGGED = Granule(True, 0x1111, 0x2222)


@pytest.fixture
def memory() -> MachineMemory:
    """64 frames; the tables of tags are frames 62 and 63."""
    return MachineMemory(64, 62, TagTable(64))


def test_a_block_is_its_first_word_and_to_write_it_clears_the_others_and_their_tags(memory):
    for number in (31, 32, 63, 64):
        memory.set(5, number, TAGGED)
    blocks = Blocks(memory)
    assert blocks[5 << 3 | 1] == 0x2222
    blocks[5 << 3 | 1] = 7
    assert blocks[5 << 3 | 1] == 7
    assert memory.get(5, 32) == Granule(False, 0, 7)
    assert memory.get(5, 63) == EMPTY
    assert memory.get(5, 31) == memory.get(5, 64) == TAGGED
    assert blocks.rows == {5 << 3 | 1: 7, 5 << 3 | 2: 0x2222}


def test_a_word_is_half_a_granule_and_to_write_it_clears_the_tag(memory):
    memory.set(5, 3, TAGGED)
    assert (memory.word(5, 6), memory.word(5, 7)) == (0x2222, 0x1111)
    memory.set_word(5, 7, 0x3333)
    assert memory.get(5, 3) == Granule(False, 0x3333, 0x2222)
    memory.set(5, 3, TAGGED)
    memory.set_word(5, 6, 0x3333, keeps_tag=True)
    assert memory.get(5, 3) == Granule(True, 0x1111, 0x3333)


def test_where_there_is_no_frame_nothing_stays(memory):
    memory.set(64, 0, TAGGED)
    assert memory.get(64, 0) == EMPTY


def test_a_frame_is_cleared_and_copied_with_its_tags(memory):
    memory.set(5, 3, TAGGED)
    memory.set(6, 4, TAGGED)
    memory.copy(6, memory, 5)
    assert memory.of_frame(6) == {3: TAGGED}
    memory.clear(5)
    assert memory.of_frame(5) == {}


def test_a_word_of_the_table_has_the_tags_of_64_granules_and_reads_as_zero(memory):
    memory.set(5, 70, TAGGED)
    memory.set(5, 63, TAGGED)
    word = (5 * 256 + 64) // 64
    memory.set_word(62, word, 1 << 3)
    assert memory.tagged() == {(5, 63): TAGGED, (5, 67): Granule(True, 0, 0)}
    assert memory.word(62, word) == 0


def test_a_word_of_the_table_of_owners_is_a_frames(memory):
    memory.set_word(63, 5, A)
    assert memory.owners[5] == A and memory.owners[4] == FREE
    Blocks(memory)[63 << 3] = B
    assert memory.owners[0] == B and memory.owners[5] == FREE


@pytest.mark.parametrize("region", [(44, 63), (40, 58)])
def test_a_region_has_room_for_the_tables(region):
    with pytest.raises(ValueError, match="tables of tags"):
        Stack(64, region)


def test_a_monitors_memory_begins_at_a_page():
    machine = Stack(64, REGION)
    with pytest.raises(ValueError, match="begins at a multiple"):
        machine.host(CVM, Monitor(Memory(FORMAT, CVM_BASE + 0x800, PAGE)), A)


def test_pages_that_begin_as_one_are_refused_at_first_use():
    rig = QuietRig()
    rig.map(CPU_B, CVM_BASE, [26, 26], [27, 24, 25])
    rig.machine.host(CVM, Monitor(Memory(FORMAT, CVM_BASE, 2 * PAGE)), B)
    step, _result = stack_system.deploy(rig.machine, "create", 1, CVM_BASE, PAGE)
    assert step.code is Code.MOVED


def test_a_step_of_a_monitor_needs_a_vcpu_of_its_vm():
    rig = QuietRig()
    assert rig.tpt("run", CPU_A, B, 2, 20 << FRAME_SHIFT).is_completed
    step, _trap = stack_system.instruction(rig.machine, rig.threads[0], "li", (5, 1))
    assert step.code is Code.NO_VCPU and not step.is_completed


def test_a_store_across_granules_goes_to_two_of_the_frame():
    rig = Rig()
    thread = rig.threads[0]
    rig.instruction(thread, "li", 5, CVM_BASE + PAGE - 4)
    assert rig.instruction(thread, "sd.ddc", 5, 5).cause.name == "LengthViolation"
    rig.instruction(thread, "li", 5, CVM_BASE + 12)
    assert rig.instruction(thread, "sd.ddc", 5, 5) is None
    assert rig.machine.memory.word(CVM_PAGES[0], 1) >> 32 == (CVM_BASE + 12) & 0xFFFFFFFF
    assert rig.violated == set()


# -- all of it, in any order -----------------------------------------------------------------------------------------------


def test_the_invariants_of_all_layers_hold_over_random_runs():
    ends: Counter[tuple[str, str]] = Counter()
    for seed in range(12):
        player = Player(seed)
        assert player.play(40) == set(), (seed, player.steps)
        ends += player.ends
    for layer in ("vmm", "tpt", CVM, ORC):
        assert ends[layer, "done"] > 20 and ends[layer, "refused"] > 0, ends
    for name in ("vmm mediate", "vmm transfer", "tpt migrate", "tpt swap_in", "cvm leave", "orc publish"):
        assert ends[name, "done"] > 0, name


SOON = {
    *("region_untagged", "host_claims_first", "mediator_checks_tags", "extensions_check_tags"),
    *("registers_by_owner", "dma_clears_tags"),
}
"""What random runs miss soon; the others take the right steps in a row: tests/unit/test_stack_attacks.py has each."""


@pytest.mark.parametrize("guard", sorted(STACK_GUARDS.keys() & SOON))
def test_random_runs_find_a_missing_guard(guard):
    assert any(Player(seed, without(guard)).play(60) for seed in range(3))
