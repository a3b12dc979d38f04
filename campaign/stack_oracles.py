"""The invariants across layers, S1 to S9 of `spec.stack_invariants`, on a step of many machines at once.

What is said of a step is said by its predicates themselves, of accesses that are arrays; what is said of places is here once
more, on arrays, and looked at again where something has changed. `tests/campaign/test_stack.py` holds both against
`model.stack_system.violated`. Of the layers' own invariants those are looked at here that other layers can make fall: P1 to
P17 of a state, C1 to C19 at the steps of cVMs, O12.
"""

from typing import Any, NamedTuple, cast

import numpy as np

from capvisor.campaign import cvm_oracles, vmm_oracles
from capvisor.campaign.stack_mirror import VIAS, WHO, Changes, Mirror
from capvisor.campaign.vmm_views import LaneVmm
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.stack import CVM, ORC
from capvisor.fastpath.tables import pair
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.stack import TPT_LAYER, VMM_LAYER
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.orc import NOBODY, PRIVATE, SlotKind
from capvisor.spec.orc import OPERATIONS as ORC_OPERATIONS
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, WORDS_PER_FRAME
from capvisor.spec.stack import FORMAT, GRANULES_PER_FRAME, Who
from capvisor.spec.stack_invariants import STACK_INVARIANTS, Place, Step
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_words import Step as VmmStep

OF_ACCESSES = ("S1", "S2", "S8")
"""What is said of every access by the predicates themselves."""

_OF_STATES = {name for _find, parts in vmm_oracles.PLACES for name, _part in parts}
_SILENT = ("C15",)
"""About handles, which nobody gets here."""

INVARIANTS: dict[str, Any] = {
    **STACK_INVARIANTS,
    **{name: row for name, row in VMM_INVARIANTS.items() if name in _OF_STATES},
    **{name: row for name, row in CVM_INVARIANTS.items() if name not in _SILENT},
    "O12": ORC_INVARIANTS["O12"],
}
"""All that is looked at."""

_NOWHERE = Place()
_WORD = np.uint64


class LanePrincipal(NamedTuple):
    """For whom some accesses are: all of one kind."""

    who: Who
    vm: Words
    number: Words


class LaneAccess(NamedTuple):
    """Accesses, all for principals of one kind and by one way."""

    principal: LanePrincipal
    via: Any
    frame: Words
    word: Words
    words: Words
    is_write: Flags
    owner: Words
    is_pending: Flags
    device: Indices


class Taken(NamedTuple):
    """A step in some lanes; the other arrays have an element for each of them."""

    layer: str
    name: str
    lanes: Indices
    operands: tuple[Any, ...]
    completed: Flags
    was_stopped: Flags
    """Whether the machine was stopped before."""
    issuer: Words
    """The VMs that the vCPUs run for that access registers; of a tenant's instruction, the tenants."""
    accesses: list[tuple[Any, ...]]
    at: Indices
    """Of each access, in which of the lanes, counted from 0."""
    retags: list[tuple[int, int]]
    """Lanes and frames whose owners the host's operations have changed."""
    change: Any = None
    """Of the steps of cVMs, `campaign.cvm_oracles.Change`."""


class _Vmm:
    """VMMs as predicates see them."""

    def __init__(self, batch: Any, lanes: Indices) -> None:
        self._batch, self._lanes = batch, lanes
        self.in_region, self.zero_frame = batch.in_region, _WORD(batch.zero_frame)

    def is_mediated(self, device: Indices) -> Flags:
        """Whether devices are mediated."""
        found: Flags = self._batch.is_mediated(self._lanes, device)
        return found

    def shadow_buffer(self, device: Indices) -> Words:
        """Where the VMM has its buffers for devices."""
        return cast(Words, self._batch.shadow_buffer(device).astype(_WORD))

    def shadow_descriptor(self, device: Indices) -> Words:
        """Where the VMM has its descriptors for devices."""
        return cast(Words, self._batch.shadow_descriptor(device).astype(_WORD))


class _ByDevice:
    """What is so of devices."""

    def __init__(self, column: Words, lanes: Indices) -> None:
        self._column, self._lanes = column, lanes

    def __getitem__(self, device: Any) -> Words:
        found: Words = self._column[self._lanes, device.astype(np.int64)]
        return found

    def get(self, device: Any, _default: Any) -> Words:
        """The same: what was never written is FREE."""
        return self[device]


