"""What the base of shared objects keeps: rows of its tables, and the threads of tenants."""

from collections.abc import Callable
from typing import Any, NamedTuple

from capvisor.model.bits import select
from capvisor.model.machine import Hart
from capvisor.model.tables import ThreadList
from capvisor.spec.orc import NOBODY, SlotKind

TenantId = int
SlotId = int
Size = int
Identity = int


class Slot(NamedTuple):
    """A slot: what it is, whose, of which object it is a shadow; of an image its segments' sizes, and its identity."""

    kind: int = SlotKind.FREE.value
    owner: TenantId = NOBODY
    object: SlotId = 0
    code: Size = 0
    ro: Size = 0
    data: Size = 0
    identity: Identity = 0


class Mapping(NamedTuple):
    """A tenant's use of an object: the slot of its shadow, and the content that it expects."""

    is_live: bool = False
    shadow: SlotId = 0
    identity: Identity = 0


class Tenant(NamedTuple):
    """A tenant: its program's slot, that of its TLS arrays, and how many threads it has started."""

    is_live: bool = False
    home: SlotId = 0
    tls: SlotId = 0
    threads: int = 0


class TenantThread:
    """A thread of a tenant: its hart, and which of the tenant's threads it is, from 0."""

    def __init__(self, hart: Hart, tenant: TenantId, place: int) -> None:
        self.hart, self.tenant, self.place = hart, tenant, place
        self.is_live = True
        self.number = 0


class TenantThreads(ThreadList):
    """The threads of one concrete system."""

    def all(self, holds: Callable[[Any], bool]) -> bool:
        """Whether something holds of each thread."""
        return all(holds(thread) for thread in self)


def select_row(condition: Any, when_true: Any, when_false: Any) -> Any:
    """One of two rows of a kind, as data."""
    return type(when_true)(*(select(condition, *parts) for parts in zip(when_true, when_false, strict=True)))
