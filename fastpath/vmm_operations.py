"""What guests, devices, the VMM and its extensions do in many machines: the kernels of the rows of spec/vmm.py."""

from typing import TYPE_CHECKING

import numpy as np

from capvisor.fastpath import mediator, storage
from capvisor.fastpath.machine import Indices
from capvisor.fastpath.vmm import Request, operation, put, replace, sector_numbers, window_numbers
from capvisor.fastpath.workspace import Words
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    BLOCKS_PER_FRAME,
    LBA_BITS,
    LEVEL_FRAMES,
    MAPPINGS,
    MAX_EXTENSIONS,
    MEMORY_NUMBERS,
    PORTS,
    WINDOW_FRAME_SHIFT,
    WINDOW_SHIFT,
    ChannelState,
    Code,
    Msr,
    Phase,
    Space,
    Stage,
)

if TYPE_CHECKING:
    from capvisor.fastpath.vmm import BatchVmm

_PAGE_FRAMES = np.array(LEVEL_FRAMES, np.uint64)
_BLOCKS = np.arange(BLOCKS_PER_FRAME)


# -- processors ------------------------------------------------------------------------------------------------------------


@operation("map")
def map_(
    system: "BatchVmm", request: Request, vcpu: Words, slot: Words, frame: Words, level: Words, writable: Words
) -> None:
    """Let slots hold translations, as the VMM fills them in."""
    vcpus, slots = request.index(vcpu, system.vcpu_count), request.index(slot, MAPPINGS)
    frames, levels = request.index(frame, system.frame_count), request.index(level, len(LEVEL_FRAMES))
    request.refuse(writable > 1, Code.RANGE)
    request.must_run()
    own = frames.astype(np.uint64)
    size = _PAGE_FRAMES[levels]
    first = own & ~(size - np.uint64(1))
    is_writable, is_zero = writable != 0, np.zeros(len(own), np.bool_)
    if system.policy.filter_mappings:
        filtered = ~system.vcpus["is_outside"][request.lanes, vcpus]
        if system.policy.split_large_mappings:
            overlaps = (first < np.uint64(system.hidden_behind)) & (np.uint64(system.region_first) < first + size)
            split = filtered & (levels > 0) & overlaps
            levels, first = np.where(split, 0, levels), np.where(split, own, first)
        is_zero = filtered & (levels == 0) & system.is_recognised(first)
        first = np.where(is_zero, np.uint64(system.zero_frame), first)
        if system.policy.panic_on_region_write:
            is_writable &= ~is_zero
    passed = request.passed
    place = request.lanes[passed], vcpus[passed], slots[passed]
    replace(
        system.mappings,
        place,
        is_live=True,
        frame=first[passed],
        level=levels[passed],
        is_writable=is_writable[passed],
        is_zero=is_zero[passed],
    )


def _page_block(
    system: "BatchVmm", request: Request, vcpu: Words, slot: Words, offset: Words
) -> tuple[tuple[Indices, Indices, Indices], Words]:
    """Where translations are, and the addresses that they give to offsets; refuses those that give none."""
    vcpus, slots = request.index(vcpu, system.vcpu_count), request.index(slot, MAPPINGS)
    place, mappings = (request.lanes, vcpus, slots), system.mappings
    request.refuse(offset >= _PAGE_FRAMES[mappings["level"][place]] << np.uint64(BLOCK_SHIFT), Code.RANGE)
    address = request.address((mappings["frame"][place] << np.uint64(BLOCK_SHIFT)) + offset)
    request.must_run()
    trapped = system.is_trapped(request.lanes, address >> np.uint64(BLOCK_SHIFT))
    trapped &= ~system.vcpus["is_outside"][request.lanes, vcpus]
    request.refuse(~mappings["is_live"][place] | trapped, Code.UNMAPPED)
    return place, address


@operation("load")
def load(system: "BatchVmm", request: Request, vcpu: Words, slot: Words, offset: Words) -> None:
    """Read blocks."""
    _place, address = _page_block(system, request, vcpu, slot, offset)
    passed = system.granted(request, request.passed, address, False)
    request.results.value[passed] = system.read(request.lanes[passed], address[passed])


@operation("store")
def store(system: "BatchVmm", request: Request, vcpu: Words, slot: Words, offset: Words, value: Words) -> None:
    """Write blocks."""
    place, address = _page_block(system, request, vcpu, slot, offset)
    writable = system.mappings["is_writable"][place]
    passed = request.passed
    if system.policy.panic_on_region_write:
        zero = system.mappings["is_zero"][place]
        request.panic(passed[(zero & ~writable)[passed]])
    request.refuse(~writable, Code.UNMAPPED)
    passed = system.granted(request, request.passed, address, True)
    system.write(request.lanes[passed], address[passed], value[passed], tracked=system.policy.track_cpu_writes)


