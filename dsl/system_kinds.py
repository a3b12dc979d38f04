"""The kinds of systems that the language has, each a row: policies and guards, calls, invariants, and its own rooms.

Another kind is a row here, with a checker (of `check_system.SystemChecker`), a run (as `system_runner.SystemRun` says), a
watch (as `system_runner.Watch` says) and its names' values; and a row in `cli/systems.py` for what the command has of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from capvisor.dsl.syntax import Program
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.object_policy import OBJECT_GUARDS, OBJECT_POLICIES, ObjectPolicy
from capvisor.spec.orc import OPERATIONS as ORC_OPERATIONS
from capvisor.spec.orc import Code as OrcCode
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from capvisor.spec.policy import GUARDS, POLICIES, Guard, MonitorPolicy
from capvisor.spec.stack import Code as StackCode
from capvisor.spec.stack_invariants import STACK_INVARIANTS
from capvisor.spec.stack_policy import STACK_GUARDS, STACK_POLICIES, StackPolicy
from capvisor.spec.tag_policy import TAG_GUARDS, TAG_POLICIES, TagPolicy
from capvisor.spec.tpt import OPERATIONS
from capvisor.spec.tpt import Code as TptCode
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from capvisor.spec.vmm import OPERATIONS as VMM_OPERATIONS
from capvisor.spec.vmm import Code as VmmCode
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_policy import VMM_GUARDS, VMM_POLICIES, VmmPolicy

PLACE, LOAD, ENTER = "place", "load", "call"
"""What a tenant's library does with shared objects: each is several operations and instructions, without a row."""

PEEK, POKE, COMMAND, READ_SECTOR, WRITE_SECTOR, DMA = "peek", "poke", "command", "read_sector", "write_sector", "dma"
COPY = "copy"
"""What the driver of a guest does with memory and a storage device, and the background copy of a VMM: each is several
operations, without a row.
"""

RESUME = "resume"
"""What a cVM's thread, a tenant or the base does in a stack to see whether its memory is there, and nothing else."""

DEFAULT_POLICY = "intended"
"""The policy of every kind that has all guards on."""


@dataclass(frozen=True)
class SystemKind:
    """What the language and its verbs know of a kind of system, beside its statements."""

    name: str
    policy: type[Any]
    """A dataclass whose fields are the guards, each a bool; and what else there is to choose."""
    policies: Mapping[str, Any]
    """The presets, by name."""
    guards: Mapping[str, Guard]
    invariants: Mapping[str, Any]
    """Each with `name`, `title` and `statement`."""
    calls: Mapping[str, Any]
    """What agents can do beside instructions, by name; what a row says is for the kind's checker and runner."""
    codes: type[Enum]
    """What calls answer: `OK`, and why they are refused."""
    example: str
    """A system of this kind, as messages show one."""
    checker: str
    """Where the class is that checks a program. This and the next ones by name, as they read this table themselves."""
    runner: str
    """The class that runs a program."""
    watch: str
    """The class that holds every step against the invariants."""
    constants: str
    """The function that gives what a program's names are worth before it runs."""
    attacks: Path
    """The folder of the programs that the matrix of guards is made of."""

    @property
    def intended(self) -> Any:
        """The policy with all guards on."""
        return self.policies[DEFAULT_POLICY]

    def preset(self, name: str) -> Any:
        """A policy by its name. Raises LookupError with a message."""
        if name not in self.policies:
            raise LookupError(f"unknown policy `{name}`: there are {', '.join(self.policies)}")
        return self.policies[name]

    def switched_off(self, policy: Any, guards: tuple[str, ...]) -> Any:
        """A policy without some guards. Raises LookupError with a message for what is no guard."""
        unknown = [guard for guard in guards if guard not in self.guards]
        if unknown:
            raise LookupError(f"unknown guard `{unknown[0]}`: there are {', '.join(self.guards)}")
        return replace(policy, **dict.fromkeys(guards, False))


