"""The reference simulator: four machines, each with structures of its own, that translate one access after the other.

It reads like the rules in docs/translate.md, which it is the authority for, and shares nothing with the fast simulator.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from capvisor.study.configuration import Configuration, Structure, WalkCaches
from capvisor.study.frames import GuestFrames, host_table_frame

MODES = ("native", "nested", "shadow", "tpt")


class RecentlyUsed:
    """A set-associative structure: a hit makes its key the most recent of its set, a full set evicts the least recent."""

    def __init__(self, sets: int, ways: int) -> None:
        self._sets: list[list[int]] = [[] for _ in range(sets)]
        self._ways = ways

    def _set(self, key: int) -> list[int]:
        return self._sets[(key + 1) % len(self._sets)]  # keys count from one in the fast simulator

    def hit(self, key: int) -> bool:
        chosen = self._set(key)
        if key not in chosen:
            return False
        chosen.remove(key)
        chosen.append(key)
        return True

    def insert(self, key: int) -> int | None:
        """Put in a key that isn't there; what was evicted for it."""
        chosen = self._set(key)
        if self._ways == 0:
            return None
        evicted = chosen.pop(0) if len(chosen) == self._ways else None
        chosen.append(key)
        return evicted

    def remove(self, key: int) -> None:
        chosen = self._set(key)
        if key in chosen:
            chosen.remove(key)


def _of(structure: Structure) -> RecentlyUsed:
    return RecentlyUsed(structure.sets, structure.ways)


@dataclass
class Outcome:
    """What one access or event did in one mode. Evicted pages are None where nothing had to go."""

    level: int = 0
    evicted_l1: int | None = None
    evicted_l2: int | None = None
    references: int = 0
    line_misses: int = 0
    tag_lookups: int = 0
    tag_misses: int = 0
    fault: bool = False
    changed: str = ""
    exits: int = 0
    hypercalls: int = 0
    cycles: int = 0


class PagingStructureCaches:
    """By level, the entries of page tables that point to other tables; a hit gives the table one level further down."""

    def __init__(self, caches: WalkCaches, levels: int, leaf: int) -> None:
        self._caches = {level: RecentlyUsed(1, caches.entries(level)) for level in range(leaf + 1, levels)}

    def lowest_table(self, page_number: int) -> int | None:
        """The level of the lowest table whose place is known, for a page number in 4 KiB pages."""
        for level, cache in self._caches.items():
            if cache.hit(page_number >> 9 * level):
                return level - 1
        return None

    def keep(self, level: int, page_number: int) -> None:
        if level in self._caches:
            self._caches[level].insert(page_number >> 9 * level)


