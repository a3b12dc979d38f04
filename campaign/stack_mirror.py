"""The reference's machines with all four systems, one a lane, and their states in arrays as the fast path has them.

Each layer's part of the state is in that layer's own mirror; here is what makes the reference's machines say what is written
to the one memory, and what is the stack's own: contents, where pages are bound, for whom devices were started.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from capvisor.campaign import cvm_mirror, orc_mirror, tpt_mirror, vmm_mirror
from capvisor.campaign.hart_mirror import NONE, taken
from capvisor.campaign.noted import Log, NotedTable
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.stack import CVM, OF_FRAME, ORC, BatchStack
from capvisor.fastpath.stack_memory import ROW_WORDS
from capvisor.fastpath.workspace import Flags, Words
from capvisor.model.memory import EMPTY, Granule
from capvisor.model.paging import Fault
from capvisor.model.stack import TPT_LAYER, VMM_LAYER, Halt, Pages, Principal, Stack
from capvisor.model.stack import Words as WordsView
from capvisor.model.stack_memory import Frame, Granules, MachineMemory
from capvisor.model.tags import TagTable
from capvisor.model.tpt import FrameRow
from capvisor.model.vmm import System as VmmSystem
from capvisor.spec.paging import FREE, WORDS_PER_FRAME
from capvisor.spec.stack import TAGS_PER_WORD, WORDS_PER_BLOCK, WORDS_PER_GRANULE, Code, Via, Who
from capvisor.spec.tpt import CACHE_SLOTS, SWAP_SLOTS, TLB_SLOTS
from capvisor.spec.vmm import BLOCK_SHIFT

WHO, VIAS = tuple(Who), tuple(Via)
"""For whom memory is accessed, and by what, by number."""
_WHO, _VIA = ({each.value: number for number, each in enumerate(rows)} for rows in (WHO, VIAS))

LAYERS = ("vmm", "tpt", "cvm", "orc")
PARTS = ("memory", "swapped out", "contents", "bound", "started", *LAYERS)
"""What is compared: what is the stack's own, and all that is a layer's own."""
_SLOTS = {"tlb": TLB_SLOTS, "caches": CACHE_SLOTS}
_TRANSLATES = ("vcpus", "vms", "tlb", "tags", "large")
"""Tables of translation pass-through that are asked where a page is, if its translation is in the TLB."""
_MOVES_CONTENT = {"assign": 1, "scrub": 1, "claim": 1, "migrate": 2, "swap_out": 1, "swap_in": 1}
"""What contents may come to be elsewhere by, and how many of its operands are frames, from the first on: `Stack.follow`."""
_NO_GRANULES: dict[int, Granule] = {}
_GRANULES_PER_BLOCK = WORDS_PER_BLOCK // WORDS_PER_GRANULE


def _no_touch(*_access: Any) -> None:
    """Note nothing."""


def content_number(content: Any) -> int:
    """A content as the fast path has it."""
    if content is None:
        return 0
    return int(content) if isinstance(content, int) else OF_FRAME | content[1]


class _NotedGranules(Granules):
    """Frames of granules that say what is written to them."""

    log: list[tuple[Any, ...]]
    lane = 0

    def set(self, frame: Frame, number: int, granule: Granule) -> None:
        """Replace a granule of a frame; what it held already needn't be said."""
        if frame < self.frames and self.held.get(frame, _NO_GRANULES).get(number, EMPTY) != granule:
            super().set(frame, number, granule)
            self.log.append((self.lane, frame, number, *granule))


class _NotedMemory(MachineMemory, _NotedGranules):
    """A machine's memory that does so too."""

    def set(self, frame: Frame, number: int, granule: Granule) -> None:
        if self.first_table <= frame < self.behind_tables:
            MachineMemory.set(self, frame, number, granule)
        else:
            _NotedGranules.set(self, frame, number, granule)


class _NotedPages(Pages):
    """A monitor's view that says which granules it writes."""

    log: list[tuple[Any, ...]]
    lane = 0

    def set(self, index: int, granule: Granule) -> None:
        super().set(index, granule)
        self.log.append((self.lane, index, *granule))


class _SettlingTable(NotedTable):
    """A table that says what is written to it, and of whose rows it depends where pages of monitors are found."""

    def __init__(self, empty: Any, lane: int, log: Log, settled: dict[str, Any]) -> None:
        super().__init__(empty, lane, log)
        self._settled = settled

    def __setitem__(self, number: Any, row: Any) -> None:
        if self.get(number) is not row:
            self._settled.clear()
            super().__setitem__(number, row)


