"""The rules of the monitor's calls, one a row of `spec.cvm.CALLS`: what the second part of each does, once its arguments
have been checked. A rule's checks come first, then its effect.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from capvisor.model import capability
from capvisor.model.bits import not_
from capvisor.model.tables import Frame, Portal, Size, Thread, Word
from capvisor.spec import cvm
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.formats import Permission

if TYPE_CHECKING:
    from capvisor.model.monitor import Monitor

WORD_BYTES = 8
"""What host_print and host_time move, and what the monitor keeps an argument in."""

CallRule = Callable[..., Code]
CALL_RULES: dict[str, CallRule] = {}
"""The rule of each call, by name: it takes the monitor, the thread, the frame and the arguments, and gives the code."""


def call(name: str) -> Callable[[CallRule], CallRule]:
    """Declare a function to be the rule of the call of that name. Raises KeyError if it has no row in spec/cvm.py."""
    row = CALLS[name]

    def register(rule: CallRule) -> CallRule:
        CALL_RULES[row.name] = rule
        return rule

    return register


@call("host_print")
def host_print(monitor: "Monitor", _thread: Thread, frame: Frame, pointer: Word) -> Code:
    """Give a word to the host."""
    address = monitor.address(frame.caller, pointer)
    if not_(monitor.memory.contains(address, WORD_BYTES)):
        return Code.RANGE
    monitor.printed = monitor.load_for(frame.caller, address)
    return Code.OK


@call("host_time")
def host_time(monitor: "Monitor", _thread: Thread, frame: Frame, pointer: Word) -> Code:
    """Store the host's clock."""
    address = monitor.address(frame.caller, pointer)
    if not_(monitor.memory.contains(address, WORD_BYTES)):
        return Code.RANGE
    monitor.clock = monitor.clock + 1
    monitor.store_for(frame.caller, address, monitor.clock)
    return Code.OK


@call("thread_create")
def thread_create(monitor: "Monitor", thread: Thread, frame: Frame, entry: Word) -> Code:
    """Start a thread of the caller's."""
    if monitor.threads.count() >= cvm.MAX_THREADS:
        return Code.FULL
    monitor.answer(thread, monitor.start_thread(frame.caller, entry).number)
    return Code.OK


@call("thread_exit")
def thread_exit(monitor: "Monitor", thread: Thread, _frame: Frame) -> Code:
    """End the thread, and the call that it serves."""
    if thread.serves:
        monitor.finish(thread)
    thread.is_live, thread.frame = False, None
    return Code.OK


@call("file_advertise")
def file_advertise(monitor: "Monitor", _thread: Thread, frame: Frame, key: Word, pointer: Word, size: Size) -> Code:
    """CP_File: let others probe a part of memory."""
    if key >= cvm.KEYS:
        return Code.RANGE
    if monitor.grants[key].is_live:
        return Code.EXISTS
    if monitor.grants.count() >= cvm.MAX_GRANTS:
        return Code.FULL
    return monitor.offer(key, frame.caller, monitor.address(frame.caller, pointer), size)


@call("file_probe")
def file_probe(monitor: "Monitor", thread: Thread, frame: Frame, key: Word, location: Word) -> Code:
    """CP_File: get a capability to what was advertised."""
    row = monitor.grants[key]
    if not_(row.is_live & (key < cvm.KEYS)):
        return Code.NOT_FOUND
    monitor.answer(thread, row.top - row.base)
    return monitor.put_grant(frame.caller, monitor.address(frame.caller, location), key)


@call("file_revoke")
def file_revoke(monitor: "Monitor", _thread: Thread, frame: Frame, key: Word) -> Code:
    """CP_File: take it back."""
    row = monitor.grants[key]
    if not_(row.is_live & (key < cvm.KEYS)):
        return Code.NOT_FOUND
    if monitor.policy.owner_revokes and row.owner != frame.caller:
        return Code.NOT_OWNER
    monitor.revoke(key)
    return Code.OK


