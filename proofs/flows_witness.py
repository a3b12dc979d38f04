"""Concrete systems in which steps are completed, in pairs that differ where the cVMs that are looked at don't see it.

Alice takes a step, bob watches, and carol is the one of whom they know no more than a key of a file and of a portal: her
memory, what the file holds included, her registers, her other files, portals and calls, and how often she asked for the time
differ between the two systems of a pair. A theorem of `proofs.flows_system` that falls in one of them is refuted by it.
"""

import copy
import itertools
from types import SimpleNamespace
from typing import Any

from capvisor.model import system
from capvisor.model.memory import Memory
from capvisor.model.monitor import Frame, Monitor, Rows, Thread
from capvisor.proofs.flows_system import ENTER, GUEST
from capvisor.spec import cvm, flows
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.flows import Anywhere, Half, Held, Named, Reach, System
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.guest import APART
from capvisor.spec.registers import REGISTER_COUNT

_BASE, _REGION_BYTES = 0x10000, 0x1000
ALICE, BOB, CAROL, APP = 1, 2, 3, 4
_FILE_OF_CAROL, _FILE_OF_ALICE, _PORTAL_OF_CAROL, _PORTAL_OF_ALICE = 5, 6, 7, 8
_OTHERS_OF_CAROL = (6, 4)
_OLD_KEY = 20
_TABLES = ("regions", "grants", "slots", "held", "portals", "probed")
_WORDS: dict[str, tuple[int, ...]] = {
    "host_print": (0x80,),
    "host_time": (_REGION_BYTES - 8,),
    "thread_create": (0x40,),
    "file_advertise": (_OLD_KEY, 0x100, 64),
    "file_probe": (_FILE_OF_CAROL, 0x340),
    "file_revoke": (_FILE_OF_ALICE,),
    "portal_advertise": (21, 0x40),
    "portal_probe": (_PORTAL_OF_CAROL,),
    "portal_call": (_PORTAL_OF_CAROL, 0x140, 32),
    "portal_fetch": (0x380,),
    "portal_finish": (),
    "wait": (_PORTAL_OF_CAROL,),
    "inner_return": (),
    "thread_exit": (),
}
"""Arguments with which each call is completed in the systems that are made here."""

_REFUSED: dict[str, tuple[int, ...]] = {"file_revoke": (_FILE_OF_CAROL,), "file_advertise": (_FILE_OF_CAROL, 0x100, 64)}
"""Others, with which some are refused: in every second pair."""


