"""Any state of a system with translation pass-through that its invariants allow: its tables are the solver's arrays.

The invariants are supposed of the state before the step, at the places that the step and the goals look at, and nowhere
else. What is supposed is what `spec.tpt_invariants` says, evaluated on that state.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import z3

from capvisor.model.bits import not_, select
from capvisor.model.paging import Walk
from capvisor.model.tags import TagTable
from capvisor.model.tlb import NO_TABLE, NO_TRANSLATION, CachedTable, Tlb, Translation, either
from capvisor.model.tpt import FrameRow, Mapping, Swap, System, Vcpu, Vm
from capvisor.proofs.cvm_state import Guards
from capvisor.proofs.symbolic import SymInt, Unfaithful, as_int, bits_for
from capvisor.proofs.tables import ArrayRows, Column, EmptyRows, KeptRows, Noted, is_same, key_of
from capvisor.proofs.theorem import Given, implies
from capvisor.spec.paging import LEVELS
from capvisor.spec.tag_policy import TagPolicy
from capvisor.spec.tpt import CACHE_SLOTS, SWAP_SLOTS, TLB_SLOTS, OperandKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS, Place, Predicate, Step, walk_in_range, walk_is_left, walk_names

INDUCTIVE = ("T3", "T5", "T7", "T8", "T9", "T11", "T13")
"""Invariants of a state: what is supposed before a step, and proved after it."""

FRAME_BITS, INDEX_BITS = 44, 48
"""Of numbers of frames in operands and tables; of what tables are indexed by."""
VM_BITS, VCPU_BITS, ASID_BITS, DEVICE_BITS, WORD_BITS, WORD_NUMBER_BITS = 16, 6, 8, 6, 64, 16
MOST_VCPUS, MOST_DEVICES = 1 << VCPU_BITS, 1 << DEVICE_BITS

OPERAND_BITS = {
    OperandKind.VCPU: VCPU_BITS,
    OperandKind.VM: VM_BITS,
    OperandKind.FRAME: FRAME_BITS,
    OperandKind.GUEST_FRAME: FRAME_BITS,
    OperandKind.INDEX: WORD_NUMBER_BITS,
    OperandKind.WORD: WORD_BITS,
    OperandKind.ADDRESS: WORD_BITS,
    OperandKind.ACCESS: 2,
    OperandKind.USER: 1,
    OperandKind.ASID: ASID_BITS,
    OperandKind.SLOT: 5,
    OperandKind.SWAP_SLOT: 3,
    OperandKind.DEVICE: DEVICE_BITS,
    OperandKind.MODE: 3,
    OperandKind.LEVELS: 4,
}
"""How many bits operands have."""


def _flags(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, 0) for name in names)


_LIVE, _FRAME, _VM = Column("is_live", 0), Column("frame", FRAME_BITS), Column("vm", VM_BITS)
_ASID, _LEVEL, _GUEST_FRAME = Column("asid", ASID_BITS), Column("level", 3), Column("guest_frame", FRAME_BITS)
_RIGHTS = _flags("is_writable", "is_user", "is_executable")
WALK_COLUMNS = (
    *(_LIVE, Column("address", WORD_BITS), Column("access", 2), *_flags("is_user"), Column("stage", 2), _LEVEL, _FRAME),
    *_flags("is_cached", "is_writable", "is_user_page", "is_executable"),
    *(Column("entry", WORD_BITS), Column("leaf_frame", FRAME_BITS), Column("leaf_level", 3)),
    *_flags("is_dirty", "is_global"),
)


def _number(bits: int) -> tuple[Callable[..., Any], tuple[Column, ...]]:
    return (lambda value: value, (Column("row", bits),))


_TABLES: dict[str, tuple[Callable[..., Any], tuple[Column, ...], int]] = {
    "tlb": (
        Translation,
        (_LIVE, _ASID, _LEVEL, Column("page", WORD_BITS), _FRAME, *_RIGHTS, *_flags("is_dirty", "is_global")),
        2,
    ),
    "caches": (CachedTable, (_LIVE, _ASID, _LEVEL, Column("prefix", WORD_BITS), _FRAME, *_RIGHTS), 2),
    "frames": (FrameRow, (*_flags("is_clean"), _VM, _GUEST_FRAME, *_flags("is_leaving")), 1),
    "pending": (*_number(MOST_VCPUS), 1),
    "vms": (Vm, (_LIVE, Column("mode", 3), Column("levels", 4)), 1),
    "p2m": (Mapping, (*_flags("is_mapped"), _FRAME), 2),
    "vcpus": (Vcpu, (_VM, _ASID, Column("cr3", WORD_BITS), Column("next_tlb", 4), Column("next_cache", 4)), 1),
    "asids": (*_number(VM_BITS), 2),
    "walks": (Walk, WALK_COLUMNS, 1),
    "devices": (*_number(VM_BITS), 1),
    "iotlb": (*_number(MOST_DEVICES), 1),
    "swaps": (Swap, (_LIVE, _VM, _GUEST_FRAME), 1),
    "tags": (*_number(VM_BITS), 1),
    "large": (*_number(0), 1),
}
"""What each table's rows are made of: constructor, columns, and by how many numbers they are found."""


