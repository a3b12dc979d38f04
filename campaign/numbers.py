"""Numbers worth trying: what the `li` of a recipe may load.

A kind of number is a choice of terms. A term is a formula, base + step * i + delta + (mantissa << shift), of which each part
is drawn from a small range; whoever draws, one number or one a lane, draws those.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from capvisor.campaign.case import MEMORY_BASE, MEMORY_GRANULES
from capvisor.spec.formats import CapabilityFormat, Permission

Below = Callable[[int], Any]
"""Draws a number from 0 to one less than it is given; or an array of them, one a lane."""


@dataclass(frozen=True)
class Term:
    """One formula: one of `bases`, plus `step` times 0 to `steps` - 1, plus -spread to spread, plus a mantissa.

    The mantissa has `mantissa_bits` bits (the highest of them set where `normal`) and is shifted left by 0 to `shifts` - 1.
    All of that is negated where `negated`.
    """

    bases: tuple[int, ...] = (0,)
    step: int = 0
    steps: int = 1
    spread: int = 0
    mantissa_bits: int = 0
    shifts: int = 1
    normal: bool = False
    negated: bool = False

    def draw(self, below: Below, lookup: Callable[[tuple[int, ...], Any], Any], shift: Callable[[Any, Any], Any]) -> Any:
        """A number, modulo 2**64 where arrays are drawn; `lookup` and `shift` index a tuple and shift to the left."""
        number = lookup(self.bases, below(len(self.bases)))
        if self.steps > 1:
            number = number + below(self.steps) * self.step
        if self.spread:
            number = number + below(2 * self.spread + 1) - self.spread
        if self.mantissa_bits:
            mantissa = below(1 << self.mantissa_bits - self.normal) + (self.normal << self.mantissa_bits - 1)
            number = number + (shift(mantissa, below(self.shifts)) if self.shifts > 1 else mantissa)
        return -number if self.negated else number


class Kind(Enum):
    """What a number is meant for."""

    ANY = "any number"
    SMALL = "a small number"
    LENGTH = "a length: short, or as long as a mantissa can say, or just not"
    ADDRESS = "an address in or near memory"
    GRANULE = "the address of a granule"
    CODE = "an address to jump to"
    OFFSET = "a distance from an address in memory"
    FAR = "a distance that leaves a capability's representable region, or nearly"
    PERMISSIONS = "permissions, most of them set"
    DATA = "permissions without that to execute"
    CODE_RIGHTS = "permissions of code, often without access to system registers"
    OTYPE = "an object type"
    RESERVED = "a reserved object type, as stored"
    STATUS = "bits of mstatus"


@cache
def terms(kind: Kind, fmt: CapabilityFormat) -> tuple[tuple[int, Term], ...]:
    """The terms of a kind, each with its weight."""
    granule, width = fmt.capability_bytes, fmt.address_width
    memory, size, mantissa = MEMORY_BASE, MEMORY_GRANULES * granule, fmt.mantissa_width
    every = fmt.permissions_mask
    without = tuple(every & ~permission for permission in Permission)
    two = tuple(
        every & ~(a | b) for a in Permission for b in (Permission.GLOBAL, Permission.LOAD, Permission.STORE) if a != b
    )
    match kind:
        case Kind.ANY:
            return (
                (3, Term(mantissa_bits=width)),
                (2, Term(mantissa_bits=8, shifts=width - 8, spread=1)),
                (2, Term(bases=(0, 1, (1 << width) - 1, 1 << width - 1, (1 << width - 1) - 1, 1 << 31, 1 << 32))),
                (2, Term(bases=(0, 1 << width), spread=16)),
            )
        case Kind.SMALL:
            return ((1, Term(steps=33, step=1)), (1, Term(spread=8)))
        case Kind.LENGTH:
            return (
                (3, Term(steps=65, step=1)),
                (2, Term(steps=MEMORY_GRANULES + 1, step=granule)),
                (2, Term(mantissa_bits=mantissa - 2, normal=True, shifts=width - mantissa, spread=1)),
                (2, Term(mantissa_bits=1, normal=True, shifts=width, spread=2)),
                (1, Term(mantissa_bits=mantissa, normal=True, shifts=width - mantissa)),
                (1, Term(mantissa_bits=width)),
                (1, Term(bases=(1 << width, 1 << width - 1), spread=2)),
            )
        case Kind.ADDRESS:
            return (
                (4, Term(bases=(memory,), steps=size, step=1)),
                (2, Term(bases=(memory,), steps=MEMORY_GRANULES, step=granule)),
                (2, Term(bases=(memory,), steps=MEMORY_GRANULES + 1, step=granule, spread=8)),
                (1, Term(bases=(memory, memory + size), spread=17)),
                (1, Term(bases=(0, 1 << width), spread=17)),
                (1, Term(mantissa_bits=width)),
            )
        case Kind.GRANULE:
            return ((1, Term(bases=(memory,), steps=MEMORY_GRANULES, step=granule)),)
        case Kind.CODE:
            return (
                (4, Term(bases=(memory,), steps=256, step=2)),
                (1, Term(steps=64, step=2)),
                (1, Term(bases=(memory,), spread=9)),
                (1, Term(bases=(1 << width,), spread=9)),
            )
        case Kind.OFFSET:
            return (
                (2, Term(steps=MEMORY_GRANULES, step=granule)),
                (2, Term(steps=size, step=1)),
                (1, Term(spread=24)),
            )
        case Kind.FAR:
            return (
                (3, Term(mantissa_bits=1, normal=True, shifts=width, spread=2)),
                (3, Term(mantissa_bits=1, normal=True, shifts=width, negated=True)),
                (1, Term(mantissa_bits=mantissa, normal=True, shifts=width - mantissa, negated=True)),
                (1, Term(mantissa_bits=1, normal=True, shifts=width)),
                (2, Term(bases=(1 << width,), spread=4096)),
                (2, Term(mantissa_bits=4, normal=True, shifts=width - 4, spread=1)),
                (1, Term(mantissa_bits=width)),
            )
        case Kind.PERMISSIONS:
            return (
                (4, Term(bases=without)),
                (2, Term(bases=two)),
                (1, Term(mantissa_bits=max(every.bit_length(), 1))),
                (1, Term(bases=(every, 0))),
            )
        case Kind.DATA:
            data = every & ~Permission.EXECUTE
            return ((4, Term(bases=(data,))), (1, Term(bases=tuple(data & ~permission for permission in Permission))))
        case Kind.CODE_RIGHTS:
            confined = every & ~Permission.ACCESS_SYSTEM_REGISTERS
            return (
                (3, Term(bases=(confined,))),
                (2, Term(bases=tuple(confined & ~permission for permission in Permission))),
            )
        case Kind.OTYPE:
            highest = fmt.max_otype
            return (
                (4, Term(steps=6, step=1)),
                (2, Term(bases=(highest, fmt.otype_sentry), spread=2)),
                (1, Term(mantissa_bits=fmt.otype.width)),
                (1, Term(mantissa_bits=width)),
            )
        case Kind.RESERVED:
            return ((1, Term(bases=(fmt.otype_sentry, fmt.max_otype + 1), spread=1)),)
        case Kind.STATUS:
            return ((2, Term(mantissa_bits=13)), (1, Term(bases=(0, 8, 0x80, 0x88))))