class Scene:
    """One system: threads of alice, bob, carol and an app that is nested in alice; `secret` is what carol alone knows."""

    def __init__(self, fmt: CapabilityFormat, secret: int, *, shows_time: bool = False) -> None:
        self.monitor = Monitor(Memory(fmt, _BASE, 3 * _REGION_BYTES))
        for cvm_id in (ALICE, BOB, CAROL):
            self.monitor.create(cvm_id, _BASE + (cvm_id - 1) * _REGION_BYTES, _REGION_BYTES, is_purecap=cvm_id == BOB)
        self.monitor.create(APP, _BASE + 0x400, 0x200, outer=ALICE)
        self.alice, self.bob, self.carol, self.app = (
            self.monitor.start_thread(cvm_id, 0) for cvm_id in (ALICE, BOB, CAROL, APP)
        )
        self.app.domain = ALICE
        self.app.hart.write_integer(cvm.RESULT_REGISTERS[1], 99)
        self.call(self.carol, "file_advertise", _FILE_OF_CAROL, 0x100, 64)
        self.call(self.carol, "portal_advertise", _PORTAL_OF_CAROL, 0x40)
        self.call(self.alice, "file_advertise", _FILE_OF_ALICE, 0x200, 64)
        self.call(self.alice, "portal_advertise", _PORTAL_OF_ALICE, 0x40)
        self.call(self.alice, "portal_probe", _PORTAL_OF_CAROL)
        # A file that has ended, whose key is given to another one in a step.
        self.call(self.carol, "file_advertise", _OLD_KEY, 0x40, 64)
        self.call(self.bob, "file_probe", _OLD_KEY, 0x2C0)
        self.call(self.carol, "file_revoke", _OLD_KEY)
        self.call(self.bob, "file_probe", _FILE_OF_ALICE, 0x300)
        self.bob.hart.write(5, self.at(_BASE + _REGION_BYTES + 0x300))
        self.call(self.bob, "portal_probe", _PORTAL_OF_ALICE)
        self.call(self.bob, "portal_call", _PORTAL_OF_ALICE, 0x180, 32)
        self.serving = self.monitor.threads[len(self.monitor.threads) - 1]  # type: ignore[arg-type]
        self.call(self.bob, "wait", _PORTAL_OF_ALICE)
        self.monitor.memory.write(_BASE + 0x80, 8, 0x5EED)
        self.hides(secret, shows_time=shows_time)
        self.inside = self.monitor.start_thread(BOB, 0)
        self.inside.hart.write(6, self.bob.hart.capability(5))
        self.inside.frame = self.frame(self.inside, "host_time", (0x10,))

    def hides(self, secret: int, *, shows_time: bool) -> None:
        """What neither alice nor bob sees."""
        carol, start = self.carol, _BASE + 2 * _REGION_BYTES
        for place in (0x80, 0x100):
            self.monitor.memory.write(start + place, 8, 0xC0FFEE + secret)
        carol.hart.write_integer(5, secret)
        self.call(carol, "file_advertise", 30 + secret, 0x40 * (1 + secret), 64)
        self.call(carol, "file_probe", 30 + secret, 0x300 + 0x40 * secret)
        for key in _OTHERS_OF_CAROL:
            self.call(carol, "portal_advertise", key, 0x40)
            self.call(carol, "portal_probe", key)
        self.call(carol, "portal_call", _OTHERS_OF_CAROL[secret & 1], 0x200, 32)
        for _time in range(1 if shows_time else 1 + secret):
            self.call(carol, "host_time", 0x20)

    def at(self, address: int) -> Any:
        """The capability in a granule, by its address."""
        return self.monitor.granule(address - _BASE >> self.monitor.format.granule_shift)

    def frame(self, thread: Thread, name: str, words: tuple[int, ...]) -> Frame:
        """What `enter` puts down for a call."""
        words = (*words, 0, 0, 0)[: len(cvm.ARGUMENT_REGISTERS)]
        number, domain = CALLS[name].number, thread.domain
        return Frame(number, domain, domain, words, True, self.monitor.refusal(number, domain, words), 0)

    def call(self, thread: Thread, name: str, *words: int) -> Code:
        """Both parts of a call."""
        thread.frame = self.frame(thread, name, words)
        return system.leave(self.monitor, thread)[1]

    def acts(self, name: str) -> Thread:
        """The thread that takes a step, which is alice's at the moment."""
        if flows.channel_of(name).served:
            return self.serving
        return self.app if name == "inner_return" else self.alice

    def kept(self) -> Monitor:
        """The system's state as it is now."""
        kept = copy.copy(self.monitor)
        for name in _TABLES:
            rows = Rows(getattr(self.monitor, name)._empty)
            rows.rows = dict(getattr(self.monitor, name).rows)
            setattr(kept, name, rows)
        memory = self.monitor.memory
        kept.memory = Memory(memory.format, memory.base, memory.size_bytes, copy.copy(memory.store))
        return kept


def _of(thread: Thread) -> Thread:
    """A thread as it is now."""
    kept, hart = copy.copy(thread), thread.hart
    kept.hart = SimpleNamespace(registers=list(hart.registers), ddc=hart.ddc, pcc=hart.pcc, pc=hart.pc)  # type: ignore
    return kept


def places(monitor: Monitor) -> list[Anywhere]:
    """Places that matter: every register, granule that was written, bytes around grants' ends, and rows of tables."""
    slots = tuple(monitor.slots.rows)  # type: ignore[attr-defined]
    numbers = (*range(10), 20, 21, 30, 31, *(cvm.KEYS + each for each in (_PORTAL_OF_CAROL, _PORTAL_OF_ALICE)), *slots)
    granules = [index for index, _granule in monitor.memory.store.written()]  # type: ignore[attr-defined]
    ends = [end + near for _number, row in monitor.grants for end in (row.base, row.top) for near in (-1, 0)]  # type: ignore
    rows = list(itertools.product((ALICE, BOB, CAROL, APP), numbers))
    count = max(len(rows), len(granules))
    return [
        Anywhere(
            rows[n % len(rows)][0],
            n % REGISTER_COUNT,
            granules[n % len(granules)],
            ends[n % len(ends)],
            rows[n % len(rows)][1],
        )
        for n in range(count)
    ]


