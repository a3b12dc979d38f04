"""Reference and fast path: whole states compared after each operation of the table."""

from collections import Counter

import numpy as np
import pytest

from capvisor.fastpath import isa as fast_isa
from capvisor.fastpath.machine import KERNELS
from capvisor.model import isa as reference_isa
from capvisor.model.machine import RULES
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.operations import OPERATIONS
from tests.support import Pair, random_operands

assert fast_isa and reference_isa  # imported for the rules and kernels that they declare

LANES, BLOCK_LANES, STEPS = 11, 4, 12
CASES = [
    pytest.param(fmt, name, id=f"{fmt.name}-{name}")
    for fmt in FORMATS.values()
    for name, row in OPERATIONS.items()
    if row.minimum_xlen <= fmt.address_width
]


def test_each_row_of_the_operation_table_has_a_rule_and_a_kernel() -> None:
    assert set(RULES) == set(OPERATIONS)
    assert set(KERNELS) == set(OPERATIONS)


@pytest.mark.parametrize(("fmt", "name"), CASES)
def test_an_operation_does_the_same_on_both_implementations(fmt: CapabilityFormat, name: str) -> None:
    rng = np.random.default_rng(list(f"{fmt.name}{name}".encode()))
    for attempt in range(4):
        pair = Pair.with_random_state(rng, fmt, LANES, BLOCK_LANES)
        for _ in range(STEPS):
            operands = random_operands(rng, fmt, name)
            pair.step(name, operands)
        pair.compare(f"{name}, attempt {attempt}, last operands {operands}")


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_random_programs_do_the_same_on_both_implementations(fmt: CapabilityFormat) -> None:
    rng = np.random.default_rng(20)
    names = [name for name, row in OPERATIONS.items() if row.minimum_xlen <= fmt.address_width]
    causes: Counter[str | None] = Counter()
    for attempt in range(6):
        pair = Pair.with_random_state(rng, fmt, LANES, BLOCK_LANES)
        for step in range(60):
            name = str(rng.choice(names))
            operands = random_operands(rng, fmt, name)
            causes.update(pair.step(name, operands))
            if step % 10 == 9:
                pair.compare(f"attempt {attempt}, step {step}: {name} {operands}")
    assert causes[None] > sum(causes.values()) / 2, "most operations should be completed"


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_every_cause_that_the_table_names_is_reached(fmt: CapabilityFormat) -> None:
    rng = np.random.default_rng(21)
    accesses = [row for row in OPERATIONS.values() if row.traps and row.minimum_xlen <= fmt.address_width]
    reached: dict[str, Counter[str | None]] = {row.name: Counter() for row in accesses}
    for _ in range(300):
        pair = Pair.with_random_state(rng, fmt, LANES, BLOCK_LANES)
        for row in accesses:
            reached[row.name].update(pair.step(row.name, random_operands(rng, fmt, row.name)))
    for row in accesses:
        missing = {None, *row.traps} - set(reached[row.name])
        assert not missing, f"{row.name} never gave {missing}"
