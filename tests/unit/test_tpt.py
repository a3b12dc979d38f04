"""Translation pass-through: each operation's rule, what is cached and forgotten, and the invariants over random runs."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from capvisor.model.tpt import FrameRow, System, Vcpu
from capvisor.model.tpt_operations import OPERATION_RULES
from capvisor.model.tpt_system import perform, violated
from capvisor.spec.paging import FREE, HOST, RESERVED_CR3, Access, Entry, ErrorCode, Mode
from capvisor.spec.tag_policy import INTENDED, TAG_GUARDS, TAG_POLICIES, without
from capvisor.spec.tpt import CACHE_SLOTS, OPERATIONS, SWAP_SLOTS, TLB_SLOTS, Code, FaultKind, OperandKind
from tests.unit.tpt import RW, SECRET, A, B, Rig, entry


@pytest.fixture
def rig():
    made = Rig()
    yield made
    assert made.violated == set()


def live(rig: Rig, vcpu: int = 0) -> tuple[int, int]:
    """How many translations and tables a vCPU has cached."""
    tlb = rig.system.tlb
    translations = sum(tlb.translations[vcpu, slot].is_live for slot in range(TLB_SLOTS))
    return translations, sum(tlb.tables[vcpu, slot].is_live for slot in range(CACHE_SLOTS))


def references(step) -> int:
    return len([touch for touch in step.touches if touch.kind == "table"])


def test_every_operation_has_a_rule():
    assert OPERATION_RULES.keys() == OPERATIONS.keys()


def test_presets_are_policies_with_all_guards():
    assert all(getattr(policy, guard) for policy in TAG_POLICIES.values() for guard in TAG_GUARDS)
    with pytest.raises(KeyError):
        without("tag_check")


@pytest.mark.parametrize("sizes", [(0, 1, 0), (1, 0, 0), (1, 9, 0), (1, 1, 5), (1 << 21, 1, 0)])
def test_a_system_of_impossible_size_is_refused(sizes):
    with pytest.raises(ValueError, match="a system has"):
        System(*sizes)


# -- accesses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("mode", [Mode.TPT, Mode.NESTED])
def test_a_store_is_loaded_again_and_walked_once(levels, mode):
    rig = Rig(mode=mode, levels=levels)
    address = 1 << 12
    rig.map(0, rig.base + 4)
    rig.must("write_pte", 0, rig.base + levels - 1, 1, entry(rig.base + 5))
    assert references(rig.do("store", 0, address + 8, 42, 0)) == levels
    step = rig.do("load", 0, address + 8, 0)
    assert (step.value, references(step)) == (42, 0)
    assert rig.system.memory.get(6, 1) == 42
    assert rig.violated == set()


def test_a_page_walk_cache_saves_all_but_the_last_reference(rig):
    rig.map(1, 6)
    assert references(rig.do("load", 0, 0, 0)) == 4
    assert live(rig) == (1, 3)
    assert references(rig.do("load", 0, 0x1000, 0)) == 1
    rig.must("invlpg", 0, 0x5000)
    assert live(rig) == (2, 0)
    assert references(rig.do("load", 0, 0, 0)) == 0


def test_a_write_to_a_clean_page_walks_to_set_the_dirty_bit(rig):
    rig.must("load", 0, 0, 0)
    assert references(rig.do("store", 0, 0, 1, 0)) == 1
    assert rig.system.memory.get(4, 0) == entry(5, RW | Entry.A | Entry.D)
    assert live(rig)[0] == 1
    assert references(rig.do("store", 0, 0, 2, 0)) == 0


def test_an_access_that_the_cached_rights_refuse_walks_and_a_fault_forgets(rig):
    address = rig.map(1, 6, int(Entry.P | Entry.RW))
    rig.must("load", 0, address, 0)
    step = rig.do("load", 0, address, 1)
    assert (step.fault.kind, step.fault.code) == (FaultKind.PAGE, ErrorCode.P | ErrorCode.US)
    assert live(rig) == (0, 0)
    rig.map(1, 6)
    assert rig.do("load", 0, address, 1).is_completed


def test_what_is_cached_outlives_the_entry_until_it_is_invalidated(rig):
    rig.must("store", 0, 0, 5, 0)
    rig.map(0, 6)
    assert rig.must("load", 0, 0, 0) == 5
    rig.must("invlpg", 0, 0)
    assert rig.must("load", 0, 0, 0) == 0


def test_loading_cr3_forgets_all_but_global_translations(rig):
    rig.map(1, 6, RW | Entry.G)
    rig.must("load", 0, 0, 0)
    rig.must("load", 0, 0x1000, 0)
    rig.must("set_cr3", 0, entry(1, 0))
    assert live(rig) == (1, 0)
    assert references(rig.do("load", 0, 0x1000, 0)) == 0
    rig.must("flush", 0)
    assert live(rig) == (0, 0)


def test_slots_are_filled_in_turn_and_evicted_at_will(rig):
    for index in range(TLB_SLOTS + 1):
        rig.must("load", 0, rig.map(index, 5), 0)
    assert rig.system.vcpus[0].next_tlb == 1
    assert rig.system.tlb.translations[0, 0].page == TLB_SLOTS
    rig.must("evict", 0, 1)
    rig.must("evict", 0, TLB_SLOTS)
    assert live(rig) == (TLB_SLOTS - 1, 2)


@pytest.mark.parametrize(
    ("name", "operands", "kind"),
    [
        ("load", (0, 1 << 47, 0), FaultKind.GENERAL),
        ("load", (0, 4, 0), FaultKind.ALIGNMENT),
        ("store", (0, (1 << 63) + 1, 0, 0), FaultKind.GENERAL),
        ("begin_walk", (0, 1 << 50, 0, 0), FaultKind.GENERAL),
        ("set_cr3", (0, RESERVED_CR3), FaultKind.GENERAL),
        ("write_pte", (0, 13, 0, 0), FaultKind.TAG),
        ("write_pte", (0, 0, 0, 0), FaultKind.TAG),
        ("write_pte", (0, 99, 0, 0), FaultKind.TAG),
        ("dma_write", (0, 13, 0, 0), FaultKind.IOMMU),
        ("dma_read", (1, 5, 0), FaultKind.IOMMU),
        ("load", (0, 0x7000, 0), FaultKind.PAGE),
    ],
)
def test_faults_say_what_they_are(rig, name, operands, kind):
    assert rig.do(name, *operands).fault.kind is kind


def test_one_that_runs_for_none_can_do_nothing(rig):
    rig.system.vcpus[1] = Vcpu()
    for name, row in OPERATIONS.items():
        if row.operands[0][1] is OperandKind.VCPU and Code.NO_VM in row.refusals and name != "run":
            assert rig.do(name, 1, *[0] * (len(row.operands) - 1)).code is Code.NO_VM


# -- the host --------------------------------------------------------------------------------------------------------------


def test_a_frame_goes_from_one_vm_to_another_in_order(rig):
    rig.must("store", 0, 0, SECRET, 0)
    rig.must("reclaim", 5)
    assert rig.do("reclaim", 5).code is Code.NOT_OWNED
    assert rig.do("assign", 5, B, 99).code is Code.PENDING
    assert rig.do("scrub", 5).code is Code.PENDING
    assert rig.do("claim", 5).code is Code.PENDING
    rig.acknowledge(5)
    assert rig.do("acknowledge", 0, 5).code is Code.NOTHING
    assert rig.do("assign", 5, B, 99).code is Code.UNCLEAN
    rig.must("scrub", 5)
    assert rig.do("assign", 5, B, 0).code is Code.TAKEN
    rig.must("assign", 5, B, 99)
    assert rig.do("scrub", 5).code is rig.do("claim", 5).code is Code.NOT_FREE
    assert rig.do("load", 0, 0, 0).fault.kind is FaultKind.TAG


@pytest.mark.parametrize("mode", [Mode.TPT, Mode.NESTED])
def test_a_migrated_page_keeps_its_content_and_its_guest_frame(mode):
    """T10: the guest's access succeeds again, once an enlightened guest has put the new frame into its entry."""
    rig = Rig(mode=mode)
    rig.must("store", 0, 8, 42, 0)
    rig.must("reclaim", 5)
    assert rig.do("migrate", 5, 20).code is Code.PENDING
    rig.acknowledge(5)
    assert rig.do("load", 0, 8, 0).fault.kind is (FaultKind.TAG if mode is Mode.TPT else FaultKind.NESTED)
    rig.must("migrate", 5, 20)
    if mode is Mode.TPT:
        rig.map(0, 20)
    assert rig.must("load", 0, 8, 0) == 42
    assert rig.system.frames[20] == FrameRow(False, A, 4)
    assert rig.do("migrate", 5, 21).code is Code.NOT_RECLAIMED
    assert rig.violated == set()


