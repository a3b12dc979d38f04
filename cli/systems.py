"""What the command has of each kind of system, beside what the language knows of it in `dsl.system_kinds`."""

from collections.abc import Callable, Mapping, Sequence
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
from capvisor.proofs import cvm, cvm_runner, orc, orc_runner, tpt, tpt_runner, vmm, vmm_runner
from capvisor.proofs.guards_off import Guarded
from capvisor.proofs.steps import StepOutcome
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS


def formats_of(step: str) -> tuple[str, ...]:
    """The capability formats that there is a step in: an operation of the machine's may need wide ones."""
    least = OPERATIONS[step].minimum_xlen if step in OPERATIONS else 0
    return tuple(fmt.name for fmt in FORMATS.values() if fmt.address_width >= least)


@dataclass(frozen=True)
class SystemTools:
    """The tools for one kind of system."""

    tracer: Callable[[Callable[[str], None]], Callable[[Executed], None]]
    """Makes what shows a run step by step, of a function that writes a line."""
    pair: Callable[[Program, Any], Follower] | None = None
    """Makes, of a program and a policy, what repeats a run on the fast path, and compares; None where there is none."""
    steps: Callable[[], Mapping[str, str]] = dict
    """The steps that are all of them together, with their kinds."""
    all_steps: Callable[[], Mapping[str, str]] = dict
    """Every step that can be proved by itself."""
    prove: Callable[..., tuple[list[StepOutcome], bool]] | None = None
    """Proves steps, each of a format, in parallel: as `proofs.cvm_runner.prove`; None: there are no such proofs."""
    count: Callable[..., int] = len
    """How much there is to prove of steps, lemmas included."""
    guarded: Guarded | None = None
    """Its guards, which can be off in proofs; None where there are no such proofs."""
    are_formats_apart: bool = True
    """Whether formats are systems of their own, each with its induction; else they are parts of one."""
    formats: Callable[[str], Sequence[str]] = formats_of
    """The capability formats that a step is proved in, or what the kind has in their place."""


SYSTEM_TOOLS: dict[str, SystemTools] = {
    "cvm": SystemTools(
        CvmTracer,
        CvmPair,
        cvm.steps,
        cvm.all_steps,
        cvm_runner.prove,
        cvm_runner.count,
        cvm_runner.GUARDED,
    ),
    "tpt": SystemTools(
        TptTracer,
        TptPair,
        steps=tpt.steps,
        all_steps=tpt.all_steps,
        prove=tpt_runner.prove,
        count=tpt_runner.count,
        guarded=tpt_runner.GUARDED,
        formats=tpt.variants,
        are_formats_apart=False,
    ),
    "orc": SystemTools(
        OrcTracer,
        OrcPair,
        steps=orc.steps,
        all_steps=orc.steps,
        prove=orc_runner.prove,
        count=orc_runner.count,
        guarded=orc_runner.GUARDED,
    ),
    "vmm": SystemTools(
        VmmTracer,
        VmmPair,
        steps=vmm.steps,
        all_steps=vmm.steps,
        prove=vmm_runner.prove,
        guarded=vmm_runner.GUARDED,
        formats=vmm.parts,
        are_formats_apart=False,
    ),
    "stack": SystemTools(StackTracer),
}
"""A row for each of `SYSTEM_KINDS`."""
