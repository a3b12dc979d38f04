"""Any state of the four systems' one machine that the invariants of its layers allow.

The layers' tables are the solver's arrays (`proofs.tpt_state`, `proofs.vmm_state`), and so is the memory below them, with
its tags, and which content is where. The views of that memory, who an access is for, and what the layers owe each other are
the reference's own (`model.stack`), executed. Which content a page of a monitor's memory is bound to, and in which VM, is
any; so is which frames hold shared objects.
"""

import copy
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import z3

from capvisor.model.bits import not_
from capvisor.model.memory import EMPTY, Granule
from capvisor.model.stack import HostedVmm, Principal, Stack, Words, place_of_tables
from capvisor.model.stack_memory import Granules, MachineMemory
from capvisor.model.tlb import either
from capvisor.model.tpt import FrameRow
from capvisor.proofs import tpt_state, vmm_state
from capvisor.proofs.cvm_state import Guards
from capvisor.proofs.symbolic import SymBool, SymInt, as_int, select
from capvisor.proofs.tables import ArrayRows, Column
from capvisor.proofs.theorem import Given, implies
from capvisor.spec.paging import FIRST_VM, FREE
from capvisor.spec.stack import Via
from capvisor.spec.stack_policy import StackPolicy
from capvisor.spec.tag_policy import INTENDED as TAGS_INTENDED
from capvisor.spec.tpt import SWAP_SLOTS
from capvisor.spec.tpt_invariants import is_page_frame
from capvisor.spec.vmm import MAX_DEVICES, ChannelState, Phase
from capvisor.spec.vmm_policy import INTENDED as VMM_INTENDED

FRAME_BITS, INDEX_BITS, WORD_BITS = tpt_state.FRAME_BITS, tpt_state.INDEX_BITS, tpt_state.WORD_BITS
NUMBER_BITS = tpt_state.WORD_NUMBER_BITS
"""Of the number of a granule within its frame: as wide as words' numbers, of which half are granules'."""
CONTENT_BITS, TABLE_BITS = 48, 20

# -- memory ----------------------------------------------------------------------------------------------------------------


class AnyGranules(Granules):
    """Granules of frames: any at first. What is done to whole frames is carried out where one looks."""

    def __init__(self, name: str, frames: Callable[[], Any]) -> None:
        index = z3.BitVecSort(INDEX_BITS + NUMBER_BITS)
        half = z3.BitVecSort(WORD_BITS)
        parts = zip(Granule._fields, (z3.BoolSort(), half, half), strict=True)
        self._arrays = tuple(z3.Array(f"{name}_{part}", index, sort) for part, sort in parts)
        self._count, self._changes = frames, ()  # type: ignore[var-annotated]

    @property
    def frames(self) -> Any:  # type: ignore[override]
        """How many frames there are."""
        return self._count()

    @property
    def terms(self) -> tuple[z3.ExprRef, ...]:
        """What the granules are at first."""
        return self._arrays

    @property
    def is_changed(self) -> bool:
        """Whether a granule has been replaced."""
        return bool(self._changes)

    def get(self, frame: Any, number: Any) -> Granule:
        at = z3.Concat(as_int(frame).at(INDEX_BITS), as_int(number).at(NUMBER_BITS))
        tag, *halves = (array[at] for array in self._arrays)
        found: Any = Granule(SymBool(tag), *(SymInt(z3.ZeroExt(1, half), 0, (1 << WORD_BITS) - 1) for half in halves))  # type: ignore[arg-type]
        for change in self._changes:
            found = change(frame, number, found)
        here: Granule = either(frame < self.frames, found, EMPTY)
        return here

    def set(self, frame: Any, number: Any, granule: Granule) -> None:
        def change(at: Any, other: Any, was: Granule) -> Granule:
            now: Granule = either((at == frame) & (other == number), granule, was)
            return now

        self._changes += (change,)  # type: ignore[assignment]

    def clear(self, frame: Any) -> None:
        self._changes += (lambda at, _number, was: either(at == frame, EMPTY, was),)  # type: ignore[assignment]

    def clear_all(self) -> None:
        """Make all granules empty."""
        self._changes = (lambda _frame, _number, _was: EMPTY,)  # type: ignore[assignment]

    def copy(self, target: Any, source_store: Granules, source: Any) -> None:
        kept = copy.copy(source_store)
        self._changes += (lambda at, number, was: either(at == target, kept.get(source, number), was),)  # type: ignore[assignment]

    def walked_over(self, before: "AnyGranules") -> None:
        """Make this what walks may have made of memory: each granule is as it was, or isn't tagged."""
        is_same = z3.Array(f"{self._arrays[0]}_left", self._arrays[0].domain(), z3.BoolSort())

        def change(frame: Any, number: Any, found: Granule) -> Granule:
            at = z3.Concat(as_int(frame).at(INDEX_BITS), as_int(number).at(NUMBER_BITS))
            now: Granule = either(SymBool(is_same[at]), before.get(frame, number), found._replace(tag=False))
            return now

        self._changes = (change,)  # type: ignore[assignment]