CVM = SystemKind(
    name="cvm",
    policy=MonitorPolicy,
    policies=POLICIES,
    guards=GUARDS,
    invariants=CVM_INVARIANTS,
    calls=CALLS,
    codes=Code,
    example="system cvm { alice size 4K }",
    checker="capvisor.dsl.cvm_check:CvmChecker",
    runner="capvisor.dsl.cvm_runner:CvmRun",
    watch="capvisor.dsl.cvm_watch:InvariantWatch",
    constants="capvisor.dsl.cvm_layout:constants_of",
    attacks=Path("programs/attacks/cvm"),
)
TPT = SystemKind(
    name="tpt",
    policy=TagPolicy,
    policies=TAG_POLICIES,
    guards=TAG_GUARDS,
    invariants=TPT_INVARIANTS,
    calls=OPERATIONS,
    codes=TptCode,
    example="system tpt { vm0 frames 0..7 }",
    checker="capvisor.dsl.tpt_check:TptChecker",
    runner="capvisor.dsl.tpt_runner:TptRun",
    watch="capvisor.dsl.tpt_watch:TptWatch",
    constants="capvisor.dsl.tpt_layout:constants_of",
    attacks=Path("programs/attacks/tpt"),
)
ORC = SystemKind(
    name="orc",
    policy=ObjectPolicy,
    policies=OBJECT_POLICIES,
    guards=OBJECT_GUARDS,
    invariants=ORC_INVARIANTS,
    calls={**ORC_OPERATIONS, **dict.fromkeys((PLACE, LOAD, ENTER))},
    codes=OrcCode,
    example="system orc { tenant alice }",
    checker="capvisor.dsl.orc_check:OrcChecker",
    runner="capvisor.dsl.orc_runner:OrcRun",
    watch="capvisor.dsl.orc_watch:OrcWatch",
    constants="capvisor.dsl.orc_layout:constants_of",
    attacks=Path("programs/attacks/orc"),
)
VMM = SystemKind(
    name="vmm",
    policy=VmmPolicy,
    policies=VMM_POLICIES,
    guards=VMM_GUARDS,
    invariants=VMM_INVARIANTS,
    calls={**VMM_OPERATIONS, **dict.fromkeys((PEEK, POKE, COMMAND, READ_SECTOR, WRITE_SECTOR, DMA, COPY))},
    codes=VmmCode,
    example="system vmm { storage disk { } }",
    checker="capvisor.dsl.vmm_check:VmmChecker",
    runner="capvisor.dsl.vmm_runner:VmmRun",
    watch="capvisor.dsl.vmm_watch:VmmWatch",
    constants="capvisor.dsl.vmm_layout:constants_of",
    attacks=Path("programs/attacks/vmm"),
)
STACK = SystemKind(
    name="stack",
    policy=StackPolicy,
    policies=STACK_POLICIES,
    guards=STACK_GUARDS,
    invariants={**STACK_INVARIANTS, **VMM.invariants, **TPT.invariants, **CVM.invariants, **ORC.invariants},
    calls={**VMM.calls, **TPT.calls, **CVM.calls, **ORC.calls, RESUME: None},
    codes=StackCode,
    example="system stack { vmm { }; tpt { vm0 frames 3..15 } }",
    checker="capvisor.dsl.stack_check:StackChecker",
    runner="capvisor.dsl.stack_runner:StackRun",
    watch="capvisor.dsl.stack_watch:StackWatch",
    constants="capvisor.dsl.stack_layout:constants_of",
    attacks=Path("programs/attacks/stack"),
)
SYSTEM_KINDS: dict[str, SystemKind] = {kind.name: kind for kind in (CVM, TPT, ORC, VMM, STACK)}


def kind_of(program: Program) -> SystemKind:
    """The kind of a program's system."""
    assert program.system is not None
    return SYSTEM_KINDS[program.system.kind]


def examples() -> str:
    """A system of each kind, in words of a message."""
    return " or ".join(f"`{kind.example}`" for kind in SYSTEM_KINDS.values())
