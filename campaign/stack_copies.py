"""Machines of the reference with all four systems as another one is: what is copied is said as if it were written.

So a mirror's arrays come to hold it by what it is told, as they do after any step, and at the end of a unit it is read anew.
"""

from typing import Any

from capvisor.campaign import cvm_states, orc_mirror, tpt_states, vmm_states
from capvisor.campaign.stack_mirror import LaneStack, Mirror
from capvisor.fastpath.stack import CVM, ORC
from capvisor.model.monitor import Thread
from capvisor.model.object_tables import TenantThread

_OWN = ("via", "principal", "vcpu", "device", "issuer", "is_crossed")
"""What a machine knows of the step that was taken last."""
_TABLES = {CVM: (*cvm_states.TABLES, "slots"), ORC: tuple(orc_mirror.TABLES)}
_SHARED = ("format", "memory", "registers")
"""Of a hart, what isn't its own, or is copied by itself."""


def copy_machine(source: LaneStack, target: LaneStack, mirror: Mirror) -> None:
    """Let a machine that was just made be as another one between two steps."""
    for model, copy, names in (
        (source.vmm, target.vmm, [name for name in vmm_states.PARTS if name != "memory"]),
        (source.tpt, target.tpt, [name for name in tpt_states.tables_of(source.tpt) if name not in _OF_TAGS]),
    ):
        for name in names:
            _copy_rows(_table(model, name), _table(copy, name))
    for name in _OF_TAGS:
        _copy_rows(getattr(source.owners, name), getattr(target.owners, name))
    for store, copied in ((source.memory, target.memory), (source.disk, target.disk)):
        for frame, row in store.held.items():
            for number, granule in row.items():
                copied.set(frame, number, granule)
    for name in _OWN:
        setattr(target, name, getattr(source, name))
    target.copy_contents(source)
    for layer in (CVM, ORC):
        target.pages[layer].bound = list(source.pages[layer].bound)
        target.say_bound(layer)
        _copy_monitor(source.monitors[layer], target.monitors[layer], layer)
        getattr(mirror, layer).note_lane(target.lane)


_OF_TAGS = ("tags", "large")
_OF_TLB = {"tlb": "translations", "caches": "tables"}


def _table(model: Any, name: str) -> Any:
    return getattr(model.tlb, _OF_TLB[name]) if name in _OF_TLB else getattr(model, name)


def _copy_rows(source: Any, target: Any) -> None:
    for number, row in source.rows.items():
        target[number] = row


def _copy_monitor(source: Any, target: Any, layer: str) -> None:
    for name in _TABLES[layer]:
        _copy_rows(getattr(source, name), getattr(target, name))
    if layer == CVM:
        target.clock, target.printed = source.clock, source.printed
    for thread in source.threads:
        _copy_thread(thread, target)


def _copy_thread(thread: Any, target: Any) -> None:
    hart = target.make_hart(target.memory)
    if isinstance(thread, Thread):
        copied: Any = Thread(hart, thread.home)
    else:
        copied = TenantThread(hart, thread.tenant, thread.place)
    vars(copied).update({name: value for name, value in vars(thread).items() if name != "hart"})
    vars(hart).update({name: value for name, value in vars(thread.hart).items() if name not in _SHARED})
    for register, held in enumerate(thread.hart.registers):
        if held != hart.registers[register]:
            hart.registers[register] = held
    target.threads.add(copied)
