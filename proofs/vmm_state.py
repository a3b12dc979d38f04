"""Any state of a para-pass-through VMM that its invariants allow: its tables are the solver's arrays.

The invariants are supposed of the state before the step, at the places that the step and the goals look at, and nowhere
else. What is supposed is what `spec.vmm_invariants` says, evaluated on that state.

The cipher is any at all that decrypts what it encrypts, and encrypts what it decrypts: two of the solver's arrays.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import z3

from capvisor.model import vmm
from capvisor.model.vmm import System
from capvisor.proofs.cvm_state import Guards
from capvisor.proofs.symbolic import SymInt, Unfaithful, as_int, bits_for, select, term_of
from capvisor.proofs.tables import ArrayRows, Column, KeptRows, Noted, is_same, key_of
from capvisor.proofs.theorem import Given, implies
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    COUNT_BITS,
    DESCRIPTOR_ADDRESS_BITS,
    DESCRIPTOR_COUNT_BITS,
    FIRST_APIC_FRAME,
    FIRST_SHADOW_FRAME,
    LBA_BITS,
    LEAST_REGION,
    MAPPINGS,
    MAX_FRAMES,
    MEMORY_NUMBERS,
    OPCODE_BITS,
    WINDOW_SHIFT,
    WORD_BITS,
    Phase,
    Rule,
    Space,
)
from capvisor.spec.vmm_invariants import VMM_INVARIANTS, Predicate
from capvisor.spec.vmm_policy import VmmPolicy
from capvisor.spec.vmm_words import Place, Step

INDUCTIVE = tuple(name for name, row in VMM_INVARIANTS.items() if row.of_state)
"""Invariants of a state: what is supposed before a step, and proved after it."""

FRAME_BITS = MAX_FRAMES.bit_length()
"""Of numbers of frames, which are `MAX_FRAMES` at most; numbers of vCPUs, devices and extensions have any so many bits."""
VCPU_BITS, DEVICE_BITS, EXTENSION_BITS = 6, 8, 6
ADDRESS_BITS = FRAME_BITS + BLOCK_SHIFT
WINDOW_BITS = (MEMORY_NUMBERS >> WINDOW_SHIFT).bit_length()
INDEX_BITS = 72
"""Of what tables are indexed by: more than of any number that there is."""

_BITS = {
    **dict.fromkeys(("frame", "next_frame", "behind"), FRAME_BITS),
    **dict.fromkeys(("stage", "level", "phase"), 2),
    **dict.fromkeys(("count", "seen_count", "length", "position", "entry"), COUNT_BITS),
    **dict.fromkeys(("lba", "seen_lba", "size", "cursor"), LBA_BITS),
    **{"state": 4, "opcode": OPCODE_BITS, "offset": DESCRIPTOR_COUNT_BITS, "descriptors": DESCRIPTOR_ADDRESS_BITS},
    "apic_frame": WORD_BITS,
}
"""How many bits a field has; others have a word's. What is put into a field is shown to fit."""
_BITS_OF = {(vmm.Extension, "first"): FRAME_BITS, (vmm.Device, "first"): LBA_BITS, (vmm.Channel, "first"): LBA_BITS}


def _columns(row: type[Any]) -> tuple[Column, ...]:
    """The columns of a table with rows of a kind."""
    kinds = row.__annotations__
    return tuple(
        Column(name, 0 if kinds[name] is bool else _BITS_OF.get((row, name), _BITS.get(name, WORD_BITS)))
        for name in row._fields
    )


def _rows(row: type[Any], *fields: str) -> tuple[Callable[..., Any], tuple[Column, ...], tuple[str, ...]]:
    return row, _columns(row), fields


def _numbers(bits: int, *fields: str) -> tuple[Callable[..., Any], tuple[Column, ...], tuple[str, ...]]:
    return lambda value: value, (Column("row", bits),), fields


