"""The invariants of a para-pass-through VMM, P1 to P19, predicates on a step of the system, each said once.

A predicate is a function of a step (`Step`) and of a place: any vCPU, mapping, frame, block of memory, device, sector, block
of a shadow buffer, window and extension. It holds if it holds at every place. It is checked while running, and proved.
P1 to P11 are numbered as in the literature's reading (spec/vmm.md, 9); the others are what extensions of the VMM add to
them, and what all of them rest on.
"""

# ruff: noqa: ARG001 - a predicate takes a place, whether it looks at it or not

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capvisor.spec import vmm_steps as steps
from capvisor.spec.invariants import implies, not_
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    COUNT_BITS,
    DESCRIPTOR_ADDRESS_BITS,
    DESCRIPTOR_COUNT_SHIFT,
    DESCRIPTOR_END,
    FIRST_SHADOW_FRAME,
    LBA_BITS,
    LEVEL_FRAMES,
    SHADOW_BLOCKS,
    WINDOW_FRAME_SHIFT,
    WINDOW_SHIFT,
    ChannelState,
    Phase,
    Register,
    Rule,
    Space,
    Stage,
    Transfer,
)
from capvisor.spec.vmm_refusals import refused_for_a_reason
from capvisor.spec.vmm_words import (
    Place,
    Step,
    accessed,
    is_denied,
    is_followed,
    is_in_range,
    is_mediated,
    is_one_of,
    is_own_data,
    is_own_page,
    is_page_frame,
    stored,
)


def _all(step: Step, actors: tuple[str, ...], holds: Callable[[Any], Any]) -> Any:
    found: Any = True
    for touch in step.touches:
        if touch.actor in actors:
            found = found & holds(touch)
    return found


# -- the processor ---------------------------------------------------------------------------------------------------------


def processors_touch(step: Step, place: Place) -> Any:
    """What P1 says of a step."""
    system = step.system

    def holds(touch: Any) -> Any:
        frame = touch.address >> BLOCK_SHIFT
        return not_(system.in_region(frame)) | (not touch.is_write) & (frame == system.zero_frame)

    return _all(step, ("cpu",), holds)


def mapped_outside(step: Step, place: Place) -> Any:
    """What P1 says of a mapping."""
    system = step.system
    row = system.mappings[place.vcpu, place.slot]
    zero = row.is_zero & (row.frame == system.zero_frame) & (row.level == 0) & not_(row.is_writable)
    named = row.is_live & is_page_frame(row.frame, row.level, place.frame)
    return implies(named & system.in_region(place.frame), zero)


def mapping_books(step: Step, place: Place) -> Any:
    """What P16 says of a mapping."""
    row = step.system.mappings[place.vcpu, place.slot]
    return implies(row.is_live, row.level < len(LEVEL_FRAMES))


def zero_page(step: Step, place: Place) -> Any:
    """What P1 says of the page of zeros."""
    system = step.system
    return implies(place.address >> BLOCK_SHIFT == system.zero_frame, system.memory[place.address] == 0)


# -- devices ---------------------------------------------------------------------------------------------------------------


def devices_touch(step: Step, place: Place) -> Any:
    """P2."""
    system = step.system

    def holds(touch: Any) -> Any:
        outside = not_(system.in_region(touch.address >> BLOCK_SHIFT))
        return outside | is_mediated(system, touch.number) & is_own_page(system, touch)

    return _all(step, ("device",), holds)


def confined(step: Step, place: Place) -> Any:
    """P7."""
    system = step.system
    return _all(step, ("device",), lambda touch: not_(is_mediated(system, touch.number)) | is_own_page(system, touch))


# -- what is stored --------------------------------------------------------------------------------------------------------


