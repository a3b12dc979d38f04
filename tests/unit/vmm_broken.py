"""Machines that are wrong: of each, a step in whose proof an invariant falls, and what a guest does to show it in a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

from capvisor.model import extensions, mediator
from capvisor.model import vmm_devices as hardware
from capvisor.model.vmm import System
from capvisor.model.vmm_operations import OPERATION_RULES
from capvisor.spec.vmm import ChannelState, Register, Space
from tests.unit.vmm import (
    BUFFER,
    DEPLOYED,
    DISK,
    NETWORK,
    PLAIN,
    READ_DMA,
    READ_SECTORS,
    TO_GUEST,
    TO_MEDIUM,
    WRITE_DMA,
    WRITE_SECTORS,
    Rig,
    window,
)


class Broken(NamedTuple):
    """A machine that is wrong in one place: which function, and what stands for it."""

    where: Any
    name: str
    wrong: Callable[..., Any]
    step: str
    """By its name, and part."""
    invariant: str
    scene: Callable[[Rig], Any]


def _drops(system: System, device: int, _word: int, _meant: int) -> None:
    """The device is reset instead."""
    hardware.reset(system, device)


def _elsewhere(system: System, device: int, word: int, meant: int) -> None:
    """The word goes to the next sector but one."""
    row = system.devices[device]
    system.devices[device] = row._replace(first=row.first + 1 & hardware.LBA_MASK)
    _output_data(system, device, word, meant)
    system.devices[device] = system.devices[device]._replace(first=row.first)


_output_data, _set_state, _let_move = hardware.output_data, mediator._set_state, mediator._let_move
_issue, _output, _input_data = hardware.issue, hardware.output_register, hardware.input_data


def _forgets(system: System, device: int, opcode: int) -> None:
    """The command is as another one at once: its length is one sector."""
    row = system.devices[device]
    system.devices[device] = row._replace(count=1)
    _issue(system, device, opcode)
    system.devices[device] = system.devices[device]._replace(count=row.count)


def _says_ready(system: System, device: int) -> None:
    """What was copied is dropped: the device is reset, and the mediator says that it is done."""
    hardware.reset(system, device)
    _set_state(system, device, int(ChannelState.READY))


def _reads_nothing(_system: System, _device: int) -> int:
    return 0


def _refuses_all(system: System, device: int, *_about: Any) -> None:
    mediator._fail(system, device)


def _one_more(system: System, device: int, register: int, value: int) -> None:
    """Whoever writes the count sets the address as well."""
    _output(system, device, register, value)
    row = system.devices[device]
    system.devices[device] = row._replace(lba=row.lba ^ 1)


def _other_words(system: System, device: int, register: int, value: int) -> None:
    """What passes through arrives changed."""
    _output(system, device, register, value ^ 1)


def _blocks_all(_channel: Any, _row: Any) -> bool:
    return True


def _lost_word(system: System, device: int, lba: int, word: int) -> tuple[int, int]:
    """The guest's word is another one from the start."""
    return _outgoing(system, device, lba, word ^ 1)


_outgoing = extensions.outgoing


def _never_busy(_channel: Any, _row: Any) -> bool:
    return False


def _left(rig: Rig) -> None:
    for lba in range(4):
        rig.must("fetch", DEPLOYED, lba)
        rig.must("deploy", DEPLOYED)
    rig.must("leave", DEPLOYED)
    rig.output(Register.COUNT, 2, DEPLOYED)


def _stopped_under_way(rig: Rig) -> None:
    rig.command(READ_SECTORS, PLAIN, 2)
    rig.must("begin_move")
    rig.do("stop")


def _started(rig: Rig) -> None:
    rig.put(BUFFER, 7)
    rig.describe((BUFFER, 2))
    rig.command(WRITE_DMA, PLAIN, 2)
    rig.output(Register.START, TO_MEDIUM)
    rig.finish()


def _read(rig: Rig) -> None:
    rig.describe((BUFFER, 1))
    rig.command(READ_DMA, PLAIN)
    rig.output(Register.START, TO_GUEST)


