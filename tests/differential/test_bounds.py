"""Kernels of fastpath/bounds.py against the reference, on any bits and on derived capabilities."""

import numpy as np
import pytest

from capvisor.dsl.edges import edge_numbers
from capvisor.fastpath import bounds as fast
from capvisor.fastpath.bits import floor_log2
from capvisor.fastpath.workspace import Workspace
from capvisor.model import bounds as reference
from capvisor.spec.formats import FORMATS, CapabilityFormat

ROWS = 4000
ANY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


class Case:
    """Metas, addresses, lengths and other addresses: any bits in one half of the rows, derived capabilities in the other."""

    def __init__(self, fmt: CapabilityFormat) -> None:
        rng = np.random.default_rng(fmt.address_width)
        self.fmt, self.ws = fmt, Workspace(ROWS)
        self.address, self.length, bits = self.draw(rng), self.draw(rng), self.draw(rng)
        narrowed, exact = self.words(), self.flags()
        root = np.full(ROWS, fmt.root_meta, np.uint64)
        fast.set_bounds(fmt, root, self.address, self.length, self.ws, narrowed, exact)
        self.meta = np.where(rng.integers(0, 2, ROWS) == 0, bits, narrowed)
        step = self.draw(rng) >> rng.integers(0, fmt.address_width, ROWS, dtype=np.uint64)
        down = rng.integers(0, 2, ROWS) == 0
        self.other = np.where(down, self.address - step, self.address + step) & np.uint64(fmt.address_mask)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        return edge_numbers(rng, np.zeros(ROWS, np.uint64), np.full(ROWS, self.fmt.address_mask, np.uint64))

    def words(self) -> np.ndarray:
        return np.empty(ROWS, np.uint64)

    def flags(self) -> np.ndarray:
        return np.empty(ROWS, np.bool_)

    def rows(self, *columns: np.ndarray) -> list[tuple[int, ...]]:
        return list(zip(*(column.tolist() for column in columns), strict=True))


@ANY_FORMAT
def test_decode_bounds(fmt: CapabilityFormat) -> None:
    case = Case(fmt)
    base, top, high = case.words(), case.words(), case.flags()
    fast.decode_bounds(fmt, case.meta, case.address, case.ws, base, top, high)
    expected = [reference.decode_bounds(fmt, m, a) for m, a in case.rows(case.meta, case.address)]
    assert [(b, t | h << fmt.address_width) for b, t, h in case.rows(base, top, high)] == expected


@ANY_FORMAT
def test_bounds_are_valid(fmt: CapabilityFormat) -> None:
    case, valid = Case(fmt), np.empty(ROWS, np.bool_)
    fast.bounds_are_valid(fmt, case.meta, case.ws, valid)
    assert valid.tolist() == [reference.bounds_are_valid(fmt, m) for m in case.meta.tolist()]
    assert 0 < valid.sum() < ROWS


@ANY_FORMAT
def test_set_bounds(fmt: CapabilityFormat) -> None:
    case = Case(fmt)
    meta, exact = case.words(), case.flags()
    fast.set_bounds(fmt, case.meta, case.address, case.length, case.ws, meta, exact)
    rows = case.rows(case.meta, case.address, case.length)
    assert case.rows(meta, exact) == [reference.set_bounds(fmt, m, a, a + n) for m, a, n in rows]
    assert 0 < exact.sum() < ROWS


@ANY_FORMAT
def test_address_keeps_bounds(fmt: CapabilityFormat) -> None:
    case, kept = Case(fmt), np.empty(ROWS, np.bool_)
    fast.address_keeps_bounds(fmt, case.meta, case.address, case.other, case.ws, kept)
    rows = case.rows(case.meta, case.address, case.other)
    assert kept.tolist() == [reference.address_keeps_bounds(fmt, m, a, b) for m, a, b in rows]
    assert 0 < kept.sum() < ROWS


@ANY_FORMAT
def test_increment_is_representable(fmt: CapabilityFormat) -> None:
    case, kept = Case(fmt), np.empty(ROWS, np.bool_)
    increment = (case.other - case.address) & np.uint64(fmt.address_mask)
    fast.increment_is_representable(fmt, case.meta, case.address, increment, case.ws, kept)
    rows = case.rows(case.meta, case.address, increment)
    assert kept.tolist() == [reference.increment_is_representable(fmt, m, a, i) for m, a, i in rows]
    assert 0 < kept.sum() < ROWS


@ANY_FORMAT
def test_representable_length_and_alignment_mask(fmt: CapabilityFormat) -> None:
    case = Case(fmt)
    length, mask = case.words(), case.words()
    fast.representable_length(fmt, case.length, case.ws, length)
    fast.alignment_mask(fmt, case.length, case.ws, mask)
    expected = [(reference.representable_length(fmt, n), reference.alignment_mask(fmt, n)) for n in case.length.tolist()]
    assert case.rows(length, mask) == expected


def test_floor_log2() -> None:
    values = [0, 1, 2, 3, 4, 2**51 - 1, 2**51, 2**52 - 1] + [2**i for i in range(52)]
    out = np.array(values, np.uint64)
    floor_log2(out, out)
    assert out.tolist() == [max(value, 1).bit_length() - 1 for value in values]


@ANY_FORMAT
def test_the_quick_check_at_every_address_of_a_region_and_around_it(fmt: CapabilityFormat) -> None:
    # Bounds of exponent 0, so that every unit can be visited: from two addresses to all of the region and its neighbours.
    region = 1 << fmt.mantissa_width
    base = 5 * region + 3
    meta, _exact = reference.set_bounds(fmt, fmt.root_meta, base, base + region // 4 - 1)
    targets = np.arange(base - 2 * region, base + 2 * region, max(1, region // 2000) | 1, dtype=np.uint64)
    eighth, start = region >> 3, (base & ~(region // 8 - 1)) - (region >> 3)
    edges = np.array([start - 1, start, start + 1, start + region - 2, start + region - 1, start + region], np.uint64)
    targets = np.concatenate([targets, edges])
    ws = Workspace(len(targets))
    for address in (base, start, start + region - 1, base + eighth):
        increment = (targets - np.uint64(address)) & np.uint64(fmt.address_mask)
        metas, addresses = np.full(len(targets), meta, np.uint64), np.full(len(targets), address, np.uint64)
        kept = np.empty(len(targets), np.bool_)
        fast.increment_is_representable(fmt, metas, addresses, increment, ws, kept)
        expected = [reference.increment_is_representable(fmt, meta, address, i) for i in increment.tolist()]
        assert kept.tolist() == expected
        assert not kept.all()