class AnyMemory(MachineMemory, AnyGranules):
    """The machine's memory, with the tables of tags somewhere. What is written there isn't carried out: it is asked (S8)."""

    def __init__(self, name: str, frames: Callable[[], Any], tables: tuple[Any, Any]) -> None:
        AnyGranules.__init__(self, name, frames)
        self.tables = self.first_table, self.behind_tables = tables

    def clear(self, frame: Any) -> None:
        if not self.is_table(frame):
            AnyGranules.clear(self, frame)

    def copy(self, target: Any, source_store: Granules, source: Any) -> None:
        if not self.is_table(target):
            AnyGranules.copy(self, target, source_store, source)

    def _set_table_word(self, frame: Any, index: Any, value: Any) -> None:
        """Nothing."""


class StackWords(Words):
    """The reference's view of translation pass-through, of granules that are any."""

    def __copy__(self) -> "StackWords":
        return StackWords(self._stack, copy.copy(self.granules))

    @property
    def terms(self) -> tuple[z3.ExprRef, ...]:
        """What the words are at first."""
        return self.granules.terms  # type: ignore[attr-defined, no-any-return]

    @property
    def is_changed(self) -> bool:
        """Whether a word has been replaced."""
        return self.granules.is_changed  # type: ignore[attr-defined, no-any-return]

    def clear_all(self) -> None:
        """Make all words 0, and clear all tags."""
        self.granules.clear_all()  # type: ignore[attr-defined]


class StackSystem(tpt_state.AnySystem):
    """The system with translation pass-through, on the stack's memory."""

    stack: "AnyStack | None" = None

    def begin(self) -> None:
        """Keep the state as it is now; after walks, memory is what these may have made of it."""
        if self.stack is not None and not isinstance(self.memory, StackWords):
            before = self.stack.memory
            self.stack.memory = after = AnyMemory(f"walked_{self._count}", before._count, before.tables)
            after.walked_over(copy.copy(before))
            self.memory = StackWords(self.stack, after)  # type: ignore[assignment]
        super().begin()


class _Named(Given):
    """Gives values by names of their own, with the same assumptions."""

    def __init__(self, given: Given, name: str) -> None:
        super().__init__()
        self._given, self._name = given, name
        self.assumptions = given.assumptions

    def word(self, name: str, bits: int) -> Any:
        return self._given.word(f"{self._name}{name}", bits)

    def flag(self, name: str) -> Any:
        return self._given.flag(f"{self._name}{name}")


class StackVmm(HostedVmm, vmm_state.AnySystem):
    """The VMM, whose blocks are looked up in the owners of frames."""

    def __init__(self, stack: "AnyStack", given: Given, known: vmm_state.Known | None) -> None:
        self._stack, self._blocks = stack, SimpleNamespace(keeps_tags=False)  # type: ignore[assignment]
        vmm_state.AnySystem.__init__(self, _Named(given, "vmm_"), VMM_INTENDED, known=known)

    def _table(self, name: str, empty: Any) -> Any:
        return vmm_state.AnySystem._table(self, name, empty)


# -- contents --------------------------------------------------------------------------------------------------------------


