"""Memory of one lane of the batch machine: its code, on tables that stand for any, equals the reference's memory.

The tables of all lanes are one, and here the lane is the first: what lies behind its own part is another lane's, which is
read as anything, and the theorems say that nothing is written there. That other lanes do the same at their own part, whose
beginning is added to every index, is tested.
"""

from typing import Any

import numpy as np
import z3

from capvisor.fastpath.memory import MemoryBlock
from capvisor.model.bits import not_, select
from capvisor.model.memory import EMPTY, Granule, Memory
from capvisor.proofs.kernels import SCOPE, SOURCE, Run
from capvisor.proofs.symarray import SymArray, Table, lane, primitives, value
from capvisor.proofs.symbolic import SymInt, flag, unsigned
from capvisor.proofs.theorem import Given, implies, theorem
from capvisor.spec.formats import FORMATS, CapabilityFormat

ACCESS_SIZES = (1, 2, 4, 8)


class _Granules:
    """A store of the granules that matter to an access, each of any content; no others are known."""

    def __init__(self, fmt: CapabilityFormat, given: Given, indices: list[Any]) -> None:
        self._width = fmt.address_width
        self._slots = [
            (index, Granule(given.flag(f"tag{n}"), *(given.word(f"{half}{n}", self._width) for half in ("upper", "lower"))))
            for n, index in enumerate(indices)
        ]

    def copy(self) -> "_Granules":
        """Another store with the same content."""
        copied = _Granules.__new__(_Granules)
        copied._width, copied._slots = self._width, list(self._slots)
        return copied

    def get(self, index: Any) -> Granule:
        """The granule at an index; anything for one that doesn't matter."""
        found = EMPTY
        if isinstance(index, SymInt):
            found = Granule(flag("another"), *(unsigned(f"another_{half}", self._width) for half in ("upper", "lower")))  # type: ignore[arg-type]
        for at, granule in reversed(self._slots):
            found = Granule(*(select(index == at, one, other) for one, other in zip(granule, found, strict=True)))
        return found

    def set(self, index: Any, granule: Granule) -> None:
        """Replace the granule at an index."""
        self._slots = [
            (at, Granule(*(select(index == at, new, old) for new, old in zip(granule, before, strict=True))))
            for at, before in self._slots
        ]


class _Tables:
    """The tables of tags and halves of a batch machine, around one lane's granules."""

    def __init__(self, fmt: CapabilityFormat, given: Given, store: _Granules, granules: Any) -> None:
        self._format, self.store, self._granules = fmt, store, granules
        self._other_tag, self._other_half = given.flag("another_lanes_tag"), given.word("another_lanes_half", 64)
        self.inside: Any = True
        """Whether nothing was written outside of the lane's own part, nor a number wider than the format's."""
        self.tags = Table(np.bool_, self._read_tag, self._write_tag)
        self.halves = Table(np.uint64, self._read_half, self._write_half)

    def _is_own(self, index: Any) -> Any:
        return index < self._granules

    def _read_tag(self, index: Any) -> Any:
        return select(self._is_own(index), self.store.get(index).tag, self._other_tag)

    def _write_tag(self, index: Any, tag: Any, where: Any) -> None:
        self.inside = self.inside & implies(where, self._is_own(index))
        before = self.store.get(index)
        self.store.set(index, before._replace(tag=select(where, tag, before.tag)))

    def _read_half(self, index: Any) -> Any:
        granule = self.store.get(index >> 1)
        half = select(index & 1 == 1, granule.upper, granule.lower)
        return select(self._is_own(index >> 1), half, self._other_half)

    def _write_half(self, index: Any, half: Any, where: Any) -> None:
        own, is_upper = (index >> 1), index & 1 == 1
        self.inside = self.inside & implies(where, self._is_own(index >> 1) & (half <= self._format.address_mask))
        before, new = self.store.get(own), half & self._format.address_mask
        upper = select(where & is_upper, new, before.upper)
        lower = select(where & not_(is_upper), new, before.lower)
        self.store.set(own, Granule(before.tag, upper, lower))


class _Extent:
    """What a memory block takes from the memory of all lanes."""

    def __init__(self, memory: Memory) -> None:
        self.format, self.base, self.size_bytes = memory.format, memory.base, memory.size_bytes


class _Lane:
    """One lane's memory by the code of `fastpath.memory`, and the reference's that holds the same, around any address."""

    def __init__(self, fmt: CapabilityFormat, given: Given, *, by_offset: bool = False) -> None:
        width, granule = fmt.address_width, fmt.capability_bytes - 1
        base, size = given.word("memory_base", width), given.word("memory_bytes", width)
        given.assume((base & granule == 0) & (size & granule == 0) & (base + size <= fmt.address_space))
        self.address, self._anywhere = given.word("address", width), given.word("any_granule", width)
        if by_offset:
            # Where in its granule an access begins is a case each: then shifts are by constants.
            given.split([self.address & granule == offset for offset in range(fmt.capability_bytes)])
        index = self.address - base >> fmt.granule_shift
        store = _Granules(fmt, given, [index, index + 1, self._anywhere])
        self._tables = _Tables(fmt, given, store.copy(), size >> fmt.granule_shift)
        self.reference = Memory(fmt, base, size, store)  # type: ignore[arg-type]
        self.run = Run(base)
        self.fast: Any = MemoryBlock(
            _Extent(self.reference),  # type: ignore[arg-type]
            self._tables.tags,  # type: ignore[arg-type]
            self._tables.halves,  # type: ignore[arg-type]
            lane(0) if isinstance(base, int) else SymArray(z3.BitVecVal(0, 64), np.uint64),
        )

    def same(self) -> Any:
        """Whether any granule holds the same on both, and nothing was written elsewhere."""
        mine, other = self.reference.store.get(self._anywhere), self._tables.store.get(self._anywhere)
        return (mine.tag == other.tag) & (mine.upper == other.upper) & (mine.lower == other.lower) & self._tables.inside


