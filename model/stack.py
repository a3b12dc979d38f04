"""The four systems together: a para-pass-through VMM, VMs of translation pass-through, cVMs and shared objects in a VM.

Each layer is its own reference, unchanged; here is the one memory below them, the view that each has of it, and what they
owe each other where they meet. A step of a layer begins (`begin`), is taken by the layer's own rules, and ends (`end`); what
it touched of the machine's memory is noted. The specification is spec/stack.md.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from capvisor.model import object_system, paging, tpt, vmm, vmm_devices
from capvisor.model.bits import select
from capvisor.model.memory import EMPTY, Granule, Memory, SparseStore, Sweep
from capvisor.model.paging import Fault
from capvisor.model.stack_memory import Frame, Granules, MachineMemory, owned_frames
from capvisor.model.tables import Rows
from capvisor.model.tags import TagTable
from capvisor.model.tpt import FrameRow, Touch
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, FREE, HOST, WORDS_PER_FRAME, Access
from capvisor.spec.stack import (
    GRANULE_BITS,
    GRANULES_PER_FRAME,
    WORDS_PER_BLOCK,
    WORDS_PER_GRANULE,
    Code,
    LayerName,
    Via,
    Who,
    tag_table_frames,
)
from capvisor.spec.stack_policy import INTENDED, StackPolicy
from capvisor.spec.tag_policy import INTENDED as TAGS_INTENDED
from capvisor.spec.tag_policy import TagPolicy
from capvisor.spec.tpt import SWAP_SLOTS, FaultKind
from capvisor.spec.vmm import BLOCK_SHIFT, ChannelState, Register
from capvisor.spec.vmm_policy import INTENDED as VMM_INTENDED
from capvisor.spec.vmm_policy import VmmPolicy

VmId = int
DeviceId = int
Content = Any
"""What a frame holds, as a number that it keeps when the host moves it; if it holds nothing of a VM's, the frame itself."""

VMM_LAYER, TPT_LAYER, CVM, ORC = (layer.value for layer in LayerName)
_BUSY = (
    *(ChannelState.PIO_IN, ChannelState.PIO_OUT, ChannelState.DMA_READY),
    *(ChannelState.COPYING_OUT, ChannelState.MOVING, ChannelState.COPYING_IN),
)
_REFUSED_AS = {
    Via.CPU: vmm_spec.Code.UNMAPPED,
    Via.DEVICE: vmm_spec.Code.IOMMU,
    Via.MEDIATOR: vmm_spec.Code.FAILED,
    Via.EXTENSION: vmm_spec.Code.CONFINED,
}
"""How the VMM's own operations end where a frame's owner is another."""


class Halt(Exception):  # noqa: N818 - as a refusal of a layer is none, neither is this an error
    """A step that doesn't begin."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


class Principal(NamedTuple):
    """For whom memory is accessed: of a VM, its number; of a cVM or tenant, its own."""

    who: Who
    vm: VmId = FREE
    number: int = 0


class MemoryAccess(NamedTuple):
    """An access to the machine's memory: for whom and by what, where, and what was true then."""

    principal: Principal
    via: Via
    frame: Frame
    word: int
    words: int
    is_write: bool
    owner: int
    """Whose the frame was, by its own tag."""
    is_pending: bool
    """Whether the vCPU had been asked to forget the frame and hadn't acknowledged."""
    places: tuple[tuple[str, int], ...]
    """The layer and the address of each byte of a monitor's memory that the first word is."""
    device: DeviceId = 0


class Before(NamedTuple):
    """What a step is compared with."""

    tagged: dict[tuple[Content, int], Granule]
    """Granules that are tagged, by the content that they are of and which of its granules: also of what is put away."""
    owners: dict[Frame, int]
    bound: tuple[Content, ...]
    is_stopped: bool
    objects: Any
    """`spec.orc_invariants.Before`, if there are shared objects."""


# -- views -----------------------------------------------------------------------------------------------------------------