def test_a_page_is_swapped_out_and_in(rig):
    rig.must("store", 0, 8, 42, 0)
    rig.must("reclaim", 5)
    rig.acknowledge(5)
    rig.must("swap_out", 5, 1)
    rig.must("scrub", 5)
    rig.must("assign", 5, B, 99)
    assert rig.do("swap_in", 21, 0).code is Code.NOTHING
    rig.must("swap_in", 21, 1)
    rig.map(0, 21)
    assert rig.must("load", 0, 8, 0) == 42
    assert rig.do("swap_in", 22, 1).code is Code.NOTHING


def test_the_hosts_frames_are_given_away_through_being_nobodys(rig):
    assert rig.do("assign", 0, A, 50).code is Code.NOT_FREE
    rig.must("release", 0)
    assert rig.do("release", 0).code is Code.NOT_OWNED
    assert rig.do("assign", 0, A, 50).code is Code.UNCLEAN
    rig.must("scrub", 0)
    rig.must("assign", 0, A, 50)
    assert rig.system.tags[0] == A


def test_large_tags_are_merged_and_split(rig):
    rig = Rig(frames=1024)
    assert rig.do("merge", 5).code is Code.RANGE
    assert rig.do("merge", 512).code is Code.NOT_OWNED
    for frame in range(512, 1023):
        perform(rig.system, "assign", frame, A, frame)
    assert rig.do("merge", 512).code is Code.NOT_UNIFORM
    rig.must("assign", 1023, A, 1023)
    assert rig.do("split", 600).code is Code.NOTHING
    rig.must("merge", 512)
    assert rig.do("merge", 512).code is Code.TAKEN
    assert rig.do("reclaim", 600).code is Code.LARGE
    rig.must("write_pte", 0, 3, 1, entry(512, RW | Entry.PS))
    rig.must("store", 0, (1 << 21) + (600 - 512 << 12), 7, 0)
    assert rig.system.memory.get(600, 0) == 7
    assert rig.system.tlb.translations[0, 0].level == 2
    rig.must("split", 600)
    rig.must("reclaim", 600)
    rig.acknowledge(600)
    step = rig.do("load", 0, 1 << 21, 0)
    assert (step.fault.kind, step.fault.frame, step.fault.level) == (FaultKind.TAG, 512, 2)
    assert rig.violated == set()


