"""Holding every step of cVMs against the invariants of `spec.cvm_invariants`, at every place that there is.

What is said of a capability depends on the place that holds it, on the tables that say whose memory is whose, and in a
register on whom its thread runs for. So only the places where one of these has changed are looked at again. An untagged
register or granule holds nothing: those places are left out.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from capvisor.dsl.states import describe, store_granules
from capvisor.model.isa.control import INVOKED_DATA
from capvisor.model.monitor import Monitor, Thread
from capvisor.spec.cvm import KEYS
from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Place, Step, held
from capvisor.spec.registers import REGISTER_COUNT

_OF_MEMORY = ("regions", "grants", "slots", "held")
"""The tables that say whose memory is whose."""
_OF_PORTALS = ("portals", "probed")


class Found(NamedTuple):
    """An invariant that a step violates, and where."""

    invariant: str
    place: Place


class InvariantWatch:
    """Looks at one system's steps, one after the other, from its first on.

    `harmless` are the steps of another run, which violated nothing: those that this run begins with aren't looked at again.
    """

    def __init__(self, harmless: Sequence["Taken"] = ()) -> None:
        self._before: Snapshot | None = None
        self._known: set[str] = set()
        self._harmless = harmless
        self.taken: list[Taken] = []
        """The steps so far."""

    def violated(self, step: Step) -> list[Found]:
        """The invariants that the step violates, and that no step before it did."""
        before, after = self._before, snapshot(step.monitor)
        self.taken.append(_taken(step, after))
        if self._harmless[len(self.taken) - 1 : len(self.taken)] == self.taken[-1:]:
            self._before = after
            return []
        self._harmless = ()
        moved = before is None or before.memory != after.memory
        kept = {} if before is None or moved else before.capabilities
        changed = [key for key, value in after.capabilities.items() if kept.get(key) != value]
        places = [_place_of_step(step), *_places_of(step.monitor, changed)]
        if moved or before is None or before.portals != after.portals:
            places += _places_of_tables(step.monitor)
        self._before = after
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


class Snapshot(NamedTuple):
    """What invariants are said of: the monitor's tables, and where capabilities are."""

    memory: Any
    portals: Any
    capabilities: dict[tuple[Any, ...], Any]
    """Tagged registers by thread and number, that of number 0 with DDC, PCC and whom the thread runs for; tagged granules by
    number."""


def snapshot(monitor: Any) -> Snapshot:
    """The state that invariants are said of, to be compared with a later one."""
    memory, portals = ([dict(getattr(monitor, name).rows) for name in names] for names in (_OF_MEMORY, _OF_PORTALS))
    return Snapshot(memory, portals, _capabilities_of(monitor))


class Taken(NamedTuple):
    """A step with all that invariants are said of: equal ones violate the same."""

    after: Snapshot
    what: tuple[Any, ...]
    """The step's own parts, with its thread as a number."""
    goes_on: tuple[Any, ...]
    """Where its thread goes on, and what it has in c31."""
    accesses: tuple[Any, ...]
    made: tuple[Any, ...]
    """What the policy decides of the capabilities that the monitor makes."""


def _taken(step: Step, after: Snapshot) -> Taken:
    monitor, thread = step.monitor, step.thread
    what = step._replace(monitor=None, thread=None if thread is None else thread.number)
    goes_on = () if thread is None else (thread.frame, thread.hart.pcc, thread.hart.pc, thread.hart.registers[INVOKED_DATA])
    made = (monitor.otype(1), monitor.data_permissions())
    return Taken(after, tuple(what), goes_on, tuple(monitor.accesses), made)


def _capabilities_of(monitor: Any) -> dict[tuple[Any, ...], Any]:
    found: dict[tuple[Any, ...], Any] = {}
    for thread in monitor.threads:
        if thread.is_live:
            hart, runs_for = thread.hart, (thread.home, thread.domain, thread.frame is None)
            found[thread.number, 0] = (hart.ddc, hart.pcc, runs_for)
            registers = ((number, hart.registers[number]) for number in range(1, REGISTER_COUNT))
            found |= {(thread.number, number): (cap, runs_for) for number, cap in registers if cap.tag}
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
