"""What the command has of each kind of system, beside what the language knows of it in `dsl.system_kinds`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capvisor.cli.cvm_pair import CvmPair
from capvisor.cli.orc_pair import OrcPair
from capvisor.cli.orc_trace import OrcTracer
from capvisor.cli.stack_trace import StackTracer
from capvisor.cli.tpt_pair import TptPair
from capvisor.cli.tpt_trace import TptTracer
from capvisor.cli.trace import CvmTracer
from capvisor.cli.vmm_pair import VmmPair
from capvisor.cli.vmm_trace import VmmTracer
from capvisor.dsl.syntax import Program
from capvisor.dsl.system_runner import Executed, Follower


@dataclass(frozen=True)
class SystemTools:
    """The tools for runs of one kind of system."""

    tracer: Callable[[Callable[[str], None]], Callable[[Executed], None]]
    """Makes what shows a run step by step, of a function that writes a line."""
    pair: Callable[[Program, Any], Follower] | None = None
    """Makes, of a program and a policy, what repeats a run on the fast path, and compares; None where there is none."""


SYSTEM_TOOLS: dict[str, SystemTools] = {
    "cvm": SystemTools(CvmTracer, CvmPair),
    "tpt": SystemTools(TptTracer, TptPair),
    "orc": SystemTools(OrcTracer, OrcPair),
    "vmm": SystemTools(VmmTracer, VmmPair),
    "stack": SystemTools(StackTracer),
}
"""A row for each of `SYSTEM_KINDS`."""
