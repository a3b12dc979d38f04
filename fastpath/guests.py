"""What guests, and the processors that they run on, do in many systems: the kernels of those rows of spec/tpt.py."""

from typing import TYPE_CHECKING

import numpy as np

from capvisor.fastpath import paging, tlb
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.requests import Request, operation
from capvisor.fastpath.walks import DONE, HALTED, Runners, Walks
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT, RESERVED_CR3, WORD_BYTES, WORDS_PER_FRAME, Access
from capvisor.spec.tpt import CACHE_SLOTS, TLB_SLOTS, Code, FaultKind

if TYPE_CHECKING:
    from capvisor.fastpath.tpt import BatchSystem


def _running(system: "BatchSystem", request: Request, vcpu: Indices) -> None:
    """Refuse vCPUs that run for no VM."""
    request.refuse(system.vcpus["vm"][request.lanes, vcpu] == 0, Code.NO_VM)


def _runners(system: "BatchSystem", request: Request, vcpu: Indices) -> tuple[Indices, Runners]:
    """Who hasn't been refused, and their vCPUs."""
    passed = request.passed
    return passed, Runners(system, request.lanes[passed], vcpu[passed])


def _take_faults(request: Request, passed: Indices, who: Runners) -> None:
    """Let requests end with the faults that their vCPUs have met."""
    results = request.results
    results.fault[passed], results.error[passed], results.frame[passed] = who.fault, who.error, who.frame


# -- accesses --------------------------------------------------------------------------------------------------------------


def _access(
    system: "BatchSystem", request: Request, vcpu: Words, address: Words, user: Words, access: Access, value: Words | None
) -> None:
    """Read, or write a value, at virtual addresses."""
    vcpus = request.index(vcpu, system.vcpu_count)
    _running(system, request, vcpus)
    passed, who = _runners(system, request, vcpus)
    address = address[passed]
    canonical, aligned = who.is_canonical(address), address % np.uint64(WORD_BYTES) == 0
    request.fault(passed[~canonical], FaultKind.GENERAL)
    request.fault(passed[canonical & ~aligned], FaultKind.ALIGNMENT)
    good = canonical & aligned
    passed, who, address = passed[good], who.some(good), address[good]
    frame = translated(who, who.cut(address), access, user[passed] != 0)
    _take_faults(request, passed, who)
    arrived = who.fault == FaultKind.NONE
    passed, lanes = passed[arrived], who.lanes[arrived]
    place = frame[arrived] << np.uint64(FRAME_SHIFT) | address[arrived] & np.uint64((1 << FRAME_SHIFT) - 1)
    if value is None:
        request.results.value[passed] = system.read(lanes, place)
    else:
        system.write(lanes, place, value[passed])


def translated(who: Runners, address: Words, access: Access, is_user: Flags) -> Words:
    """The frames that addresses are in, by TLBs or by walks; nothing where there is a fault."""
    system, frame = who.system, np.zeros(len(address), np.uint64)
    lanes, vcpus = who.lanes, who.vcpus
    kinds, needed = np.full(len(address), int(access), np.uint8), np.empty(len(address), np.uint64)
    paging.needed_rights(kinds, is_user, needed)
    found = tlb.matching(system.tlb, lanes, vcpus, who.asid, address)
    found &= system.tlb.rows("rights", lanes, vcpus) & needed[:, None] == needed[:, None]
    if access is Access.WRITE:
        found &= system.tlb.rows("is_dirty", lanes, vcpus)
    hit, slot = found.any(axis=1), found.argmax(axis=1)

    missed = np.flatnonzero(~hit)
    walkers = who.some(missed)
    walks = Walks.begun(walkers, address[missed], kinds[missed], is_user[missed])
    done = walks.run()
    walks.cache(done)
    who.fault[missed], who.error[missed], who.frame[missed] = walkers.fault, walkers.error, walkers.frame
    level = np.where(hit, system.tlb.at("level", lanes, vcpus, slot), np.uint64(1))
    first = system.tlb.at("frame", lanes, vcpus, slot)
    level[missed[done]], first[missed[done]] = walks["leaf_level"][done], walks["leaf_frame"][done]
    frame = first + (address >> np.uint64(FRAME_SHIFT) & tlb.frames_of(level) - np.uint64(1))

    if system.policy.tag_check == "access" and system.policy.check_leaf:
        checked = np.flatnonzero(hit & ~who.is_nested)
        foreign = checked[~who.owns(checked, frame[checked])]
        who.refuse(foreign, FaultKind.TAG, frame[foreign])
        who.forget_address(foreign, address[foreign])
    return frame