def written_is_meant(step: Step, place: Place) -> Any:
    """What P3 says of a step: what is written to a sector has a meaning, the guest's word, unless tampered."""
    system = step.system
    holds: Any = True
    for move in step.moves:
        if move.is_write:
            meant, row = system.meant[move.device, move.lba], system.channels[move.device]
            holds = holds & implies(move.is_made, meant.is_known | is_mediated(system, move.device) & row.is_tampered)
            holds = holds & implies(move.is_made & meant.is_known, _is_guests_word(step, move.device, meant.word))
    if step.name == "mediate" and step.is_completed and not any(touch.is_write for touch in step.touches):
        row = system.channels[step.operands[0]]
        plain = system.plain[step.operands[0], row.position - 1 & (1 << COUNT_BITS) - 1]
        holds = holds & (bool(system.hooks) or plain == system.memory[step.touches[-1].address])
    return holds


def _is_guests_word(step: Step, device: Any, word: Any) -> Any:
    """Whether a word is what the guest writes in a step, by the port, by erasing, or by DMA."""
    system = step.system
    if step.name == "output":
        register = step.operands[2] & (1 << WINDOW_SHIFT) - 1
        port = bool(system.hooks) or word == step.operands[3]
        return implies(register == Register.DATA, port) & implies(register == Register.COMMAND, word == 0)
    if step.name == "transfer":
        address = step.touches[-1].address
        copied = is_mediated(system, device) & (address >> BLOCK_SHIFT == system.shadow_buffer(device) >> BLOCK_SHIFT)
        plain = system.plain[device, system.devices[device].position - 1 & (1 << COUNT_BITS) - 1]
        return implies(copied, word == plain) & implies(not_(copied), word == system.memory[address])
    return True


def stored_as_meant(step: Step, place: Place) -> Any:
    """What P3 says of a sector."""
    system, device, lba = step.system, place.device, place.lba
    meant = system.meant[device, lba]
    return implies(meant.is_known, system.media[device, lba] == stored(system, device, lba, meant.word))


def copied_as_meant(step: Step, place: Place) -> Any:
    """What P3 says of a block of a shadow buffer."""
    system, device, position = step.system, place.device, place.position
    row = system.channels[device]
    copied = (row.state == ChannelState.COPYING_OUT) & (position < row.position)
    copied = copied | (row.state == ChannelState.MOVING) & row.is_write & (position < row.length)
    copied = is_mediated(system, device) & copied & not_(row.is_tampered) & (position < SHADOW_BLOCKS)
    word = stored(system, device, row.first + position, system.plain[device, position])
    return implies(copied, system.memory[system.shadow_buffer(device) + position] == word)


def pointer_is_shadow(step: Step, place: Place) -> Any:
    """What P4 says of a device."""
    system, device = step.system, place.device
    own = system.devices[device].descriptors == system.shadow_descriptor(device)
    return implies(is_mediated(system, device), own)


def shadow_describes_buffer(step: Step, place: Place) -> Any:
    """What P4 says of a shadow descriptor."""
    system, device = step.system, place.device
    row = system.channels[device]
    count = row.length << DESCRIPTOR_COUNT_SHIFT
    word = system.shadow_buffer(device) | count | DESCRIPTOR_END
    moving = is_mediated(system, device) & (row.state == ChannelState.MOVING)
    return implies(moving, system.memory[system.shadow_descriptor(device)] == word)


# -- what the guest sees ---------------------------------------------------------------------------------------------------


def transparent(step: Step, place: Place) -> Any:
    """What P5 says of a step."""
    system = step.system
    if not step.is_completed:
        return True
    if step.name == "input" and step.moves:
        if system.hooks:
            return True
        meant = system.meant[step.moves[0].device, step.moves[0].lba]
        return implies(meant.is_known, step.value == meant.word)
    if step.name == "mediate":
        return _copied_to_guest(step)
    if step.name in ("input", "output"):
        return _shown(step)
    return True