class Blocks(Rows):
    """The VMM's view: a table of blocks. A block is its first word; to write it clears the other words, and their tags."""

    def __init__(self, memory: MachineMemory) -> None:
        self._memory, self._empty = memory, 0
        self.keeps_tags = False

    def __getitem__(self, address: int | None) -> int:
        if address is None:  # no row: what those have that were never written
            return self._empty
        frame, block = address >> BLOCK_SHIFT, address & (1 << BLOCK_SHIFT) - 1
        return self._memory.word(frame, block * WORDS_PER_BLOCK)

    def __setitem__(self, address: int, word: int) -> None:
        frame, block = address >> BLOCK_SHIFT, address & (1 << BLOCK_SHIFT) - 1
        granules = WORDS_PER_BLOCK // WORDS_PER_GRANULE
        for number in range(block * granules, (block + 1) * granules):
            tag = self.keeps_tags and self._memory.get(frame, number).tag
            self._memory.set(frame, number, Granule(tag, 0, word if number == block * granules else 0))

    def __copy__(self) -> Rows:
        """The blocks as they are now."""
        copied = Rows(self._empty)
        copied.rows = self.rows
        return copied

    @property
    def rows(self) -> dict[int, int]:  # type: ignore[override]
        """The blocks whose first word isn't zero."""
        words = self._memory.words()
        found = ((frame, *divmod(index, WORDS_PER_BLOCK), word) for frame, index, word in words)
        return {frame << BLOCK_SHIFT | block: word for frame, block, within, word in found if within == 0}


class HostsFrames(Rows):
    """The host's books of frames: of those that it never had, the VMM's, they don't say that they are clean."""

    def __init__(self, region: tuple[Frame, Frame]) -> None:
        super().__init__(FrameRow())
        self._region = region

    def __getitem__(self, frame: Frame) -> FrameRow:
        is_vmms = self._region[0] <= frame < self._region[1]
        found: FrameRow = self.rows.get(frame, FrameRow(is_clean=not is_vmms))
        return found


class Words:
    """The view of translation pass-through: a store of words by frame."""

    def __init__(self, stack: "Stack", granules: Granules) -> None:
        self._stack, self.granules = stack, granules
        self._is_memory = isinstance(granules, MachineMemory)

    @property
    def words(self) -> "WordsByFrame":
        """By frame and index, the words that aren't zero."""
        return WordsByFrame(self.granules)

    def written(self) -> Iterator[tuple[Frame, int, int]]:
        """Frame, index and value of every word that isn't zero."""
        return self.granules.words()

    def get(self, frame: Frame, index: int) -> int:
        self._note(frame, index, 1, False)
        return self.granules.word(frame, index)

    def set(self, frame: Frame, index: int, value: int) -> None:
        self._note(frame, index, 1, True)
        keeps = self._stack.via is Via.DEVICE and not self._stack.policy.dma_clears_tags
        self.granules.set_word(frame, index, value, keeps)

    def clear(self, frame: Frame) -> None:
        self._note(frame, 0, WORDS_PER_FRAME, True)
        self.granules.clear(frame)

    def copy(self, target: Frame, store: "Words", source: Frame) -> None:
        store._note(source, 0, WORDS_PER_FRAME, False)
        self._note(target, 0, WORDS_PER_FRAME, True)
        self.granules.copy(target, store.granules, source)

    def _note(self, frame: Frame, index: int, count: int, is_write: bool) -> None:
        if self._is_memory and self._stack.is_within:
            self._stack.check_words(frame, is_write)
            self._stack.note(frame, index, count, is_write)
            if is_write:
                self._stack.note_written(frame)


class WordsByFrame:
    """The words of frames, each looked up when it is asked for."""

    def __init__(self, granules: Granules) -> None:
        self._granules = granules

    def get(self, frame: Frame, _default: Any = None) -> dict[int, int]:
        """Those of a frame that aren't zero, by index."""
        return self._granules.words_of(frame)