def test_a_plain_guests_device_names_guest_frames():
    rig = Rig(mode=Mode.NESTED)
    rig.must("dma_write", 0, 4, 1, 9)
    assert rig.must("load", 0, 8, 0) == rig.system.memory.get(5, 1) == 9
    assert rig.do("dma_read", 0, 40, 0).fault.frame == 40
    assert rig.violated == set()


def test_a_device_that_goes_to_another_vm_forgets(rig):
    rig.must("dma_read", 0, 5, 0)
    rig.must("attach", 0, B)
    assert rig.do("dma_read", 0, 5, 0).fault.kind is FaultKind.IOMMU


def test_asids_keep_apart_what_two_vms_have_cached(rig):
    rig.must("store", 0, 0, 1, 0)
    rig.must("run", 0, B, 2, entry(9, 0))
    assert rig.do("load", 0, 0, 0).fault.kind is FaultKind.PAGE
    rig.must("run", 0, A, 1, entry(1, 0))
    assert references(rig.do("load", 0, 0, 0)) == 0


# -- the walk under way ----------------------------------------------------------------------------------------------------


def test_a_stepped_walk_ends_as_an_access_does():
    one, other = Rig(), Rig()
    one.must("load", 0, 0, 0)
    other.must("begin_walk", 0, 0, Access.READ, 0)
    other.walk_steps(0, 9)
    assert other.do("step_walk", 0).code is Code.NOTHING
    assert state(one.system) == state(other.system)


def test_an_entry_that_changes_under_the_walk_is_read_again(rig):
    rig.must("begin_walk", 0, 0, Access.READ, 0)
    rig.walk_steps(0, 7)
    rig.map(0, 6)
    rig.walk_steps(0, 1)
    assert (rig.system.walks[0].stage, rig.system.walks[0].level) == (0, 1)  # anew, from the page-walk cache
    rig.walk_steps(0, 3)
    assert rig.system.tlb.translations[0, 0].frame == 6


