"""Attacks on translation pass-through, D1 to D11 and others: each is stopped as intended, and works with one guard off."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from capvisor.model.tpt import System
from capvisor.model.tpt_system import perform
from capvisor.spec.paging import FREE, HOST, Access, Entry, Mode
from capvisor.spec.tag_policy import INTENDED, TAG_GUARDS, TagPolicy, without
from capvisor.spec.tpt import Code, FaultKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from tests.unit.tpt import RW, SECRET, A, B, Rig, entry

Attack = Callable[[TagPolicy], tuple[Rig, bool]]
"""Of a policy: the system after the attack, and whether the attacker got what it wanted."""

NOT_USED = RW | Entry.A.value
"""Rights and the accessed bit: a walk through such entries writes nothing."""


def a_page_of_another(policy: TagPolicy) -> tuple[Rig, bool]:
    """D1."""
    rig = Rig(policy)
    return rig, rig.do("load", 0, rig.map(1, 13), 0).value == SECRET


def a_table_of_another(policy: TagPolicy) -> tuple[Rig, bool]:
    """D2: B's page 13 read as a table, whose word 0 becomes A's knowledge by where it leads; here it leads to A's page 5."""
    rig = Rig(policy)
    rig.must("write_pte", 2, 13, 0, entry(5, NOT_USED))
    rig.must("write_pte", 0, 5, 0, 0x77)
    rig.must("write_pte", 0, 3, 1, entry(13, NOT_USED))
    return rig, rig.do("load", 0, 1 << 21, 0).value == 0x77


def a_root_of_another(policy: TagPolicy) -> tuple[Rig, bool]:
    """D2 by CR3: word 0 of B's page 13 names A's page of tables 2."""
    rig = Rig(policy)
    rig.must("write_pte", 2, 13, 0, entry(2, NOT_USED))
    rig.must("write_pte", 0, 5, 0, 0x77)
    rig.must("set_cr3", 0, entry(13, 0))
    return rig, rig.do("load", 0, 0, 0).value == 0x77


def an_accessed_bit_behind_the_hosts_back(policy: TagPolicy) -> tuple[Rig, bool]:
    """D3: the walker has read an entry of table 4 when the host takes the table away, and then sets a bit there."""
    rig = Rig(policy)
    address = rig.map(1, 6)
    rig.must("begin_walk", 0, address, Access.READ, 0)
    rig.walk_steps(0, 7)
    rig.must("reclaim", 4)
    rig.do("step_walk", 0)
    return rig, rig.system.memory.get(4, 1) != entry(6)


def a_stale_translation(policy: TagPolicy) -> tuple[Rig, bool]:
    """D4: A goes on with what it has cached when the frame is B's, because the host didn't wait."""
    rig = Rig(policy)
    rig.must("load", 0, 0, 0)
    rig.must("reclaim", 5)
    rig.give_to_b(5)
    return rig, rig.do("load", 0, 0, 0).value == SECRET


def a_stale_table(policy: TagPolicy) -> tuple[Rig, bool]:
    """D4 by a page-walk cache: A's former table 4 is B's, which writes there what A then walks."""
    rig = Rig(policy)
    rig.map(1, 6)
    rig.must("load", 0, 0, 0)
    rig.must("reclaim", 4)
    rig.acknowledge(4)
    rig.give_to_b(4)
    rig.must("write_pte", 2, 4, 1, entry(7, NOT_USED))
    rig.must("write_pte", 0, 7, 0, 0x77)
    return rig, rig.do("load", 0, 0x1000, 0).value == 0x77


def forgotten_too_early(policy: TagPolicy) -> tuple[Rig, bool]:
    """The shoot-down comes before the tag changes: A caches the page anew after it has acknowledged."""
    rig = Rig(policy)
    rig.must("reclaim", 5)
    rig.must("acknowledge", 0, 5)
    rig.do("load", 0, 0, 0)
    rig.must("acknowledge", 1, 5)
    rig.must("acknowledge", 2, 5)
    rig.give_to_b(5)
    return rig, rig.do("load", 0, 0, 0).value == SECRET


def a_walk_across_the_shootdown(policy: TagPolicy) -> tuple[Rig, bool]:
    """D6: a walk has looked up the page's tag, the host reclaims the page, the vCPU acknowledges, and the walk goes on."""
    rig = Rig(policy)
    rig.must("begin_walk", 0, 0, Access.READ, 0)
    rig.walk_steps(0, 8)
    rig.must("reclaim", 5)
    rig.acknowledge(5)
    rig.give_to_b(5)
    rig.do("step_walk", 0)
    return rig, rig.do("load", 0, 0, 0).value == SECRET


