"""Non-interference of steps of the Intravisor's system: what each leaves alone, and what its outcome follows from.

A call is executed by the reference from any state that the invariants allow, and what it leaves is held against what others
see (local respect). It is executed in two systems at once, too, which are alike in what its caller sees, in what any other
cVM sees, and in the rows that the call names, and of which nothing else is known: the second one's tables and memory are
the first one's where they are seen, and other symbols elsewhere. Of guests' instructions the theorems of `proofs.flows` are
known, each of one operation on one hart; here it is shown that what they suppose follows from C1 and what the cVM sees.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import z3

from capvisor.model import system
from capvisor.model.bits import not_, select
from capvisor.proofs import contracts, lazy, symbolic
from capvisor.proofs.cvm_state import INDEX_BITS, INDUCTIVE, AnyMonitor, any_frame, columns_of
from capvisor.proofs.memory import ArrayStore
from capvisor.proofs.solve import Answer
from capvisor.proofs.state import any_operands
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.tables import ArrayRows
from capvisor.proofs.theorem import Given, implies
from capvisor.spec import flows
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.cvm_invariants import Place, some
from capvisor.spec.flows import Anywhere, Channel, Goals, Half, Held, Named, Reach, System
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.guest import APART
from capvisor.spec.policy import INTENDED

GUEST, ENTER = "guest", "enter"
"""The names of what is proved of any guest's instruction, and of the first part of any call."""

LEMMAS = ("monitor.mint", *contracts.lemmas_of(("set_address",)))
"""The theorems that stand for what is minted, and for the derivation that a thread's start makes of it."""

BOOKS = ("C2", "C6", "C19")
"""The invariants that are supposed of the first of two systems."""


@dataclass(frozen=True)
class Way:
    """One way through a step, or two steps: what holds on it, and the goals, by name."""

    conditions: tuple[z3.BoolRef, ...]
    goals: dict[str, tuple[Any, ...]]
    is_completed: bool
    leans_on: frozenset[str]
    """The theorems that were leant on."""


def _anywhere(fmt: CapabilityFormat, given: Given) -> Anywhere:
    """Any cVM, register, granule, byte, and number of a row."""
    return Anywhere(
        given.word("any_cvm", 16),
        given.word("any_register", 5),
        given.word("any_granule", INDEX_BITS),
        given.word("any_byte", fmt.address_width),
        given.word("any_number", INDEX_BITS),
    )


def _about(monitor: AnyMonitor, place: Anywhere) -> None:
    """Let hypotheses be about a place too."""
    monitor.any_register, monitor.any_granule, monitor.any_grant = place.register, place.granule, place.number
    monitor.given.assume(place.granule < monitor.memory.size_bytes >> monitor.format.granule_shift)


def _explored(run: Callable[[Given], tuple[bool, Goals]]) -> list[Way]:
    """Every way through a function that gives goals, and says whether a step was completed."""
    attempts: list[Given] = []

    def once() -> tuple[bool, Goals]:
        attempts.append(Given(is_abstract=True))
        with contracts.in_force(attempts[-1]):
            return run(attempts[-1])

    found = []
    for path, given in zip(symbolic.explore(once, most=500), attempts, strict=True):
        completed, goals = path.result
        conditions = (*path.conditions, *(term_of(condition) for condition in given.assumptions))
        by_name = {name: tuple(parts) for name, parts in goals.items()}
        found.append(Way(conditions, by_name, completed, frozenset(given.leant_on)))
    return found


def ask(ways: list[Way], timeout_s: float) -> tuple[Answer, str]:
    """Whether a goal can fall on one of the ways, and which."""
    seconds = 0.0
    for way in ways:
        question = lazy.Question(way.conditions)
        for name, parts in way.goals.items():
            for part in (each for goal in parts for each in lazy.conjuncts(term_of(goal))):
                answer = question.ask(part, timeout_s)
                seconds += answer.seconds
                if answer.result != "unsat":
                    return Answer(answer.result, seconds, reason=answer.reason), name
    return Answer("unsat", seconds), ""


# -- instructions ----------------------------------------------------------------------------------------------------------


