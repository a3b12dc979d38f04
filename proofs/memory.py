"""A symbolic memory behind the model's interface: arrays of the solver's, from a granule's index to its tag and halves."""

import copy
from collections.abc import Callable
from typing import Any, Self

import z3

from capvisor.model.memory import Granule
from capvisor.proofs.symbolic import SymBool, SymInt, as_int, select, term_of

INDEX_BITS = 64


class ArrayStore:
    """Granules of a symbolic memory: all empty at first, or, where it has a name, any."""

    def __init__(self, address_width: int, name: str = "") -> None:
        index, half = z3.BitVecSort(INDEX_BITS), z3.BitVecSort(address_width)
        self._width = address_width
        self._swept: tuple[Callable[[Granule], Granule], Self] | None = None
        if name:
            self._tags = z3.Array(f"{name}_tags", index, z3.BoolSort())
            self._upper, self._lower = (z3.Array(f"{name}_{part}", index, half) for part in ("upper", "lower"))
        else:
            zero = z3.BitVecVal(0, address_width)
            self._tags = z3.K(index, z3.BoolVal(False))
            self._upper, self._lower = z3.K(index, zero), z3.K(index, zero)
        self._written = z3.K(index, z3.BoolVal(False))

    def get(self, index: Any) -> Granule:
        """The granule at an index."""
        at = as_int(index).at(INDEX_BITS)
        mask = (1 << self._width) - 1
        upper, lower = (SymInt(z3.ZeroExt(1, array[at]), 0, mask) for array in (self._upper, self._lower))
        granule = Granule(SymBool(self._tags[at]), upper, lower)  # type: ignore[arg-type]
        if self._swept is None:
            return granule
        # A sweep is carried out where one looks: what hasn't been written since is what it made of what was there.
        function, before = self._swept
        written, swept = SymBool(self._written[at]), function(before.get(index))
        return Granule(*(select(written, new, old) for new, old in zip(granule, swept, strict=True)))

    def set(self, index: Any, granule: Granule) -> None:
        """Replace the granule at an index."""
        at = as_int(index).at(INDEX_BITS)
        self._tags = z3.Store(self._tags, at, term_of(granule.tag))
        self._upper = z3.Store(self._upper, at, as_int(granule.upper).at(self._width))
        self._lower = z3.Store(self._lower, at, as_int(granule.lower).at(self._width))
        self._written = z3.Store(self._written, at, z3.BoolVal(True))

    def map(self, function: Callable[[Granule], Granule]) -> None:
        """Replace every granule by what the function makes of it."""
        self._swept = function, copy.copy(self)
        self._written = z3.K(z3.BitVecSort(INDEX_BITS), z3.BoolVal(False))
