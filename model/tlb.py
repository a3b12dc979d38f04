"""TLBs and page-walk caches: what vCPUs remember of tables that may have changed since.

Slots that are known to be empty are passed over: a concrete TLB mostly has such.

A vCPU has slots for translations and slots for tables; they are filled in turn, and emptied by what is said to empty them,
or by an eviction, which may happen at any time. Source: Intel SDM vol. 3A, 4.10.2 to 4.10.4; AMD APM vol. 2, 5.5, 15.16.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from capvisor.model.bits import not_, select
from capvisor.model.paging import FETCH, WRITE, Frame, Walk
from capvisor.model.tables import Rows, Table
from capvisor.spec.paging import frames_of, index_shift
from capvisor.spec.tpt import CACHE_SLOTS, TLB_SLOTS

Vcpu = int
LEAF_LEVELS, TABLE_LEVELS = (1, 2, 3), (1, 2, 3, 4)
SHIFT_1, SHIFT_2, SHIFT_3, SHIFT_4, SHIFT_5 = (index_shift(level) for level in (1, 2, 3, 4, 5))
LAST_SLOT_FIRST = tuple(reversed(range(TLB_SLOTS)))


class Translation(NamedTuple):
    """A page: where it is, and what its entries permit together."""

    is_live: bool = False
    asid: int = 0
    level: int = 0
    page: int = 0
    """The address, cut, without its offset in the page."""
    frame: Frame = 0
    """The page's first frame."""
    is_writable: bool = False
    is_user: bool = False
    is_executable: bool = False
    is_dirty: bool = False
    is_global: bool = False


class CachedTable(NamedTuple):
    """A table of a level: which addresses lead to it, and what the entries above permit together."""

    is_live: bool = False
    asid: int = 0
    level: int = 0
    prefix: int = 0
    """The address, cut, without what indexes this table and those below."""
    frame: Frame = 0
    is_writable: bool = False
    is_user: bool = False
    is_executable: bool = False


NO_TRANSLATION, NO_TABLE = Translation(), CachedTable()


def either(condition: Any, when_true: Any, when_false: Any) -> Any:
    """One of two rows, as data."""
    if condition is True or condition is False:
        return when_true if condition else when_false
    return type(when_true)(*(select(condition, *pair) for pair in zip(when_true, when_false, strict=True)))


def matches(entry: Translation, asid: int, address: int) -> Any:
    """Whether an entry translates an address, cut, under an ASID."""
    if entry.is_live is False:
        return False
    level, page = entry.level, entry.page
    same = (level == 1) & (page == address >> SHIFT_1) | (level == 2) & (page == address >> SHIFT_2)
    same = same | (level == 3) & (page == address >> SHIFT_3)
    return entry.is_live & (entry.asid == asid) & same


def leads(entry: CachedTable, asid: int, address: int) -> Any:
    """Whether an address, cut, is walked through a cached table, under an ASID."""
    if entry.is_live is False:
        return False
    level, prefix = entry.level, entry.prefix
    same = (level == 1) & (prefix == address >> SHIFT_2) | (level == 2) & (prefix == address >> SHIFT_3)
    same = same | (level == 3) & (prefix == address >> SHIFT_4) | (level == 4) & (prefix == address >> SHIFT_5)
    return entry.is_live & (entry.asid == asid) & same


def permits(entry: Translation, access: int, is_user: bool) -> Any:
    """Whether an entry will do for an access; a write to a page that isn't dirty yet must set the bit, and so walks."""
    write = (access != WRITE) | entry.is_writable & entry.is_dirty
    fetch = (access != FETCH) | entry.is_executable
    return write & fetch & (not_(is_user) | entry.is_user)


def covers(entry: Translation, frame: Frame) -> Any:
    """Whether a frame is one of an entry's page."""
    size: Any = 1
    for level in LEAF_LEVELS:
        size = select(entry.level == level, frames_of(level), size)
    return entry.is_live & (entry.frame <= frame) & (frame < entry.frame + size)


