"""The operations of a para-pass-through VMM: what each checks, in this order, and does. The rules: spec/vmm.md, 2 to 6."""

from collections.abc import Callable
from typing import Any

from capvisor.model import extensions, mediator
from capvisor.model import vmm_devices as hardware
from capvisor.model.bits import not_, select
from capvisor.model.tlb import either
from capvisor.model.vmm import (
    Address,
    Channel,
    Device,
    DeviceId,
    Frame,
    Lba,
    Mapping,
    Meant,
    Refused,
    System,
    VcpuId,
    Word,
)
from capvisor.spec.vmm import (
    ALL_ONES,
    BLOCK_SHIFT,
    BLOCKS_PER_FRAME,
    LBA_BITS,
    LEVEL_FRAMES,
    MAPPINGS,
    MAX_EXTENSIONS,
    MAX_FRAMES,
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

Rule = Callable[..., Any]
OPERATION_RULES: dict[str, Rule] = {}
"""By name, the rule: a function of the system and the operands. It raises Refused; what reads gives a word."""

_REGISTERS = (1 << WINDOW_SHIFT) - 1
_PAGE_SHIFT = 12
_FRAME_NUMBERS = 2 * MAX_FRAMES - 1


def _operation(rule: Rule, name: str = "") -> Rule:
    OPERATION_RULES[name or rule.__name__] = rule
    return rule


def _named(name: str) -> Callable[[Rule], Rule]:
    return lambda rule: _operation(rule, name)


def _refuse(condition: Any, code: Code) -> None:
    if condition:
        raise Refused(code)


def _check_vcpu(system: System, vcpu: VcpuId) -> None:
    _refuse(vcpu >= system.vcpu_count, Code.RANGE)


def _check_device(system: System, device: DeviceId) -> None:
    _refuse((device == 0) | (device > system.device_count), Code.RANGE)


def _check_address(system: System, address: Address) -> None:
    _refuse(not_(system.is_address(address)), Code.RANGE)


# -- memory, as processors see it ------------------------------------------------------------------------------------------


def page_frames(level: int) -> int:
    """How many frames a page of a level has."""
    found: Any = 0
    for each, count in enumerate(LEVEL_FRAMES):
        found = select(level == each, count, found)
    return found


@_named("map")
def map_page(system: System, vcpu: VcpuId, slot: int, frame: Frame, level: int, writable: int) -> None:
    """Use a translation, which the VMM fills in. Source: BitVisor, cpu_mmu_spt.c."""
    # CHECKS
    _check_vcpu(system, vcpu)
    outside = (slot >= MAPPINGS) | (level >= len(LEVEL_FRAMES)) | (writable > 1)
    _refuse(outside | (frame >= system.frame_count), Code.RANGE)
    system.check_runs()
    # EFFECT
    size = page_frames(level)
    first = frame & -size
    filtered = system.policy.filter_mappings & not_(system.vcpus[vcpu].is_outside)
    overlaps = (first < system.recognised_behind) & (system.region_first < first + size)
    splits = filtered & system.policy.split_large_mappings & overlaps
    level, first = select(splits, 0, level), select(splits, frame, first)
    hidden = filtered & (level == 0) & system.is_recognised(first)
    is_writable = (writable != 0) & not_(hidden & system.policy.panic_on_region_write)
    system.mappings[vcpu, slot] = Mapping(True, select(hidden, system.zero_frame, first), level, is_writable, hidden)


def _mapped(system: System, vcpu: VcpuId, slot: int, offset: int) -> tuple[Mapping, Address]:
    """A translation, and the address of a block in its page. Raises Refused."""
    _check_vcpu(system, vcpu)
    row = system.mappings[vcpu, slot]
    _refuse((slot >= MAPPINGS) | (offset >= page_frames(row.level) << BLOCK_SHIFT), Code.RANGE)
    address = (row.frame << BLOCK_SHIFT) + offset
    _check_address(system, address)
    system.check_runs()
    intercepted = not_(system.vcpus[vcpu].is_outside) & system.is_trapped(address >> BLOCK_SHIFT)
    _refuse(not_(row.is_live) | intercepted, Code.UNMAPPED)
    return row, address


@_operation
def load(system: System, vcpu: VcpuId, slot: int, offset: int) -> Word:
    """Read a block."""
    _row, address = _mapped(system, vcpu, slot, offset)
    return system.read("cpu", vcpu, address)


@_operation
def store(system: System, vcpu: VcpuId, slot: int, offset: int, value: Word) -> None:
    """Write a block."""
    row, address = _mapped(system, vcpu, slot, offset)
    if not_(row.is_writable):
        if row.is_zero & system.policy.panic_on_region_write:
            system.panic()
        raise Refused(Code.UNMAPPED)
    system.write("cpu", vcpu, address, value)


# -- what could end interception -------------------------------------------------------------------------------------------


@_operation
def write_msr(system: System, vcpu: VcpuId, msr: int, value: Word) -> None:
    """Write a model-specific register. Source: BitVisor, msr_pass.c."""
    _check_vcpu(system, vcpu)
    system.check_runs()
    row, policy = system.vcpus[vcpu], system.policy
    if msr == Msr.APIC_BASE:
        frame = value >> _PAGE_SHIFT
        if policy.apic_outside_region & not_(row.is_outside) & system.is_recognised(frame):
            system.panic()
        system.vcpus[vcpu] = row._replace(apic_frame=frame)
    elif msr == Msr.MICROCODE:
        _refuse(policy.swallow_microcode & not_(row.is_outside), Code.SWALLOWED)
        system.vmm[0] = system.vmm[0]._replace(has_microcode=True)


@_operation
def enter_vmx(system: System, vcpu: VcpuId) -> None:
    """Become a hypervisor oneself."""
    _check_vcpu(system, vcpu)
    system.check_runs()
    _refuse(system.policy.hide_virtualisation & not_(system.vcpus[vcpu].is_outside), Code.GENERAL)
    _escape(system, vcpu)


@_operation
def init(system: System, vcpu: VcpuId) -> None:
    """Start a processor anew."""
    _check_vcpu(system, vcpu)
    system.check_runs()
    if system.policy.keep_on_init:
        system.mappings.map(lambda number, row: either(number[0] == vcpu, Mapping(), row))
    else:
        _escape(system, vcpu)


@_operation
def sleep(system: System, vcpu: VcpuId) -> None:
    """Sleep, and wake: devices and the IOMMU have forgotten everything, and the VMM sets up what is its own anew."""
    _check_vcpu(system, vcpu)
    system.check_runs()
    keeps = system.policy.keep_on_resume

    def woken(device: DeviceId, row: Device) -> Device:
        mediated = row.is_storage & (system.deployments[device].phase != Phase.GONE)
        pointer = select(mediated & keeps, system.shadow_descriptor(device), 0)
        return Device(is_storage=row.is_storage, descriptors=pointer)

    system.devices.map(woken)
    system.registers.map(lambda _number, _row: 0)
    if keeps:
        system.mappings.map(lambda _number, _row: Mapping())
        system.channels.map(lambda _number, _row: Channel())
    else:
        system.vmm[0] = system.vmm[0]._replace(is_iommu_off=True)
        _escape(system, vcpu)


def _escape(system: System, vcpu: VcpuId) -> None:
    """From now on nothing that a vCPU does is intercepted."""
    system.vcpus[vcpu] = system.vcpus[vcpu]._replace(is_outside=True)


# -- registers -------------------------------------------------------------------------------------------------------------


def _decoded(system: System, vcpu: VcpuId, space: int, number: int) -> tuple[DeviceId, DeviceId, int]:
    """The device that answers to a number, the one whose mediator stands in the way, or 0, and the register."""
    _check_vcpu(system, vcpu)
    _check_number(space, number)
    system.check_runs()
    window = number >> WINDOW_SHIFT
    hook = select(system.vcpus[vcpu].is_outside, 0, system.hooked[space, window])
    return system.decoded[space, window], hook, number & _REGISTERS


def _check_number(space: int, number: int) -> None:
    numbers = select(space == Space.PORT, PORTS, MEMORY_NUMBERS)
    _refuse((space > Space.MEMORY) | (number >= numbers), Code.RANGE)


@_named("input")
def read_register(system: System, vcpu: VcpuId, space: int, number: int) -> Word:
    """Read a register: of a mediated device by way of its mediator, else from the device itself."""
    device, hook, register = _decoded(system, vcpu, space, number)
    if hook != 0:
        return mediator.input_register(system, hook, register)
    if device == 0:
        return ALL_ONES
    if system.devices[device].is_storage:
        return hardware.input_register(system, device, register)
    return system.registers[device, register]


@_operation
def output(system: System, vcpu: VcpuId, space: int, number: int, value: Word) -> None:
    """Write a register: of a mediated device by way of its mediator, else of the device itself."""
    device, hook, register = _decoded(system, vcpu, space, number)
    if hook != 0:
        mediator.output_register(system, hook, register, value)
    elif device != 0:
        if system.devices[device].is_storage:
            hardware.output_register(system, device, register, value)
        else:
            system.registers[device, register] = value


@_operation
def move_window(system: System, vcpu: VcpuId, device: DeviceId, space: int, window: int) -> None:
    """Move a device's registers; where the VMM mediates it, the hook goes with them."""
    # CHECKS
    _check_vcpu(system, vcpu)
    _check_device(system, device)
    _check_number(space, window << WINDOW_SHIFT)
    system.check_runs()
    there = system.decoded[space, window]
    _refuse((there != 0) & (there != device), Code.CONFLICT)
    follows = not_(system.vcpus[vcpu].is_outside)
    over = (space == Space.MEMORY) & system.is_recognised(window >> WINDOW_FRAME_SHIFT)
    _refuse(follows & system.policy.windows_outside_region & over, Code.BLOCKED)
    # EFFECT
    old = system.windows[device, space]
    at_old = system.decoded[space, old]
    system.decoded[space, old] = select(at_old == device, 0, at_old)
    system.decoded[space, window] = device
    system.windows[device, space] = window
    if system.policy.follow_window_moves & follows & system.is_mediated(device):
        at_old = system.hooked[space, old]
        system.hook(space, old, select(at_old == device, 0, at_old))
        system.hook(space, window, device)


# -- devices ---------------------------------------------------------------------------------------------------------------


def _check_dma(system: System, device: DeviceId, address: Address, right: int) -> None:
    _check_device(system, device)
    _check_address(system, address)
    system.check_runs(False)
    _refuse(not_(hardware.is_permitted(system, device, address, right)), Code.IOMMU)


@_operation
def dma_read(system: System, device: DeviceId, address: Address) -> Word:
    """Read a block for a device."""
    _check_dma(system, device, address, hardware.READ)
    return system.read("device", device, address)


@_operation
def dma_write(system: System, device: DeviceId, address: Address, value: Word) -> None:
    """Write a block for a device."""
    _check_dma(system, device, address, hardware.WRITE)
    channel = system.channels[device]
    shadow = system.devices[device].is_storage & hardware.is_own_buffer(system, device, address >> BLOCK_SHIFT)
    system.channels[device] = channel._replace(is_tampered=channel.is_tampered | shadow)
    system.write("device", device, address, value)


@_operation
def transfer(system: System, device: DeviceId) -> None:
    """Move the next block of the command under way."""
    _check_device(system, device)
    system.check_runs(False)
    hardware.move_block(system, device)


# -- the VMM: mediation and deployment -------------------------------------------------------------------------------------


@_operation
def mediate(system: System, device: DeviceId) -> None:
    """Copy the next block between the guest's buffers and the shadow buffer."""
    _check_device(system, device)
    system.check_runs()
    mediator.mediate(system, device)


@_operation
def fetch(system: System, device: DeviceId, lba: Lba) -> None:
    """Fetch a sector of the image; one that is there already moves the cursor on."""
    # CHECKS
    _check_device(system, device)
    _refuse(lba >= 1 << LBA_BITS, Code.RANGE)
    system.check_runs(False)
    row = system.deployments[device]
    is_deployed = system.deployed[device, lba]
    _refuse((row.phase != Phase.DEPLOY) | (lba >= row.size) | is_deployed & (lba != row.cursor), Code.NOTHING)
    # EFFECT
    word = system.images[device, lba]
    fetched = row._replace(is_fetched=True, lba=lba, word=word)
    system.deployments[device] = either(is_deployed, row._replace(cursor=_next(row.cursor)), fetched)


@_operation
def deploy(system: System, device: DeviceId) -> None:
    """Write the sector that was fetched, unless it has been filled in meanwhile."""
    # CHECKS
    _check_device(system, device)
    system.check_runs(False)
    row = system.deployments[device]
    _refuse((row.phase != Phase.DEPLOY) | not_(row.is_fetched), Code.NOTHING)
    # EFFECT
    place = device, row.lba
    is_deployed = system.deployed[place]
    writes = not_(is_deployed & system.policy.recheck_before_write)
    system.media[place] = select(writes, row.word, system.media[place])
    system.meant[place] = either(is_deployed, system.meant[place], Meant(True, row.word))
    system.deployed[place] = True
    cursor = select(row.lba == row.cursor, _next(row.cursor), row.cursor)
    system.deployments[device] = row._replace(is_fetched=False, lba=0, word=0, cursor=cursor)


def _next(lba: Lba) -> Lba:
    return lba + 1 & (1 << LBA_BITS) - 1


@_operation
def leave(system: System, device: DeviceId) -> None:
    """Leave a device to the guest: no hook, no shadow page, no pointer to one remains."""
    # CHECKS
    _check_device(system, device)
    system.check_runs(False)
    row, channel, storage = system.deployments[device], system.channels[device], system.devices[device]
    _refuse(row.phase != Phase.DEPLOY, Code.NOTHING)
    busy = mediator.is_busy(channel, storage) | (storage.opcode != 0)
    _refuse(system.policy.leave_when_deployed & ((row.cursor != row.size) | busy), Code.NOT_YET)
    # EFFECT
    system.deployments[device] = row._replace(phase=Phase.GONE, is_fetched=False, lba=0, word=0)
    system.devices[device] = storage._replace(descriptors=channel.descriptors)
    system.channels[device] = channel._replace(state=ChannelState.READY)
    for space in Space:
        window = system.windows[device, space]
        hook = system.hooked[space, window]
        system.hook(space, window, select(hook == device, 0, hook))


# -- the VMM: moving the guest to another machine --------------------------------------------------------------------------


def _check_stage(system: System, stage: Stage) -> None:
    system.check_runs(False)
    _refuse(system.vmm[0].stage != stage, Code.NOTHING)


def _send(system: System, frame: Frame, applies: Any) -> None:
    """Send what a frame holds, if it applies."""
    for block in range(BLOCKS_PER_FRAME):
        address = (frame << BLOCK_SHIFT) + block
        system.remote[address] = select(applies, system.memory[address], system.remote[address])
    system.clean[frame] = applies | system.clean[frame]


@_operation
def begin_move(system: System) -> None:
    """Begin to send the guest's memory."""
    _check_stage(system, Stage.NONE)
    system.vmm[0] = system.vmm[0]._replace(stage=Stage.ROUNDS)


@_operation
def send(system: System, frame: Frame) -> None:
    """Send a frame while the guest runs."""
    _refuse(frame >= system.frame_count, Code.RANGE)
    _check_stage(system, Stage.ROUNDS)
    _refuse(system.is_recognised(frame), Code.NOTHING)
    _send(system, frame, True)


@_operation
def stop(system: System) -> None:
    """Stop the guest and its devices, for the last round, when no mediator has a command under way."""
    _check_stage(system, Stage.ROUNDS)
    busy = system.some_device(lambda device: mediator.is_busy(system.channels[device], system.devices[device]))
    _refuse(busy, Code.NOT_YET)
    system.vmm[0] = system.vmm[0]._replace(stage=Stage.STOPPED, next_frame=0)


@_operation
def send_next(system: System) -> None:
    """In the last round, send the next frame, unless it is clean or the VMM's."""
    _check_stage(system, Stage.STOPPED)
    row = system.vmm[0]
    frame = row.next_frame
    _refuse(frame >= system.frame_count, Code.NOTHING)
    _send(system, frame, not_(system.clean[frame] | system.is_recognised(frame)))
    system.vmm[0] = row._replace(next_frame=frame + 1 & _FRAME_NUMBERS)


@_operation
def hand_over(system: System) -> None:
    """Let the guest run there."""
    _check_stage(system, Stage.STOPPED)
    row = system.vmm[0]
    _refuse(system.policy.whole_last_round & (row.next_frame != system.frame_count), Code.NOT_YET)
    system.vmm[0] = row._replace(stage=Stage.HANDED_OVER)


# -- extensions ------------------------------------------------------------------------------------------------------------


def _check_extension(system: System, extension: int, address: Address, is_write: bool) -> None:
    _refuse((extension == 0) | (extension > MAX_EXTENSIONS), Code.RANGE)
    _check_address(system, address)
    system.check_runs()
    _refuse(not_(extensions.is_within_policy(system, extension, address, is_write)), Code.CONFINED)


@_operation
def extension_read(system: System, extension: int, address: Address) -> Word:
    """Read a block for an extension."""
    _check_extension(system, extension, address, False)
    return system.read("extension", extension, address)


@_operation
def extension_write(system: System, extension: int, address: Address, value: Word) -> None:
    """Write a block for an extension."""
    _check_extension(system, extension, address, True)
    system.write("extension", extension, address, value)
