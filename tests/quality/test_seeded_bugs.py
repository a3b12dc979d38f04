"""Seeded bugs are found: each is one change of a source, and the golden vectors or the differential test must notice it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from capvisor.conformance.check import check
from capvisor.conformance.files import read
from capvisor.fastpath import isa as _kernels
from capvisor.fastpath.machine import KERNELS
from capvisor.model import isa as _rules
from capvisor.model.machine import RULES
from capvisor.proofs.mutants import Mutant, in_force
from capvisor.spec.formats import CC128
from tests.support import Pair, random_operands
from tests.tutorial import ROOT

assert _kernels and _rules

# (module, what stands there, what the bug makes of it), seen by the golden vectors
BOUNDS_BUGS = [
    ("model.bounds", "carry = top < bottom", "carry = top <= bottom"),
    ("model.bounds", "+ internal + carry & 3", "+ internal & 3"),
    ("model.bounds", "(bottom >> shift) - 1 & 7", "(bottom >> shift) & 7"),
    ("model.bounds", "- address_above", "+ address_above"),
    ("model.bounds", "(length_high > 1)", "(length_high > 2)"),
    ("model.bounds", "top ^ wrapped <<", "top ^ 0 <<"),
    ("model.bounds", "exponent < fmt.max_exponent, exponent, fmt.max_exponent", "exponent < 64, exponent, fmt.max_exponent"),
    ("model.bounds", "internal = length >> fmt.mantissa_width - 2 != 0", "internal = length >> fmt.mantissa_width - 1 != 0"),
    ("model.bounds", "top_granule = top + (1 << alignment) - 1 >> alignment", "top_granule = top >> alignment"),
    ("model.bounds", "exact = (base | top)", "exact = base"),
    ("model.bounds", "top_granule + grown >> grown", "top_granule >> grown"),
    ("model.bounds", "exponent = exponent + grown", "exponent = exponent"),
    ("model.bounds", "(exponent >= fmt.max_exponent - 2)", "(exponent >= fmt.max_exponent)"),
    ("model.bounds", "increment_middle >= room", "increment_middle > room"),
    ("model.bounds", "length + (mask ^ fmt.address_mask) & mask", "length & mask"),
    ("model.capability", "(address >= base) & (address + size <= top)", "(address >= base)"),
    ("model.capability", "permissions >> fmt.software_permissions_shift", "permissions >> 0"),
    ("fastpath.bounds", "np.less(top, base, out=top_high)", "top_high.fill(False)"),
    ("fastpath.bounds", "np.minimum(exponent, fmt.max_exponent, out=exponent)", "pass"),
    ("fastpath.bounds", "np.bitwise_or(short, eighth, out=short)", "pass"),
    ("fastpath.bounds", "np.not_equal(length, top_high, out=top_high)", "pass"),
    ("fastpath.bounds", "np.add(offset, mask, out=offset)", "pass"),
    ("fastpath.bounds", "np.bitwise_and(grown, internal, out=grown)", "pass"),
    ("fastpath.bounds", "np.add(top, grown, out=top)", "pass"),
    ("fastpath.bounds", "np.add(short, eighth, out=short)", "pass"),
    ("fastpath.bits", "_FLOAT_2_52 | 1", "_FLOAT_2_52"),
    ("fastpath.capability", "np.less(end, address, out=end_high)", "end_high.fill(False)"),
]

# (module, what stands there, what the bug makes of it, an operation that shows it), seen by the differential test
OPERATION_BUGS = [
    ("fastpath.capability", "np.logical_and(permitted, authority.tag, out=permitted)", "pass", "cseal"),
    ("fastpath.capability", "np.less_equal(authority.address, fmt.max_otype, out=flag)", "flag.fill(True)", "cseal"),
    ("fastpath.capability", "np.copyto(field, fmt.null_meta & fmt.bounds.in_place, where=high)", "pass", "cbuildcap"),
    ("model.capability", "allowed = not_(cap.is_sealed) & within_bounds", "allowed = within_bounds", "csetbounds"),
    ("fastpath.capability", "np.equal(inner.tag, outer.tag, out=flag)", "flag.fill(True)", "ctestsubset"),
    ("fastpath.isa.memory", "np.greater(stored.tag, needed, out=needed)", "np.copyto(needed, stored.tag)", "csc"),
    ("fastpath.isa.memory", "np.logical_and(loaded.tag, may_load, out=loaded.tag)", "pass", "clc"),
    ("fastpath.memory", "if straddles.any():", "if False:", "csd"),
    ("fastpath.memory", "np.add(address, size_bytes - 1, out=index)", "np.copyto(index, address)", "csd"),
    ("model.memory", "self.store.set(index, Granule(False,", "self.store.set(index, Granule(True,", "csb"),
    ("model.isa.memory", "if access.authority.is_sealed:", "if False:", "clb"),
    ("model.isa.memory", 'raise Trap("PermitStoreCapViolation", access.register)', "pass", "csc"),
]


@contextmanager
def mutated(module: str, before: str, after: str) -> Iterator[None]:
    """Lets one change of a module's source be in force."""
    rules, kernels = dict(RULES), dict(KERNELS)
    with in_force(Mutant("seeded", f"capvisor.{module}", before, after)):
        # Executing the changed source has declared its rules again: the originals have the changed code.
        RULES.update(rules)
        KERNELS.update(kernels)
        yield


def golden_failures() -> int:
    vectors = [read(path) for path in sorted((ROOT / "tests" / "vectors").glob("*.npz"))]
    return sum(check(file, implementation).failed for file in vectors for implementation in ("reference", "fast"))


@pytest.mark.parametrize(("module", "before", "after"), BOUNDS_BUGS, ids=[f"{m}: {b}" for m, b, _ in BOUNDS_BUGS])
def test_a_bug_in_the_bounds_is_seen_by_golden_vectors(module: str, before: str, after: str) -> None:
    with mutated(module, before, after):
        assert golden_failures() > 0


def differs(name: str) -> bool:
    rng = np.random.default_rng(1)
    for _ in range(60):
        pair = Pair.with_random_state(rng, CC128, 11, 4)
        try:
            for _ in range(6):
                pair.step(name, random_operands(rng, CC128, name))
            pair.compare(name)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize(
    ("module", "before", "after", "name"), OPERATION_BUGS, ids=[f"{m}: {b}" for m, b, _, _ in OPERATION_BUGS]
)
def test_a_bug_in_an_operation_is_seen_by_the_differential_test(module: str, before: str, after: str, name: str) -> None:
    with mutated(module, before, after):
        assert differs(name)


def test_without_a_bug_nothing_is_found() -> None:
    assert golden_failures() == 0
    assert not any(differs(name) for name in sorted({name for *_, name in OPERATION_BUGS}))
