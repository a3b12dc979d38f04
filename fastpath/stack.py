"""All four systems in many machines: the fast twin of `model.stack` and `model.stack_system`. The rules: spec/stack.md.

Each layer is its own fast path, with what the others owe it where they meet; below them is one memory (`stack_memory`).
Every lane is a machine of its own. Arguments called `lanes`, and what belongs to them, are arrays of one length, one
element for each lane that takes part; no lane is named twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath import guests, vmm
from capvisor.fastpath import object_operations as _object_kernels  # they declare the kernels
from capvisor.fastpath import vmm_operations as _vmm_kernels
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.stack_layers import HostedSystem, HostedVmm
from capvisor.fastpath.stack_memory import (
    ROW_WORDS,
    PagedMemory,
    packed,
    unpacked,
)
from capvisor.fastpath.vmm import window_numbers
from capvisor.fastpath.walks import HALTED, Runners
from capvisor.fastpath.workspace import Causes, Flags, Words
from capvisor.spec import tpt as tpt_spec
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.paging import FRAME_SHIFT, FREE, HOST, WORDS_PER_FRAME, Access
from capvisor.spec.stack import (
    GRANULES_PER_FRAME,
    TAGS_PER_WORD,
    Code,
    LayerName,
    Via,
    tag_table_frames,
)
from capvisor.spec.stack_policy import INTENDED, StackPolicy
from capvisor.spec.tag_policy import INTENDED as TAGS_INTENDED
from capvisor.spec.tag_policy import TagPolicy
from capvisor.spec.tpt import SWAP_SLOTS
from capvisor.spec.vmm import LEAST_REGION, WINDOW_SHIFT, ChannelState, Register, Space, Stage
from capvisor.spec.vmm_policy import INTENDED as VMM_INTENDED
from capvisor.spec.vmm_policy import VmmPolicy

assert _object_kernels and _vmm_kernels

CVM, ORC = LayerName.CVM.value, LayerName.ORC.value

OF_FRAME = 1 << 63
"""With this bit, a content is a frame's that holds nothing of a VM's; 0 is none."""

_NO_PLACE = -1
_WORD = np.uint64


class Ended(NamedTuple):
    """How a step ended in each of some lanes: why layers below didn't let it, a `Code`; of a fault, its kind, error code and
    frame; and where neither is so, what the layer itself says: its code or the cause of a trap, and what was read.
    """

    code: Causes
    fault: Causes
    error: Words
    frame: Words
    inner: Causes
    value: Words


def _ended(count: int) -> Ended:
    small, words = (np.zeros(count, np.uint8) for _ in range(3)), (np.zeros(count, _WORD) for _ in range(3))
    code, fault, inner = small
    error, frame, value = words
    return Ended(code, fault, error, frame, inner, value)


class Pages:
    """Where monitors' memory is: by lane and page the content, and the frame that it was found in last."""

    def __init__(self, monitor: Any, vm: int) -> None:
        self.monitor, self.vm = monitor, vm
        self.memory: PagedMemory = monitor.memory
        lanes, count = self.memory.absent.shape
        self.count = count
        self.bound = np.zeros((lanes, count), _WORD)
        self.location = np.full((lanes, count), _NO_PLACE)

    def address(self, page: int) -> np.uint64:
        """Where a page begins."""
        return _WORD(self.memory.base + (page << FRAME_SHIFT))

    def span(self, page: int) -> slice:
        """The granules of a page."""
        return slice(page * GRANULES_PER_FRAME, min((page + 1) * GRANULES_PER_FRAME, self.memory.granules))

    def load(self, page: int, lanes: Indices, rows: Words) -> None:
        """Let a page of some lanes hold what rows of frames do."""
        span = self.span(page)
        count = span.stop - span.start
        self.memory.halves[lanes, span] = rows[:, :WORDS_PER_FRAME].reshape(len(lanes), GRANULES_PER_FRAME, 2)[:, :count]
        self.memory.tags[lanes, span] = unpacked(rows[:, WORDS_PER_FRAME:])[:, :count]