@operation("write_msr")
def write_msr(system: "BatchVmm", request: Request, vcpu: Words, msr: Words, value: Words) -> None:
    """Write model-specific registers."""
    vcpus = request.index(vcpu, system.vcpu_count)
    request.must_run()
    policy, lanes = system.policy, request.lanes
    inside = ~system.vcpus["is_outside"][lanes, vcpus]
    frame = value >> np.uint64(12)
    if policy.apic_outside_region:
        passed = request.passed
        moves = inside & (msr == Msr.APIC_BASE) & system.is_recognised(frame)
        request.panic(passed[moves[passed]])
    if policy.swallow_microcode:
        request.refuse(inside & (msr == Msr.MICROCODE), Code.SWALLOWED)
    passed = request.passed
    system.vmm["has_microcode"][lanes[passed[msr[passed] == Msr.MICROCODE]]] = True
    moved = passed[msr[passed] == Msr.APIC_BASE]
    system.vcpus["apic_frame"][lanes[moved], vcpus[moved]] = frame[moved]


@operation("enter_vmx")
def enter_vmx(system: "BatchVmm", request: Request, vcpu: Words) -> None:
    """Let guests be hypervisors."""
    vcpus = request.index(vcpu, system.vcpu_count)
    request.must_run()
    if system.policy.hide_virtualisation:
        request.refuse(~system.vcpus["is_outside"][request.lanes, vcpus], Code.GENERAL)
    passed = request.passed
    system.vcpus["is_outside"][request.lanes[passed], vcpus[passed]] = True


@operation("init")
def init(system: "BatchVmm", request: Request, vcpu: Words) -> None:
    """Start processors anew."""
    vcpus = request.index(vcpu, system.vcpu_count)
    request.must_run()
    passed = request.passed
    place = request.lanes[passed], vcpus[passed]
    if system.policy.keep_on_init:
        replace(system.mappings, place)
    else:
        system.vcpus["is_outside"][place] = True


@operation("sleep")
def sleep(system: "BatchVmm", request: Request, vcpu: Words) -> None:
    """Sleep, and wake."""
    vcpus = request.index(vcpu, system.vcpu_count)
    request.must_run()
    passed = request.passed
    lanes, devices = request.lanes[passed], system.devices
    is_storage = devices["is_storage"][lanes]
    number = np.arange(is_storage.shape[1])
    mediated = is_storage & (system.deployments["phase"][lanes] != Phase.GONE)
    pointer = np.where(mediated & system.policy.keep_on_resume, system.shadow_descriptor(number), 0)
    replace(devices, (lanes,), is_storage=is_storage, descriptors=pointer)
    system.registers[lanes] = 0
    if system.policy.keep_on_resume:
        replace(system.mappings, (lanes,))
        replace(system.channels, (lanes,))
    else:
        system.vmm["is_iommu_off"][lanes] = True
        system.vcpus["is_outside"][lanes, vcpus[passed]] = True


# -- registers -------------------------------------------------------------------------------------------------------------


def _windows(spaces: Indices) -> Words:
    """How many windows there are."""
    return np.where(spaces == Space.MEMORY, np.uint64(MEMORY_NUMBERS), np.uint64(PORTS)) >> np.uint64(WINDOW_SHIFT)


def _accessed(
    system: "BatchVmm", request: Request, vcpu: Words, space: Words, number: Words
) -> tuple[Indices, Indices, Words]:
    """Whose registers are accessed, which mediator is in the way, or 0, and which ones; refuses those that aren't there."""
    vcpus, spaces = request.index(vcpu, system.vcpu_count), request.index(space, len(Space))
    window = number >> np.uint64(WINDOW_SHIFT)
    request.refuse(window >= _windows(spaces), Code.RANGE)
    request.must_run()
    at = system.decoding.find(request.lanes, window_numbers(spaces, window))
    device = system.decoding["decoded"][request.lanes, at].astype(np.int64)
    hook = system.decoding["hooked"][request.lanes, at].astype(np.int64)
    hook[system.vcpus["is_outside"][request.lanes, vcpus]] = 0
    return device, hook, number & np.uint64((1 << WINDOW_SHIFT) - 1)


