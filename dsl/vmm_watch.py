"""Holding every step of a para-pass-through VMM against the invariants of `spec.vmm_invariants`."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from capvisor.dsl.system_watch import Snapshot, TableWatch
from capvisor.model.tables import Rows
from capvisor.model.vmm import Address, Frame, System, Touch
from capvisor.model.vmm_system import places
from capvisor.spec.vmm import BLOCK_SHIFT, WINDOW_FRAME_SHIFT, WINDOW_SHIFT, Space
from capvisor.spec.vmm_invariants import VMM_INVARIANTS, Invariant
from capvisor.spec.vmm_words import Place, Step

_BY_ADDRESS, _BY_SECTOR = ("memory", "remote"), ("media", "meant", "plain", "rules", "deployed", "touched", "images")
_BY_DEVICE, _OF_ALL = ("devices", "channels", "deployments"), ("vmm", "keys", "vcpus", "windows", "registers", "trapped")
NOWHERE = Place()


def snapshot(system: System) -> Snapshot:
    """A copy of all tables by name, each by the keys of its rows that aren't as those never written."""
    tables = {name: table for name, table in vars(system).items() if isinstance(table, Rows)}
    return {name: {key: row for key, row in table if row != table[None]} for name, table in tables.items()}


class _Watched(NamedTuple):
    """An invariant of which what it says of a step by itself is asked once: nowhere, which is looked at first."""

    invariant: Invariant

    def holds(self, step: Step, place: Place) -> Any:
        """Whether it holds of a step at a place."""
        return (self.invariant.holds if place == NOWHERE else self.invariant.holds_there)(step, place)


class VmmWatch(TableWatch):
    """Looks at the steps of a system with a para-pass-through VMM."""

    _invariants = {name: _Watched(row) for name, row in VMM_INVARIANTS.items()}

    def _snapshot(self, step: Step) -> Snapshot:
        return snapshot(step.system)

    def _what(self, step: Step) -> tuple[Any, ...]:
        return step.name, step.operands, step.code, step.value, step.touches, step.moves

    def _looked(self, step: Step, changed: Mapping[str, set[Any]]) -> Iterator[Place]:
        return places_changed(step, changed)

    def _nowhere(self, step: Step) -> Place:  # noqa: ARG002 - the same of every step
        return NOWHERE


def places_changed(step: Step, changed: Mapping[str, set[Any]]) -> Iterator[Place]:
    """The places of a step that a changed row has a part in, or what it touched; all where nothing is known of what has
    changed.
    """
    yield NOWHERE
    addresses = {address for name in _BY_ADDRESS for address in changed.get(name, ())}
    addresses |= {touch.address for touch in step.touches}
    frames = {address >> BLOCK_SHIFT for address in addresses} | changed.get("clean", set())
    in_region = any(step.system.in_region(frame) for frame in frames)  # what mediators keep there is theirs
    if not changed or in_region or any(changed[name] for name in _OF_ALL):
        yield from places(step)
        return
    devices = {key for name in _BY_DEVICE for key in changed[name]} | {move.device for move in step.moves}
    devices |= {device for name in _BY_SECTOR for device, _lba in changed[name]}
    for place in places(step):
        if (
            place.frame in frames
            or place.device in devices
            or (place.vcpu, place.slot) in changed["mappings"]
            or (place.space, place.window) in changed["decoded"] | changed["hooked"]
            or place.window >> WINDOW_FRAME_SHIFT in frames
        ):
            yield place


def describe_place(step: Step, place: Place, names: Mapping[int, str]) -> str:
    """A place in words; where the step itself is what is wrong, what it touched and moved."""
    parts = []
    if (place.vcpu, place.slot) != (NOWHERE.vcpu, NOWHERE.slot):
        parts.append(f"cpu{place.vcpu}, slot {place.slot}")
    if place.frame != NOWHERE.frame:
        parts.append(_frame_text(step.system, place.frame))
    if place.address != NOWHERE.address:
        parts.append(_address_text(step.system, place.address))
    if (place.space, place.window) != (NOWHERE.space, NOWHERE.window):
        parts.append(f"{Space(place.space).name.lower()} {place.window << WINDOW_SHIFT:#x}")
    if (place.device, place.lba, place.position) != (NOWHERE.device, NOWHERE.lba, NOWHERE.position):
        sector, block = f", sector {place.lba}" * bool(place.lba), f", block {place.position}" * bool(place.position)
        parts.append(f"{names.get(place.device, 'no device')}{sector}{block}")
    if place.extension != NOWHERE.extension:
        parts.append(f"extension {place.extension}")
    if not parts:
        parts = [_touch_text(step.system, touch, names) for touch in step.touches]
        parts += [
            f"{names[move.device]}, sector {move.lba} {'written' if move.is_write else 'read'}"
            for move in step.moves
            if move.is_made
        ]
    return "; ".join(parts) or "the step itself"


def _touch_text(system: System, touch: Touch, names: Mapping[int, str]) -> str:
    """Who has touched what."""
    who = names[touch.number] if touch.actor == "device" else f"{touch.actor} {touch.number}"
    return f"{_address_text(system, touch.address)} {'written' if touch.is_write else 'read'} by {who}"


def _address_text(system: System, address: Address) -> str:
    return f"address {address:#x}{', of the region' * bool(system.in_region(address >> BLOCK_SHIFT))}"


def _frame_text(system: System, frame: Frame) -> str:
    return f"frame {frame}{', of the region' * bool(system.in_region(frame))}"