class Tlb:
    """The TLBs and page-walk caches of all vCPUs."""

    def __init__(self, make_table: Callable[[str, Any], Table] = lambda _name, empty: Rows(empty)) -> None:
        self.translations = make_table("tlb", Translation())
        self.tables = make_table("caches", CachedTable())

    def hit(self, vcpu: Vcpu, asid: int, address: int, access: int, is_user: bool) -> Any:
        """The first slot whose translation will do, or TLB_SLOTS."""
        found: Any = TLB_SLOTS
        translations = self.translations
        for slot in LAST_SLOT_FIRST:
            entry = translations[vcpu, slot]
            if entry.is_live is not False:
                is_there = matches(entry, asid, address)
                if is_there is not False:
                    found = select(is_there & permits(entry, access, is_user), slot, found)
        return found

    def deepest(self, vcpu: Vcpu, asid: int, address: int) -> Any:
        """The first slot of the tables of the lowest level through which an address is walked, or CACHE_SLOTS."""
        found: Any = CACHE_SLOTS
        lowest: Any = TABLE_LEVELS[-1] + 1
        for slot in range(CACHE_SLOTS):
            entry = self.tables[vcpu, slot]
            better = leads(entry, asid, address) & (entry.level < lowest)
            found, lowest = select(better, slot, found), select(better, entry.level, lowest)
        return found

    def fill(self, vcpu: Vcpu, slot: int, asid: int, walk: Walk) -> None:
        """Keep what a walk that is done has found."""
        page = walk.address >> index_shift(walk.leaf_level)
        rights = (walk.is_writable, walk.is_user_page, walk.is_executable, walk.is_dirty, walk.is_global)
        self.translations[vcpu, slot] = Translation(True, asid, walk.leaf_level, page, walk.leaf_frame, *rights)

    def keep_table(self, vcpu: Vcpu, slot: int, asid: int, walk: Walk) -> None:
        """Keep the table that a walk has reached."""
        prefix = walk.address >> index_shift(walk.level + 1)
        rights = (walk.is_writable, walk.is_user_page, walk.is_executable)
        self.tables[vcpu, slot] = CachedTable(True, asid, walk.level, prefix, walk.frame, *rights)

    def drop_translations(self, vcpu: Vcpu, meant: Callable[[Translation], Any]) -> None:
        """Empty the slots of a vCPU whose translations are meant."""
        for slot in range(TLB_SLOTS):
            entry = self.translations[vcpu, slot]
            if entry.is_live is not False:
                self.translations[vcpu, slot] = either(entry.is_live & meant(entry), NO_TRANSLATION, entry)

    def drop_tables(self, vcpu: Vcpu, meant: Callable[[CachedTable], Any]) -> None:
        """Empty the slots of a vCPU whose tables are meant."""
        for slot in range(CACHE_SLOTS):
            entry = self.tables[vcpu, slot]
            if entry.is_live is not False:
                self.tables[vcpu, slot] = either(entry.is_live & meant(entry), NO_TABLE, entry)

    def drop_address(self, vcpu: Vcpu, asid: int, address: int) -> None:
        """Forget the translations of an address, and the tables on its way, as a fault does (SDM 4.10.4.1)."""
        self.drop_translations(vcpu, lambda entry: matches(entry, asid, address))
        self.drop_tables(vcpu, lambda entry: leads(entry, asid, address))

    def drop_asid(self, vcpu: Vcpu, asid: int) -> None:
        """Forget all of an ASID."""
        self.drop_translations(vcpu, lambda entry: entry.asid == asid)
        self.drop_tables(vcpu, lambda entry: entry.asid == asid)

    def evict(self, vcpu: Vcpu, slot: int) -> None:
        """Empty a slot, of translations, or behind them of tables."""
        if slot < TLB_SLOTS:
            self.translations[vcpu, slot] = Translation()
        else:
            self.tables[vcpu, slot - TLB_SLOTS] = CachedTable()