def _foreign_dma(rig: Rig) -> None:
    """Another device writes to the shadow buffer of a write."""
    rig.put(BUFFER, 7)
    rig.describe((BUFFER, 2))
    rig.command(WRITE_DMA, PLAIN, 2)
    rig.output(Register.START, TO_MEDIUM)
    rig.must("mediate", DISK)
    rig.do("dma_write", NETWORK, rig.system.shadow_buffer(DISK), 9)


def _all_rights(_system: System, _device: int, _frame: int) -> int:
    return hardware.READ | hardware.WRITE


def _sleeps(system: System, _vcpu: int) -> None:
    """Nobody sets up the IOMMU anew."""
    system.vmm[0] = system.vmm[0]._replace(is_iommu_off=True)


def _untracked(system: System, space: int, window: int, device: int) -> None:
    """A window is intercepted, but its page stays mapped."""
    system.hooked[space, window] = device


def _forgotten(system: System, device: int) -> None:
    """What was fetched is dropped, and counts as deployed."""
    row = system.deployments[device]
    system.deployed[device, row.lba] = True
    system.deployments[device] = row._replace(is_fetched=False, lba=0, word=0)


def _deploys(rig: Rig) -> None:
    rig.must("fetch", DEPLOYED, 0)
    rig.do("deploy", DEPLOYED)


BROKEN = {
    "drops what is written by the port": Broken(
        *(hardware, "output_data", _drops, "output.data", "P18"), lambda rig: rig.write_port(PLAIN, 7)
    ),
    "writes to another sector": Broken(
        *(hardware, "output_data", _elsewhere, "output.data", "P18"), lambda rig: rig.write_port(PLAIN, 7)
    ),
    "writes another word than the guest": Broken(
        *(extensions, "outgoing", _lost_word, "output.alone_data", "P3"), lambda rig: rig.write_port(PLAIN, 7)
    ),
    "reads no sector": Broken(
        *(hardware, "input_data", _reads_nothing, "input.data", "P18"), lambda rig: rig.read_port(PLAIN, 1)
    ),
    "drops what is written by DMA": Broken(*(mediator, "_let_move", _says_ready, "mediate", "P18"), _started),
    "drops a read by DMA": Broken(*(mediator, "_let_move", _says_ready, "output.start", "P18"), _read),
    "issues a shorter command": Broken(
        *(hardware, "issue", _forgets, "output.command_write_sectors", "P18"),
        lambda rig: rig.command(WRITE_SECTORS, PLAIN, 2),
    ),
    "refuses all commands": Broken(
        *(mediator, "_check", _refuses_all, "output.command_read_sectors", "P19"),
        lambda rig: rig.command(READ_SECTORS, PLAIN),
    ),
    "is always busy": Broken(
        *(mediator, "is_busy", _blocks_all, "output.count", "P19"), lambda rig: rig.output(Register.COUNT, 1)
    ),
    "sets two registers": Broken(
        *(hardware, "output_register", _one_more, "output.count", "P17"), lambda rig: rig.output(Register.COUNT, 1)
    ),
    "changes what passes through": Broken(*(hardware, "output_register", _other_words, "output.count", "P10"), _left),
    "stops while a command is under way": Broken(*(mediator, "is_busy", _never_busy, "stop", "P13"), _stopped_under_way),
    "lets any device write to shadow buffers": Broken(*(hardware, "rights", _all_rights, "dma_write", "P2"), _foreign_dma),
    "wakes without an IOMMU": Broken(*(OPERATION_RULES, "sleep", _sleeps, "sleep", "P8"), lambda rig: rig.do("sleep", 0)),
    "leaves pages with registers mapped": Broken(
        *(System, "hook", _untracked, "move_window", "P8"),
        lambda rig: rig.do("move_window", 0, DISK, Space.MEMORY, window(DISK, Space.MEMORY) + 64),
    ),
    "deploys nothing": Broken(*(OPERATION_RULES, "deploy", _forgotten, "deploy", "P12"), _deploys),
}


def break_in(broken: Broken, monkeypatch: Any) -> None:
    """Let a machine be wrong."""
    change = monkeypatch.setitem if isinstance(broken.where, dict) else monkeypatch.setattr
    change(broken.where, broken.name, broken.wrong)
