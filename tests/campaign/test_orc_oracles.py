"""The invariants of shared objects on many lanes at once, against the same invariants looked at one system at a time."""

import numpy as np
import pytest

from capvisor.campaign.orc_drill import NEVER, SLOTS, Drill, drill
from capvisor.campaign.orc_moves import play
from capvisor.campaign.orc_program import PROGRAMS, Case, OnReference, Replay
from capvisor.campaign.orc_systems import Deployment, Systems
from capvisor.dsl.orc_watch import OrcWatch
from capvisor.fastpath.capability import Lanes
from capvisor.model.capability import root
from capvisor.spec.formats import CC64, CC128, CapabilityFormat
from capvisor.spec.object_policy import INTENDED, OBJECT_GUARDS, OBJECT_POLICIES, ObjectPolicy, without
from capvisor.spec.orc import OPERATIONS, Code
from capvisor.spec.orc_invariants import ORC_INVARIANTS, Step
from tests.shares import some

FORMATS = pytest.mark.parametrize("fmt", [CC128, CC64], ids=lambda fmt: fmt.name)
OFF = {guard: without(guard) for guard in OBJECT_GUARDS}


def one_at_a_time(systems: Systems, lane: int) -> dict[str, int]:
    """The invariants that are violated in a lane, and after how many events they first are."""
    watch, first, events = OrcWatch(), dict[str, int](), 0

    def note(step: Step) -> None:
        for found in watch.violated(step):
            first.setdefault(found.invariant, events)

    replay = Replay(OnReference(Case(systems.format, systems.deployment, ()), systems.policy, note))
    for events, event in enumerate(systems.events, 1):
        if event.lanes[lane]:
            assert replay.execute(PROGRAMS.case_of(systems, systems.deployment, lane, events).events[-1])
    return first


def agrees(systems: Systems) -> set[str]:
    """Hold what falls in each lane against what falls there one by one; what that is."""
    fallen = set[str]()
    for lane in range(systems.lanes):
        mine = {found.what: found.events for found in systems.found if found.lane == lane}
        assert mine == one_at_a_time(systems, lane)
        fallen |= mine.keys()
    return fallen


@FORMATS
@pytest.mark.parametrize("policy", OBJECT_POLICIES.values(), ids=OBJECT_POLICIES)
def test_the_same_invariants_fall_at_the_same_steps(policy: ObjectPolicy, fmt: CapabilityFormat) -> None:
    assert (agrees(play([7], fmt, 3, 16, policy, 1)) == set()) == (policy is INTENDED)


@pytest.mark.parametrize("guard", some(list(OFF), 2))
def test_the_same_invariants_fall_at_the_same_steps_of_a_drill_without_a_guard(guard: str) -> None:
    assert agrees(drill(CC64, 1, OFF[guard], Drill.run_operations))


def test_every_invariant_falls_without_some_guard_but_the_one_that_no_guard_carries() -> None:
    guards = ("code_without_store", "identity_checked", "revoke_before_verify", "purge_memory", "free_slots_only")
    fallen = {found.what for guard in guards for found in drill(CC128, 1, OFF[guard], Drill.run_operations).found}
    fallen |= {found.what for found in drill(CC128, 1, OFF["scrub_on_reuse"], Drill.run_operations).found}
    fallen |= {found.what for found in play([1], CC128, 16, 24, OFF["free_slots_only"]).found}
    assert fallen == ORC_INVARIANTS.keys() - {"O7"}


@FORMATS
def test_a_drill_ends_every_operation_in_every_way_and_nothing_falls(fmt: CapabilityFormat) -> None:
    systems = drill(fmt, 2)
    assert systems.found == [] and systems.oracles is not None
    assert all(systems.oracles.concerned.values()) and systems.oracles.concerned.keys() == ORC_INVARIANTS.keys()
    ends = {(name, code) for name, row in OPERATIONS.items() for code in (Code.OK, *row.refusals)}
    assert {(name, Code(number)) for name, number in systems.counts.codes} == ends - NEVER


# -- what is compared ------------------------------------------------------------------------------------------------------


@pytest.fixture
def systems() -> Systems:
    return Systems(CC128, Deployment(SLOTS, 2), 4)


def test_what_the_fast_path_alone_holds_is_a_difference_wherever_it_is(systems: Systems) -> None:
    batch, lane, harts = systems.batch, 2, systems.batch.harts
    second = systems.lanes + lane
    places = [
        *((harts.tags, (7, lane)), (harts.metas, (7, second)), (harts.addresses, (35, lane))),
        *((harts.pc, (lane,)), (harts.is_reserved, (second,))),
        *((column, (lane,)) for name, column in harts.numbers.items() if name != "reservation"),
        *((batch.memory.tags, (lane, 9)), (batch.memory.halves, (lane, 900, 1))),
        *((column, (second,)) for column in batch.threads.values()),
        *((column, (lane, SLOTS - 1)) for column in batch.slots.values()),
        *((column, (lane, 8)) for column in batch.tenants.values()),
        *((column, (lane, 1, 5)) for column in batch.mappings.values()),
        (batch.exports, (lane, 4, 500)),
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
    systems.monitors[2].tenants.rows[8] = systems.monitors[2].tenants[1]  # type: ignore[attr-defined]
    assert np.flatnonzero(systems.mirror.misread()).tolist() == [1, 2]
    with pytest.raises(AssertionError, match="lane 1"):
        systems.finish()


def test_a_capability_that_both_sides_hold_is_seen_by_the_oracles(systems: Systems) -> None:
    cap = root(CC128)
    for lane in (0, 3):
        systems.monitors[lane].threads[0].hart.write(9, cap)
    batch, harts = systems.batch, np.array([0, 3])
    values = (np.full(2, each, kind) for each, kind in zip(cap[1:], (np.bool_, np.uint64, np.uint64), strict=True))
    batch.write(9, harts, Lanes(*values))
    systems.instruction(systems.thread_of(1), "addi", (5, 5, 0))
    assert {(found.what, found.lane) for found in systems.found} == {("O5", 0), ("O5", 3), ("O10", 0), ("O10", 3)}


def test_a_refusal_that_changes_something_on_both_sides_is_seen_by_the_oracles(systems: Systems) -> None:
    """O7 falls without no guard: here the reference and the fast path write a row where they refuse."""
    slot = systems.monitors[1].slots[6]._replace(object=3)
    systems.monitors[1].slots[6] = slot
    systems.batch.slots["object"][1, 6] = 3
    systems.operation(systems.thread_of(1), "allocate", (SLOTS,))
    assert [(found.what, found.lane) for found in systems.found] == [("O7", 1)]
    assert "O7" not in OFF
    systems.operation(systems.thread_of(1), "allocate", (6,))
    assert {found.what for found in systems.found} == {"O7"}