def guest(fmt: CapabilityFormat) -> list[Way]:
    """What a thread can use authorises to load and store only what its cVM sees; so that two memories that look alike to the
    cVM are alike where a step may read, and what the step leaves looks alike, and is respected, to any cVM.
    """

    def run(given: Given) -> tuple[bool, Goals]:
        monitor, place = AnyMonitor(fmt, given, INTENDED, INDUCTIVE), _anywhere(fmt, given)
        _about(monitor, place)
        thread = monitor.any_thread("")
        given.assume(thread.is_live)
        monitor.begin()
        cvm_id, granule = thread.domain, monitor.memory.base + (place.granule << fmt.granule_shift)
        address, size_bytes = given.word("any_address", fmt.address_width), given.word("any_size", fmt.address_width)
        reach = Reach(address, size_bytes, place.byte, granule)
        goals = {}
        for where, by in (("register", thread.hart.registers[place.register]), ("ddc", thread.hart.ddc)):
            goals[f"loads by {where}"] = [flows.loads_what_is_seen(monitor, cvm_id, by, reach)]
            goals[f"stores by {where}"] = [flows.stores_where_it_is_seen(monitor, cvm_id, by, reach)]
        return True, goals

    return _explored(run)


# -- what calls leave alone ------------------------------------------------------------------------------------------------


def respected(call: str, fmt: CapabilityFormat) -> list[Way]:
    """The second part of a call, and what of others it changes: nothing but by the rows that it names."""

    def run(given: Given) -> tuple[bool, Goals]:
        monitor, place = AnyMonitor(fmt, given, INTENDED, INDUCTIVE), _anywhere(fmt, given)
        _about(monitor, place)
        caller, *others = _threads(monitor, CALLS[call].number)
        given.assume(caller.is_live)
        monitor.begin()
        monitor.suppose(Place(place.cvm, granule=place.granule, grant=place.number))
        rows = flows.named(monitor.first, call, caller, caller.frame.arguments)
        held = [_held(monitor, each, place.register) for each in (caller, *others)]
        code = _leave(monitor, caller)
        system_ = System(monitor.first, monitor)
        return code is Code.OK, flows.respects(system_, call, held[0], tuple(held[1:]), _started(monitor), rows, place)

    return _explored(run)


def _threads(monitor: AnyMonitor, number: Any) -> tuple[Any, Any, Any]:
    """A thread that is in the monitor with a call, another one, and one that is in the monitor too."""
    caller = monitor.any_thread("")
    caller.frame = any_frame(monitor, caller, number)
    other, inside = monitor.any_thread("other_"), monitor.any_thread("inside_")
    inside.frame = any_frame(monitor, inside, 0, "inside_")
    return caller, other, inside


def _leave(monitor: AnyMonitor, thread: Any) -> Code:
    """The second part of a call, refused as its first part found."""
    frame = thread.frame
    thread.frame = frame._replace(refusal=monitor.refusal(frame.number, thread.domain, frame.arguments))
    return system.leave(monitor, thread)[1]


def _held(monitor: AnyMonitor, thread: Any, register: Any) -> Held:
    """A thread as it is now, and what a register holds; what hypotheses say of it is said of the cVM that it runs for."""
    kept, known = copy.copy(thread), copy.copy(monitor.first)
    kept.hart = SimpleNamespace(**{name: vars(thread.hart)[name] for name in ("ddc", "pcc", "pc")})
    known.grants_of = lambda cap: (monitor.grant_of(cap, kept.domain),)
    return Held(kept, thread, thread.hart.registers[register], known)


def _started(monitor: AnyMonitor) -> tuple[Any, ...]:
    """The threads that the step has started."""
    return tuple(monitor.threads.started)  # type: ignore[attr-defined]


# -- two systems -----------------------------------------------------------------------------------------------------------


class _One(AnyMonitor):
    """The first of two systems."""

    prefix = ""

    def __init__(self, fmt: CapabilityFormat, given: Given, invariants: tuple[str, ...]) -> None:
        self.witnesses: list[Any] = []
        """The regions of which the step found that something doesn't hold."""
        super().__init__(fmt, given, INTENDED, invariants)

    def fresh(self, name: str, bits: int) -> Any:
        number = super().fresh(name if self.is_shared(name) else f"{self.prefix}{name}", bits)
        if name == "not_regions":
            self.witnesses.append(number)
        return number

    def is_shared(self, _name: str) -> bool:
        """Whether a symbol stands for the same in both systems."""
        return True

    def fresh_flag(self, name: str) -> Any:
        return super().fresh_flag(f"{self.prefix}{name}")


