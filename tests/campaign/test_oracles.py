"""The invariants on lanes: numbers of 65 bits, and that a fast path that breaks an invariant is caught by it alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capvisor.campaign.unit import Work, perform
from capvisor.campaign.wide import Wide
from capvisor.spec.invariants import INVARIANTS
from tests.campaign.support import mutated

wide = st.integers(0, 2**65 - 1) | st.integers(2**64 - 4, 2**64 + 4) | st.integers(0, 4)


def lanes(number: int) -> Wide:
    low, high = np.array([number % 2**64], np.uint64), np.array([number >> 64], np.bool_)
    return Wide(low, high) if number >> 64 or number % 2 else Wide(low)


@given(wide, wide)
def test_wide_numbers_compare_as_integers_do(a: int, b: int) -> None:
    x, y = lanes(a), lanes(b)
    assert (bool((x < y)[0]), bool((x <= y)[0]), bool((x > y)[0]), bool((x >= y)[0])) == (a < b, a <= b, a > b, a >= b)
    assert (bool((x == y)[0]), bool((x != y)[0])) == (a == b, a != b)
    assert bool((x <= b)[0]) == (a <= b) and bool((x == b)[0]) == (a == b)


@given(st.integers(0, 2**64 - 1), st.integers(0, 64))
def test_wide_sums_are_exact_and_differences_are_modulo_2_to_the_64(a: int, small: int) -> None:
    total = lanes(a) + small
    high = 0 if total.high is None else int(total.high[0])
    assert int(total.low[0]) + (high << 64) == a + small
    assert int((lanes(a) - small).low[0]) == (a - small) % 2**64
    assert int((lanes(a) + -small).low[0]) == (a - small) % 2**64
    assert int((lanes(a) & ~small).low[0]) == a & ~small and int((lanes(a) >> 5).low[0]) == a >> 5


# (the profile, module, what stands there, what the bug makes of it, the invariant that catches it)
BROKEN = [
    ("sealing", "fastpath.isa.memory", 'self.refuse_unless(self._passed, "SealViolation")', "pass", "M5"),
    ("caps", "fastpath.capability", "np.logical_and(allowed, unsealed, out=allowed)", "allowed.fill(True)", "M1"),
    ("memory", "fastpath.isa.memory", "np.logical_and(loaded.tag, may_load, out=loaded.tag)", "pass", "M6"),
    ("memory", "fastpath.isa.memory", 'self.refuse_unless(self._passed, "LengthViolation")', "pass", "M2"),
    ("memory", "fastpath.memory", "np.add(address, size_bytes - 1, out=index)", "np.copyto(index, address)", "M3"),
    ("memory", "fastpath.machine", "    block.is_reserved.fill(False)\n", "", "M4"),
    ("caps", "fastpath.machine", "return self._rows[register or _SINK]", "return self._rows[register]", "M7"),
    ("control", "fastpath.isa.control", "np.bitwise_and(out, block.format.address_mask - 1, out=out)", "pass", "M8"),
    ("control", "fastpath.isa.system", 'block.refuse_unless(passed, "AccessSystemRegsViolation", register)', "pass", "M9"),
]


@pytest.mark.parametrize(
    ("profile", "module", "before", "after", "invariant"), BROKEN, ids=[row[-1] + row[0] for row in BROKEN]
)
def test_a_fast_path_that_breaks_an_invariant_is_caught_without_the_reference(
    profile: str, module: str, before: str, after: str, invariant: str
) -> None:
    with mutated(module, before, after):
        for shard in range(60):
            failures = perform(Work(1, shard, 256, "cc128", profile, compare=False)).failures
            if any(each.what == invariant for each in failures):
                return
    pytest.fail("not caught")


def test_every_invariant_is_among_those_that_a_test_breaks() -> None:
    assert {row[-1] for row in BROKEN} == set(INVARIANTS)