class BatchStack:
    """`lanes` machines, each with so many frames, vCPUs for VMs and devices, and a region [first, behind) of the VMM's.

    Monitors come by `host`. Raises ValueError where the region doesn't hold the tables of tags that are to be in it.
    """

    def __init__(
        self,
        lanes: int,
        frames: int,
        region: tuple[int, int],
        vcpus: int = 2,
        devices: int = 0,
        policy: StackPolicy = INTENDED,
        vmm_policy: VmmPolicy = VMM_INTENDED,
        tag_policy: TagPolicy = TAGS_INTENDED,
    ) -> None:
        needed = sum(tag_table_frames(frames))
        first_table = (region[1] if policy.tables_in_region else region[0]) - needed
        if first_table < (region[0] + LEAST_REGION if policy.tables_in_region else 0):
            raise ValueError(f"{needed} frames are the tables of tags: the last of the region, or those before it")
        self.lanes, self.frame_count, self.policy = lanes, frames, policy
        self.via = Via.CPU
        self.tpt = HostedSystem(self, first_table, vcpus, devices + 1, tag_policy)
        self.vmm = HostedVmm(self, region, vcpus + 1, devices, vmm_policy)
        # In the host's books, frames that it never had aren't clean.
        self.tpt.frames["is_clean"][:, region[0] : region[1]] = False
        self.pages: dict[str, Pages] = {}
        self.contents = np.zeros((lanes, frames), _WORD)
        self.put_away = np.zeros((lanes, SWAP_SLOTS), _WORD)
        self.content_count = np.zeros(lanes, _WORD)
        self.started = np.zeros((lanes, devices + 1), _WORD)
        self.halted = np.zeros(lanes, np.bool_)
        """Lanes in which a write of the step under way was kept from being made."""

    def host(self, layer: str, monitor: Any, vm: int) -> None:
        """Let monitors' memory be that of VMs."""
        self.pages[layer] = Pages(monitor, vm)

    # -- who is who --------------------------------------------------------------------------------------------------------

    def content_of(self, lanes: Indices, frame: NDArray[Any]) -> Words:
        """What frames hold."""
        held = self.contents[lanes, frame]
        found: Words = np.where(held == 0, frame.astype(_WORD) | _WORD(OF_FRAME), held)
        return found

    def is_kept(self, lanes: Indices, frame: Indices) -> Flags:
        """Whether frames hold memory of shared objects."""
        if ORC not in self.pages:
            return np.zeros(len(lanes), np.bool_)
        found: Flags = (self.pages[ORC].bound[lanes] == self.content_of(lanes, frame)[:, None]).any(axis=1)
        return found

    def is_anothers(self, via: Via, lanes: Indices, device: Indices | None, frame: Indices) -> Flags:
        """Whether the look-up of frames' owners refuses accesses to them."""
        policy, found = self.policy, self.tpt.looked_up(lanes, frame.astype(_WORD))
        not_hosts: Flags = found != HOST
        if via is Via.CPU:
            return not_hosts & policy.host_claims_first
        if via is Via.EXTENSION:
            return not_hosts & policy.extensions_check_tags
        assert device is not None
        vm = self.tpt.devices[lanes, device]
        if via is Via.MEDIATOR:
            refused: Flags = (found != np.where(vm == FREE, _WORD(HOST), vm)) & policy.mediator_checks_tags
            return refused
        others = ~self.tpt.iotlb[lanes, device, frame] & (found != vm) & self.tpt.policy.check_dma
        return np.where(vm == FREE, not_hosts & policy.host_claims_first, others)

    def running(self, lanes: Indices, vcpu: Words) -> Words:
        """The VMs that vCPUs run for, FREE for the host."""
        count = self.tpt.vcpu_count
        at = np.minimum(vcpu, _WORD(count - 1)).astype(np.int64)
        return np.where(vcpu < _WORD(count), self.tpt.vcpus["vm"][lanes, at], _WORD(FREE))

    def device_at(self, lanes: Indices, space: Words, number: Words) -> Indices:
        """The devices whose registers those are, as they or their mediators are reached; 0: none."""
        window = number >> _WORD(WINDOW_SHIFT)
        there = (space < _WORD(len(Space))) & (window < _WORD(1 << vmm.SPACE_SHIFT))
        spaces, windows = (np.where(there, each, _WORD(0)) for each in (space, window))
        at = self.vmm.decoding.find(lanes, window_numbers(spaces, windows))
        decoded, hooked = (self.vmm.decoding[name][lanes, at].astype(np.int64) for name in ("decoded", "hooked"))
        return np.where(there, np.where(hooked != 0, hooked, decoded), 0)

    def is_busy(self, lanes: Indices, device: Words) -> Flags:
        """Whether commands of devices are under way, there or at their mediators."""
        there = device <= _WORD(self.vmm.device_count)
        place = lanes, np.where(there, device, _WORD(0)).astype(np.int64)
        state = self.vmm.channels["state"][place]
        held = (state >= ChannelState.PIO_IN) & (state <= ChannelState.COPYING_IN) & self.vmm.is_mediated(*place)
        found: Flags = there & ((self.vmm.devices["opcode"][place] != 0) | held)
        return found

    def is_stopped(self, lanes: Indices) -> Flags:
        """Whether nothing may run: the VMM has stopped the machine, or the guest."""
        stage = self.vmm.vmm["stage"][lanes]
        found: Flags = self.vmm.vmm["is_stopped"][lanes] | (stage == Stage.HANDED_OVER)
        if self.vmm.policy.stop_before_last_round:
            found = found | (stage == Stage.STOPPED)
        return found

    def note_written(self, lanes: Indices, frame: Indices) -> None:
        """What is written other than by the VMM's machine is to be sent again."""
        if self.policy.track_all_writes:
            self.vmm.clean[lanes, frame] = False

    # -- the VMM -----------------------------------------------------------------------------------------------------------

    def step_vmm(self, lanes: Indices, name: str, operands: Sequence[Words]) -> Ended:
        """An operation of the VMM's machine."""
        ended, row = _ended(len(lanes)), vmm_spec.OPERATIONS[name]
        if row.actor is vmm_spec.Actor.GUEST:
            running = self.running(lanes, operands[0])
            if name in ("input", "output"):
                device = self.device_at(lanes, operands[1], operands[2])
                others = (device != 0) & (self.tpt.devices[lanes, device] != running)
                ended.code[others & self.policy.registers_by_owner] = Code.NOT_OWNER
            else:
                ended.code[running != FREE] = Code.NOT_HOST
        going = np.flatnonzero(ended.code == 0)
        own = [each[going] for each in operands]
        results = self.vmm.step(lanes[going], name, own)
        ended.inner[going], ended.value[going] = results
        if name == "output":
            self._note_started(lanes[going], own, results.code == vmm_spec.Code.OK)
        self._refresh(False)
        return ended

    def _note_started(self, lanes: Indices, operands: Sequence[Words], completed: Flags) -> None:
        """Note for whom bus masters are started."""
        vcpu, space, number, value = operands
        device = self.device_at(lanes, space, number)
        starts = completed & (device != 0) & (value & _WORD(vmm_spec.START_BIT) != 0)
        starts &= number & _WORD((1 << WINDOW_SHIFT) - 1) == Register.START
        self.started[lanes[starts], device[starts]] = self.running(lanes[starts], vcpu[starts])

    # -- translation pass-through ------------------------------------------------------------------------------------------

    def step_tpt(self, lanes: Indices, name: str, operands: Sequence[Words]) -> Ended:
        """An operation of translation pass-through."""
        ended, row = _ended(len(lanes)), tpt_spec.OPERATIONS[name]
        self.via = Via.DEVICE if row.actor is tpt_spec.Actor.DEVICE else Via.CPU
        kinds = [kind for _name, kind in row.operands]
        named = [each for kind, each in zip(kinds, operands, strict=True) if kind is tpt_spec.OperandKind.FRAME]
        is_host = row.actor is tpt_spec.Actor.HOST
        if self.policy.stop_reaches_all:
            ended.code[self.is_stopped(lanes)] = Code.STOPPED
        if is_host and self.policy.region_untagged:
            for frame in named:
                ended.code[(ended.code == 0) & self.vmm.in_region(frame)] = Code.REGION
        if name == "attach" and self.policy.attach_idle:
            ended.code[(ended.code == 0) & self.is_busy(lanes, operands[0])] = Code.BUSY
        going = np.flatnonzero(ended.code == 0)
        self.halted[:] = False
        own = [each[going] for each in operands]
        results = self.tpt.step(lanes[going], name, own)
        halted = self.halted[lanes[going]] | (results.fault == HALTED)
        ended.code[going[halted]] = Code.KEPT
        kept = going[~halted]
        pairs: Any = zip((ended.inner, ended.fault, ended.error, ended.frame, ended.value), results, strict=True)
        for mine, theirs in pairs:
            mine[kept] = theirs[~halted]
        if is_host:
            done = np.flatnonzero(~halted & (results.code == 0) & (results.fault == 0))
            self._follow(lanes[going[done]], name, [each[done] for each in own])
        self._refresh(is_host)
        return ended

    def _follow(self, lanes: Indices, name: str, operands: list[Words]) -> None:
        """Note where contents have gone with operations of the host's, and what these have written."""
        contents, away = self.contents, self.put_away
        one = operands[0].astype(np.int64)
        if name == "assign":
            self.content_count[lanes] += _WORD(1)
            contents[lanes, one] = self.content_count[lanes]
        elif name in ("scrub", "claim"):
            contents[lanes, one] = 0
        elif name == "swap_out":
            self._move(lanes, contents, one, away, operands[1].astype(np.int64))
        elif name in ("migrate", "swap_in"):
            other = operands[1].astype(np.int64)
            source, target = ((contents, one), other) if name == "migrate" else ((away, other), one)
            contents[lanes, target] = 0
            self._move(lanes, *source, contents, target)
            self.note_written(lanes, target)
        if name == "scrub":
            self.note_written(lanes, one)

    @staticmethod
    def _move(lanes: Indices, source: Words, from_place: Indices, target: Words, to_place: Indices) -> None:
        held = source[lanes, from_place]
        there = np.flatnonzero(held)
        lanes, from_place, to_place = lanes[there], from_place[there], to_place[there]
        source[lanes, from_place] = 0
        target[lanes, to_place] = held[there]

    # -- monitors and their guests -----------------------------------------------------------------------------------------

    def instruction(self, layer: str, harts: Indices, name: str, operands: tuple[Any, ...]) -> Ended:
        """One instruction of a thread in each of some lanes."""
        pages, lanes = self.pages[layer], harts % self.lanes
        ended, going, faults = self._enter(pages, lanes)
        own = tuple(each[going] if isinstance(each, np.ndarray) else each for each in operands)
        memory, machine = pages.memory, pages.monitor.harts
        absent = memory.absent[lanes[going]].any(axis=1)
        saved = _Saved(machine, memory, harts[going[absent]], lanes[going[absent]]) if absent.any() else None
        causes = pages.monitor.step(harts[going], name, own)
        ended.inner[going] = causes
        if saved is not None:
            # What is refused accesses nothing.
            memory.met[lanes[going[causes != 0]]] = 0
            saved.put_back(memory.met[saved.lanes] != 0)
        self._leave(pages, lanes, going, ended, faults, None)
        return ended

    def leave(self, harts: Indices) -> Ended:
        """The second part of a call of cVMs'."""
        return self.swept(CVM, harts % self.lanes, lambda going: self.pages[CVM].monitor.leave(harts[going]))

    def operation(self, lanes: Indices, harts: Indices | None, name: str, operands: Sequence[Words]) -> Ended:
        """An operation of the base of shared objects. Raises ValueError where its memory isn't there, and goes on."""

        def take(going: Indices) -> Causes:
            if self.pages[ORC].memory.absent[lanes[going]].any():
                raise ValueError(f"{name}: memory of shared objects isn't there")
            own = None if harts is None else harts[going]
            codes: Causes = self.pages[ORC].monitor.perform(lanes[going], own, name, [each[going] for each in operands])
            return codes

        return self.swept(ORC, lanes, take)

    def swept(self, layer: str, lanes: Indices, take: Callable[[Indices], Causes]) -> Ended:
        """Something that monitors do, in those lanes, counted from 0, that it is given to: it may change all of memory."""
        pages = self.pages[layer]
        ended, going, faults = self._enter(pages, lanes)
        mine = lanes[going]
        before = pages.memory.tags[mine], pages.memory.halves[mine]
        ended.inner[going] = take(going)
        self._leave(pages, lanes, going, ended, faults, before)
        return ended

    def _enter(self, pages: Pages, lanes: Indices) -> tuple[Ended, Indices, list[Ended]]:
        """Begin steps of monitors: how those ended that don't begin, who goes on, and what is wrong with each page."""
        ended, policy = _ended(len(lanes)), self.policy
        self.via, self.halted[:] = Via.CPU, False
        if policy.stop_reaches_all:
            ended.code[self.is_stopped(lanes)] = Code.STOPPED
        runs = self.tpt.vcpus["vm"][lanes] == pages.vm
        ended.code[(ended.code == 0) & ~runs.any(axis=1)] = Code.NO_VCPU
        vcpus = runs.argmax(axis=1)
        found, faults = np.full((len(lanes), pages.count), _NO_PLACE), []
        for page in range(pages.count):
            going = np.flatnonzero((ended.code == 0) & (ended.fault == 0))
            who, fault = Runners(self.tpt, lanes[going], vcpus[going]), _ended(len(lanes))
            address = who.cut(np.full(len(going), pages.address(page)))
            frame = guests.translated(who, address, Access.WRITE, np.zeros(len(going), np.bool_))
            ended.code[going[who.fault == HALTED]] = Code.KEPT
            there = who.fault == 0
            found[going[there], page] = frame[there].astype(np.int64)
            bad = np.flatnonzero(~there & (who.fault != HALTED))
            for into in (ended, fault) if policy.resident_first else (fault,):
                into.fault[going[bad]], into.error[going[bad]] = who.fault[bad], who.error[bad]
                into.frame[going[bad]] = who.frame[bad]
            faults.append(fault)
        self._bind(pages, lanes, found, ended)
        going = np.flatnonzero((ended.code == 0) & (ended.fault == 0))
        mine = lanes[going]
        pages.memory.met[:] = 0
        pages.memory.absent[mine] = found[going] == _NO_PLACE
        pages.memory.granules_written.clear()
        for page in range(pages.count):
            at = found[going, page]
            other = np.flatnonzero((at != _NO_PLACE) & (pages.location[mine, page] != at))
            if len(other):
                self._load(pages, page, mine[other], at[other])
        return ended, going, faults

    def _load(self, pages: Pages, page: int, lanes: Indices, frames: Indices) -> None:
        pages.load(page, lanes, self.tpt.words[lanes, frames])
        pages.location[lanes, page] = frames

    def _bind(self, pages: Pages, lanes: Indices, found: Indices, ended: Ended) -> None:
        """Whether pages are what they were; those that are used first are so from then on."""
        there = found != _NO_PLACE
        content = np.where(there, self.content_of(lanes[:, None], np.maximum(found, 0)), _WORD(0))
        bound = pages.bound[lanes]
        going = (ended.code == 0) & (ended.fault == 0)
        if self.policy.pages_bound:
            fresh = bound == 0
            taken = np.concatenate([each.bound[lanes] for each in self.pages.values()], axis=1)
            for page in range(pages.count):
                mine = content[:, page]
                first = fresh[:, page] & (mine < _WORD(OF_FRAME)) & ~(taken == mine[:, None]).any(axis=1)
                first &= ((content == mine[:, None]) & fresh).sum(axis=1) == 1
                moved = there[:, page] & (mine != bound[:, page]) & ~first
                ended.code[moved & going] = Code.MOVED
            going &= ended.code == 0
        pages.bound[lanes[going]] = np.where(there, content, bound)[going]

    def _leave(
        self,
        pages: Pages,
        lanes: Indices,
        going: Indices,
        ended: Ended,
        faults: list[Ended],
        before: tuple[Flags, Words] | None,
    ) -> None:
        """End steps of monitors: what they wrote goes to where their pages are."""
        memory, mine = pages.memory, lanes[going]
        for page, fault in enumerate(faults):
            met = going[memory.met[mine] == page + 1]
            ended.inner[met] = 0
            for name in ("fault", "error", "frame"):
                getattr(ended, name)[met] = getattr(fault, name)[met]
        if before is not None:
            self._write_changed(pages, mine, *before)
        for everywhere, granules in memory.granules_written:
            there = ~memory.absent[everywhere, granules // GRANULES_PER_FRAME]
            at, granule = everywhere[there], granules[there]
            frame, number = pages.location[at, granule // GRANULES_PER_FRAME], granule % GRANULES_PER_FRAME
            self.note_written(at, frame)
            if before is None and len(at):
                self._write_granules(pages, at, granule, frame, number)
        memory.absent[mine] = False
        self._refresh(False)

    def _write_granules(self, pages: Pages, lanes: Indices, granule: Indices, frame: Indices, number: Indices) -> None:
        """Write one granule in each of some lanes to its frame."""
        rows, memory = self.tpt.words, pages.memory
        for half in (0, 1):
            rows[lanes, frame, 2 * number + half] = memory.halves[lanes, granule, half]
        at, bit = WORDS_PER_FRAME + number // TAGS_PER_WORD, _WORD(1) << (number % TAGS_PER_WORD).astype(_WORD)
        held = rows[lanes, frame, at]
        rows[lanes, frame, at] = np.where(memory.tags[lanes, granule], held | bit, held & ~bit)

    def _write_changed(self, pages: Pages, lanes: Indices, tags: Flags, halves: Words) -> None:
        """Write what has changed to frames; what isn't there stays as it was."""
        rows, memory = self.tpt.words, pages.memory
        for page in range(pages.count):
            span = pages.span(page)
            absent = lanes[memory.absent[lanes, page]]
            if len(absent):
                which = memory.absent[lanes, page]
                memory.tags[absent, span], memory.halves[absent, span] = tags[which, span], halves[which, span]
            other = memory.tags[lanes, span] != tags[:, span]
            changed = other | (memory.halves[lanes, span] != halves[:, span]).any(axis=2)
            who, number = np.nonzero(changed)
            if not len(who):
                continue
            at, frame = lanes[who], pages.location[lanes[who], page]
            for half in (0, 1):
                rows[at, frame, 2 * number + half] = memory.halves[at, number + span.start, half]
            self.note_written(at, frame)
            some = np.flatnonzero(other.any(axis=1))
            if len(some):
                at, frame = lanes[some], pages.location[lanes[some], page]
                now = _whole(memory.tags[at, span])
                was = _whole(tags[some, span])
                index = WORDS_PER_FRAME + np.arange(ROW_WORDS - WORDS_PER_FRAME)
                place = at[:, None], frame[:, None], index[None]
                rows[place] = (rows[place] | now & ~was) & ~(was & ~now)

    def _refresh(self, has_moved: bool) -> None:
        """Bring what monitors' pages hold up to date; a page whose content is put away or lost keeps what it held."""
        rows = self.tpt.rows
        if not (has_moved or rows.written.any()):
            return
        everyone = np.arange(self.lanes)
        for pages in self.pages.values():
            for page in range(pages.count):
                content = pages.bound[:, page]
                at = self.contents == content[:, None]
                frame, here = at.argmax(axis=1), at.any(axis=1) & (content != 0)
                whole = content >= _WORD(OF_FRAME)
                frame = np.where(whole, (content & _WORD(OF_FRAME - 1)).astype(np.int64), frame)
                here |= whole
                stale = here & (rows.written[everyone, frame] | (pages.location[:, page] != frame))
                lanes = np.flatnonzero(stale)
                if len(lanes):
                    self._load(pages, page, lanes, frame[lanes])
        rows.written.fill(False)


def _whole(flags: Flags) -> Words:
    """The tags of whole frames, of which only the first granules may be a monitor's."""
    missing = GRANULES_PER_FRAME - flags.shape[1]
    return packed(np.pad(flags, ((0, 0), (0, missing))) if missing else flags)


class _Saved:
    """What an instruction may have changed in lanes where a page isn't there."""

    def __init__(self, machine: Any, memory: PagedMemory, harts: Indices, lanes: Indices) -> None:
        self.machine, self.memory, self.harts, self.lanes = machine, memory, harts, lanes
        self._columns = [getattr(machine, name) for name in ("tags", "metas", "addresses", "pc", "is_reserved")]
        self._columns += list(machine.numbers.values())
        self._kept = [column[..., harts] for column in self._columns]
        self._memory = memory.tags[lanes], memory.halves[lanes]

    def put_back(self, which: Flags) -> None:
        """Let some be as they were."""
        harts, lanes = self.harts[which], self.lanes[which]
        for column, kept in zip(self._columns, self._kept, strict=True):
            column[..., harts] = kept[..., which]
        self.memory.tags[lanes], self.memory.halves[lanes] = (each[which] for each in self._memory)
        if len(harts):
            self.machine.pcc_changed(harts)
