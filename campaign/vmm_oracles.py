"""The invariants of `spec.vmm_invariants` on a step of many machines with a para-pass-through VMM at once.

What a predicate looks at is here an array, one element for each place of one kind: its truth is an array too. What is said
of the step itself is evaluated for all that it touched and moved, and by how it ended; what is said of the state is looked
at again at the places of which a row has changed, as `PLACES` says. `tests/campaign/test_vmm_oracles.py` holds all that
against `dsl.vmm_watch`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign.vmm_mirror import Changes, Mirror
from capvisor.campaign.vmm_views import Earlier, LaneBefore, LaneMove, LaneTouch, LaneVmm
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.workspace import Causes, Flags, Words
from capvisor.spec import vmm_invariants as said
from capvisor.spec import vmm_refusals, vmm_steps
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    BLOCKS_PER_FRAME,
    FIRST_SHADOW_FRAME,
    KEY_FRAME,
    LBA_BITS,
    LEVEL_FRAMES,
    OPERATIONS,
    SHADOW_BLOCKS,
    ChannelState,
    Code,
    Phase,
    Space,
)
from capvisor.spec.vmm_invariants import VMM_INVARIANTS, Predicate
from capvisor.spec.vmm_words import Place, Step

Log = dict[str, Words]

ACTORS = ("cpu", "device", "mediator", "extension")
"""Who touches memory, by number."""

_NAMES = tuple(OPERATIONS)
_NUMBERS = {name: number for number, name in enumerate(_NAMES)}
_EVERYWHERE = Place()
_LBA_MASK = np.uint64((1 << LBA_BITS) - 1)
_PAGE_FRAMES = np.array(LEVEL_FRAMES, np.uint64)
_BLOCKS = np.arange(BLOCKS_PER_FRAME, dtype=np.uint64)


class Taken(NamedTuple):
    """A step in some lanes: which operations, how they ended, and what was noted of them, by columns."""

    which: Indices
    lanes: Indices
    operands: tuple[Words, ...]
    code: Causes
    value: Words
    touches: Log
    """`actor`, `number`, `address`, `is_write`; `at` says in which of the lanes, counted from 0."""
    moves: Log
    """`device`, `lba`, `is_write`, `is_made`, and `at`; none but those that were made."""


Places = Iterator[tuple[Indices, Place]]
"""Lanes, and what is looked at there: arrays that are broadcast to one shape."""


class Oracles:
    """Holds steps of machines against all invariants."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._batch = mirror, mirror.batch
        self.evaluated = dict.fromkeys(VMM_INVARIANTS, 0)
        self.concerned = dict.fromkeys(VMM_INVARIANTS, 0)
        """By invariant: at how many places it was evaluated, and at how many it had something to say."""
        self._violations: dict[str, list[Indices]] = {}
        self._earlier = Earlier(mirror.batch)
        self._frames = np.arange(self._batch.frame_count, dtype=np.uint64)

    def judge(self, taken: Taken, changes: Changes) -> list[tuple[str, Indices]]:
        """The invariants that a step violates, in the order of their table, and the lanes."""
        self._violations = {}
        self._earlier.note(changes, self._mirror.before)
        self._judge_touches(taken)
        self._judge_moves(taken)
        self._judge_ends(taken)
        self._judge_events(taken, changes)
        self._earlier.go_on()
        for find, parts in PLACES:
            for lanes, place in find(self, changes):
                if lanes.size:
                    step = Step(LaneVmm(self._batch, lanes), "")
                    for name, part in parts:
                        self._hold(name, part(step, place), lanes)
        found = []
        for name in VMM_INVARIANTS:
            if name in self._violations:
                found.append((name, np.unique(np.concatenate(self._violations[name]))))
        return found

    def _hold(self, name: str, holds: Any, lanes: Indices) -> None:
        """Note how a predicate was evaluated in some lanes."""
        count = lanes.size if np.ndim(holds) == 0 else holds.size
        self.evaluated[name] += count
        if holds is True:
            return
        self.concerned[name] += count
        if not np.all(holds):
            shape = np.broadcast_shapes(lanes.shape, np.shape(holds))
            fallen = np.broadcast_to(lanes, shape)[~np.broadcast_to(np.asarray(holds, np.bool_), shape)]
            self._violations.setdefault(name, []).append(fallen)

    def _hold_step(self, names: tuple[str, ...], taken: Taken, which: Indices, **parts: Any) -> None:
        """What some invariants say of steps, those of some lanes, counted from 0."""
        lanes = taken.lanes[which]
        step = Step(LaneVmm(self._batch, lanes), **parts)
        for name in names:
            of_step = VMM_INVARIANTS[name].of_step
            assert of_step is not None
            for place in self._windows(lanes) if name == "P8" else (_EVERYWHERE,):
                self._hold(name, of_step(step, place), lanes)

    def _windows(self, lanes: Indices) -> Iterator[Place]:
        """Where the registers of each device are in memory."""
        for device in range(1, self._batch.device_count + 1):
            yield Place(window=self._batch.windows[lanes, device, Space.MEMORY])

    # -- the step itself ---------------------------------------------------------------------------------------------------

    def _judge_touches(self, taken: Taken) -> None:
        touches = taken.touches
        if not touches:
            return
        at, kind = touches["at"].astype(np.int64), touches["actor"] << np.uint64(1) | touches["is_write"]
        refused = taken.code[at] != Code.OK
        for number in np.unique(kind).tolist():
            mine = kind == number
            who = np.flatnonzero(mine)
            touch = LaneTouch(ACTORS[number >> 1], touches["number"][who], touches["address"][who], bool(number & 1))
            self._hold_step(OF_TOUCHES[touch.actor], taken, at[who], name="", touches=(touch,))
            late = np.flatnonzero(mine & refused)
            if len(late):
                touch = LaneTouch(touch.actor, touches["number"][late], touches["address"][late], touch.is_write)
                # Here no hooks are added, so that what extensions touch they touch by their own operations.
                step = Step(None, "extension_write", code=Code.PANIC, touches=(touch,))
                holds = said.refused_is_nothing(step, _EVERYWHERE)
                self._hold("P11", np.full(len(late), holds), taken.lanes[at[late]])
        self._judge_mediated(taken, at)

    def _judge_mediated(self, taken: Taken, at: Indices) -> None:
        """What mediators have copied from and to the guest."""
        touches = taken.touches
        mediated = (taken.which[at] == _NUMBERS["mediate"]) & (taken.code[at] == Code.OK)
        writes = touches["is_write"] != 0
        out = np.setdiff1d(at[mediated], at[mediated & writes])
        last = _last_touches(taken)
        for name, who, is_write in (("P5", at[mediated & writes], True), ("P3", out, False)):
            if len(who):
                operands = (taken.operands[0][who],)
                touch = LaneTouch("mediator", operands[0], last[who], is_write)
                self._hold_step((name,), taken, who, name="mediate", operands=operands, touches=(touch,))

    def _judge_moves(self, taken: Taken) -> None:
        moves = taken.moves
        if not moves:
            return
        at = moves["at"].astype(np.int64)
        move = LaneMove(moves["device"], moves["lba"], None, np.ones(len(at), np.bool_))
        self._hold_step(("P12", "P14"), taken, at, name="", moves=(move,))
        self._judge_written(taken, at)
        late = np.flatnonzero(taken.code[at] != Code.OK)
        if len(late):
            move = LaneMove(move.device[late], move.lba[late], None, move.is_made[late])
            self._hold_step(("P11",), taken, at[late], name="", code=Code.PANIC, moves=(move,))

    def _judge_written(self, taken: Taken, at: Indices) -> None:
        """What sectors that are written mean to the guest, by the operation."""
        moves, last = taken.moves, _last_touches(taken)
        for name in ("output", "transfer"):
            mine = np.flatnonzero((taken.which[at] == _NUMBERS[name]) & (moves["is_write"] != 0))
            if len(mine):
                who = at[mine]
                move = LaneMove(moves["device"][mine], moves["lba"][mine], True, np.ones(len(who), np.bool_))
                operands = tuple(each[who] for each in taken.operands[: len(OPERATIONS[name].operands)])
                touch = LaneTouch("device", move.device, last[who], False)
                self._hold_step(("P3",), taken, who, name=name, operands=operands, touches=(touch,), moves=(move,))

    def _judge_ends(self, taken: Taken) -> None:
        """What is said of operations by their names, and how they ended."""
        for name in ("input", "output"):
            who = np.flatnonzero(taken.which == _NUMBERS[name])
            for code in np.unique(taken.code[who]).tolist():
                self._judge_accesses(taken, name, Code(code), who[taken.code[who] == code])
        left = np.flatnonzero((taken.which == _NUMBERS["leave"]) & (taken.code == Code.OK))
        if len(left):
            self._hold_step(("P12",), taken, left, name="leave", operands=(taken.operands[0][left],))

    def _judge_accesses(self, taken: Taken, name: str, code: Code, who: Indices) -> None:
        """What is said of accesses to registers that ended alike."""
        operands = tuple(each[who] for each in taken.operands[: len(OPERATIONS[name].operands)])
        if code is not Code.OK:
            return
        moved = np.zeros(len(taken.lanes), np.bool_)
        if name == "input" and taken.moves:
            moved[taken.moves["at"].astype(np.int64)] = True
            read = np.flatnonzero(moved[taken.moves["at"].astype(np.int64)] & (taken.moves["is_write"] == 0))
            at = taken.moves["at"].astype(np.int64)[read]
            mine = np.isin(at, who)
            at, read = at[mine], read[mine]
            move = LaneMove(taken.moves["device"][read], taken.moves["lba"][read], None, np.ones(len(read), np.bool_))
            self._hold_step(("P5",), taken, at, name=name, value=taken.value[at], moves=(move,))
        others = ~moved[who]
        own = tuple(each[others] for each in operands)
        self._hold_step(("P5",), taken, who[others], name=name, operands=own, value=taken.value[who[others]])

    def _judge_events(self, taken: Taken, changes: Changes) -> None:
        """What is said of steps by themselves, and of what they have changed: by operations that ended alike."""
        kind = taken.which << _CODE_BITS | taken.code
        changed = [(*each, np.searchsorted(taken.lanes, each[2])) for each in self._changed(taken, changes)]
        for number in np.unique(kind).tolist():
            mine, name, code = kind == number, _NAMES[number >> _CODE_BITS], Code(number & (1 << _CODE_BITS) - 1)
            who = np.flatnonzero(mine)
            step = self._step_of(taken, who, name, code)
            if code is Code.RANGE:
                # Of what isn't there nothing can be looked up.
                lost = np.broadcast_to(vmm_refusals.names_nothing(step), who.shape)
                self._hold("P19", lost[lost], taken.lanes[who[lost]])
                who = who[~lost]
                step = self._step_of(taken, who, name, code)
            if len(who):
                for invariant, row in VMM_INVARIANTS.items():
                    if row.of_event is not None:
                        self._hold(invariant, row.of_event(step), taken.lanes[who])
            for invariant, part, lanes, place, at in changed:
                here = mine[at]
                if here.any():
                    fields = {field: numbers[here] for field, numbers in place.items()}
                    step = self._step_of(taken, at[here], name, code)
                    self._hold(invariant, part(step, Place(**fields)), lanes[here])

    def _changed(self, taken: Taken, changes: Changes) -> Iterator[tuple[str, Predicate, Indices, dict[str, Any]]]:
        """What is said of a step at the places that it has changed."""
        for names, fields, parts in CHANGED:
            found = [changes[name] for name in names if name in changes]
            if "meant" in names and taken.moves:
                at, device, lba = (taken.moves[each].astype(np.int64) for each in ("at", "device", "lba"))
                found.append((taken.lanes[at], device, lba))
            if found:
                lanes, *numbers = (np.concatenate(each) for each in zip(*found, strict=True))
                place = {field: number.astype(np.uint64) for field, number in zip(fields, numbers, strict=False)}
                yield from ((invariant, part, lanes, place) for invariant, part in parts)

    def _step_of(self, taken: Taken, at: Indices, name: str, code: Code) -> Step:
        """A step as it was in some lanes, counted from 0, all of the same operation that ended alike."""
        lanes = taken.lanes[at]
        operands = tuple(each[at] for each in taken.operands[: len(OPERATIONS[name].operands)])
        notes = tuple(_touched(taken, at)), tuple(_moved(taken, at))
        before = LaneBefore(self._batch, lanes, self._earlier)
        return Step(LaneVmm(self._batch, lanes), name, operands, code, taken.value[at], *notes, before)

    # -- places of which a row has changed ---------------------------------------------------------------------------------

    def _devices(self, changes: Changes) -> tuple[Indices, Indices]:
        """Lanes and devices of which something has changed, each pair once."""
        found = [changes[name][:2] for name in ("devices", "channels", "deployments", "plain", "media") if name in changes]
        if "memory" in changes:
            lanes, address = changes["memory"]
            device = ((address >> BLOCK_SHIFT) - self._batch.region_first - FIRST_SHADOW_FRAME >> 1) + 1
            shadow = (device >= 1) & (device <= self._batch.device_count)
            found.append((lanes[shadow], device[shadow]))
        if "vmm" in changes:
            lanes = changes["vmm"][0]
            found += [(lanes, np.full(len(lanes), each)) for each in range(1, self._batch.device_count + 1)]
        if not found:
            return _NONE, _NONE
        lanes, device = (np.concatenate(each) for each in zip(*found, strict=True))
        pairs = np.unique(lanes << 8 | device)
        return pairs >> 8, pairs & 0xFF

    def of_mappings(self, changes: Changes) -> Places:
        """The frames at the ends of pages that are newly mapped, and at the ends of the region."""
        if "mappings" not in changes:
            return
        lanes, vcpu, slot = changes["mappings"]
        rows, batch = self._batch.mappings, self._batch
        live = rows["is_live"][lanes, vcpu, slot]
        lanes, vcpu, slot = lanes[live], vcpu[live], slot[live]
        first = rows["frame"][lanes, vcpu, slot]
        last = first + _PAGE_FRAMES[np.minimum(rows["level"][lanes, vcpu, slot], len(LEVEL_FRAMES) - 1)] - np.uint64(1)
        for frame in (first, last, np.uint64(batch.region_first), np.uint64(batch.region_behind - 1)):
            yield lanes, Place(vcpu=vcpu, slot=slot, frame=frame)

    def of_memory(self, changes: Changes) -> Places:
        """Blocks that are written, here or at the other machine, and those of frames that are clean now."""
        for name in ("memory", "remote"):
            if name in changes:
                yield changes[name][0], Place(address=changes[name][1].astype(np.uint64))

    def of_clean_frames(self, changes: Changes) -> Places:
        """All blocks of frames of which it has changed whether they are clean."""
        if "clean" in changes:
            lanes, frame = changes["clean"]
            yield lanes[:, None], Place(address=(frame.astype(np.uint64) << np.uint64(BLOCK_SHIFT))[:, None] | _BLOCKS)

    def of_frames(self, changes: Changes) -> Places:
        """Frames of which it has changed whether they are clean, and all where the machine moves on."""
        if "clean" in changes:
            yield changes["clean"][0], Place(frame=changes["clean"][1].astype(np.uint64))
        if "vmm" in changes:
            yield np.unique(changes["vmm"][0])[:, None], Place(frame=self._frames)

    def of_all(self, changes: Changes) -> Places:
        """The machine."""
        if "vmm" in changes:
            yield changes["vmm"][0], _EVERYWHERE

    def of_key(self, changes: Changes) -> Places:
        """The key, where its block is written."""
        if "memory" in changes:
            lanes, address = changes["memory"]
            yield lanes[address == self._batch.region_first + KEY_FRAME << BLOCK_SHIFT], _EVERYWHERE

    def of_vcpus(self, changes: Changes) -> Places:
        """vCPUs that have changed."""
        if "vcpus" in changes:
            yield changes["vcpus"][0], Place(vcpu=changes["vcpus"][1])

    def of_windows(self, changes: Changes) -> Places:
        """Windows of which device or hook has changed, and those of devices that the VMM has left or that have moved."""
        for name in ("decoded", "hooked"):
            if name in changes:
                lanes, space, window = changes[name]
                yield lanes, Place(space=space, window=window.astype(np.uint64))
        moved = [changes[name][:2] for name in ("deployments", "windows") if name in changes]
        if moved:
            lanes, device = (np.concatenate(each) for each in zip(*moved, strict=True))
            for each in Space:
                yield lanes, Place(space=np.full(len(lanes), each), window=self._batch.windows[lanes, device, each])

    def of_devices(self, changes: Changes) -> Places:
        """Devices of which something has changed."""
        lanes, device = self._devices(changes)
        yield lanes, Place(device=device)

    def of_sectors(self, changes: Changes) -> Places:
        """Sectors that are written, or meant to hold something else."""
        for name in ("media", "meant"):
            if name in changes:
                yield changes[name][0], Place(device=changes[name][1], lba=changes[name][2].astype(np.uint64))

    def of_buffers(self, changes: Changes) -> Places:
        """All blocks of the shadow buffers of devices of which something has changed, and that have DMA under way."""
        lanes, device = self._devices(changes)
        state = self._batch.channels["state"][lanes, device]
        moving = (state >= ChannelState.COPYING_OUT) & (state <= ChannelState.COPYING_IN)
        lanes, device = lanes[moving], device[moving]
        yield lanes[:, None], Place(device=device[:, None], position=np.arange(SHADOW_BLOCKS, dtype=np.uint64))

    def of_ranges(self, changes: Changes) -> Places:
        """The sectors of commands that are newly under way."""
        if "channels" not in changes:
            return
        lanes, device = changes["channels"]
        first = self._batch.channels["first"][lanes, device]
        lba = first[:, None] + np.arange(SHADOW_BLOCKS, dtype=np.uint64) & _LBA_MASK
        yield lanes[:, None], Place(device=device[:, None], lba=lba)

    def of_deployments(self, changes: Changes) -> Places:
        """The sectors of images of which something has changed, by the device or by the sector."""
        for name in ("deployed", "meant", "media", "touched"):
            if name in changes:
                yield changes[name][0], Place(device=changes[name][1], lba=changes[name][2].astype(np.uint64))
        lanes, device = self._devices({each: changes[each] for each in ("deployments", "channels") if each in changes})
        rows = self._batch.deployments
        deployed = rows["phase"][lanes, device] != Phase.NONE
        lanes, device = lanes[deployed], device[deployed]
        if len(lanes):
            size = int(rows["size"][lanes, device].max())
            yield lanes[:, None], Place(device=device[:, None], lba=np.arange(size + 1, dtype=np.uint64))
            yield lanes, Place(device=device, lba=rows["lba"][lanes, device])


