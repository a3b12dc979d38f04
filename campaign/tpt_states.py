"""Whole states of systems of translation pass-through: a lane of the fast path held against a system of the reference."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from capvisor.fastpath.tpt import BatchSystem
from capvisor.model.tpt import System
from capvisor.spec.paging import FIRST_VM, INDEX_BITS, WORDS_PER_FRAME, Entry
from capvisor.spec.tpt import ASIDS, CACHE_SLOTS, MAX_VMS, SWAP_SLOTS, TLB_SLOTS


def tables_of(model: System) -> dict[str, Any]:
    """The tables of a concrete system, by name."""
    found: dict[str, Any] = {"tags": model.tags.tags, "large": model.tags.large}
    found |= {name: getattr(model, name) for name in ("frames", "pending", "vms", "p2m", "vcpus", "asids")}
    found |= {"tlb": model.tlb.translations, "caches": model.tlb.tables}
    return found | {name: getattr(model, name) for name in ("walks", "devices", "iotlb", "swaps")}


def copy_state(model: System, target: System) -> None:
    """Let a new concrete system be as another one of its size is."""
    for mine, theirs in zip(tables_of(model).values(), tables_of(target).values(), strict=True):
        # Beside what a table notes of what is written to it.
        dict.update(theirs.rows, mine.rows)
    for name in ("memory", "disk"):
        store: Any = getattr(target, name)
        store.words = {frame: dict(row) for frame, row in getattr(model, name).words.items()}


RIGHTS = {"is_writable": Entry.RW, "is_user": Entry.US, "is_user_page": Entry.US, "is_executable": Entry.NX}


def as_columns(row: Any) -> dict[str, int]:
    """A row of the reference with its rights as the fast path has them. A walk's own `is_user` is no right."""
    values = {name: int(value) for name, value in row._asdict().items()}
    if "is_writable" in values:
        names = ("is_writable", "is_user_page" if "is_user_page" in values else "is_user", "is_executable")
        values["rights"] = sum(int(RIGHTS[name]) for name in names if values.pop(name))
    return values


def rows(model: System, batch: BatchSystem, lane: int) -> Iterator[tuple[str, Any, Any]]:
    """What each row of a system is, in both implementations, by name."""

    def row(columns: dict[str, Any], *place: int) -> dict[str, int]:
        return {name: int(column[(lane, *place)]) for name, column in columns.items()}

    for frame in range(model.frame_count):
        yield f"tag {frame}", model.tags[frame], batch.tags[lane, frame]
        yield f"frame {frame}", as_columns(model.frames[frame]), row(batch.frames, frame)
        for vcpu in range(model.vcpu_count):
            yield f"pending {frame}, {vcpu}", model.is_pending(frame, vcpu), batch.pending[lane, frame, vcpu]
        for device in range(model.device_count):
            yield f"iotlb {device}, {frame}", model.iotlb[frame] >> device & 1, batch.iotlb[lane, device, frame]
    for region in range(batch.large.shape[1]):
        yield f"large {region}", model.tags.is_large(region << INDEX_BITS), batch.large[lane, region]
    for vm in range(FIRST_VM, FIRST_VM + MAX_VMS):
        yield f"vm {vm}", as_columns(model.vms[vm]), row(batch.vms, vm)
    for vcpu in range(model.vcpu_count):
        runs = row(batch.vcpus, vcpu)
        runs["next_tlb"], runs["next_cache"] = (int(each.next[lane, vcpu]) for each in (batch.tlb, batch.caches))
        yield f"vcpu {vcpu}", as_columns(model.vcpus[vcpu]), runs
        yield f"walk {vcpu}", as_columns(model.walks[vcpu]), row(batch.walks, vcpu)
        for asid in range(ASIDS):
            yield f"asid {vcpu}, {asid}", model.asids[vcpu, asid], batch.asids[lane, vcpu, asid]
        for slot in range(TLB_SLOTS):
            yield f"tlb {vcpu}, {slot}", as_columns(model.tlb.translations[vcpu, slot]), row(batch.tlb.columns, vcpu, slot)
        for slot in range(CACHE_SLOTS):
            yield f"cache {vcpu}, {slot}", as_columns(model.tlb.tables[vcpu, slot]), row(batch.caches.columns, vcpu, slot)
    for device in range(model.device_count):
        yield f"device {device}", model.devices[device], batch.devices[lane, device]
    for slot in range(SWAP_SLOTS):
        yield f"swap {slot}", as_columns(model.swaps[slot]), row(batch.swaps, slot)
    mappings = {number: mapping.frame for number, mapping in model.p2m.rows.items() if mapping.is_mapped}  # type: ignore[attr-defined]
    yield "map", mappings, batch.mappings(lane)
    for what, store, words in (("memory", model.memory, batch.words), ("disk", model.disk, batch.disk)):
        mine, other = written(store), present(words[lane])
        for place in sorted(mine.keys() | other.keys()):
            yield f"{what} {place // WORDS_PER_FRAME}, {place % WORDS_PER_FRAME}", mine.get(place, 0), other.get(place, 0)


def written(store: Any) -> dict[int, int]:
    """The words of the reference's memory that aren't zero."""
    return {frame * WORDS_PER_FRAME + index: word for frame, index, word in store.written() if word}


def present(words: Any) -> dict[int, int]:
    """Likewise of the fast path's."""
    flat = words.reshape(-1)
    places = np.flatnonzero(flat)
    return dict(zip(places.tolist(), flat[places].tolist(), strict=True))


def differences(model: System, batch: BatchSystem, lane: int) -> list[str]:
    """What differs between a system of the reference and a lane."""
    return [f"{what}: reference {one}, fast path {other}" for what, one, other in rows(model, batch, lane) if one != other]