class _Tpt:
    def __init__(self, batch: Any, lanes: Indices) -> None:
        self.devices = _ByDevice(batch.devices, lanes)


class LaneView:
    """Machines of some lanes, as the predicates of `spec.stack_invariants` see them."""

    def __init__(self, batch: Any, lanes: Indices, issuer: Any = None) -> None:
        self.vmm, self.tpt = _Vmm(batch.vmm, lanes), _Tpt(batch.tpt, lanes)
        self.memory, self.started = batch.tpt.rows, _ByDevice(batch.started, lanes)
        self.issuer, self._batch, self._lanes = issuer, batch, lanes

    def device_at(self, space: Words, number: Words) -> Indices:
        """The devices whose registers those are."""
        found: Indices = self._batch.device_at(self._lanes, space, number)
        return found


class _StateOracles(vmm_oracles.Oracles):
    """What is said of the state of a VMM's machine, after a step of whatever layer."""

    def judge_state(self, changes: Any) -> list[tuple[str, Indices]]:
        """The invariants that don't hold where rows have changed."""
        self._violations = {}
        for find, parts in vmm_oracles.PLACES:
            for lanes, place in find(self, changes):
                if lanes.size:
                    step = VmmStep(LaneVmm(self._batch, lanes), "")
                    for name, part in parts:
                        self._hold(name, part(step, place), lanes)
        return [(name, np.unique(np.concatenate(lanes))) for name, lanes in self._violations.items()]


