"""The monitor's calls on many lanes: the fast twin of `model.calls`, one kernel a call of spec/cvm.py."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.refusals import Refusals, declaring
from capvisor.fastpath.tables import pair
from capvisor.fastpath.workspace import Flags, Words
from capvisor.spec import cvm
from capvisor.spec.cvm import CALLS, Code

if TYPE_CHECKING:
    from capvisor.fastpath.monitor import BatchMonitor

WORD_BYTES = 8
"""What host_print and host_time move, and what the monitor keeps an argument in."""

Codes = NDArray[np.uint8]
"""Codes of `spec.cvm.Code`, by their values."""


class Callers(Refusals):
    """Threads in the monitor for one and the same call, at most one a lane. Those that were refused have a code."""

    def __init__(self, monitor: "BatchMonitor", harts: Indices) -> None:
        self.harts, self.lanes = harts, harts % monitor.lanes
        self.caller: Words = monitor.frames["caller"][harts]
        self.has_handle: Flags = monitor.frames["has_handle"][harts]
        super().__init__(np.zeros(len(harts), np.uint8), Code.RANGE)


CallKernel = Callable[..., None]
CALL_KERNELS: dict[str, CallKernel] = {}
"""The kernel of each call, by name: it takes the monitor, the callers and the arguments."""


call = declaring(CALL_KERNELS, CALLS)
"""Declares the kernel of the call of a name."""


@call("host_print")
def host_print(monitor: "BatchMonitor", who: Callers, pointer: Words) -> None:
    """Give a word to the host."""
    address = monitor.address(who.lanes, who.caller, pointer)
    who.refuse(~monitor.contains(address, WORD_BYTES), Code.RANGE)
    lanes = who.lanes[who.passed]
    monitor.printed[lanes] = monitor.load_word(lanes, address[who.passed])


@call("host_time")
def host_time(monitor: "BatchMonitor", who: Callers, pointer: Words) -> None:
    """Store the host's clock."""
    address = monitor.address(who.lanes, who.caller, pointer)
    who.refuse(~monitor.contains(address, WORD_BYTES), Code.RANGE)
    lanes = who.lanes[who.passed]
    monitor.clock[lanes] += np.uint64(1)
    monitor.store_word(lanes, address[who.passed], monitor.clock[lanes])


