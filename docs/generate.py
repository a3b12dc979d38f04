"""Writes docs/reference/ from what is declared in the code: operations, language, traps, formats, vectors, the command."""

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import click

from capvisor.cli.main import capvisor
from capvisor.cli.status import MEANINGS
from capvisor.dsl.fields import FIELDS
from capvisor.proofs import runner
from capvisor.proofs.theorem import THEOREMS, Theorem
from capvisor.spec.encodings import encodings
from capvisor.spec.formats import FORMATS, Permission
from capvisor.spec.operations import OPERATIONS, Group, OperandKind
from capvisor.spec.traps import CAUSES
from capvisor.spec.vectors import VECTOR_OPERATIONS

assert runner  # imported for the theorems that it brings along
REFERENCE = Path(__file__).parent / "reference"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def operations() -> str:
    """The operation table, by group."""
    parts = [
        "# Operations\n",
        "Generated from `spec/operations.py`. A refused operation changes nothing; its causes stand in the order of their checks.\n",
    ]
    for group in Group:
        rows = [row for row in OPERATIONS.values() if row.group is group]
        parts.append(f"## {group.value.capitalize()}\n")
        columns = ["operation", "effect", "refused for"] if any(row.traps for row in rows) else ["operation", "effect"]
        cells = [
            [
                f"`{row.name} {row.syntax}`",
                row.summary + (" (64-bit machines)" if row.minimum_xlen > 32 else ""),
                ", ".join(row.traps),
            ]
            for row in rows
        ]
        parts.append(table(columns, [line[: len(columns)] for line in cells]))
        parts += [
            f"Source: {source}.\n"
            for source in dict.fromkeys(row.source for row in rows if group in (Group.LOAD, Group.STORE))
        ]
    return "\n".join(parts)


def encodings_page() -> str:
    """The instruction word of each operation."""
    parts = [
        "# Encodings\n",
        "Generated from `spec/encodings.py`: the word of each operation from bit 31 to 0. `capvisor asm` encodes, `capvisor disasm` decodes. `li` is one step of a program, and no instruction. Loads and stores by capability are encoded as RISC-V's own, which they are in capability mode.\n",
    ]
    for group in Group:
        names = [row.name for row in OPERATIONS.values() if row.group is group and row.name in encodings(64)]
        cells = []
        for name in names:
            wide = encodings(64)[name].picture()
            narrow = encodings(32)[name].picture() if name in encodings(32) else "none"
            cells.append([f"`{name}`", f"`{wide}`" + ("" if narrow == wide else f"; RV32: `{narrow}`")])
        parts += [f"## {group.value.capitalize()}\n", table(["operation", "word"], cells)]
    return "\n".join(parts)


def language() -> str:
    """The grammar, and the tables that it leans on."""
    grammar = resources.files("capvisor.dsl").joinpath("grammar.lark").read_text()
    immediates = [(kind.value, *kind.immediate_range(64)) for kind in OperandKind if kind.value in ("imm", "uimm", "shamt")]
    return "\n".join(
        [
            "# The language\n",
            "A program is a machine, then values, operations and assertions, a line each. What they mean is told in "
            "[the tutorial](../tutorial.md); here is the whole of it.\n",
            "## Operands\n",
            "`cd`, `cs1`, `cs2` are registers that are written or read as capabilities, `rd`, `rs1`, `rs2` as integers: the same 32 "
            "registers, `c0` always NULL. They are called `c5`, `x5`, or by the calling convention's names (`ct0`, `t0`). `value` is any "
            "expression of literals and `let` names, taken modulo 2**XLEN; immediates are constants:\n",
            table(["operand", "lowest", "highest"], immediates),
            "## Expressions\n",
            "Numbers have no bounds and never wrap around. From the loosest operator to the tightest: `implies` (to the right), `or`, "
            "`and`, `not`, comparisons (which don't chain), `|`, `^`, `&`, `<<` and `>>`, `+` and `-`, `*`, sign and `~`. `x5` is the "
            "integer in a register, `c5.base` a field of the capability in it:\n",
            table(
                ["field", "kind", "meaning"],
                [(f"`{f.name}`", "condition" if f.is_condition else "number", f.meaning) for f in FIELDS.values()],
            ),
            "## Expectations\n",
            "`OPERATION !trap CAUSE` must be refused for that cause. `!trap CAUSE when CONDITION` must be refused exactly when the "
            "condition holds before it. Several may follow each other: the first whose condition holds applies.\n",
            "## Values\n",
            "`let x = any u64 where CONDITION` stands for every number of 64 bits (u1 to u64) that satisfies the condition, which may name "
            "earlier values. `let x = EXPRESSION` names a value that depends on others.\n",
            "## Grammar\n",
            "In Lark's notation (`dsl/grammar.lark`); `REGISTERS` stands for the register names.\n",
            f"```text\n{grammar}```\n",
        ]
    )


