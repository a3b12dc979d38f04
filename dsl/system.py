"""What a program says of its system before anything runs: what names stand for, and the policy."""

from pkgutil import resolve_name
from typing import Any

from capvisor.dsl.syntax import Program, System
from capvisor.dsl.system_kinds import DEFAULT_POLICY, SYSTEM_KINDS, SystemKind, kind_of

__all__ = ["DEFAULT_POLICY", "constants_of", "policy_named", "policy_of"]


def constants_of(program: Program) -> dict[str, int]:
    """What a checked program's names are worth before it runs; a machine's program has no such names."""
    if program.system is None:
        return {}
    constants: dict[str, int] = resolve_name(kind_of(program).constants)(program)
    return constants


WITHOUT = "without:"


def policy_of(system: System) -> tuple[str, Any]:
    """A system's policy and what to call it. Raises LookupError with a message for an unknown name."""
    kind, name = SYSTEM_KINDS[system.kind], system.policy or DEFAULT_POLICY
    off = f"{WITHOUT}{','.join(system.without)}" if system.without else ""
    shown = " ".join(part for part in (name if system.policy or not off else "", off) if part)
    return shown, kind.switched_off(kind.preset(name), system.without)


def policy_named(text: str, kind: SystemKind) -> tuple[str, Any]:
    """A policy as the command line names it, `NAME` or `without:GUARD,...`. Raises LookupError with a message."""
    if text.startswith(WITHOUT):
        return text, kind.switched_off(kind.intended, tuple(text.removeprefix(WITHOUT).split(",")))
    return text, kind.preset(text)
