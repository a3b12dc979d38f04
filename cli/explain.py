"""`capvisor explain`."""

import inspect
from collections.abc import Mapping
from typing import Any

import click

from capvisor.cli.output import console
from capvisor.cli.status import InputError, Status
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.calls import CALL_RULES
from capvisor.model.machine import RULES
from capvisor.model.object_operations import OPERATION_RULES as ORC_RULES
from capvisor.model.tpt_operations import OPERATION_RULES as TPT_RULES
from capvisor.model.vmm_operations import OPERATION_RULES as VMM_RULES
from capvisor.spec.cvm import CALLS
from capvisor.spec.encodings import encodings
from capvisor.spec.operations import FETCH_TRAPS, OPERATIONS
from capvisor.spec.orc import OPERATIONS as ORC_OPERATIONS
from capvisor.spec.tpt import OPERATIONS as TPT_OPERATIONS
from capvisor.spec.traps import CAUSES_BY_NAME
from capvisor.spec.vmm import OPERATIONS as VMM_OPERATIONS

assert _rules


_OF_SYSTEMS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "cvm": (CALLS, CALL_RULES),
    "tpt": (TPT_OPERATIONS, TPT_RULES),
    "orc": (ORC_OPERATIONS, ORC_RULES),
    "vmm": (VMM_OPERATIONS, VMM_RULES),
}
"""By kind of system: what agents ask for, and the rules of it."""


@click.command()
@click.argument("name")
def explain(name: str) -> int:
    """Explain an operation, of a machine or a system (its rule in the reference included), or a trap cause."""
    out = console()
    of_systems = [kind for kind, (rows, _rules) in _OF_SYSTEMS.items() if name in rows]
    for kind in of_systems:
        _explain_of_system(kind, name)
    if name in OPERATIONS:
        row = OPERATIONS[name]
        out.print(f"{row.name} {row.syntax}\n  {row.summary}\n")
        if row.minimum_xlen > 32:
            out.print(f"  needs a {row.minimum_xlen}-bit machine")
        if row.mode is not None:
            out.print(f"  what its encoding means in {row.mode.value} mode")
        out.print(f"  refused at its fetch, in this order, for: {', '.join(FETCH_TRAPS)}")
        if row.traps:
            out.print(f"  then, in this order, for: {', '.join(row.traps)}")
        for xlen in (32, 64):
            if name in encodings(xlen):
                out.print(f"  encoded on RV{xlen}: {encodings(xlen)[name].picture()}")
        out.print(f"  source: {row.source}\n")
        for line in inspect.getsource(RULES[name]).splitlines():
            out.print(f"  {line}".rstrip())
        return Status.OK
    if name in CAUSES_BY_NAME:
        cause = CAUSES_BY_NAME[name]
        code = f", capability cause {cause.capability_cause:#x}" if cause.capability_cause else ""
        out.print(f"{cause.name}: {cause.meaning}\n  mcause {cause.mcause}{code}")
        givers = [row.name for row in OPERATIONS.values() if name in row.traps]
        at_fetch = "any operation, at its fetch; " if name in FETCH_TRAPS else ""
        out.print(f"  given by: {at_fetch}{', '.join(givers) or 'no operation'}")
        return Status.OK
    if of_systems:
        return Status.OK
    raise InputError(f"`{name}` is no operation and no trap cause: `capvisor list operations`, `capvisor list traps`")


def _explain_of_system(kind: str, name: str) -> None:
    """An operation of a kind of system, as its row has it, and its rule."""
    rows, rules = _OF_SYSTEMS[kind]
    row, out = rows[name], console()
    operands = ", ".join(each for each, _kind in (row.arguments if kind == "cvm" else row.operands))
    out.print(f"{name} {operands}".rstrip() + f"  (of a system {kind})\n  {row.summary}\n")
    refusals = row.all_refusals if kind == "cvm" else row.refusals
    if refusals:
        out.print(f"  refused for: {', '.join(code.name for code in refusals)}")
    out.print(f"  source: {row.source}\n")
    for line in inspect.getsource(rules[name]).splitlines():
        out.print(f"  {line}".rstrip())
