"""Holding every step of shared objects against the invariants of `spec.orc_invariants`.

What is said of a register or granule depends on it and on the base's tables. So where no table has changed, only the
registers and granules are looked at again that have.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from capvisor.dsl.states import describe, store_granules
from capvisor.model.memory import EMPTY
from capvisor.model.object_system import kind_of, places
from capvisor.spec.orc import NOBODY
from capvisor.spec.orc_invariants import ORC_INVARIANTS, Place, Step, held
from capvisor.spec.registers import REGISTER_COUNT


class Found(NamedTuple):
    """An invariant that a step violates, and where."""

    invariant: str
    place: Place


class Snapshot(NamedTuple):
    """What invariants are said of: the base's tables, and where capabilities are."""

    tables: tuple[dict[Any, Any], ...]
    registers: dict[tuple[int, int], Any]
    """By thread and number; that of number 0 with DDC and PCC."""
    granules: dict[int, Any]


class Taken(NamedTuple):
    """A step with all that invariants are said of: equal ones violate the same."""

    after: Snapshot
    what: tuple[Any, ...]
    made: tuple[Any, ...]
    """What the policy decides of the entries that the base makes."""


def snapshot(monitor: Any) -> Snapshot:
    """The state that invariants are said of, to be compared with a later one."""
    tables = tuple(dict(each.rows) for each in (monitor.slots, monitor.mappings, monitor.tenants, monitor.exports))
    registers: dict[tuple[int, int], Any] = {}
    for thread in monitor.threads:
        if thread.is_live:
            hart = thread.hart
            registers |= {(thread.number, number): hart.registers[number] for number in range(1, REGISTER_COUNT)}
            registers[thread.number, 0] = (hart.ddc, hart.pcc, hart.pc)
    granules = {index: held for index, held in store_granules(monitor.memory.store).items() if held != EMPTY}
    return Snapshot(tables, registers, granules)


class OrcWatch:
    """Looks at one system's steps, one after the other, from its first on.

    `harmless` are the steps of another run, which violated nothing: those that this run begins with aren't looked at again.
    """

    def __init__(self, harmless: Sequence[Taken] = ()) -> None:
        self._before: Snapshot | None = None
        self._known: set[str] = set()
        self._harmless = harmless
        self.taken: list[Taken] = []
        """The steps so far."""

    def violated(self, step: Step) -> list[Found]:
        """The invariants that the step violates, and that no step before it did."""
        before, after = self._before, snapshot(step.monitor)
        self._before = after
        what = (step.kind, step.name, step.tenant, step.operands, step.code, step.is_completed)
        self.taken.append(Taken(after, what, step.monitor.entry_pair(0, 0)))
        if self._harmless[len(self.taken) - 1 : len(self.taken)] == self.taken[-1:]:
            return []
        was_harmless, self._harmless = self._harmless, ()
        # After the first step that differs, everything is looked at once.
        everything = before is None or bool(was_harmless) or before.tables != after.tables
        looked = list(places(step) if everything or before is None else _places_changed(step, before, after))
        found: list[Found] = []
        for name, invariant in ORC_INVARIANTS.items():
            if name not in self._known:
                place = next((place for place in looked if not invariant.holds(step, place)), None)
                if place is not None:
                    self._known.add(name)
                    found.append(Found(name, place))
        return found


def _places_changed(step: Step, before: Snapshot, after: Snapshot) -> Iterator[Place]:
    """The registers and granules that have changed, and one place for what is said of the step itself."""
    monitor = step.monitor
    yield Place()
    for (thread, number), value in after.registers.items():
        if before.registers.get((thread, number)) != value:
            row = monitor.threads[thread]
            yield Place(row.tenant, thread=row, register=number)
    for index in before.granules | after.granules:
        if before.granules.get(index) != after.granules.get(index):
            yield Place(monitor.slots[monitor.slot_of_granule(index)].owner, granule=index)


_OF_SLOTS = {"O3", "O7", "O8", "O17"}
"""The invariants that a tenant and a slot may be all that matters of."""


def describe_place(step: Step, found: Found, names: Mapping[int, str]) -> str:
    """A place in words: whose it is, and what is there."""
    monitor, place = step.monitor, found.place
    whose = names.get(place.tenant, "nobody" if place.tenant == NOBODY else f"tenant {place.tenant}")
    if place.granule is not None:
        slot = monitor.slot_of_granule(place.granule)
        owner = names.get(monitor.slots[slot].owner, "nobody")
        kind = kind_of(monitor, slot)
        cap = monitor.granule(place.granule)
        content = f" = {describe(cap)}" if cap.tag else ""
        return f"memory {monitor.granule_address(place.granule):#x}{content}, in slot {slot}, {kind.name} of {owner}"
    if place.thread is not None:
        name = agent_text(names[place.thread.tenant], place.thread.place)
        caps = [cap for cap in held(step, place) if cap.tag]
        if found.invariant == "O11" or not caps:
            return f"{name}; pcc = {describe(place.thread.hart.pcc)}"
        return f"{name}; c{place.register} = {describe(caps[0])}"
    if found.invariant in _OF_SLOTS:
        return f"{whose}; slot {place.slot}, {kind_of(monitor, place.slot).name}"
    return whose if step.thread is None else agent_text(names[step.thread.tenant], step.thread.place)


def agent_text(tenant: str, place: int) -> str:
    """A thread's name."""
    return tenant if place == 0 else f"{tenant}/{place + 1}"
