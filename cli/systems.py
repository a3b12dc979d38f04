"""What the command has of each kind of system, beside what the language knows of it in `dsl.system_kinds`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from capvisor.cli.cvm_pair import CvmPair
from capvisor.cli.trace import CvmTracer
from capvisor.dsl.syntax import Program
from capvisor.dsl.system_runner import Executed, Follower
from capvisor.proofs import cvm, cvm_runner


@dataclass(frozen=True)
class SystemTools:
    """The tools for one kind of system."""

    tracer: Callable[[Callable[[str], None]], Callable[[Executed], None]]
    """Makes what shows a run step by step, of a function that writes a line."""
    pair: Callable[[Program, Any], Follower]
    """Makes, of a program and a policy, what does a run's steps once more on the fast path, and compares."""
    steps: Callable[[], Mapping[str, str]]
    """The steps that are all of them together, with their kinds."""
    all_steps: Callable[[], Mapping[str, str]]
    """Every step that can be proved by itself."""
    prove: Callable[..., tuple[list[cvm_runner.StepOutcome], bool]]
    """Proves steps, each of a format, in parallel: as `proofs.cvm_runner.prove`."""
    count: Callable[..., int]
    """How much there is to prove of steps, lemmas included."""


SYSTEM_TOOLS: dict[str, SystemTools] = {
    "cvm": SystemTools(CvmTracer, CvmPair, cvm.steps, cvm.all_steps, cvm_runner.prove, cvm_runner.count),
}
"""A row for each of `SYSTEM_KINDS`."""
