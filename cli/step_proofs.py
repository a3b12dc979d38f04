"""What proves the steps of each kind of system: only the verbs that prove need it, and z3 with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from capvisor.cli.status import InputError
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
class StepProofs:
    """The proofs of one kind of system's steps."""

    steps: Callable[[], Mapping[str, str]]
    """The steps that are all of them together, with their kinds."""
    all_steps: Callable[[], Mapping[str, str]]
    """Every step that can be proved by itself."""
    prove: Callable[..., tuple[list[StepOutcome], bool]]
    """Proves steps, each of a format, in parallel: as `proofs.cvm_runner.prove`."""
    guarded: Guarded
    """Its guards, which can be off in proofs."""
    count: Callable[..., int] = len
    """How much there is to prove of steps, lemmas included."""
    are_formats_apart: bool = True
    """Whether formats are systems of their own, each with its induction; else they are parts of one."""
    formats: Callable[[str], Sequence[str]] = formats_of
    """The capability formats that a step is proved in, or what the kind has in their place."""


STEP_PROOFS: dict[str, StepProofs] = {
    "cvm": StepProofs(cvm.steps, cvm.all_steps, cvm_runner.prove, cvm_runner.GUARDED, cvm_runner.count),
    "tpt": StepProofs(
        tpt.steps,
        tpt.all_steps,
        tpt_runner.prove,
        tpt_runner.GUARDED,
        tpt_runner.count,
        formats=tpt.variants,
        are_formats_apart=False,
    ),
    "orc": StepProofs(orc.steps, orc.steps, orc_runner.prove, orc_runner.GUARDED, orc_runner.count),
    "vmm": StepProofs(
        vmm.steps,
        vmm.steps,
        vmm_runner.prove,
        vmm_runner.GUARDED,
        formats=vmm.parts,
        are_formats_apart=False,
    ),
}
"""A row for each kind of system whose steps are proved by themselves."""


def step_proofs(system: str) -> StepProofs:
    """The proofs of a system's steps. Raises InputError where there are none."""
    if system not in STEP_PROOFS:
        raise InputError(f"nothing can be proved of the steps of a system {system} yet")
    return STEP_PROOFS[system]
