"""Recipes: what they choose from, and that each profile puts to the test what it promises."""

import random

import pytest

from capvisor.campaign.case import from_program, to_program
from capvisor.campaign.mutation import mutated
from capvisor.campaign.numbers import Kind, Term, terms
from capvisor.campaign.recipes import PROFILES, Shape, draw_shape, rows_of
from capvisor.campaign.unit import judge
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.spec.formats import CC64, CC128, CapabilityFormat
from capvisor.spec.operations import OPERATIONS, Group, OperandKind
from tests.campaign.support import concrete


class Seeded:
    """Choices from Python's generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, count: int) -> int:
        return self._random.randrange(count)


def drawn(fmt: CapabilityFormat, profile: str, seed: int) -> Shape:
    return draw_shape(Seeded(seed), fmt, PROFILES[profile])


def is_well_formed(shape: Shape, fmt: CapabilityFormat) -> bool:
    for name, operands in shape:
        row = OPERATIONS[name]
        if len(operands) != len(row.operands) or row.minimum_xlen > fmt.address_width:
            return False
        for kind, value in zip(row.operands, operands, strict=True):
            if kind is OperandKind.VALUE:
                if not isinstance(value, Term):
                    return False
                continue
            low, high = (0, 31) if kind.is_register else kind.immediate_range(fmt.address_width)
            if not low <= value <= high or value % kind.alignment:
                return False
    return True


@pytest.mark.parametrize("fmt", [CC128, CC64], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("profile", list(PROFILES))
def test_every_shape_can_be_said_in_the_language(fmt: CapabilityFormat, profile: str) -> None:
    for seed in range(150):
        shape = drawn(fmt, profile, seed)
        assert shape and is_well_formed(shape, fmt)
    case = concrete(shape, fmt)
    assert from_program(parse(print_program(to_program(case)))) == case


def test_changed_shapes_are_well_formed_and_not_empty() -> None:
    shapes = [drawn(CC128, "mixed", seed) for seed in range(20)]
    for seed in range(300):
        shape = mutated(shapes[seed % 20], Seeded(seed), CC128, PROFILES["mixed"], shapes)
        assert shape and is_well_formed(shape, CC128)


@pytest.mark.parametrize("fmt", [CC128, CC64], ids=lambda fmt: fmt.name)
def test_numbers_are_drawn_alike_one_by_one_and_in_lanes(fmt: CapabilityFormat) -> None:
    import numpy as np

    from capvisor.campaign.unit import fill

    rng = np.random.default_rng(1)
    for kind in Kind:
        for _weight, term in terms(kind, fmt):
            ((_name, (_rd, lanes)),) = fill((("li", (1, term)),), rng, 500, fmt)
            source = Seeded(2)
            one_by_one = {
                term.draw(source.below, lambda bases, place: bases[place], lambda mantissa, distance: mantissa << distance)
                & fmt.address_mask
                for _ in range(4000)
            }
            assert int(lanes.max()) <= fmt.address_mask
            if (1 << term.mantissa_bits) * term.shifts * term.steps * (2 * term.spread + 1) * len(term.bases) < 2000:
                # Few enough numbers that most of those in lanes have come one by one too.
                common = sum(int(number) in one_by_one for number in lanes)
                assert common > 250, (kind, term)


def test_every_operation_belongs_to_a_profile_other_than_mixed() -> None:
    covered = {group for name, profile in PROFILES.items() if name != "mixed" for group in profile.groups}
    assert covered == set(Group) - {Group.INTEGER}
    assert set(PROFILES["mixed"].operations(CC128)) == set(OPERATIONS)
    assert len(rows_of(CC64, tuple(Group))) < len(OPERATIONS)


def test_the_judge_finds_nothing_in_what_recipes_make() -> None:
    for seed in range(30):
        assert judge(concrete(drawn(CC128, "mixed", seed), CC128)) is None