def _fallen(goals: dict[str, list[Any]]) -> set[str]:
    return {name for name, parts in goals.items() if not all(parts)}


def looked_at(name: str, fmt: CapabilityFormat, number: int) -> tuple[bool, list[str]]:
    """A step in the pair of systems of that number: whether it is completed, and the parts of its theorem that fall."""
    if name == GUEST:
        return True, _guest(fmt)
    scenes = [Scene(fmt, secret, shows_time=name == "host_time") for secret in (number, number + 1)]
    halves, fallen = [], set[str]()
    for scene in scenes:
        half, completed, falls = _act(scene, name, _REFUSED if number & 1 else {})
        halves.append((half, completed))
        fallen |= falls
    (one, outcome), (other, another) = halves
    if outcome != another:
        fallen.add("outcome")
    for place in places(scenes[0].monitor):
        fallen |= _fallen(flows.look_alike(one, other, ALICE, place._replace(cvm=BOB)))
    if scenes[0].monitor.printed != scenes[1].monitor.printed:
        fallen.add("host")
    return outcome in (Code.OK, None), sorted(fallen)


def _act(scene: Scene, name: str, others_words: dict[str, tuple[int, ...]]) -> tuple[Half, Any, set[str]]:
    """A system takes a step: what came of it, and which parts of local respect fall."""
    monitor, thread = scene.monitor, scene.acts(name)
    others = [each for each in monitor.threads if each is not thread]  # type: ignore[attr-defined]
    was = [_of(each) for each in (thread, *others)]
    if name == ENTER:
        return _enter(scene, thread)
    thread.frame = scene.frame(thread, name, others_words.get(name, _WORDS.get(name, ())))
    before = scene.kept()
    rows = flows.named(before, name, was[0], thread.frame.arguments)
    outcome = system.leave(monitor, thread)[1]
    started = tuple(monitor.threads[1 + len(others) :])  # type: ignore[index]
    found: set[str] = set()
    whole = System(before, monitor)
    for place in places(monitor):
        held = [
            Held(kept, now, kept.hart.registers[place.register], before)
            for kept, now in zip(was, (thread, *others), strict=True)
        ]
        found |= _fallen(flows.respects(whole, name, held[0], tuple(held[1:]), started, rows, place))
    return Half(whole, thread, (scene.bob, scene.inside), started), outcome, found


def _enter(scene: Scene, thread: Thread) -> tuple[Half, Any, set[str]]:
    """Alice invokes the monitor's pair."""
    monitor, hart = scene.monitor, thread.hart
    for register, cap in zip((1, 2), monitor.monitor_pair(), strict=True):
        hart.write(register, cap)
    hart.write_integer(cvm.NUMBER_REGISTER, CALLS["host_time"].number)
    before = scene.kept()
    trap = system.instruction(monitor, thread, APART, (1, 2))[1]
    found: set[str] = set()
    for place in places(monitor):
        same = flows.same(before.granule(place.granule), monitor.granule(place.granule))
        rows = flows.rows_respected(before, monitor, 0, Named(), place.number, place.cvm)
        found |= _fallen({"memory": [same], "rows": list(rows)})
    outcome = trap.cause.name if trap is not None else None
    return Half(System(before, monitor), thread, (scene.bob, scene.inside), ()), outcome, found


def _guest(fmt: CapabilityFormat) -> list[str]:
    """What alice's and bob's threads can use, held against what they see."""
    scene = Scene(fmt, 0)
    monitor, fallen = scene.monitor, set[str]()
    for thread, place in itertools.product((scene.alice, scene.bob), places(monitor)):
        granule = monitor.memory.base + (place.granule << fmt.granule_shift)
        for by in (thread.hart.registers[place.register], thread.hart.ddc):
            for what in (flows.loads_what_is_seen, flows.stores_where_it_is_seen):
                if not what(monitor, thread.domain, by, Reach(place.byte, 1, place.byte, granule)):
                    fallen.add(what.__name__)
    return sorted(fallen)