class AnyContents:
    """Which content is at which place, frames or slots of swap space: any at first."""

    def __init__(self, name: str) -> None:
        self._rows = ArrayRows(
            lambda is_there, content: (is_there, content),
            (Column("is_there", 0), Column("content", CONTENT_BITS)),
            INDEX_BITS,
            name,
        )

    def __copy__(self) -> "AnyContents":
        made = AnyContents.__new__(AnyContents)
        made._rows = copy.copy(self._rows)
        return made

    def row(self, place: Any) -> tuple[Any, Any]:
        """Whether there is a content at a place, and which."""
        found: tuple[Any, Any] = self._rows.get(place)
        return found

    def __contains__(self, place: Any) -> bool:
        return bool(self.row(place)[0])

    def get(self, place: Any, default: Any = None) -> Any:
        """As dict.get."""
        is_there, content = self.row(place)
        return content if is_there else default

    def pop(self, place: Any, default: Any = None) -> Any:
        """As dict.pop."""
        found = self.get(place, default)
        self._rows.set(place, (False, 0))
        return found

    def __setitem__(self, place: Any, content: Any) -> None:
        self._rows.set(place, (True, content))


class Tagged:
    """The granules that are tagged, by content and number, where the content is in a frame or slot that is looked at."""

    def __init__(self, stack: "AnyStack") -> None:
        self._stack = stack
        self._memory, self._disk = copy.copy(stack.memory), copy.copy(stack.disk)
        self._contents, self._put_away = copy.copy(stack.contents), copy.copy(stack.put_away)
        self._owners = copy.copy(stack.tpt.tags.tags)

    def get(self, key: tuple[Any, Any], default: Any) -> Any:
        """As dict.get."""
        content, number = key
        granule: Any = Granule(*default)
        for place in self._stack.frames_at:
            is_there, _content = self._contents.row(place)
            is_owned = is_there | (self._owners.get(place) >= FIRST_VM)
            is_it = (in_frame(self._contents, place) == content) & is_owned
            granule = either(is_it, self._memory.get(place, number), granule)
        for slot in self._stack.slots_at:
            is_there, found = self._put_away.row(slot)
            granule = either(is_there & (found == content), self._disk.get(slot, number), granule)
        return granule


def in_frame(contents: AnyContents, frame: Any) -> Any:
    """What a frame holds; if nothing of a VM's, a number that is the frame's alone."""
    is_there, content = contents.row(frame)
    return select(is_there, content, (1 << CONTENT_BITS) + frame)


class Owned:
    """Whose frames were."""

    def __init__(self, owners: Any) -> None:
        self._owners = copy.copy(owners)

    def get(self, frame: Any, _default: Any = FREE) -> Any:
        """As dict.get."""
        return self._owners.get(frame)


class AnyStarted:
    """By device, for whom its bus master was started last."""

    def __init__(self) -> None:
        self._rows = ArrayRows(lambda vm: vm, (Column("vm", tpt_state.VM_BITS),), INDEX_BITS, "started")

    def get(self, device: Any, _default: Any = FREE) -> Any:
        """As dict.get."""
        return self._rows.get(device)

    def __setitem__(self, device: Any, vm: Any) -> None:
        self._rows.set(device, vm)


# -- the stack -------------------------------------------------------------------------------------------------------------


class Known:
    """What is the same on all ways through a step."""

    def __init__(self) -> None:
        self.tpt, self.vmm = tpt_state.Known(), vmm_state.Known()


