"""The invariants of a para-pass-through VMM on many lanes at once, against the same invariants looked at one by one."""

import numpy as np
import pytest

from capvisor.campaign import vmm_oracles
from capvisor.campaign.vmm import DRILL_LANES
from capvisor.campaign.vmm_drill import DEPLOYMENT, NEVER, drill, events_of_script
from capvisor.campaign.vmm_moves import Deployment, play
from capvisor.campaign.vmm_program import event_of
from capvisor.campaign.vmm_states import FIXED, PARTS
from capvisor.campaign.vmm_systems import Systems
from capvisor.dsl.vmm_watch import VmmWatch
from capvisor.fastpath.vmm import sector_numbers
from capvisor.model.vmm import System
from capvisor.model.vmm_system import perform
from capvisor.spec import vmm_refusals, vmm_steps
from capvisor.spec.vmm import OPERATIONS, Code
from capvisor.spec.vmm_invariants import KEPT_PARTS, VMM_INVARIANTS, deployed_as_image
from capvisor.spec.vmm_policy import INTENDED, VMM_POLICIES, VmmPolicy, without
from tests.shares import some

GUARDS = (
    *("filter_mappings", "keep_on_init", "follow_window_moves", "iommu_hides_region", "read_back_registers"),
    *("shadow_descriptors", "descriptors_outside_region", "whole_descriptors", "decrypt_reads", "confine_extensions"),
    *("start_gated", "block_while_busy", "unmap_registers", "reset_follows", "keep_on_resume"),
    *("claim_before_command", "recheck_before_write", "leave_when_deployed", "track_dma_writes", "whole_last_round"),
)
POLICIES = {**VMM_POLICIES, **{guard: without(guard) for guard in GUARDS}}


def one_at_a_time(systems: Systems, deployment: Deployment, lane: int) -> dict[str, int]:
    """The invariants that are violated in a lane, and after how many events they first are."""
    system, watch, first = System(*deployment.size(), systems.policy), VmmWatch(), dict[str, int]()
    deployment.start(system)
    for count, event in enumerate(systems.events, 1):
        if event.lanes[lane]:
            mine = event_of(event, lane)
            first |= {found.invariant: count for found in watch.violated(perform(system, mine.name, *mine.operands))}
    return first


LANES, MOVES = 96, 15


def agrees(policy: VmmPolicy, seed: int, lanes: int = LANES, size: str = "tiny") -> int:
    """Hold what falls in some lanes, and in one where nothing does, against what falls one by one; in how many it does."""
    systems, deployment = play([seed], lanes, MOVES, policy, size=size)
    found = {lane: {each.what: each.events for each in systems.found if each.lane == lane} for lane in range(lanes)}
    fallen = [lane for lane, what in found.items() if what]
    for lane in (*fallen[:2], *fallen[-1:], *[lane for lane in found if lane not in fallen][:1]):
        assert found[lane] == one_at_a_time(systems, deployment, lane)
    return len(fallen)


@pytest.mark.parametrize("name", some(list(POLICIES), 2))
def test_the_same_invariants_fall_at_the_same_steps(name: str) -> None:
    fallen = next((count for seed in range(1 if name == "intended" else 12) if (count := agrees(POLICIES[name], seed))), 0)
    assert (fallen > 0) == (name != "intended")


@pytest.mark.parametrize("name", ["intended", "bitvisor-2009"])
def test_the_same_invariants_fall_at_the_same_steps_of_large_regions(name: str) -> None:
    assert (agrees(POLICIES[name], 2, 16, "large") > 0) == (name != "intended")


def test_all_that_is_said_of_states_is_looked_at_somewhere() -> None:
    parts = {part for row in VMM_INVARIANTS.values() for part in row.of_state}
    assert {part for _find, pairs in vmm_oracles.PLACES for _name, part in pairs} == parts
    of_step = {name for name, row in VMM_INVARIANTS.items() if row.of_step is not None}
    of_ends = {"P3", "P5", "P11", "P12", "P14"}
    of_ends |= {name for _changed, _fields, pairs in vmm_oracles.CHANGED for name, _part in pairs}
    assert {*of_ends, *(name for names in vmm_oracles.OF_TOUCHES.values() for name in names)} == of_step


def test_all_that_is_said_of_what_a_step_changes_is_looked_at_somewhere() -> None:
    parts = {part for _changed, _fields, pairs in vmm_oracles.CHANGED for _name, part in pairs}
    assert parts == {*KEPT_PARTS, vmm_steps.followed_to_its_end, deployed_as_image}


