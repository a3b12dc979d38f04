"""Translation pass-through: guests write the tables that the processor walks, and the tags of frames keep guests apart.

What the host, the guests, the processors and devices do to a system is in `model.tpt_operations`, as rules over this state.
The specification is spec/tpt.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from capvisor.model import paging
from capvisor.model.bits import not_, select
from capvisor.model.paging import WRITE, Fault, Frame, Space, SparseWords, Walk, Word, WordStore
from capvisor.model.tables import Rows, Table
from capvisor.model.tags import TagTable
from capvisor.model.tlb import Tlb, matches
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, FREE, WORDS_PER_FRAME, Mode, frames_of
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import CACHE_SLOTS, MAX_DEVICES, MAX_FRAMES, MAX_VCPUS, SWAP_SLOTS, TLB_SLOTS, Code, FaultKind

VmId = int
VcpuId = int
TPT = Mode.TPT.value


class Refused(Exception):  # noqa: N818 - as a trap is none, neither is this an error
    """An operation that is refused: nothing has changed."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


class FrameRow(NamedTuple):
    """What the host's books say of a frame: has it been cleared, whose content does it hold, and as which guest frame."""

    is_clean: bool = True
    vm: VmId = 0
    guest_frame: Frame = 0
    is_leaving: bool = False
    """Whether it is to lose its tag once all vCPUs have acknowledged (guard `retag_before_shootdown` off)."""


class Vm(NamedTuple):
    """A VM: an enlightened guest (mode TPT) or a plain one (NESTED), and how many levels its tables have."""

    is_live: bool = False
    mode: int = 0
    levels: int = 0


class Mapping(NamedTuple):
    """Where a guest frame is."""

    is_mapped: bool = False
    frame: Frame = 0


class Vcpu(NamedTuple):
    """A processor: the VM that it runs for, under which ASID, and the slots that are filled next."""

    vm: VmId = 0
    asid: int = 0
    cr3: Word = 0
    next_tlb: int = 0
    next_cache: int = 0


class Swap(NamedTuple):
    """Content put away: whose, and which guest frame's."""

    is_live: bool = False
    vm: VmId = 0
    guest_frame: Frame = 0


class Touch(NamedTuple):
    """A word read or written for a VM, and what was true of its frame then."""

    kind: str
    """"data", "table" (read by the walker), "update" (an accessed or dirty bit), or "dma"."""
    vm: VmId
    frame: Frame
    word: int
    is_write: bool
    tag: int
    is_pending: bool
    """Whether the vCPU had been asked to forget the frame and hadn't acknowledged."""


class Retag(NamedTuple):
    """A change of a frame's own tag."""

    frame: Frame
    old: int
    new: int


class Handled(NamedTuple):
    """A frame that the host has cleared, copied or given away, and who had still to acknowledge then, a bit a vCPU."""

    frame: Frame
    pending: int