def a_walk_across_a_switch(policy: TagPolicy) -> tuple[Rig, bool]:
    """A walk of A's goes on when the vCPU runs for B: B gets A's page."""
    rig = Rig(policy)
    rig.must("write_pte", 0, 5, 0, SECRET)
    rig.must("begin_walk", 0, 0, Access.READ, 0)
    rig.walk_steps(0, 8)
    rig.must("run", 0, B, 2, entry(9, 0))
    rig.do("step_walk", 0)
    return rig, rig.do("load", 0, 0, 0).value == SECRET


def a_page_across_owners(policy: TagPolicy) -> tuple[Rig, bool]:
    """D5: the first frame of a 2 MiB page is A's, the next B's."""
    rig = Rig(policy, frames=1024)
    rig.must("assign", 512, A, 512)
    rig.must("assign", 513, B, 513)
    rig.must("write_pte", 2, 513, 0, SECRET)
    rig.must("write_pte", 0, 3, 1, entry(512, RW | Entry.PS.value))
    return rig, rig.do("load", 0, (1 << 21) + 0x1000, 0).value == SECRET


def with_large_page(policy: TagPolicy, count: int = 512) -> Rig:
    """A has frames from 512, and maps them as a 2 MiB page at 2 MiB."""
    rig = Rig(policy, frames=1024)
    for frame in range(512, 512 + count):
        assert perform(rig.system, "assign", frame, A, frame).is_completed
    rig.must("write_pte", 0, 3, 1, entry(512, RW | Entry.PS.value))
    return rig


def a_frame_of_a_cached_large_page(policy: TagPolicy) -> tuple[Rig, bool]:
    """D4 and D5: a frame in the middle of a cached large page changes hands."""
    rig = with_large_page(policy)
    rig.must("load", 0, 1 << 21, 0)
    rig.must("reclaim", 700)
    rig.acknowledge(700)
    rig.give_to_b(700)
    return rig, rig.do("load", 0, (1 << 21) + (700 - 512 << 12), 0).value == SECRET


def a_frame_under_a_large_tag(policy: TagPolicy) -> tuple[Rig, bool]:
    """A frame changes hands under a large tag: the hardware takes it for A's still."""
    rig = with_large_page(policy)
    rig.must("merge", 512)
    rig.do("reclaim", 700)
    for vcpu in range(3):
        rig.do("acknowledge", vcpu, 700)
    rig.do("scrub", 700)
    rig.do("assign", 700, B, 100)
    rig.do("dma_write", 0, 700, 0, SECRET)
    return rig, rig.system.tags[700] == B and rig.do("load", 0, rig.map(1, 700), 0).value == SECRET


def a_large_tag_for_two(policy: TagPolicy) -> tuple[Rig, bool]:
    """A frame of B's is put under a large tag of A's."""
    rig = with_large_page(policy, 511)
    rig.must("assign", 1023, B, 100)
    rig.must("write_pte", 2, 1023, 0, SECRET)
    rig.do("merge", 512)
    return rig, rig.do("load", 0, rig.map(1, 1023), 0).value == SECRET


def a_device(policy: TagPolicy) -> tuple[Rig, bool]:
    """D7."""
    rig = Rig(policy)
    return rig, rig.do("dma_read", 0, 13, 0).value == SECRET


def a_device_that_remembers(policy: TagPolicy) -> tuple[Rig, bool]:
    """D7 by what the IOMMU has looked up before the frame changed hands."""
    rig = Rig(policy)
    rig.must("dma_read", 0, 5, 0)
    rig.must("reclaim", 5)
    rig.acknowledge(5)
    rig.give_to_b(5)
    return rig, rig.do("dma_read", 0, 5, 0).value == SECRET


def old_content(policy: TagPolicy) -> tuple[Rig, bool]:
    """D11: B gets a frame of A's as it was."""
    rig = Rig(policy)
    rig.must("write_pte", 0, 5, 0, SECRET)
    rig.must("reclaim", 5)
    rig.acknowledge(5)
    rig.do("assign", 5, B, 100)
    rig.do("write_pte", 2, 12, 1, entry(5))
    return rig, rig.do("load", 2, 0x1000, 0).value == SECRET


def given_away_twice(policy: TagPolicy) -> tuple[Rig, bool]:
    """The host gives away a frame that is B's."""
    rig = Rig(policy)
    rig.do("scrub", 13)
    rig.do("assign", 13, A, 100)
    return rig, rig.do("load", 0, rig.map(1, 13), 0).is_completed


