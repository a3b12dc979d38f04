"""The operations of translation pass-through: what each checks, in this order, and does. The rules: spec/tpt.md, 3 to 5."""

from collections.abc import Callable
from typing import Any

from capvisor.model import paging
from capvisor.model.bits import not_
from capvisor.model.paging import DONE, FETCH, READ_ACCESS, WRITE, Fault, Frame, Walk, Word
from capvisor.model.tags import REGION_FRAMES
from capvisor.model.tlb import covers, matches
from capvisor.model.tpt import FrameRow, Mapping, Refused, Swap, System, Touch, VcpuId, Vm, VmId, is_vm
from capvisor.spec.paging import (
    FIRST_VM,
    FRAME_NUMBERS,
    FREE,
    HOST,
    LEVELS,
    RESERVED_CR3,
    WORDS_PER_FRAME,
    Mode,
)
from capvisor.spec.tpt import ASIDS, CACHE_SLOTS, FIRST_ASID, MAX_VMS, SWAP_SLOTS, TLB_SLOTS, Code, FaultKind

Rule = Callable[..., Any]
OPERATION_RULES: dict[str, Rule] = {}
"""By name, the rule: a function of the system and the operands. It raises Refused and Fault; a load gives a word."""


def _operation(rule: Rule) -> Rule:
    OPERATION_RULES[rule.__name__] = rule
    return rule


def _refuse(condition: Any, code: Code) -> None:
    if condition:
        raise Refused(code)


def _check_vcpu(system: System, vcpu: VcpuId) -> None:
    if vcpu >= system.vcpu_count:
        raise Refused(Code.RANGE)


def _check_frame(system: System, frame: Frame) -> None:
    _refuse(frame >= system.frame_count, Code.RANGE)


def _check_vm(vm: VmId) -> None:
    _refuse((vm < FIRST_VM) | (vm >= FIRST_VM + MAX_VMS), Code.RANGE)


def _check_live(system: System, vm: VmId) -> None:
    _refuse(not_(system.vms[vm].is_live), Code.NO_VM)


# -- guests ----------------------------------------------------------------------------------------------------------------


@_operation
def load(system: System, vcpu: VcpuId, address: int, user: int) -> Word:
    """Read a word."""
    _check_vcpu(system, vcpu)
    return system.access(vcpu, address, READ_ACCESS, user != 0)


@_operation
def store(system: System, vcpu: VcpuId, address: int, value: Word, user: int) -> None:
    """Write a word."""
    _check_vcpu(system, vcpu)
    system.access(vcpu, address, WRITE, user != 0, value)


@_operation
def fetch(system: System, vcpu: VcpuId, address: int, user: int) -> Word:
    """Read a word as an instruction."""
    _check_vcpu(system, vcpu)
    return system.access(vcpu, address, FETCH, user != 0)


@_operation
def write_pte(system: System, vcpu: VcpuId, frame: Frame, index: int, value: Word) -> None:
    """Write a word of a frame as if through a mapping of the guest's own: nothing is cached, nothing else is checked."""
    # CHECKS
    _check_vcpu(system, vcpu)
    _refuse(index >= WORDS_PER_FRAME, Code.RANGE)
    row, vm = system.running(vcpu)
    if vm.mode == Mode.TPT:
        if system.policy.check_leaf & (system.tags.looked_up(frame) != row.vm):
            raise Fault(FaultKind.TAG, frame=frame)
    else:
        frame = system.located(row.vm, frame)
    # EFFECT
    system.touch("data", vcpu, row.vm, frame, index, True)
    system.memory.set(frame, index, value)


@_operation
def set_cr3(system: System, vcpu: VcpuId, value: Word) -> None:
    """Load CR3. Source: Intel SDM vol. 3A, 4.10.4.1."""
    # CHECKS
    _check_vcpu(system, vcpu)
    row, _vm = system.running(vcpu)
    if value & RESERVED_CR3 != 0:
        raise Fault(FaultKind.GENERAL)
    # EFFECT
    system.vcpus[vcpu] = row._replace(cr3=value)
    system.tlb.drop_translations(vcpu, lambda entry: (entry.asid == row.asid) & not_(entry.is_global))
    system.tlb.drop_tables(vcpu, lambda entry: entry.asid == row.asid)
    system.abort_walk(vcpu)


@_operation
def invlpg(system: System, vcpu: VcpuId, address: int) -> None:
    """Forget an address, and all tables. Source: Intel SDM vol. 3A, 4.10.4.1."""
    # CHECKS
    _check_vcpu(system, vcpu)
    row, vm = system.running(vcpu)
    # EFFECT
    system.tlb.drop_translations(vcpu, lambda entry: matches(entry, row.asid, paging.cut(address, vm.levels)))
    system.tlb.drop_tables(vcpu, lambda entry: entry.asid == row.asid)
    system.abort_walk(vcpu)


