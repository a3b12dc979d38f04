"""`capvisor list`."""

from collections.abc import Sequence
from typing import Any

import click

from capvisor.cli.output import console, table
from capvisor.cli.status import Status
from capvisor.dsl.fields import FIELDS
from capvisor.dsl.system_kinds import CVM, SYSTEM_KINDS, SystemKind
from capvisor.dsl.tpt_check import written_operands
from capvisor.dsl.vmm_check import written_operands as vmm_operands
from capvisor.spec.cvm import CALLS
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.orc import OPERATIONS as ORC_OPERATIONS
from capvisor.spec.registers import SPECIAL_REGISTERS, STATUS_REGISTERS
from capvisor.spec.tpt import OPERATIONS as TPT_OPERATIONS
from capvisor.spec.traps import CAUSES
from capvisor.spec.vectors import VECTOR_OPERATIONS
from capvisor.spec.vmm import OPERATIONS as VMM_OPERATIONS


def _off(kind: SystemKind, policy: Any) -> list[str]:
    """The guards that a policy has switched off."""
    return [name for name in kind.guards if not getattr(policy, name)]


_KINDS = tuple(SYSTEM_KINDS.values())


def _tables_of(kind: SystemKind) -> dict[str, tuple[tuple[str, ...], Sequence[tuple[object, ...]]]]:
    """A kind's guards, policies and invariants; the first two of cVMs have short names."""
    prefix = "" if kind is CVM else f"{kind.name}-"
    return {
        f"{prefix}guards": (
            ("guard", "off in", "meaning", "source"),
            [
                (
                    row.name,
                    ", ".join(name for name, policy in kind.policies.items() if row.name in _off(kind, policy)),
                    row.meaning,
                    row.source,
                )
                for row in kind.guards.values()
            ],
        ),
        f"{prefix}policies": (
            ("policy", "guards that are off"),
            [(name, ", ".join(_off(kind, policy)) or "none") for name, policy in kind.policies.items()],
        ),
        f"{kind.name}-invariants": (
            ("invariant", "title", "what it says"),
            [(row.name, row.title, row.statement) for row in kind.invariants.values()],
        ),
    }


_TABLES: dict[str, tuple[tuple[str, ...], Sequence[tuple[object, ...]]]] = {
    "operations": (
        ("operation", "operands", "group", "meaning"),
        [(row.name, row.syntax, row.group.value, row.summary) for row in OPERATIONS.values()],
    ),
    "formats": (
        ("format", "address bits", "capability bytes", "title"),
        [(row.name, row.address_width, row.capability_bytes, row.title) for row in FORMATS.values()],
    ),
    "traps": (
        ("cause", "mcause", "capability cause", "meaning"),
        [
            (row.name, row.mcause, f"{row.capability_cause:#x}" if row.capability_cause else "", row.meaning)
            for row in CAUSES
        ],
    ),
    "registers": (
        ("register", "number", "meaning"),
        [
            *((row.name, row.number, row.meaning) for row in SPECIAL_REGISTERS.values()),
            *((row.name, f"{row.number:#x}", row.meaning) for row in STATUS_REGISTERS.values()),
        ],
    ),
    "fields": (
        ("field", "kind", "meaning"),
        [(row.name, "condition" if row.is_condition else "number", row.meaning) for row in FIELDS.values()],
    ),
    "vectors": (
        ("operation", "inputs", "outputs", "meaning"),
        [(row.name, ", ".join(row.inputs), ", ".join(row.outputs), row.summary) for row in VECTOR_OPERATIONS.values()],
    ),
    "calls": (
        ("call", "number", "arguments", "refused for", "meaning"),
        [
            (
                row.name,
                row.number,
                ", ".join(name for name, _kind in row.arguments),
                ", ".join(code.name for code in row.all_refusals),
                row.summary,
            )
            for row in CALLS.values()
        ],
    ),
    "tpt-operations": (
        ("operation", "by", "operands", "refused for", "faults", "meaning"),
        [
            (
                row.name,
                row.actor.value,
                ", ".join(name for name, _kind in written_operands(row)),
                ", ".join(code.name for code in row.refusals),
                ", ".join(kind.name.lower() for kind in row.faults),
                row.summary,
            )
            for row in TPT_OPERATIONS.values()
        ],
    ),
    "orc-operations": (
        ("operation", "by", "operands", "refused for", "meaning"),
        [
            (
                row.name,
                row.actor.value,
                ", ".join(name for name, _kind in row.operands),
                ", ".join(code.name for code in row.refusals),
                row.summary,
            )
            for row in ORC_OPERATIONS.values()
        ],
    ),
    "vmm-operations": (
        ("operation", "by", "operands", "refused for", "meaning"),
        [
            (
                row.name,
                row.actor.value,
                ", ".join(name for name, _kind in vmm_operands(row.name)),
                ", ".join(code.name for code in row.refusals),
                row.summary,
            )
            for row in VMM_OPERATIONS.values()
        ],
    ),
    **{name: table for kind in _KINDS for name, table in _tables_of(kind).items()},
}


@click.command(name="list")
@click.argument("what", type=click.Choice(list(_TABLES)))
def listing(what: str) -> int:
    """List what there is.

    Of machines: operations, formats, trap causes, special registers, a capability's fields, golden vectors. Of systems: the
    calls or operations, guards, policies and invariants; with tpt- of translation pass-through, with orc- of
    shared objects, with vmm- of a para-pass-through VMM, else of cVMs.
    """
    columns, rows = _TABLES[what]
    console(is_final=True).print(table(columns, rows), soft_wrap=False)
    return Status.OK
