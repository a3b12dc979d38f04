"""Where pages and page tables lie in physical memory: a simple allocator, the rule that both simulators follow."""

TABLE_FRAMES = 1 << 33
"""The frame from which on guests' page tables lie, in the order of their first use; pages lie from 0 on, likewise."""
HOST_TABLE_FRAMES = 1 << 36
"""The frame from which on the host's page tables lie."""
HOST_LEVEL_FRAMES = 1 << 31
"""Frames from one level of the host's page tables to the next; within a level they lie in the order of addresses."""


def host_table_frame(level: int, prefix: int) -> int:
    """The frame of the host's page table of a level, for a prefix of guest-physical addresses."""
    return HOST_TABLE_FRAMES + level * HOST_LEVEL_FRAMES + prefix


class GuestFrames:
    """The guest's pages and page tables. The host backs guest-physical frames by host-physical ones of the same order."""

    def __init__(self, leaf_level: int) -> None:
        self._leaf_level = leaf_level
        self._pages: dict[int, int] = {}
        self._tables: dict[tuple[int, int], int] = {}
        self._present: set[int] = set()

    def page(self, page: int) -> int:
        """The first frame of a page, which is allocated at its first use and kept."""
        return self._pages.setdefault(page, len(self._pages)) << 9 * self._leaf_level

    def table(self, level: int, prefix: int) -> int:
        """The frame of a page table, likewise."""
        return TABLE_FRAMES + self._tables.setdefault((level, prefix), len(self._tables))

    def make_present(self, page: int) -> bool:
        """Map a page; whether it wasn't."""
        self.page(page)
        changed = page not in self._present
        self._present.add(page)
        return changed

    def make_absent(self, page: int) -> bool:
        """Unmap a page; whether it was mapped."""
        self.page(page)
        changed = page in self._present
        self._present.discard(page)
        return changed