def the_hosts_frame(policy: TagPolicy) -> tuple[Rig, bool]:
    """The host gives away a frame of its own."""
    rig = Rig(policy)
    rig.do("scrub", 0)
    return rig, rig.do("assign", 0, A, 100).is_completed


def a_tag_of_ones_own(policy: TagPolicy) -> tuple[Rig, bool]:
    """The guest makes B's page its own."""
    rig = Rig(policy)
    rig.do("set_tag", 0, 13)
    return rig, rig.do("load", 0, rig.map(1, 13), 0).value == SECRET


def an_asid_used_again(policy: TagPolicy) -> tuple[Rig, bool]:
    """B gets a vCPU and the ASID under which A's translations are cached."""
    rig = Rig(policy)
    rig.must("write_pte", 0, 5, 0, SECRET)
    rig.must("load", 0, 0, 0)
    rig.must("run", 0, B, 1, entry(9, 0))
    return rig, rig.do("load", 0, 0, 0).value == SECRET


def a_plain_guests_old_frame(policy: TagPolicy) -> tuple[Rig, bool]:
    """A plain guest's frame is reclaimed, but the host's map says that it has it still."""
    rig = Rig(policy, mode=Mode.NESTED)
    rig.must("reclaim", 5)
    rig.acknowledge(5)
    rig.give_to_b(5)
    return rig, rig.do("load", 0, 0, 0).value == SECRET


ATTACKS: list[tuple[str, Attack, set[str]]] = [
    ("check_leaf", a_page_of_another, {"T1"}),
    ("check_table_reads", a_table_of_another, {"T2"}),
    ("check_root", a_root_of_another, {"T2"}),
    ("check_accessed_dirty_writes", an_accessed_bit_behind_the_hosts_back, {"T2"}),
    ("wait_for_acknowledgements", a_stale_translation, {"T1", "T3", "T5"}),
    ("shootdown_reaches_walk_caches", a_stale_table, {"T2", "T3"}),
    ("retag_before_shootdown", forgotten_too_early, {"T1", "T3"}),
    ("abort_walks_on_acknowledge", a_walk_across_the_shootdown, {"T1", "T3"}),
    ("abort_walks_on_switch", a_walk_across_a_switch, {"T1", "T3"}),
    ("uniform_large_pages", a_page_across_owners, {"T1", "T3", "T7"}),
    ("shootdown_covers_large_pages", a_frame_of_a_cached_large_page, {"T1", "T3", "T7"}),
    ("split_before_retag", a_frame_under_a_large_tag, {"T1", "T7"}),
    ("merge_one_owner", a_large_tag_for_two, {"T1", "T7"}),
    ("check_dma", a_device, {"T9"}),
    ("flush_iotlb", a_device_that_remembers, {"T9"}),
    ("scrub_on_reuse", old_content, {"T5"}),
    ("free_frames_only", given_away_twice, {"T4"}),
    ("free_frames_only", the_hosts_frame, {"T4", "T8"}),
    ("host_only_tags", a_tag_of_ones_own, {"T4"}),
    ("flush_on_asid_reuse", an_asid_used_again, {"T1", "T3"}),
    ("unmap_on_reclaim", a_plain_guests_old_frame, {"T1", "T11"}),
]
ids = [attack.__name__ for _guard, attack, _expected in ATTACKS]


@pytest.mark.parametrize("tag_check", ["fill", "access"])
@pytest.mark.parametrize(("_guard", "attack", "_expected"), ATTACKS, ids=ids)
def test_the_attack_is_stopped(_guard, attack, _expected, tag_check):
    rig, succeeded = attack(replace(INTENDED, tag_check=tag_check))
    assert not succeeded
    assert rig.violated == set()


@pytest.mark.parametrize(("guard", "attack", "expected"), ATTACKS, ids=ids)
def test_the_attack_works_without_the_guard(guard, attack, expected):
    rig, succeeded = attack(without(guard))
    assert succeeded
    assert expected <= rig.violated


CARRIED_TOO = {
    "check_leaf": {
        *("forgotten_too_early", "a_walk_across_the_shootdown", "a_page_across_owners", "a_frame_of_a_cached_large_page"),
        *("a_large_tag_for_two", "old_content", "given_away_twice", "a_tag_of_ones_own"),
    },
    "check_table_reads": {"a_stale_table"},
    "uniform_large_pages": {"a_frame_of_a_cached_large_page"},
    "retag_before_shootdown": {"an_accessed_bit_behind_the_hosts_back"},
    "check_dma": {"a_device_that_remembers"},
}
"""What works too with a guard off: by naming the frame directly; or, of the accessed bit, because the table is A's still."""