class Pages(SparseStore):
    """A monitor's view: granules of its memory, whose pages the VM's tables translate.

    While a step is under way, a page is in the frame that was found as it began; else what it holds is where its content is.
    Memory begins at a page. Raises ValueError where it doesn't.
    """

    def __init__(self, stack: "Stack", layer: str, vm: VmId, memory: Memory) -> None:
        super().__init__()
        if memory.base & (1 << FRAME_SHIFT) - 1:
            raise ValueError(f"the memory of `{layer}` begins at a multiple of {1 << FRAME_SHIFT}")
        self._stack, self.layer, self.vm, self.base = stack, layer, vm, memory.base
        self.count = -(-memory.size_bytes >> FRAME_SHIFT)
        self.bound: list[Content] = [None] * self.count
        """By page, its content; None before the first step."""
        self.found: list[Frame | Fault] | None = None
        """By page, the frame, or why there is none."""

    # -- while a step is under way

    def resolve(self, vcpu: int) -> None:
        """Find all pages as a vCPU does for a write. Raises Fault for a page that isn't there, Halt for another content."""
        stack = self._stack
        found: list[Frame | Fault] = []
        levels = stack.tpt.vms[self.vm].levels
        for page in range(self.count):
            address = paging.cut(self.base + (page << FRAME_SHIFT), levels)
            try:
                found.append(stack.tpt.translated(vcpu, address, Access.WRITE.value, False))
            except Fault as fault:
                if stack.policy.resident_first:
                    raise
                found.append(fault)
        contents = [None if isinstance(frame, Fault) else stack.content_of(frame) for frame in found]
        if contents != self.bound:
            self._bind(contents)
        self.found = found

    def _bind(self, contents: list[Content]) -> None:
        """Bind pages to what was found there, None where nothing was. Raises Halt."""
        stack = self._stack
        if stack.policy.pages_bound:
            others = {each for pages in stack.pages.values() if pages is not self for each in pages.bound}
            fresh = [content for content, bound in zip(contents, self.bound, strict=True) if bound is None]
            taken = {*others, *self.bound} - {None}
            for content, bound in zip(contents, self.bound, strict=True):
                if content is None:
                    continue
                is_first = bound is None and isinstance(content, int) and content not in taken and fresh.count(content) == 1
                if content != bound and not is_first:
                    raise Halt(Code.MOVED)
        self.bound = [bound if content is None else content for content, bound in zip(contents, self.bound, strict=True)]

    def _frame(self, index: int) -> Frame:
        assert self.found is not None
        frame = self.found[index >> GRANULE_BITS]
        if isinstance(frame, Fault):
            raise frame
        return frame

    def get(self, index: int) -> Granule:
        number = index & GRANULES_PER_FRAME - 1
        if self.found is None:
            return self.kept(index)
        frame = self._frame(index)
        self._stack.note_granule(frame, number, False)
        return self._stack.memory.get(frame, number)

    def set(self, index: int, granule: Granule) -> None:
        frame, number = self._frame(index), index & GRANULES_PER_FRAME - 1
        self._stack.note_granule(frame, number, True)
        self._stack.memory.set(frame, number, granule)

    def map(self, function: Sweep) -> None:
        assert self.found is not None
        for page, frame in enumerate(self.found):
            if isinstance(frame, Fault):
                continue
            for number, granule in self._stack.memory.of_frame(frame).items():
                swept = function(page * GRANULES_PER_FRAME + number, granule)
                if swept != granule:
                    self._stack.note_granule(frame, number, True)
                    self._stack.memory.set(frame, number, swept)

    # -- as invariants look at it

    def kept(self, index: int) -> Granule:
        """What a granule holds, wherever its page is."""
        return self._page(index // GRANULES_PER_FRAME).get(index % GRANULES_PER_FRAME, EMPTY)

    def _page(self, page: int) -> dict[int, Granule]:
        content = self.bound[page]
        return {} if content is None else self._stack.held_by(content)

    def __copy__(self) -> SparseStore:
        copied = SparseStore()
        for index, granule in self.written():
            copied.set(index, granule)
        return copied

    def written(self) -> Iterator[tuple[int, Granule]]:
        for page in range(self.count):
            for number, granule in self._page(page).items():
                yield page * GRANULES_PER_FRAME + number, granule


# -- the VMM among the others ----------------------------------------------------------------------------------------------


class HostedVmm(vmm.System):
    """A VMM on whose memory others have views: whom it touches a block for is looked up in the owners of frames."""

    def __init__(
        self,
        stack: "Stack",
        frames: int,
        region: tuple[Frame, Frame],
        vcpus: int,
        devices: int,
        policy: VmmPolicy,
        cipher: vmm.Cipher | None = None,
        hooks: tuple[Any, ...] = (),
    ) -> None:
        self._stack = stack
        self._blocks = Blocks(stack.memory)
        super().__init__(frames, region, vcpus, devices, policy, cipher, self._table, hooks)

    def _table(self, name: str, empty: Any) -> Any:
        return self._blocks if name == "memory" else self._stack.make_table(VMM_LAYER, name, empty)

    def read(self, actor: str, number: int, address: int) -> int:
        self._stack.check_block(Via(actor), number, address, False)
        return super().read(actor, number, address)

    def write(self, actor: str, number: int, address: int, word: int) -> None:
        self._stack.check_block(Via(actor), number, address, True)
        self._blocks.keeps_tags = actor == Via.DEVICE.value and not self._stack.policy.dma_clears_tags
        super().write(actor, number, address, word)
        self._blocks.keeps_tags = False


def place_of_tables(policy: StackPolicy, region: tuple[Frame, Frame], needed: int) -> tuple[Frame, bool]:
    """The first of so many frames that the tables of tags are, and whether there is room for them."""
    first = (region[1] if policy.tables_in_region else region[0]) - needed
    return first, first >= (region[0] + vmm_spec.LEAST_REGION if policy.tables_in_region else 0)


class Stack:
    """One machine with all four: `frames`, the VMM's region [first, behind), so many vCPUs for VMs and devices, from 1.

    The host has one vCPU more, the last. Monitors come by `host`. Raises ValueError where the region doesn't hold the tables
    of tags that are to be in it, and as the layers do.
    """

    memory_type: type[MachineMemory] = MachineMemory
    disk_type: type[Granules] = Granules
    pages_type: type[Pages] = Pages

    def __init__(
        self,
        frames: int,
        region: tuple[Frame, Frame],
        vcpus: int = 2,
        devices: int = 0,
        policy: StackPolicy = INTENDED,
        vmm_policy: VmmPolicy = VMM_INTENDED,
        tag_policy: TagPolicy = TAGS_INTENDED,
        owners: TagTable | None = None,
        cipher: vmm.Cipher | None = None,
        hooks: tuple[Any, ...] = (),
    ) -> None:
        self.policy = policy
        self.owners = TagTable(frames) if owners is None else owners
        needed = sum(tag_table_frames(frames))
        first_table, has_room = place_of_tables(policy, region, needed)
        if not has_room:
            raise ValueError(f"{needed} frames are the tables of tags: the last of the region, or those before it")
        self.memory = self.memory_type(frames, first_table, self.owners)
        self.disk = self.disk_type(SWAP_SLOTS)
        self.region = region
        self.vmm = HostedVmm(self, frames, region, vcpus + 1, devices, vmm_policy, cipher, hooks)
        self.tpt = tpt.System(
            frames,
            vcpus,
            devices + 1,
            tag_policy,
            lambda name, empty: self.make_table(TPT_LAYER, name, empty),
            memory=Words(self, self.memory),
            disk=Words(self, self.disk),
            tags=self.owners,
        )
        self.monitors: dict[str, Any] = {}
        """By layer, the Intravisor and the base of shared objects."""
        self.pages: dict[str, Pages] = {}
        self._contents: dict[Frame, int] = {}
        self._put_away: dict[int, int] = {}
        self._lost: dict[int, dict[int, Granule]] = {}
        self._content_count = 0
        self.started: dict[DeviceId, VmId] = {}
        """By device, for whom its bus master was started last: a VM, or FREE for the host."""
        self.issuer: VmId = FREE
        """For whom the register is accessed that the step under way accesses."""
        self.is_within = False
        self.via, self.principal, self.vcpu, self.device = Via.BOOKS, Principal(Who.HOST), 0, 0
        self.accesses: list[MemoryAccess] = []
        self.is_crossed = False
        """Whether an access of the VMM's step was refused because the frame is another's."""

    def make_table(self, layer: str, name: str, empty: Any) -> Any:
        """A table of the VMM's or of translation pass-through's."""
        return HostsFrames(self.region) if (layer, name) == (TPT_LAYER, "frames") else Rows(empty)

    # -- monitors

    def host(self, layer: str, monitor: Any, vm: VmId) -> None:
        """Let a monitor's memory be that of a VM. Raises ValueError where it doesn't begin at a page."""
        self.pages[layer] = self.pages_type(self, layer, vm, monitor.memory)
        monitor.memory.store = self.pages[layer]
        self.monitors[layer] = monitor

    @property
    def bound(self) -> tuple[Content, ...]:
        """The contents of all pages of monitors, None for those that weren't used yet."""
        return tuple(content for pages in self.pages.values() for content in pages.bound)

    def is_bound(self, frame: Frame, vm: VmId) -> bool:
        """Whether what a frame holds is a page of one of a VM's monitors."""
        return any(self.content_of(frame) in pages.bound for pages in self.pages.values() if pages.vm == vm)

    def is_kept(self, frame: Frame) -> bool:
        """Whether a frame holds memory of shared objects."""
        return ORC in self.pages and self.content_of(frame) in self.pages[ORC].bound

    # -- contents

    def content_of(self, frame: Frame) -> Content:
        """What a frame holds."""
        return self._contents.get(frame, ("frame", frame))

    def held_by(self, content: Content) -> dict[int, Granule]:
        """The granules of a content that aren't empty, wherever it is; of one that is lost, what they were."""
        if isinstance(content, tuple):
            return self.memory.of_frame(content[1])
        for frame, each in self._contents.items():
            if each == content:
                return self.memory.of_frame(frame)
        for slot, each in self._put_away.items():
            if each == content:
                return self.disk.of_frame(slot)
        return self._lost.get(content, {})

    def granules_of(self, frames: Iterator[Frame]) -> dict[Frame, dict[int, Granule]]:
        """The granules of some frames that aren't empty."""
        return {frame: self.memory.of_frame(frame) for frame in frames}

    def follow(self, name: str, operands: tuple[Any, ...], held: dict[Frame, dict[int, Granule]]) -> None:
        """Note where contents have gone with an operation of the host's, before which some frames held something."""
        if name == "assign":
            self._lose(operands[0], held)
            self._content_count += 1
            self._contents[operands[0]] = self._content_count
        elif name in ("scrub", "claim"):
            self._lose(operands[0], held)
        elif name == "migrate":
            source, target = operands
            self._lose(target, held)
            self._move(self._contents, source, self._contents, target)
        elif name == "swap_out":
            self._move(self._contents, operands[0], self._put_away, operands[1])
        elif name == "swap_in":
            self._lose(operands[0], held)
            self._move(self._put_away, operands[1], self._contents, operands[0])

    def _lose(self, frame: Frame, held: dict[Frame, dict[int, Granule]]) -> None:
        content = self._contents.pop(frame, None)
        if content is not None:
            self._lost[content] = held[frame]

    @staticmethod
    def _move(source: dict[int, int], from_place: int, target: dict[int, int], to_place: int) -> None:
        if from_place in source:
            target[to_place] = source.pop(from_place)

    def tagged(self) -> dict[tuple[Content, int], Granule]:
        """Granules that are tagged, by content and number, of memory and of what is put away; not what is left behind in
        frames that are nobody's.
        """
        tagged = self.memory.tagged().items()
        found = {
            (self.content_of(frame), number): each
            for (frame, number), each in tagged
            if frame in self._contents or self.owners[frame] >= FIRST_VM
        }
        for (slot, number), each in self.disk.tagged().items():
            if slot in self._put_away:
                found[self._put_away[slot], number] = each
        return found

    # -- who is who

    def owned(self) -> dict[Frame, int]:
        """The owners of frames that are somebody's."""
        return owned_frames(self.owners)

    def running(self, vcpu: int) -> VmId:
        """The VM that a vCPU runs for, FREE for the host."""
        return self.tpt.vcpus[vcpu].vm if vcpu < self.tpt.vcpu_count else FREE

    def vcpu_of(self, vm: VmId) -> int:
        """The first vCPU that runs for a VM. Raises Halt."""
        for vcpu in range(self.tpt.vcpu_count):
            if self.tpt.vcpus[vcpu].vm == vm:
                return vcpu
        raise Halt(Code.NO_VCPU)

    def owner_of(self, device: DeviceId) -> Principal:
        """Whose a device is."""
        vm = self.tpt.devices[device]
        return Principal(Who.HOST) if vm == FREE else Principal(Who.VM, vm)

    def device_at(self, space: int, number: int) -> DeviceId:
        """The device whose register that is, as it or its mediator is reached; 0: none."""
        key = space, number >> vmm_spec.WINDOW_SHIFT
        hook = self.vmm.hooked[key]
        return select(hook != 0, hook, self.vmm.decoded[key])

    def is_busy(self, device: DeviceId) -> bool:
        """Whether a command of a device is under way, there or at its mediator."""
        state = self.vmm.channels[device].state
        return self.vmm.devices[device].opcode != 0 or (self.vmm.is_mediated(device) and state in _BUSY)

    @property
    def is_stopped(self) -> bool:
        """Whether nothing may run: the VMM has stopped the machine, or the guest."""
        try:
            self.vmm.check_runs()
        except vmm.Refused:
            return True
        return False

    # -- steps

    def begin(self, layer: str, via: Via, principal: Principal, vcpu: int = 0, device: DeviceId = 0) -> Before:
        """A step is about to be taken."""
        before, self.is_crossed = self.before(), False
        self.via, self.principal, self.vcpu, self.device = via, principal, vcpu, device
        self.is_within = layer in (TPT_LAYER, VMM_LAYER)
        return before

    def before(self) -> Before:
        """What a step is compared with, of which nothing is noted yet."""
        self.accesses = []
        self.tpt.touches.clear()
        objects = object_system.before(self.monitors[ORC]) if ORC in self.monitors else None
        return Before(self.tagged(), self.owned(), self.bound, self.is_stopped, objects)

    def enter(self, layer: str) -> None:
        """A step of a monitor or of its guests goes on, if all of its memory is there. Raises Halt and Fault."""
        if self.policy.stop_reaches_all and self.is_stopped:
            raise Halt(Code.STOPPED)
        pages = self.pages[layer]
        self.vcpu = self.vcpu_of(pages.vm)
        via, principal = self.via, self.principal
        self.via, self.principal, self.is_within = Via.CPU, Principal(Who.VM, pages.vm), True
        try:
            pages.resolve(self.vcpu)
        finally:
            self.via, self.principal = via, principal

    def end(self) -> tuple[MemoryAccess, ...]:
        """A step was taken, or wasn't; what it accessed."""
        self.is_within = False
        for pages in self.pages.values():
            pages.found = None
        return tuple(self.accesses)

    # -- accesses

    def note(self, frame: Frame, word: int, words: int, is_write: bool, device: DeviceId = 0) -> None:
        """Note an access to memory, by whom the step is taken for."""
        pending = (frame < self.tpt.frame_count) & self.tpt.is_pending(frame, self.vcpu)
        places = self._places(frame, word)
        access = (self.principal, self.via, frame, word, words, is_write, self.owners[frame], pending, places, device)
        self.accesses.append(MemoryAccess(*access))

    def note_written(self, frame: Frame) -> None:
        """What is written here is to be sent again, if the machine's memory is being moved."""
        if self.policy.track_all_writes:
            self.vmm.clean[frame] = False

    def _places(self, frame: Frame, word: int) -> tuple[tuple[str, int], ...]:
        content, offset = self.content_of(frame), word * (1 << FRAME_SHIFT) // WORDS_PER_FRAME
        return tuple(
            (pages.layer, pages.base + (page << FRAME_SHIFT) + offset)
            for pages in self.pages.values()
            for page, bound in enumerate(pages.bound)
            if bound == content
        )

    def note_granule(self, frame: Frame, number: int, is_write: bool) -> None:
        """Note an access of a monitor or of its guests."""
        word = number * WORDS_PER_GRANULE
        self.note(frame, word, WORDS_PER_GRANULE, is_write)
        if is_write:
            self.note_written(frame)
        pending = self.tpt.is_pending(frame, self.vcpu)
        touch = Touch("data", self.principal.vm, frame, word, is_write, self.owners[frame], pending)
        self.tpt.touches.append(touch)

    def check_words(self, frame: Frame, is_write: bool) -> None:
        """Whether what accesses a word may do so as far as the other layers are concerned. Raises Fault and Halt."""
        is_device = self.via is Via.DEVICE
        if is_device:
            bit = vmm_devices.WRITE if is_write else vmm_devices.READ
            if vmm_devices.rights(self.vmm, self.device, frame) & bit == 0:
                raise Fault(FaultKind.IOMMU, frame=frame)
        if is_write and self.via is not Via.BOOKS and self.policy.base_memory_kept and self.is_kept(frame):
            raise Fault(FaultKind.IOMMU, frame=frame) if is_device else Halt(Code.KEPT)

    def check_block(self, via: Via, number: int, address: int, is_write: bool) -> None:
        """The same of a block that the VMM touches for somebody. Raises vmm.Refused."""
        frame = address >> BLOCK_SHIFT
        self.via = via
        self.principal = self.owner_of(number) if via in (Via.DEVICE, Via.MEDIATOR) else Principal(Who.HOST)
        if not self.vmm.in_region(frame):
            is_refused = self._is_anothers(via, number, frame)
            is_refused |= is_write and self.policy.base_memory_kept and self.is_kept(frame)
            if is_refused:
                self.is_crossed = True
                raise vmm.Refused(_REFUSED_AS[via])
        device = number if via in (Via.DEVICE, Via.MEDIATOR) else 0
        first = (address & (1 << BLOCK_SHIFT) - 1) * WORDS_PER_BLOCK
        self.note(frame, first, WORDS_PER_BLOCK, is_write, device)

    def _is_anothers(self, via: Via, number: int, frame: Frame) -> bool:
        """Whether the look-up of a frame's owner refuses an access to it."""
        vm, found = self.principal.vm, self.owners.looked_up(frame)
        if via is Via.MEDIATOR:
            return self.policy.mediator_checks_tags and found != (HOST if vm == FREE else vm)
        if via is Via.EXTENSION:
            return self.policy.extensions_check_tags and found != HOST
        if vm == FREE:
            return self.policy.host_claims_first and found != HOST
        is_checked = frame < self.tpt.frame_count and self.tpt.iotlb[frame] >> number & 1 != 0
        return self.tpt.policy.check_dma and not is_checked and found != vm

    def abort(self, device: DeviceId) -> None:
        """End the command of a device whose buffers turned out to be another's."""
        self.vmm.devices[device] = vmm_devices.ended(self.vmm.devices[device], True)
        if self.vmm.is_mediated(device):
            channel = self.vmm.channels[device]
            self.vmm.channels[device] = channel._replace(state=ChannelState.ERROR)

    def note_started(self, vcpu: int, space: int, number: int, value: int) -> None:
        """Note for whom a bus master is started."""
        device, register = self.device_at(space, number), number & (1 << vmm_spec.WINDOW_SHIFT) - 1
        if (device != 0) & (register == Register.START) & (value & vmm_spec.START_BIT != 0):
            self.started[device] = self.running(vcpu)