TABLES: dict[str, tuple[Callable[..., Any], tuple[Column, ...], tuple[str, ...]]] = {
    "vmm": _rows(vmm.Vmm, "nothing"),
    "memory": _numbers(WORD_BITS, "address"),
    "keys": _numbers(WORD_BITS, "nothing"),
    "vcpus": _rows(vmm.Vcpu, "vcpu"),
    "mappings": _rows(vmm.Mapping, "vcpu", "slot"),
    "devices": _rows(vmm.Device, "device"),
    "decoded": _numbers(DEVICE_BITS, "space", "window"),
    "hooked": _numbers(DEVICE_BITS, "space", "window"),
    "windows": _numbers(WINDOW_BITS, "device", "space"),
    "trapped": _numbers(WORD_BITS, "frame"),
    "registers": _numbers(WORD_BITS, "device", "register"),
    "channels": _rows(vmm.Channel, "device"),
    "media": _numbers(WORD_BITS, "device", "lba"),
    "meant": _rows(vmm.Meant, "device", "lba"),
    "plain": _numbers(WORD_BITS, "device", "position"),
    "touched": _numbers(0, "device", "lba"),
    "rules": _numbers(2, "device", "lba"),
    "deployments": _rows(vmm.Deployment, "device"),
    "images": _numbers(WORD_BITS, "device", "lba"),
    "deployed": _numbers(0, "device", "lba"),
    "extensions": _rows(vmm.Extension, "extension"),
    "clean": _numbers(0, "frame"),
    "remote": _numbers(WORD_BITS, "address"),
}
"""What each table's rows are made of: constructor, columns, and what they are found by, as fields of a place."""


class Table(ArrayRows):
    """A symbolic table of the machine's, which holds anything at first; what doesn't fit into it must be shown not to be."""

    def __init__(self, system: "AnySystem", name: str, empty: Any = None) -> None:
        """With an empty row, all are as it is."""
        make, columns, fields = TABLES[name]
        super().__init__(make, columns, INDEX_BITS, name, len(fields))
        self._system, self._fields = system, fields
        if empty is not None:
            parts = (empty,) if len(columns) == 1 else empty
            self._arrays = tuple(
                z3.K(array.domain(), as_int(part).at(column.width) if column.width else term_of(bool(part)))
                for array, column, part in zip(self._arrays, columns, parts, strict=True)
            )

    def __getitem__(self, number: Any) -> Any:
        self._system.looks_at(self._fields, number)
        return self.get(number)

    def __setitem__(self, number: Any, row: Any) -> None:
        for column, part in zip(self._columns, (row,) if len(self._columns) == 1 else row, strict=True):
            value = as_int(part)
            if value.low < 0 or value.high >> max(1, column.width):
                self._system.narrowed.append((value >= 0) & (value < 1 << column.width))
        self._system.looks_at(self._fields, number)
        self.set(number, row)

    def _at(self, number: Any) -> Any:
        for part in number if isinstance(number, tuple) else (number,):
            value = as_int(part)
            if bits_for(value.low, value.high) > INDEX_BITS:
                raise Unfaithful(f"a table isn't indexed by {value!r}")
        return super()._at(number)

    @property
    def terms(self) -> tuple[z3.ExprRef, ...]:
        """What the table is made of."""
        return self._arrays

    @property
    def is_changed(self) -> bool:
        """Whether a row has been replaced."""
        return bool(self.written) or self._swept is not None


class AnyCipher:
    """A cipher of which nothing is known but that, for each key and sector, either function undoes the other."""

    def __init__(self, given: Given) -> None:
        self._given = given
        index = z3.BitVecSort(WORD_BITS + INDEX_BITS + WORD_BITS)
        self._encrypted, self._decrypted = (
            z3.Array(name, index, z3.BitVecSort(WORD_BITS)) for name in ("encrypted", "decrypted")
        )

    def encrypt(self, key: Any, lba: Any, word: Any) -> Any:
        """What a word becomes."""
        return self._applied(self._encrypted, self._decrypted, key, lba, word)

    def decrypt(self, key: Any, lba: Any, word: Any) -> Any:
        """What it was."""
        return self._applied(self._decrypted, self._encrypted, key, lba, word)

    def _applied(self, function: Any, inverse: Any, key: Any, lba: Any, word: Any) -> Any:
        found = _word(function[_index(key, lba, word)])
        self._given.assume(_word(inverse[_index(key, lba, found)]) == word)
        return found


def _index(key: Any, lba: Any, word: Any) -> z3.BitVecRef:
    for number, bits in ((key, WORD_BITS + 1), (lba, INDEX_BITS), (word, WORD_BITS + 1)):
        value = as_int(number)
        if bits_for(value.low, value.high) > bits or value.low < 0:
            raise Unfaithful(f"a cipher doesn't take {value!r}")
    return z3.Concat(as_int(key).at(WORD_BITS), as_int(lba).at(INDEX_BITS), as_int(word).at(WORD_BITS))


def _word(term: Any) -> SymInt:
    return SymInt(z3.ZeroExt(1, term), 0, (1 << WORD_BITS) - 1)


PLACE_BITS = {
    "vcpu": VCPU_BITS,
    "slot": 4,
    "device": DEVICE_BITS,
    "frame": FRAME_BITS,
    "address": ADDRESS_BITS,
    "lba": LBA_BITS,
    "space": 1,
    "window": WINDOW_BITS,
    "extension": EXTENSION_BITS,
    "register": 3,
    "position": 3,
}
"""How many bits the parts of a place have."""


