"""Holding every step of shared objects against the invariants of `spec.orc_invariants`.

What is said of a register or granule depends on it and on the base's tables. So where no table has changed, only the
registers and granules are looked at again that have.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from capvisor.dsl.states import describe, store_granules
from capvisor.dsl.system_watch import Found, Snapshot, TableWatch
from capvisor.model.memory import EMPTY
from capvisor.model.object_system import kind_of, places
from capvisor.spec.orc import NOBODY
from capvisor.spec.orc_invariants import ORC_INVARIANTS, Place, Step, held
from capvisor.spec.registers import REGISTER_COUNT

_TABLES = ("slots", "mappings", "tenants", "exports")


def snapshot(monitor: Any) -> Snapshot:
    """The state that invariants are said of: the base's tables, and where capabilities are.

    Registers are by thread and number, that of number 0 with DDC and PCC.
    """
    found: Snapshot = {name: dict(getattr(monitor, name).rows) for name in _TABLES}
    registers = found["registers"] = {}
    for thread in monitor.threads:
        if thread.is_live:
            hart = thread.hart
            registers |= {(thread.number, number): hart.registers[number] for number in range(1, REGISTER_COUNT)}
            registers[thread.number, 0] = (hart.ddc, hart.pcc, hart.pc)
    found["granules"] = {index: held for index, held in store_granules(monitor.memory.store).items() if held != EMPTY}
    return found


class OrcWatch(TableWatch):
    """Looks at the steps of a system of shared objects."""

    _invariants = ORC_INVARIANTS

    def _snapshot(self, step: Step) -> Snapshot:
        return snapshot(step.monitor)

    def _what(self, step: Step) -> tuple[Any, ...]:
        made = step.monitor.entry_pair(0, 0)  # what the policy decides of the entries that the base makes
        return step.kind, step.name, step.tenant, step.operands, step.code, step.is_completed, made

    def _looked(self, step: Step, changed: Mapping[str, set[Any]]) -> Iterator[Place]:
        if not changed or any(changed[name] for name in _TABLES):
            return places(step)
        return _places_changed(step, changed)

    def _smallest(self, _invariant: Any, _step: Step, place: Place) -> Place:
        """The place itself: all parts of it say whose it is."""
        return place


def _places_changed(step: Step, changed: Mapping[str, set[Any]]) -> Iterator[Place]:
    """The registers and granules that have changed, and one place for what is said of the step itself."""
    monitor = step.monitor
    yield Place()
    live = {thread.number: thread for thread in monitor.threads if thread.is_live}
    # That with DDC and PCC comes after the others of its thread.
    for thread, number in sorted(changed["registers"], key=lambda key: (key[0], key[1] or REGISTER_COUNT)):
        if thread in live:
            yield Place(live[thread].tenant, thread=live[thread], register=number)
    for index in sorted(changed["granules"]):
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