_NONE = np.zeros(0, np.int64)

Finder = Callable[[Oracles, Changes], Places]
_PLACES: dict[Finder, tuple[Predicate, ...]] = {
    Oracles.of_mappings: (said.mapped_outside, said.mapping_books),
    Oracles.of_memory: (said.zero_page, said.sent_is_there, said.region_is_not_sent),
    Oracles.of_clean_frames: (said.sent_is_there,),
    Oracles.of_frames: (said.last_round,),
    Oracles.of_all: (said.moving_books, said.microcode_kept, said.iommu_is_on),
    Oracles.of_key: (said.key_is_kept,),
    Oracles.of_vcpus: (said.vcpus_inside,),
    Oracles.of_windows: (
        *(said.hooked_where_decoded, said.trapped_where_hooked, said.window_outside_region, said.window_books),
    ),
    Oracles.of_devices: (
        *(said.pointer_is_shadow, said.shadow_describes_buffer, said.checked_is_executed),
        *(said.idle_books, said.port_books, said.dma_books, said.idle_when_stopped),
    ),
    Oracles.of_sectors: (said.stored_as_meant,),
    Oracles.of_buffers: (said.copied_as_meant, said.moved_as_stored),
    Oracles.of_ranges: (said.denied_is_not_under_way,),
    Oracles.of_deployments: (said.deployed_or_untouched, said.image_or_written, said.deployment_books),
}
"""Where each thing is looked at that is said of a state."""