def architecture() -> str:
    """Formats, permissions, traps and golden vectors."""
    formats = [
        (f"`{f.name}`", f.title, f.address_width, f.capability_bytes, f.mantissa_width, f.max_exponent, f.source)
        for f in FORMATS.values()
    ]
    columns = ["format", "what", "address bits", "bytes", "mantissa bits", "largest exponent", "source"]
    causes = [(f"`{c.name}`", c.mcause, f"{c.capability_cause:#x}" if c.capability_cause else "", c.meaning) for c in CAUSES]
    vectors = [(f"`{v.name}`", ", ".join(v.inputs), ", ".join(v.outputs), v.summary) for v in VECTOR_OPERATIONS.values()]
    return "\n".join(
        [
            "# Formats, permissions, traps, golden vectors\n",
            "Generated from `spec/`.\n",
            "## Capability formats\n",
            table(columns, formats),
            "## Permissions\n",
            "As `cgetperm` returns them and `candperm` takes them; software's own stand from bit 15.\n",
            table(["permission", "bit"], [(p.name, (p.value).bit_length() - 1) for p in Permission]),
            "## Trap causes\n",
            table(["cause", "mcause", "capability cause", "meaning"], causes),
            "## Golden vectors\n",
            table(["operation", "inputs", "outputs", "meaning"], vectors),
        ]
    )


def command() -> str:
    """Every verb's own help."""
    parts = ["# The command\n", "Generated from the command itself.\n", "## Exit status\n"]
    parts.append(table(["status", "meaning"], [(status.value, meaning) for status, meaning in MEANINGS.items()]))
    parts.append("## JSON\n\nWhat `--json FILE` writes is described by a JSON Schema, `cli/schemas/results.schema.json`.\n")
    context = click.Context(capvisor, info_name="capvisor", max_content_width=100)
    parts.append(f"## capvisor\n\n```text\n{capvisor.get_help(context)}\n```\n")
    for name in capvisor.list_commands(context):
        verb = capvisor.get_command(context, name)
        assert verb is not None
        inner = click.Context(verb, info_name=name, parent=context, max_content_width=100)
        parts.append(f"## capvisor {name}\n\n```text\n{verb.get_help(inner)}\n```\n")
    return "\n".join(parts)


def proved() -> str:
    """The theorems, by group."""
    parts = [
        "# What is proved\n",
        "Generated from `proofs/`. Each theorem is proved for every format that it names, for all values at full width unless its scope says otherwise. [How, and what must be trusted](../prover.md).\n",
    ]
    times = json.loads((Path(__file__).parent / "proof_times.json").read_text())
    parts.append(
        f"Times are {times['solver']}'s seconds for all questions together, as one run of `capvisor prove --all --no-cache` gave them, which took {times['elapsed_seconds']} s on two cores.\n"
    )
    groups: dict[str, list[Theorem]] = {}
    for theorem in THEOREMS.values():
        groups.setdefault(theorem.id.split(".")[0], []).append(theorem)
    for group, theorems in groups.items():
        parts.append(f"## {group}\n")
        for theorem in theorems:
            parts.append(f"### {theorem.id}\n\n{theorem.statement}\n")
            facts = [f"formats: {', '.join(theorem.formats)}", f"scope: {theorem.scope}", f"source: {theorem.source}"]
            facts += [f"leans on: {', '.join(theorem.uses)}"] if theorem.uses else []
            facts += [f"broken by: {', '.join(theorem.mutants)}"] if theorem.mutants else []
            seconds = (times["solver_seconds"][f"{theorem.id}.{name}"] for name in theorem.formats)
            facts.append(
                "seconds: " + ", ".join(f"{each:.2f} ({name})" for each, name in zip(seconds, theorem.formats, strict=True))
            )
            parts.append("".join(f"- {fact}\n" for fact in facts))
    return "\n".join(parts)


PAGES = {
    "operations": operations,
    "encodings": encodings_page,
    "language": language,
    "architecture": architecture,
    "command": command,
    "proved": proved,
}


def main() -> None:
    """Write every page."""
    REFERENCE.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (REFERENCE / f"{name}.md").write_text(make())


if __name__ == "__main__":
    main()
