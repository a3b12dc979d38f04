"""The tags of frames: who owns each, and large tags, one for 512 frames.

Source: AMD APM vol. 2, 15.36 (the reverse-map table); spec/tpt.md, 1.
"""

from collections.abc import Callable
from typing import Any

from capvisor.model.bits import select
from capvisor.model.paging import Frame
from capvisor.model.tables import Rows
from capvisor.spec.paging import FREE, INDEX_BITS

REGION_FRAMES = 1 << INDEX_BITS


class TagTable:
    """The tags of one concrete machine of some frames; frames that it hasn't got are nobody's."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.tags = Rows(FREE)
        self.large = Rows(False)

    def __getitem__(self, frame: Frame) -> int:
        """A frame's own tag."""
        return self.tags[frame]

    def __setitem__(self, frame: Frame, tag: int) -> None:
        self.tags[frame] = tag

    def is_large(self, frame: Frame) -> bool:
        """Whether a frame is under a large tag."""
        return self.large[frame >> INDEX_BITS]

    def set_large(self, frame: Frame, is_large: bool) -> None:
        self.large[frame >> INDEX_BITS] = is_large

    def looked_up(self, frame: Frame) -> int:
        """The tag that the hardware finds: a large one hides the frame's own."""
        first = frame >> INDEX_BITS << INDEX_BITS
        return self.tags[select(self.is_large(frame), first, frame)]

    def uniform(self, base: Frame, count: int, owner: int) -> bool:
        """Whether so many frames from a base are there, and the hardware finds one owner for all."""
        return self._all(base, count, lambda frame: self.looked_up(frame) == owner)

    def owned(self, base: Frame, count: int, owner: int) -> bool:
        """Whether the own tags of so many frames from a base are one owner's."""
        return self._all(base, count, lambda frame: self.tags[frame] == owner)

    def _all(self, base: Frame, count: int, holds: Callable[[Frame], Any]) -> bool:
        return base + count <= self.frames and all(holds(frame) for frame in range(base, base + count))