_OWN_TABLES = tuple(name for name in _TABLES if name not in ("tlb", "caches", "tags", "large"))
"""Those that are the system's attributes."""


class Table(ArrayRows):
    """A symbolic table of the system's, which holds anything at first; nothing that it can't hold is put into it."""

    def __init__(self, system: "AnySystem", name: str, label: str = "") -> None:
        make, columns, indices = _TABLES[name]
        super().__init__(make, columns, INDEX_BITS, name + label, indices)
        self._system, self._name = system, name

    def __getitem__(self, number: Any) -> Any:
        self._system.looks_at(self._name, number)
        return self.get(number)

    def __setitem__(self, number: Any, row: Any) -> None:
        for column, part in zip(self._columns, (row,) if len(self._columns) == 1 else row, strict=True):
            value = as_int(part)
            if value.low < 0 or (column.width and value.high >> column.width):
                raise Unfaithful(f"{self._name}: {column.name} doesn't hold {value!r}")
        self.set(number, row)

    def _at(self, number: Any) -> Any:
        for part in number if isinstance(number, tuple) else (number,):
            value = as_int(part)
            if bits_for(value.low, value.high) > INDEX_BITS:
                raise Unfaithful(f"{self._name} isn't indexed by {value!r}")
        return super()._at(number)

    @property
    def terms(self) -> tuple[z3.ExprRef, ...]:
        """What the table is made of."""
        return self._arrays

    @property
    def is_changed(self) -> bool:
        """Whether a row has been replaced."""
        return bool(self.written) or self._swept is not None

    def with_columns_of(self, other: "Table", *names: str) -> "Table":
        """This table, but for some columns, which are another one's."""
        made = copy.copy(self)
        pairs = zip(self._columns, self._arrays, other._arrays, strict=True)
        made._arrays = tuple(theirs if column.name in names else own for column, own, theirs in pairs)
        return made


class AnyWords:
    """The words of frames: any at first. What is done to whole frames is carried out where one looks."""

    def __init__(self, name: str, frames: Callable[[], Any]) -> None:
        index = z3.BitVecSort(INDEX_BITS + WORD_NUMBER_BITS)
        self._array, self._frames = z3.Array(name, index, z3.BitVecSort(WORD_BITS)), frames
        self._changes: tuple[Callable[[Any, Any, Any], Any], ...] = ()

    @property
    def terms(self) -> tuple[z3.ExprRef, ...]:
        """What the words are at first."""
        return (self._array,)

    @property
    def is_changed(self) -> bool:
        """Whether a word has been replaced."""
        return bool(self._changes)

    def get(self, frame: Any, index: Any) -> Any:
        """The word of a frame; where there is no frame, 0."""
        at = z3.Concat(as_int(frame).at(INDEX_BITS), as_int(index).at(WORD_NUMBER_BITS))
        word: Any = SymInt(z3.ZeroExt(1, self._array[at]), 0, (1 << WORD_BITS) - 1)
        for change in self._changes:
            word = change(frame, index, word)
        return select(frame < self._frames(), word, 0)

    def set(self, frame: Any, index: Any, value: Any) -> None:
        """Replace a word."""
        self._changes += (lambda at, number, word: select((at == frame) & (number == index), value, word),)

    def clear(self, frame: Any) -> None:
        """Make all words of a frame 0."""
        self._changes += (lambda at, _number, word: select(at == frame, 0, word),)

    def clear_all(self) -> None:
        """Make all words 0."""
        self._changes = (lambda _at, _number, _word: 0,)

    def copy(self, target: Any, store: Any, source: Any) -> None:
        """Replace a frame by one of a store of the same kind."""
        before = copy.copy(store)
        self._changes += (lambda at, number, word: select(at == target, before.get(source, number), word),)