@operation("input")
def input_(system: "BatchVmm", request: Request, vcpu: Words, space: Words, number: Words) -> None:
    """Read registers."""
    device, hook, register = _accessed(system, request, vcpu, space, number)
    passed = request.passed
    through = passed[hook[passed] == 0]
    request.results.value[through] = storage.read_any(system, request.lanes[through], device[through], register[through])
    hooked = passed[hook[passed] != 0]
    if len(hooked):
        mediator.read(system, request, hooked, hook[hooked], register[hooked])


@operation("output")
def output(system: "BatchVmm", request: Request, vcpu: Words, space: Words, number: Words, value: Words) -> None:
    """Write registers."""
    device, hook, register = _accessed(system, request, vcpu, space, number)
    passed = request.passed
    through = passed[hook[passed] == 0]
    storage.write_any(system, request.lanes[through], device[through], register[through], value[through])
    hooked = passed[hook[passed] != 0]
    if len(hooked):
        mediator.write(system, request, hooked, hook[hooked], register[hooked], value[hooked])


@operation("move_window")
def move_window(system: "BatchVmm", request: Request, vcpu: Words, device: Words, space: Words, window: Words) -> None:
    """Let devices' registers be elsewhere."""
    vcpus = request.index(vcpu, system.vcpu_count)
    devices = request.index(device, system.device_count + 1, 1)
    spaces = request.index(space, len(Space))
    request.refuse(window >= _windows(spaces), Code.RANGE)
    request.must_run()
    lanes, decoding = request.lanes, system.decoding
    new = window_numbers(spaces, window)
    taken = decoding.get("decoded", lanes, new)
    request.refuse((taken != 0) & (taken != devices), Code.CONFLICT)
    if system.policy.windows_outside_region:
        over = (spaces == Space.MEMORY) & system.is_recognised(window >> np.uint64(WINDOW_FRAME_SHIFT))
        request.refuse(over & ~system.vcpus["is_outside"][lanes, vcpus], Code.BLOCKED)
    passed = request.passed
    lanes, devices, spaces, vcpus, new = lanes[passed], devices[passed], spaces[passed], vcpus[passed], new[passed]
    old = system.windows[lanes, devices, spaces]
    numbers = window_numbers(spaces, old)
    mine = decoding.get("decoded", lanes, numbers) == devices
    decoding.put(lanes[mine], numbers[mine], decoded=0)
    decoding.put(lanes, new, decoded=devices)
    system.windows[lanes, devices, spaces] = window[passed]
    if system.policy.follow_window_moves:
        follows = system.is_mediated(lanes, devices) & ~system.vcpus["is_outside"][lanes, vcpus]
        lanes, devices, spaces = lanes[follows], devices[follows], spaces[follows]
        _unhook(system, lanes, devices, spaces, old[follows])
        system.hook(lanes, spaces, window[passed][follows], devices)


def _unhook(system: "BatchVmm", lanes: Indices, devices: Indices, spaces: Indices, windows: Words) -> None:
    """Let windows be hooked for devices no longer."""
    mine = system.decoding.get("hooked", lanes, window_numbers(spaces, windows)) == devices
    system.hook(lanes[mine], spaces[mine], windows[mine], 0)


# -- DMA -------------------------------------------------------------------------------------------------------------------


def _may(system: "BatchVmm", request: Request, device: Words, address: Words, right: int) -> tuple[Indices, Words]:
    """Devices and addresses; refuses what the IOMMU does."""
    devices, address = request.index(device, system.device_count + 1, 1), request.address(address)
    request.must_run(held=False)
    rights = system.rights(request.lanes, devices, address >> np.uint64(BLOCK_SHIFT))
    request.refuse(rights & right == 0, Code.IOMMU)
    return devices, address


@operation("dma_read")
def dma_read(system: "BatchVmm", request: Request, device: Words, address: Words) -> None:
    """Read blocks."""
    devices, address = _may(system, request, device, address, 1)
    passed = system.granted(request, request.passed, address, False, devices)
    request.results.value[passed] = system.read(request.lanes[passed], address[passed])


@operation("dma_write")
def dma_write(system: "BatchVmm", request: Request, device: Words, address: Words, value: Words) -> None:
    """Write blocks."""
    devices, address = _may(system, request, device, address, 2)
    passed = system.granted(request, request.passed, address, True, devices)
    lanes, devices, address = request.lanes[passed], devices[passed], address[passed]
    shadow = system.devices["is_storage"][lanes, devices] & storage.is_own_buffer(system, devices, address)
    system.channels["is_tampered"][lanes[shadow], devices[shadow]] = True
    system.write(lanes, address, value[passed], tracked=system.policy.track_dma_writes)


