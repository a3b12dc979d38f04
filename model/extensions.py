"""Extensions of a storage mediator: records of hooks, and what their policy lets them touch.

A mediator calls the hooks of each extension, those that are added to a system first and the standard ones last, so that what
goes to the medium is encrypted after all else. The rules: spec/vmm.md, 7; how to add one: docs/extensions.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capvisor.model.bits import not_, select
from capvisor.model.tlb import either
from capvisor.model.vmm import Address, DeviceId, Lba, Meant, System, Word
from capvisor.spec.vmm import ALL_ONES, BLOCK_SHIFT, Phase, Rule


def is_within_policy(system: System, number: int, address: Address, is_write: Any) -> Any:
    """Whether the policy of an extension lets it access a block, which is in memory."""
    row, frame = system.extensions[number], address >> BLOCK_SHIFT
    inside = (row.first <= frame) & (frame < row.behind) & not_(system.is_recognised(frame) | system.is_trapped(frame))
    return row.is_live & (inside & (row.may_write | not_(is_write)) | not_(system.policy.confine_extensions))


class View:
    """What the hooks of an extension see of the system: what the policy of the medium says, and memory as far as the
    extension's own policy lets it. Not the key.
    """

    def __init__(self, system: System, number: int) -> None:
        self._system, self._number = system, number

    def rule(self, device: DeviceId, lba: Lba) -> int:
        """What the policy of a medium says of a sector: `spec.vmm.Rule`."""
        return self._system.rules[device, lba]

    def read(self, address: Address) -> Word:
        """A block of memory; 0 where the extension may not read."""
        if self._permits(address, False):
            return self._system.read("extension", self._number, address)
        return 0

    def write(self, address: Address, word: Word) -> None:
        """Replace a block of memory; nothing happens where the extension may not write."""
        if self._permits(address, True):
            self._system.write("extension", self._number, address, word)

    def _permits(self, address: Address, is_write: bool) -> Any:
        return self._system.is_address(address) & is_within_policy(self._system, self._number, address, is_write)


def _refuses_none(_view: Any, _device: DeviceId, _lba: Lba, _is_write: Any, _is_erase: Any) -> Any:
    return False


def _prepares_none(_view: Any, _device: DeviceId, _lba: Lba, _applies: Any) -> None:
    pass


def _same(_view: Any, _device: DeviceId, _lba: Lba, word: Word) -> Word:
    return word


@dataclass(frozen=True)
class Hooks:
    """An extension of the mediator of storage devices; each hook is called for each sector of a command."""

    name: str
    refuses: Callable[[Any, DeviceId, Lba, Any, Any], Any] = _refuses_none
    """Whether a command to a sector is refused: of a view, device and sector, and whether it writes, and erases."""
    prepares: Callable[[Any, DeviceId, Lba, Any], None] = _prepares_none
    """Before a command is issued, for each of its sectors: the last argument is whether it is one."""
    outgoing: Callable[[Any, DeviceId, Lba, Word], Word] = _same
    """What goes to the medium for a word that the guest writes."""
    incoming: Callable[[Any, DeviceId, Lba, Word], Word] = _same
    """What the guest gets for a word that comes from the medium."""
    extension: int = 0
    """The number of the extension whose policy says what its hooks may touch: nothing, of 0."""


# -- those that every mediator has; they are the VMM's, and see all of the system ------------------------------------------


def _refuses_erasing(system: System, device: DeviceId, lba: Lba, _is_write: Any, is_erase: Any) -> Any:
    return is_erase & (system.rules[device, lba] == Rule.ENCRYPTED)


def _encrypted(system: System, device: DeviceId, lba: Lba, word: Word) -> Word:
    if not_(system.policy.encrypt_writes):
        return word
    return select(system.rules[device, lba] == Rule.ENCRYPTED, system.cipher.encrypt(system.key, lba, word), word)


def _decrypted(system: System, device: DeviceId, lba: Lba, word: Word) -> Word:
    if not_(system.policy.decrypt_reads):
        return word
    return select(system.rules[device, lba] == Rule.ENCRYPTED, system.cipher.decrypt(system.key, lba, word), word)


def _refuses_denied(system: System, device: DeviceId, lba: Lba, _is_write: Any, _is_erase: Any) -> Any:
    return system.policy.refuse_denied & (system.rules[device, lba] == Rule.DENIED)


def _refuses_faulty(system: System, device: DeviceId, lba: Lba, _is_write: Any, _is_erase: Any) -> Any:
    return system.rules[device, lba] == Rule.FAULTY


def _claims(system: System, device: DeviceId, lba: Lba, applies: Any) -> None:
    row, image = system.deployments[device], system.images[device, lba]
    missing = (row.phase == Phase.DEPLOY) & (lba < row.size) & not_(system.deployed[device, lba])
    claims = applies & system.policy.claim_before_command & missing
    system.media[device, lba] = select(claims, image, system.media[device, lba])
    system.meant[device, lba] = either(claims, Meant(True, image), system.meant[device, lba])
    system.deployed[device, lba] = claims | system.deployed[device, lba]


STORAGE_ENCRYPTION = Hooks("storage encryption", refuses=_refuses_erasing, outgoing=_encrypted, incoming=_decrypted)
SANDBOX = Hooks("sandbox", refuses=_refuses_denied)
FAULT_INJECTION = Hooks("fault injection", refuses=_refuses_faulty)
DEPLOYMENT = Hooks("deployment", prepares=_claims)
STANDARD = (SANDBOX, FAULT_INJECTION, DEPLOYMENT, STORAGE_ENCRYPTION)


# -- what a mediator asks --------------------------------------------------------------------------------------------------


def refuses(system: System, device: DeviceId, lba: Lba, is_write: Any, is_erase: Any, applies: Any) -> Any:
    """Whether a command is refused because of a sector, if that is one of the command's."""
    found: Any = False
    for hooks, view in _added(system):
        answer = _asked(system, hooks, "refuses", _truth, view, device, lba, is_write, is_erase)
        system.answers.append(applies & (True if answer is None else answer))
        found = found | system.answers[-1]
    for hooks in STANDARD:
        found = found | applies & hooks.refuses(system, device, lba, is_write, is_erase)
    return found


