"""What is true of object reuse with capabilities by definition: slots, images, relocations, operations and how they refuse.

The exact rule of each operation is in spec/orc.md. The invariants O1 to O17 are in `spec.orc_invariants`.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple

from capvisor.spec.formats import Permission


class Shape(NamedTuple):
    """How large a slot is, and how many objects there may be, as powers of two.

    Memory is slots, one behind the other: a slot's number is its distance from the start of memory >> `slot_shift`. A
    thread's TLS array has an entry, a capability, for each of 2**`object_shift` slots. The public code's slots have 2**28
    bytes, and an object's number is PCC.base >> 28; those here are small, so that whole states can be compared.
    """

    slot_shift: int = 10
    object_shift: int = 4

    @property
    def slot_bytes(self) -> int:
        return 1 << self.slot_shift

    @property
    def objects(self) -> int:
        return 1 << self.object_shift


SHAPE = Shape()
MAX_TENANTS, MAX_THREADS = 8, 4
"""Tenants are numbered from 1; threads are counted by tenant, so that a slot of TLS arrays has room for them all."""

NOBODY = 0
"""The owner of a slot that is no tenant's, and the tenant of a step that the base takes of its own accord."""


class SlotKind(IntEnum):
    """What a slot is. Of a tenant's own there are four: HOME, OWN, SHADOW and TLS."""

    FREE = 0
    HOME = 1
    """The tenant's program: its code and its data."""
    OWN = 2
    """Memory that the tenant was given later. An object is made there."""
    SUBMITTED = 3
    """An image that was verified and isn't an object yet: nobody's to access."""
    OBJECT = 4
    """A shared object, frozen."""
    SHADOW = 5
    """A tenant's own copy of the writable data of an object."""
    TLS = 6
    """The TLS arrays of a tenant's threads, one behind the other."""


PRIVATE = (SlotKind.HOME, SlotKind.OWN, SlotKind.SHADOW, SlotKind.TLS)
"""The kinds whose owner, and nobody else, can access them."""


class Relocation(IntEnum):
    """What is put at a place of an image's table: a capability, or a number.

    Source: lsds/intravisor 0.1.0, main.c, kinds of `.rela.dyn` fragments; TLS: the ORC abstract's new kind of relocation.
    """

    CONST = 1
    """A capability to read [address, address + size) of the image."""
    OBJ = 2
    """A capability to the shared copy of a writable global, [address, address + size)."""
    TLS = 3
    """The offset of a global within the shadow, a number: the shadow itself is found in the thread's TLS array."""
    FUNC = 4
    """A capability to execute the object, at address."""


FIRST_OTYPE = 1
"""The object type of the entries of the object in slot s is s more."""

SHARED_OTYPE = 0
"""The object type of all entries where the guard `distinct_otypes` is off. Source: lsds/intravisor, READMEs."""

STACK, THREAD_POINTER, IDENTITY, RESULTS, INVOKED_DATA = 2, 4, 10, (11, 12), 31
"""Registers: the home slot's data, the thread's TLS array, the tenant's number, what an operation gives; what CInvoke opens.

A thread starts with the first three. IDENTITY is looked at only where the guard `caller_from_thread` is off.
"""

# -- authority -------------------------------------------------------------------------------------------------------------

_LOADS = Permission.LOAD | Permission.LOAD_CAPABILITY
_STORES = Permission.STORE | Permission.STORE_CAPABILITY | Permission.STORE_LOCAL_CAPABILITY
READ_PERMISSIONS = Permission.GLOBAL | _LOADS
DATA_PERMISSIONS = READ_PERMISSIONS | _STORES
CODE_PERMISSIONS = READ_PERMISSIONS | Permission.EXECUTE | Permission.CINVOKE
ENTRY_DATA_PERMISSIONS = READ_PERMISSIONS | Permission.CINVOKE
STORE_PERMISSIONS = _STORES

PERMITTED: dict[SlotKind, Permission] = {
    SlotKind.HOME: DATA_PERMISSIONS | CODE_PERMISSIONS,
    SlotKind.OWN: DATA_PERMISSIONS,
    SlotKind.SHADOW: DATA_PERMISSIONS,
    SlotKind.TLS: DATA_PERMISSIONS,
    SlotKind.OBJECT: CODE_PERMISSIONS,
}
"""What a tenant may at most be permitted in its own slots, and in an object that it has mapped; elsewhere nothing.

That TLS arrays are only to be read is said by O4: nobody else's memory depends on it.
"""

# -- operations ------------------------------------------------------------------------------------------------------------


class Code(IntEnum):
    """Why an operation is refused; 0: it isn't. A refused operation changes nothing."""

    OK = 0
    RANGE = 1
    """There is no such slot, tenant or place; what is asked for has no exact bounds."""
    NO_TENANT = 2
    TAKEN = 3
    """The tenant exists, the object is mapped already."""
    NOT_FREE = 4
    NOT_OWNED = 5
    """The slot isn't one that the tenant was given."""
    NOT_SUBMITTED = 6
    """The slot isn't an image that the tenant has submitted."""
    NO_OBJECT = 7
    NOT_MAPPED = 8
    IDENTITY = 9
    """The object's content isn't what was expected."""
    SEGMENTS = 10
    KIND = 11
    TARGET = 12
    """The place to be relocated isn't in the image's read-only segment."""
    SOURCE = 13
    """What is relocated isn't in the segment that its kind wants."""
    SHARED = 14
    """A capability to the shared copy of a global."""
    ENTRY = 15
    """The place isn't code, or isn't exported."""
    BUSY = 16
    """A thread executes the object, a tenant has it mapped."""
    FULL = 17


