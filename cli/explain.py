"""`capvisor explain`."""

import inspect

import click

from capvisor.cli.output import console
from capvisor.cli.status import InputError, Status
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.machine import RULES
from capvisor.spec.encodings import encodings
from capvisor.spec.operations import FETCH_TRAPS, OPERATIONS
from capvisor.spec.traps import CAUSES_BY_NAME

assert _rules


@click.command()
@click.argument("name")
def explain(name: str) -> int:
    """Explain an operation (its rule in the reference included) or a trap cause."""
    out = console()
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
    raise InputError(f"`{name}` is no operation and no trap cause: `capvisor list operations`, `capvisor list traps`")