@pytest.mark.parametrize("name", ["flush", "invlpg", "set_cr3", "acknowledge", "run"])
def test_what_serialises_drops_the_walk(rig, name):
    rig.must("reclaim", 8)
    rig.must("begin_walk", 0, 0, Access.READ, 0)
    rest = {"flush": (), "invlpg": (0,), "set_cr3": (entry(1, 0),), "acknowledge": (8,), "run": (A, 1, entry(1, 0))}
    rig.must(name, 0, *rest[name])
    assert not rig.system.walks[0].is_live


# -- random runs -----------------------------------------------------------------------------------------------------------


def state(system: System) -> dict[str, object]:
    """All of a concrete system, with rows that say nothing left out."""
    tables = ("frames", "pending", "vms", "p2m", "vcpus", "asids", "walks", "devices", "iotlb", "swaps")
    rows = {name: getattr(system, name).rows for name in tables}
    rows |= {"tlb": system.tlb.translations.rows, "caches": system.tlb.tables.rows}
    rows |= {"tags": system.tags.tags.rows, "large": system.tags.large.rows}
    kept = {name: {key: row for key, row in table.items() if row and row != type(row)()} for name, table in rows.items()}
    return {**kept, "memory": sorted(system.memory.written()), "disk": sorted(system.disk.written())}


class Player:
    """Operations drawn so that most of them do something: A, B and a plain VM C share 24 frames and three vCPUs."""

    def __init__(self, seed: int, policy=INTENDED) -> None:
        self.rng = random.Random(seed)
        self.rig = Rig(policy, frames=24)
        self.rig.watches = False
        system = self.rig.system
        for operands in (("create", 4, Mode.NESTED, 4), *(("assign", 17 + each, 4, each) for each in range(4))):
            assert perform(system, *operands).is_completed
        self.system = system

    def draw(self) -> tuple[str, tuple[int, ...]]:
        rng = self.rng
        chances = dict.fromkeys(OPERATIONS, 1.0) | dict.fromkeys(("load", "store", "write_pte"), 8) | {"step_walk": 20}
        chances |= {"acknowledge": 14, "begin_walk": 4, "reclaim": 2, "scrub": 4, "assign": 4, "migrate": 3, "run": 2}
        chances |= {"swap_out": 2, "swap_in": 2, "claim": 0.2, "dma_read": 2, "dma_write": 2, "evict": 0.5, "flush": 0.5}
        name = rng.choices(list(chances), list(chances.values()))[0]
        pending = [frame for frame, mask in self.system.pending.rows.items() if mask]
        if name == "acknowledge" and pending:
            frame = rng.choice(pending)
            return name, (rng.choice([each for each in range(3) if self.system.is_pending(frame, each)]), frame)
        operands = [self.operand(kind) for _name, kind in OPERATIONS[name].operands]
        walking = [vcpu for vcpu in range(3) if self.system.walks[vcpu].is_live]
        if name == "step_walk" and walking:
            operands[0] = rng.choice(walking)
        rows, tags = self.system.frames, self.system.tags
        wants_clean = {"scrub": False, "assign": True, "migrate": False, "swap_out": False, "swap_in": True}
        if name in wants_clean and rng.random() < 0.8:
            fit = [each for each in range(24) if tags[each] == FREE and rows[each].is_clean is wants_clean[name]]
            if name in ("migrate", "swap_out"):
                clean = [each for each in range(24) if tags[each] == FREE and rows[each].is_clean]
                fit = [each for each in fit if rows[each].vm and not self.system.pending[each]]
                operands[1] = rng.choice(clean or [0]) if name == "migrate" else operands[1]
            operands[0] = rng.choice(fit or [0])
        if name in ("write_pte", "set_cr3", "run", "dma_read", "dma_write") and rng.random() < 0.9:
            vm = self.system.vcpus[operands[0]].vm if name in ("write_pte", "set_cr3") else operands[1]
            vm = self.system.devices[operands[0]] if name.startswith("dma") else vm
            names = [each for each in range(24) if tags[each] == vm] if vm != 4 else list(range(4))
            frame = rng.choice(names or [0])
            place = {"write_pte": 1, "set_cr3": 1, "run": 3, "dma_read": 1, "dma_write": 1}[name]
            operands[place] = frame if place == 1 and name != "set_cr3" else entry(frame, 0)
            if name == "write_pte":
                operands[2] = rng.randrange(2)
                operands[3] = entry(rng.choice(names or [0]), operands[3] & 0xFFF | RW)
        return name, tuple(operands)

    def operand(self, kind: OperandKind) -> int:
        rng = self.rng
        word = rng.randrange(24) << 12 | RW | rng.choice((0, 0, 0, Entry.A, Entry.D, Entry.G, Entry.NX, Entry.PS))
        drawn = {
            OperandKind.VCPU: rng.randrange(3),
            OperandKind.VM: rng.choice((A, B, 4)),
            OperandKind.FRAME: rng.randrange(25),
            OperandKind.GUEST_FRAME: rng.randrange(12),
            OperandKind.INDEX: rng.randrange(3),
            OperandKind.WORD: word if rng.random() < 0.9 else rng.getrandbits(64),
            OperandKind.ADDRESS: sum(rng.randrange(2) << 12 + 9 * level for level in range(rng.choice((1, 2, 4)))),
            OperandKind.ACCESS: rng.randrange(3),
            OperandKind.USER: rng.randrange(2),
            OperandKind.ASID: rng.randrange(1, 4),
            OperandKind.SLOT: rng.randrange(TLB_SLOTS + CACHE_SLOTS),
            OperandKind.SWAP_SLOT: rng.randrange(SWAP_SLOTS),
            OperandKind.DEVICE: rng.randrange(2),
            OperandKind.MODE: rng.choice((Mode.TPT, Mode.NESTED)),
            OperandKind.LEVELS: rng.choice((4, 5)),
        }
        return int(drawn[kind])

    def play(self, steps: int) -> tuple[set[str], Counter]:
        """What was violated, and how operations ended."""
        found: set[str] = set()
        ends: Counter = Counter()
        for _ in range(steps):
            name, operands = self.draw()
            before = state(self.system) if ends[name, "refused"] < 5 else None
            step = perform(self.system, name, *operands)
            if step.code is not Code.OK:
                assert step.code in OPERATIONS[name].refusals, step
                if before is not None:
                    assert state(self.system) == before, step
            assert step.fault is None or step.fault.kind in OPERATIONS[name].faults, step
            end = "refused" if step.code is not Code.OK else "done" if step.fault is None else "faulted"
            ends[name, end] += 1
            found |= violated(step)
            if found:
                return found, ends
        return found, ends


