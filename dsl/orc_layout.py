"""What a program of shared objects has at its start: slots, tenants, the files of objects; and what its names stand for."""

from collections.abc import Iterator
from typing import NamedTuple

from capvisor.dsl.evaluate import constant, format_of
from capvisor.dsl.syntax import Export, Object, Program, Relocation, Setting, System, Word
from capvisor.model.objects import digest
from capvisor.spec import orc
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.orc import SHAPE

MEMORY_BASE = 0x8000_0000
DEFAULT_SLOTS, MAX_SLOTS = 16, 64
CODE = "code"
"""The setting that says how large an object's code is."""

DEFAULT_CODE_GRANULES = 4
SPARE = "spare"
"""The name of the first slot that is nobody's at the start."""

KINDS = {kind.name.lower(): kind.value for kind in orc.Relocation}
"""The kinds of relocations, by the names that programs have for them."""


class Placed(NamedTuple):
    """A tenant of the program: its number, and its two slots."""

    number: int
    home: int
    tls: int


class File(NamedTuple):
    """An object as its file has it: the slot that it is meant for, its segments, what is in them, and its identity."""

    slot: int
    code: int
    ro: int
    data: int
    words: dict[int, int]
    """By offset."""
    relocations: tuple[tuple[int, int, int, int], ...]
    """Kind, target, address and size of each."""
    exports: tuple[int, ...]
    names: dict[str, int]
    """Of its words, exports and entries of the table: the offsets."""
    identity: int


def word_bytes(fmt: CapabilityFormat) -> int:
    """How large a word of an object's data is: half a granule."""
    return fmt.capability_bytes // 2


def file_of(each: Object, slot: int, fmt: CapabilityFormat) -> File:
    """The file of an object. Raises LookupError for a relocation of what isn't there."""
    granule, word = fmt.capability_bytes, word_bytes(fmt)
    settings = {item.name: constant(item.value) for item in each.items if isinstance(item, Setting)}
    code = settings.get(CODE, DEFAULT_CODE_GRANULES * granule)
    relocated = [item for item in each.items if isinstance(item, Relocation)]
    words = [item for item in each.items if isinstance(item, Word)]
    constants, variables = ([item for item in words if item.is_global is kind] for kind in (False, True))
    names = {item.name: 0 if item.at is None else constant(item.at) for item in each.items if isinstance(item, Export)}
    exports = tuple(names.values())
    ro = _rounded(len(relocated) * granule + len(constants) * word, granule)
    names |= {item.name: code + len(relocated) * granule + place * word for place, item in enumerate(constants)}
    names |= {item.name: code + ro + place * word for place, item in enumerate(variables)}
    content = {names[item.name]: constant(item.value) for item in words}
    data = _rounded(len(variables) * word, granule)
    table = tuple(
        (KINDS[item.kind], code + place * granule, names[item.name], 0 if item.kind == "func" else word)
        for place, item in enumerate(relocated)
    )
    names |= {f"{item.name}.got": code + place * granule for place, item in enumerate(relocated)}
    identity = digest(image_of(content, word), code, ro, data)
    for entry in table:
        identity = digest(b"", identity, *entry)
    for place in exports:
        identity = digest(b"", identity, place)
    return File(slot, code, ro, data, content, table, exports, names, identity)


def _rounded(size: int, granule: int) -> int:
    return -(-size // granule) * granule


def image_of(words: dict[int, int], word: int) -> bytes:
    """The bytes of a slot with some words in it."""
    image = bytearray(SHAPE.slot_bytes)
    for offset, value in words.items():
        image[offset : offset + word] = value.to_bytes(word, "little")
    return bytes(image)


class Layout:
    """Numbers of tenants and slots, in the order in which they are said: two slots a tenant, then one an object."""

    def __init__(self, program: Program) -> None:
        system = program.system
        assert system is not None
        self.format = format_of(program)
        self.slot_count = slots_of(system)
        self.tenants = {each.name: Placed(place + 1, 2 * place, 2 * place + 1) for place, each in enumerate(system.tenants)}
        first = 2 * len(self.tenants)
        self.files = {each.name: file_of(each, first + place, self.format) for place, each in enumerate(system.objects)}
        self.spare = first + len(self.files)

    @property
    def memory(self) -> tuple[int, int]:
        """Base and size in bytes of memory."""
        return MEMORY_BASE, self.slot_count * SHAPE.slot_bytes

    def constants(self) -> dict[str, int]:
        """What names are worth before the program runs."""
        return {**KINDS, **dict(self._of_tenants()), **dict(self._of_files()), **dict(self._of_spare())}

    def _of_tenants(self) -> Iterator[tuple[str, int]]:
        for name, placed in self.tenants.items():
            yield name, placed.number
            yield f"{name}.home", placed.home
            yield f"{name}.tls", placed.tls
            yield f"{name}.base", address_of(placed.home)

    def _of_files(self) -> Iterator[tuple[str, int]]:
        for name, file in self.files.items():
            yield name, file.slot
            yield f"{name}.base", address_of(file.slot)
            yield f"{name}.tls", file.slot * self.format.capability_bytes
            yield from ((f"{name}.{part}", getattr(file, part)) for part in ("code", "ro", "data", "identity"))
            yield from ((f"{name}.{part}", offset) for part, offset in file.names.items())

    def _of_spare(self) -> Iterator[tuple[str, int]]:
        yield SPARE, self.spare
        yield f"{SPARE}.base", address_of(self.spare)


OBJECT_FIELDS = {"base", "tls", "code", "ro", "data", "identity"}
"""What an expression can say of every object; its words and exports can't be called so."""


def address_of(slot: int) -> int:
    """Where a slot begins."""
    return MEMORY_BASE + (slot << SHAPE.slot_shift)


def slots_of(system: System) -> int:
    """How many slots a system has."""
    given = {setting.name: constant(setting.value) for setting in system.settings}
    return given.get("slots", DEFAULT_SLOTS)


def constants_of(program: Program) -> dict[str, int]:
    """What a checked program's names are worth before it runs."""
    return Layout(program).constants()
