"""Holding every step of a running system against the invariants of `spec.cvm_invariants`, at every place that there is.

What is said of a place depends on the monitor's tables and on the capabilities that are there. So where a step has changed
no table, only the places whose capabilities it changed are looked at again. An untagged register or granule holds nothing:
those places are left out.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from capvisor.dsl.states import describe, store_granules
from capvisor.model.monitor import Monitor, Thread
from capvisor.spec.cvm import KEYS
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Place, Step, held
from capvisor.spec.registers import REGISTER_COUNT

_TABLES = ("regions", "grants", "slots", "held", "portals", "probed")


class Found(NamedTuple):
    """An invariant that a step violates, and where."""

    invariant: str
    place: Place


class InvariantWatch:
    """Looks at one system's steps, one after the other, from its first on."""

    def __init__(self) -> None:
        self._tables: Any = None
        self._capabilities: dict[tuple[Any, ...], Any] = {}
        self._known: set[str] = set()

    def violated(self, step: Step) -> list[Found]:
        """The invariants that the step violates, and that no step before it did."""
        tables, capabilities = _tables_of(step.monitor), _capabilities_of(step.monitor)
        before = self._capabilities if tables == self._tables else {}
        changed = [key for key, value in capabilities.items() if before.get(key) != value]
        places = [_place_of_step(step), *_places_of(step.monitor, changed)]
        if tables != self._tables:
            places += _places_of_tables(step.monitor)
        self._tables, self._capabilities = tables, capabilities
        found = []
        for name, invariant in CVM_INVARIANTS.items():
            if name not in self._known:
                place = next((place for place in places if not invariant.holds(step, place)), None)
                if place is not None:
                    self._known.add(name)
                    smallest = next(each for each in _parts_of(place) if not invariant.holds(step, each))
                    found.append(Found(name, smallest))
        return found


def _parts_of(place: Place) -> tuple[Place, ...]:
    """A place without what may not matter there, the least first, and the place itself."""
    alone = Place(place.cvm, place.cvm)
    return (
        alone,
        alone._replace(grant=place.grant),
        place._replace(grant=0),
        place,
    )


def _tables_of(monitor: Any) -> Any:
    """All that the monitor has noted, and whom its threads run for."""
    noted = [dict(getattr(monitor, name).rows) for name in _TABLES]
    return noted, [(thread.is_live, thread.home, thread.domain, thread.frame is None) for thread in monitor.threads]


def _capabilities_of(monitor: Any) -> dict[tuple[Any, ...], Any]:
    """Tagged registers by thread and number, with DDC and PCC beside that of number 0; and tagged granules by number."""
    found: dict[tuple[Any, ...], Any] = {}
    for thread in monitor.threads:
        if thread.is_live:
            hart = thread.hart
            found[thread.number, 0] = (hart.ddc, hart.pcc)
            registers = ((number, hart.registers[number]) for number in range(1, REGISTER_COUNT))
            found |= {(thread.number, number): cap for number, cap in registers if cap.tag}
    return found | {(index,): granule for index, granule in store_granules(monitor.memory.store).items() if granule.tag}


def _place_of_step(step: Step) -> Place:
    """For what is said of the step itself: the thread that took it."""
    thread = step.thread
    return Place(0) if thread is None else Place(thread.domain, thread.domain, thread)


def _numbers_of_grants(monitor: Any) -> list[int]:
    """The numbers of grants, and of portals; one at least."""
    return [*(monitor.grants.rows | monitor.portals.rows)] or [0]


def _live(monitor: Any) -> list[int]:
    return [number for number, row in monitor.regions if row.is_live]


def _places_of(monitor: Any, keys: list[tuple[Any, ...]]) -> Iterator[Place]:
    """Registers and granules as places, with every cVM that may use them and every grant."""
    grants = _numbers_of_grants(monitor)
    for key in keys:
        if len(key) == 1:
            address = monitor.memory.base + (key[0] << monitor.format.granule_shift)
            around = [number for number, row in monitor.regions if row.is_live and row.base <= address < row.top]
            yield from (Place(number, number, None, 0, key[0], grant) for number in around for grant in grants)
        else:
            thread = monitor.threads[key[0]]
            yield from (Place(thread.domain, thread.domain, thread, key[1], None, grant) for grant in grants)


def _places_of_tables(monitor: Any) -> Iterator[Place]:
    """For what is said of the tables alone: every two cVMs, and every cVM with every grant."""
    cvms = _live(monitor)
    yield from (Place(one, other) for one in cvms for other in cvms)
    yield from (Place(number, number, grant=grant) for number in cvms for grant in _numbers_of_grants(monitor))


def every_place(monitor: Monitor) -> Iterator[Place]:
    """Every place that there is, tagged or not: slow, and what the rest is held against."""
    threads, grants = (None, *monitor.threads), _numbers_of_grants(monitor)  # type: ignore[misc]
    for cvm_id in _live(monitor):
        for other in _live(monitor):
            for grant in grants:
                for thread in threads:
                    yield from (Place(cvm_id, other, thread, register, None, grant) for register in range(REGISTER_COUNT))
                yield from (
                    Place(cvm_id, other, None, 0, granule, grant) for granule in store_granules(monitor.memory.store)
                )


def describe_place(step: Step, place: Place, names: dict[int, str], thread_names: dict[int, str]) -> str:
    """A place in words: whose it is, the capabilities there, the grant."""
    monitor = step.monitor
    parts = [names.get(place.cvm, "the deployer")]
    if place.other not in (place.cvm, 0):
        parts[0] += f" and {names[place.other]}"
    where = {"granule": "memory"}
    thread: Thread | None = place.thread
    if thread is not None:
        name = thread_names[thread.number]
        parts[0] = name if name == parts[0] else f"{name}, running for {parts[0]}"
        where["register"] = f"c{place.register}"
    if place.granule is not None:
        where["granule"] = f"memory {monitor.memory.base + (place.granule << monitor.format.granule_shift):#x}"
    shown = ("register", "granule") if place.register else ("register", "granule", "ddc", "pcc")
    tagged = [(kind, cap) for kind, cap in held(step, place) if cap.tag and kind in shown]
    caps = [f"{where.get(kind, kind)} = {describe(cap)}" for kind, cap in tagged]
    if place.grant:
        owner = names.get(monitor.grants[place.grant].owner, "nobody")
        caps.append(
            f"with key {place.grant} of {owner}" if place.grant < KEYS else f"in a call of portal {place.grant - KEYS}"
        )
    return "; ".join([*parts, *caps])
