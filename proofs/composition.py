"""Where two systems meet: an Intravisor in a guest of translation pass-through.

The Intravisor's memory is the guest's virtual memory; the host gives it frames, by tags. Of what lies below it, the monitor
needs one thing: that nothing there makes a capability. `outside` is any such step; that it keeps the monitor's invariants is
asked with the other steps (`proofs.cvm`). Translation pass-through needs nothing of what runs in its guests: its invariants
hold for any store to any frame that a guest may store to. The theorems here say what the two come to, of any two accesses.
"""

from types import SimpleNamespace
from typing import Any

import z3

from capvisor.model.memory import Granule
from capvisor.model.tpt import Touch
from capvisor.proofs.contracts import any_bounds, any_function
from capvisor.proofs.cvm_state import INDUCTIVE, AnyMonitor
from capvisor.proofs.memory import ArrayStore
from capvisor.proofs.symbolic import SymBool, as_int, select
from capvisor.proofs.theorem import Given, implies, theorem
from capvisor.proofs.tpt_state import FRAME_BITS, VM_BITS
from capvisor.spec.cvm_invariants import is_plain, some
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.paging import FRAME_SHIFT, FREE
from capvisor.spec.policy import INTENDED
from capvisor.spec.tag_policy import INTENDED as TAGS_INTENDED
from capvisor.spec.tpt_invariants import TPT_INVARIANTS, Step

OUTSIDE = "outside"
"""The step of what lies below: a host that takes frames away, brings them back or clears them; a device that writes."""


class ChangedBelow:
    """Memory in which something below the system has changed any granules: each is as it was, or holds anything untagged."""

    def __init__(self, fmt: CapabilityFormat, before: Any) -> None:
        self._before, self._width = before, fmt.address_width
        self._other = ArrayStore(fmt.address_width, "outside")
        self._is_same = z3.Array("outside_left", z3.BitVecSort(fmt.address_width), z3.BoolSort())

    def get(self, index: Any) -> Granule:
        """The granule at an index."""
        tag, upper, lower = self._before.get(index)
        _tag, *others = self._other.get(index)
        is_same = SymBool(self._is_same[as_int(index).at(self._width)])
        return tag & is_same, select(is_same, upper, others[0]), select(is_same, lower, others[1])


# -- two accesses ----------------------------------------------------------------------------------------------------------


class _Access:
    """An access that a vCPU of a VM has completed: the byte's virtual address, its frame, and what T1 says of it."""

    def __init__(self, fmt: CapabilityFormat, given: Given, name: str) -> None:
        self.byte, self.vm = given.word(f"{name}_byte", fmt.address_width), given.word(f"{name}_vm", VM_BITS)
        page = self.byte >> FRAME_SHIFT
        (self.frame,) = any_function("frame_of", fmt, (self.vm, page), (FRAME_BITS,))
        (self.tag,) = any_function("tag_of", fmt, (self.frame,), (VM_BITS,))
        # A VM's tables are supposed to map no two pages to one frame.
        (source,) = any_function("page_of", fmt, (self.vm, self.frame), (fmt.address_width,))
        given.assume(source == page)
        touch = Touch("data", self.vm, self.frame, self.byte >> 3 & 511, given.flag(f"{name}_writes"), self.tag, True)
        system: Any = SimpleNamespace(policy=TAGS_INTENDED)
        given.assume(TPT_INVARIANTS["T1"].holds(Step(system, "load", vm=self.vm, touches=(touch,)), None))  # type: ignore[arg-type]

    def is_of_same_byte(self, other: "_Access") -> Any:
        """Whether the two go to one byte of the machine's memory."""
        offset = (1 << FRAME_SHIFT) - 1
        return (self.frame == other.frame) & (self.byte & offset == other.byte & offset)


@theorem(
    "composition.guests",
    "Whatever two guests execute, where accesses of both go to one byte of the machine, they are the same guest, or the "
    "frame is nobody's: reclaimed, and not acknowledged by either's processor.",
    "ours: T1 of spec/tpt.md, of two accesses in one state of the tags",
    scope="all accesses, in one state; of the guests nothing is supposed; T1 is supposed: `capvisor prove tpt` proves it",
    replays=False,
)
def guests_apart(fmt: CapabilityFormat, given: Given) -> Any:
    """For any two accesses that were completed."""
    one, other = _Access(fmt, given, "one"), _Access(fmt, given, "other")
    return implies(one.is_of_same_byte(other), (one.vm == other.vm) | (one.tag == FREE))


@theorem(
    "composition.cvms",
    "Where two cVMs of one Intravisor, in a guest of translation pass-through, can access one byte of the machine, by "
    "whatever they hold, they are one cVM, one is nested in the other, or the byte is in a live grant that one of them "
    "holds.",
    "ours: C1 and C2 of spec/cvm.md, T1 of spec/tpt.md",
    scope="any two threads and registers, in one state; supposed are C1, C2 and the other invariants of a state (`capvisor "
    "prove cvm`), and that the guest's tables map no two pages of the Intravisor to one frame",
    replays=False,
)
def cvms_apart(fmt: CapabilityFormat, given: Given) -> Any:
    """For any two capabilities that are held, and any byte within the bounds of each, whatever bounds are made of."""
    with any_bounds():
        return _cvms_apart(fmt, given)


def _cvms_apart(fmt: CapabilityFormat, given: Given) -> Any:
    monitor = AnyMonitor(fmt, given, INTENDED, INDUCTIVE)
    threads = monitor.any_thread("one_"), monitor.any_thread("other_")
    monitor.begin()
    monitor.any_grant = 0
    accesses = _Access(fmt, given, "one"), _Access(fmt, given, "other")
    given.assume(accesses[0].vm == accesses[1].vm)
    granted: Any = False
    for name, thread, access in zip(("one", "other"), threads, accesses, strict=True):
        cap = thread.hart.registers[given.word(f"{name}_register", 5)]
        base, top = cap.bounds
        given.assume(thread.is_live & is_plain(cap) & (base <= access.byte) & (access.byte < top))
        granted = granted | some(
            monitor.grants[grant].is_live
            & monitor.held[grant, thread.domain]
            & (monitor.grants[grant].base <= access.byte)
            & (access.byte < monitor.grants[grant].top)
            for grant in monitor.grants_of(cap)
        )
    one, other = (thread.domain for thread in threads)
    nested = (monitor.regions[one].outer == other) | (monitor.regions[other].outer == one)
    return implies(accesses[0].is_of_same_byte(accesses[1]), (one == other) | nested | granted)
