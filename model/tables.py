"""What the monitor keeps: tables of rows by number, and the threads."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from capvisor.model.machine import Hart
from capvisor.spec.cvm import Code

CvmId = int
Size = int
Word = int


class Region(NamedTuple):
    """A cVM: its memory, and the cVM that it is nested in (0: none)."""

    is_live: bool = False
    base: int = 0
    top: int = 0
    outer: CvmId = 0
    is_purecap: bool = False


class Grant(NamedTuple):
    """Memory that its owner lets others access: a file, or the buffer of a call."""

    is_live: bool = False
    owner: CvmId = 0
    base: int = 0
    top: int = 0
    last_slot: int = 0
    """The granule that it was put into last, counted from the start of memory."""


class Slot(NamedTuple):
    """A granule into which the monitor has put a granted capability."""

    is_slot: bool = False
    grant: int = 0


class Portal(NamedTuple):
    """An entry of a cVM that others may call, and the call that is under way."""

    is_live: bool = False
    owner: CvmId = 0
    entry: int = 0
    is_busy: bool = False
    caller: CvmId = 0
    size: int = 0


class Frame(NamedTuple):
    """What the monitor works with between the two parts of a call."""

    number: int
    domain: CvmId
    """Whom the thread ran for."""
    caller: CvmId
    """Whom the monitor takes it to run for."""
    arguments: tuple[Word, ...]
    has_handle: bool
    """Whether the first argument is a handle that the monitor made."""
    refusal: Code
    stack: int
    """The caller's stack pointer, where a policy has the monitor keep things."""


class Table(Protocol):
    """Rows by number: how many are live, whether something holds of each, the last one of which it holds (or 0), and
    all of them replaced by others.
    """

    def __getitem__(self, number: Any, /) -> Any: ...

    def __setitem__(self, number: Any, row: Any, /) -> None: ...

    def count(self) -> int: ...

    def all(self, holds: Callable[[Any, Any], bool]) -> bool: ...

    def find(self, holds: Callable[[Any, Any], bool]) -> int: ...

    def map(self, function: Callable[[Any, Any], Any]) -> None: ...


class Rows:
    """A table of one concrete monitor: those never written are as the row that it is made with."""

    def __init__(self, empty: Any) -> None:
        self._empty = empty
        self.rows: dict[Any, Any] = {}

    def __getitem__(self, number: Any) -> Any:
        return self.rows.get(number, self._empty)

    def __setitem__(self, number: Any, row: Any) -> None:
        self.rows[number] = row

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(self.rows.items())

    def count(self) -> int:
        return sum(row.is_live for row in self.rows.values())

    def all(self, holds: Callable[[Any, Any], bool]) -> bool:
        return all(holds(number, row) for number, row in self.rows.items())

    def find(self, holds: Callable[[Any, Any], bool]) -> int:
        return max((number for number, row in self.rows.items() if holds(number, row)), default=0)

    def map(self, function: Callable[[Any, Any], Any]) -> None:
        self.rows = {number: function(number, row) for number, row in self.rows.items()}


class Thread:
    """A thread: its hart, the cVM that it belongs to, and the one that it runs for, which is that or the outer one."""

    def __init__(self, hart: Hart, home: CvmId) -> None:
        self.hart = hart
        self.home: CvmId = home
        self.domain: CvmId = home
        self.is_live = True
        self.number = 0
        self.serves, self.portal = False, 0
        """Whether it serves a portal's call, and which."""
        self.waits, self.waits_for = False, 0
        self.frame: Frame | None = None
        """What the monitor works with, while the thread is in the monitor."""


class Threads(Protocol):
    """All threads, by number."""

    def __getitem__(self, number: int, /) -> Thread: ...

    def add(self, thread: Thread) -> None: ...

    def count(self) -> int: ...

    def for_each(self, action: Callable[[Thread], None]) -> None: ...


class ThreadList(list[Thread]):
    """The threads of one concrete monitor."""

    def add(self, thread: Thread) -> None:
        thread.number = len(self)
        self.append(thread)

    def count(self) -> int:  # type: ignore[override]
        return sum(thread.is_live for thread in self)

    def for_each(self, action: Callable[[Thread], None]) -> None:
        for thread in self:
            action(thread)
