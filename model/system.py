"""Steps of a system of cVMs: instructions, the two parts of a call, the deployer's operations, each as what happened.

What `spec.cvm_invariants` says is said of such a step.
"""

from typing import Any

from capvisor.model.machine import Trap
from capvisor.model.monitor import Monitor, Thread
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.cvm_invariants import Step

_NAMES = {row.number: name for name, row in CALLS.items()}


def instruction(monitor: Monitor, thread: Thread, name: str, operands: tuple[Any, ...]) -> tuple[Step, Trap | None]:
    """One instruction of a guest; an invoked call of the monitor is entered with it."""
    monitor.accesses.clear()
    ddc = thread.hart.ddc
    trap = monitor.step(thread, name, operands)
    return Step(monitor, "instruction", name, thread, trap is None, ddc, thread.frame, ()), trap


def leave(monitor: Monitor, thread: Thread) -> tuple[Step, Code]:
    """The second part of a call."""
    monitor.accesses.clear()
    frame, ddc = thread.frame, thread.hart.ddc
    assert frame is not None
    used = monitor.reloaded(thread).arguments
    code = monitor.leave(thread)
    name = _NAMES.get(frame.number, "")
    return Step(monitor, "leave", name, thread, code is Code.OK, ddc, frame, used), code


def deploy(monitor: Monitor, name: str, *arguments: Any, **options: Any) -> tuple[Step, Any]:
    """An operation of the deployer: create, destroy or start_thread."""
    monitor.accesses.clear()
    result = getattr(monitor, name)(*arguments, **options)
    return Step(monitor, "deploy", name, None, result is Code.OK or isinstance(result, Thread)), result