class AnyStack(Stack):
    """The reference's stack, in any state that the invariants allow."""

    def __init__(self, given: Given, policy: StackPolicy, known: Known | None = None) -> None:
        known = Known() if known is None else known
        self.given, self.guards = given, Guards(policy)  # type: ignore[arg-type]
        self.labels: dict[int, str] = {}
        """Which supposition an assumption is, by its number among all."""
        self.policy = self.guards  # type: ignore[assignment]
        self.tpt: Any = StackSystem(given, TAGS_INTENDED, known=known.tpt)
        self.owners = self.tpt.tags
        self.vmm: Any = StackVmm(self, given, known.vmm)
        self.monitors, self.pages = {}, {}
        region = self.vmm.region_first, self.vmm.region_behind
        needed = given.word("table_frames", TABLE_BITS)
        first, has_room = place_of_tables(policy, region, needed)
        given.assume((needed > 0) & has_room & (self.vmm.device_count <= MAX_DEVICES))
        given.assume((self.vmm.frame_count == self.tpt.frame_count) & (self.vmm.vcpu_count == self.tpt.vcpu_count + 1))
        given.assume(self.vmm.device_count + 1 == self.tpt.device_count)
        self.tables = first, first + needed
        self.memory: Any = AnyMemory("granules", lambda: self.tpt.frame_count, self.tables)
        self.disk: Any = AnyGranules("swapped", lambda: SWAP_SLOTS)
        self.tpt.stack, self.tpt.memory, self.tpt.disk = self, StackWords(self, self.memory), StackWords(self, self.disk)
        self.contents, self.put_away = AnyContents("contents"), AnyContents("put_away")
        self._contents: Any = self.contents
        self._put_away: Any = self.put_away
        self._lost = {}
        self._content_count = given.word("content_count", CONTENT_BITS - 1)
        self._bound = ArrayRows(lambda vm: vm, (Column("vm", tpt_state.VM_BITS),), CONTENT_BITS, "bound")
        self._kept = ArrayRows(lambda kept: kept, (Column("kept", 0),), INDEX_BITS, "kept")
        self.started: Any = AnyStarted()
        self.issuer, self.is_within, self.is_crossed = FREE, False, False
        self.accesses = []
        self.granule = given.word("any_granule", NUMBER_BITS)
        self.narrowed: list[Any] = []
        """What has been taken of intervals of values, and is to be shown."""
        self.walked: list[tuple[Any, Any]] = []
        """What references of walks have made of these, with the vCPU."""
        self.is_swept: Any = True
        """Whether nothing of a page is tagged after a sweep that takes all tags."""
        self.frames_at: list[Any] = [self.tpt.place.frame, given.word("other_frame", FRAME_BITS)]
        """Frames at which contents are looked at, and slots of swap space: any, another one, and those of the step."""
        self.slots_at: list[Any] = [self.tpt.place.swap_slot, given.word("other_slot", 3)]

    def make_new(self) -> None:
        """The machine as it is made."""
        self.tpt.make_new()
        self.vmm.make_new()
        # As `model.stack.HostsFrames`.
        books = FrameRow()
        self.tpt.frames = SimpleNamespace(get=lambda frame: books._replace(is_clean=not_(self.vmm.in_region(frame))))
        self.contents = self._contents = AnyContents("")
        self.put_away = self._put_away = AnyContents("")

    def bound_in(self, content: Any) -> Any:
        """The VM in one of whose monitors a page is bound to a content; FREE: none is."""
        return self._bound.get(content)

    # -- as the reference asks

    def is_kept(self, frame: Any) -> Any:
        """Whether a frame holds memory of shared objects: any may."""
        return self._kept.get(frame)

    def check_block(self, via: Via, number: Any, address: Any, is_write: bool) -> None:
        # There is such a block, whatever is said of how many addresses there are: that is shown.
        self.narrowed.append(address < 1 << vmm_state.ADDRESS_BITS)
        block = SymInt(as_int(address).at(vmm_state.ADDRESS_BITS + 1), 0, (1 << vmm_state.ADDRESS_BITS) - 1)
        super().check_block(via, number, block, is_write)  # type: ignore[arg-type]

    def content_of(self, frame: Any) -> Any:
        return in_frame(self.contents, frame)

    def is_bound(self, frame: Any, vm: Any) -> Any:
        is_there, content = self.contents.row(frame)
        return is_there & (self.bound_in(content) == vm)

    def _places(self, _frame: Any, _word: Any) -> tuple[tuple[str, int], ...]:
        return ()

    def tagged(self) -> Any:
        return Tagged(self)

    def owned(self) -> Any:
        return Owned(self.tpt.tags.tags)

    def owner_of(self, device: Any) -> Principal:
        self.tpt.looks_at("vms", self.tpt.devices[device])
        return super().owner_of(device)

    def granules_of(self, _frames: Any) -> dict[Any, dict[int, Granule]]:
        return {}

    def _lose(self, frame: Any, _held: Any) -> None:
        self._contents.pop(frame)

    # -- what is said of a state

    def state(self) -> "State":
        """The state as it is now."""
        return State(self)