def _shown(step: Step) -> Any:
    """After an access, a mediated device's register holds what was written, or read; and its status says what is so."""
    system, access = step.system, accessed(step)
    row, channel = system.devices[access.hook], system.channels[access.hook]
    holds = steps.tells_what_is_so(step, access)
    for each, shown, bits in (
        (Register.COUNT, row.count, COUNT_BITS),
        (Register.LBA, row.lba, LBA_BITS),
        (Register.DESCRIPTORS, channel.descriptors, DESCRIPTOR_ADDRESS_BITS),
    ):
        holds = holds & implies((access.hook != 0) & (access.register == each), shown == access.value & (1 << bits) - 1)
    return holds


def _copied_to_guest(step: Step) -> Any:
    """A block that is copied to the guest is what is meant, if that is known, and no hooks are added."""
    system, device = step.system, step.operands[0]
    row = system.channels[device]
    meant = system.meant[device, row.first + row.position - 1 & (1 << LBA_BITS) - 1]
    holds: Any = True
    for touch in step.touches:
        if touch.is_write and not system.hooks:
            copied = system.memory[touch.address] == meant.word
            holds = holds & implies(meant.is_known & not_(row.is_tampered), copied)
    return holds


def moved_as_stored(step: Step, place: Place) -> Any:
    """What P5 says of a block of a shadow buffer."""
    system, device, position = step.system, place.device, place.position
    row = system.channels[device]
    moved = (row.state == ChannelState.MOVING) & not_(row.is_write) & (position < system.devices[device].position)
    moved = moved | (row.state == ChannelState.COPYING_IN) & (position < row.length)
    moved = is_mediated(system, device) & moved & not_(row.is_tampered) & (position < SHADOW_BLOCKS)
    sector = system.media[device, row.first + position]
    return implies(moved, system.memory[system.shadow_buffer(device) + position] == sector)


def checked_is_executed(step: Step, place: Place) -> Any:
    """P6."""
    system, device = step.system, place.device
    row, channel = system.devices[device], system.channels[device]
    same = (row.first == channel.first) & (row.length == channel.length)
    same = same & (row.length >= 1) & (row.length <= SHADOW_BLOCKS) & (row.first + row.length <= 1 << LBA_BITS)
    under_way = is_mediated(system, device) & is_followed(channel)
    return implies(under_way, same)


# -- interception ----------------------------------------------------------------------------------------------------------


def registers_out_of_reach(step: Step, place: Place) -> Any:
    """What P8 says of a step, and of a window in memory: nobody touches, as memory, a mediated device's registers."""
    frame, hooked = place.window >> WINDOW_FRAME_SHIFT, step.system.hooked[int(Space.MEMORY), place.window] != 0
    actors = ("cpu", "device", "mediator", "extension")
    return _all(step, actors, lambda touch: not_(hooked & (touch.address >> BLOCK_SHIFT == frame)))


def vcpus_inside(step: Step, place: Place) -> Any:
    """What P8 says of a vCPU."""
    row = step.system.vcpus[place.vcpu]
    return not_(row.is_outside) & not_(step.system.in_region(row.apic_frame))


def microcode_kept(step: Step, place: Place) -> Any:
    """What P8 says of the processors."""
    return not_(step.system.vmm[0].has_microcode)


def hooked_where_decoded(step: Step, place: Place) -> Any:
    """What P8 says of a window."""
    system, window = step.system, (place.space, place.window)
    device = system.decoded[window]
    return implies((device != 0) & is_mediated(system, device), system.hooked[window] == device)


def trapped_where_hooked(step: Step, place: Place) -> Any:
    """What P8 says of a window in memory: its frame is trapped if, and only if, one in it is intercepted."""
    system, window = step.system, place.window
    bit = system.trapped[window >> WINDOW_FRAME_SHIFT] >> (window & (1 << WINDOW_FRAME_SHIFT) - 1) & 1
    return (bit != 0) == (system.hooked[int(Space.MEMORY), window] != 0)


def iommu_is_on(step: Step, place: Place) -> Any:
    """What P8 says of the IOMMU."""
    return not_(step.system.vmm[0].is_iommu_off)


