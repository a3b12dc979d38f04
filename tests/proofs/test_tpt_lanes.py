"""The fast path of translation pass-through is the reference, operation by operation; and changes with which it isn't."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import z3

from capvisor.fastpath.requests import OPERATION_KERNELS
from capvisor.fastpath.tlb import Slots
from capvisor.model.paging import READ, UPDATE
from capvisor.proofs import afresh, incremental, paging_lanes, shaped, tpt, tpt_lanes
from capvisor.proofs.mutants import Mutant, in_force
from capvisor.proofs.shaped import Decided, Grid, Shaped, any_of, constant, made_of, plain, symbolic_numpy
from capvisor.proofs.symbolic import SymInt, Unfaithful
from capvisor.spec.paging import LEVELS
from capvisor.spec.tag_policy import INTENDED, without
from capvisor.spec.tpt import OPERATIONS
from tests.shares import some


def found(name: str, policy=INTENDED) -> dict[str, str]:
    return {each: kept.result for each, kept in tpt_lanes.prove(tpt_lanes.PREFIX + name, policy, 60).kept.items()}


PROVED = {tpt_lanes.SAME: "unsat", tpt_lanes.RANGES: "unsat"}


@contextmanager
def changed(module: str, before: str, after: str) -> Iterator[None]:
    """A kernel's module with a change in its source."""
    kernels = dict(OPERATION_KERNELS)
    with in_force(Mutant("change", f"capvisor.fastpath.{module}", before, after)):
        # Executing the source has declared kernels anew; those that are there have the changed code.
        OPERATION_KERNELS.update(kernels)
        yield


def test_every_theorem_is_about_an_operation_that_there_is_and_can_be_asked_for() -> None:
    assert set(tpt_lanes.NAMES.values()) == {*OPERATIONS, *tpt_lanes.PARTS}
    assert {(stage, level) for _name, stage, level in tpt_lanes.PARTS.values()} == {
        (stage, level) for stage in (READ, UPDATE) for level in range(1, LEVELS[-1] + 1)
    }
    assert set(tpt_lanes.LEANS_ON["stepped_load"]) == {
        "lanes_begin_walk",
        "stepped_step_walk",
        *(f"stepped_{name}" for name in tpt_lanes.PARTS),
    }
    assert {*tpt_lanes.steps(), *paging_lanes.steps()} <= set(tpt.all_steps())
    assert not set(tpt_lanes.steps()) & set(tpt.steps())


@pytest.mark.parametrize("name", ["release", "create", "claim", "swap_out", "write_pte"])
def test_an_operation_of_the_fast_path_is_the_references(name: str) -> None:
    assert found(name) == PROVED


def test_it_is_so_without_a_guard_too() -> None:
    assert found("claim", without("free_frames_only")) == PROVED


CHANGES = [
    ("release", "hosts", "!= HOST, Code.NOT_OWNED", "!= FREE, Code.NOT_OWNED"),
    ("split", "hosts", "frames[passed] >> INDEX_BITS] = False", "frames[passed] >> INDEX_BITS] = True"),
    ("create", "hosts", "np.isin(levels, LEVELS)", "np.isin(levels, (4,))"),
    ("claim", "hosts", "frames[passed]] = HOST", "frames[passed]] = FREE"),
    (
        "swap_out",
        "hosts",
        'for name in ("vm", "guest_frame"):\n        system.swaps',
        'for name in ("vm",):\n        system.swaps',
    ),
    ("set_tag", "refusals", "where=where & (self.code == 0)", "where=where"),
    ("write_pte", "guests", "index[passed] * np.uint64(WORD_BYTES)", "index[passed]"),
    ("write_pte", "tpt", "word = address // np.uint64(WORD_BYTES)", "word = address // np.uint64(2 * WORD_BYTES)"),
    ("write_pte", "tpt", "np.where(self.large[lanes, places >> REGION_SHIFT], first, places)", "places"),
    ("scrub", "hosts", "system.words[lanes, frames] = 0", "pass"),
    ("acknowledge", "hosts", "system.pending[lanes, frames, vcpus] = False", "system.pending[lanes, frames] = False"),
]


@pytest.mark.parametrize(("name", "module", "before", "after"), some(CHANGES, 2), ids=lambda each: each[:24])
def test_a_changed_kernel_is_noticed(name: str, module: str, before: str, after: str) -> None:
    with changed(module, before, after):
        assert "sat" in found(name).values()


def test_a_walk_of_the_fast_path_is_the_references() -> None:
    proved = afresh.asked_of(paging_lanes.ways("lanes_walk_host", 4), (paging_lanes.SAME,), 60)
    assert proved.kept[paging_lanes.SAME].result == "unsat"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("lanes_walk_host", "np.bitwise_and(rights, scratch, out=rights)", "np.copyto(rights, scratch)"),
        ("lanes_walk_host", "np.bitwise_and(out, _ADDRESS, out=out)", "pass"),
        ("lanes_walk_native", "np.bitwise_or(way.error, int(ErrorCode.P), out=scratch)", "np.copyto(scratch, way.error)"),
    ],
)
def test_a_changed_walker_is_noticed(name: str, before: str, after: str) -> None:
    with changed("paging", before, after):
        ways = paging_lanes.ways(name, 4)
        assert afresh.asked_of(ways, (paging_lanes.SAME,), 60).kept[paging_lanes.SAME].result == "sat"


