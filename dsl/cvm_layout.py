"""Where the cVMs of a program lie, before anything runs, and what names and keys stand for."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from capvisor.dsl.evaluate import evaluate, format_of, memory_of
from capvisor.dsl.syntax import Create, Expression, Program, Region
from capvisor.model.bounds import alignment_mask
from capvisor.spec.cvm import KEYS, MONITOR, STORE_SLOTS
from capvisor.spec.formats import CapabilityFormat


class Placed(NamedTuple):
    """A cVM of the program: its number, where it lies, what it is nested in (0: nothing), and the kind of its code."""

    number: int
    base: int
    size: int
    outer: int
    is_purecap: bool
    store: int
    """Where its capability store begins."""

    @property
    def top(self) -> int:
        return self.base + self.size


REGION_FIELDS = ("base", "top", "size", "store")
"""What an expression can say of a cVM: `alice.base`."""


class Layout:
    """Where regions lie: one after the other from the start of memory, nested ones from the middle of the one around them.

    Those at a place of their own lie there, and the next ones behind them. A name that comes again is the same region.
    """

    def __init__(self, fmt: CapabilityFormat, memory_base: int) -> None:
        self._format = fmt
        self._free: dict[str | None, int] = {None: memory_base}
        self.placed: dict[str, Placed] = {}

    def add(self, region: Region) -> Placed:
        """Place a region. Raises ValueError where it comes again, and is another."""
        size = evaluate(region.size, self)
        if region.name in self.placed:
            known = self.placed[region.name]
            if region.at is not None or (size, region.is_purecap) != (known.size, known.is_purecap):
                raise ValueError(f"`{region.name}` is the name of a region already: created again, it is the same")
            return known
        free = self._free[region.outer]
        base = -(-free // self._alignment(size)) * self._alignment(size) if region.at is None else self.value(region.at)
        outer = MONITOR if region.outer is None else self.placed[region.outer].number
        store = base + size - len(STORE_SLOTS) * self._format.capability_bytes
        placed = Placed(len(self.placed) + 1, base, size, outer, region.is_purecap, store)
        self.placed[region.name] = placed
        self._free[region.outer] = max(free, placed.top)
        self._free[region.name] = base + size // 2
        return placed

    def _alignment(self, size: int) -> int:
        """What a base is a multiple of, so that so many bytes from it have exact bounds."""
        mask = alignment_mask(self._format, size) & -self._format.capability_bytes
        return mask & -mask

    def value(self, expression: Expression) -> int:
        """The value of an expression of numbers and of fields of the regions placed so far."""
        number: int = evaluate(expression, self)
        return number

    def name(self, name: str) -> int:
        """What a name such as `alice.base` is worth. Raises LookupError."""
        region, _dot, field = name.partition(".")
        if field not in REGION_FIELDS:
            raise LookupError(name)
        value: int = getattr(self.placed[region], field)
        return value

    def register(self, number: int) -> int:
        """No register is known before the program runs."""
        raise LookupError(number)

    def field(self, _register: int, name: str) -> int:
        """Nor what is in one."""
        raise LookupError(name)

    def names(self) -> Iterator[str]:
        """All names that have a value."""
        return (f"{region}.{field}" for region in self.placed for field in REGION_FIELDS)


def layout_of(program: Program) -> Layout:
    """Where the regions of a checked program lie: those of the system, and those that the deployer creates."""
    layout = Layout(format_of(program), memory_of(program)[0])
    system = program.system
    for region in () if system is None else system.regions:
        layout.add(region)
    for statement in program.statements:
        if isinstance(statement, Create):
            layout.add(statement.region)
    return layout


def constants_of(program: Program) -> dict[str, int]:
    """What a checked program's names are worth before it runs: the fields of its regions."""
    layout = layout_of(program)
    return {name: layout.name(name) for name in layout.names()}


def key_number(text: str) -> int:
    """The number of a key that is written as text: the same in every program."""
    return zlib.crc32(text.encode()) % KEYS