def window_outside_region(step: Step, place: Place) -> Any:
    """What P8 says of a window in memory."""
    system, frame = step.system, place.window >> WINDOW_FRAME_SHIFT
    there = (place.space == Space.MEMORY) & (system.decoded[place.space, place.window] != 0)
    return implies(there, not_(system.in_region(frame)))


# -- the key ---------------------------------------------------------------------------------------------------------------


def region_is_kept(step: Step, place: Place) -> Any:
    """What P9 says of a step."""
    system = step.system
    return _all(step, ("mediator", "extension"), lambda touch: not_(system.in_region(touch.address >> BLOCK_SHIFT)))


def key_is_kept(step: Step, place: Place) -> Any:
    """What P9 says of the key."""
    return step.system.memory[step.system.key_address] == step.system.keys[0]


def region_is_not_sent(step: Step, place: Place) -> Any:
    """What P9 says of a block that was sent."""
    system = step.system
    return implies(system.in_region(place.address >> BLOCK_SHIFT), system.remote[place.address] == 0)


# -- what passes through, and what is refused ------------------------------------------------------------------------------


def passed_through(step: Step) -> Any:
    """P10."""
    if step.name not in ("input", "output") or step.code in steps.NOT_THERE:
        return True
    access = accessed(step)
    passes = access.hook == 0
    if not step.is_completed:
        return not_(passes)
    return implies(passes, steps.passes(step, access))


def refused_is_nothing(step: Step, place: Place) -> Any:
    """P11."""
    if step.is_completed:
        return True
    hooks = step.name != "extension_write"
    holds: Any = not any(touch.is_write and not (hooks and touch.actor == "extension") for touch in step.touches)
    for move in step.moves:
        holds = holds & not_(move.is_made)
    return holds


# -- extensions ------------------------------------------------------------------------------------------------------------


def deployed_before_use(step: Step, place: Place) -> Any:
    """What P12 says of sectors that move, and of leaving."""
    system = step.system
    holds: Any = True
    for move in step.moves:
        inside = (system.deployments[move.device].phase != Phase.NONE) & (move.lba < system.deployments[move.device].size)
        holds = holds & implies(move.is_made & inside, system.deployed[move.device, move.lba])
    if step.name == "leave" and step.is_completed:
        device = step.operands[0]
        holds = holds & (system.devices[device].descriptors == system.channels[device].descriptors)
    return holds


def deployed_as_image(step: Step, place: Place) -> Any:
    """What P12 says of a sector that is deployed: it gets the image's word, unless the guest writes it at once."""
    if step.before is None:
        return True
    system, device, lba = step.system, place.device, place.lba
    was, is_deployed = step.before.deployed[device, lba], system.deployed[device, lba]
    holds: Any = system.media[device, lba] == system.images[device, lba]
    for move in step.moves:
        written = move.is_made & (move.is_write == True)  # noqa: E712 - or of many at once
        holds = holds | written & (move.device == device) & (move.lba == lba)
    return implies(was, is_deployed) & implies(is_deployed & not_(was), holds)


def deploying(step: Step, place: Place) -> Any:
    """What P12 says of a step."""
    return deployed_before_use(step, place) & deployed_as_image(step, place)


def deployed_or_untouched(step: Step, place: Place) -> Any:
    """What P12 says of a sector."""
    system, device, lba = step.system, place.device, place.lba
    row, channel = system.deployments[device], system.channels[device]
    inside, is_deployed = (row.phase != Phase.NONE) & (lba < row.size), system.deployed[device, lba]
    untouched = (row.phase == Phase.DEPLOY) & (lba >= row.cursor) & not_(system.meant[device, lba].is_known)
    untouched = untouched & not_(is_in_range(channel, lba) | system.touched[device, lba])
    holds = implies(inside, is_deployed | untouched)
    fetched = row.is_fetched & (row.lba == lba)
    return holds & implies(fetched, inside & (row.word == system.images[device, lba]))