class AnyTags(TagTable):
    """The reference's tags on symbolic tables; what it asks of all frames of a page is a contract."""

    def __init__(self, system: "AnySystem") -> None:
        self._system = system
        self.tags, self.large = Table(system, "tags"), Table(system, "large")  # type: ignore[assignment]

    @property
    def frames(self) -> Any:  # type: ignore[override]
        """How many frames there are."""
        return self._system.frame_count

    def __getitem__(self, frame: Any) -> Any:
        self._system.looks_at("owners", frame)
        return super().__getitem__(frame)

    def is_large(self, frame: Any) -> Any:
        """Whether a frame is under a large tag."""
        self._system.looks_at("owners", frame)
        return super().is_large(frame)

    def kept(self) -> "AnyTags":
        """The tags as they are now."""
        kept = copy.copy(self)
        kept.tags, kept.large = copy.copy(self.tags), copy.copy(self.large)
        return kept

    def uniform(self, base: Any, count: int, owner: Any) -> Any:
        """As TagTable.uniform."""
        return TagTable.uniform(self.kept(), base, count, owner)

    def owned(self, base: Any, count: int, owner: Any) -> Any:
        """As TagTable.owned."""
        return TagTable.owned(self.kept(), base, count, owner)

    def _all(self, base: Any, count: int, holds: Callable[[Any], Any]) -> Any:
        """Whether something holds of all frames of a run: if so, it is known of each that is looked at; else of one it
        doesn't, or they aren't all there.
        """
        system = self._system
        of_all, other = system.fresh_flag("all_frames"), system.fresh("not_this_frame", FRAME_BITS)
        fits = base + count <= self.frames

        def inside(frame: Any) -> Any:
            return (base <= frame) & (frame < base + count)

        system.given.assume(implies(of_all, fits))
        system.given.assume(of_all | not_(fits) | inside(other) & not_(holds(other)))
        system.promises.append(lambda frame: implies(of_all & inside(frame), holds(frame)))
        system.looks_at("owners", other)
        return of_all


class AnyTlb(Tlb):
    """The reference's TLBs and caches on symbolic tables, of which all slots of a vCPU are looked over at once."""

    def drop_translations(self, vcpu: Any, meant: Callable[[Translation], Any]) -> None:
        """As Tlb.drop_translations."""
        _drop(self.translations, vcpu, meant, NO_TRANSLATION)

    def drop_tables(self, vcpu: Any, meant: Callable[[CachedTable], Any]) -> None:
        """As Tlb.drop_tables."""
        _drop(self.tables, vcpu, meant, NO_TABLE)


def _drop(table: Any, vcpu: Any, meant: Callable[[Any], Any], empty: Any) -> None:
    """Empty the slots of a vCPU whose rows are meant."""
    table.map(lambda number, row: either((number[0] == vcpu) & row.is_live & meant(row), empty, row))


class Known:
    """What is the same on all ways through a step: what parts of invariants look at, and what they say at places."""

    def __init__(self) -> None:
        self.fields: dict[Predicate, tuple[str, ...]] = {}
        self.supposed: dict[tuple[Any, ...], tuple[Any, Place]] = {}
        """The places are kept, so that their terms' numbers aren't given to others."""
        self._states: list[Any] = []

    def numbered(self, first: Any) -> tuple[int, ...]:
        """The numbers of what a state is made of, which is kept too."""
        self._states.append(first)
        tables = [getattr(first, name).rows for name in _OWN_TABLES]
        tables += [first.tlb.translations.rows, first.tlb.tables.rows, first.tags.tags.rows, first.tags.large.rows]
        stores = first.memory, first.disk
        if any(table.is_changed for table in tables) or any(store.is_changed for store in stores):
            return (-len(self._states),)
        return tuple(each.get_id() for part in (*tables, *stores) for each in part.terms)