@pytest.mark.parametrize("code", [Code.BLOCKED, Code.RANGE, Code.FAILED, Code.NOTHING, Code.IOMMU, Code.NOT_YET])
def test_a_refusal_without_a_reason_falls_at_the_same_steps(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vmm_refusals.REASONS, code, lambda _step: False)
    if code is Code.RANGE:
        monkeypatch.setattr(vmm_refusals, "names_nothing", lambda _step: False)
    systems, deployment = play([3], 24, MOVES, size="tiny")
    lanes = {each.lane for each in systems.found}
    assert {each.what for each in systems.found} == {"P19"}
    for lane in sorted(lanes)[:2]:
        found = {each.what: each.events for each in systems.found if each.lane == lane}
        assert found == one_at_a_time(systems, deployment, lane)


# -- the drill -------------------------------------------------------------------------------------------------------------


def test_a_drill_ends_every_operation_in_every_way_and_nothing_falls() -> None:
    systems = drill(DRILL_LANES)
    assert systems.found == [] and systems.oracles is not None
    assert systems.oracles.concerned.keys() == VMM_INVARIANTS.keys() and all(systems.oracles.concerned.values())
    for name, row in OPERATIONS.items():
        for code in (Code.OK, *row.refusals):
            assert (systems.counts.codes[name, code] > 0) == ((name, code) not in NEVER), (name, code)
    assert {name for name in PARTS if not systems.mirror.changed[name]} == set(FIXED)


# -- what is compared ------------------------------------------------------------------------------------------------------


@pytest.fixture
def systems() -> Systems:
    made = Systems(DEPLOYMENT.size(), 4, INTENDED, DEPLOYMENT.start)
    for event in events_of_script(1)[:20]:
        made.step(event.name, tuple(np.full(4, each, np.uint64) for each in event.operands))
    assert made.found == []
    return made


def test_what_the_fast_path_alone_holds_is_a_difference_wherever_it_is(systems: Systems) -> None:
    batch, lane = systems.batch, 2
    used = int(np.flatnonzero(batch.sectors.is_used[lane])[-1])
    places = [
        *((column, (lane,)) for column in (*batch.vmm.values(), batch.keys)),
        *((column, (lane, 0)) for column in batch.vcpus.values()),
        *((column, (lane, 0, 7)) for column in batch.mappings.values()),
        *(
            (column, (lane, 2))
            for column in (*batch.devices.values(), *batch.channels.values(), *batch.deployments.values())
        ),
        *((column, (lane, 4)) for column in batch.extensions.values()),
        *((column, (lane, used)) for column in batch.sectors.columns.values()),
        *((column, (lane, 1)) for column in batch.decoding.columns.values()),
        *((column, (lane, 0)) for column in batch.copies.columns.values()),
        (batch.windows, (lane, 3, 1)),
        (batch.registers, (lane, 3, 7)),
        (batch.clean, (lane, 23)),
    ]
    for array, place in places:
        kept = array[place]
        array[place] = kept ^ np.asarray(1, array.dtype)
        assert np.flatnonzero(systems.mirror.differing()).tolist() == [lane], place
        array[place] = kept
    assert not systems.mirror.differing().any()


def test_a_sector_that_one_of_the_two_alone_has_is_a_difference(systems: Systems) -> None:
    batch = systems.batch
    batch.sectors.put(np.array([1]), sector_numbers(np.array([1]), np.array([70], np.uint64)), word=5)
    systems.models[3].media[1, 71] = 6
    systems.mirror.apply()
    assert np.flatnonzero(systems.mirror.differing()).tolist() == [1, 3]


@pytest.mark.parametrize("name", ["memory", "remote"])
def test_a_block_that_the_fast_path_alone_writes_is_a_difference(systems: Systems, name: str) -> None:
    blocks = getattr(systems.batch, name)
    blocks[np.array([1, 3]), np.array([2, 2])] = np.array([0, 1], np.uint64)
    assert systems.mirror.differing().tolist() == [False, False, False, True]
    with pytest.raises(TypeError, match="arrays of lanes and places"):
        blocks[2, 1] = 0
    blocks.array[1, 7] = 5  # unsaid
    assert not systems.mirror.differing()[1]
    assert systems.mirror.misread()[1]


def test_what_the_reference_writes_unsaid_is_noticed_at_the_end(systems: Systems) -> None:
    systems.finish()
    dict.__setitem__(systems.models[1].windows, (1, 0), 2)  # type: ignore[arg-type]
    assert np.flatnonzero(systems.mirror.misread()).tolist() == [1]
    with pytest.raises(AssertionError, match="lane 1"):
        systems.finish()