class Known:
    """What is the same on all ways through a step: what parts of invariants look at, and what they say at places."""

    def __init__(self) -> None:
        self.fields: dict[Predicate, tuple[str, ...]] = {}
        self.supposed: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...], Place]] = {}
        """What is said, and what of the cipher; places are kept, so that their terms' numbers aren't given to others."""
        self.states: list[Any] = []

    def numbered(self, first: Any) -> tuple[int, ...]:
        """The numbers of what a state is made of, which is kept too."""
        self.states.append(first)
        tables = [getattr(first, name).rows for name in TABLES]
        if any(table.is_changed for table in tables):
            return (-len(self.states),)
        return tuple(each.get_id() for table in tables for each in table.terms)


class AnySystem(System):
    """The reference's machine in any state that the invariants allow."""

    hook_errors = ()
    """The engine's own refusals are no answers of an extension's."""

    def __init__(
        self, given: Given, policy: VmmPolicy, invariants: Iterable[str] = INDUCTIVE, known: Known | None = None
    ) -> None:
        self.given, self.invariants = given, frozenset(invariants)
        self.labels: dict[int, str] = {}
        """Which invariant an assumption is, by its number among all."""
        self.narrowed: list[Any] = []
        """That what was put into tables fits, which is to be shown."""
        self.known = Known() if known is None else known
        self._empty: dict[str, Any] = {}
        self._count, self._notices = 0, True
        self.chosen: list[Any] = []
        """Devices that `some_device` has chosen."""
        self._first: Any = None
        self._state: tuple[int, ...] = ()
        self._looked_at: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        self.place = Place(**{name: given.word(f"any_{name}", PLACE_BITS[name]) for name in Place._fields})
        self.places = tuple(self.place._replace(space=int(each)) for each in Space)
        """Any place, in either space."""
        self.other_lba = given.word("other_lba", LBA_BITS)
        self.guards = Guards(policy)  # type: ignore[arg-type]
        super().__init__(
            LEAST_REGION,
            (0, LEAST_REGION),
            policy=self.guards,  # type: ignore[arg-type]
            cipher=AnyCipher(given),
            table=self._table,  # type: ignore[arg-type]
        )
        self.frame_count = self._between("frame_count", FRAME_BITS, 1, MAX_FRAMES)
        self.vcpu_count = self._between("vcpu_count", VCPU_BITS + 1, 1, 1 << VCPU_BITS)
        self.device_count = self._between("device_count", DEVICE_BITS, 1, (1 << DEVICE_BITS) - 1)
        self.region_first = self._between("region_first", FRAME_BITS, 0, MAX_FRAMES)
        self.region_behind = self._between("region_behind", FRAME_BITS, 0, MAX_FRAMES)
        # As `vmm.is_possible`, of any number of vCPUs and devices.
        first, behind, least = self.region_first, self.region_behind, FIRST_SHADOW_FRAME + 2 * self.device_count
        given.assume((first + least <= behind) & (behind <= self.frame_count))
        given.assume((behind <= FIRST_APIC_FRAME) | (first > FIRST_APIC_FRAME))
        given.assume((self.place.vcpu < self.vcpu_count) & (self.place.slot < MAPPINGS))
        given.assume((self.place.device >= 1) & (self.place.device <= self.device_count))

    def _table(self, name: str, empty: Any) -> Any:
        self._empty[name] = empty
        return Table(self, name)

    def _between(self, name: str, bits: int, low: int, high: int) -> Any:
        number = self.given.word(name, bits)
        self.given.assume((low <= number) & (number <= high))
        return SymInt(number.term, low, high)

    def fresh(self, name: str, bits: int) -> Any:
        """Any number, different from all others."""
        self._count += 1
        return self.given.word(f"{name}_{self._count}", bits)

    def fresh_flag(self, name: str) -> Any:
        """Any truth value."""
        self._count += 1
        return self.given.flag(f"{name}_{self._count}")

    def some_device(self, holds: Callable[[Any], Any]) -> Any:
        """Whether something holds of a device: of one that is chosen so that it holds of it if it does of any.

        That is supposed of any place's device, and of those chosen before.
        """
        chosen = self.fresh("some_device", DEVICE_BITS)
        self.given.assume((chosen >= 1) & (chosen <= self.device_count))
        found = holds(chosen)
        for device in (self.place.device, *self.chosen):
            self.given.assume(implies(holds(device), found))
        self.chosen.append(chosen)
        return found

    def make_new(self) -> None:
        """The machine as it is made: no windows, a device that may be a storage device, with a medium to deploy or without.

        What is in memory outside of the region, on media and in images, and what is said of sectors and extensions, is any.
        """
        for name, empty in self._empty.items():
            if name not in ("media", "images", "rules", "extensions", "memory"):
                setattr(self, name, Table(self, name, empty))
        memory: Any = self.memory
        memory.map(lambda address, word: select(self.in_region(address >> BLOCK_SHIFT), 0, word))
        self.set_key(self.given.word("key", WORD_BITS))
        device, rules = self.place.device, copy.copy(self.rules)
        if self.given.flag("is_storage"):
            self.add_storage(device)
            if self.given.flag("is_deployed"):
                self.deployments[device] = vmm.Deployment(phase=Phase.DEPLOY, size=self.given.word("size", LBA_BITS))
                rules.map(lambda number, rule: select(number[0] == device, int(Rule.PLAIN), rule))
        self.rules = rules

    # -- hypotheses --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Keep the state as it is now: the hypotheses are about it."""
        first: Any = copy.copy(self)
        for name in TABLES:
            setattr(first, name, KeptRows(getattr(self, name)))
        first.policy = self.guards.policy
        self._first, self._state = first, self.known.numbered(first)
        self.guards.seen.clear()

    @property
    def first(self) -> Any:
        """The state that the hypotheses are about."""
        return self._first

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Look at rows, of which nothing need be supposed."""
        self._notices = False
        yield
        self._notices = True

    def looks_at(self, fields: tuple[str, ...], number: Any) -> None:
        """A row is looked at."""
        if not self._notices:
            return
        numbers = number if isinstance(number, tuple) else (number,)
        known = self._looked_at.setdefault(fields, [])
        if not any(all(map(is_same, numbers, each)) for each in known):
            known.append(numbers)
            if fields == ("address",):
                self.looks_at(("frame",), numbers[0] >> BLOCK_SHIFT)
            if fields == ("device",) and self._first is not None:
                # How far a command is: the block of the shadow buffer that is next.
                for table in (self._first.channels, self._first.devices):
                    self.looks_at(("device", "position"), (*numbers, table[numbers[0]].position))

    def suppose(self) -> None:
        """Suppose the invariants at all places that were looked at."""
        step = Step(self._first, "")
        for name in INDUCTIVE:
            if name not in self.invariants:
                continue
            for part in VMM_INVARIANTS[name].of_state:
                if part not in self.known.fields:
                    noted = Noted(self.place)
                    part(step, noted)  # type: ignore[arg-type]
                    self.known.fields[part] = tuple(dict.fromkeys(noted.fields))
                for place in self._places(self.known.fields[part]):
                    self._suppose_part(name, part, step, place)

    def _suppose_part(self, name: str, part: Predicate, step: Step, place: Place) -> None:
        """Suppose a part of an invariant at a place."""
        key = self._state, part, *(key_of(getattr(place, field)) for field in self.known.fields[part])
        # What was supposed on another way is the same here, if it is of the same state.
        found = self.known.supposed.get(key)
        if found is None:
            number = len(self.given.assumptions)
            supposed = part(step, place)
            found = self.known.supposed[key] = supposed, tuple(self.given.assumptions[number:]), place
            del self.given.assumptions[number:]
        supposed, of_cipher, _place = found
        self.given.assumptions += of_cipher
        if supposed is not True:
            self.labels[len(self.given.assumptions)] = name
            self.given.assume(supposed)

    def _places(self, fields: tuple[str, ...]) -> Iterator[Place]:
        """The places at which a part of an invariant is supposed: what was looked at together; and of the rest any, or what
        was looked at alone.
        """
        seen: set[Any] = set()
        for known in self._assignments(fields):
            rest = [field for field in fields if field not in known]
            for numbers in itertools.product(*(self._alone(field) for field in rest)):
                place = self.place._replace(**known, **dict(zip(rest, numbers, strict=True)))
                key = tuple(key_of(getattr(place, field)) for field in fields)
                if key not in seen:
                    seen.add(key)
                    yield place

    def _assignments(self, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """What was looked at of some fields, and any place's."""
        for place in self.places:
            yield {field: getattr(place, field) for field in fields}
        for names, rows in self._looked_at.items():
            if set(names) & set(fields):
                for row in rows:
                    yield {name: number for name, number in zip(names, row, strict=True) if name in fields}

    def _alone(self, field: str) -> list[Any]:
        """What was looked at of a field by itself, any one first."""
        return [getattr(self.place, field), *(number for (number,) in self._looked_at.get((field,), ()))]