class Actor(Enum):
    """Who performs an operation."""

    TENANT = "tenant"
    BASE = "base"


class OperandKind(Enum):
    """What an operand is; it bounds what may be drawn."""

    TENANT = "tenant"
    SLOT = "slot"
    SIZE = "size"
    """Of a segment, or of what a relocation names."""
    OFFSET = "offset"
    """Within a slot."""
    RELOCATION = "relocation"
    IDENTITY = "identity"


@dataclass(frozen=True)
class Operation:
    """One operation: who performs it, what it takes, what its results are, why it may be refused.

    A tenant's is performed by one of its threads, whose registers c11 and c12 get the results.
    """

    name: str
    actor: Actor
    operands: tuple[tuple[str, OperandKind], ...]
    summary: str
    source: str
    refusals: tuple[Code, ...] = ()


_SLOT, _OBJECT, _SHADOW = ("slot", OperandKind.SLOT), ("object", OperandKind.SLOT), ("shadow", OperandKind.SLOT)
_TENANT, _ENTRY = ("tenant", OperandKind.TENANT), ("entry", OperandKind.OFFSET)
_MODEL, _CODE = "the model's: spec/orc.md", "lsds/intravisor 0.1.0"
_ABSTRACT = "ORC abstract (OSDI 2023): the guest loads, the base verifies"

OPERATIONS: dict[str, Operation] = {
    row.name: row
    for row in (
        # -- making an object
        Operation(
            "allocate",
            Actor.TENANT,
            (_SLOT,),
            "get a free slot; c11 = its memory",
            _MODEL,
            (Code.RANGE, Code.NO_TENANT, Code.NOT_FREE),
        ),
        Operation(
            "submit",
            Actor.TENANT,
            (_SLOT, ("code", OperandKind.SIZE), ("ro", OperandKind.SIZE), ("data", OperandKind.SIZE)),
            "let the base verify a slot as an image: its segments lie one behind the other",
            _ABSTRACT,
            (Code.RANGE, Code.NO_TENANT, Code.NOT_OWNED, Code.FULL, Code.SEGMENTS),
        ),
        Operation(
            "relocate",
            Actor.TENANT,
            (
                *(_SLOT, ("kind", OperandKind.RELOCATION), ("target", OperandKind.OFFSET)),
                *(("address", OperandKind.OFFSET), ("size", OperandKind.SIZE)),
            ),
            "put a capability, or a number, at a place of a submitted image",
            f"{_CODE}, main.c: relocations",
            (Code.RANGE, Code.NO_TENANT, Code.NOT_SUBMITTED, Code.KIND, Code.TARGET, Code.SOURCE, Code.SHARED),
        ),
        Operation(
            "export",
            Actor.TENANT,
            (_SLOT, _ENTRY),
            "let a submitted image be entered at a place",
            _MODEL,
            (Code.RANGE, Code.NO_TENANT, Code.NOT_SUBMITTED, Code.ENTRY),
        ),
        Operation(
            "publish",
            Actor.TENANT,
            (_SLOT,),
            "make a submitted image an object that any tenant may map",
            _ABSTRACT,
            (Code.RANGE, Code.NO_TENANT, Code.NOT_SUBMITTED),
        ),
        Operation(
            "withdraw",
            Actor.TENANT,
            (_SLOT,),
            "get a submitted image's memory back; c11 = it",
            _MODEL,
            (Code.RANGE, Code.NO_TENANT, Code.NOT_SUBMITTED),
        ),
        # -- using it
        Operation(
            "map",
            Actor.TENANT,
            (_OBJECT, ("identity", OperandKind.IDENTITY), _SHADOW),
            "use an object of an expected content, with a free slot for its writable data",
            f"{_CODE}, host_sc.c: get_sc_caps; ORC abstract: state by tenant in thread-local storage",
            (Code.RANGE, Code.NO_TENANT, Code.NO_OBJECT, Code.TAKEN, Code.IDENTITY, Code.NOT_FREE),
        ),
        Operation(
            "bind",
            Actor.TENANT,
            (_OBJECT, _ENTRY),
            "get the sealed pair of an entry: c11 = the code, c12 = the data",
            f"{_CODE}, callback_out",
            (Code.RANGE, Code.NO_TENANT, Code.NOT_MAPPED, Code.ENTRY),
        ),
        Operation(
            "unmap",
            Actor.TENANT,
            (_OBJECT,),
            "be done with an object: its shadow is gone",
            _MODEL,
            (Code.RANGE, Code.NO_TENANT, Code.NOT_MAPPED, Code.BUSY),
        ),
        Operation(
            "start",
            Actor.TENANT,
            (_ENTRY,),
            "start another thread at a place of the home slot; x11 = its number",
            _MODEL,
            (Code.RANGE, Code.NO_TENANT, Code.FULL),
        ),
        # -- the base
        Operation(
            "create",
            Actor.BASE,
            (_TENANT, ("home", OperandKind.SLOT), ("tls", OperandKind.SLOT)),
            "make a tenant of two free slots, with one thread",
            _MODEL,
            (Code.RANGE, Code.TAKEN, Code.NOT_FREE),
        ),
        Operation(
            "destroy",
            Actor.BASE,
            (_TENANT,),
            "end a tenant: its threads, its use of objects, its slots",
            _MODEL,
            (Code.NO_TENANT,),
        ),
        Operation(
            "collect",
            Actor.BASE,
            (_OBJECT,),
            "free an object that nobody has mapped",
            _MODEL,
            (Code.RANGE, Code.NO_OBJECT, Code.BUSY),
        ),
    )
}