def _declare(name: str, what: str, mutants: tuple[str, ...], formats: tuple[str, ...] = tuple(FORMATS)) -> Any:
    statement = f"fastpath's {what}, in any memory."
    return theorem(f"kernels.memory.{name}", statement, SOURCE, mutants=mutants, scope=SCOPE, formats=formats)


def _formats_with(size_bytes: int) -> tuple[str, ...]:
    """The formats of machines that have data of that size."""
    return tuple(name for name, fmt in FORMATS.items() if 8 * size_bytes <= fmt.address_width)


def _declare_sized(size_bytes: int) -> None:
    what = f"of {size_bytes} bytes" if size_bytes > 1 else "of a byte"

    @_declare(
        f"contains_{size_bytes}", f"memory contains an access {what} just where the reference's does", ("fast-memory-end",)
    )
    def contains(fmt: CapabilityFormat, given: Given) -> Any:
        memory = _Lane(fmt, given)
        out = memory.run.flags()
        memory.fast.contains(lane(memory.address), size_bytes, memory.run.ws, out)
        return value(out) == memory.reference.contains(memory.address, size_bytes)

    if size_bytes not in ACCESS_SIZES:
        return

    @_declare(
        f"read_{size_bytes}",
        f"memory reads data {what} as the reference's does",
        ("fast-memory-straddle",) if size_bytes > 1 else ("fast-memory-byte",),
        _formats_with(size_bytes),
    )
    def read(fmt: CapabilityFormat, given: Given) -> Any:
        memory = _Lane(fmt, given, by_offset=True)
        given.assume(memory.reference.contains(memory.address, size_bytes))
        out = memory.run.words()
        with primitives():
            memory.fast.read(lane(memory.address), size_bytes, memory.run.ws, out)
        return (value(out) == memory.reference.read(memory.address, size_bytes)) & memory.same()

    @_declare(
        f"write_{size_bytes}",
        f"memory stores data {what} as the reference's does, where it is to, and nothing elsewhere",
        ("fast-memory-hole", "fast-memory-tag") if size_bytes > 1 else ("fast-memory-hole",),
        _formats_with(size_bytes),
    )
    def write(fmt: CapabilityFormat, given: Given) -> Any:
        memory = _Lane(fmt, given, by_offset=True)
        stored, where = given.word("value", fmt.address_width), given.flag("where")
        given.assume(implies(where, memory.reference.contains(memory.address, size_bytes)))
        with primitives():
            memory.fast.write(lane(memory.address), size_bytes, lane(stored), memory.run.ws, lane(where))
        if where:
            memory.reference.write(memory.address, size_bytes, stored)
        return memory.same()


CONTAINED_SIZES = (*ACCESS_SIZES, 16, 64)
"""What loads and stores ask whether it is in memory: data, a capability, a line of the cache."""

for _size in CONTAINED_SIZES:
    _declare_sized(_size)


@_declare("read_granule", "memory reads a granule as the reference's does", ("fast-memory-halves",))
def read_granule(fmt: CapabilityFormat, given: Given) -> Any:
    memory = _Lane(fmt, given)
    given.assume(memory.address & fmt.capability_bytes - 1 == 0)
    given.assume(memory.reference.contains(memory.address, fmt.capability_bytes))
    out = memory.run.out()
    with primitives():
        memory.fast.read_granule(lane(memory.address), memory.run.ws, out.tag, out.meta, out.address)
    expected = memory.reference.read_granule(memory.address)
    same = (value(out.tag) == expected.tag) & (value(out.meta) == expected.upper) & (value(out.address) == expected.lower)
    return same & memory.same()


@_declare(
    "write_granule",
    "memory replaces a granule as the reference's does, where it is to, and nothing elsewhere",
    ("fast-memory-granule",),
)
def write_granule(fmt: CapabilityFormat, given: Given) -> Any:
    memory = _Lane(fmt, given)
    given.assume(memory.address & fmt.capability_bytes - 1 == 0)
    stored, where = given.capability(fmt, "stored"), given.flag("where")
    given.assume(implies(where, memory.reference.contains(memory.address, fmt.capability_bytes)))
    parts = lane(stored.tag), lane(stored.meta), lane(stored.address)
    with primitives():
        memory.fast.write_granule(lane(memory.address), *parts, memory.run.ws, lane(where))
    if where:
        memory.reference.write_granule(memory.address, Granule(*stored[1:]))
    return memory.same()


LEMMAS = (
    *(f"kernels.memory.contains_{size}" for size in CONTAINED_SIZES),
    *(f"kernels.memory.{what}_{size}" for what in ("read", "write") for size in ACCESS_SIZES),
    "kernels.memory.read_granule",
    "kernels.memory.write_granule",
)