@_operation
def flush(system: System, vcpu: VcpuId) -> None:
    """Forget all that is cached for the VM. Source: Intel SDM vol. 3A, 4.10.4.1, CR4.PGE."""
    # CHECKS
    _check_vcpu(system, vcpu)
    row, _vm = system.running(vcpu)
    # EFFECT
    system.tlb.drop_asid(vcpu, row.asid)
    system.abort_walk(vcpu)


@_operation
def set_tag(system: System, vcpu: VcpuId, frame: Frame) -> None:
    """Try to make a frame one's own. Source: AMD APM vol. 3, RMPUPDATE: the host's."""
    # CHECKS
    _check_vcpu(system, vcpu)
    _check_frame(system, frame)
    row, _vm = system.running(vcpu)
    _refuse(system.policy.host_only_tags, Code.HOST_ONLY)
    # EFFECT
    system.retag(frame, row.vm)


# -- processors ------------------------------------------------------------------------------------------------------------


@_operation
def begin_walk(system: System, vcpu: VcpuId, address: int, access: int, user: int) -> None:
    """Start a walk; one that is under way is dropped."""
    # CHECKS
    _check_vcpu(system, vcpu)
    _refuse(access > FETCH, Code.RANGE)
    _row, vm = system.running(vcpu)
    if not_(paging.is_canonical(address, vm.levels)):
        raise Fault(FaultKind.GENERAL)
    # EFFECT
    system.walks[vcpu] = paging.begin(system.space(vcpu), paging.cut(address, vm.levels), access, user != 0)


@_operation
def step_walk(system: System, vcpu: VcpuId) -> None:
    """One reference of the walk under way; of one that is done, cache what it has found."""
    # CHECKS
    _check_vcpu(system, vcpu)
    row, _vm = system.running(vcpu)
    walk = system.walks[vcpu]
    _refuse(not_(walk.is_live), Code.NOTHING)
    # EFFECT
    if walk.stage == DONE:
        system.fill(vcpu, walk)
        system.walks[vcpu] = Walk()
        return
    try:
        system.walks[vcpu] = paging.advance(system.space(vcpu), walk)
    except Fault:
        system.tlb.drop_address(vcpu, row.asid, walk.address)
        system.walks[vcpu] = Walk()
        raise


@_operation
def evict(system: System, vcpu: VcpuId, slot: int) -> None:
    """Empty a slot of a TLB, or behind those of a page-walk cache."""
    _check_vcpu(system, vcpu)
    _refuse(slot >= TLB_SLOTS + CACHE_SLOTS, Code.RANGE)
    system.tlb.evict(vcpu, slot)


# -- the host --------------------------------------------------------------------------------------------------------------


@_operation
def create(system: System, vm: VmId, mode: int, levels: int) -> None:
    """Make a VM."""
    _check_vm(vm)
    known = ((mode == Mode.TPT) | (mode == Mode.NESTED)) & ((levels == LEVELS[0]) | (levels == LEVELS[1]))
    _refuse(not_(known), Code.RANGE)
    _refuse(system.vms[vm].is_live, Code.TAKEN)
    system.vms[vm] = Vm(True, mode, levels)


@_operation
def run(system: System, vcpu: VcpuId, vm: VmId, asid: int, cr3: Word) -> None:
    """Let a vCPU run for a VM, under an ASID. Source: AMD APM vol. 2, 15.16."""
    # CHECKS
    _check_vcpu(system, vcpu)
    _check_vm(vm)
    _refuse((asid < FIRST_ASID) | (asid >= ASIDS) | (cr3 & RESERVED_CR3 != 0), Code.RANGE)
    _check_live(system, vm)
    # EFFECT
    if system.policy.flush_on_asid_reuse & (system.asids[vcpu, asid] != vm):
        system.tlb.drop_asid(vcpu, asid)
    system.asids[vcpu, asid] = vm
    if system.policy.abort_walks_on_switch:
        system.abort_walk(vcpu)
    system.vcpus[vcpu] = system.vcpus[vcpu]._replace(vm=vm, asid=asid, cr3=cr3)


def _check_free(system: System, frame: Frame) -> None:
    _refuse(system.policy.free_frames_only & (system.tags[frame] != FREE), Code.NOT_FREE)


def _check_forgotten(system: System, frame: Frame) -> None:
    _refuse(system.policy.wait_for_acknowledgements & (system.pending[frame] != 0), Code.PENDING)


def _check_split(system: System, frame: Frame) -> None:
    _refuse(system.policy.split_before_retag & system.tags.is_large(frame), Code.LARGE)


