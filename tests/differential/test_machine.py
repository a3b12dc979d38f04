"""Reference and fast path: whole states compared after each operation of the table."""

from collections import Counter

import numpy as np
import pytest

from capvisor.fastpath import isa as fast_isa
from capvisor.fastpath.machine import KERNELS
from capvisor.model import isa as reference_isa
from capvisor.model.machine import RULES
from capvisor.spec.encodings import encode, encodings
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.operations import OPERATIONS, Group
from capvisor.spec.traps import CAUSES_BY_NAME
from tests.shares import some
from tests.support import Pair, random_operands

assert fast_isa and reference_isa  # imported for the rules and kernels that they declare

# Causes that the architecture names and no operation of the table gives.
NEVER_GIVEN = {"UserDefViolation", "UnalignedBase", "GlobalViolation", "PermitSetCIDViolation"}
ALWAYS_REFUSED: dict[str, set[str | None]] = {"ecall": set(), "ebreak": set()}
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
    for attempt in some(range(2), 2):
        pair = Pair.with_random_state(rng, fmt, LANES, BLOCK_LANES)
        for _ in range(STEPS):
            operands = random_operands(rng, fmt, name)
            pair.step(name, operands)
            pair.renew_code(rng)
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
            pair.renew_code(rng)
            if step % 10 == 9:
                pair.compare(f"attempt {attempt}, step {step}: {name} {operands}")
    assert causes[None] > sum(causes.values()) / 3, "many operations should be completed"


@pytest.mark.parametrize("fmt", some(list(FORMATS.values()), 2), ids=lambda fmt: fmt.name)
def test_every_cause_that_the_table_names_is_reached(fmt: CapabilityFormat) -> None:
    rng = np.random.default_rng(21)
    accesses = [row for row in OPERATIONS.values() if row.traps and row.minimum_xlen <= fmt.address_width]
    reached: dict[str, Counter[str | None]] = {row.name: Counter() for row in accesses}
    for _ in range(300):
        if all({*row.traps, *ALWAYS_REFUSED.get(row.name, {None})} <= set(reached[row.name]) for row in accesses):
            break
        pair = Pair.with_random_state(rng, fmt, LANES, BLOCK_LANES)
        for row in accesses:
            if not {*row.traps, *ALWAYS_REFUSED.get(row.name, {None})} <= set(reached[row.name]):
                operands = random_operands(rng, fmt, row.name)
                if row.group is Group.ATOMIC:
                    pair.reserve(operands[-1])
                if row.name == "cinvoke":
                    pair.seal_pair(rng, *operands)
                reached[row.name].update(pair.step(row.name, operands))
                pair.renew_code(rng)
    together = Counter(cause for counter in reached.values() for cause in counter)
    for row in accesses:
        missing = set(row.traps) - set(reached[row.name])
        assert not missing, f"{row.name} never gave {missing}"
        assert None in reached[row.name] or row.name in ALWAYS_REFUSED, row.name
    assert set(together) - {None} == set(CAUSES_BY_NAME) - NEVER_GIVEN


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_divergent_lanes_do_what_each_would_do_alone(fmt: CapabilityFormat) -> None:
    rng = np.random.default_rng(22)
    names = [name for name, row in OPERATIONS.items() if row.minimum_xlen <= fmt.address_width]
    causes: Counter[str | None] = Counter()
    for attempt in range(12):
        pair = Pair.with_random_state(rng, fmt, 60, 16)
        for _ in range(12):
            drawn = [str(rng.choice(names)) for _ in range(60)]
            # Few operations, so that lanes are together in groups of many sizes.
            chosen = [name if rng.integers(0, 2) else drawn[0] for name in drawn]
            causes.update(pair.step_divergent([(name, random_operands(rng, fmt, name)) for name in chosen]))
        pair.compare(f"attempt {attempt}")
    assert causes[None] > sum(causes.values()) / 3


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_words_are_decoded_by_the_mode_of_each_lane(fmt: CapabilityFormat) -> None:
    rng = np.random.default_rng(23)
    xlen = fmt.address_width
    names = list(encodings(xlen))
    causes: Counter[str | None] = Counter()
    for attempt in range(8):
        pair = Pair.with_random_state(rng, fmt, 40, 16)
        for _ in range(12):
            words = [encode(name, random_operands(rng, fmt, name), xlen) for name in rng.choice(names, 4)]
            causes.update(pair.step_words([int(rng.choice([*words, 0])) for _ in range(40)]))
        pair.compare(f"attempt {attempt}")
    assert causes[None] and causes["IllegalInstruction"]