class _Other(_One):
    """The second one. How many rows of a table there are is the same as in the first only where a call counts them."""

    prefix = "second_"

    def __init__(self, one: _One, channel: Channel) -> None:
        self._shared = {f"count_{each}" for each in channel.counts} | ({"thread"} if "threads" in channel.counts else set())
        super().__init__(one.format, one.given, ())

    def is_shared(self, name: str) -> bool:
        return name in self._shared

    def differ(self, one: _One, watchers: tuple[Any, ...], rows: Named, channel: Channel) -> None:
        """Hold what the first system does where that is seen by one of the watchers, the first of which calls, or named by
        the call; elsewhere anything that they don't see.
        """
        first: Any = copy.copy(one)
        for name in columns_of(self.format):
            setattr(first, name, _Rows(copy.copy(getattr(one, name))))
        free = {
            name: ArrayRows(make, parts, INDEX_BITS, f"second_{name}", indices)
            for name, (make, parts, indices) in columns_of(self.format).items()
        }

        def region(number: Any, row: Any) -> Any:
            sees = some(flows.sees_region(first, each, number) for each in watchers)
            other = free["regions"].get(number)
            nested = some(flows.is_nested(other, each) for each in watchers)
            return _picked(sees, row, other._replace(is_live=other.is_live & not_(nested)))

        def grant(number: Any, row: Any) -> Any:
            sees = some(flows.sees_grant(first, each, number) for each in watchers)
            other = free["grants"].get(number)
            return _picked(rows.is_grant(number) | sees, row, other)._replace(last_slot=other.last_slot)

        def held(key: tuple[Any, Any], row: Any) -> Any:
            number, holder = key
            is_live = grant(number, first.grants[number]).is_live
            sees = some(holder == each for each in watchers) & is_live
            return select(sees, first.grants[number].is_live & row, free["held"].get(key))

        def seen(index: Any) -> Any:
            return some(flows.sees_granule(first, each, index) for each in watchers)

        def slot(index: Any, row: Any) -> Any:
            is_seen, other = seen(index), free["slots"].get(index)
            put = row.is_slot & first.grants[row.grant].is_live
            is_live = grant(other.grant, first.grants[other.grant]).is_live
            return _picked(is_seen & put, row, other._replace(is_slot=other.is_slot & not_(is_seen & is_live)))

        def probed(key: tuple[Any, Any], row: Any) -> Any:
            return select(rows.is_portal(key[0]) & (key[1] == watchers[0]), row, free["probed"].get(key))

        sweeps: dict[str, Callable[[Any, Any], Any]] = {
            "regions": region,
            "grants": grant,
            "held": held,
            "slots": slot,
            "portals": lambda number, row: _picked(rows.is_portal(number), row, free["portals"].get(number)),
            "probed": probed,
        }
        for name, sweep in sweeps.items():
            getattr(self, name).map(sweep)
        elsewhere = ArrayStore(self.format.address_width, "second_memory")
        self.memory.map_granules(lambda index, granule: _picked(seen(index), granule, elsewhere.get(index)))
        one.clock, one.printed = self.given.word("clock", INDEX_BITS), self.given.word("printed", INDEX_BITS)
        self.clock = one.clock if channel.clock else self.given.word("second_clock", INDEX_BITS)
        self.printed = self.given.word("second_printed", INDEX_BITS)


class _Rows:
    """A table's rows as they are now."""

    def __init__(self, rows: ArrayRows) -> None:
        self._rows = rows

    def __getitem__(self, number: Any) -> Any:
        return self._rows.get(number)


def _picked(condition: Any, one: Any, other: Any) -> Any:
    """One of two rows, as data."""
    return type(one)(*(select(condition, mine, its) for mine, its in zip(one, other, strict=True)))


Setting = Callable[[AnyMonitor], tuple[Any, ...]]
"""Gives a system its threads: first the one that acts."""
Act = Callable[[AnyMonitor, Any], Any]
"""The step, of a thread; what it gives is the same object in both systems, or equal, or the step's outcomes differ."""


