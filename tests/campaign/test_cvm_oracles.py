"""The invariants of cVMs on many lanes at once, against the same invariants looked at one system at a time."""

import numpy as np
import pytest

from capvisor.campaign.cvm_attacks import play
from capvisor.campaign.cvm_drill import drill
from capvisor.campaign.cvm_moves import FIRST_BASE, MEMORY_BASE, MEMORY_BYTES, REGION_BYTES
from capvisor.campaign.cvm_oracles import OF_CAPABILITIES, OF_GRANTS, OF_PAIRS, OF_STEPS, READS
from capvisor.campaign.cvm_program import PROGRAMS, OnReference, Replay
from capvisor.campaign.cvm_systems import Systems
from capvisor.dsl.cvm_watch import InvariantWatch
from capvisor.fastpath.capability import Lanes
from capvisor.model.capability import root
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Step
from capvisor.spec.formats import CC64, CC128, CapabilityFormat
from capvisor.spec.policy import INTENDED, PROTOTYPE_0_0_1, PROTOTYPE_0_0_2, MonitorPolicy, without
from tests.shares import some

POLICIES = {
    "intended": INTENDED,
    "prototype-0.0.1": PROTOTYPE_0_0_1,
    "prototype-0.0.2": PROTOTYPE_0_0_2,
    **{guard: without(guard) for guard in ("distinct_otypes", "saved_context_private", "purge_slots", "scrub_on_create")},
}


def one_at_a_time(systems: Systems, lane: int) -> dict[str, int]:
    """The invariants that are violated in a lane, and after how many events they first are."""
    watch, first, events = InvariantWatch(), dict[str, int](), 0

    def note(step: Step) -> None:
        for found in watch.violated(step):
            first.setdefault(found.invariant, events)

    replay = Replay(OnReference(systems.format, systems.policy, note))
    for events, event in enumerate(systems.events, 1):
        if event.lanes[lane]:
            replay.execute(PROGRAMS.case_of(systems, None, lane, events).events[-1])
    return first


@pytest.mark.parametrize("fmt", [CC128, CC64], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("policy", some(list(POLICIES.values()), 2), ids=some(list(POLICIES), 2))
def test_the_same_invariants_fall_at_the_same_steps(policy: MonitorPolicy, fmt: CapabilityFormat) -> None:
    systems = play([7], fmt, 3, 14, policy)
    for lane in range(3):
        mine = {found.what: found.events for found in systems.found if found.lane == lane}
        assert mine == one_at_a_time(systems, lane)


def test_every_invariant_is_evaluated_somewhere() -> None:
    assert {*OF_STEPS, *OF_CAPABILITIES, *OF_PAIRS, *OF_GRANTS} == CVM_INVARIANTS.keys() == READS.keys()
    assert READS["C1"].capabilities and READS["C2"].place == {"cvm", "other"} and "accesses" in READS["C10"].step
    assert READS["C15"].step >= {"name", "used", "frame"} and READS["C19"].place == {"cvm", "grant", "thread"}


def test_a_drill_answers_every_call_in_every_way_and_nothing_falls() -> None:
    for fmt in (CC128, CC64):
        systems = drill(fmt, 2)
        assert systems.found == []
        assert all(systems.oracles.concerned.values())  # type: ignore[union-attr]


# -- what is compared ------------------------------------------------------------------------------------------------------


@pytest.fixture
def systems() -> Systems:
    found = Systems(CC128, MEMORY_BASE, MEMORY_BYTES, 4)
    found.create(1, np.full(4, FIRST_BASE, np.uint64), REGION_BYTES)
    return found


def test_what_the_fast_path_alone_holds_is_a_difference_wherever_it_is(systems: Systems) -> None:
    batch, lane, harts = systems.batch, 2, systems.batch.harts
    places = [
        (harts.tags, (7, lane)),
        (harts.metas, (7, lane)),
        (harts.addresses, (35, lane)),
        (harts.pc, (lane,)),
        (harts.is_reserved, (lane,)),
        (harts.numbers["mscratch"], (lane,)),
        (batch.memory.tags, (lane, 9)),
        (batch.memory.halves, (lane, 9, 1)),
        (batch.threads["waits"], (lane,)),
        (batch.frames["is_inside"], (lane,)),
        (batch.regions["base"], (lane, 1)),
        (batch.regions.numbers, (lane, 1)),
        (batch.grants["is_live"], (lane, 1)),
        (batch.is_slot, (lane, 3)),
        (batch.clock, (lane,)),
        (batch.printed, (lane,)),
    ]
    for array, place in places:
        kept = array[place]
        array[place] = kept ^ np.asarray(1, array.dtype)
        assert np.flatnonzero(systems.mirror.differing()).tolist() == [lane], place
        array[place] = kept
    assert not systems.mirror.differing().any()


def test_what_the_reference_writes_unsaid_is_noticed_at_the_end(systems: Systems) -> None:
    systems.finish()
    hart = systems.monitors[1].threads[0].hart
    list.__setitem__(hart.registers, 9, root(CC128))  # type: ignore[arg-type]
    assert systems.mirror.misread().tolist() == [1]
    with pytest.raises(AssertionError, match="lane 1"):
        systems.finish()


def test_a_capability_that_both_sides_hold_is_seen_by_the_oracles(systems: Systems) -> None:
    cap = root(CC128)
    for lane in (0, 3):
        systems.monitors[lane].threads[0].hart.write(9, cap)
    batch, harts = systems.batch, np.array([0, 3])
    values = (np.full(2, each, kind) for each, kind in zip(cap[1:], (np.bool_, np.uint64, np.uint64), strict=True))
    batch.write(9, harts, Lanes(*values))
    systems.instruction(0, "addi", (5, 5, 0))
    fallen = {(found.what, found.lane) for found in systems.found}
    assert {("C1", 0), ("C1", 3), ("C4", 0), ("C17", 3)} <= fallen and {lane for _what, lane in fallen} == {0, 3}