@operation("transfer")
def transfer(system: "BatchVmm", request: Request, device: Words) -> None:
    """Move the next blocks of commands under way."""
    devices = request.index(device, system.device_count + 1, 1)
    request.must_run(held=False)
    storage.transfer(system, request, devices)


# -- the VMM ---------------------------------------------------------------------------------------------------------------


@operation("mediate")
def mediate(system: "BatchVmm", request: Request, device: Words) -> None:
    """Copy the next blocks between guests' buffers and shadow buffers."""
    devices = request.index(device, system.device_count + 1, 1)
    request.must_run()
    mediator.copy_next(system, request, devices)


@operation("fetch")
def fetch(system: "BatchVmm", request: Request, device: Words, lba: Words) -> None:
    """Fetch sectors of images."""
    devices = request.index(device, system.device_count + 1, 1)
    request.index(lba, 1 << LBA_BITS)
    request.must_run(held=False)
    lanes, deployments = request.lanes, system.deployments
    place = lanes, devices
    there = (deployments["phase"][place] == Phase.DEPLOY) & (lba < deployments["size"][place])
    at = system.sectors.find(lanes, sector_numbers(devices, np.where(there, lba, np.uint64(0))))
    is_deployed = system.sectors["is_deployed"][lanes, at]
    request.refuse(~there | is_deployed & (lba != deployments["cursor"][place]), Code.NOTHING)
    passed = request.passed
    skipped, fetched = passed[is_deployed[passed]], passed[~is_deployed[passed]]
    _move_cursor(system, lanes[skipped], devices[skipped])
    image = system.sectors["image"][lanes[fetched], at[fetched]]
    put(deployments, (lanes[fetched], devices[fetched]), is_fetched=True, lba=lba[fetched], word=image)


def _move_cursor(system: "BatchVmm", lanes: Indices, devices: Indices) -> None:
    """The next sectors are looked at."""
    cursor = system.deployments["cursor"][lanes, devices] + np.uint64(1)
    system.deployments["cursor"][lanes, devices] = cursor & np.uint64((1 << LBA_BITS) - 1)


@operation("deploy")
def deploy(system: "BatchVmm", request: Request, device: Words) -> None:
    """Write the sectors that were fetched."""
    devices = request.index(device, system.device_count + 1, 1)
    request.must_run(held=False)
    deployments, place = system.deployments, (request.lanes, devices)
    request.refuse((deployments["phase"][place] != Phase.DEPLOY) | ~deployments["is_fetched"][place], Code.NOTHING)
    passed = request.passed
    lanes, devices = request.lanes[passed], devices[passed]
    lba = deployments["lba"][lanes, devices]
    numbers = sector_numbers(devices, lba)
    word = deployments["word"][lanes, devices]
    new = ~system.sectors.get("is_deployed", lanes, numbers)
    writes = new | (not system.policy.recheck_before_write)
    system.sectors.put(lanes[writes], numbers[writes], word=word[writes], is_deployed=True)
    system.sectors.put(lanes[new], numbers[new], is_known=True, meant=word[new])
    next_one = deployments["cursor"][lanes, devices] == lba
    put(deployments, (lanes, devices), is_fetched=False, lba=0, word=0)
    _move_cursor(system, lanes[next_one], devices[next_one])


@operation("leave")
def leave(system: "BatchVmm", request: Request, device: Words) -> None:
    """Leave devices to guests."""
    devices = request.index(device, system.device_count + 1, 1)
    request.must_run(held=False)
    lanes, deployments = request.lanes, system.deployments
    request.refuse(deployments["phase"][lanes, devices] != Phase.DEPLOY, Code.NOTHING)
    if system.policy.leave_when_deployed:
        whole = deployments["cursor"][lanes, devices] == deployments["size"][lanes, devices]
        busy = mediator.is_busy(system, lanes, devices) | (system.devices["opcode"][lanes, devices] != 0)
        request.refuse(~whole | busy, Code.NOT_YET)
    passed = request.passed
    lanes, devices = lanes[passed], devices[passed]
    place = lanes, devices
    put(deployments, place, phase=Phase.GONE, is_fetched=False, lba=0, word=0)
    system.devices["descriptors"][place] = system.channels["descriptors"][place]
    system.channels["state"][place] = ChannelState.READY
    for space in Space:
        _unhook(system, lanes, devices, np.full(len(lanes), space), system.windows[lanes, devices, space])


