"""The kinds of systems that the language has, each a row: policies and guards, invariants, runner, attacks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capvisor.spec.cvm_invariants import CVM_INVARIANTS, Invariant
from capvisor.spec.policy import GUARDS, POLICIES, Guard, MonitorPolicy

DEFAULT_POLICY = "intended"
"""The policy of every kind that has all guards on."""


@dataclass(frozen=True)
class SystemKind:
    """What the language and its verbs know of a kind of system, beside its statements."""

    name: str
    policy: type[Any]
    """A dataclass whose fields are the guards, each a bool."""
    policies: Mapping[str, Any]
    """The presets, by name."""
    guards: Mapping[str, Guard]
    invariants: Mapping[str, Invariant]
    runner: str
    """Where the class is that runs a program, like `system_runner.SystemRun`: by name, as it reads this table itself."""
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
    runner="capvisor.dsl.system_runner:SystemRun",
    attacks=Path("programs/attacks/cvm"),
)
SYSTEM_KINDS: dict[str, SystemKind] = {kind.name: kind for kind in (CVM,)}