class State:
    """What is said across layers of a state, as it was at one moment."""

    def __init__(self, stack: AnyStack) -> None:
        system, machine = stack.tpt, stack.vmm
        self.in_region, self._granule, self._bound_in = machine.in_region, stack.granule, stack.bound_in
        self._owners, self._pending, self._frames, self._swaps, self._holders = (
            copy.copy(each) for each in (system.tags.tags, system.pending, system.frames, system.swaps, system.devices)
        )
        self._translations, self._asids, self._vcpus, self.walks = (
            copy.copy(each) for each in (system.tlb.translations, system.asids, system.vcpus, system.walks)
        )
        self._memory, self._disk = copy.copy(stack.memory), copy.copy(stack.disk)
        self._contents, self._put_away = copy.copy(stack.contents), copy.copy(stack.put_away)
        self._count, self._started = stack._content_count, copy.copy(stack.started)
        self.devices, self.channels, self.deployments = (
            copy.copy(each) for each in (machine.devices, machine.channels, machine.deployments)
        )

    def is_untagged(self, frame: Any) -> Any:
        """Whether a frame of the region is nobody's, nobody has to acknowledge it, and it doesn't count as clean."""
        is_nobodys = (self._owners.get(frame) == FREE) & (self._pending.get(frame) == 0)
        return implies(self.in_region(frame), is_nobodys & not_(self._frames.get(frame).is_clean))

    def _is_leaving(self, vcpu: Any, frame: Any) -> Any:
        """Whether a frame was taken from its VM, and a vCPU has still to acknowledge."""
        return (self._owners.get(frame) == FREE) & (self._pending.get(frame) >> vcpu & 1 != 0)

    def is_holders(self, vcpu: Any, slot: Any, frame: Any) -> Any:
        """Of a slot of a TLB: a frame of its page that is leaving holds what is the VM's whose translations these are."""
        entry = self._translations.get((vcpu, slot))
        named = entry.is_live & is_page_frame(entry.frame, entry.level, frame)
        holder = self._asids.get((vcpu, entry.asid))
        return implies(named & self._is_leaving(vcpu, frame), self._frames.get(frame).vm == holder)

    def is_walkers(self, vcpu: Any, walk: Any, frame: Any) -> Any:
        """The same of the page that a walk has found."""
        named = walk.is_live & (walk.leaf_level != 0) & is_page_frame(walk.leaf_frame, walk.leaf_level, frame)
        holder = self._vcpus.get(vcpu).vm
        return implies(named & self._is_leaving(vcpu, frame), self._frames.get(frame).vm == holder)

    def is_commanded(self, device: Any) -> Any:
        """Whether a command that moves or copies data was started for whose the device is."""
        row, state = self.devices.get(device), self.channels.get(device).state
        copies = (state == ChannelState.COPYING_OUT) | (state == ChannelState.MOVING) | (state == ChannelState.COPYING_IN)
        mediated = row.is_storage & (self.deployments.get(device).phase != Phase.GONE)
        under_way = row.is_started & (row.opcode != 0) | mediated & copies
        return implies(under_way, self._started.get(device) == self._holders.get(device))

    def is_placed(self, frame: Any) -> Any:
        """Of a frame: there is a content if it is somebody's; what is tagged is bound in its VM; a clean one has no tags."""
        row, tag = self._frames.get(frame), self._memory.get(frame, self._granule).tag
        is_there, content = self._contents.row(frame)
        holds = (is_there == (row.vm != FREE)) & implies(is_there, content <= self._count)
        return holds & implies(is_there & tag, self._bound_in(content) == row.vm) & implies(row.is_clean, not_(tag))

    def is_placed_away(self, slot: Any) -> Any:
        """The same of a slot of swap space."""
        row = self._swaps.get(slot)
        is_there, content = self._put_away.row(slot)
        holds = (is_there == row.is_live) & implies(is_there, (content <= self._count) & (row.vm != FREE))
        return holds & implies(is_there & self._disk.get(slot, self._granule).tag, self._bound_in(content) == row.vm)

    def is_one_place(self, frames: Iterable[Any], slots: Iterable[Any]) -> Any:
        """Whether no content is at two of some places."""
        places = [(self._contents.row(each), "frame", each) for each in frames]
        places += [(self._put_away.row(each), "slot", each) for each in slots]
        holds: Any = True
        for number, ((is_there, content), kind, place) in enumerate(places):
            for (other_there, other), other_kind, elsewhere in places[:number]:
                same = place == elsewhere if kind == other_kind else False
                holds = holds & implies(is_there & other_there & (content == other), same)
        return holds
