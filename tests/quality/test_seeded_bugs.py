"""Seeded bugs are found: each is one change of a source, and the golden vectors or the differential test must notice it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest

from capvisor.conformance.check import check
from capvisor.conformance.files import VectorFile, read
from capvisor.fastpath import isa as _kernels
from capvisor.fastpath.machine import KERNELS
from capvisor.model import isa as _rules
from capvisor.model.machine import RULES
from capvisor.proofs.mutants import Mutant, in_force
from capvisor.spec.formats import CC128
from tests.quality.bugs import BOUNDS_BUGS, OPERATION_BUGS
from tests.support import Pair, random_operands
from tests.tutorial import ROOT

assert _kernels and _rules


@contextmanager
def mutated(module: str, before: str, after: str) -> Iterator[None]:
    """Lets one change of a module's source be in force."""
    rules, kernels = dict(RULES), dict(KERNELS)
    with in_force(Mutant("seeded", f"capvisor.{module}", before, after)):
        # Executing the changed source has declared its rules again: the originals have the changed code.
        RULES.update(rules)
        KERNELS.update(kernels)
        yield


@cache
def vectors() -> list[VectorFile]:
    return [read(path) for path in sorted((ROOT / "tests" / "vectors").glob("*.npz"))]


def is_seen(implementation: str) -> bool:
    """Whether some file of golden vectors shows that an implementation is wrong."""
    return any(check(file, implementation).failed for file in vectors())


@pytest.mark.parametrize(("module", "before", "after"), BOUNDS_BUGS, ids=[f"{m}: {b}" for m, b, _ in BOUNDS_BUGS])
def test_a_bug_in_the_bounds_is_seen_by_golden_vectors(module: str, before: str, after: str) -> None:
    with mutated(module, before, after):
        assert is_seen("reference" if module.startswith("model.") else "fast")


def differs(name: str, rounds: int = 60) -> bool:
    rng = np.random.default_rng(1)
    for _ in range(rounds):
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
    """Of the golden vectors `conformance/test_vectors.py` says so. Most bugs are seen in the first few rounds."""
    assert not any(differs(name, rounds=8) for name in sorted({name for *_, name in OPERATION_BUGS}))
