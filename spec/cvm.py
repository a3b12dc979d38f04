"""What is true of capability VMs by definition: the monitor's calls, what they take and how they refuse, limits, authority.

The prose is in spec/cvm.md. The invariants C1 to C19 are in `spec.cvm_invariants`.
"""

from dataclasses import dataclass
from enum import Enum

from capvisor.spec.formats import Permission

MONITOR = 0
"""The monitor's own number among cVMs; those that guests run in are counted from 1."""

MAX_CVMS, MAX_GRANTS, MAX_PORTALS, MAX_THREADS = 10, 10, 10, 63
"""How many there may be at a time. A full table refuses. Source: lsds/intravisor 0.0.1, monitor.h."""

NUMBER_REGISTER, ARGUMENT_REGISTERS, RESULT_REGISTERS = 30, (10, 11, 12), (10, 11)
"""Where a call's number (t5), its arguments and its results are. Source: lsds/intravisor 0.0.1, doc/invocation.md."""

STACK_POINTER = 2
"""Where the stack pointer is. It starts at the capability store and grows downwards."""

KEYS = 1 << 16
"""Keys of files and portals are less: a modelling choice, as the public code's ten characters are."""

HANDLE_OTYPE, FIRST_OTYPE = 1, 2
"""Object types: of handles, and of the monitor's own pair; that of cVM n is n more."""

SHARED_OTYPE = 0
"""The object type of all pairs where the guard `distinct_otypes` is off. Source: lsds/intravisor, READMEs."""

STORE_SLOTS = ("own code", "own data", "call code", "call data")
"""The capability store, the last granules of a region: what a cVM's library finds there.

Its own sealed pair, by which it is entered; and the sealed pair by which it calls: the monitor's, or its outer cVM's.
"""

# -- authority -------------------------------------------------------------------------------------------------------------

_ALWAYS = Permission.GLOBAL | Permission.LOAD | Permission.STORE | Permission.LOAD_CAPABILITY | Permission.CINVOKE
CODE_PERMISSIONS = Permission.GLOBAL | Permission.EXECUTE | Permission.LOAD | Permission.CINVOKE
HYBRID_DATA, PURECAP_DATA = _ALWAYS, _ALWAYS | Permission.STORE_CAPABILITY
"""What hybrid code's DDC permits, and pure-capability code's data capability. Source: lsds/intravisor 0.0.1, utils.c."""

GRANT_PERMISSIONS = Permission.LOAD | Permission.STORE
MONITOR_PERMISSIONS = Permission(0xFFF)

# -- calls -----------------------------------------------------------------------------------------------------------------


class Code(Enum):
    """What a call answers: 0, or why it is refused."""

    OK = 0
    NO_SUCH_CALL = 1
    NOT_FOUND = 2
    EXISTS = 3
    FULL = 4
    RANGE = 5
    NOT_OWNER = 6
    BAD_HANDLE = 7
    BUSY = 8
    NOT_IN_CALL = 9


class ArgumentKind(Enum):
    """What an argument of a call is; the checks of what it names follow from it.

    Pointers count from the start of the caller's region. Source: lsds/intravisor, utils.c, comp_to_mon.
    """

    KEY = "key"
    POINTER = "pointer"
    """Where memory begins that the monitor accesses for the caller; the size is the next argument, or eight bytes."""
    RANGE = "range"
    """Where memory begins that the caller advertises; the size is the next argument."""
    LOCATION = "location"
    """Where a capability is to be put."""
    SIZE = "size"
    HANDLE = "handle"
    ENTRY = "entry"
    """Where code begins."""


@dataclass(frozen=True)
class Call:
    """One call of the monitor by a guest.

    `arguments` are names and kinds, in x10 and behind; the results are x10, the code, and perhaps x11.
    """

    name: str
    number: int
    arguments: tuple[tuple[str, ArgumentKind], ...]
    summary: str
    source: str
    refusals: tuple[Code, ...] = ()

    @property
    def all_refusals(self) -> tuple[Code, ...]:
        """Why it may be refused: its own reasons, and what follows from its arguments."""
        kinds = {kind for _name, kind in self.arguments}
        by_range = kinds & {ArgumentKind.POINTER, ArgumentKind.RANGE, ArgumentKind.LOCATION, ArgumentKind.ENTRY}
        return (*self.refusals, *((Code.RANGE,) if by_range and Code.RANGE not in self.refusals else ()))


