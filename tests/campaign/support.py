"""What tests of campaigns share."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

from capvisor.campaign.case import Case
from capvisor.campaign.numbers import Term
from capvisor.campaign.recipes import Shape
from capvisor.proofs.mutants import Mutant, in_force
from capvisor.spec.formats import CapabilityFormat


def concrete(shape: Shape, fmt: CapabilityFormat, seed: int = 0) -> Case:
    """One program of a shape."""
    draw = random.Random(seed)

    def number(term: Term) -> int:
        drawn = term.draw(draw.randrange, lambda bases, place: bases[place], lambda value, distance: value << distance)
        return int(drawn) & fmt.address_mask

    operations = tuple(
        (name, tuple(number(each) if isinstance(each, Term) else each for each in operands)) for name, operands in shape
    )
    return Case(fmt.name, operations)


@contextmanager
def mutated(module: str, before: str, after: str) -> Iterator[None]:
    """Let one change of a module's source be in force."""
    with in_force(Mutant("seeded", f"capvisor.{module}", before, after)):
        yield