@pytest.mark.parametrize("tag_check", ["fill", "access"])
def test_the_invariants_hold_over_random_runs(tag_check):
    ends: Counter = Counter()
    for seed in range(50):
        found, ended = Player(seed, replace(INTENDED, tag_check=tag_check)).play(80)
        assert found == set(), (seed, ended)
        ends += ended
    assert {name for name, end in ends if end == "done"} >= OPERATIONS.keys() - {"merge", "split", "set_tag", "create"}


SELDOM = {
    *("uniform_large_pages", "shootdown_covers_large_pages", "split_before_retag", "merge_one_owner"),
    *("check_accessed_dirty_writes", "abort_walks_on_acknowledge", "abort_walks_on_switch", "scrub_on_reuse"),
}
"""What takes 512 frames, or a long run of the right steps, to be missed: tests/unit/test_tpt_attacks.py has each."""


@pytest.mark.parametrize("guard", sorted(TAG_GUARDS.keys() - SELDOM))
def test_random_runs_find_a_missing_guard(guard):
    assert any(Player(seed, without(guard)).play(80)[0] for seed in range(100))


def test_words_of_the_host_are_untouched_by_guests():
    player = Player(7)
    for frame in range(24):
        if player.system.tags[frame] == FREE:
            perform(player.system, "claim", frame)
    hosts = [frame for frame in range(24) if player.system.tags[frame] == HOST]
    for frame in hosts:
        player.system.memory.set(frame, 0, SECRET)
    guests = {name for name, row in OPERATIONS.items() if row.actor.value in ("guest", "processor", "device")}
    for _ in range(1500):
        name, operands = player.draw()
        if name in guests:
            assert perform(player.system, name, *operands).value != SECRET
    assert len(hosts) > 1
    assert all(player.system.memory.get(frame, 0) == SECRET for frame in hosts)