def image_or_written(step: Step, place: Place) -> Any:
    """What P12 says of a sector that is deployed: it holds the image's word, unless a command has written it."""
    system, sector = step.system, (place.device, place.lba)
    row = system.deployments[place.device]
    deployed = (row.phase != Phase.NONE) & (place.lba < row.size) & system.deployed[sector]
    return implies(deployed & not_(system.touched[sector]), system.media[sector] == system.images[sector])


def deployment_books(step: Step, place: Place) -> Any:
    """What P12 says of a medium, and of the rule of a sector."""
    system, device = step.system, place.device
    row = system.deployments[device]
    plain = system.rules[device, place.lba] == Rule.PLAIN
    holds = implies(row.phase != Phase.NONE, plain & system.devices[device].is_storage)
    return holds & (row.cursor <= row.size) & (row.phase <= Phase.GONE)


def sent_is_there(step: Step, place: Place) -> Any:
    """What P13 says of a block."""
    system, frame = step.system, place.address >> BLOCK_SHIFT
    sent = system.clean[frame] & (frame < system.frame_count) & not_(system.in_region(frame))
    return implies(sent, system.remote[place.address] == system.memory[place.address])


def last_round(step: Step, place: Place) -> Any:
    """What P13 says of a frame."""
    system, frame, row = step.system, place.frame, step.system.vmm[0]
    guests = (frame < system.frame_count) & not_(system.in_region(frame))
    sent = (row.stage >= Stage.STOPPED) & ((frame < row.next_frame) | (row.stage == Stage.HANDED_OVER))
    holds = implies(guests & sent, system.clean[frame])
    return holds & implies(row.stage == Stage.NONE, not_(system.clean[frame]))


def idle_when_stopped(step: Step, place: Place) -> Any:
    """What P13 says of a mediator: in the last round no command is under way, so that none is lost."""
    system, device = step.system, place.device
    row, channel = system.devices[device], system.channels[device]
    busy = is_followed(channel) | (channel.state == ChannelState.THROUGH) & (row.opcode != 0)
    stopped = (system.vmm[0].stage == Stage.STOPPED) | (system.vmm[0].stage == Stage.HANDED_OVER)
    return not_(stopped & is_mediated(system, device) & busy)


def moving_books(step: Step, place: Place) -> Any:
    """What P13 says of the VMM."""
    system, row = step.system, step.system.vmm[0]
    return (row.next_frame <= system.frame_count) & (row.stage <= Stage.HANDED_OVER)


def denied_stays(step: Step, place: Place) -> Any:
    """What P14 says of a step."""
    holds: Any = True
    for move in step.moves:
        holds = holds & implies(move.is_made, not_(is_denied(step.system, move.device, move.lba)))
    return holds


def denied_is_not_under_way(step: Step, place: Place) -> Any:
    """What P14 says of a sector."""
    system, device, lba = step.system, place.device, place.lba
    under_way = is_mediated(system, device) & is_in_range(system.channels[device], lba)
    return implies(under_way, not_(is_denied(system, device, lba)))


def extensions_touch(step: Step, place: Place) -> Any:
    """P15."""
    system = step.system

    def holds(touch: Any) -> Any:
        row, frame = system.extensions[touch.number], touch.address >> BLOCK_SHIFT
        inside = row.is_live & (row.first <= frame) & (frame < row.behind) & not_(system.in_region(frame))
        return inside & (row.may_write | (not touch.is_write))

    return _all(step, ("extension",), holds)


# -- what the others rest on -----------------------------------------------------------------------------------------------


def window_books(step: Step, place: Place) -> Any:
    """What P16 says of a window."""
    system, window = step.system, (place.space, place.window)
    device, hook = system.decoded[window], system.hooked[window]
    known = (device <= system.device_count) & (system.windows[device, place.space] == place.window)
    return implies(device != 0, known) & implies(hook != 0, (hook == device) & is_mediated(system, hook))