def _check_admission(system: System, frame: Frame, vm: VmId, guest_frame: Frame) -> None:
    """What is required of a frame that a VM is to get."""
    _check_free(system, frame)
    _check_forgotten(system, frame)
    _refuse(system.policy.scrub_on_reuse & not_(system.frames[frame].is_clean), Code.UNCLEAN)
    _check_split(system, frame)
    _refuse(system.p2m[vm, guest_frame].is_mapped, Code.TAKEN)


def _give(system: System, frame: Frame, vm: VmId, guest_frame: Frame) -> None:
    """Make a frame a VM's."""
    system.retag(frame, vm)
    system.frames[frame] = FrameRow(False, vm, guest_frame)
    system.p2m[vm, guest_frame] = Mapping(True, frame)


@_operation
def assign(system: System, frame: Frame, vm: VmId, guest_frame: Frame) -> None:
    """Give a frame to a VM; of one that was another's before, this is its reuse."""
    # CHECKS
    _check_frame(system, frame)
    _check_vm(vm)
    _refuse(guest_frame >= FRAME_NUMBERS, Code.RANGE)
    _check_live(system, vm)
    _check_admission(system, frame, vm, guest_frame)
    # EFFECT
    system.handle(frame)
    _give(system, frame, vm, guest_frame)


@_operation
def reclaim(system: System, frame: Frame) -> None:
    """Take a frame from its VM; first the tag goes, then all vCPUs are asked to forget it."""
    # CHECKS
    _check_frame(system, frame)
    row = system.frames[frame]
    _refuse(not_(is_vm(system.tags[frame])), Code.NOT_OWNED)
    _refuse(row.is_leaving, Code.PENDING)
    _check_split(system, frame)
    # EFFECT
    mapping = system.p2m[row.vm, row.guest_frame]
    if system.policy.unmap_on_reclaim & is_vm(row.vm) & mapping.is_mapped & (mapping.frame == frame):
        system.p2m[row.vm, row.guest_frame] = Mapping()
    if system.policy.flush_iotlb:
        system.iotlb[frame] = 0
    if system.policy.retag_before_shootdown:
        system.retag(frame, FREE)
    else:
        system.frames[frame] = row._replace(is_leaving=True)
    system.pending[frame] = (1 << system.vcpu_count) - 1


@_operation
def acknowledge(system: System, vcpu: VcpuId, frame: Frame) -> None:
    """A vCPU forgets a frame."""
    # CHECKS
    _check_vcpu(system, vcpu)
    _check_frame(system, frame)
    _refuse(not_(system.is_pending(frame, vcpu)), Code.NOTHING)
    # EFFECT
    policy = system.policy
    if policy.shootdown_covers_large_pages:
        system.tlb.drop_translations(vcpu, lambda entry: covers(entry, frame))
    else:
        system.tlb.drop_translations(vcpu, lambda entry: entry.frame == frame)
    if policy.shootdown_reaches_walk_caches:
        system.tlb.drop_tables(vcpu, lambda entry: entry.frame == frame)
    if policy.abort_walks_on_acknowledge:
        system.abort_walk(vcpu)
    system.pending[frame] = system.pending[frame] & ~(1 << vcpu)
    row = system.frames[frame]
    if row.is_leaving & (system.pending[frame] == 0):
        system.retag(frame, FREE)
        system.frames[frame] = row._replace(is_leaving=False)


@_operation
def scrub(system: System, frame: Frame) -> None:
    """Clear a frame."""
    # CHECKS
    _check_frame(system, frame)
    _check_free(system, frame)
    _check_forgotten(system, frame)
    # EFFECT
    system.handle(frame)
    system.memory.clear(frame)
    system.frames[frame] = FrameRow(True, is_leaving=system.frames[frame].is_leaving)


@_operation
def claim(system: System, frame: Frame) -> None:
    """Take a frame for the host."""
    # CHECKS
    _check_frame(system, frame)
    _check_free(system, frame)
    _check_forgotten(system, frame)
    _check_split(system, frame)
    # EFFECT
    system.handle(frame)
    system.retag(frame, HOST)
    system.frames[frame] = FrameRow(False)


@_operation
def release(system: System, frame: Frame) -> None:
    """Let go of one of the host's frames."""
    _check_frame(system, frame)
    _refuse(system.tags[frame] != HOST, Code.NOT_OWNED)
    system.retag(frame, FREE)


def _check_reclaimed(system: System, frame: Frame) -> None:
    """What is required of a frame whose content is to go elsewhere: nobody can write to it any more."""
    _refuse((system.tags[frame] != FREE) | not_(is_vm(system.frames[frame].vm)), Code.NOT_RECLAIMED)
    _check_forgotten(system, frame)


