"""What the host does in many systems of translation pass-through: the kernels of its rows of spec/tpt.py."""

from typing import TYPE_CHECKING

import numpy as np

from capvisor.fastpath import tlb
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.requests import VM_NUMBERS, Request, operation
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.paging import FIRST_VM, FRAME_NUMBERS, FREE, HOST, INDEX_BITS, LEVELS, RESERVED_CR3, Mode
from capvisor.spec.tpt import ASIDS, FIRST_ASID, SWAP_SLOTS, Code

if TYPE_CHECKING:
    from capvisor.fastpath.tpt import BatchSystem


def _live(system: "BatchSystem", request: Request, vms: Indices) -> None:
    """Refuse VMs that don't exist."""
    request.refuse(~system.vms["is_live"][request.lanes, vms], Code.NO_VM)


# Checks of frames that have been looked at for whether they exist.


def _must_be_free(system: "BatchSystem", request: Request, frames: Indices) -> None:
    if system.policy.free_frames_only:
        request.refuse(system.tags[request.lanes, frames] != FREE, Code.NOT_FREE)


def _must_be_acknowledged(system: "BatchSystem", request: Request, frames: Indices) -> None:
    if system.policy.wait_for_acknowledgements:
        request.refuse(system.is_pending(request.lanes, frames), Code.PENDING)


def _must_be_split(system: "BatchSystem", request: Request, frames: Indices) -> None:
    if system.policy.split_before_retag:
        request.refuse(system.large[request.lanes, frames >> INDEX_BITS], Code.LARGE)


def _admit(system: "BatchSystem", request: Request, frames: Indices, vm: Words, guest_frame: Words) -> None:
    """Refuse to give frames to VMs, as guest frames."""
    _must_be_free(system, request, frames)
    _must_be_acknowledged(system, request, frames)
    if system.policy.scrub_on_reuse:
        request.refuse(~system.frames["is_clean"][request.lanes, frames], Code.UNCLEAN)
    _must_be_split(system, request, frames)
    request.refuse(system.mapped(request.lanes, vm, guest_frame)[0], Code.TAKEN)


def _give(system: "BatchSystem", lanes: Indices, frames: Indices, vm: Words, guest_frame: Words) -> None:
    """Give frames to VMs."""
    system.tags[lanes, frames] = vm
    system.write_books(lanes, frames, vm=vm, guest_frame=guest_frame)
    system.map(lanes, vm, guest_frame, frames.astype(np.uint64))


def _must_be_reclaimed(system: "BatchSystem", request: Request, frames: Indices) -> None:
    """Refuse frames that hold no content of a VM that they were reclaimed from."""
    lanes = request.lanes
    holds = (system.tags[lanes, frames] == FREE) & (system.frames["vm"][lanes, frames] >= FIRST_VM)
    request.refuse(~holds, Code.NOT_RECLAIMED)


# -- VMs -------------------------------------------------------------------------------------------------------------------


@operation("create")
def create(system: "BatchSystem", request: Request, vm: Words, mode: Words, levels: Words) -> None:
    """Make VMs that own nothing yet."""
    vms = request.index(vm, VM_NUMBERS, FIRST_VM)
    request.refuse(~(np.isin(mode, (Mode.TPT, Mode.NESTED)) & np.isin(levels, LEVELS)), Code.RANGE)
    request.refuse(system.vms["is_live"][request.lanes, vms], Code.TAKEN)
    passed = request.passed
    for name, values in {"is_live": np.ones_like(vm), "mode": mode, "levels": levels}.items():
        system.vms[name][request.lanes[passed], vms[passed]] = values[passed]


@operation("run")
def run(system: "BatchSystem", request: Request, vcpu: Words, vm: Words, asid: Words, cr3: Words) -> None:
    """Let vCPUs run for VMs."""
    vcpus = request.index(vcpu, system.vcpu_count)
    vms, asids = request.index(vm, VM_NUMBERS, FIRST_VM), request.index(asid, ASIDS, FIRST_ASID)
    request.refuse(cr3 & np.uint64(RESERVED_CR3) != 0, Code.RANGE)
    _live(system, request, vms)
    passed = request.passed
    lanes, vcpus, vm, asid = request.lanes[passed], vcpus[passed], vm[passed], asid[passed]
    if system.policy.flush_on_asid_reuse:
        reused = system.asids[lanes, vcpus, asids[passed]] != vm
        for slots in (system.tlb, system.caches):
            slots.drop(lanes, vcpus, slots.live(lanes, vcpus, asid) & reused[:, None])
    system.asids[lanes, vcpus, asids[passed]] = vm
    if system.policy.abort_walks_on_switch:
        system.drop_walks(lanes, vcpus)
    for name, values in {"vm": vm, "asid": asid, "cr3": cr3[passed]}.items():
        system.vcpus[name][lanes, vcpus] = values