@pytest.mark.parametrize("guard", TAG_GUARDS)
def test_no_other_attack_works_without_the_guard(guard, monkeypatch):
    monkeypatch.setattr(Rig, "watches", False)
    others = [attack for other, attack, _expected in ATTACKS if other != guard]
    assert {attack.__name__ for attack in others if attack(without(guard))[1]} == CARRIED_TOO.get(guard, set())


def test_every_guard_has_an_attack():
    assert {guard for guard, _attack, _expected in ATTACKS} == TAG_GUARDS.keys()


def test_an_accessed_bit_lands_in_anothers_frame_without_both_checks():
    """D3 on B's page: the read check stops it, and the check of writes would if that were missing."""
    flags = RW  # no accessed bit: the walker wants to set one
    for off, expected in (
        ((), False),
        (("check_table_reads",), False),
        (("check_table_reads", "check_accessed_dirty_writes"), True),
    ):
        rig = Rig(replace(INTENDED, **dict.fromkeys(off, False)))
        rig.must("write_pte", 2, 13, 0, entry(5, flags))
        rig.must("write_pte", 0, 3, 1, entry(13))
        rig.do("load", 0, 1 << 21, 0)
        assert (rig.system.memory.get(13, 0) != entry(5, flags)) is expected


def test_a_guest_that_ignores_the_host_keeps_nothing():
    """D8: reclaiming needs nothing of the guest."""
    rig = Rig()
    for frame in range(1, 9):
        rig.must("load" if frame == 1 else "flush", 0, *((0, 0) if frame == 1 else ()))
        rig.must("reclaim", frame)
        rig.acknowledge(frame)
        rig.must("scrub", frame)
    assert rig.do("load", 0, 0, 0).fault.kind is FaultKind.TAG
    assert rig.violated == set()


@pytest.mark.parametrize("levels", [4, 5])
def test_tables_that_name_themselves_are_harmless(levels):
    """D9: the root is its own table at every level, and the page too."""
    rig = Rig(levels=levels)
    rig.must("write_pte", 0, 1, 0, entry(1))
    step = rig.do("load", 0, 0, 0)
    assert step.value == entry(1, RW | Entry.A.value)
    assert len([touch for touch in step.touches if touch.kind == "table"]) == levels
    assert rig.do("store", 0, 0, entry(13), 0).is_completed
    rig.must("flush", 0)
    assert rig.do("load", 0, 0, 0).fault.frame == 13
    assert rig.violated == set()


def test_a_storm_of_tag_faults_changes_nothing():
    """D10: each fault is an exit, and the system after it is the one before it."""
    rig = Rig()
    address = rig.map(1, 13)
    rig.do("load", 0, address, 0)
    before = snapshot(rig.system)
    for _ in range(100):
        step = rig.do("load", 0, address, 0)
        assert (step.fault.kind, step.fault.frame) == (FaultKind.TAG, 13)
    after = snapshot(rig.system)
    assert before["memory"] == after["memory"]
    assert before["tags"] == after["tags"]
    assert rig.violated == set()


def snapshot(system: System) -> dict[str, object]:
    return {"memory": sorted(system.memory.written()), "tags": dict(system.tags.tags.rows)}


def test_the_race_is_harmless_while_the_frame_is_nobodys():
    """Between retagging and acknowledging a store may still land; nobody else has the frame, and its content goes along."""
    rig = Rig()
    rig.must("store", 0, 0, 1, 0)
    rig.must("reclaim", 5)
    rig.must("store", 0, 0, 2, 0)
    assert rig.do("migrate", 5, 20).code is Code.PENDING
    rig.acknowledge(5)
    rig.must("migrate", 5, 20)
    assert rig.system.memory.get(20, 0) == 2
    rig.must("scrub", 5)
    assert rig.violated == set()


def test_looking_tags_up_at_each_access_leaves_no_race():
    rig = Rig(replace(INTENDED, tag_check="access"))
    rig.must("store", 0, 0, 1, 0)
    rig.must("reclaim", 5)
    assert rig.do("store", 0, 0, 2, 0).fault.kind is FaultKind.TAG
    assert rig.violated == set()


def test_every_invariant_falls_to_some_attack():
    fallen = {name for guard, attack, _expected in ATTACKS for name in attack(without(guard))[0].violated}
    assert TPT_INVARIANTS.keys() - fallen <= {"T6", "T10"}  # what no guard carries: pass-through, and progress


def test_tags_of_free_and_host_frames_are_no_vms():
    assert FREE < HOST < A < B