_KEY, _LOCATION, _SIZE = ("key", ArgumentKind.KEY), ("location", ArgumentKind.LOCATION), ("size", ArgumentKind.SIZE)
_POINTER, _RANGE, _HANDLE = (
    ("pointer", ArgumentKind.POINTER),
    ("pointer", ArgumentKind.RANGE),
    ("handle", ArgumentKind.HANDLE),
)
_ENTRY = ("entry", ArgumentKind.ENTRY)
_FILES, _CALLS = "lsds/intravisor 0.0.1, host_cap_file.c", "lsds/intravisor 0.0.1, host_cap_calls.c"

CALLS: dict[str, Call] = {
    row.name: row
    for row in (
        Call("host_print", 1, (_POINTER,), "give the eight bytes at a pointer to the host", "hostcalls.c, 1"),
        Call("host_time", 25, (_POINTER,), "put the host's clock, eight bytes, at a pointer", "hostcalls.c, 25 to 28"),
        Call("thread_create", 5, (_ENTRY,), "start a thread at an entry", "hostcalls.c, 3 to 19", (Code.FULL,)),
        Call(
            "file_advertise",
            405,
            (_KEY, _RANGE, _SIZE),
            "let whoever knows the key probe a part of the caller's memory",
            f"{_FILES}, advertise",
            (Code.EXISTS, Code.FULL, Code.RANGE),
        ),
        Call(
            "file_probe",
            406,
            (_KEY, _LOCATION),
            "put a capability to a file at a place in the caller's memory; x11 = its size",
            f"{_FILES}, probe",
            (Code.NOT_FOUND,),
        ),
        Call(
            "file_revoke",
            420,
            (_KEY,),
            "take a file back from all who probed it",
            f"{_FILES}, revoke, to which the public code gives no number",
            (Code.NOT_FOUND, Code.NOT_OWNER),
        ),
        Call(
            "portal_advertise",
            409,
            (_KEY, _ENTRY),
            "let whoever knows the key call an entry of the caller",
            f"{_CALLS}, advertise",
            (Code.EXISTS, Code.FULL),
        ),
        Call("portal_probe", 410, (_KEY,), "c11 = a handle of a portal", f"{_CALLS}, probe", (Code.NOT_FOUND,)),
        Call(
            "portal_call",
            411,
            (_HANDLE, _POINTER, _SIZE),
            "start a thread of the portal's owner at its entry, with a buffer of the caller's for it to fetch",
            f"{_CALLS}, make_call",
            (Code.BAD_HANDLE, Code.BUSY, Code.FULL, Code.RANGE),
        ),
        Call(
            "portal_fetch",
            413,
            (_LOCATION,),
            "in a called thread: put a capability to the caller's buffer at a place in memory; x11 = its size",
            f"{_CALLS}, fetch",
            (Code.NOT_IN_CALL,),
        ),
        Call("portal_finish", 412, (), "in a called thread: the call is over", f"{_CALLS}, finish", (Code.NOT_IN_CALL,)),
        Call("wait", 407, (_HANDLE,), "wait until a call by this handle is over", f"{_CALLS}, wait", (Code.BAD_HANDLE,)),
        Call(
            "inner_return",
            430,
            (),
            "in an outer cVM: go back to the inner one that called it",
            "ours: the public code lets the outer cVM enter the inner one by its sealed pair (hostcalls.c, 700)",
            (Code.NOT_IN_CALL,),
        ),
        Call("thread_exit", 6, (), "end the thread", "hostcalls.c, 3 to 19"),
    )
}
CALLS_BY_NUMBER: dict[int, Call] = {row.number: row for row in CALLS.values()}