class _RowsView(WordsView):
    """Words of frames; what is written is read anew with the tags behind, as the fast path has them."""

    def written(self) -> Any:
        yield from super().written()
        for frame, row in self.granules.held.items():
            tags: dict[int, int] = {}
            for number, granule in row.items():
                if granule.tag:
                    at = WORDS_PER_FRAME + number // TAGS_PER_WORD
                    tags[at] = tags.get(at, 0) | 1 << number % TAGS_PER_WORD
            yield from ((frame, at, word) for at, word in tags.items())


class Logs(NamedTuple):
    """What machines of all lanes say."""

    vmm: dict[str, list[Any]]
    tpt: dict[str, list[Any]]
    memory: list[tuple[Any, ...]]
    disk: list[tuple[Any, ...]]
    accesses: list[tuple[Any, ...]]
    contents: list[tuple[int, ...]]
    """Lane, frame, content, and how many there are."""
    put_away: list[tuple[int, ...]]
    bound: list[tuple[int, ...]]
    """Lane, layer, page and content."""
    started: list[tuple[int, ...]]


class LaneStack(Stack):
    """A machine that says what is written to it, and what is accessed, instead of what was before a step."""

    memory_type = _NotedMemory
    disk_type = _NotedGranules
    pages_type = _NotedPages

    def __init__(self, lane: int, logs: Logs, **given: Any) -> None:
        self.lane, self.logs, self._vcpus = lane, logs, range(given["vcpus"])
        self._settled: dict[str, tuple[int, list[Any]]] = {}
        """By layer, what `enter` is known to find: the vCPU, and where the pages are."""
        owners: Any = TagTable(given["frames"])
        owners.tags, owners.large = (self.make_table(TPT_LAYER, *row) for row in (("tags", FREE), ("large", False)))
        super().__init__(**given, owners=owners)
        for store, log in ((self.memory, logs.memory), (self.disk, logs.disk)):
            store.lane, store.log = lane, log  # type: ignore[attr-defined]
        self.tpt.memory, self.tpt.disk = _RowsView(self, self.memory), _RowsView(self, self.disk)
        # Accesses are noted here (`note`): nobody asks for what translation pass-through alone would note of them.
        self.tpt.touch = _no_touch  # type: ignore[method-assign,assignment]
        self._stage: tuple[Any, bool] = None, False
        """The VMM's row that was asked last whether the machine is stopped, and whether it is."""

    def make_table(self, layer: str, name: str, empty: Any) -> Any:
        logs = self.logs.vmm if layer == VMM_LAYER else self.logs.tpt
        if layer == TPT_LAYER and name in _TRANSLATES:
            table: NotedTable = _SettlingTable(empty, self.lane, logs[name], self._settled)
        else:
            table = NotedTable(empty, self.lane, logs[name])
        known: dict[Any, Any] = {}
        if layer == TPT_LAYER and name in _SLOTS:
            known = dict.fromkeys(itertools.product(self._vcpus, range(_SLOTS[name])), empty)
        elif layer == TPT_LAYER and name == "frames":
            known = dict.fromkeys(range(*self.region), FrameRow(is_clean=False))
        dict.update(table, known)
        return table

    def host(self, layer: str, monitor: Any, vm: int) -> None:
        log = monitor.memory.store.log
        super().host(layer, monitor, vm)
        pages: Any = self.pages[layer]
        pages.lane, pages.log, pages.said = self.lane, log, None

    def before(self) -> Any:
        return None

    def end(self) -> Any:
        self.is_within = False
        for pages in self.pages.values():
            pages.found = None
        return ()

    @property
    def is_stopped(self) -> bool:
        """As the reference says; not anew of the same row, on which alone it depends."""
        row = self.vmm.vmm[0]
        if self._stage[0] is not row:
            self._stage = row, super().is_stopped
        return self._stage[1]

    def note(self, frame: Frame, word: int, words: int, is_write: bool, device: int = 0) -> None:
        principal: Principal = self.principal
        pending = frame < self.tpt.frame_count and self.tpt.is_pending(frame, self.vcpu)
        # Not by the members themselves, whose hashes take longer.
        row = (_WHO[principal.who._value_], _VIA[self.via._value_], principal.vm, principal.number)
        self.logs.accesses.append((*row, frame, word, words, is_write, self.owners[frame], pending, device))

    def note_granule(self, frame: Frame, number: int, is_write: bool) -> None:
        self.note(frame, number * WORDS_PER_GRANULE, WORDS_PER_GRANULE, is_write)
        if is_write:
            self.note_written(frame)

    def follow(self, name: str, operands: tuple[Any, ...], held: Any) -> None:
        if name not in _MOVES_CONTENT:
            return
        super().follow(name, operands, held)
        self._settled.clear()
        for frame in operands[: _MOVES_CONTENT[name]]:
            self.logs.contents.append((self.lane, frame, self._contents.get(frame, 0), self._content_count))
        if name in ("swap_out", "swap_in"):
            self.logs.put_away.append((self.lane, operands[1], self._put_away.get(operands[1], 0)))

    def enter(self, layer: str) -> None:
        """As the reference does; where that has found all pages by the TLB, and they were bound already, not anew.

        Then it has written nothing and accessed no memory. What it finds depends on the rows of `_TRANSLATES` and on where
        contents are: if none of these was written since, it would find the same, and write and access nothing again.
        """
        pages: Any = self.pages[layer]
        if layer in self._settled:
            if self.policy.stop_reaches_all and self.is_stopped:
                raise Halt(Code.STOPPED)
            (self.vcpu, pages.found), self.is_within = self._settled[layer], True
            return
        bound, accesses = pages.bound, len(self.logs.accesses)
        self._settled[layer] = self.vcpu, []  # taken away by whatever writes one of those rows
        try:
            super().enter(layer)
        except (Halt, Fault):
            self._settled.pop(layer, None)
            raise
        is_kept = layer in self._settled and pages.bound is bound and len(self.logs.accesses) == accesses
        if is_kept and not any(isinstance(frame, Fault) for frame in pages.found):
            self._settled[layer] = self.vcpu, pages.found
        else:
            self._settled.pop(layer, None)
        self.say_bound(layer)

    def say_bound(self, layer: str) -> None:
        """Say where pages are bound, if that is something else."""
        pages: Any = self.pages[layer]
        if pages.bound != pages.said:
            pages.said = pages.bound
            number = (CVM, ORC).index(layer)
            for page, content in enumerate(pages.bound):
                self.logs.bound.append((self.lane, number, page, content_number(content)))

    def copy_contents(self, source: "LaneStack") -> None:
        """Take over where contents are, and for whom devices were started; this machine has had none."""
        self._settled.clear()
        self._contents, self._put_away = dict(source._contents), dict(source._put_away)
        self._lost, self._content_count = dict(source._lost), source._content_count
        self.started = dict(source.started)
        self.logs.contents.extend((self.lane, *each, self._content_count) for each in self._contents.items())
        self.logs.put_away.extend((self.lane, *each) for each in self._put_away.items())
        self.logs.started.extend((self.lane, *each) for each in self.started.items())

    def note_started(self, *operands: int) -> None:
        super().note_started(*operands)
        for device, vm in self.started.items():
            self.logs.started.append((self.lane, device, vm))


