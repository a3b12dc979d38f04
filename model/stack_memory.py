"""The one memory of the four systems together, by granules of frames, and the tables of tags that lie in it.

A granule is two words, the lower half at the even index. What a processor or device writes by words clears the granule's
tag, unless it is said to keep it. Source: spec/stack.md, 1.
"""

from collections.abc import Iterator
from typing import Any

from capvisor.model.bits import select
from capvisor.model.memory import EMPTY, Granule
from capvisor.spec.paging import FREE, WORDS_PER_FRAME
from capvisor.spec.stack import GRANULES_PER_FRAME, TAGS_PER_WORD, WORDS_PER_GRANULE, tag_table_frames

Frame = int
Place = tuple[Frame, int]
"""A granule: its frame, and which of the frame's granules it is."""


class Granules:
    """Frames of granules; those never written are empty, and where there is no frame they stay so."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.held: dict[Frame, dict[int, Granule]] = {}
        """By frame and number, the granules that aren't empty."""

    def get(self, frame: Frame, number: int) -> Granule:
        """A granule of a frame."""
        return self.held.get(frame, {}).get(number, EMPTY)

    def set(self, frame: Frame, number: int, granule: Granule) -> None:
        """Replace a granule of a frame."""
        if frame >= self.frames:
            return
        if granule != EMPTY:
            self.held.setdefault(frame, {})[number] = granule
        elif number in self.held.get(frame, {}):
            del self.held[frame][number]

    def word(self, frame: Frame, index: int) -> int:
        """A word of a frame."""
        granule = self.get(frame, index >> 1)
        return select(index & 1 != 0, granule.upper, granule.lower)

    def set_word(self, frame: Frame, index: int, value: int, keeps_tag: bool = False) -> None:
        """Write a word of a frame."""
        number, is_upper = index >> 1, index & 1 != 0
        was = self.get(frame, number)
        halves = select(is_upper, value, was.upper), select(is_upper, was.lower, value)
        self.set(frame, number, Granule(keeps_tag & was.tag, *halves))

    def of_frame(self, frame: Frame) -> dict[int, Granule]:
        """The granules of a frame that aren't empty, by number: a copy."""
        return dict(self.held.get(frame, {}))

    def clear(self, frame: Frame) -> None:
        """Clear a frame, tags and all."""
        for number in self.numbers(frame):
            self.set(frame, number, EMPTY)

    def copy(self, target: Frame, source_store: "Granules", source: Frame) -> None:
        """Replace a frame by another one, of this or another store, tags and all."""
        found = source_store.of_frame(source)
        for number in sorted({*self.numbers(target), *found}):
            self.set(target, number, found.get(number, EMPTY))

    def numbers(self, frame: Frame) -> list[int]:
        """Which granules of a frame have to be set for all of it to be another's."""
        return list(self.held.get(frame, {}))

    def words_of(self, frame: Frame) -> dict[int, int]:
        """The words of a frame that aren't zero, by index."""
        found = {}
        for number, granule in self.held.get(frame, {}).items():
            for half, word in enumerate((granule.lower, granule.upper)):
                if word:
                    found[number * WORDS_PER_GRANULE + half] = word
        return found

    def words(self) -> Iterator[tuple[Frame, int, int]]:
        """Frame, index and value of every word that isn't zero."""
        for frame in [*self.held]:
            yield from ((frame, index, word) for index, word in self.words_of(frame).items())

    def tagged(self) -> dict[Place, Granule]:
        """The granules that are tagged, by place."""
        rows = self.held.items()
        return {(frame, number): granule for frame, row in rows for number, granule in row.items() if granule.tag}


class MachineMemory(Granules):
    """A machine's memory. From frame `first_table` on lies the table of capability tags, and behind it that of owners: they
    read as zeros, as nothing is kept for them.
    """

    def __init__(self, frames: int, first_table: Frame, owners: Any) -> None:
        super().__init__(frames)
        self.owners = owners
        """By frame, whose it is: `model.tags.TagTable`."""
        self.first_table = first_table
        self._tag_frames, owner_frames = tag_table_frames(frames)
        self.behind_tables = first_table + self._tag_frames + owner_frames

    def numbers(self, frame: Frame) -> list[int]:
        """Of a table, all: tags change by what is written there, whatever it reads as."""
        return list(range(GRANULES_PER_FRAME)) if self.is_table(frame) else super().numbers(frame)

    def is_table(self, frame: Frame) -> bool:
        """Whether a frame is of the tables of tags."""
        return (self.first_table <= frame) & (frame < self.behind_tables)

    def set(self, frame: Frame, number: int, granule: Granule) -> None:
        """Replace a granule of a frame; in a table, that changes tags."""
        if not self.is_table(frame):
            super().set(frame, number, granule)
            return
        for half, word in enumerate((granule.lower, granule.upper)):
            self._set_table_word(frame, number * WORDS_PER_GRANULE + half, word)

    def set_word(self, frame: Frame, index: int, value: int, keeps_tag: bool = False) -> None:
        """Write a word of a frame; in a table, that changes tags."""
        if self.is_table(frame):
            self._set_table_word(frame, index, value)
        else:
            super().set_word(frame, index, value, keeps_tag)

    def _set_table_word(self, frame: Frame, index: int, value: int) -> None:
        position = (frame - self.first_table) * WORDS_PER_FRAME + index
        if frame >= self.first_table + self._tag_frames:
            of_frame = position - self._tag_frames * WORDS_PER_FRAME
            if of_frame < self.frames and self.owners[of_frame] != value:
                self.owners[of_frame] = value
            return
        for bit in range(TAGS_PER_WORD):
            of_frame, number = divmod(position * TAGS_PER_WORD + bit, GRANULES_PER_FRAME)
            was = super().get(of_frame, number)
            if was.tag != bool(value >> bit & 1) and not self.is_table(of_frame):
                super().set(of_frame, number, was._replace(tag=not was.tag))


def owned_frames(owners: Any) -> dict[Frame, int]:
    """The owners of a concrete machine's frames that are somebody's."""
    return {frame: owner for frame, owner in owners.tags.rows.items() if owner != FREE}
