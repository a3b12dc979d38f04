"""What a run of a system costs: calls, crossings, operations on capabilities and copies, by mechanism. No times."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from capvisor.model.memory import Memory
from capvisor.model.monitor import Monitor, Rows, Thread
from capvisor.spec.cvm import KEYS
from capvisor.spec.operations import OPERATIONS, OperandKind

MECHANISMS = {"file": "CP_File", "portal": "CP_Call", "wait": "CP_Call", "inner": "nesting", "": "nesting"}
"""What a call belongs to, by the first word of its name; those of other names are called by that word."""

GUESTS = "guests' own code"


@dataclass
class Cost:
    """What was counted for one mechanism.

    A crossing is a thread's going on for another cVM or for the monitor. An operation on capabilities is an instruction that
    takes or makes one as a value, and not only to access data by. A copy is an access to data that crosses: a guest's to
    memory that isn't its own, or the monitor's for a guest.
    """

    calls: int = 0
    crossings: int = 0
    capability_operations: int = 0
    copies: int = 0
    bytes_copied: int = 0


class Access(NamedTuple):
    """An access to data."""

    address: int
    size_bytes: int


class WatchedMemory(Memory):
    """A memory that notes the accesses to data."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.accesses: list[Access] = []

    def read(self, address: int, size_bytes: int) -> int:
        """As Memory, and noted."""
        self.accesses.append(Access(address, size_bytes))
        return super().read(address, size_bytes)

    def write(self, address: int, size_bytes: int, value: int) -> None:
        """As Memory, and noted."""
        self.accesses.append(Access(address, size_bytes))
        super().write(address, size_bytes, value)


_VALUES = (OperandKind.CAPABILITY_DESTINATION, OperandKind.CAPABILITY_SOURCE_2)


class Costs:
    """Counts the steps of a run into costs by mechanism."""

    def __init__(self, by_mechanism: dict[str, Cost]) -> None:
        self._by_mechanism = by_mechanism

    def _of(self, mechanism: str) -> Cost:
        return self._by_mechanism.setdefault(mechanism, Cost())

    def instruction(self, monitor: Monitor, thread: Thread, name: str, call: str | None, accesses: list[Access]) -> None:
        """An instruction, of a call's library or (None) of the guest's own."""
        handles = any(kind in _VALUES for kind in OPERATIONS[name].operands)
        self._of(mechanism_of(call)).capability_operations += handles
        row = monitor.regions[thread.domain]
        for access in accesses:
            if not row.base <= access.address < row.top:
                self._copied(_mechanism_at(monitor, access.address), access)

    def call(self, name: str, accesses: list[Access]) -> None:
        """The second part of a call, with the monitor's accesses."""
        self._of(mechanism_of(name)).calls += 1
        for access in accesses:
            self._copied(mechanism_of(name), access)

    def crossed(self, call: str | None, times: int) -> None:
        """Crossings of a step that belongs to a call, or to none."""
        self._of(mechanism_of(call)).crossings += times

    def _copied(self, mechanism: str, access: Access) -> None:
        cost = self._of(mechanism)
        cost.copies += 1
        cost.bytes_copied += access.size_bytes


def mechanism_of(call: str | None) -> str:
    """What a call belongs to; "" stands for entering an outer cVM, None for what is no call's."""
    if call is None:
        return GUESTS
    word = call.partition("_")[0]
    return MECHANISMS.get(word, word)


def _mechanism_at(monitor: Monitor, address: int) -> str:
    """What gives access to memory at an address: a file, or the buffer of a call."""
    assert isinstance(monitor.grants, Rows)
    found = [number for number, row in monitor.grants if row.base <= address < row.top]
    if not found:
        return GUESTS
    return mechanism_of("file" if found[-1] < KEYS else "portal")