def prepare(system: System, device: DeviceId, lba: Lba, applies: Any) -> Any:
    """Do what is to be done before a command is issued, for a sector, if it is one of the command's; whether that failed."""
    failed: Any = False
    for hooks, view in _added(system):
        done = _asked(system, hooks, "prepares", lambda _nothing: True, view, device, lba, applies)
        system.answers.append(applies & (done is None))
        failed = failed | system.answers[-1]
    for hooks in STANDARD:
        hooks.prepares(system, device, lba, applies)
    return failed


def outgoing(system: System, device: DeviceId, lba: Lba, word: Word) -> tuple[Word, Word]:
    """What is meant to be stored for a word that the guest writes, and what goes to the medium for it."""
    for hooks, view in _added(system):
        answer = _asked(system, hooks, "outgoing", _word, view, device, lba, word)
        word = 0 if answer is None else answer
    meant = word
    for hooks in STANDARD:
        word = hooks.outgoing(system, device, lba, word)
    return meant, word


def incoming(system: System, device: DeviceId, lba: Lba, word: Word) -> Word:
    """What the guest gets for a word that comes from the medium."""
    for hooks in reversed(STANDARD):
        word = hooks.incoming(system, device, lba, word)
    for hooks, view in reversed(_added(system)):
        answer = _asked(system, hooks, "incoming", _word, view, device, lba, word)
        word = 0 if answer is None else answer
    return word


def _added(system: System) -> list[tuple[Hooks, Any]]:
    return [(each, View(system, each.extension)) for each in system.hooks]


def _asked(system: System, hooks: Hooks, name: str, read: Callable[[Any], Any], *arguments: Any) -> Any:
    """What an added hook answers, as it is read; None where it raises, or answers what can't be read, which is noted."""
    try:
        return read(getattr(hooks, name)(*arguments))
    except system.hook_errors as error:
        system.faults.append(f"{hooks.name}: {name}: {type(error).__name__}: {error}")
        return None


def _truth(answer: Any) -> Any:
    """An answer as a truth value; of those that stand for many, as it is."""
    return answer if hasattr(answer, "select") else bool(answer)


def _word(answer: Any) -> Word:
    """As many bits of an answer as a word has."""
    return answer & ALL_ONES