@operation("load")
def load(system: "BatchSystem", request: Request, vcpu: Words, address: Words, user: Words) -> None:
    """Read the words at virtual addresses."""
    _access(system, request, vcpu, address, user, Access.READ, None)


@operation("store")
def store(system: "BatchSystem", request: Request, vcpu: Words, address: Words, value: Words, user: Words) -> None:
    """Write words at virtual addresses."""
    _access(system, request, vcpu, address, user, Access.WRITE, value)


@operation("fetch")
def fetch(system: "BatchSystem", request: Request, vcpu: Words, address: Words, user: Words) -> None:
    """Read the words at virtual addresses as instructions."""
    _access(system, request, vcpu, address, user, Access.FETCH, None)


@operation("write_pte")
def write_pte(system: "BatchSystem", request: Request, vcpu: Words, frame: Words, index: Words, value: Words) -> None:
    """Write words of frames, as if through mappings."""
    vcpus = request.index(vcpu, system.vcpu_count)
    request.index(index, WORDS_PER_FRAME)
    _running(system, request, vcpus)
    passed, who = _runners(system, request, vcpus)
    everyone, frame = np.arange(len(passed)), frame[passed]
    if system.policy.check_leaf:
        foreign = np.flatnonzero(~who.is_nested & ~who.owns(everyone, frame))
        who.refuse(foreign, FaultKind.TAG, frame[foreign])
    mapped, host = who.mapped(everyone, frame)
    missing = np.flatnonzero(who.is_nested & ~mapped)
    who.refuse(missing, FaultKind.NESTED, frame[missing])
    _take_faults(request, passed, who)
    good = who.fault == FaultKind.NONE
    place = np.where(who.is_nested, host, frame)
    good &= place < np.uint64(system.frame_count)
    address = place << np.uint64(FRAME_SHIFT) | index[passed] * np.uint64(WORD_BYTES)
    system.write(who.lanes[good], address[good], value[passed[good]])


# -- what is cached --------------------------------------------------------------------------------------------------------


@operation("set_cr3")
def set_cr3(system: "BatchSystem", request: Request, vcpu: Words, value: Words) -> None:
    """Load CR3s."""
    vcpus = request.index(vcpu, system.vcpu_count)
    _running(system, request, vcpus)
    passed = request.passed
    request.fault(passed[value[passed] & np.uint64(RESERVED_CR3) != 0], FaultKind.GENERAL)
    passed, who = _runners(system, request, vcpus)
    system.vcpus["cr3"][who.lanes, who.vcpus] = value[passed]
    local = ~system.tlb.rows("is_global", who.lanes, who.vcpus)
    system.tlb.drop(who.lanes, who.vcpus, system.tlb.live(who.lanes, who.vcpus, who.asid) & local)
    who.forget_all(system.caches)
    system.drop_walks(who.lanes, who.vcpus)


@operation("invlpg")
def invlpg(system: "BatchSystem", request: Request, vcpu: Words, address: Words) -> None:
    """Forget the translations of addresses, and all of the page-walk caches."""
    vcpus = request.index(vcpu, system.vcpu_count)
    _running(system, request, vcpus)
    passed, who = _runners(system, request, vcpus)
    found = tlb.matching(system.tlb, who.lanes, who.vcpus, who.asid, who.cut(address[passed]))
    system.tlb.drop(who.lanes, who.vcpus, found)
    who.forget_all(system.caches)
    system.drop_walks(who.lanes, who.vcpus)


@operation("flush")
def flush(system: "BatchSystem", request: Request, vcpu: Words) -> None:
    """Forget everything."""
    vcpus = request.index(vcpu, system.vcpu_count)
    _running(system, request, vcpus)
    _passed, who = _runners(system, request, vcpus)
    who.forget_all(system.tlb)
    who.forget_all(system.caches)
    system.drop_walks(who.lanes, who.vcpus)


@operation("set_tag")
def set_tag(system: "BatchSystem", request: Request, vcpu: Words, frame: Words) -> None:
    """Try to make frames one's own."""
    vcpus = request.index(vcpu, system.vcpu_count)
    frames = request.index(frame, system.frame_count)
    _running(system, request, vcpus)
    if system.policy.host_only_tags:
        request.refuse(np.ones(len(frame), np.bool_), Code.HOST_ONLY)
    passed, who = _runners(system, request, vcpus)
    system.tags[who.lanes, frames[passed]] = who.vm


# -- processors ------------------------------------------------------------------------------------------------------------


