"""Showing a run of all four systems on one machine step by step: each layer's steps as that layer's are shown."""

from collections.abc import Callable

from capvisor.cli.orc_trace import OrcTracer
from capvisor.cli.tpt_trace import TptTracer
from capvisor.cli.trace import CvmTracer
from capvisor.cli.vmm_trace import VmmTracer
from capvisor.dsl.system_runner import Executed
from capvisor.model import tpt, vmm
from capvisor.model.monitor import Monitor
from capvisor.model.objects import ObjectMonitor

_TRACERS: dict[type, Callable[[Callable[[str], None]], Callable[[Executed], None]]] = {
    vmm.System: VmmTracer,
    tpt.System: TptTracer,
    Monitor: CvmTracer,
    ObjectMonitor: OrcTracer,
}


class StackTracer:
    """Prints each step: line, agent, operation, how it ended, and what has changed in its layer since that layer's last."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._tracers = {kind: make(write) for kind, make in _TRACERS.items()}

    def __call__(self, step: Executed) -> None:
        next(tracer for kind, tracer in self._tracers.items() if isinstance(step.system, kind))(step)
