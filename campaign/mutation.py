"""Changing shapes that did something new."""

from collections.abc import Callable, Sequence

from capvisor.campaign.numbers import Kind, Term, terms
from capvisor.campaign.recipes import Builder, Profile, Shape, ShapedOperation, Source
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS, OperandKind

LONGEST = 48
"""How many operations a changed shape may have."""


def mutated(shape: Shape, source: Source, fmt: CapabilityFormat, profile: Profile, others: Sequence[Shape]) -> Shape:
    """A shape with one to three changes; never empty."""
    builder = Builder(source, fmt)
    for _ in range(1 + source.below(3)):
        shape = builder.one_of(_CHANGES)(shape, builder, profile, others) or shape
    return shape[:LONGEST]


def _drop(shape: Shape, b: Builder, profile: Profile, others: Sequence[Shape]) -> Shape:
    place = b.source.below(len(shape))
    return shape[:place] + shape[place + 1 + b.source.below(3) :]


def _insert(shape: Shape, b: Builder, profile: Profile, others: Sequence[Shape]) -> Shape:
    place = b.source.below(len(shape) + 1)
    inner = Builder(b.source, b.format)
    inner.weighted(profile.recipes)(inner)
    return shape[:place] + tuple(inner.shape) + shape[place:]


def _splice(shape: Shape, b: Builder, profile: Profile, others: Sequence[Shape]) -> Shape:
    other = b.one_of(others)
    return shape[: 1 + b.source.below(len(shape))] + other[b.source.below(len(other)) :]


def _repeat(shape: Shape, b: Builder, profile: Profile, others: Sequence[Shape]) -> Shape:
    place = b.source.below(len(shape))
    return shape[:place] + shape[place : place + 1 + b.source.below(3)] + shape[place:]


def _operand(shape: Shape, b: Builder, profile: Profile, others: Sequence[Shape]) -> Shape:
    """Another operand: a register, an immediate, or another kind of number."""
    place = b.source.below(len(shape))
    name, operands = shape[place]
    if not operands:
        return shape
    which = b.source.below(len(operands))
    kind = OPERATIONS[name].operands[which]
    new: int | Term
    if kind is OperandKind.VALUE:
        new = b.weighted(terms(b.one_of(tuple(Kind)), b.format))
    else:
        new = b.operand(kind)
    return _replaced(shape, place, (name, (*operands[:which], new, *operands[which + 1 :])))


def _sibling(shape: Shape, b: Builder, profile: Profile, others: Sequence[Shape]) -> Shape:
    """Another operation that takes the same operands."""
    place = b.source.below(len(shape))
    name, operands = shape[place]
    alike = [
        row.name
        for row in OPERATIONS.values()
        if row.operands == OPERATIONS[name].operands and row.minimum_xlen <= b.format.address_width
    ]
    return _replaced(shape, place, (b.one_of(alike), operands))


def _replaced(shape: Shape, place: int, operation: ShapedOperation) -> Shape:
    return (*shape[:place], operation, *shape[place + 1 :])


Change = Callable[[Shape, Builder, Profile, Sequence[Shape]], Shape]
_CHANGES: tuple[Change, ...] = (_drop, _insert, _insert, _splice, _repeat, _operand, _operand, _sibling)