@operation("attach")
def attach(system: "BatchSystem", request: Request, device: Words, vm: Words) -> None:
    """Give devices to VMs."""
    devices, vms = request.index(device, system.device_count), request.index(vm, VM_NUMBERS, FIRST_VM)
    _live(system, request, vms)
    passed = request.passed
    system.devices[request.lanes[passed], devices[passed]] = vm[passed]
    if system.policy.flush_iotlb:
        system.iotlb[request.lanes[passed], devices[passed]] = False


# -- frames that change hands ----------------------------------------------------------------------------------------------


@operation("assign")
def assign(system: "BatchSystem", request: Request, frame: Words, vm: Words, guest_frame: Words) -> None:
    """Give frames to VMs."""
    frames, vms = request.index(frame, system.frame_count), request.index(vm, VM_NUMBERS, FIRST_VM)
    request.index(guest_frame, FRAME_NUMBERS)
    _live(system, request, vms)
    _admit(system, request, frames, vm, guest_frame)
    passed = request.passed
    _give(system, request.lanes[passed], frames[passed], vm[passed], guest_frame[passed])


@operation("reclaim")
def reclaim(system: "BatchSystem", request: Request, frame: Words) -> None:
    """Take frames from their VMs, and ask all vCPUs to forget them."""
    frames = request.index(frame, system.frame_count)
    request.refuse(system.tags[request.lanes, frames] < FIRST_VM, Code.NOT_OWNED)
    request.refuse(system.frames["is_leaving"][request.lanes, frames], Code.PENDING)
    _must_be_split(system, request, frames)
    passed = request.passed
    lanes, frames = request.lanes[passed], frames[passed]
    if system.policy.unmap_on_reclaim:
        vm, guest_frame = system.frames["vm"][lanes, frames], system.frames["guest_frame"][lanes, frames]
        is_mapped, host = system.mapped(lanes, vm, guest_frame)
        mine = (vm >= FIRST_VM) & is_mapped & (host == frames.astype(np.uint64))
        system.unmap(lanes[mine], vm[mine], guest_frame[mine])
    system.pending[lanes, frames] = True
    if system.policy.flush_iotlb:
        system.iotlb[lanes, :, frames] = False
    if system.policy.retag_before_shootdown:
        system.tags[lanes, frames] = FREE
    else:
        system.frames["is_leaving"][lanes, frames] = True


@operation("acknowledge")
def acknowledge(system: "BatchSystem", request: Request, vcpu: Words, frame: Words) -> None:
    """VCPUs forget reclaimed frames."""
    policy = system.policy
    vcpus, frames = request.index(vcpu, system.vcpu_count), request.index(frame, system.frame_count)
    request.refuse(~system.pending[request.lanes, frames, vcpus], Code.NOTHING)
    passed = request.passed
    lanes, vcpus, frames, frame = request.lanes[passed], vcpus[passed], frames[passed], frame[passed]
    covered = tlb.covering(system.tlb, lanes, vcpus, frame, policy.shootdown_covers_large_pages)
    system.tlb.drop(lanes, vcpus, covered)
    if policy.shootdown_reaches_walk_caches:
        tables = system.caches.rows("frame", lanes, vcpus) == frame[:, None]
        system.caches.drop(lanes, vcpus, system.caches.rows("is_live", lanes, vcpus) & tables)
    if policy.abort_walks_on_acknowledge:
        system.drop_walks(lanes, vcpus)
    system.pending[lanes, frames, vcpus] = False
    gone = system.frames["is_leaving"][lanes, frames] & ~system.is_pending(lanes, frames)
    system.tags[lanes[gone], frames[gone]] = FREE
    system.frames["is_leaving"][lanes[gone], frames[gone]] = False


@operation("scrub")
def scrub(system: "BatchSystem", request: Request, frame: Words) -> None:
    """Clear frames."""
    frames = request.index(frame, system.frame_count)
    _must_be_free(system, request, frames)
    _must_be_acknowledged(system, request, frames)
    passed = request.passed
    lanes, frames = request.lanes[passed], frames[passed]
    system.words[lanes, frames] = 0
    system.write_books(lanes, frames, is_clean=True, is_leaving=system.frames["is_leaving"][lanes, frames])


@operation("claim")
def claim(system: "BatchSystem", request: Request, frame: Words) -> None:
    """Take free frames for the host."""
    frames = request.index(frame, system.frame_count)
    _must_be_free(system, request, frames)
    _must_be_acknowledged(system, request, frames)
    _must_be_split(system, request, frames)
    passed = request.passed
    system.tags[request.lanes[passed], frames[passed]] = HOST
    system.write_books(request.lanes[passed], frames[passed])


