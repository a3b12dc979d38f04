"""Walks of the vCPUs of many systems, one memory reference at a time: what `model.tpt` makes of `model.paging`.

A step takes the walks of one stage, and of one level of tables, together; each is in a system of its own.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath import paging, tlb
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.workspace import Causes, Flags, Words
from capvisor.spec.paging import (
    FRAME_FIELD,
    FRAME_NUMBERS,
    FRAME_SHIFT,
    LARGEST_LEAF,
    Access,
    Entry,
    ErrorCode,
    address_bits,
    frames_of,
    index_shift,
)
from capvisor.spec.tpt import FaultKind

if TYPE_CHECKING:
    from capvisor.fastpath.tpt import BatchSystem

READ, UPDATE, DONE = 0, 1, 2
"""Stages of a walk: an entry is to be read, its accessed or dirty bit to be set, the translation to be cached."""

HALTED = 255
"""Instead of a fault: others who share the machine don't let a walk go on. It stays as it is."""

_FLAG, _WORD = np.bool_, np.uint64
WALK = {
    "is_live": _FLAG,
    "address": _WORD,
    "access": np.uint8,
    "is_user": _FLAG,
    "stage": np.uint8,
    "level": _WORD,
    "frame": _WORD,
    "is_cached": _FLAG,
    "rights": _WORD,
    "entry": _WORD,
    "leaf_frame": _WORD,
    "leaf_level": _WORD,
    "is_dirty": _FLAG,
    "is_global": _FLAG,
}
"""A walk under way, with its rights as bits of an entry (`paging.EVERY_RIGHT`)."""


class Runners:
    """VCPUs that run for VMs, one in each of some systems, and what faults they meet."""

    def __init__(self, system: "BatchSystem", lanes: Indices, vcpus: Indices) -> None:
        self.system, self.lanes, self.vcpus = system, lanes, vcpus
        self.vm: Words = system.vcpus["vm"][lanes, vcpus]
        self.asid: Words = system.vcpus["asid"][lanes, vcpus]
        self.is_nested: Flags = system.is_nested(lanes, self.vm)
        self.levels: Words = system.vms["levels"][lanes, self.vm.astype(np.int64)]
        count = len(lanes)
        self.fault: Causes = np.zeros(count, np.uint8)
        self.error: Words = np.zeros(count, np.uint64)
        self.frame: Words = np.zeros(count, np.uint64)

    def some(self, which: Indices | Flags) -> "Runners":
        """Some of them, with no faults."""
        return Runners(self.system, self.lanes[which], self.vcpus[which])

    def cut(self, address: Words) -> Words:
        """The bits of addresses that are translated."""
        masks = np.where(self.levels == 5, np.uint64((1 << address_bits(5)) - 1), np.uint64((1 << address_bits(4)) - 1))
        return address & masks

    def is_canonical(self, address: Words) -> Flags:
        """Whether addresses are canonical."""
        out, scratch = np.empty(len(address), np.bool_), np.empty_like(address)
        for levels in (4, 5):
            mine, found = self.levels == levels, np.empty(len(address), np.bool_)
            paging.is_canonical(address, levels, scratch, found)
            np.copyto(out, found, where=mine)
        return out

    def refuse(self, who: Indices, kind: FaultKind, frame: Words | int = 0, error: Words | int = 0) -> None:
        """Let some meet a fault."""
        self.fault[who], self.frame[who], self.error[who] = kind, frame, error

    def owns(self, who: Indices, frame: Words) -> Flags:
        """Whether frames have the tags of their VMs."""
        owned: Flags = self.system.looked_up(self.lanes[who], frame) == self.vm[who]
        return owned

    def mapped(self, who: Indices, guest_frame: Words) -> tuple[Flags, Words]:
        """Whether guest frames are mapped, and to which frames."""
        return self.system.mapped(self.lanes[who], self.vm[who], guest_frame)

    def forget_address(self, who: Indices | Flags, address: Words) -> None:
        """Drop what is cached that matches addresses, which are cut."""
        lanes, vcpus, asid = self.lanes[who], self.vcpus[who], self.asid[who]
        for slots in (self.system.tlb, self.system.caches):
            slots.drop(lanes, vcpus, tlb.matching(slots, lanes, vcpus, asid, address))

    def forget_all(self, slots: tlb.Slots) -> None:
        """Drop all that is cached under their ASIDs."""
        slots.drop(self.lanes, self.vcpus, slots.live(self.lanes, self.vcpus, self.asid))


