"""Whole machine states: comparing a lane of the fast path with a hart of the reference, and saying what changed."""

import numpy as np

from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS, BatchMachine
from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart
from capvisor.model.memory import EMPTY, Granule, GranuleStore, SparseStore
from capvisor.spec.formats import Permission
from capvisor.spec.registers import REGISTER_COUNT

SMALL_MEMORY = 1 << 16
"""Granules that are looked through after every step; larger memories only at the end of a run."""

_PERMISSION_LETTERS = {
    Permission.LOAD: "r",
    Permission.STORE: "w",
    Permission.EXECUTE: "x",
    Permission.LOAD_CAPABILITY: "R",
    Permission.STORE_CAPABILITY: "W",
}


def describe(cap: Capability) -> str:
    """A capability for people: `0x80000010 [rwxRW,0x80000000-0x80010000]`, and what is special about it.

    The form is that of FreeBSD's strfcap(3), the `%#p` of CheriBSD's printf.
    """
    if capability.equal(cap, capability.null(cap.format, cap.address)):
        return f"{cap.address:#x}"
    letters = "".join(letter for permission, letter in _PERMISSION_LETTERS.items() if cap.permits(permission))
    base, top = cap.bounds
    marks = []
    if not cap.tag:
        marks.append("invalid")
    if cap.otype == cap.format.otype_sentry:
        marks.append("sentry")
    elif cap.is_sealed:
        marks.append(f"sealed {cap.otype:#x}")
    return f"{cap.address:#x} [{letters},{base:#x}-{top:#x}]" + (f" ({', '.join(marks)})" if marks else "")


def lane_capability(machine: BatchMachine, register: int, lane: int) -> Capability:
    """The capability in a register of one lane (or DDC), as the reference's value."""
    return Capability(
        machine.format,
        bool(machine.tags[register, lane]),
        int(machine.metas[register, lane]),
        int(machine.addresses[register, lane]),
    )


def lane_granules(machine: BatchMachine, lane: int) -> dict[int, Granule]:
    """The granules of one lane's memory that are not empty, by index."""
    tags, halves = machine.memory.tags[lane], machine.memory.halves[lane]
    used = np.flatnonzero(tags | halves.any(axis=1))
    return {int(index): _granule(machine, lane, int(index)) for index in used}


def _granule(machine: BatchMachine, lane: int, index: int) -> Granule:
    lower, upper = machine.memory.halves[lane, index].tolist()
    return Granule(bool(machine.memory.tags[lane, index]), upper, lower)


def machine_in_state(hart: Hart) -> BatchMachine:
    """A batch machine of one lane in the state of a hart."""
    memory = hart.memory
    machine = BatchMachine(hart.format, memory.base, memory.size_bytes, 1)
    held = {number: hart.capability(number) for number in range(REGISTER_COUNT)}
    held |= {row: getattr(hart, name) for name, row in SPECIAL_ROWS.items()}
    for row, cap in held.items():
        machine.tags[row], machine.metas[row], machine.addresses[row] = cap.tag, cap.meta, cap.address
    machine.pc[:], machine.is_reserved[:] = hart.pc, hart.is_reserved
    for name in NUMBERS:
        machine.numbers[name][:] = getattr(hart, name)
    for index, granule in hart_granules(hart).items():
        machine.memory.tags[0, index] = granule.tag
        machine.memory.halves[0, index] = granule.lower, granule.upper
    machine.pcc_changed(np.arange(1))
    return machine


def hart_granules(hart: Hart) -> dict[int, Granule]:
    """The granules of a hart's memory that were ever written, by index."""
    return store_granules(hart.memory.store)


def store_granules(store: GranuleStore) -> dict[int, Granule]:
    """The granules of a concrete memory that were ever written, by index."""
    assert isinstance(store, SparseStore)
    return dict(store.written())


def differences(hart: Hart, machine: BatchMachine, lane: int, *, whole_memory: bool = False) -> list[str]:
    """What differs between a hart and a lane: all registers, the special ones and the CSRs, memory. Empty if nothing does.

    All of memory is compared where it has at most `SMALL_MEMORY` granules or `whole_memory` says so; of larger ones, the
    granules that the hart has ever written.
    """
    found = []
    if int(machine.pc[lane]) != hart.pc:
        found.append(f"pc: reference {hart.pc:#x}, fast path {int(machine.pc[lane]):#x}")
    for name in (*NUMBERS, "is_reserved"):
        if name == "reservation" and not hart.is_reserved:
            continue
        number = int((machine.is_reserved if name == "is_reserved" else machine.numbers[name])[lane])
        if number != getattr(hart, name):
            found.append(f"{name}: reference {int(getattr(hart, name)):#x}, fast path {number:#x}")
    registers = [(f"c{number}", hart.capability(number), number) for number in range(REGISTER_COUNT)]
    special = [(name, getattr(hart, name), row) for name, row in SPECIAL_ROWS.items()]
    for name, expected, row in [*registers, *special]:
        actual = lane_capability(machine, row, lane)
        if actual != expected:
            found.append(
                f"{name}: reference {describe(expected)} meta {expected.meta:#x}, "
                f"fast path {describe(actual)} meta {actual.meta:#x}"
            )
    mine = hart_granules(hart)
    if whole_memory or machine.memory.granules <= SMALL_MEMORY:
        other = lane_granules(machine, lane)
    else:
        other = {index: _granule(machine, lane, index) for index in mine}
    for index in sorted(mine.keys() | other.keys()):
        expected_granule, actual_granule = mine.get(index, EMPTY), other.get(index, EMPTY)
        if expected_granule != actual_granule:
            address = hart.memory.base + index * hart.format.capability_bytes
            found.append(f"memory at {address:#x}: reference {tuple(expected_granule)}, fast path {tuple(actual_granule)}")
    return found
