"""What a program of translation pass-through has at its start: frames, VMs, vCPUs, devices; and what its names stand for."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from capvisor.dsl.evaluate import constant
from capvisor.dsl.syntax import Guest, Program, System
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, FREE, HOST, Access, Entry, Mode

DEFAULTS = {"frames": 64, "levels": 4, "devices": 0}
"""The system's numbers, and what they are where nothing is said."""

FIRST_ASID_OF_ALL = 1
"""The ASID under which each vCPU runs at the start: vCPUs share none of what they cache."""

NAMES: dict[str, int] = {
    "free": FREE,
    "host": HOST,
    **{bit.name: bit.value for bit in Entry if bit.name},
    "rw": int(Entry.P | Entry.RW | Entry.US),
    "ro": int(Entry.P | Entry.US),
    **{access.name.lower(): access.value for access in Access},
    "supervisor": 0,
    "user": 1,
    "tpt": Mode.TPT.value,
    "nested": Mode.NESTED.value,
}
"""Names in every program: tags, bits of entries and the usual ones together, accesses, who accesses, modes."""


class Placed(NamedTuple):
    """A VM of the program: its number, its first and last frames, its vCPUs, and what guest it runs."""

    number: int
    first: int
    last: int
    cpus: tuple[int, ...]
    is_plain: bool
    is_mapped: bool

    @property
    def mode(self) -> Mode:
        return Mode.NESTED if self.is_plain else Mode.TPT

    @property
    def base(self) -> int:
        """Its first frame, as its tables name it."""
        return 0 if self.is_plain else self.first

    @property
    def cr3(self) -> int:
        return self.base << FRAME_SHIFT


class Layout:
    """Numbers of VMs and vCPUs, in the order in which they are said."""

    def __init__(self, system: System) -> None:
        given = {setting.name: constant(setting.value) for setting in system.settings}
        numbers = {**DEFAULTS, **given}
        self.frames, self.levels, self.devices = (numbers[name] for name in DEFAULTS)
        self.cpu_count = 0
        self.placed: dict[str, Placed] = {}
        for guest in system.guests:
            self._add(guest)

    def _add(self, guest: Guest) -> None:
        count = 1 if guest.vcpus is None else constant(guest.vcpus)
        cpus = tuple(range(self.cpu_count, self.cpu_count + count))
        self.cpu_count += count
        first, last = constant(guest.first), constant(guest.last)
        number = FIRST_VM + len(self.placed)
        self.placed[guest.name] = Placed(number, first, last, cpus, guest.is_plain, guest.is_mapped)

    def start_of(self, name: str) -> Iterator[tuple[Any, ...]]:
        """The operations that a VM starts with, each with its operands."""
        placed = self.placed[name]
        yield "create", placed.number, placed.mode.value, self.levels
        for frame in range(placed.first, placed.last + 1):
            yield "assign", frame, placed.number, frame - placed.first
        for cpu in placed.cpus:
            yield "run", cpu, placed.number, FIRST_ASID_OF_ALL, placed.cr3
        if placed.is_mapped:
            cpu, base, levels = placed.cpus[0], placed.base, self.levels
            for table in range(base, base + levels - 1):
                yield "write_pte", cpu, table, 0, table + 1 << FRAME_SHIFT | NAMES["rw"]
            for index in range(placed.last + 1 - placed.first - levels):
                entry = base + levels + index << FRAME_SHIFT | NAMES["rw"]
                yield "write_pte", cpu, base + levels - 1, index, entry

    def cpus(self) -> dict[str, int]:
        """The vCPUs by name."""
        return {f"cpu{number}": number for number in range(self.cpu_count)}

    def device_names(self) -> dict[str, int]:
        """The devices by name."""
        return {f"device{number}": number for number in range(self.devices)}

    def constants(self) -> dict[str, int]:
        """What names are worth before the program runs."""
        return {**NAMES, **self.cpus(), **self.device_names(), **dict(self._of_vms())}

    def _of_vms(self) -> Iterator[tuple[str, int]]:
        for name, placed in self.placed.items():
            yield name, placed.number
            yield f"{name}.cr3", placed.cr3


def constants_of(program: Program) -> dict[str, int]:
    """What a checked program's names are worth before it runs."""
    assert program.system is not None
    return Layout(program.system).constants()
