"""Whole states of systems of cVMs: a lane of the fast path held against a monitor of the reference."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from capvisor.campaign.hart_states import Row, differing, of_hart, of_memory
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.fastpath.tables import PAIR_SHIFT, Table, pair_of
from capvisor.model.monitor import Monitor, Thread

TABLES = ("regions", "grants", "portals", "held", "probed")
"""The monitor's tables that both implementations have by these names."""

THREAD_FIELDS = ("is_live", "home", "domain", "serves", "portal", "waits", "waits_for")


def differences(monitor: Monitor, batch: BatchMonitor, lane: int) -> list[str]:
    """What differs between the reference's system and a lane: threads with all registers, memory, tables."""
    rows = (*_of_tables(monitor, batch, lane), *_of_threads(monitor, batch, lane))
    return differing((*rows, *of_memory(monitor.memory, batch.memory, lane)))


def _of_tables(monitor: Monitor, batch: BatchMonitor, lane: int) -> Iterator[Row]:
    """The tables, as the reference and as the fast path has them; rows of zeros are as if there were none."""
    for name in TABLES:
        yield name, expected_rows(monitor, name), _rows(getattr(batch, name), lane)
    slots = {int(each): int(batch.slot_grant[lane, each]) for each in np.flatnonzero(batch.is_slot[lane])}
    yield "slots", {number: row.grant for number, row in monitor.slots.rows.items() if row.is_slot}, slots  # type: ignore[attr-defined]
    yield "clock", monitor.clock, int(batch.clock[lane])
    yield "printed", monitor.printed, int(batch.printed[lane])


def row_values(name: str, number: Any, row: Any) -> tuple[int, ...]:
    """A row of a table of the reference, in the form of the fast path's: its number, and numbers.

    A grant has its size instead of its top; a row about a grant or portal and a cVM has one number.
    """
    if isinstance(number, tuple):
        number = number[0] << PAIR_SHIFT | number[1]
    if name == "grants":
        is_live, owner, base, top, last_slot = row
        return number, is_live, owner, base, top - base, last_slot
    return (number, *row) if isinstance(row, tuple) else (number, row)


def expected_rows(monitor: Monitor, name: str) -> dict[Any, tuple[int, ...]]:
    """A table of the reference, in the form of the fast path's; rows of zeros are left out."""
    rows: dict[Any, tuple[int, ...]] = {}
    for number, row in getattr(monitor, name):
        _number, *values = row_values(name, number, row)
        if any(values):
            rows[number] = tuple(int(each) for each in values)
    return rows


def _rows(table: Table, lane: int) -> dict[Any, tuple[int, ...]]:
    rows = {number: tuple(values.values()) for number, values in table.rows(lane)}
    if len(next(iter(rows.values()), ())) == 1:
        return {pair_of(number): values for number, values in rows.items() if any(values)}
    return {number: values for number, values in rows.items() if any(values)}


def expected_frame(thread: Thread) -> tuple[int, ...]:
    """What the reference has put down of a thread's call, in the order of the fast path's columns; zeros outside of one."""
    frame = thread.frame
    if frame is None:
        return (0,) * 10
    whom = (frame.number, frame.domain, frame.caller, int(frame.has_handle), frame.refusal.value, frame.stack)
    return (1, *whom, *frame.arguments)


def _of_threads(monitor: Monitor, batch: BatchMonitor, lane: int) -> Iterator[Row]:
    """The threads, with all that their harts hold."""
    machine, threads = batch.harts, list(monitor.threads)  # type: ignore[call-overload]
    yield "threads", len(threads), int(batch.thread_counts()[lane])
    for number, thread in enumerate(threads[: batch.slots]):
        place, hart, who = number * batch.lanes + lane, thread.hart, f"thread {number}"
        for name in THREAD_FIELDS:
            yield f"{who} {name}", int(getattr(thread, name)), int(batch.threads[name][place])
        frame = tuple(int(column[place]) for column in batch.frames.values())
        yield f"{who} frame", expected_frame(thread), frame if frame[0] else (0,) * len(frame)
        yield from of_hart(who, hart, machine, place)