@_operation
def migrate(system: System, source: Frame, target: Frame) -> None:
    """Put a reclaimed frame's content into another frame, which becomes the VM's."""
    # CHECKS
    _check_frame(system, source)
    _check_frame(system, target)
    _check_reclaimed(system, source)
    row = system.frames[source]
    _check_admission(system, target, row.vm, row.guest_frame)
    # EFFECT
    system.handle(source)
    system.handle(target)
    system.memory.copy(target, system.memory, source)
    system.frames[source] = FrameRow(False)
    _give(system, target, row.vm, row.guest_frame)


@_operation
def swap_out(system: System, frame: Frame, swap_slot: int) -> None:
    """Put a reclaimed frame's content away."""
    # CHECKS
    _check_frame(system, frame)
    _refuse(swap_slot >= SWAP_SLOTS, Code.RANGE)
    _check_reclaimed(system, frame)
    _refuse(system.swaps[swap_slot].is_live, Code.TAKEN)
    # EFFECT
    system.handle(frame)
    row = system.frames[frame]
    system.disk.copy(swap_slot, system.memory, frame)
    system.swaps[swap_slot] = Swap(True, row.vm, row.guest_frame)
    system.frames[frame] = FrameRow(False)


@_operation
def swap_in(system: System, frame: Frame, swap_slot: int) -> None:
    """Bring content back."""
    # CHECKS
    _check_frame(system, frame)
    _refuse(swap_slot >= SWAP_SLOTS, Code.RANGE)
    row = system.swaps[swap_slot]
    _refuse(not_(row.is_live), Code.NOTHING)
    _check_admission(system, frame, row.vm, row.guest_frame)
    # EFFECT
    system.handle(frame)
    system.memory.copy(frame, system.disk, swap_slot)
    system.swaps[swap_slot] = Swap()
    _give(system, frame, row.vm, row.guest_frame)


@_operation
def split(system: System, frame: Frame) -> None:
    """Let each frame under a large tag have its own again. Source: AMD APM vol. 3, PSMASH."""
    _check_frame(system, frame)
    _refuse(not_(system.tags.is_large(frame)), Code.NOTHING)
    system.tags.set_large(frame, False)


@_operation
def merge(system: System, frame: Frame) -> None:
    """Let the first frame's tag stand for 512."""
    # CHECKS
    _check_frame(system, frame)
    _refuse((frame & REGION_FRAMES - 1 != 0) | (frame + REGION_FRAMES > system.frame_count), Code.RANGE)
    owner = system.tags[frame]
    _refuse(not_(is_vm(owner)), Code.NOT_OWNED)
    _refuse(system.tags.is_large(frame), Code.TAKEN)
    if system.policy.merge_one_owner:
        _refuse(not_(system.tags.owned(frame, REGION_FRAMES, owner)), Code.NOT_UNIFORM)
    # EFFECT
    system.tags.set_large(frame, True)


@_operation
def attach(system: System, device: int, vm: VmId) -> None:
    """Give a device to a VM."""
    # CHECKS
    _refuse(device >= system.device_count, Code.RANGE)
    _check_vm(vm)
    _check_live(system, vm)
    # EFFECT
    system.devices[device] = vm
    if system.policy.flush_iotlb:
        system.iotlb.map(lambda _frame, checked: checked & ~(1 << device))


# -- devices ---------------------------------------------------------------------------------------------------------------


def _dma(system: System, device: int, frame: Frame, index: int, is_write: bool) -> Frame:
    """The frame that a device accesses. Raises Refused and Fault."""
    # CHECKS
    _refuse((device >= system.device_count) | (index >= WORDS_PER_FRAME), Code.RANGE)
    vm = system.devices[device]
    if vm == FREE:
        raise Fault(FaultKind.IOMMU, frame=frame)
    if system.vms[vm].mode == Mode.NESTED:
        frame = system.located(vm, frame, FaultKind.IOMMU)
    is_checked = system.iotlb[frame] >> device & 1 != 0
    if system.policy.check_dma & not_(is_checked) & (system.tags.looked_up(frame) != vm):
        raise Fault(FaultKind.IOMMU, frame=frame)
    # EFFECT
    if frame < system.frame_count:
        system.iotlb[frame] = system.iotlb[frame] | 1 << device
    system.touches.append(Touch("dma", vm, frame, index, is_write, system.tags[frame], False))
    return frame


@_operation
def dma_read(system: System, device: int, frame: Frame, index: int) -> Word:
    """Read a word for a device."""
    return system.memory.get(_dma(system, device, frame, index, False), index)


@_operation
def dma_write(system: System, device: int, frame: Frame, index: int, value: Word) -> None:
    """Write a word for a device."""
    system.memory.set(_dma(system, device, frame, index, True), index, value)