class System:
    """Frames and their tags, VMs, vCPUs, devices, and the host's books."""

    def __init__(
        self,
        frames: int,
        vcpus: int,
        devices: int = 0,
        policy: TagPolicy = INTENDED,
        make_table: Callable[[str, Any], Table] = lambda _name, empty: Rows(empty),
        memory: WordStore | None = None,
        disk: WordStore | None = None,
        tags: Any = None,
    ) -> None:
        if not (0 < frames <= MAX_FRAMES and 0 < vcpus <= MAX_VCPUS and 0 <= devices <= MAX_DEVICES):
            raise ValueError(f"a system has 1 to {MAX_FRAMES} frames, 1 to {MAX_VCPUS} vCPUs, 0 to {MAX_DEVICES} devices")
        self.frame_count, self.vcpu_count, self.device_count, self.policy = frames, vcpus, devices, policy
        self.memory: WordStore = SparseWords(frames) if memory is None else memory
        self.disk: WordStore = SparseWords(SWAP_SLOTS) if disk is None else disk
        self.tags = TagTable(frames) if tags is None else tags
        self.tlb = Tlb(make_table)
        self.frames = make_table("frames", FrameRow())
        self.pending = make_table("pending", 0)
        """By frame, a bit for each vCPU that hasn't acknowledged."""
        self.vms = make_table("vms", Vm())
        self.p2m = make_table("p2m", Mapping())
        """By VM and guest frame."""
        self.vcpus = make_table("vcpus", Vcpu())
        self.asids = make_table("asids", 0)
        """By vCPU and ASID, the VM whose translations are cached under it."""
        self.walks = make_table("walks", Walk())
        self.devices = make_table("devices", 0)
        """By device, its VM."""
        self.iotlb = make_table("iotlb", 0)
        """By frame, a bit for each device for which the IOMMU has looked its tag up."""
        self.swaps = make_table("swaps", Swap())
        self.touches: list[Touch] = []
        self.retags: list[Retag] = []
        self.handled: list[Handled] = []

    # -- frames ------------------------------------------------------------------------------------------------------------

    def is_pending(self, frame: Frame, vcpu: VcpuId) -> bool:
        """Whether a vCPU has been asked to forget a frame and hasn't acknowledged."""
        return self.pending[frame] >> vcpu & 1 != 0

    def retag(self, frame: Frame, tag: int) -> None:
        """Change a frame's own tag."""
        self.retags.append(Retag(frame, self.tags[frame], tag))
        self.tags[frame] = tag

    def handle(self, frame: Frame) -> None:
        """Note that the host is about to clear, copy or give away a frame."""
        self.handled.append(Handled(frame, self.pending[frame]))

    # -- vCPUs -------------------------------------------------------------------------------------------------------------

    def running(self, vcpu: VcpuId) -> tuple[Vcpu, Vm]:
        """A vCPU and the VM that it runs for. Raises Refused."""
        row = self.vcpus[vcpu]
        if row.vm == FREE:
            raise Refused(Code.NO_VM)
        return row, self.vms[row.vm]

    def space(self, vcpu: VcpuId) -> Space:
        """What a vCPU walks."""
        row, vm = self.running(vcpu)
        return TaggedSpace(self, vcpu, row, vm) if vm.mode == TPT else MappedSpace(self, vcpu, row, vm)

    def abort_walk(self, vcpu: VcpuId) -> None:
        """Drop the walk under way."""
        self.walks[vcpu] = Walk()

    def located(self, vm: VmId, guest_frame: Frame, kind: FaultKind = FaultKind.NESTED) -> Frame:
        """Where a plain guest's frame is. Raises Fault."""
        row = self.p2m[vm, guest_frame]
        if not_(row.is_mapped):
            raise Fault(kind, frame=guest_frame)
        return row.frame

    def fill(self, vcpu: VcpuId, walk: Walk) -> None:
        """Cache what a walk has found; what was cached of the address is dropped."""
        row = self.vcpus[vcpu]
        self.tlb.drop_translations(vcpu, lambda entry: matches(entry, row.asid, walk.address))
        self.tlb.fill(vcpu, row.next_tlb, row.asid, walk)
        self.vcpus[vcpu] = row._replace(next_tlb=row.next_tlb + 1 & TLB_SLOTS - 1)

    def touch(self, kind: str, vcpu: VcpuId, vm: VmId, frame: Frame, index: int, is_write: bool) -> None:
        """Note that a word is about to be accessed for a VM by a vCPU."""
        pending = self.pending[frame] >> vcpu & 1 != 0
        self.touches.append(Touch(kind, vm, frame, index, is_write, self.tags[frame], pending))

    # -- accesses ----------------------------------------------------------------------------------------------------------

    def translated(self, vcpu: VcpuId, address: int, access: int, is_user: bool) -> Frame:
        """The frame that an access by virtual address (cut) goes to: by the TLB, or by a walk. Raises Fault."""
        row, vm = self.running(vcpu)
        return self._translated(vcpu, row, vm, address, access, is_user)

    def _translated(self, vcpu: VcpuId, row: Vcpu, vm: Vm, address: int, access: int, is_user: bool) -> Frame:
        slot = self.tlb.hit(vcpu, row.asid, address, access, is_user)
        if slot != TLB_SLOTS:
            entry = self.tlb.translations[vcpu, slot]
            frame = entry.frame + in_page(address, entry.level)
            looks = self.policy.tag_check == "access" and self.policy.check_leaf
            if looks and (vm.mode == TPT) & (self.tags.looked_up(frame) != row.vm):
                self.tlb.drop_address(vcpu, row.asid, address)
                raise Fault(FaultKind.TAG, frame=frame)
            return frame
        try:
            walk = paging.translate(self.space(vcpu), address, access, is_user)
        except Fault:
            self.tlb.drop_address(vcpu, row.asid, address)
            raise
        self.fill(vcpu, walk)
        return paging.addressed_frame(walk)

    def access(self, vcpu: VcpuId, address: int, access: int, is_user: bool, value: Word = 0) -> Word:
        """Read, write or fetch the word at a virtual address. Raises Refused and Fault."""
        is_write = access == WRITE
        row, vm = self.running(vcpu)
        if not_(paging.is_canonical(address, vm.levels)):
            raise Fault(FaultKind.GENERAL)
        if address & 7 != 0:
            raise Fault(FaultKind.ALIGNMENT)
        frame = self._translated(vcpu, row, vm, paging.cut(address, vm.levels), access, is_user)
        index = address >> 3 & WORDS_PER_FRAME - 1
        self.touch("data", vcpu, row.vm, frame, index, is_write)
        if is_write:
            self.memory.set(frame, index, value)
            return 0
        return self.memory.get(frame, index)