@call("portal_advertise")
def portal_advertise(monitor: "Monitor", _thread: Thread, frame: Frame, key: Word, entry: Word) -> Code:
    """CP_Call: let others call an entry."""
    if key >= cvm.KEYS:
        return Code.RANGE
    if monitor.portals[key].is_live:
        return Code.EXISTS
    if monitor.portals.count() >= cvm.MAX_PORTALS:
        return Code.FULL
    # Who had probed another portal of that key hasn't probed this one.
    monitor.probed.map(lambda each, probed: probed & (each[0] != key))
    monitor.portals[key] = Portal(True, frame.caller, entry)
    return Code.OK


@call("portal_probe")
def portal_probe(monitor: "Monitor", thread: Thread, frame: Frame, key: Word) -> Code:
    """CP_Call: get a handle: a capability that permits nothing, sealed by the monitor, or, as it was, a number."""
    if not_(monitor.portals[key].is_live & (key < cvm.KEYS)):
        return Code.NOT_FOUND
    monitor.probed[key, frame.caller] = True
    outer = monitor.regions[frame.caller].outer
    if outer != cvm.MONITOR:
        monitor.probed[key, outer] = True
    handle, _exact = monitor.mint(key, 1, Permission(0))
    thread.hart.write(cvm.RESULT_REGISTERS[1], capability.set_otype(handle, cvm.HANDLE_OTYPE))
    return Code.OK


@call("portal_call")
def portal_call(monitor: "Monitor", _thread: Thread, frame: Frame, key: Word, pointer: Word, size: Size) -> Code:
    """CP_Call: start a thread at a portal's entry, which may fetch the buffer."""
    row = monitor.portals[key]
    if monitor.policy.handles_are_capabilities and not_(frame.has_handle & monitor.probed[key, frame.caller]):
        return Code.BAD_HANDLE
    if not_(row.is_live & (key < cvm.KEYS)):
        return Code.BAD_HANDLE
    if row.is_busy:
        return Code.BUSY
    if (monitor.threads.count() >= cvm.MAX_THREADS) | (monitor.grants.count() >= cvm.MAX_GRANTS):
        return Code.FULL
    code = monitor.offer(cvm.KEYS + key, frame.caller, monitor.address(frame.caller, pointer), size)
    if code is not Code.OK:
        return code
    monitor.portals[key] = row._replace(is_busy=True, caller=frame.caller)
    called = monitor.start_thread(row.owner, row.entry, key)
    called.serves, called.portal = True, key
    return Code.OK


@call("portal_fetch")
def portal_fetch(monitor: "Monitor", thread: Thread, frame: Frame, location: Word) -> Code:
    """CP_Call, in the callee: get a capability to the caller's buffer."""
    number = cvm.KEYS + thread.portal
    row = monitor.grants[number]
    if not_(thread.serves & row.is_live & (frame.caller == thread.home)):
        return Code.NOT_IN_CALL
    monitor.answer(thread, row.top - row.base)
    return monitor.put_grant(frame.caller, monitor.address(frame.caller, location), number)


@call("portal_finish")
def portal_finish(monitor: "Monitor", thread: Thread, frame: Frame) -> Code:
    """CP_Call, in the callee: the call is over, and with it the authority over the buffer."""
    if not_(thread.serves & (frame.caller == thread.home)):
        return Code.NOT_IN_CALL
    monitor.finish(thread)
    return Code.OK


@call("wait")
def wait(monitor: "Monitor", thread: Thread, frame: Frame, key: Word) -> Code:
    """CP_Call: wait until the call is over."""
    row = monitor.portals[key]
    if monitor.policy.handles_are_capabilities and not_(frame.has_handle & monitor.probed[key, frame.caller]):
        return Code.BAD_HANDLE
    if not_(row.is_live & (key < cvm.KEYS)):
        return Code.BAD_HANDLE
    thread.waits, thread.waits_for = row.is_busy, key
    return Code.OK


@call("inner_return")
def inner_return(monitor: "Monitor", thread: Thread, frame: Frame) -> Code:
    """Nested cVMs: the outer one goes back to the inner one that called it, with one number as result."""
    if (thread.domain == thread.home) | (frame.caller != thread.domain):
        return Code.NOT_IN_CALL
    result = thread.hart.integer(cvm.RESULT_REGISTERS[1])
    thread.frame = None
    monitor.resume(thread, thread.home, 0)
    monitor.answer(thread, result)
    return Code.OK
