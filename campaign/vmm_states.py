"""Whole states of machines with a para-pass-through VMM: a lane of the fast path held against a machine of the reference."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.vmm import BatchVmm, copy_numbers, frame_numbers, sector_numbers, window_numbers
from capvisor.fastpath.workspace import Words
from capvisor.model.vmm import System

Columns = dict[str, NDArray[Any]]


class Keyed(NamedTuple):
    """A table of the reference's that is some columns of one of the fast path's."""

    table: str
    columns: tuple[str, ...]


DENSE = {
    "vmm": 0,
    "vcpus": 1,
    "mappings": 2,
    "devices": 1,
    "windows": 2,
    "registers": 2,
    "channels": 1,
    "keys": 0,
    "deployments": 1,
    "extensions": 1,
    "clean": 1,
}
"""Tables that are arrays in the fast path, each by so many numbers; of what is by none there is one row."""

KEYED = {
    "decoded": Keyed("decoding", ("decoded",)),
    "hooked": Keyed("decoding", ("hooked",)),
    "trapped": Keyed("traps", ("trapped",)),
    "media": Keyed("sectors", ("word",)),
    "meant": Keyed("sectors", ("is_known", "meant")),
    "rules": Keyed("sectors", ("rule",)),
    "images": Keyed("sectors", ("image",)),
    "deployed": Keyed("sectors", ("is_deployed",)),
    "touched": Keyed("sectors", ("is_touched",)),
    "plain": Keyed("copies", ("plain",)),
}
NUMBERS: dict[str, Callable[..., Words]] = {
    "decoding": window_numbers,
    "traps": frame_numbers,
    "sectors": sector_numbers,
    "copies": copy_numbers,
}
"""The fast path's tables by numbers, and how a row's number is made."""

STORES = ("memory", "remote")

PARTS = (*DENSE, *KEYED, *STORES)
"""What is compared: the tables, and the memory of both machines."""

FIXED = ("keys", "rules", "images", "extensions")
"""Of these, what no operation changes."""


def columns_of(batch: BatchVmm) -> dict[str, Columns]:
    """The fast path's arrays, by the names of the reference's parts."""
    found = {}
    for name in DENSE:
        columns = getattr(batch, name)
        found[name] = columns if isinstance(columns, dict) else {"": columns}
    return found


def flat(row: Any) -> tuple[int, ...]:
    """A row, or its number, as numbers."""
    return tuple(map(int, row)) if isinstance(row, tuple) else (int(row),)


def tables_of(model: System) -> dict[str, dict[Any, Any]]:
    """The rows that were ever written of a concrete machine's tables, by name."""
    return {name: getattr(model, name).rows for name in PARTS}


def load(model: System, batch: BatchVmm, lanes: Indices) -> None:
    """Let lanes, in which nothing is yet, be as a concrete machine is."""
    columns = columns_of(batch)
    for name, rows in tables_of(model).items():
        for number, row in rows.items():
            key, values = flat(number), flat(row)
            if name in KEYED:
                part = KEYED[name]
                words = [np.full(len(lanes), each, np.uint64) for each in key]
                table = getattr(batch, part.table)
                table.put(lanes, NUMBERS[part.table](*words), **dict(zip(part.columns, values, strict=True)))
            elif name in STORES:
                getattr(batch, name)[lanes, np.full(len(lanes), key[0])] = values[0]
            else:
                place: tuple[Any, ...] = (lanes, *key[: DENSE[name]])
                for column, value in zip(columns[name].values(), values, strict=True):
                    column[place] = value


def rows(model: System, batch: BatchVmm, lane: int) -> Iterator[tuple[str, Any, Any]]:
    """What each row of a machine is, in both implementations, by name."""
    other = BatchVmm(
        1,
        batch.frame_count,
        (batch.region_first, batch.region_behind),
        batch.vcpu_count,
        batch.device_count,
        batch.policy,
    )
    load(model, other, np.zeros(1, np.int64))
    mine, theirs = columns_of(other), columns_of(batch)
    for name, columns in mine.items():
        for key, column in columns.items():
            for place in np.argwhere(column[0] != theirs[name][key][lane]).tolist():
                what = " ".join([name, ", ".join(map(str, place)), key]).strip()
                yield what, int(column[(0, *place)]), int(theirs[name][key][(lane, *place)])
    for name in NUMBERS:
        one, two = (dict(table.rows(at)) for table, at in ((getattr(other, name), 0), (getattr(batch, name), lane)))
        for number in sorted(one.keys() | two.keys()):
            for key in getattr(batch, name).columns:
                found = [each.get(number, {}).get(key, 0) for each in (one, two)]
                if found[0] != found[1]:
                    yield f"{name} {number:#x} {key}", *found
    for name in STORES:
        mine_words, their_words = getattr(other, name)[0], _array(getattr(batch, name))[lane]
        for address in np.flatnonzero(mine_words != their_words).tolist():
            yield f"{name} {address}", int(mine_words[address]), int(their_words[address])


def _array(memory: Any) -> NDArray[Any]:
    """Memory as an array, whether it says where it is written or not."""
    found: NDArray[Any] = getattr(memory, "array", memory)
    return found


def differences(model: System, batch: BatchVmm, lane: int) -> list[str]:
    """What differs between a machine of the reference and a lane."""
    return [f"{what}: reference {one}, fast path {other}" for what, one, other in rows(model, batch, lane)]