@call("thread_create")
def thread_create(monitor: "BatchMonitor", who: Callers, entry: Words) -> None:
    """Start a thread of the caller's."""
    who.refuse(monitor.live_counts(who.lanes) >= cvm.MAX_THREADS, Code.FULL)
    passed = who.passed
    started = monitor.start_thread(who.lanes[passed], who.caller[passed], entry[passed])
    monitor.answer(who.harts[passed], (started // monitor.lanes).astype(np.uint64))


@call("thread_exit")
def thread_exit(monitor: "BatchMonitor", who: Callers) -> None:
    """End the thread, and the call that it serves."""
    monitor.finish(who.harts[monitor.threads["serves"][who.harts]])
    monitor.threads["is_live"][who.harts] = False
    monitor.frames["is_inside"][who.harts] = False


@call("file_advertise")
def file_advertise(monitor: "BatchMonitor", who: Callers, key: Words, pointer: Words, size: Words) -> None:
    """CP_File: let others probe a part of memory."""
    who.refuse(key >= cvm.KEYS, Code.RANGE)
    who.refuse(monitor.grants.get("is_live", who.lanes, key), Code.EXISTS)
    who.refuse(monitor.grants.count(who.lanes) >= cvm.MAX_GRANTS, Code.FULL)
    passed = who.passed
    lanes, caller = who.lanes[passed], who.caller[passed]
    made = monitor.offer(lanes, key[passed], caller, monitor.address(lanes, caller, pointer[passed]), size[passed])
    who.code[passed[~made]] = Code.RANGE.value


def _give_grant(monitor: "BatchMonitor", who: Callers, number: Words, location: Words) -> None:
    """Put a grant, which is live, where those who weren't refused want it, and answer its size."""
    passed = who.passed
    lanes, caller, number = who.lanes[passed], who.caller[passed], number[passed]
    monitor.answer(who.harts[passed], monitor.grants.get("size", lanes, number))
    placed = monitor.put_grant(lanes, caller, monitor.address(lanes, caller, location[passed]), number)
    who.code[passed[~placed]] = Code.RANGE.value


@call("file_probe")
def file_probe(monitor: "BatchMonitor", who: Callers, key: Words, location: Words) -> None:
    """CP_File: get a capability to what was advertised."""
    who.refuse(~monitor.grants.get("is_live", who.lanes, key) | (key >= cvm.KEYS), Code.NOT_FOUND)
    _give_grant(monitor, who, key, location)


@call("file_revoke")
def file_revoke(monitor: "BatchMonitor", who: Callers, key: Words) -> None:
    """CP_File: take it back."""
    who.refuse(~monitor.grants.get("is_live", who.lanes, key) | (key >= cvm.KEYS), Code.NOT_FOUND)
    if monitor.policy.owner_revokes:
        who.refuse(monitor.grants.get("owner", who.lanes, key) != who.caller, Code.NOT_OWNER)
    monitor.revoke(who.lanes[who.passed], key[who.passed])


@call("portal_advertise")
def portal_advertise(monitor: "BatchMonitor", who: Callers, key: Words, entry: Words) -> None:
    """CP_Call: let others call an entry."""
    who.refuse(key >= cvm.KEYS, Code.RANGE)
    who.refuse(monitor.portals.get("is_live", who.lanes, key), Code.EXISTS)
    who.refuse(monitor.portals.count(who.lanes) >= cvm.MAX_PORTALS, Code.FULL)
    passed = who.passed
    monitor.forget(monitor.probed, who.lanes[passed], key[passed])
    row = {"is_live": True, "owner": who.caller[passed], "entry": entry[passed], "is_busy": False, "caller": 0, "size": 0}
    monitor.portals.put(who.lanes[passed], key[passed], **row)


@call("portal_probe")
def portal_probe(monitor: "BatchMonitor", who: Callers, key: Words) -> None:
    """CP_Call: get a handle."""
    who.refuse(~monitor.portals.get("is_live", who.lanes, key) | (key >= cvm.KEYS), Code.NOT_FOUND)
    passed = who.passed
    key = key[passed]
    monitor.note(monitor.probed, who.lanes[passed], key, who.caller[passed])
    handle, _exact = monitor.mint(key, np.ones(len(key), np.uint64), 0)
    otype = np.full(len(key), cvm.HANDLE_OTYPE, np.uint64)
    monitor.write(cvm.RESULT_REGISTERS[1], who.harts[passed], monitor.sealed(handle, otype))


def _refuse_handle(monitor: "BatchMonitor", who: Callers, key: Words) -> None:
    """Refuse what is no handle of a portal."""
    if monitor.policy.handles_are_capabilities:
        known = monitor.probed.get("holds", who.lanes, pair(key, who.caller))
        who.refuse(~(who.has_handle & known), Code.BAD_HANDLE)
    who.refuse(~monitor.portals.get("is_live", who.lanes, key) | (key >= cvm.KEYS), Code.BAD_HANDLE)


@call("portal_call")
def portal_call(monitor: "BatchMonitor", who: Callers, key: Words, pointer: Words, size: Words) -> None:
    """CP_Call: start a thread at a portal's entry, which may fetch the buffer."""
    portals = monitor.portals
    _refuse_handle(monitor, who, key)
    who.refuse(portals.get("is_busy", who.lanes, key), Code.BUSY)
    who.refuse(monitor.live_counts(who.lanes) >= cvm.MAX_THREADS, Code.FULL)
    who.refuse(monitor.grants.count(who.lanes) >= cvm.MAX_GRANTS, Code.FULL)
    passed = who.passed
    lanes, caller = who.lanes[passed], who.caller[passed]
    base = monitor.address(lanes, caller, pointer[passed])
    made = monitor.offer(lanes, key[passed] + np.uint64(cvm.KEYS), caller, base, size[passed])
    who.code[passed[~made]] = Code.RANGE.value
    lanes, key, caller = lanes[made], key[passed][made], caller[made]
    portals.put(lanes, key, is_busy=True, caller=caller)
    called = monitor.start_thread(lanes, portals.get("owner", lanes, key), portals.get("entry", lanes, key), key)
    monitor.threads["serves"][called], monitor.threads["portal"][called] = True, key


@call("portal_fetch")
def portal_fetch(monitor: "BatchMonitor", who: Callers, location: Words) -> None:
    """CP_Call, in the callee: get a capability to the caller's buffer."""
    number = monitor.threads["portal"][who.harts] + np.uint64(cvm.KEYS)
    is_callee = monitor.threads["serves"][who.harts] & (who.caller == monitor.threads["home"][who.harts])
    who.refuse(~(is_callee & monitor.grants.get("is_live", who.lanes, number)), Code.NOT_IN_CALL)
    _give_grant(monitor, who, number, location)


@call("portal_finish")
def portal_finish(monitor: "BatchMonitor", who: Callers) -> None:
    """CP_Call, in the callee: the call is over, and with it the authority over the buffer."""
    is_callee = monitor.threads["serves"][who.harts] & (who.caller == monitor.threads["home"][who.harts])
    who.refuse(~is_callee, Code.NOT_IN_CALL)
    monitor.finish(who.harts[who.passed])


@call("wait")
def wait(monitor: "BatchMonitor", who: Callers, key: Words) -> None:
    """CP_Call: wait until the call is over."""
    _refuse_handle(monitor, who, key)
    lanes, harts, key = who.lanes[who.passed], who.harts[who.passed], key[who.passed]
    monitor.threads["waits"][harts] = monitor.portals.get("is_busy", lanes, key)
    monitor.threads["waits_for"][harts] = key


@call("inner_return")
def inner_return(monitor: "BatchMonitor", who: Callers) -> None:
    """Nested cVMs: the outer one goes back to the inner one that called it, with one number as result."""
    domain, home = monitor.threads["domain"][who.harts], monitor.threads["home"][who.harts]
    who.refuse((domain == home) | (who.caller != domain), Code.NOT_IN_CALL)
    passed = who.passed
    harts = who.harts[passed]
    result = monitor.harts.addresses[cvm.RESULT_REGISTERS[1], harts]
    monitor.frames["is_inside"][harts] = False
    monitor.resume(harts, home[passed], np.zeros(len(harts), np.uint64))
    monitor.answer(harts, result)
