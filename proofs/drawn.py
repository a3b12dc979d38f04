"""Theorems on drawn values: what falls for many inputs falls at once, without a solver, and the same on every machine."""

import random
from collections.abc import Iterator

from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.proofs.theorem import Given, Obligation
from capvisor.spec.formats import CapabilityFormat

DRAWS = 400
"""How many drawn inputs a theorem gets before the solver is asked."""


class Drawn(Given):
    """Gives values drawn at random, most of them near the edges where rules change."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._given: dict[str, int] = {"": 0}
        self.values: dict[str, int] = {}
        """What was given, by name."""

    def word(self, name: str, bits: int) -> int:
        """A number of so many bits."""
        self.values[name] = self._number(name, bits)
        return self.values[name]

    def _number(self, name: str, bits: int) -> int:
        """Any number, a short one, one with a run of ones, or one near another that was given."""
        draw, mask = self._random, (1 << bits) - 1
        number = draw.getrandbits(draw.randint(1, bits))
        kind = draw.randrange(6)
        if kind == 0:
            number = mask ^ number
        elif kind == 1:
            number = (1 << draw.randint(0, bits)) - draw.randrange(3)
        elif kind == 2:
            number = draw.choice(list(self._given.values())) + draw.choice((-1, 0, 0, 1, 8, number >> bits // 2))
        elif kind == 3:
            number = number << draw.randrange(bits)
        self._given[name] = number & mask
        return number & mask

    def flag(self, name: str) -> bool:
        """A truth value, more often true: tags are what matters."""
        self._given[name] = self.values[name] = self._random.random() < 0.8
        return bool(self._given[name])

    def capability(self, fmt: CapabilityFormat, name: str) -> Capability:
        """Any bits, or what a few derivations make of the root."""
        if self._random.random() < 0.2:
            return super().capability(fmt, name)
        width, draw = fmt.address_width, self._random
        cap, _exact = capability.set_bounds(capability.root(fmt, self._number(name, width)), self._number(name, width))
        if draw.random() < 0.7:
            cap = capability.increment_address(cap, self._number(name, width))
        if draw.random() < 0.4:
            cap = capability.and_permissions(cap, self._number(name, width))
        if draw.random() < 0.3:
            types = (fmt.otype_sentry, fmt.max_otype, draw.randrange(fmt.max_otype), cap.address)
            cap = capability.set_otype(cap, draw.choice(types))
        self._given |= {f"{name}_otype": cap.otype, f"{name}_base": cap.base}
        cap = cap.with_tag(self.flag(f"{name}_tag"))
        self.values |= {f"{name}_meta": cap.meta, f"{name}_address": cap.address}
        return cap


def counterexamples(obligation: Obligation) -> Iterator[dict[str, int]]:
    """Of the values that are drawn for an obligation, those that satisfy its assumptions and not its goal."""
    for number in range(DRAWS):
        given = Drawn(f"{obligation.id} {number}")
        if not obligation.theorem.claim(obligation.format, given) and all(given.assumptions):
            yield given.values