def _in_two(fmt: CapabilityFormat, setting: Setting, act: Act, call: str = "") -> list[Way]:
    """A step in two systems that look alike to the cVM that acts and to another one: they look alike to both after it."""
    channel = flows.channel_of(call)

    def run(given: Given) -> tuple[bool, Goals]:
        one = _One(fmt, given, BOOKS)
        other, place = _Other(one, channel), _anywhere(fmt, given)
        threads = [setting(each) for each in (one, other)]
        acting, *watching = threads[0]
        given.assume(acting.is_live)
        for each in watching:
            given.assume(each.domain == place.cvm)
        watchers = (acting.domain, place.cvm)
        rows = flows.named(one, call, acting, acting.frame.arguments) if call else Named()
        other.differ(one, watchers, rows, channel)
        for each in (one, other):
            _about(each, place)
            each.begin()
        bytes_of = (one.first.memory.read(place.byte, 1), other.first.memory.read(place.byte, 1))
        for each in watchers:
            opened = flows.is_open_to(one.first, each, place.byte, place.number) & one.memory.contains(place.byte, 1)
            given.assume(implies(opened, bytes_of[0] == bytes_of[1]))
        printed = (one.printed, other.printed)
        outcomes = [act(each, mine[0]) for each, mine in zip((one, other), threads, strict=True)]
        for each, found in ((one, other.witnesses), (other, one.witnesses)):
            for number in found:
                each.looks_at("regions", number)
        halves = [
            Half(System(each.first, each), mine[0], mine[1:], _started(each))
            for each, mine in zip((one, other), threads, strict=True)
        ]
        goals = {"outcome": [outcomes[0] == outcomes[1]], **flows.look_alike(*halves, watchers[0], place)}
        unprinted = (one.printed is printed[0]) & (other.printed is printed[1])
        goals["host"] = [unprinted or one.printed == other.printed]
        return outcomes[0] in (Code.OK, None), goals

    return _explored(run)


def followed(call: str, fmt: CapabilityFormat) -> list[Way]:
    """The second part of a call, in two systems that are alike in what is seen and named."""
    return _in_two(fmt, lambda monitor: _threads(monitor, CALLS[call].number), _leave, call)


# -- the first part of a call ----------------------------------------------------------------------------------------------


def _guest_thread(monitor: AnyMonitor) -> tuple[Any, ...]:
    thread = monitor.any_thread("")
    vars(thread.hart)["check_fetch"] = lambda _size_bytes: None
    return (thread,)


def _invoke(monitor: AnyMonitor, thread: Any) -> Any:
    trap = system.instruction(monitor, thread, APART, any_operands(monitor.format, monitor.given, APART))[1]
    return None if trap is None else trap.cause.name


def entered(fmt: CapabilityFormat) -> list[Way]:
    """A pair is invoked, and perhaps the monitor entered, in two systems that are alike in what is seen."""
    return _in_two(fmt, _guest_thread, _invoke)


def entering_respects(fmt: CapabilityFormat) -> list[Way]:
    """A pair is invoked: memory and tables are as they were, and the thread runs for its cVM or the one around it."""

    def run(given: Given) -> tuple[bool, Goals]:
        monitor, place = AnyMonitor(fmt, given, INTENDED, BOOKS), _anywhere(fmt, given)
        _about(monitor, place)
        (thread,) = _guest_thread(monitor)
        given.assume(thread.is_live)
        monitor.begin()
        cvm_id = thread.domain
        trap = _invoke(monitor, thread)
        before, rows = monitor.first, Named()
        goals = {
            "memory": [flows.same(before.granule(place.granule), monitor.granule(place.granule))],
            "rows": list(flows.rows_respected(before, monitor, 0, rows, place.number, place.cvm)),
            "thread": [(thread.domain == cvm_id) | (thread.domain == before.regions[cvm_id].outer)],
        }
        return trap is None, goals

    return _explored(run)


STEPS: dict[str, tuple[Callable[[CapabilityFormat], list[Way]], ...]] = {
    GUEST: (guest,),
    ENTER: (entering_respects, entered),
    **{
        call: (
            lambda fmt, call=call: respected(call, fmt),  # type: ignore[misc]
            lambda fmt, call=call: followed(call, fmt),  # type: ignore[misc]
        )
        for call in CALLS
    },
}
"""By name, what is proved of a step of the system."""


def prove(name: str, fmt: CapabilityFormat, timeout_s: float) -> tuple[Answer, str]:
    """Whether what is said of a step can fall, and which part of it. Raises ValueError for a theorem that isn't named."""
    seconds, which = 0.0, ""
    for part in STEPS[name]:
        ways = part(fmt)
        undeclared = frozenset().union(*(way.leans_on for way in ways)) - set(LEMMAS)
        if undeclared:
            raise ValueError(f"{name} leans on {', '.join(sorted(undeclared))} without naming it")
        answer, which = ask(ways, timeout_s)
        seconds += answer.seconds
        if answer.result != "unsat":
            break
    return replace(answer, seconds=seconds), which
