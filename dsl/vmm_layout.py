"""What a program of a para-pass-through VMM has at its start: frames, the VMM's region, vCPUs, devices, extensions; and what
its names stand for.
"""

from collections.abc import Iterator
from typing import NamedTuple

from capvisor.dsl.evaluate import constant
from capvisor.dsl.syntax import Part, Program, Setting, Span, System
from capvisor.model.vmm import Deployment, Extension
from capvisor.model.vmm import System as VmmSystem
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    COMMANDS,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    KEY_FRAME,
    RESET_BIT,
    START_BIT,
    STATUS_BUSY,
    STATUS_ERROR,
    STATUS_READY,
    STATUS_REQUEST,
    TO_MEMORY_BIT,
    WINDOW_FRAME_SHIFT,
    WINDOW_SHIFT,
    Msr,
    Phase,
    Register,
    Rule,
    Space,
)

DEFAULTS = {"frames": 64, "vcpus": 1, "key": 0x5EC2E7}
"""The system's numbers, and what they are where nothing is said."""

REGION = "region"
DEFAULT_REGION = (32, 63)
"""The VMM's first and last frame where nothing is said."""

DEVICE, STORAGE, EXTENSION = "device", "storage", "extension"
"""What a system can have beside numbers: a device that passes through, one that is mediated, an extension of the VMM."""

RULES = {"encrypt": Rule.ENCRYPTED, "deny": Rule.DENIED, "fault": Rule.FAULTY}
"""By what is said of sectors: their rule."""

IMAGE, PORT, MMIO, FRAMES, WRITABLE = "image", "port", "mmio", "frames", "writable"
IMAGE_WORD = 0x1_0000_0000
"""What an image has in its first sector; in each next one, one more."""

FIRST_MMIO = 0xFEC00 << WINDOW_SHIFT + WINDOW_FRAME_SHIFT
"""From where on registers are in memory: behind the memory of most machines, as pages with registers aren't memory."""
SPACES = {PORT: Space.PORT, MMIO: Space.MEMORY}

NAMES: dict[str, int] = {
    **{name: space.value for name, space in SPACES.items()},
    **{register.name: register.value for register in Register},
    **{command.name: command.opcode for command in COMMANDS.values()},
    **{rule.name.lower(): rule.value for rule in Rule},
    **{msr.name.lower(): msr.value for msr in Msr},
    "ro": 0,
    "rw": 1,
    "small": 0,
    "large": 1,
    "huge": 2,
    "GO": START_BIT,
    "TO_MEMORY": TO_MEMORY_BIT,
    "RESET": RESET_BIT,
    "ERROR": STATUS_ERROR,
    "REQUEST": STATUS_REQUEST,
    "READY": STATUS_READY,
    "BUSY": STATUS_BUSY,
    "END": DESCRIPTOR_END,
    "BLOCKS": 1 << DESCRIPTOR_COUNT_SHIFT,
}
"""Names in every program: spaces, registers, commands, rules, MSRs, rights and sizes of pages, bits of registers and of
descriptors.
"""


class Placed(NamedTuple):
    """A device of the program: its number, whether it is a storage device's, where its registers are, what is said of its
    sectors, and how many sectors its image has (0: none).
    """

    number: int
    is_storage: bool
    windows: tuple[int, int]
    """By space."""
    rules: tuple[tuple[int, int, Rule], ...]
    """First and last sector of each."""
    image: int


class Extended(NamedTuple):
    """An extension of the program: its number, its first and last frame, and whether it may write to them."""

    number: int
    first: int
    last: int
    may_write: bool


class Layout:
    """Numbers of devices and extensions, in the order in which they are said."""

    def __init__(self, system: System) -> None:
        numbers = {**DEFAULTS, **numbers_of(system.settings)}
        self.frames, self.vcpus, self.key = (numbers[name] for name in DEFAULTS)
        self.region = next(((constant(each.first), constant(each.last)) for each in system.spans), DEFAULT_REGION)
        devices = [part for part in system.parts if part.kind in (DEVICE, STORAGE)]
        extensions = [part for part in system.parts if part.kind == EXTENSION]
        self.devices = {part.name: _placed(number, part) for number, part in enumerate(devices, 1)}
        self.extensions = {part.name: _extended(number, part) for number, part in enumerate(extensions, 1)}

    def constants(self) -> dict[str, int]:
        """What names are worth before the program runs."""
        first, last = self.region
        found = {REGION: first << BLOCK_SHIFT, "region.end": last + 1 << BLOCK_SHIFT}
        found |= {"key": self.key, "key.block": first + KEY_FRAME << BLOCK_SHIFT}
        found |= {name: extended.number for name, extended in self.extensions.items()}
        return {**NAMES, **found, **dict(self._of_devices())}

    def _of_devices(self) -> Iterator[tuple[str, int]]:
        for name, placed in self.devices.items():
            yield name, placed.number
            for space, number in SPACES.items():
                base = placed.windows[number] << WINDOW_SHIFT
                yield f"{name}.{space}", base
                prefix = name if space == PORT else f"{name}.{space}"
                for register in Register if placed.is_storage else ():
                    yield f"{prefix}.{register.name.lower()}", base + register


def numbers_of(items: tuple[Setting | Span, ...]) -> dict[str, int]:
    """The numbers among what is said of something, by name."""
    return {item.name: constant(item.value) for item in items if isinstance(item, Setting)}


def _spans_of(part: Part) -> list[tuple[str, int, int]]:
    return [(item.name, constant(item.first), constant(item.last)) for item in part.items if isinstance(item, Span)]


def _placed(number: int, part: Part) -> Placed:
    """A device, whose registers are in the window of its own number where nothing is said, in memory behind `FIRST_MMIO`."""
    given = numbers_of(part.items)
    firsts = {PORT: 0, MMIO: FIRST_MMIO}
    windows = tuple(given.get(space, firsts[space] + (number << WINDOW_SHIFT)) >> WINDOW_SHIFT for space in SPACES)
    rules = tuple((first, last, RULES[name]) for name, first, last in _spans_of(part))
    return Placed(number, part.kind == STORAGE, (windows[0], windows[1]), rules, given.get(IMAGE, 0))


def _extended(number: int, part: Part) -> Extended:
    ((_name, first, last),) = _spans_of(part)
    return Extended(number, first, last, bool(numbers_of(part.items).get(WRITABLE)))


def constants_of(program: Program) -> dict[str, int]:
    """What a checked program's names are worth before it runs."""
    assert program.system is not None
    return Layout(program.system).constants()


def place(system: VmmSystem, layout: Layout) -> None:
    """What a program has at its start: the key, devices with what is said of their sectors, extensions."""
    system.set_key(layout.key)
    for placed in layout.devices.values():
        if placed.is_storage:
            system.add_storage(placed.number)
        for first, last, rule in placed.rules:
            for lba in range(first, last + 1):
                system.rules[placed.number, lba] = rule
        if placed.image:
            system.deployments[placed.number] = Deployment(Phase.DEPLOY, placed.image)
        for lba in range(placed.image):
            system.images[placed.number, lba] = IMAGE_WORD + lba
        for space, window in zip(Space, placed.windows, strict=True):
            system.place_window(placed.number, space, window)
    for extended in layout.extensions.values():
        system.extensions[extended.number] = Extension(True, extended.first, extended.last + 1, extended.may_write)