@operation("begin_walk")
def begin_walk(system: "BatchSystem", request: Request, vcpu: Words, address: Words, access: Words, user: Words) -> None:
    """Start to translate addresses."""
    vcpus = request.index(vcpu, system.vcpu_count)
    kinds = request.index(access, len(Access))
    _running(system, request, vcpus)
    passed, who = _runners(system, request, vcpus)
    request.fault(passed[~who.is_canonical(address[passed])], FaultKind.GENERAL)
    passed, who = _runners(system, request, vcpus)
    begun = Walks.begun(who, who.cut(address[passed]), kinds[passed].astype(np.uint8), user[passed] != 0)
    for name, column in system.walks.items():
        column[who.lanes, who.vcpus] = begun[name]


@operation("step_walk")
def step_walk(system: "BatchSystem", request: Request, vcpu: Words) -> None:
    """One memory reference of walks under way, or caching their results."""
    vcpus = request.index(vcpu, system.vcpu_count)
    _running(system, request, vcpus)
    request.refuse(~system.walks["is_live"][request.lanes, vcpus], Code.NOTHING)
    passed, who = _runners(system, request, vcpus)
    walks = Walks(who, {name: column[who.lanes, who.vcpus] for name, column in system.walks.items()})
    is_done = walks["stage"] == DONE
    walks.cache(np.flatnonzero(is_done))
    walks.step(np.flatnonzero(~is_done))
    for name, column in system.walks.items():
        column[who.lanes, who.vcpus] = walks[name]
    ended = is_done | (who.fault != FaultKind.NONE) & (who.fault != HALTED)
    system.drop_walks(who.lanes[ended], who.vcpus[ended])
    _take_faults(request, passed, who)


@operation("evict")
def evict(system: "BatchSystem", request: Request, vcpu: Words, slot: Words) -> None:
    """Forget what is in slots."""
    vcpus = request.index(vcpu, system.vcpu_count)
    slots = request.index(slot, TLB_SLOTS + CACHE_SLOTS)
    passed = request.passed
    for table, first in ((system.tlb, 0), (system.caches, TLB_SLOTS)):
        which = slots[passed, None] - first == np.arange(table.count)
        table.drop(request.lanes[passed], vcpus[passed], which)


# -- devices ---------------------------------------------------------------------------------------------------------------


def _dma(system: "BatchSystem", request: Request, device: Words, frame: Words, index: Words, value: Words | None) -> None:
    """Read, or write a value, by devices."""
    devices = request.index(device, system.device_count)
    request.index(index, WORDS_PER_FRAME)
    passed = request.passed
    vm = system.devices[request.lanes[passed], devices[passed]]
    request.fault(passed[vm < FIRST_VM], FaultKind.IOMMU, frame[passed[vm < FIRST_VM]])
    passed, vm = passed[vm >= FIRST_VM], vm[vm >= FIRST_VM]
    lanes, devices, frame = request.lanes[passed], devices[passed], frame[passed]
    nested = system.is_nested(lanes, vm)
    mapped, host = system.mapped(lanes, vm, frame)
    missing = nested & ~mapped
    request.fault(passed[missing], FaultKind.IOMMU, frame[missing])
    frame = np.where(nested, host, frame)
    inside = frame < np.uint64(system.frame_count)
    places = np.where(inside, frame, np.uint64(0)).astype(np.int64)
    known = inside & system.iotlb[lanes, devices, places]
    foreign = ~known & ~missing & (system.looked_up(lanes, frame) != vm) if system.policy.check_dma else known & False
    request.fault(passed[foreign], FaultKind.IOMMU, frame[foreign])
    good = inside & ~missing & ~foreign
    system.iotlb[lanes[good], devices[good], places[good]] = True
    good = system.reached(request, passed, devices, frame, good, value is not None)
    passed, lanes = passed[good], lanes[good]
    address = frame[good] << np.uint64(FRAME_SHIFT) | index[passed] * np.uint64(WORD_BYTES)
    if value is None:
        request.results.value[passed] = system.read(lanes, address)
    else:
        system.write(lanes, address, value[passed])


@operation("dma_read")
def dma_read(system: "BatchSystem", request: Request, device: Words, frame: Words, index: Words) -> None:
    """Read words of frames."""
    _dma(system, request, device, frame, index, None)


@operation("dma_write")
def dma_write(system: "BatchSystem", request: Request, device: Words, frame: Words, index: Words, value: Words) -> None:
    """Write words of frames."""
    _dma(system, request, device, frame, index, value)