def idle_books(step: Step, place: Place) -> Any:
    """What P16 says of a mediated device that the mediator follows in no command."""
    system, device = step.system, place.device
    row, state = system.devices[device], system.channels[device].state
    mediated, idle = is_mediated(system, device), (row.opcode == 0) & not_(row.is_started)
    ready = (state == ChannelState.READY) | (state == ChannelState.ERROR)
    holds = implies(mediated & ready, idle) & (state <= ChannelState.ERROR)
    through = not_(row.is_started) & ((row.opcode == 0) | is_own_data(row.opcode))
    return holds & implies(mediated & (state == ChannelState.THROUGH), through)


def port_books(step: Step, place: Place) -> Any:
    """What P16 says of a mediated device that moves data by its port."""
    system, device = step.system, place.device
    row, channel = system.devices[device], system.channels[device]
    agrees = (row.position == channel.position) & (channel.position < channel.length) & not_(row.is_started)
    mediated = is_mediated(system, device)
    holds = implies(mediated & (channel.state == ChannelState.PIO_IN), agrees & is_one_of(row.opcode, Transfer.PIO_IN))
    return holds & implies(
        mediated & (channel.state == ChannelState.PIO_OUT), agrees & is_one_of(row.opcode, Transfer.PIO_OUT)
    )


def dma_books(step: Step, place: Place) -> Any:
    """What P16 says of a mediated device that a command for DMA was issued to."""
    system, device = step.system, place.device
    row, channel = system.devices[device], system.channels[device]
    state, mediated = channel.state, is_mediated(system, device)
    dma = is_one_of(row.opcode, Transfer.DMA_IN) & not_(channel.is_write)
    dma = dma | is_one_of(row.opcode, Transfer.DMA_OUT) & channel.is_write
    waits = dma & not_(row.is_started) & not_(row.is_failed) & (row.position == 0)
    holds = implies(mediated & (state == ChannelState.DMA_READY), waits)
    out = waits & channel.is_write & (channel.position < channel.length)
    holds = holds & implies(mediated & (state == ChannelState.COPYING_OUT), out)
    moves = dma & row.is_started & not_(row.is_failed) & (row.position < row.length)
    moves = moves & (row.entry == 0) & (row.offset == row.position)
    idle = (row.opcode == 0) & not_(row.is_started) & not_(row.is_failed)
    finished = idle & (row.position == row.length)
    holds = holds & implies(mediated & (state == ChannelState.MOVING), moves | finished)
    holds = holds & implies(mediated & (state == ChannelState.MOVING) & not_(channel.is_write), channel.position == 0)
    copies = not_(channel.is_write) & (row.opcode == 0) & not_(row.is_started) & (channel.position < channel.length)
    return holds & implies(mediated & (state == ChannelState.COPYING_IN), copies)


def memory_is_kept(step: Step, place: Place) -> Any:
    """What P17 says of a block of memory."""
    if step.before is None:
        return True
    system, address = step.system, place.address
    frame = address >> BLOCK_SHIFT
    first = system.region_first + FIRST_SHADOW_FRAME
    changed: Any = (first <= frame) & (frame < first + 2 * system.device_count)
    for touch in step.touches:
        changed = changed | (touch.is_write == True) & (touch.address == address)  # noqa: E712 - or of many at once
    return changed | (system.memory[address] == step.before.memory[address])


def media_are_kept(step: Step, place: Place) -> Any:
    """What P17 says of a sector."""
    if step.before is None:
        return True
    system, device, lba = step.system, place.device, place.lba
    row = system.deployments[device]
    changed = not_(step.before.deployed[device, lba] | step.before.touched[device, lba])
    changed = changed & system.deployed[device, lba] & (lba < row.size)
    for move in step.moves:
        written = move.is_made & (move.is_write == True)  # noqa: E712 - or of many at once
        changed = changed | written & (move.device == device) & (move.lba == lba)
    return changed | (system.media[device, lba] == step.before.media[device, lba])


def nothing_else(step: Step, place: Place) -> Any:
    """P17."""
    found: Any = True
    for part in KEPT_PARTS:
        found = found & part(step, place)
    return found


