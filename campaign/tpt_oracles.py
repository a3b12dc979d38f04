"""The invariants of `spec.tpt_invariants` on a step of many systems of translation pass-through at once.

What a predicate looks at is here an array, one element for each place of one kind: its truth is an array too. What is said
of the step itself is evaluated for all that it touched, retagged and handled; what is said of the state is looked at again
at the places of which a row has changed: what a slot or a walk holds, if that is new; a frame, with all slots and walks that
may name it, if its tag, its books or who has to acknowledge it are others; all of a vCPU that runs for another VM, or under
another ASID. `tests/campaign/test_tpt_oracles.py` holds all that against `dsl.tpt_watch`.
"""

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from capvisor.campaign.tpt_mirror import Changes
from capvisor.campaign.tpt_views import NOWHERE, LaneFault, LaneHandled, LaneRetag, LaneSystem, LaneTouch
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.tpt import BatchSystem
from capvisor.fastpath.workspace import Causes, Words
from capvisor.spec.tpt import CACHE_SLOTS, TLB_SLOTS, Code, FaultKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS, Place, Step

Log = dict[str, Words]

TOUCH_KINDS = ("data", "table", "update", "dma")

OF_TOUCHES = ("T1", "T2", "T8", "T9")
OF_RETAGS = ("T4", "T8")
OF_SLOTS = ("T3", "T7", "T13")
OF_CACHES = OF_WALKS = ("T3", "T13")
OF_FRAMES = ("T7", "T13")
OF_MAPPINGS = ("T8", "T11")

_EVERYWHERE = Place(*[NOWHERE] * len(Place._fields))


class Taken(NamedTuple):
    """A step in some lanes: the operation, how it ended, and what was noted of it, by columns."""

    name: str
    lanes: Indices
    operands: tuple[Words, ...]
    vms: Words
    """The VMs that the vCPUs of a guest's operation ran for before."""
    code: Causes
    fault: Causes
    frame: Words
    level: Words
    """Of a fault, the frame that it names, and of pages of which level it is the first."""
    touches: Log
    retags: Log
    handled: Log
    """What was accessed, retagged, handled; `at` says in which of the lanes, counted from 0."""