class _VmmPart(vmm_mirror.Mirror):
    """The VMM's part."""

    def __init__(self, batch: Any, start: Callable[[VmmSystem], None], make: Callable[[int, Any], LaneStack]) -> None:
        self._make = make
        super().__init__(batch, start)

    def _model(self, lane: int) -> VmmSystem:
        model = self._make(lane, self._logs).vmm
        model.touches, model.moves = self.noted
        return model

    def note_granules(self, log: list[tuple[Any, ...]]) -> None:
        """What was written to granules that begin blocks."""
        self._logs["memory"] += [
            (lane, frame << BLOCK_SHIFT | number // _GRANULES_PER_BLOCK, lower)
            for lane, frame, number, _tag, _upper, lower in log
            if number % _GRANULES_PER_BLOCK == 0
        ]


class _TptPart(tpt_mirror.Mirror):
    """The part of translation pass-through, with all words of memory and of what is swapped out, and tags behind them."""

    def __init__(self, batch: Any, stacks: list[LaneStack], logs: dict[str, list[Any]], region: tuple[int, int]) -> None:
        self._stacks, self._given = stacks, logs
        super().__init__(batch)
        self.tables["frames"]["is_clean"][:, region[0] : region[1]] = False

    def _start_logs(self) -> None:
        super()._start_logs()
        self._logs = self._given

    def _model(self, lane: int) -> Any:
        model = self._stacks[lane].tpt
        model.touches, model.retags, model.handled = self.noted
        return model

    def note_granules(self, name: str, log: list[tuple[Any, ...]]) -> "Written":
        """What was written to granules: two words, and a tag among those of the frame."""
        if not log:
            return _NOTHING
        array: Words = getattr(self, name)
        lane, frame, number, tag, upper, lower = (np.array(each, np.uint64) for each in zip(*log, strict=True))
        places = tuple(each.astype(np.int64) for each in (lane, frame))
        granule = number.astype(np.int64)
        at = (*places, WORDS_PER_FRAME + granule // TAGS_PER_WORD)
        bit = np.uint64(1) << (number % np.uint64(TAGS_PER_WORD))
        before = np.stack([array[(*places, 2 * granule + half)] for half in (0, 1)], axis=1)
        found = Written(places[0], places[1], granule, array[at] & bit != 0, before)
        for half, words in ((0, lower), (1, upper)):
            array[(*places, 2 * granule + half)] = words
        # The later of two writes of one granule counts; others may share its word.
        flat = np.ravel_multi_index((*places, granule), (*array.shape[:2], ROW_WORDS))
        last = len(flat) - 1 - np.unique(flat[::-1], return_index=True)[1]
        tagged, clear = last[tag[last] != 0], last[tag[last] == 0]
        np.bitwise_and.at(array, tuple(each[clear] for each in at), ~bit[clear])
        np.bitwise_or.at(array, tuple(each[tagged] for each in at), bit[tagged])
        for place in ((*places, 2 * granule), (*places, 2 * granule + 1), at):
            self._written(name).append(place)
        self.changed[name] += len(log)
        return found


class _CvmPart(cvm_mirror.Mirror):
    """The part of cVMs; what their pages hold is what frames do, which are compared."""

    def differing_memory(self) -> Flags:
        return np.zeros(self.lanes, np.bool_)


class _OrcPart(orc_mirror.Mirror):
    """The part of shared objects, likewise."""

    def differing_memory(self) -> Flags:
        return np.zeros(self.lanes, np.bool_)


class Written(NamedTuple):
    """Granules of memory that were written, and what they were before."""

    lanes: Indices
    frames: Indices
    numbers: Indices
    was_tagged: Flags
    was: Words
    """Both words."""


_NOTHING = Written(NONE, NONE, NONE, np.zeros(0, np.bool_), np.zeros((0, 2), np.uint64))


class Changes(NamedTuple):
    """What a step of the reference has written, by layer as that layer's mirror says it."""

    vmm: vmm_mirror.Changes
    tpt: tpt_mirror.Changes
    cvm: cvm_mirror.Written
    orc: orc_mirror.Written
    granules: Written


class Mirror:
    """The machines of all lanes of a batch, and their states."""

    def __init__(
        self, batch: BatchStack, start: Callable[[VmmSystem], None], vms: dict[str, int], given: dict[str, Any]
    ) -> None:
        """New machines with monitors in some VMs; `given` is what machines are made of."""
        self.batch, self.lanes = batch, batch.lanes
        self.cvm = _CvmPart(batch.pages[CVM].monitor)
        self.orc = _OrcPart(batch.pages[ORC].monitor)
        self.stacks: list[LaneStack] = []
        self._tpt_logs: dict[str, list[Any]] = {name: [] for name in tpt_mirror._ROWS}
        self._given = given
        self.vmm = _VmmPart(batch.vmm, start, self._make)
        self.tpt = _TptPart(batch.tpt, self.stacks, self._tpt_logs, given["region"])
        for lane, stack in enumerate(self.stacks):
            stack.host(CVM, self.cvm.monitors[lane], vms[CVM])
            stack.host(ORC, self.orc.monitors[lane], vms[ORC])
        self.contents, self.put_away = np.zeros_like(batch.contents), np.zeros_like(batch.put_away)
        self.content_count, self.started = np.zeros_like(batch.content_count), np.zeros_like(batch.started)
        self.bound = {layer: np.zeros_like(pages.bound) for layer, pages in batch.pages.items()}
        self._changed = dict.fromkeys(PARTS[: -len(LAYERS)], 0)
        self.apply()

    def _make(self, lane: int, vmm_logs: dict[str, list[Any]]) -> LaneStack:
        if not self.stacks:
            self.logs = Logs(vmm_logs, self._tpt_logs, [], [], [], [], [], [], [])
        stack = LaneStack(lane, self.logs, **self._given)
        self.stacks.append(stack)
        return stack

    @property
    def changed(self) -> dict[str, int]:
        """How often the reference has changed each part of the state."""
        found = dict(self._changed)
        for layer in LAYERS:
            part = getattr(self, layer).changed
            found[layer] = sum(count for name, count in part.items() if name not in ("memory", "words", "disk"))
        return found

    # -- what the reference did --------------------------------------------------------------------------------------------

    def apply(self) -> Changes:
        """Bring the arrays up to date."""
        logs, changed = self.logs, self._changed
        self.vmm.note_granules(logs.memory)
        granules = self.tpt.note_granules("words", logs.memory)
        self.tpt.note_granules("disk", logs.disk)
        changed["memory"] += len(logs.memory)
        changed["swapped out"] += len(logs.disk)
        logs.memory.clear()
        logs.disk.clear()
        if logs.contents:
            changed["contents"] += len(logs.contents)
            lanes, frames, content, count = taken(logs.contents)
            at = lanes.astype(np.int64)
            self.contents[at, frames.astype(np.int64)], self.content_count[at] = content, count
        if logs.put_away:
            lanes, slots, content = taken(logs.put_away)
            self.put_away[lanes.astype(np.int64), slots.astype(np.int64)] = content
        if logs.bound:
            changed["bound"] += len(logs.bound)
            lanes, layer, page, content = taken(logs.bound)
            for number, name in enumerate((CVM, ORC)):
                mine = layer == number
                self.bound[name][lanes[mine].astype(np.int64), page[mine].astype(np.int64)] = content[mine]
        if logs.started:
            changed["started"] += len(logs.started)
            lanes, device, vm = taken(logs.started)
            self.started[lanes.astype(np.int64), device.astype(np.int64)] = vm
        vmm, tpt = self.vmm.apply(), self.tpt.apply()
        if len(granules[0]):
            tpt["words"] = granules[:2]
        return Changes(vmm, tpt, self.cvm.apply(), self.orc.apply(), granules)

    # -- comparing ---------------------------------------------------------------------------------------------------------

    def own(self) -> list[tuple[str, Words, Words]]:
        """What is the stack's own: as the reference and as the fast path have it."""
        batch = self.batch
        found = [
            ("contents", self.contents, batch.contents),
            ("put away", self.put_away, batch.put_away),
            ("content count", self.content_count[:, None], batch.content_count[:, None]),
            ("started", self.started, batch.started),
        ]
        return [*found, *((f"bound {name}", mine, batch.pages[name].bound) for name, mine in self.bound.items())]

    def differing(self) -> Flags:
        """The lanes whose whole state isn't the fast path's."""
        wrong = self.vmm.differing() | self.tpt.differing() | self.cvm.differing() | self.orc.differing()
        for _name, mine, theirs in self.own():
            if not np.array_equal(mine, theirs):
                wrong |= (mine != theirs).any(axis=1)
        return wrong

    def misread(self) -> Flags:
        """The lanes of which the arrays aren't what the reference holds, read anew, or memory isn't the fast path's."""
        for mirror in (self.cvm, self.orc):
            mirror.granule_tags[:], mirror.halves[:] = mirror.batch.memory.tags, mirror.batch.memory.halves
        wrong = self.vmm.misread() | self.tpt.misread() | self.orc.misread()
        wrong[self.cvm.misread()] = True
        for lane, stack in enumerate(self.stacks):
            for frame in range(self.contents.shape[1]):
                wrong[lane] |= stack._contents.get(frame, 0) != self.contents[lane, frame]
            for slot in range(SWAP_SLOTS):
                wrong[lane] |= stack._put_away.get(slot, 0) != self.put_away[lane, slot]
            for name, mine in self.bound.items():
                wrong[lane] |= [content_number(each) for each in stack.pages[name].bound] != mine[lane].tolist()
            wrong[lane] |= any(self.started[lane, device] != vm for device, vm in stack.started.items())
        return wrong