KEPT_PARTS: tuple[Callable[[Step, Place], Any], ...] = (
    memory_is_kept,
    media_are_kept,
    steps.ghosts_are_kept,
    steps.copies_are_kept,
    steps.rows_are_kept,
    steps.registers_are_kept,
    steps.windows_are_kept,
)
"""What P17 says of a step, part by part."""


Predicate = Callable[[Step, Place], Any]


@dataclass(frozen=True)
class Invariant:
    """One invariant: its name and title, what it says, where it is from, and the predicates."""

    name: str
    title: str
    statement: str
    source: str
    of_step: Predicate | None = None
    """What it says of a step."""
    of_state: tuple[Predicate, ...] = ()
    """What it says of a state, part by part: of these, the operands of a step are no matter."""
    of_event: Callable[[Step], Any] | None = None
    """What it says of a step by itself, wherever one looks."""

    def holds(self, step: Step, place: Place) -> Any:
        """Whether it holds of a step at a place."""
        return self.holds_there(step, place) & (True if self.of_event is None else self.of_event(step))

    def holds_there(self, step: Step, place: Place) -> Any:
        """Whether it holds of a step at a place, but for what it says of the step by itself."""
        found: Any = True if self.of_step is None else self.of_step(step, place)
        for part in self.of_state:
            found = found & part(step, place)
        return found


_PUBLIC, _ABSTRACT = "BitVisor, public code", "abstract of para-pass-through (VEE 2009)"
_BMCAST, _OURS = "BMcast abstract (ASPLOS 2015)", "ours"

