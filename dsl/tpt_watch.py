"""Holding every step of translation pass-through against the invariants of `spec.tpt_invariants`.

What is said of a place depends on a few rows of the system's tables. So only the places are looked at again of which one
has changed, and what is said of the step itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from capvisor.dsl.system_watch import Snapshot, TableWatch
from capvisor.model.tpt import System
from capvisor.model.tpt_system import places
from capvisor.spec.paging import FIRST_VM, FRAME_NUMBERS, FREE, HOST, WORDS_PER_FRAME
from capvisor.spec.tpt import CACHE_SLOTS, SWAP_SLOTS, TLB_SLOTS
from capvisor.spec.tpt_invariants import TPT_INVARIANTS, Place, Step

_OF_FRAMES = ("tags", "frames", "pending", "iotlb", "memory")
_OF_CPUS = ("translations", "tables", "asids", "vcpus", "walks")


def snapshot(system: System) -> Snapshot:
    """A copy of all tables by name, each by the keys of its rows."""
    tables: dict[str, Any] = {  # those of a concrete system: `model.tables.Rows`
        "tags": system.tags.tags,
        "large": system.tags.large,
        "frames": system.frames,
        "pending": system.pending,
        "iotlb": system.iotlb,
        "p2m": system.p2m,
        "translations": system.tlb.translations,
        "tables": system.tlb.tables,
        "vms": system.vms,
        "vcpus": system.vcpus,
        "asids": system.asids,
        "walks": system.walks,
        "devices": system.devices,
        "swaps": system.swaps,
    }
    found: Snapshot = {name: dict(table.rows) for name, table in tables.items()}
    stores: dict[str, Any] = {"memory": system.memory, "disk": system.disk}
    for name, store in stores.items():
        found[name] = {}
        for frame, index, word in store.written():
            found[name].setdefault(frame, {})[index] = word
    return found


class TptWatch(TableWatch):
    """Looks at the steps of a system with translation pass-through."""

    _invariants = TPT_INVARIANTS

    def _snapshot(self, step: Step) -> Snapshot:
        return snapshot(step.system)

    def _what(self, step: Step) -> tuple[Any, ...]:
        fault = None if step.fault is None else step.fault.args
        return step.name, step.operands, step.code, fault, step.vm, step.touches, step.retags, step.handled

    def _looked(self, step: Step, changed: Mapping[str, set[Any]]) -> Iterator[Place]:
        return places_changed(step, changed)

    def _nowhere(self, step: Step) -> Place:
        return nowhere(step.system)


def places_changed(step: Step, changed: Mapping[str, set[Any]]) -> Iterator[Place]:
    """The places of a step that a changed row has a part in; all where nothing is known of what has changed."""
    yield Place()
    if not changed or any(changed[name] for name in ("large", "vms", "devices", "swaps")):
        yield from places(step)
        return
    frames = {frame for name in _OF_FRAMES for frame in changed[name]}
    cpus = {key[0] if isinstance(key, tuple) else key for name in _OF_CPUS for key in changed[name]}
    p2m = step.system.p2m
    for place in places(step):
        key = place.vm, place.guest_frame
        if place.frame in frames or place.vcpu in cpus or key in changed["p2m"] or p2m[key].frame in frames:
            yield place


def nowhere(system: System) -> Place:
    """A place with nothing in it."""
    beyond = system.vcpu_count, TLB_SLOTS, CACHE_SLOTS, system.frame_count, WORDS_PER_FRAME, system.device_count
    return Place(*beyond, FIRST_VM, FRAME_NUMBERS, SWAP_SLOTS)


def owner_text(tag: int, names: Mapping[int, str]) -> str:
    """Whose a frame is, by its tag."""
    return {FREE: "nobody's", HOST: "the host's"}.get(tag) or f"{names.get(tag, tag)}'s"


def describe_place(step: Step, place: Place, names: Mapping[int, str]) -> str:
    """A place in words; where the step itself is what is wrong, the frames that it touched or changed."""
    system, empty = step.system, nowhere(step.system)

    def frame(number: int, tag: int) -> str:
        return f"frame {number}, which is {owner_text(tag, names)}"

    parts = []
    if place.vcpu != empty.vcpu:
        parts.append(f"cpu{place.vcpu}")
    if place.slot != empty.slot:
        asid = system.tlb.translations[place.vcpu, place.slot].asid
        parts.append(f"slot {place.slot} of the TLB, of {names.get(system.asids[place.vcpu, asid], 'nobody')}")
    if place.cache_slot != empty.cache_slot:
        asid = system.tlb.tables[place.vcpu, place.cache_slot].asid
        parts.append(f"slot {place.cache_slot} of the walk caches, of {names.get(system.asids[place.vcpu, asid], 'nobody')}")
    if place.frame != empty.frame:
        parts.append(frame(place.frame, system.tags[place.frame]))
    if place.word != empty.word:
        parts.append(f"word {place.word}")
    if place.device != empty.device:
        parts.append(f"device{place.device}, of {names.get(system.devices[place.device], 'nobody')}")
    if place.guest_frame != empty.guest_frame:
        mapped = system.p2m[place.vm, place.guest_frame].frame
        parts.append(f"guest frame {place.guest_frame} of {names.get(place.vm)}: {frame(mapped, system.tags[mapped])}")
    if place.swap_slot != empty.swap_slot:
        parts.append(f"swap slot {place.swap_slot}")
    if not parts:
        parts = [
            *(
                f"{touch.kind} {'written' if touch.is_write else 'read'} for {names.get(touch.vm, 'nobody')} in "
                f"{frame(touch.frame, touch.tag)}"
                for touch in step.touches
                if touch.tag != touch.vm
            ),
            *(
                f"frame {change.frame}, from {owner_text(change.old, names)} to {owner_text(change.new, names)}"
                for change in step.retags
            ),
            *(
                f"frame {handled.frame}, which {_cpus(handled.pending)} didn't acknowledge"
                for handled in step.handled
                if handled.pending
            ),
        ]
    return "; ".join(parts) or "the step itself"


def _cpus(pending: int) -> str:
    """vCPUs by their bits."""
    return ", ".join(f"cpu{number}" for number in range(pending.bit_length()) if pending >> number & 1)
