"""Showing a run of a para-pass-through VMM step by step."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from capvisor.cli.trace import write_step
from capvisor.dsl.operation_runner import AT_THE_START
from capvisor.dsl.system_runner import Executed
from capvisor.dsl.system_watch import Snapshot, changed_keys
from capvisor.dsl.vmm_watch import snapshot
from capvisor.model.vmm import Channel, Deployment, Device, Mapping, Vcpu, Vmm
from capvisor.spec.vmm import COMMANDS, WINDOW_SHIFT, ChannelState, Phase, Space, Stage

_AGENT_COLUMNS, _TEXT_COLUMNS = 8, 40
_SIZES = ("4K", "2M", "1G")


class VmmTracer:
    """Prints each step: line, agent, operation, how it ended, and what it changed in memory, media, mediators, devices."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._before: Snapshot | None = None

    def __call__(self, step: Executed) -> None:
        before, after = self._before, snapshot(step.system)
        self._before = after
        changes = [step.outcome]
        if before is not None and step.outcome != AT_THE_START:
            changes += _changes(changed_keys(before, after), before, after)
        head = f"{step.line:>5}  {step.agent:<{_AGENT_COLUMNS}} {step.text:<{_TEXT_COLUMNS}}"
        write_step(self._write, head, changes)


_WORDS = {"memory": "memory", "registers": "register", "media": "medium", "remote": "sent"}
"""The tables of words that are shown, and what they are called."""


def _changes(keys: dict[str, set[Any]], before: Snapshot, after: Snapshot) -> Iterator[str]:
    """What has changed, in words."""
    yield from _of_vmm(before["vmm"].get(0, Vmm()), after["vmm"].get(0, Vmm()))
    for cpu in sorted(keys["vcpus"]):
        yield f"cpu{cpu} = {'outside' if after['vcpus'].get(cpu, Vcpu()).is_outside else 'under the VMM'}"
    for cpu, slot in sorted(keys["mappings"]):
        yield f"cpu{cpu} slot {slot} = {_mapping_text(after['mappings'].get((cpu, slot), Mapping()))}"
    for table, name in _WORDS.items():
        for key in sorted(keys[table]):
            yield f"{name} {_key_text(key)} = {after[table].get(key, 0):#x}"
    for space, window in sorted(keys["decoded"] | keys["hooked"]):
        device, hook = (after[table].get((space, window), 0) for table in ("decoded", "hooked"))
        registers = f"{Space(space).name.lower()} {window << WINDOW_SHIFT:#x}"
        yield f"{registers} = {f'device {device}' if device else 'nobody'}{', mediated' if hook else ''}"
    for device in sorted(keys["channels"]):
        yield from _of_channel(device, before["channels"].get(device, Channel()), after["channels"].get(device, Channel()))
    for device in sorted(keys["devices"]):
        yield from _of_device(device, before["devices"].get(device, Device()), after["devices"].get(device, Device()))
    for device in sorted(keys["deployments"]):
        row = after["deployments"].get(device, Deployment())
        fetched = f", sector {row.lba} fetched" if row.is_fetched else ""
        yield f"deployment {device} = {Phase(row.phase).name.lower()}, {row.cursor} of {row.size} looked at{fetched}"
    for device, lba in sorted(keys["deployed"]):
        yield f"deployed {device}, {lba}"
    for frame in sorted(keys["clean"]):
        yield f"frame {frame} = {'sent' if after['clean'].get(frame) else 'to be sent'}"


def _key_text(key: Any) -> str:
    """Where in a table: an address in hexadecimal, a device and a place of it in decimal."""
    return ", ".join(map(str, key)) if isinstance(key, tuple) else f"{key:#x}"


def _of_vmm(before: Vmm, after: Vmm) -> Iterator[str]:
    if after.is_stopped and not before.is_stopped:
        yield "the machine is stopped"
    if after.has_microcode and not before.has_microcode:
        yield "the microcode is the guest's"
    if after.stage != before.stage:
        yield f"moving = {Stage(after.stage).name.lower().replace('_', ' ')}"


def _mapping_text(row: Mapping) -> str:
    if not row.is_live:
        return "empty"
    if row.is_zero:
        return "the page of zeros"
    return f"frame {row.frame}, {_SIZES[row.level]} r{'w' * row.is_writable}"


def _of_channel(device: int, before: Channel, after: Channel) -> Iterator[str]:
    if _differ(before, after, ("state", "first", "length", "position")):
        state = ChannelState(after.state).name.lower().replace("_", " ")
        yield f"mediator {device} = {state}{_progress(after)}"
    if before.descriptors != after.descriptors:
        yield f"descriptors {device} = {after.descriptors:#x} for the guest"


def _of_device(device: int, before: Device, after: Device) -> Iterator[str]:
    if _differ(before, after, ("opcode", "first", "length", "position", "is_started", "is_failed")):
        name = "idle" if not after.opcode else COMMANDS[after.opcode].name if after.opcode in COMMANDS else hex(after.opcode)
        yield f"device {device} = {'failed' if after.is_failed else name}{_progress(after) if after.opcode else ''}"
    for name in ("count", "lba", "descriptors"):
        if _differ(before, after, (name,)):
            yield f"device {device} {name} = {getattr(after, name):#x}"


def _progress(row: Channel | Device) -> str:
    return f", {row.position} of {row.length} from sector {row.first}" if row.length else ""


def _differ(before: Any, after: Any, names: Sequence[str]) -> bool:
    return any(getattr(before, name) != getattr(after, name) for name in names)