def in_page(address: int, level: Any) -> Frame:
    """Which of the frames of its page an address is in; the level may stand for any."""
    frame: Any = 0
    for each, mask in _IN_PAGE:
        frame = select(level == each, address >> FRAME_SHIFT & mask, frame)
    return frame


_IN_PAGE = tuple((level, frames_of(level) - 1) for level in (2, 3))
"""Of each level of large pages, the bits of a frame's number that are within its page."""


class GuestSpace:
    """The tables of a VM as a vCPU walks them: what the two kinds of guests have in common."""

    def __init__(self, system: System, vcpu: VcpuId, row: Vcpu, vm: Vm) -> None:
        self.system, self.vcpu, self.row, self.vm = system, vcpu, row, vm

    def start(self, walk: Walk) -> Walk:
        tlb = self.system.tlb
        slot = tlb.deepest(self.vcpu, self.row.asid, walk.address)
        if slot == CACHE_SLOTS:
            return walk._replace(level=self.vm.levels, frame=paging.named_frame(self.row.cr3))
        entry = tlb.tables[self.vcpu, slot]
        return walk._replace(
            level=entry.level,
            frame=entry.frame,
            is_cached=True,
            is_writable=entry.is_writable,
            is_user_page=entry.is_user,
            is_executable=entry.is_executable,
        )

    def read(self, _walk: Walk, table: Frame, index: int) -> Word:
        self.system.touch("table", self.vcpu, self.row.vm, table, index, False)
        return self.system.memory.get(table, index)

    def again(self, table: Frame, index: int) -> Word:
        return self.system.memory.get(table, index)

    def write(self, _walk: Walk, table: Frame, index: int, value: Word) -> None:
        self.system.touch("update", self.vcpu, self.row.vm, table, index, True)
        self.system.memory.set(table, index, value)


class TaggedSpace(GuestSpace):
    """The tables of an enlightened guest name the machine's frames; the tags are looked up."""

    def table(self, walk: Walk) -> Frame:
        policy = self.system.policy
        below = policy.check_table_reads & (policy.tag_check == "access") if walk.is_cached else policy.check_table_reads
        at_root = not_(walk.is_cached) & (walk.level == self.vm.levels)
        self._check(policy.check_root if at_root else below, walk.frame)
        if not_(walk.is_cached) & (walk.level < self.vm.levels):
            row = self.system.vcpus[self.vcpu]
            self.system.tlb.keep_table(self.vcpu, row.next_cache, row.asid, walk)
            self.system.vcpus[self.vcpu] = row._replace(next_cache=row.next_cache + 1 & CACHE_SLOTS - 1)
        return walk.frame

    def table_again(self, walk: Walk) -> Frame:
        self._check(self.system.policy.check_accessed_dirty_writes, walk.frame)
        return walk.frame

    def _check(self, looks: bool, frame: Frame) -> None:
        if looks and self.system.tags.looked_up(frame) != self.row.vm:
            raise Fault(FaultKind.TAG, frame=frame)

    def page(self, _walk: Walk, base: Frame, level: int) -> tuple[Frame, int]:
        policy = self.system.policy
        if policy.check_leaf:
            count = frames_of(level) if policy.uniform_large_pages else 1
            if count == 1:
                self._check(True, base)
            elif not_(self.system.tags.uniform(base, count, self.row.vm)):
                raise Fault(FaultKind.TAG, frame=base, level=level)
        return base, level


class MappedSpace(GuestSpace):
    """The tables of a plain guest name guest frames; the host's map says where they are, page by page."""

    def table(self, walk: Walk) -> Frame:
        return self.system.located(self.row.vm, walk.frame)

    def table_again(self, walk: Walk) -> Frame:
        return self.system.located(self.row.vm, walk.frame)

    def page(self, walk: Walk, base: Frame, level: int) -> tuple[Frame, int]:
        return self.system.located(self.row.vm, base + paging.frame_in_page(walk.address, level)), 1


def is_vm(tag: int) -> bool:
    """Whether a tag is a VM's."""
    return tag >= FIRST_VM
