"""An extension of the storage mediator: the boot sectors stay as they are, and what else is written is counted."""

from typing import Any

from capvisor.model.extensions import Hooks, View

BOOT_SECTORS = 8
COUNTER = 40 << 3
"""The first block of frame 40."""


def refuses(_view: View, _device: int, lba: int, is_write: Any, _is_erase: Any) -> Any:
    """Whether a command to a sector is refused."""
    return is_write & (lba < BOOT_SECTORS)


def outgoing(view: View, _device: int, _lba: int, word: int) -> int:
    """What goes to the medium for a word: the word, which is counted."""
    view.write(COUNTER, view.read(COUNTER) + 1)
    return word


EXTENSION = Hooks("boot sectors", refuses=refuses, outgoing=outgoing, extension=1)