@operation("release")
def release(system: "BatchSystem", request: Request, frame: Words) -> None:
    """Let go of the host's frames."""
    frames = request.index(frame, system.frame_count)
    request.refuse(system.tags[request.lanes, frames] != HOST, Code.NOT_OWNED)
    passed = request.passed
    system.tags[request.lanes[passed], frames[passed]] = FREE


# -- content that moves ----------------------------------------------------------------------------------------------------


@operation("migrate")
def migrate(system: "BatchSystem", request: Request, source: Words, target: Words) -> None:
    """Put the content of reclaimed frames into others."""
    sources, targets = request.index(source, system.frame_count), request.index(target, system.frame_count)
    _must_be_reclaimed(system, request, sources)
    _must_be_acknowledged(system, request, sources)
    vm, guest_frame = (system.frames[name][request.lanes, sources] for name in ("vm", "guest_frame"))
    _admit(system, request, targets, vm, guest_frame)
    passed = request.passed
    lanes, sources, targets = request.lanes[passed], sources[passed], targets[passed]
    system.words[lanes, targets] = system.words[lanes, sources]
    system.write_books(lanes, sources)
    _give(system, lanes, targets, vm[passed], guest_frame[passed])


@operation("swap_out")
def swap_out(system: "BatchSystem", request: Request, frame: Words, swap_slot: Words) -> None:
    """Put the content of reclaimed frames away."""
    frames, slots = request.index(frame, system.frame_count), request.index(swap_slot, SWAP_SLOTS)
    _must_be_reclaimed(system, request, frames)
    _must_be_acknowledged(system, request, frames)
    request.refuse(system.swaps["is_live"][request.lanes, slots], Code.TAKEN)
    passed = request.passed
    lanes, frames, slots = request.lanes[passed], frames[passed], slots[passed]
    system.disk[lanes, slots] = system.words[lanes, frames]
    system.swaps["is_live"][lanes, slots] = True
    for name in ("vm", "guest_frame"):
        system.swaps[name][lanes, slots] = system.frames[name][lanes, frames]
    system.write_books(lanes, frames)


@operation("swap_in")
def swap_in(system: "BatchSystem", request: Request, frame: Words, swap_slot: Words) -> None:
    """Bring content back."""
    frames, slots = request.index(frame, system.frame_count), request.index(swap_slot, SWAP_SLOTS)
    request.refuse(~system.swaps["is_live"][request.lanes, slots], Code.NOTHING)
    vm, guest_frame = (system.swaps[name][request.lanes, slots] for name in ("vm", "guest_frame"))
    _admit(system, request, frames, vm, guest_frame)
    passed = request.passed
    lanes, frames, slots = request.lanes[passed], frames[passed], slots[passed]
    system.words[lanes, frames] = system.disk[lanes, slots]
    _give(system, lanes, frames, vm[passed], guest_frame[passed])
    for column in system.swaps.values():
        column[lanes, slots] = 0


# -- large tags ------------------------------------------------------------------------------------------------------------


@operation("split")
def split(system: "BatchSystem", request: Request, frame: Words) -> None:
    """Give each frame under large tags its own."""
    frames = request.index(frame, system.frame_count)
    request.refuse(~system.large[request.lanes, frames >> INDEX_BITS], Code.NOTHING)
    passed = request.passed
    system.large[request.lanes[passed], frames[passed] >> INDEX_BITS] = False


@operation("merge")
def merge(system: "BatchSystem", request: Request, frame: Words) -> None:
    """Let one tag stand for 512 frames."""
    size = 1 << INDEX_BITS
    request.refuse(frame % np.uint64(size) != 0, Code.RANGE)
    frames = request.index(frame, max(system.frame_count - size + 1, 0))
    lanes, everywhere = request.lanes, np.arange(size)
    if system.frame_count >= size:
        frames = frames // size * size
        first = system.tags[lanes, frames]
        request.refuse(first < FIRST_VM, Code.NOT_OWNED)
        request.refuse(system.large[lanes, frames >> INDEX_BITS], Code.TAKEN)
        if system.policy.merge_one_owner:
            others: Flags = system.tags[lanes[:, None], frames[:, None] + everywhere] != first[:, None]
            mixed: Flags = np.logical_or.reduce(others, axis=1)
            request.refuse(mixed, Code.NOT_UNIFORM)
    passed = request.passed
    system.large[lanes[passed], frames[passed] >> INDEX_BITS] = True