class Walks:
    """Walks of `Runners`, the columns of `WALK` by name."""

    def __init__(self, who: Runners, columns: dict[str, NDArray[Any]]) -> None:
        self.who, self.system, self.columns = who, who.system, columns

    @classmethod
    def begun(cls, who: Runners, address: Words, access: Causes, is_user: Flags) -> "Walks":
        """At their beginnings, which page-walk caches may put below the root. Addresses are cut."""
        walks = cls(who, {name: np.zeros(len(who.lanes), kind) for name, kind in WALK.items()})
        walks["is_live"][:] = True
        walks["address"][:], walks["access"][:], walks["is_user"][:] = address, access, is_user
        walks.begin(np.arange(len(who.lanes)))
        return walks

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def put(self, at: Indices, **values: Any) -> None:
        """Write some columns of some walks."""
        for name, column in values.items():
            self.columns[name][at] = column

    def needed(self, at: Indices) -> Words:
        """The rights that they need."""
        rights = np.empty(len(at), np.uint64)
        paging.needed_rights(self["access"][at], self["is_user"][at], rights)
        return rights

    def begin(self, at: Indices) -> None:
        """Let walks begin, perhaps anew."""
        who, caches = self.who, self.system.caches
        lanes, vcpus = who.lanes[at], who.vcpus[at]
        found = tlb.matching(caches, lanes, vcpus, who.asid[at], self["address"][at])
        slot, any_found = tlb.deepest(caches, lanes, vcpus, found), found.any(axis=1)
        root = (self.system.vcpus["cr3"][lanes, vcpus] & np.uint64(FRAME_FIELD.in_place)) >> np.uint64(FRAME_SHIFT)
        begun: dict[str, Any] = {"level": who.levels[at], "frame": root, "rights": np.uint64(paging.EVERY_RIGHT)}
        for name, otherwise in begun.items():
            self[name][at] = np.where(any_found, caches.at(name, lanes, vcpus, slot), otherwise)
        self.put(at, is_cached=any_found, stage=READ, entry=0, leaf_frame=0, leaf_level=0, is_dirty=False, is_global=False)

    def refuse(self, at: Indices, kind: FaultKind, frame: Words | int = 0, error: Words | int = 0) -> None:
        """End walks by faults: what is cached of their addresses is dropped."""
        self.who.refuse(at, kind, frame, error)
        self.who.forget_address(at, self["address"][at])

    def step(self, at: Indices) -> None:
        """One step of some walks that aren't done and have met no fault."""
        stage, level = self["stage"][at], self["level"][at]
        updates, reads = at[stage == UPDATE], at[stage == READ]
        for number in range(5, 0, -1):
            mine = reads[level[stage == READ] == number]
            if len(mine):
                self._read(mine, number)
        if len(updates):
            self._update(updates)

    def run(self) -> Indices:
        """Step all walks to their ends; those that met no fault."""
        while True:
            going = np.flatnonzero((self["stage"] != DONE) & (self.who.fault == FaultKind.NONE))
            if not len(going):
                return np.flatnonzero(self.who.fault == FaultKind.NONE)
            self.step(going)

    # -- reading an entry --------------------------------------------------------------------------------------------------

    def _read(self, at: Indices, level: int) -> None:
        """Read the entries of tables of a level."""
        at = self._checked(at, level)
        at, host = self._hosted(at)
        self._cache_tables(at, level)
        place = np.empty(len(at), np.uint64)
        paging.entry_address(host << np.uint64(FRAME_SHIFT), self["address"][at], level, place)
        entry = self.system.read(self.who.lanes[at], place)

        scratch, other, needed, code = (np.empty(len(at), np.uint64) for _ in range(4))
        absent, leaf, wrong = (np.empty(len(at), np.bool_) for _ in range(3))
        np.copyto(needed, self.needed(at))
        paging.error_code(needed, scratch, code)
        paging.is_absent(entry, scratch, absent)
        paging.maps_page(entry, level, scratch, leaf)
        paging.has_reserved(entry, level, leaf, scratch, other, wrong)
        self.refuse(at[absent], FaultKind.PAGE, error=code[absent])
        wrong &= ~absent
        self.refuse(at[wrong], FaultKind.PAGE, error=code[wrong] | np.uint64(ErrorCode.P | ErrorCode.RSVD))

        rights = self["rights"][at]
        paging.restrict(entry, scratch, rights)
        good = ~(absent | wrong)
        self.put(at[good], rights=rights[good], entry=entry[good])
        below = good & ~leaf
        used = entry & np.uint64(Entry.A) != 0
        self.put(at[below & ~used], stage=UPDATE)
        self._descend(at[below & used])

        paging.lacks_right(rights, needed, scratch, wrong)
        wrong &= good & leaf
        self.refuse(at[wrong], FaultKind.PAGE, error=code[wrong] | np.uint64(ErrorCode.P))
        if level <= LARGEST_LEAF:
            self._arrive(at[good & leaf & ~wrong], level)

    def _checked(self, at: Indices, level: int) -> Indices:
        """Those that may read a table, by its tag."""
        who, policy = self.who, self.system.policy
        by_level = np.where(who.levels[at] == level, policy.check_root, policy.check_table_reads)
        again = policy.check_table_reads and policy.tag_check == "access"
        checks = ~who.is_nested[at] & np.where(self["is_cached"][at], again, by_level)
        frame = self["frame"][at]
        foreign = checks & ~who.owns(at, frame)
        self.refuse(at[foreign], FaultKind.TAG, frame[foreign])
        return at[~foreign]

    def _hosted(self, at: Indices) -> tuple[Indices, Words]:
        """Those whose table the host has given a frame, and the machine's frames that their tables are in."""
        frame = self["frame"][at]
        mapped, host = self.who.mapped(at, frame)
        nested = self.who.is_nested[at]
        missing = nested & ~mapped
        self.refuse(at[missing], FaultKind.NESTED, frame[missing])
        return at[~missing], np.where(nested, host, frame)[~missing]

    def _cache_tables(self, at: Indices, level: int) -> None:
        """Put the tables that are about to be read in the page-walk caches."""
        who = self.who
        at = at[~who.is_nested[at] & ~self["is_cached"][at] & (who.levels[at] > level)]
        address, frame, rights = (self[name][at] for name in ("address", "frame", "rights"))
        prefix = address >> np.uint64(index_shift(level + 1))
        self.system.caches.fill(
            who.lanes[at], who.vcpus[at], asid=who.asid[at], level=level, prefix=prefix, frame=frame, rights=rights
        )

    def _descend(self, at: Indices) -> None:
        """Go on with the tables that entries name."""
        frame = (self["entry"][at] & np.uint64(FRAME_FIELD.in_place)) >> np.uint64(FRAME_SHIFT)
        self.put(at, frame=frame, level=self["level"][at] - np.uint64(1), is_cached=False, entry=0, stage=READ)

    def _arrive(self, at: Indices, level: int) -> None:
        """Look at the pages that entries map, and that the walks may access by their rights."""
        who, system, entry, size = self.who, self.system, self["entry"][at], frames_of(level)
        base = (entry & np.uint64(FRAME_FIELD.in_place)) >> np.uint64(FRAME_SHIFT) & np.uint64(FRAME_NUMBERS - size)
        nested, refused = who.is_nested[at], np.zeros(len(at), np.bool_)
        if system.policy.check_leaf:
            tagged, pages = ~nested, system.policy.uniform_large_pages
            refused[tagged] = ~system.owns_page(
                who.lanes[at[tagged]], base[tagged], size if pages else 1, who.vm[at[tagged]]
            )
        self.refuse(at[refused], FaultKind.TAG, base[refused])
        guest_frame = base + (self["address"][at] >> np.uint64(FRAME_SHIFT) & np.uint64(size - 1))
        mapped, host = who.mapped(at, guest_frame)
        missing = nested & ~mapped
        self.refuse(at[missing], FaultKind.NESTED, guest_frame[missing])

        leaf_frame, leaf_level = np.where(nested, host, base), np.where(nested, 1, level)
        needs, dirty = self._leaf_needs(at), entry & np.uint64(Entry.D) != 0
        done = entry & needs == needs
        stage, is_global = np.where(done, DONE, UPDATE), entry & np.uint64(Entry.G) != 0
        values = {"leaf_frame": leaf_frame, "leaf_level": leaf_level, "stage": stage, "is_global": is_global}
        good = ~(refused | missing)
        self.put(at[good], **{name: column[good] for name, column in values.items()})
        self.put(at[good & done], is_dirty=dirty[good & done], entry=0)

    def _leaf_needs(self, at: Indices) -> Words:
        """The bits that the entries of pages must have."""
        writes = self["access"][at] == Access.WRITE
        needs: Words = np.where(writes, np.uint64(Entry.A | Entry.D), np.uint64(Entry.A))
        return needs

    # -- setting its bits --------------------------------------------------------------------------------------------------

    def _update(self, at: Indices) -> None:
        """Set the accessed and dirty bits of the entries that were read, if they are still there."""
        who, frame = self.who, self["frame"][at]
        if self.system.policy.check_accessed_dirty_writes:
            foreign = ~who.is_nested[at] & ~who.owns(at, frame)
            self.refuse(at[foreign], FaultKind.TAG, frame[foreign])
            at = at[~foreign]
        at, host = self._hosted(at)
        place, address = np.empty(len(at), np.uint64), self["address"][at]
        for level in range(5, 0, -1):
            mine = np.flatnonzero(self["level"][at] == level)
            found = np.empty(len(mine), np.uint64)
            paging.entry_address(host[mine] << np.uint64(FRAME_SHIFT), address[mine], level, found)
            place[mine] = found
        entry = self["entry"][at]
        changed = self.system.read(who.lanes[at], place) != entry
        self.begin(at[changed])
        at, place, entry = at[~changed], place[~changed], entry[~changed]
        leaf = self["leaf_level"][at] != 0
        wanted = entry | np.where(leaf, self._leaf_needs(at), np.uint64(Entry.A))
        kept = self.system.is_kept(who.lanes[at], place)
        who.fault[at[kept]] = HALTED
        at, place, wanted, leaf = at[~kept], place[~kept], wanted[~kept], leaf[~kept]
        self.system.write(who.lanes[at], place, wanted)
        self._descend(at[~leaf])
        self.put(at[leaf], stage=DONE, is_dirty=wanted[leaf] & np.uint64(Entry.D) != 0, entry=0)

    # -- the end -----------------------------------------------------------------------------------------------------------

    def cache(self, at: Indices) -> None:
        """Put the translations of walks that are done in the TLBs, instead of all that match."""
        who, system = self.who, self.system
        lanes, vcpus, asid, address = who.lanes[at], who.vcpus[at], who.asid[at], self["address"][at]
        system.tlb.drop(lanes, vcpus, tlb.matching(system.tlb, lanes, vcpus, asid, address))
        level = self["leaf_level"][at]
        values = {"asid": asid, "level": level, "page": address >> tlb.index_shifts(level), "frame": self["leaf_frame"][at]}
        for name in ("rights", "is_dirty", "is_global"):
            values[name] = self[name][at]
        system.tlb.fill(lanes, vcpus, **values)
