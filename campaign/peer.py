"""Peers: other implementations that execute a case and are compared with the reference, step by step."""

from dataclasses import dataclass
from typing import Protocol

from capvisor.campaign.case import Case


@dataclass(frozen=True)
class PeerDifference:
    """The first place where a peer's state isn't the reference's."""

    step: int
    """Index in the case's operations; -1 is the state at the start."""
    what: str
    """What differs: `c5.address`, `trap`, `pc`, `memory at 0x80000010`."""
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.what}: reference {self.expected}, peer {self.actual}"


class PeerError(Exception):
    """A peer can't be used: it is slow, silent or gone, or what it says has no meaning; the message is one line."""


class Peer(Protocol):
    """An implementation outside of this process."""

    name: str

    def check(self, case: Case) -> PeerDifference | None:
        """Have the case executed and compared; the first difference, if there is one. Raises PeerError."""
        ...

    def close(self) -> None:
        """End it, and leave nothing behind."""
        ...