class Machine:
    """One mode: its TLBs and walk caches, and the references, tags and exits of that mode."""

    def __init__(self, mode: str, configuration: Configuration) -> None:
        self.mode = mode
        self._configuration = configuration
        tlb = configuration.tlb
        self._l1i, self._l1d, self._l2 = _of(tlb.l1i), _of(tlb.l1d), _of(tlb.l2)
        self._nested_tlb = _of(configuration.nested.tlb)
        lines, tags = configuration.table_lines, configuration.tags
        self._lines, self._tags = RecentlyUsed(lines.sets, lines.ways), RecentlyUsed(tags.sets, tags.ways)
        levels = configuration.levels
        self._host_caches = PagingStructureCaches(configuration.nested.walk_caches, levels, configuration.host_leaf_level)
        self._pending_updates = 0
        self._frames = GuestFrames(configuration.leaf_level)
        self._flush_walk_caches()

    def access(self, kind: str, address: int) -> Outcome:
        """A load, store or fetch."""
        outcome = Outcome(cycles=self._configuration.access_cycles)
        page = address >> 12 + 9 * self._configuration.leaf_level
        first = self._l1i if kind == "fetch" else self._l1d
        if first.hit(page):
            return outcome
        outcome.level = 1
        outcome.evicted_l1 = first.insert(page)
        outcome.cycles += self._configuration.tlb.l2_hit_cycles
        if self._l2.hit(page):
            return outcome
        outcome.level = 2
        outcome.evicted_l2 = self._l2.insert(page)
        if self._frames.make_present(page):
            outcome.fault = True
            self._update(outcome)
            if self.mode == "shadow":
                self._exit(outcome, self._configuration.shadow.exits_per_fault)
        self._walk(address >> 12, outcome)
        return outcome

    def change(self, kind: str, address: int) -> Outcome:
        """The guest maps or unmaps a page; nothing happens where it is so already."""
        outcome = Outcome(level=3)
        page = address >> 12 + 9 * self._configuration.leaf_level
        if kind == "map" and self._frames.make_present(page):
            outcome.changed = "maps"
            self._update(outcome)
        elif kind == "unmap" and self._frames.make_absent(page):
            outcome.changed = "unmaps"
            self._update(outcome)
            self._invalidate(page, outcome)
        return outcome

    def _walk(self, page_number: int, outcome: Outcome) -> None:
        """Read the tables from the lowest that is known down to the one that maps the page."""
        known = self._walk_caches.lowest_table(page_number)
        start = self._configuration.levels - 1 if known is None else known
        for level in range(start, self._configuration.leaf_level - 1, -1):
            frame = self._frames.table(level, page_number >> 9 * (level + 1))
            if level != known:
                self._reach(frame, outcome)
            self._read(frame, page_number >> 9 * level, outcome)
            self._walk_caches.keep(level, page_number)
        self._reach(self._frames.page(page_number >> 9 * self._configuration.leaf_level), outcome)

    def _reach(self, frame: int, outcome: Outcome) -> None:
        """What it takes to use a frame that a page table names."""
        if self.mode == "nested":
            self._walk_host(frame, outcome)
        elif self.mode == "tpt":
            self._look_up_tag(frame, outcome)

    def _walk_host(self, frame: int, outcome: Outcome) -> None:
        configuration = self._configuration
        if self._nested_tlb.hit(frame >> 9 * configuration.host_leaf_level):
            return
        known = self._host_caches.lowest_table(frame)
        start = configuration.levels - 1 if known is None else known
        for level in range(start, configuration.host_leaf_level - 1, -1):
            self._read(host_table_frame(level, frame >> 9 * (level + 1)), frame >> 9 * level, outcome)
            self._host_caches.keep(level, frame)
        self._nested_tlb.insert(frame >> 9 * configuration.host_leaf_level)

    def _read(self, frame: int, entry: int, outcome: Outcome) -> None:
        """One reference to a page table: 512 entries a table, eight a line."""
        costs = self._configuration.table_lines
        line = frame * 64 + entry % 512 // 8
        outcome.references += 1
        if self._lines.hit(line):
            outcome.cycles += costs.hit_cycles
        else:
            self._lines.insert(line)
            outcome.line_misses += 1
            outcome.cycles += costs.miss_cycles

    def _look_up_tag(self, frame: int, outcome: Outcome) -> None:
        costs = self._configuration.tags
        line = frame // costs.frames_per_line
        outcome.tag_lookups += 1
        if self._tags.hit(line):
            outcome.cycles += costs.hit_cycles
        else:
            self._tags.insert(line)
            outcome.tag_misses += 1
            outcome.cycles += costs.miss_cycles

    def _update(self, outcome: Outcome) -> None:
        """The guest writes an entry of a page table."""
        shadow = self._configuration.shadow
        if self.mode == "tpt":
            outcome.cycles += self._configuration.tpt.update_cycles
        elif self.mode == "shadow" and shadow.updates_per_hypercall == 0:
            self._exit(outcome, shadow.exits_per_update)
        elif self.mode == "shadow":
            self._pending_updates += 1
            if self._pending_updates == shadow.updates_per_hypercall:
                self._pending_updates = 0
                outcome.hypercalls += 1
                outcome.cycles += self._configuration.host.hypercall_cycles

    def _invalidate(self, page: int, outcome: Outcome) -> None:
        """INVLPG on every processor; it drops all of the walk caches (Intel SDM 3A, section 4.10.4.1)."""
        for tlb in (self._l1i, self._l1d, self._l2):
            tlb.remove(page)
        self._flush_walk_caches()
        shootdown = self._configuration.shootdown
        outcome.cycles += shootdown.native_cycles if self.mode == "native" else shootdown.virtual_cycles
        if self.mode == "shadow":
            self._exit(outcome, self._configuration.shadow.exits_per_invalidation)

    def _flush_walk_caches(self) -> None:
        configuration = self._configuration
        self._walk_caches = PagingStructureCaches(configuration.walk_caches, configuration.levels, configuration.leaf_level)

    def _exit(self, outcome: Outcome, times: int) -> None:
        outcome.exits += times
        outcome.cycles += times * self._configuration.host.exit_cycles


@dataclass
class Reference:
    """The four machines, side by side."""

    configuration: Configuration
    machines: list[Machine] = field(init=False)

    def __post_init__(self) -> None:
        self.machines = [Machine(mode, self.configuration) for mode in MODES]

    def step(self, kind: str, address: int) -> dict[str, Outcome]:
        """One access or event in every mode. `address` is without the copies of its sign bit."""
        event = kind in ("map", "unmap")
        return {each.mode: (each.change if event else each.access)(kind, address) for each in self.machines}


def counts(steps: Iterable[dict[str, Outcome]]) -> dict[str, int]:
    """The totals that the fast simulator counts, of these steps."""
    total: dict[str, int] = {}

    def add(name: Hashable, value: int) -> None:
        total[str(name)] = total.get(str(name), 0) + value

    def most(name: str, value: int) -> None:
        total[name] = max(total.get(name, 0), value)

    for step in steps:
        native, nested, shadow, tpt = (step[mode] for mode in MODES)
        for name in ("maps", "unmaps"):
            add(name, native.changed == name)
        add("accesses", native.level < 3)
        add("l1_misses", native.level in (1, 2))
        add("walks", native.level == 2)
        add("faults", native.fault)
        for name, outcome in (("native", native), ("nested", nested)):
            add(f"{name}_references", outcome.references)
            add(f"{name}_line_misses", outcome.line_misses)
            most(f"{name}_most", outcome.references)
        add("tag_lookups", tpt.tag_lookups)
        add("tag_misses", tpt.tag_misses)
        most("tag_most", tpt.tag_lookups)
        add("exits", shadow.exits)
        add("hypercalls", shadow.hypercalls)
        for mode, outcome in step.items():
            add(f"{mode}_cycles", outcome.cycles)
    return total