CHANGED: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, Predicate], ...]], ...] = (
    (("memory",), ("address",), (("P17", said.memory_is_kept),)),
    (("media",), ("device", "lba"), (("P17", said.media_are_kept),)),
    (("deployed",), ("device", "lba"), (("P12", said.deployed_as_image),)),
    (("meant", "touched"), ("device", "lba"), (("P17", vmm_steps.ghosts_are_kept),)),
    (("plain",), ("device", "position"), (("P17", vmm_steps.copies_are_kept),)),
    (
        ("devices", "channels"),
        ("device",),
        (("P17", vmm_steps.rows_are_kept), ("P18", vmm_steps.followed_to_its_end)),
    ),
    (("registers",), ("device",), (("P17", vmm_steps.registers_are_kept),)),
    (("decoded", "hooked"), ("space", "window"), (("P17", vmm_steps.windows_are_kept),)),
)
"""By what a step has changed: where it is looked at, and what is said of the step there."""

_OWNERS = {part: name for name, row in VMM_INVARIANTS.items() for part in row.of_state}
PLACES = [(find, tuple((_OWNERS[part], part) for part in parts)) for find, parts in _PLACES.items()]
OF_TOUCHES = {
    **{"cpu": ("P1", "P8"), "device": ("P2", "P7", "P8")},
    **{"mediator": ("P8", "P9"), "extension": ("P8", "P9", "P15")},
}
"""What is said of what each kind of actor touches."""