# -- moving ----------------------------------------------------------------------------------------------------------------


def _stage(system: "BatchVmm", request: Request, stage: Stage) -> None:
    """Refuse where another stage is."""
    request.refuse(system.vmm["stage"][request.lanes] != stage, Code.NOTHING)


def _send(system: "BatchVmm", lanes: Indices, frames: Indices) -> None:
    """Send frames."""
    for block in _BLOCKS:
        at = (frames << BLOCK_SHIFT) + block
        system.remote[lanes, at] = system.memory[lanes, at]
    system.clean[lanes, frames] = True


@operation("begin_move")
def begin_move(system: "BatchVmm", request: Request) -> None:
    """Begin to send guests' memory."""
    request.must_run(held=False)
    _stage(system, request, Stage.NONE)
    system.vmm["stage"][request.lanes[request.passed]] = Stage.ROUNDS


@operation("send")
def send(system: "BatchVmm", request: Request, frame: Words) -> None:
    """Send frames."""
    frames = request.index(frame, system.frame_count)
    request.must_run(held=False)
    _stage(system, request, Stage.ROUNDS)
    request.refuse(system.is_recognised(frame), Code.NOTHING)
    passed = request.passed
    _send(system, request.lanes[passed], frames[passed])


@operation("stop")
def stop(system: "BatchVmm", request: Request) -> None:
    """Begin the last round."""
    request.must_run(held=False)
    _stage(system, request, Stage.ROUNDS)
    for device in range(1, system.device_count + 1):
        busy = mediator.is_busy(system, request.lanes, np.full(len(request.lanes), device))
        request.refuse(busy, Code.NOT_YET)
    lanes = request.lanes[request.passed]
    put(system.vmm, (lanes,), stage=Stage.STOPPED, next_frame=0)


@operation("send_next")
def send_next(system: "BatchVmm", request: Request) -> None:
    """Send the next frames, unless they are clean."""
    request.must_run(held=False)
    _stage(system, request, Stage.STOPPED)
    frame = system.vmm["next_frame"][request.lanes]
    request.refuse(frame >= np.uint64(system.frame_count), Code.NOTHING)
    passed = request.passed
    lanes, frame = request.lanes[passed], frame[passed]
    system.vmm["next_frame"][lanes] += np.uint64(1)
    sent = ~system.is_recognised(frame) & ~system.clean[lanes, frame.astype(np.int64)]
    _send(system, lanes[sent], frame[sent].astype(np.int64))


@operation("hand_over")
def hand_over(system: "BatchVmm", request: Request) -> None:
    """Let guests run elsewhere."""
    request.must_run(held=False)
    _stage(system, request, Stage.STOPPED)
    if system.policy.whole_last_round:
        request.refuse(system.vmm["next_frame"][request.lanes] != np.uint64(system.frame_count), Code.NOT_YET)
    system.vmm["stage"][request.lanes[request.passed]] = Stage.HANDED_OVER


# -- extensions ------------------------------------------------------------------------------------------------------------


def _confined(system: "BatchVmm", request: Request, extension: Words, address: Words, *, writes: bool) -> Words:
    """Addresses; refuses what extensions' policies don't permit."""
    extensions, address = request.index(extension, MAX_EXTENSIONS + 1, 1), request.address(address)
    request.must_run()
    row, place = system.extensions, (request.lanes, extensions)
    permitted = row["is_live"][place].copy()
    if system.policy.confine_extensions:
        frame = address >> np.uint64(BLOCK_SHIFT)
        permitted &= (row["first"][place] <= frame) & (frame < row["behind"][place])
        permitted &= ~(system.is_recognised(frame) | system.is_trapped(request.lanes, frame))
        if writes:
            permitted &= row["may_write"][place]
    request.refuse(~permitted, Code.CONFINED)
    return address


@operation("extension_read")
def extension_read(system: "BatchVmm", request: Request, extension: Words, address: Words) -> None:
    """Read blocks."""
    address = _confined(system, request, extension, address, writes=False)
    passed = system.granted(request, request.passed, address, False)
    request.results.value[passed] = system.read(request.lanes[passed], address[passed])


@operation("extension_write")
def extension_write(system: "BatchVmm", request: Request, extension: Words, address: Words, value: Words) -> None:
    """Write blocks."""
    address = _confined(system, request, extension, address, writes=True)
    passed = system.granted(request, request.passed, address, True)
    tracked = system.policy.track_mediator_writes
    system.write(request.lanes[passed], address[passed], value[passed], tracked=tracked)