class Oracles:
    """Holds steps of systems against all invariants."""

    def __init__(self, batch: BatchSystem) -> None:
        self._batch = batch
        self.evaluated = dict.fromkeys(TPT_INVARIANTS, 0)
        self.concerned = dict.fromkeys(TPT_INVARIANTS, 0)
        """By invariant: at how many places it was evaluated, and at how many it had something to say."""
        self._violations: dict[str, list[Indices]] = {}
        self._vcpus = np.arange(batch.vcpu_count)
        self._slots, self._cache_slots = np.arange(TLB_SLOTS), np.arange(CACHE_SLOTS)
        self._frames, self._devices = np.arange(batch.frame_count, dtype=np.uint64), np.arange(batch.device_count)

    def judge(self, taken: Taken, changes: Changes) -> list[tuple[str, Indices]]:
        """The invariants that a step violates, in the order of their table, and the lanes."""
        self._violations = {}
        self._judge_step(taken)
        self._judge_slots(changes)
        self._judge_walks(changes)
        self._judge_frames(changes)
        self._judge_books(changes)
        found = []
        for name in TPT_INVARIANTS:
            if name in self._violations:
                found.append((name, np.unique(np.concatenate(self._violations[name]))))
        return found

    def _hold(self, names: tuple[str, ...], lanes: Indices, step: Step, place: Place = _EVERYWHERE) -> None:
        """Evaluate some invariants at places of one kind."""
        for name in names:
            holds: Any = TPT_INVARIANTS[name].holds(step, place)
            count = lanes.size if np.ndim(holds) == 0 else holds.size
            self.evaluated[name] += count
            if holds is True:
                continue
            self.concerned[name] += count
            if not np.all(holds):
                wrong = np.broadcast_to(lanes, np.broadcast_shapes(lanes.shape, np.shape(holds)))
                fallen = wrong[~np.broadcast_to(holds, wrong.shape)]
                self._violations.setdefault(name, []).append(fallen)

    def _at(self, names: tuple[str, ...], lanes: Indices, **place: Any) -> None:
        """Evaluate what is said of the state at places; lanes and parts of places are broadcast to one shape."""
        self._hold(names, lanes, Step(LaneSystem(self._batch, lanes), "step_walk"), _EVERYWHERE._replace(**place))

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _step(self, taken: Taken, which: Indices, **parts: Any) -> tuple[Indices, Step]:
        """A step in some of its lanes."""
        lanes, operands = taken.lanes[which], tuple(each[which] for each in taken.operands)
        return lanes, Step(LaneSystem(self._batch, lanes), taken.name, operands, vm=taken.vms[which], **parts)

    def _judge_step(self, taken: Taken) -> None:
        if taken.touches:
            kinds = taken.touches["kind"]
            for number in np.unique(kinds).tolist():
                at, touch = self._touch(taken, np.flatnonzero(kinds == number))
                self._hold(OF_TOUCHES, *self._step(taken, at, touches=(touch,)))
        if taken.retags:
            at, columns = _of(taken.retags)
            self._hold(OF_RETAGS, *self._step(taken, at, retags=(LaneRetag(**columns),)))
        if taken.handled:
            at, columns = _of(taken.handled)
            self._hold(("T5",), *self._step(taken, at, handled=(LaneHandled(**columns),)))
        completed = np.flatnonzero((taken.code == Code.OK) & (taken.fault == FaultKind.NONE))
        if len(completed):
            self._judge_completed(taken, completed)
        blamed = np.flatnonzero(taken.fault == FaultKind.TAG)
        if len(blamed):
            fault = LaneFault(FaultKind.TAG, taken.frame[blamed], taken.level[blamed])
            self._hold(("T10",), *self._step(taken, blamed, fault=fault))
        if taken.name == "reclaim":
            for code in np.unique(taken.code[taken.code != Code.OK]).tolist():
                self._hold(("T10",), *self._step(taken, np.flatnonzero(taken.code == code), code=Code(code)))

    def _touch(self, taken: Taken, rows: Indices) -> tuple[Indices, LaneTouch]:
        """What was accessed in one way, and where."""
        columns = {name: column[rows] for name, column in taken.touches.items() if name not in ("kind", "at")}
        for name in ("is_write", "is_pending"):
            columns[name] = columns[name] != 0
        kind = TOUCH_KINDS[int(taken.touches["kind"][rows[0]])]
        return taken.touches["at"][rows].astype(np.int64), LaneTouch(kind, **cast(dict[str, Any], columns))

    def _judge_completed(self, taken: Taken, completed: Indices) -> None:
        """What is said of operations that were done."""
        name, words = taken.name, self._batch.words
        if name in ("store", "write_pte") and taken.touches:
            at = taken.touches["at"].astype(np.int64)
            last = np.flatnonzero(np.diff(at, append=-1))
            last = last[np.isin(at[last], completed)]
            changed = np.isin(at[last], _of(taken.retags)[0]) if taken.retags else np.zeros(len(last), np.bool_)
            kinds = taken.touches["kind"][last].astype(np.int64) * 2 + changed
            for number in np.unique(kinds).tolist():
                which, touch = self._touch(taken, last[kinds == number])
                self._hold(("T6",), *self._step(taken, which, touches=(touch,), retags=(None,) * (number & 1)))
        if name in ("assign", "migrate", "swap_in"):
            lanes, first = taken.lanes[completed], taken.operands[0][completed].astype(np.int64)
            if name == "assign":
                other = words[lanes, first] != 0
            elif name == "migrate":
                other = words[lanes, first] != words[lanes, taken.operands[1][completed].astype(np.int64)]
            else:
                other = words[lanes, first] != self._batch.disk[lanes, taken.operands[1][completed].astype(np.int64)]
            lanes, step = self._step(taken, completed)
            self._hold(("T5",), lanes, step, _EVERYWHERE._replace(word=other.argmax(axis=1)))

    # -- what vCPUs have cached or are about to ----------------------------------------------------------------------------

    def _judge_slots(self, changes: Changes) -> None:
        tlb, caches = self._batch.tlb.columns, self._batch.caches.columns
        slots, tables = _keys(changes, "tlb", 3), _keys(changes, "caches", 3)
        anew = [changes[name][:2] for name in ("asids", "runs") if name in changes and len(changes[name][0])]
        if anew:
            lanes, vcpus = (np.concatenate(each) for each in zip(*anew, strict=True))
            for held, known in ((tlb, slots), (caches, tables)):
                who, slot = np.nonzero(held["is_live"][lanes, vcpus])
                known.append((lanes[who], vcpus[who], slot))
        if slots:
            lanes, vcpus, slot = (np.concatenate(each) for each in zip(*slots, strict=True))
            live = tlb["is_live"][lanes, vcpus, slot]
            lanes, vcpus, slot = lanes[live], vcpus[live], slot[live]
            if len(lanes):
                self._at(OF_SLOTS, lanes, vcpu=vcpus, slot=slot, frame=tlb["frame"][lanes, vcpus, slot])
            large = np.flatnonzero(tlb["level"][lanes, vcpus, slot] > 1)
            if len(large):
                lanes, vcpus, slot = (each[large, None] for each in (lanes, vcpus, slot))
                self._at(("T3", "T7"), lanes, vcpu=vcpus, slot=slot, frame=self._frames)
                first, level = (tlb[name][lanes, vcpus, slot] for name in ("frame", "level"))
                last = first + (np.uint64(1) << np.uint64(9) * (level - np.uint64(1))) - np.uint64(1)
                self._at(("T3", "T7"), lanes, vcpu=vcpus, slot=slot, frame=last)
        if tables:
            lanes, vcpus, slot = (np.concatenate(each) for each in zip(*tables, strict=True))
            live = caches["is_live"][lanes, vcpus, slot]
            lanes, vcpus, slot = lanes[live], vcpus[live], slot[live]
            if len(lanes):
                self._at(OF_CACHES, lanes, vcpu=vcpus, cache_slot=slot, frame=caches["frame"][lanes, vcpus, slot])

    def _judge_walks(self, changes: Changes) -> None:
        found = [changes[name][:2] for name in ("walks", "runs") if name in changes and len(changes[name][0])]
        if not found:
            return
        walks, (lanes, vcpus) = self._batch.walks, (np.concatenate(each) for each in zip(*found, strict=True))
        live = walks["is_live"][lanes, vcpus]
        lanes, vcpus = lanes[live], vcpus[live]
        if not len(lanes):
            return
        level = walks["leaf_level"][lanes, vcpus]
        frame = np.where(level == 0, walks["frame"][lanes, vcpus], walks["leaf_frame"][lanes, vcpus])
        self._at(OF_WALKS, lanes, vcpu=vcpus, frame=frame)
        large = np.flatnonzero(level > 1)
        if len(large):
            self._at(("T3",), lanes[large, None], vcpu=vcpus[large, None], frame=self._frames)
            last = frame[large] + (np.uint64(1) << np.uint64(9) * (level[large] - np.uint64(1))) - np.uint64(1)
            self._at(("T3",), lanes[large], vcpu=vcpus[large], frame=last)

    # -- frames ------------------------------------------------------------------------------------------------------------

    def _judge_frames(self, changes: Changes) -> None:
        batch = self._batch
        found = [key for name in ("tags", "frames", "pending") for key in _keys(changes, name, 2)]
        if found:
            lanes, frames = _unique(found)
            frame = frames.astype(np.uint64)
            self._at(OF_FRAMES, lanes, frame=frame)
            # Every slot and walk that may name it.
            where, at, vcpus = lanes[:, None, None], frame[:, None, None], self._vcpus[None, :, None]
            self._at(("T3", "T7"), where, vcpu=vcpus, slot=self._slots, frame=at)
            self._at(("T3",), where, vcpu=vcpus, cache_slot=self._cache_slots, frame=at)
            if len(self._devices):
                self._at(("T9",), lanes[:, None], frame=frame[:, None], device=self._devices)
            names = batch.p2m["is_mapped"][lanes] & (batch.p2m["frame"][lanes] == frame[:, None])
            who, row = np.nonzero(names)
            if len(who):
                self._at_mappings(lanes[who], batch.p2m.numbers[lanes[who], row])
        held = [key for name in ("words", "frames") for key in _keys(changes, name, 2)]
        if held:
            lanes, frames = (np.concatenate(each) for each in zip(*held, strict=True))
            clean = batch.frames["is_clean"][lanes, frames]
            lanes, frames = lanes[clean], frames[clean]
            if len(lanes):
                word = (batch.words[lanes, frames] != 0).argmax(axis=1)
                self._at(("T5",), lanes, frame=frames, word=word)
        if "iotlb" in changes and len(self._devices):
            lanes, frames = changes["iotlb"]
            self._at(("T9",), lanes[:, None], frame=frames[:, None], device=self._devices)

    def _at_mappings(self, lanes: Indices, numbers: Words) -> None:
        vm, guest_frame = self._batch.mapping_keys(numbers)
        self._at(OF_MAPPINGS, lanes, vm=vm, guest_frame=guest_frame)

    def _judge_books(self, changes: Changes) -> None:
        if "p2m" in changes:
            lanes, vm, guest_frame = changes["p2m"]
            self._at(OF_MAPPINGS, lanes, vm=vm.astype(np.uint64), guest_frame=guest_frame.astype(np.uint64))
        if "large" in changes:
            lanes = np.unique(changes["large"][0])
            self._at(("T7",), lanes[:, None], frame=self._frames)
        if "devices" in changes:
            lanes, device = changes["devices"]
            self._at(("T9",), lanes[:, None], frame=self._frames, device=device[:, None])
            self._at(("T13",), lanes, device=device)
        for name, part in (("swaps", "swap_slot"), ("vms", "vm"), ("vcpus", "vcpu")):
            if name in changes:
                lanes, number = changes[name]
                self._at(("T13",), lanes, **{part: number})


def _of(log: Log) -> tuple[Indices, dict[str, NDArray[Any]]]:
    """In which lanes, and the other columns."""
    return log["at"].astype(np.int64), {name: column for name, column in log.items() if name != "at"}


def _keys(changes: Changes, name: str, width: int) -> list[tuple[Indices, ...]]:
    """Lanes and keys of the rows of a part that were written, if any were."""
    return [changes[name][:width]] if name in changes and len(changes[name][0]) else []


def _unique(found: list[tuple[Indices, ...]]) -> tuple[Indices, Indices]:
    """Pairs of a lane and a frame, each once."""
    lanes, frames = (np.concatenate(each) for each in zip(*found, strict=True))
    numbers = np.unique(lanes << 32 | frames)
    return numbers >> 32, numbers & (1 << 32) - 1
