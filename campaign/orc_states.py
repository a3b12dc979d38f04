"""Whole states of systems of shared objects: a lane of the fast path held against the reference."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from capvisor.dsl.states import describe, lane_capability, store_granules
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS
from capvisor.fastpath.objects import BatchObjects
from capvisor.model.memory import EMPTY, Granule
from capvisor.model.objects import ObjectMonitor
from capvisor.spec.registers import REGISTER_COUNT

TABLES = ("slots", "tenants", "mappings")
THREAD_FIELDS = ("is_live", "tenant", "place")


def differences(monitor: ObjectMonitor, batch: BatchObjects, lane: int) -> list[str]:
    """What differs between the reference's system and a lane: tables, threads with all registers, memory."""
    found = []
    for name, expected, actual in (*_of_tables(monitor, batch, lane), *_of_threads(monitor, batch, lane)):
        if expected != actual:
            found.append(f"{name}: reference {expected}, fast path {actual}")
    mine, other = store_granules(monitor.memory.store), _granules(batch, lane)
    for index in sorted(mine.keys() | other.keys()):
        granule, actual_granule = mine.get(index, EMPTY), other.get(index, EMPTY)
        if granule != actual_granule:
            address = monitor.granule_address(index)
            found.append(f"memory at {address:#x}: reference {tuple(granule)}, fast path {tuple(actual_granule)}")
    return found


def _granules(batch: BatchObjects, lane: int) -> dict[int, Granule]:
    """The granules of a lane that are not empty, by index."""
    tags, halves = batch.memory.tags[lane], batch.memory.halves[lane]
    used = np.flatnonzero(tags | halves.any(axis=1)).tolist()
    return {index: Granule(bool(tags[index]), *reversed(halves[index].tolist())) for index in used}


def _of_tables(monitor: ObjectMonitor, batch: BatchObjects, lane: int) -> Iterator[tuple[str, Any, Any]]:
    """The tables, as the reference and as the fast path has them; rows of zeros are as if there were none."""
    for name in TABLES:
        table: Any = getattr(monitor, name)
        rows = {key: tuple(int(each) for each in row) for key, row in table.rows.items() if any(row)}
        columns = [column[lane] for column in getattr(batch, name).values()]
        places = np.argwhere(np.logical_or.reduce([column != 0 for column in columns])).tolist()
        held = {}
        for place in places:
            at = tuple(place)
            held[at if len(at) > 1 else at[0]] = tuple(int(column[at]) for column in columns)
        yield name, rows, held
    exports: Any = monitor.exports
    entries = {(slot, 2 * half) for slot, half in np.argwhere(batch.exports[lane]).tolist()}
    yield "exports", {key for key, exported in exports.rows.items() if exported}, entries


def _of_threads(monitor: ObjectMonitor, batch: BatchObjects, lane: int) -> Iterator[tuple[str, Any, Any]]:
    """The threads, with all that their harts hold."""
    machine, threads = batch.harts, list(monitor.threads)
    yield "threads", len(threads), int(batch.threads["exists"][lane :: batch.lanes].sum())
    for number, thread in enumerate(threads[: machine.lanes // batch.lanes]):
        place, hart, who = number * batch.lanes + lane, thread.hart, f"thread {number}"
        for name in THREAD_FIELDS:
            yield f"{who} {name}", int(getattr(thread, name)), int(batch.threads[name][place])
        yield f"{who} pc", hart.pc, int(machine.pc[place])
        for name in (*NUMBERS, "is_reserved"):
            if name != "reservation" or hart.is_reserved:
                column = machine.is_reserved if name == "is_reserved" else machine.numbers[name]
                yield f"{who} {name}", int(getattr(hart, name)), int(column[place])
        held = {f"c{register}": (hart.capability(register), register) for register in range(REGISTER_COUNT)}
        held |= {name: (getattr(hart, name), row) for name, row in SPECIAL_ROWS.items()}
        for name, (expected, row) in held.items():
            actual = lane_capability(machine, row, place)
            if expected != actual:
                yield f"{who} {name}", f"{describe(expected)} {expected.meta:#x}", f"{describe(actual)} {actual.meta:#x}"