class AnySystem(System):
    """The reference's system in any state that the invariants allow."""

    def __init__(
        self, given: Given, policy: TagPolicy, invariants: Iterable[str] = INDUCTIVE, known: Known | None = None
    ) -> None:
        self.given, self.invariants = given, frozenset(invariants)
        self.supposed = tuple(each for each in INDUCTIVE if each in self.invariants)
        self.labels: dict[int, str] = {}
        """Which invariant an assumption is, by its number among all."""
        self.narrowed: list[Any] = []
        """What has been taken of intervals of values, and is to be shown."""
        self.promises: list[Callable[[Any], Any]] = []
        """What is known of any frame."""
        self.known = Known() if known is None else known
        self._count = 0
        self._first: Any = None
        self._state: tuple[int, ...] = ()
        self._walks: list[tuple[Any, Walk, bool]] = []
        self.stepped = Walk()
        """The walk that a step of a walk is about."""
        self._looked_at: dict[str, list[tuple[Any, ...]]] = {}
        self.place = Place(
            given.word("any_vcpu", VCPU_BITS),
            given.word("any_slot", 4),
            given.word("any_cache_slot", 3),
            given.word("any_frame", FRAME_BITS),
            given.word("any_word", WORD_NUMBER_BITS),
            given.word("any_device", DEVICE_BITS),
            given.word("any_vm", VM_BITS),
            given.word("any_guest_frame", FRAME_BITS),
            given.word("any_swap_slot", 3),
        )
        self.guards = Guards(policy)  # type: ignore[arg-type]
        super().__init__(
            1,
            1,
            0,
            self.guards,  # type: ignore[arg-type]
            lambda name, _empty: Table(self, name),  # type: ignore[arg-type, return-value]
            AnyWords("memory", lambda: self.frame_count),
            AnyWords("disk", lambda: SWAP_SLOTS),
            AnyTags(self),
        )
        self.tlb = AnyTlb(lambda name, _empty: Table(self, name))  # type: ignore[arg-type, return-value]
        self.frame_count = self._between("frame_count", FRAME_BITS, 1, (1 << FRAME_BITS) - 1)
        self.vcpu_count = self._between("vcpu_count", VCPU_BITS + 1, 1, MOST_VCPUS)
        self.device_count = self._between("device_count", DEVICE_BITS + 1, 0, MOST_DEVICES)
        place = self.place
        given.assume((place.vcpu < self.vcpu_count) & (place.device < self.device_count))
        given.assume((place.slot < TLB_SLOTS) & (place.cache_slot < CACHE_SLOTS) & (place.swap_slot < SWAP_SLOTS))

    def _between(self, name: str, bits: int, low: int, high: int) -> Any:
        number = self.given.word(name, bits)
        self.given.assume((low <= number) & (number <= high))
        return SymInt(number.term, low, high)

    def narrow(self, number: Any, low: int, high: int) -> Any:
        """A number that lies in an interval, which is to be shown."""
        self.narrowed.append((low <= number) & (number <= high))
        return SymInt(number.term, low, high)

    def fresh(self, name: str, bits: int) -> Any:
        """Any number, different from all others."""
        self._count += 1
        return self.given.word(f"{name}_{self._count}", bits)

    def fresh_flag(self, name: str) -> Any:
        """Any truth value."""
        self._count += 1
        return self.given.flag(f"{name}_{self._count}")

    def any_walk(self, name: str) -> Walk:
        """Any walk."""
        parts = [
            self.fresh(name + each.name, each.width) if each.width else self.fresh_flag(name + each.name)
            for each in WALK_COLUMNS
        ]
        return Walk(*parts)

    def running(self, vcpu: Any) -> tuple[Vcpu, Vm]:
        """As System.running; what runs has 4 or 5 levels."""
        row, vm = super().running(vcpu)
        return row, vm._replace(levels=self.narrow(vm.levels, *LEVELS))

    def make_new(self) -> None:
        """The system as it is made: all tables are empty, and all words 0."""
        empty: dict[str, Any] = {"frames": FrameRow(), "vms": Vm(), "p2m": Mapping(), "vcpus": Vcpu(), "walks": Walk()}
        empty |= {"swaps": Swap(), "pending": 0, "asids": 0, "devices": 0, "iotlb": 0}
        for name, row in empty.items():
            setattr(self, name, EmptyRows(row))
        tables: Any = (self.tlb, self.tags)
        tables[0].translations, tables[0].tables = EmptyRows(Translation()), EmptyRows(CachedTable())
        tables[1].tags, tables[1].large = EmptyRows(0), EmptyRows(False)
        for words in (self.memory, self.disk):
            words.clear_all()  # type: ignore[attr-defined]

    # -- a walk that has been made -----------------------------------------------------------------------------------------

    def forget_walked(self) -> None:
        """Steps of a walk have been made, as many as there were: what they may change is anything that the invariants allow.

        That is memory, page-walk caches and their next slots. The hypotheses are from now on about this state.
        """
        self._count += 1
        label = f"_{self._count}"
        self.memory = AnyWords(f"memory{label}", lambda: self.frame_count)
        self.tlb.tables = Table(self, "caches", label)  # type: ignore[assignment]
        vcpus: Any = self.vcpus
        self.vcpus = vcpus.with_columns_of(Table(self, "vcpus", label), "next_cache")
        self.begin()

    def is_apart(self, vcpu: Any) -> Any:
        """Whether nothing has changed but memory, the caches of a vCPU and their next slot."""
        same: Any = not (self.retags or self.handled)
        tables = [getattr(self, name) for name in _OWN_TABLES if name != "vcpus"]
        tables += [self.tlb.translations, self.tags.tags, self.tags.large]
        same = same & (not any(table.is_changed for table in tables))
        before, after = self._first.vcpus[self.place.vcpu], self.vcpus[self.place.vcpu]
        for one, other in zip(before._replace(next_cache=0), after._replace(next_cache=0), strict=True):
            same = same & (one == other)
        for other, slot in self.tlb.tables.written:  # type: ignore[attr-defined]
            same = same & (other == vcpu) & (slot < CACHE_SLOTS)
        return same

    def suppose_walk(self, vcpu: Any, walk: Walk, is_whole: bool) -> None:
        """Suppose of a walk what the invariants say of one under way; of a whole one, that tags are as it found them too."""
        self._walks.append((vcpu, walk, is_whole))

    # -- hypotheses --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Keep the state as it is now: the hypotheses are about it."""
        first: Any = copy.copy(self)
        for name in _OWN_TABLES:
            setattr(first, name, KeptRows(getattr(self, name)))
        first.tlb = copy.copy(self.tlb)
        first.tlb.translations, first.tlb.tables = KeptRows(self.tlb.translations), KeptRows(self.tlb.tables)
        first.tags = _PlainTags(self.tags)
        first.memory, first.disk = copy.copy(self.memory), copy.copy(self.disk)
        first.policy = self.guards.policy
        self._first, self._state = first, self.known.numbered(first)
        self.guards.seen.clear()

    @property
    def first(self) -> Any:
        """The state that the hypotheses are about."""
        return self._first

    def looks_at(self, table: str, number: Any) -> None:
        """A row is looked at."""
        kind = _LOOKED_AT.get(table)
        if kind is None:
            return
        numbers = number if isinstance(number, tuple) else (number,)
        if all(isinstance(part, int) for part in numbers[len(numbers) > 1 :]):
            return
        known = self._looked_at.setdefault(kind, [])
        if not any(all(map(is_same, numbers, each)) for each in known):
            known.append(numbers)

    def suppose(self) -> None:
        """Suppose the invariants at all places that were looked at, and of walks what is known of them."""
        step, seen = Step(self._first, ""), set()
        for place in self._places():
            for name in self.supposed:
                for part in TPT_INVARIANTS[name].of_state:
                    # A part is supposed once of what it looks at.
                    key = part, *(key_of(getattr(place, field)) for field in self.known.fields.get(part, ()))
                    if part in self.known.fields and key in seen:
                        continue
                    seen.add(self._suppose_part(name, part, step, place))
        frames = [frame for (frame,) in self._of("frame", self.place.frame)]
        for vcpu, walk, is_whole in self._walks:
            self._assume("T13", walk_in_range(self._first, vcpu, walk))
            for frame in frames:
                self._assume("T3", walk_is_left(self._first, vcpu, walk, frame))
                if is_whole:
                    self._assume("T1", stays(self._first, vcpu, walk, frame))
        for promise in self.promises:
            for frame in frames:
                self.given.assume(promise(frame))

    def _suppose_part(self, name: str, part: Predicate, step: Step, place: Place) -> tuple[Any, ...]:
        """Suppose a part of an invariant at a place; what tells it apart."""
        if part not in self.known.fields:
            noted = Noted(place)
            part(step, noted)  # type: ignore[arg-type]
            self.known.fields[part] = tuple(dict.fromkeys(noted.fields))
        key = part, *(key_of(getattr(place, field)) for field in self.known.fields[part])
        # What was supposed on another way is the same here, if it is of the same state.
        found = self.known.supposed.get((self._state, *key))
        if found is None:
            found = self.known.supposed[self._state, *key] = part(step, place), place
        self._assume(name, found[0])
        return key

    def _assume(self, name: str, supposed: Any) -> None:
        if name in self.invariants and supposed is not True:
            self.labels[len(self.given.assumptions)] = name
            self.given.assume(supposed)

    def _of(self, kind: str, *any_one: Any) -> list[tuple[Any, ...]]:
        """What was looked at of a kind, any one first."""
        found = self._looked_at.get(kind, [])
        return [any_one, *(each for each in found if not all(map(is_same, each, any_one)))]

    def _places(self) -> Iterator[Place]:
        """The places at which the invariants are supposed: all pairs of a frame and of what may name it."""
        any_one = self.place
        vcpus = [vcpu for (vcpu,) in self._of("vcpu", any_one.vcpu)]
        cached = _zipped(self._of("slot", 0, any_one.slot), self._of("cache_slot", 0, any_one.cache_slot))
        processors = [(vcpu, slot, cache) for vcpu in vcpus for (_one, slot), (_other, cache) in cached]
        found = [
            any_one._replace(frame=frame, vcpu=vcpu, slot=slot, cache_slot=cache, device=device)
            for (frame,) in self._of("frame", any_one.frame)
            for (vcpu, slot, cache), (device,) in _zipped(processors, self._of("device", any_one.device))
        ]
        maps = self._of("p2m", any_one.vm, any_one.guest_frame)
        maps += [(vm, any_one.guest_frame) for (vm,) in self._of("vm", any_one.vm)[1:]]
        rest = _zipped(maps, self._of("swap_slot", any_one.swap_slot))
        for place, ((vm, guest_frame), (swap_slot,)) in _zipped(found, rest):
            yield place._replace(vm=vm, guest_frame=guest_frame, swap_slot=swap_slot)


_LOOKED_AT = {
    **dict.fromkeys(("owners", "frames", "pending"), "frame"),
    **{"vcpus": "vcpu", "walks": "vcpu", "tlb": "slot", "caches": "cache_slot", "p2m": "p2m", "vms": "vm"},
    **{"devices": "device", "swaps": "swap_slot"},
}
"""What part of a place the rows of a table are for."""


def stays(system: Any, vcpu: Any, walk: Walk, frame: Any) -> Any:
    """Of a walk in which no tag has changed since its page was looked up: a frame that it has found is the VM's."""
    return implies(walk_names(walk, frame) & (walk.leaf_level != 0), system.tags[frame] == system.vcpus[vcpu].vm)


def _zipped(one: list[Any], other: list[Any]) -> list[tuple[Any, Any]]:
    """Pairs in which all of both are."""
    most = max(len(one), len(other))
    return list(itertools.islice(zip(itertools.cycle(one), itertools.cycle(other), strict=False), most))


class _PlainTags(TagTable):
    """Tags as they are now."""

    def __init__(self, tags: Any) -> None:
        super().__init__(0)
        self.tags, self.large = KeptRows(tags.tags), KeptRows(tags.large)  # type: ignore[assignment]
