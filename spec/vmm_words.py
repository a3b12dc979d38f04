"""The words in which the invariants of a para-pass-through VMM are said: steps, places, and what is meant by them."""

from functools import cache
from typing import Any, NamedTuple

from capvisor.spec.invariants import not_
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    COMMANDS,
    LEVEL_FRAMES,
    WINDOW_SHIFT,
    ChannelState,
    Code,
    Handling,
    Phase,
    Rule,
    Transfer,
)

System = Any


class Step(NamedTuple):
    """A step of the system: the operation and its operands, how it ended, what it touched, and the state after it."""

    system: System
    name: str
    operands: tuple[Any, ...] = ()
    code: Any = Code.OK
    value: Any = None
    touches: tuple[Any, ...] = ()
    """Blocks of memory read and written, but for what the VMM does in its region: `model.vmm.Touch`."""
    moves: tuple[Any, ...] = ()
    """Sectors read and written for the guest: `model.vmm.Move`."""
    before: System | None = None
    """The system as it was before the step, if that is known."""
    answers: tuple[Any, ...] = ()
    """Whether added hooks refuse the command that the step issues, each that was asked."""

    @property
    def is_completed(self) -> bool:
        return self.code is Code.OK


class Place(NamedTuple):
    """Anywhere."""

    vcpu: Any = 0
    slot: Any = 0
    frame: Any = 0
    address: Any = 0
    """A block of memory."""
    device: Any = 1
    lba: Any = 0
    position: Any = 0
    """A block of the device's shadow buffer."""
    space: Any = 0
    window: Any = 0
    extension: Any = 1


def is_mediated(system: System, device: Any) -> Any:
    """Whether a device is a storage device that the VMM mediates."""
    return system.devices[device].is_storage & (system.deployments[device].phase != Phase.GONE)


def is_page_frame(first: Any, level: Any, frame: Any) -> Any:
    """Whether a frame is one of a page of a level."""
    inside: Any = False
    for each, count in enumerate(LEVEL_FRAMES):
        inside = inside | (level == each) & (first <= frame) & (frame < first + count)
    return inside


def stored(system: System, device: Any, lba: Any, word: Any) -> Any:
    """What a sector is to hold, by its rule, where the guest means a word."""
    encrypted = system.cipher.encrypt(system.keys[0], lba, word)
    is_encrypted = system.rules[device, lba] == Rule.ENCRYPTED
    if is_encrypted is True or is_encrypted is False:
        return encrypted if is_encrypted else word
    return is_encrypted.select(encrypted, word)


def is_denied(system: System, device: Any, lba: Any) -> Any:
    """Whether no command to a sector is issued."""
    rule = system.rules[device, lba]
    return (rule == Rule.DENIED) | (rule == Rule.FAULTY)


def is_followed(channel: Any) -> Any:
    """Whether a mediator follows a command that is under way."""
    return (channel.state >= ChannelState.PIO_IN) & (channel.state <= ChannelState.COPYING_IN)


def is_in_range(channel: Any, lba: Any) -> Any:
    """Whether a sector is one of those that a command under way is about."""
    return is_followed(channel) & (channel.first <= lba) & (lba < channel.first + channel.length)


def is_one_of(opcode: Any, *transfers: Transfer) -> Any:
    """Whether a command is a mediated one that moves data in one of some ways."""
    return _is_any(opcode, _opcodes(transfers, (Handling.MEDIATED,)))


def moves_by(opcode: Any, *transfers: Transfer) -> Any:
    """Whether a command moves data in one of some ways, mediated or not."""
    return _is_any(opcode, _opcodes(transfers, tuple(Handling)))


def is_handled(opcode: Any, *handlings: Handling) -> Any:
    """Whether a command of the table is handled in one of some ways."""
    return _is_any(opcode, _opcodes(tuple(Transfer), handlings))


def is_own_data(opcode: Any) -> Any:
    """Whether what a command moves isn't on the medium."""
    return _is_any(opcode, _OWN_DATA)


_OWN_DATA = tuple(row.opcode for row in COMMANDS.values() if row.has_own_data)


@cache
def _opcodes(transfers: tuple[Transfer, ...], handlings: tuple[Handling, ...]) -> tuple[int, ...]:
    return tuple(row.opcode for row in COMMANDS.values() if row.transfer in transfers and row.handling in handlings)


def _is_any(opcode: Any, opcodes: tuple[int, ...]) -> Any:
    found: Any = False
    for each in opcodes:
        found = found | (opcode == each)
    return found


def is_own_page(system: System, touch: Any) -> Any:
    """Whether a device touches a shadow page of its own as it may."""
    frame = touch.address >> BLOCK_SHIFT
    described = frame == system.shadow_descriptor(touch.number) >> BLOCK_SHIFT
    return (frame == system.shadow_buffer(touch.number) >> BLOCK_SHIFT) | described & not_(touch.is_write)


class Access(NamedTuple):
    """An access to a register: of which device, which one's mediator is in the way (0: none), and which register."""

    device: Any
    hook: Any
    register: Any
    value: Any
    """What is written, or read."""


def accessed(step: Step) -> Access:
    """What an `input` or `output` is about."""
    system, (_vcpu, space, number) = step.system, step.operands[:3]
    window = (space, number >> WINDOW_SHIFT)
    value = step.operands[3] if step.name == "output" else step.value
    return Access(system.decoded[window], system.hooked[window], number & (1 << WINDOW_SHIFT) - 1, value)