VMM_INVARIANTS: dict[str, Invariant] = {
    row.name: row
    for row in (
        Invariant(
            "P1",
            "processors",
            "A processor reads and writes no block of the VMM's region but zeros of the page of zeros; no translation leads "
            "there but to that page, for reading, and it holds zeros.",
            _PUBLIC,
            processors_touch,
            (mapped_outside, zero_page),
        ),
        Invariant(
            "P2",
            "DMA",
            "A device reads and writes no block of the region, but a mediated one its own shadow pages, the descriptor's "
            "for reading.",
            _PUBLIC,
            devices_touch,
        ),
        Invariant(
            "P3",
            "storage",
            "A sector whose meaning is known holds it, encrypted where the policy says so; a block of a shadow buffer "
            "that is to be written to a sector likewise, unless the device has changed that buffer. What is meant is what "
            "last reached the medium for the guest: the word that it wrote to the port, or that was copied from its "
            "memory for DMA (as added hooks leave it), 0 where it erased, or the image's.",
            _ABSTRACT,
            written_is_meant,
            (stored_as_meant, copied_as_meant),
        ),
        Invariant(
            "P4",
            "descriptors",
            "A mediated device's pointer to descriptors is to the VMM's, which names the shadow buffer while data move.",
            _PUBLIC,
            None,
            (pointer_is_shadow, shadow_describes_buffer),
        ),
        Invariant(
            "P5",
            "transparency",
            "When the guest has written or read count, address or descriptor pointer of a mediated device, the register "
            "holds that; its status says busy while DMA is under way, asks for data while they move by the port, and says "
            "error where the mediator has failed a command. Where a sector moves by the port, or is copied to the guest "
            "after DMA, the guest gets what is meant (P3), if that is known, no hooks are added, and the device hasn't "
            "changed its shadow buffer.",
            _PUBLIC,
            transparent,
            (moved_as_stored,),
        ),
        Invariant(
            "P6",
            "checked is executed",
            "Of a command under way, address and count at the device are those that were checked, and no more than a shadow "
            "buffer holds.",
            _PUBLIC,
            None,
            (checked_is_executed,),
        ),
        Invariant(
            "P7",
            "confined",
            "A mediated device touches its own shadow pages and no other memory.",
            _PUBLIC,
            confined,
        ),
        Invariant(
            "P8",
            "interception",
            "Every processor runs under the VMM, with its microcode, and the IOMMU is on; where a mediated device answers "
            "the VMM intercepts, and nobody reaches its registers as memory; no registers of a device or APIC lie over the "
            "region.",
            _PUBLIC,
            registers_out_of_reach,
            (
                *(vcpus_inside, microcode_kept, iommu_is_on, hooked_where_decoded, trapped_where_hooked),
                window_outside_region,
            ),
        ),
        Invariant(
            "P9",
            "the key",
            "The key stays what it is; mediators on the guest's behalf and extensions touch no block of the region, and "
            "none is sent to another machine.",
            _ABSTRACT,
            region_is_kept,
            (key_is_kept, region_is_not_sent),
        ),
        Invariant(
            "P10",
            "passed through",
            "An access to registers that aren't mediated is never refused while the guest runs, and has the effect that the "
            "hardware gives it, on the device, on its medium and in what is read, and no other; where there is no device, "
            "reads give all ones.",
            _ABSTRACT,
            of_event=passed_through,
        ),
        Invariant(
            "P11",
            "refusals",
            "What is refused moves no data, but what hooks of an extension write where it may.",
            _PUBLIC,
            refused_is_nothing,
        ),
        Invariant(
            "P12",
            "deployment",
            "A sector that isn't deployed yet is one that the guest has neither read nor written, and before it is it gets "
            "the image's word, once; it holds that until a command writes it, and then what the command wrote; all have "
            "before the VMM leaves, and then the device has no pointer of the VMM's.",
            _BMCAST,
            deploying,
            (deployed_or_untouched, image_or_written, deployment_books),
        ),
        Invariant(
            "P13",
            "moving",
            "What was sent of a frame that counts as clean is what it holds; when the guest is handed over, all of its "
            "frames are clean; no mediator has a command under way when the guest is stopped, nor from then on.",
            _OURS,
            None,
            (sent_is_there, last_round, idle_when_stopped, moving_books),
        ),
        Invariant(
            "P14",
            "denied",
            "A sector that is denied or faulty is neither read nor written for the guest, nor is a command to it under way.",
            _OURS,
            denied_stays,
            (denied_is_not_under_way,),
        ),
        Invariant(
            "P15",
            "extensions",
            "An extension touches frames that its policy says, outside the region, and writes only if it may.",
            _OURS,
            extensions_touch,
        ),
        Invariant(
            "P16",
            "books",
            "A window, its device and its hook agree; the mediator's state and the device's agree on which command is under "
            "way, in which direction, and how far it is.",
            "ours: what the others rest on",
            None,
            (mapping_books, window_books, idle_books, port_books, dma_books),
        ),
        Invariant(
            "P17",
            "nothing else",
            "No block of memory changes but those that a step says it has written, and the VMM's shadow pages; no sector, "
            "nor what is meant by it, but those that a command writes, or that are deployed for the first time; no register "
            "of a device, nor what its mediator knows, but by an access to that register, or by a step that is about that "
            "device, and then what such a step may change.",
            "ours: what the composition of systems rests on",
            nothing_else,
        ),
        Invariant(
            "P18",
            "commands are carried out",
            "A command that the mediator follows is about the sectors that the registers said when it came. Each access to "
            "the data port moves one sector, the next, and each step of DMA the next block: between the guest's buffer, as "
            "its descriptors say, the shadow buffer and the medium; nothing else moves any. It is followed until all of its "
            "sectors have moved, unless the status says error, or the guest resets the device or lets the machine sleep.",
            "ours: what is meant, and that the guest's commands are carried out",
            steps.followed_to_its_end,
            of_event=steps.moves_on,
        ),
        Invariant(
            "P19",
            "refused for a reason",
            "What is refused is refused for a reason: by code, what must have been so (`spec.vmm_refusals`). So a command "
            "to sectors that no rule and no added hook forbids, no more than a shadow buffer holds, isn't refused.",
            "ours: without it a VMM that refused everything would be one",
            of_event=refused_for_a_reason,
        ),
    )
}