def _last_touches(taken: Taken) -> Words:
    """The blocks that each lane has touched last."""
    found = np.zeros(len(taken.lanes), np.uint64)
    if taken.touches:
        found[taken.touches["at"].astype(np.int64)] = taken.touches["address"]
    return found


def _touched(taken: Taken, which: Indices) -> Iterator[LaneTouch]:
    """What was touched in some lanes, counted from 0, all by actors of one kind: of each lane one after the other."""
    for actor, columns, made in _noted(taken.touches, which, len(taken.lanes), ("actor", "number", "address", "is_write")):
        number, address, is_write = columns
        yield LaneTouch(ACTORS[int(actor.max(initial=0))], number, np.where(made, address, _NOWHERE), is_write)


def _moved(taken: Taken, which: Indices) -> Iterator[LaneMove]:
    """What sectors were moved, likewise."""
    for device, (lba, is_write), made in _noted(taken.moves, which, len(taken.lanes), ("device", "lba", "is_write")):
        yield LaneMove(device, lba, is_write, made)


def _noted(log: Log, which: Indices, lanes: int, names: tuple[str, ...]) -> Iterator[tuple[Words, list[Words], Flags]]:
    """What was noted in some lanes, counted from 0: the first of each lane, then the second and so on; where there is."""
    if not log:
        return
    places = log["at"].astype(np.int64)
    for at in _in_turn(places):
        where, made = places[at], np.zeros(lanes, np.bool_)
        made[where] = True
        columns = [np.zeros(lanes, np.uint64) for _ in names]
        for column, name in zip(columns, names, strict=True):
            column[where] = log[name][at]
        if made[which].any():
            first, *others = (column[which] for column in columns)
            yield first, others, made[which]


_NOWHERE = np.uint64((1 << 64) - 1)
_CODE_BITS = 8


def _in_turn(at: Indices) -> Iterator[Indices]:
    """Places of numbers, which go up: the first of each number, then the second, and so on."""
    nth = np.arange(len(at)) - np.searchsorted(at, at)
    for turn in range(int(nth.max(initial=-1)) + 1):
        yield np.flatnonzero(nth == turn)
