"""Whole states of systems of shared objects: a lane of the fast path held against the reference."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from capvisor.campaign.hart_states import Row, differing, of_hart, of_memory
from capvisor.fastpath.objects import BatchObjects
from capvisor.model.objects import ObjectMonitor

TABLES = ("slots", "tenants", "mappings")
THREAD_FIELDS = ("is_live", "tenant", "place")


def differences(monitor: ObjectMonitor, batch: BatchObjects, lane: int) -> list[str]:
    """What differs between the reference's system and a lane: tables, threads with all registers, memory."""
    rows = (*_of_tables(monitor, batch, lane), *_of_threads(monitor, batch, lane))
    return differing((*rows, *of_memory(monitor.memory, batch.memory, lane)))


def _of_tables(monitor: ObjectMonitor, batch: BatchObjects, lane: int) -> Iterator[Row]:
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


def _of_threads(monitor: ObjectMonitor, batch: BatchObjects, lane: int) -> Iterator[Row]:
    """The threads, with all that their harts hold."""
    machine, threads = batch.harts, list(monitor.threads)
    yield "threads", len(threads), int(batch.threads["exists"][lane :: batch.lanes].sum())
    for number, thread in enumerate(threads[: machine.lanes // batch.lanes]):
        place, hart, who = number * batch.lanes + lane, thread.hart, f"thread {number}"
        for name in THREAD_FIELDS:
            yield f"{who} {name}", int(getattr(thread, name)), int(batch.threads[name][place])
        yield from of_hart(who, hart, machine, place)