class Oracles:
    """Holds steps of machines against the invariants."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._batch = mirror, mirror.batch
        self._of_vmm = _StateOracles(mirror.vmm)
        self._of_cvms = cvm_oracles.Oracles(self._batch.pages[CVM].monitor)
        self._own_evaluated = dict.fromkeys((*STACK_INVARIANTS, "O12"), 0)
        self._own_concerned = dict.fromkeys((*STACK_INVARIANTS, "O12"), 0)
        self._violations: dict[str, list[Indices]] = {}
        self._bound = {name: pages.bound.copy() for name, pages in self._batch.pages.items()}

    @property
    def evaluated(self) -> dict[str, int]:
        """By invariant: at how many places it was evaluated."""
        return {**self._own_evaluated, **self._of_vmm.evaluated, **self._of_cvms.evaluated}

    @property
    def concerned(self) -> dict[str, int]:
        """By invariant: at how many it had something to say."""
        return {**self._own_concerned, **self._of_vmm.concerned, **self._of_cvms.concerned}

    def judge(self, taken: Taken, changes: Changes) -> list[tuple[str, Indices]]:
        """The invariants that a step violates, and the lanes."""
        self._violations = {}
        self._judge_accesses(taken)
        self._judge_commands(taken)
        self._judge_stopped(taken)
        self._judge_owners(taken, changes)
        self._judge_granules(taken, changes)
        self._judge_places(changes)
        self._judge_bound(taken)
        found = [(name, np.unique(np.concatenate(lanes))) for name, lanes in self._violations.items()]
        found += self._of_vmm.judge_state(changes.vmm)
        if taken.change is not None:
            change = taken.change
            change.registers, change.granules, change.threads, change.tables = changes.cvm
            found += self._of_cvms.judge(change)
        return found

    def _hold(self, name: str, holds: Any, lanes: Indices) -> None:
        """Note how an invariant was evaluated in some lanes."""
        self._own_evaluated[name] += len(lanes)
        if holds is True:
            return
        self._own_concerned[name] += len(lanes)
        if not np.all(holds):
            fallen = lanes[~np.broadcast_to(np.asarray(holds, np.bool_), lanes.shape)]
            self._violations.setdefault(name, []).append(fallen)

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _judge_accesses(self, taken: Taken) -> None:
        if not taken.accesses:
            return
        rows = np.array(taken.accesses, _WORD)
        kinds = rows[:, 0] << _WORD(8) | rows[:, 1]
        for kind in np.unique(kinds).tolist():
            mine = np.flatnonzero(kinds == kind)
            _who, _via, vm, number, frame, word, words, is_write, owner, pending, device = rows[mine].T
            who, via, lanes = WHO[kind >> 8], VIAS[kind & 0xFF], taken.lanes[taken.at[mine]]
            small = is_write != 0, owner, pending != 0, device.astype(np.int64)
            access = LaneAccess(LanePrincipal(who, vm, number), via, frame, word, words, *small)
            step = Step(LaneView(self._batch, lanes), taken.layer, taken.name, accesses=(access,))
            for name in OF_ACCESSES:
                of_step = STACK_INVARIANTS[name].of_step
                assert of_step is not None
                self._hold(name, of_step(step, _NOWHERE), lanes)
            if who in (Who.CVM, Who.TENANT):
                self._hold("S6", self._granted(lanes, access), lanes)

    def _granted(self, lanes: Indices, access: LaneAccess) -> Flags:
        """S6: whether what is accessed is granted, at every address that it has."""
        content = self._batch.content_of(lanes, access.frame.astype(np.int64))
        holds, is_somewhere = np.ones(len(lanes), np.bool_), np.zeros(len(lanes), np.bool_)
        for layer, pages in self._batch.pages.items():
            for page in range(pages.count):
                here = pages.bound[lanes, page] == content
                if here.any():
                    address = pages.address(page) + access.word * _WORD((1 << FRAME_SHIFT) // WORDS_PER_FRAME)
                    granted = self._of_cvm if layer == CVM else self._of_tenant
                    holds &= ~here | granted(lanes, access, address)
                    is_somewhere |= here
        return holds & is_somewhere

    def _of_cvm(self, lanes: Indices, access: LaneAccess, address: Words) -> Flags:
        monitor, number = self._batch.pages[CVM].monitor, access.principal.number
        if access.principal.who is not Who.CVM:
            return np.zeros(len(lanes), np.bool_)
        top = address + access.words * _WORD(FORMAT.address_width // 8)
        at, regions, grants = monitor.regions.find(lanes, number), monitor.regions, monitor.grants
        found: Flags = regions["is_live"][lanes, at] & (regions["base"][lanes, at] <= address)
        found &= top <= regions["top"][lanes, at]
        for row in np.flatnonzero(grants.is_used[lanes].any(axis=0)).tolist():
            key = grants.numbers[lanes, row]
            held = monitor.held.get("holds", lanes, pair(key, number))
            base, size = grants["base"][lanes, row], grants["size"][lanes, row]
            inside = (base < top) & (address < base + size)
            found |= grants.is_used[lanes, row] & grants["is_live"][lanes, row] & held & inside
        return found

    def _of_tenant(self, lanes: Indices, access: LaneAccess, address: Words) -> Flags:
        monitor, number = self._batch.pages[ORC].monitor, access.principal.number
        if access.principal.who is not Who.TENANT:
            return np.zeros(len(lanes), np.bool_)
        slot = (address - _WORD(monitor.memory.base) >> _WORD(monitor.shape.slot_shift)).astype(np.int64)
        own = np.isin(monitor.slots["kind"][lanes, slot], PRIVATE) & (monitor.slots["owner"][lanes, slot] == number)
        reads = monitor.mappings["is_live"][lanes, number.astype(np.int64), slot] & ~access.is_write
        found: Flags = own & (number != NOBODY) | reads
        return found

    def _judge_commands(self, taken: Taken) -> None:
        if taken.layer != VMM_LAYER or taken.name not in ("input", "output", "mediate", "transfer"):
            return
        who = np.flatnonzero(taken.completed)
        if len(who):
            lanes, operands = taken.lanes[who], tuple(each[who] for each in taken.operands)
            view = LaneView(self._batch, lanes, taken.issuer[who])
            of_step = STACK_INVARIANTS["S7"].of_step
            assert of_step is not None
            self._hold("S7", of_step(Step(view, VMM_LAYER, taken.name, operands), _NOWHERE), lanes)

    def _judge_stopped(self, taken: Taken) -> None:
        who = np.flatnonzero(taken.was_stopped)
        if len(who):
            self._hold("S9", ~taken.completed[who] | (taken.layer == VMM_LAYER), taken.lanes[who])

    # -- places ------------------------------------------------------------------------------------------------------------

    def _judge_owners(self, taken: Taken, changes: Changes) -> None:
        """S8, of frames whose owners have changed: by the host's operations alone."""
        if "tags" not in changes.tpt:
            return
        lanes, frames = changes.tpt["tags"]
        count = self._batch.frame_count
        said = [lane * count + frame for lane, frame in taken.retags] if taken.layer == TPT_LAYER else []
        self._hold("S8", np.isin(lanes * count + frames, said), lanes)

    def _judge_granules(self, taken: Taken, changes: Changes) -> None:
        """S3 and O12, of granules that were written other than by a monitor's guests or by it."""
        lanes, frames, numbers, was_tagged, was = changes.granules
        if not len(lanes):
            return
        batch = self._batch
        rows = batch.tpt.words
        low, high = (rows[lanes, frames, 2 * numbers + half] for half in (0, 1))
        at = WORDS_PER_FRAME + numbers // 64
        is_tagged = rows[lanes, frames, at] >> (numbers % 64).astype(_WORD) & _WORD(1) != 0
        same = (low == was[:, 0]) & (high == was[:, 1]) & (was_tagged == is_tagged)
        moved = taken.layer == TPT_LAYER and taken.name in ("migrate", "swap_in")
        if taken.layer not in (CVM, ORC) and not moved:
            held = (batch.contents[lanes, frames] != 0) | (batch.tpt.tags[lanes, frames] >= FIRST_VM)
            self._hold("S3", ~(is_tagged & held) | same, lanes)
        if taken.name not in ORC_OPERATIONS and not moved:
            pages, tenants = batch.pages[ORC], taken.issuer
            for page in range(pages.count):
                bound = pages.bound[lanes, page]
                mine = np.flatnonzero((batch.contents[lanes, frames] == bound) & (bound != 0))
                if len(mine):
                    slot = (numbers[mine] + page * GRANULES_PER_FRAME) // pages.monitor.slot_granules
                    theirs = pages.monitor.slots["kind"][lanes[mine], slot] == SlotKind.FREE
                    if taken.layer == ORC:
                        tenant = tenants[np.searchsorted(taken.lanes, lanes[mine])]
                        theirs = theirs | (pages.monitor.slots["owner"][lanes[mine], slot] == tenant)
                    self._hold("O12", theirs | same[mine], lanes[mine])

    def _judge_places(self, changes: Changes) -> None:
        """S4, in lanes in which a granule, an owner, the books of a frame or where a page is has changed."""
        found = [changes.granules[0], *(changes.tpt[name][0] for name in ("tags", "frames") if name in changes.tpt)]
        batch = self._batch
        found += [np.flatnonzero((pages.bound != self._bound[name]).any(axis=1)) for name, pages in batch.pages.items()]
        lanes = np.unique(np.concatenate(found))
        if not len(lanes):
            return
        tagged = batch.tpt.rows.array[lanes, :, WORDS_PER_FRAME:].any(axis=2)
        which, frame = np.nonzero(tagged)
        lane = lanes[which]
        owner, content = batch.tpt.tags[lane, frame], batch.content_of(lane, frame)
        of_monitor = np.zeros(len(lane), np.bool_)
        for pages in batch.pages.values():
            of_monitor |= (owner == pages.vm) & (pages.bound[lane] == content[:, None]).any(axis=1)
        clean = batch.tpt.frames["is_clean"][lane, frame]
        self._hold("S4", ((owner < FIRST_VM) | of_monitor) & ~clean, lane)

    def _judge_bound(self, taken: Taken) -> None:
        """S5, where a monitor has taken a step: pages are bound then."""
        if taken.layer not in (CVM, ORC):
            return
        batch = self._batch
        was = np.concatenate([self._bound[name] for name in batch.pages], axis=1)
        now = np.concatenate([pages.bound for pages in batch.pages.values()], axis=1)
        lanes = taken.lanes
        was, now = was[lanes], now[lanes]
        kept = ((was == 0) | (was == now)).all(axis=1)
        pairs = (now[:, :, None] == now[:, None, :]) & (now[:, :, None] != 0)
        self._hold("S5", kept & (pairs.sum(axis=(1, 2)) == (now != 0).sum(axis=1)), lanes)
        self._bound = {name: pages.bound.copy() for name, pages in batch.pages.items()}