@pytest.mark.parametrize("name", ["release", "write_pte", "assign", "run"])
def test_what_is_supposed_of_a_completed_operation_can_hold(name: str) -> None:
    completed = [way for way in tpt_lanes.ways(name) if way.is_completed]
    assert completed and all(incremental.can_hold(way, timeout_s=60) for way in completed)


# -- what it is made of ----------------------------------------------------------------------------------------------------


def values_of(array: Shaped) -> list:
    return [plain(term) for term in array.cells.flat]


@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.uint8])
def test_arrays_of_plain_elements_are_numpys(dtype: type) -> None:
    rng = np.random.default_rng(7)
    a, b = (rng.integers(0, 100, (3, 4)).astype(dtype) for _ in range(2))
    one, other = made_of(a), made_of(b)
    for use in (
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: x == y,
        lambda x, y: x[1:] != y[:2],
        lambda x, y: x[:, None][0] ^ y[0],
        lambda x, y: x % 7 if x.dtype != np.uint8 else x,
        lambda x, y: x >> 2 if x.dtype != np.uint8 else x,
    ):
        real, symbolic = use(a, b), use(one, other)
        assert symbolic.dtype == real.dtype and symbolic.shape == real.shape
        assert np.array(values_of(symbolic)).astype(real.dtype).tolist() == real.ravel().tolist()


def test_functions_that_pick_elements_are_numpys() -> None:
    mask = np.array([[False, True, True], [False, False, False]])
    numbers = np.array([[5, 3, 3], [9, 8, 9]], np.uint64)
    symbolic, others = made_of(mask), made_of(numbers)
    assert values_of(symbolic.argmax(axis=1)) == mask.argmax(axis=1).tolist()
    assert values_of(others.argmin(axis=1)) == numbers.argmin(axis=1).tolist()
    assert values_of(symbolic.any(axis=1)) == mask.any(axis=1).tolist()
    assert values_of(others[0][symbolic[0]]) == numbers[0][mask[0]].tolist()
    assert [values_of(each) for each in shaped._nonzero(symbolic)] == [each.tolist() for each in np.nonzero(mask)]
    picked = shaped._where(symbolic, others, np.uint64(1))
    assert values_of(picked) == np.where(mask, numbers, np.uint64(1)).ravel().tolist()
    others[0][made_of([0, 2])] = np.uint64(4)
    assert values_of(others)[:3] == [4, 3, 4]


def test_what_cant_be_carried_faithfully_is_refused() -> None:
    number = SymInt(z3.ZeroExt(1, z3.BitVec("n", 64)), 0, 2**64 - 1)
    array = any_of(number)
    for use in (
        lambda: bool(array),
        lambda: list(array),
        lambda: np.sort(array),
        lambda: made_of([[1]])[array],
        lambda: 7 % array,
    ):
        with pytest.raises(Unfaithful):
            use()


def test_a_table_is_as_it_was_but_for_what_was_written_and_says_what_is_beyond_its_end() -> None:
    within: list = []
    grid = Grid(np.uint64, (5, Decided(3)), lambda row, slot: row * 10 + slot, within.append)
    lanes = made_of([0])
    grid[lanes, made_of([2]), made_of([1])] = np.uint64(7)
    assert values_of(grid[lanes, made_of([2])]) == [20, 7, 22]
    assert values_of(grid[lanes, made_of([3])]) == [30, 31, 32]
    assert all(within)
    grid[lanes, made_of([5]), made_of([0])]
    assert not all(within)
    with pytest.raises(Unfaithful, match="another lane"):
        grid[made_of([1]), made_of([0]), made_of([0])]


def test_arrays_that_kernels_make_are_symbolic() -> None:
    import capvisor.fastpath.tlb as module

    with symbolic_numpy(module):
        assert isinstance(module.np.zeros(2, module.np.uint64), Shaped)
        assert module.np.uint64(3) == 3
    assert module.np is np


def test_a_question_asked_afresh_finds_what_falls() -> None:
    x = z3.BitVec("x", 8)
    ways = [incremental.Way((x > 3,), {"same": (x > 2, x > 4)}, True, ("",), frozenset({"g"}), frozenset())]
    proved = afresh.asked_of(ways, ("same",), 10)
    assert proved.kept["same"].result == "sat" and proved.guards == {"g"}
    assert plain(constant(3, np.uint8)) == 3


def test_to_empty_slots_is_what_stands_for_it_in_proofs() -> None:
    rng, columns = np.random.default_rng(4), {"is_live": np.bool_, "page": np.uint64}
    slots = Slots(3, 2, 5, columns)
    for name in columns:
        slots.columns[name][...] = rng.integers(0, 2, (3, 2, 5))
    lanes, vcpus, which = np.array([2, 0]), np.array([1, 1]), rng.random((2, 5)) < 0.5
    for name, column in slots.columns.items():
        expected = column.copy()
        expected[lanes, vcpus] = np.where(which, 0, expected[lanes, vcpus])
        columns[name] = expected
    slots.drop(lanes, vcpus, which)
    assert all((slots.columns[name] == expected).all() for name, expected in columns.items())
