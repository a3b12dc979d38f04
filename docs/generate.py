"""Writes docs/reference/ from what is declared in the code: operations, language, traps, formats, vectors, the command.

`python docs/generate.py guards` writes the tables of docs/guards.md instead, which takes some seconds.
"""

import ast
import functools
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from capvisor.cli.guards import FALLS, HOLDS, MARKS, UNKNOWN
from capvisor.cli.status import MEANINGS, Status
from capvisor.cli.step_proofs import STEP_PROOFS
from capvisor.cli.verbs import capvisor, status_of
from capvisor.dsl.fields import FIELDS
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.model.machine import RULES
from capvisor.proofs import contracts, isa, machine, runner, stack_steps
from capvisor.proofs.theorem import THEOREMS, Theorem
from capvisor.spec.composition import LAYERS, SUPPOSITIONS
from capvisor.spec.encodings import encodings
from capvisor.spec.formats import FORMATS, Permission
from capvisor.spec.operations import FETCH_TRAPS, OPERATIONS, Group, OperandKind
from capvisor.spec.stack import COUPLINGS
from capvisor.spec.stack_invariants import STACK_INVARIANTS
from capvisor.spec.stack_policy import STACK_GUARDS
from capvisor.spec.traps import CAUSES, CAUSES_BY_NAME
from capvisor.spec.vectors import VECTOR_OPERATIONS

assert runner  # imported for the theorems that it brings along
REFERENCE = Path(__file__).parent / "reference"
ROOT = Path(__file__).parent.parent


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def operations() -> str:
    """The operation table, by group."""
    parts = [
        "# Operations\n",
        "Generated from `spec/operations.py`. A refused operation changes nothing but the trap state; its causes stand in the order of their checks, after those of the fetch. Each operation has its page.\n",
    ]
    for group in Group:
        rows = [row for row in OPERATIONS.values() if row.group is group]
        parts.append(f"## {group.value.capitalize()}\n")
        columns = ["operation", "effect", "refused for"] if any(row.traps for row in rows) else ["operation", "effect"]
        cells = [
            [
                f"[`{row.name} {row.syntax}`](instructions/{file_of(row.name)}.md)".replace(" `]", "`]"),
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
        "Generated from `spec/encodings.py`: the word of each operation from bit 31 to 0. `capvisor asm` encodes, `capvisor disasm` decodes. `li` is one step of a program, and no instruction. Some words mean one operation in integer mode and another in capability mode: `lw` and `clw`.\n",
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


def file_of(name: str) -> str:
    """The name of an operation's page: its own, with a dash for a dot."""
    return name.replace(".", "-")


def instruction(name: str) -> str:
    """The page of one operation: what it does, for what it is refused, its word, its rule, what is proved of it."""
    row = OPERATIONS[name]
    parts = [f"# {name}\n", f"`{name} {row.syntax}`".replace(" `", "`") + f": {row.summary}.\n"]
    facts = [f"group: {row.group.value}", f"machines: {'RV64 alone' if row.minimum_xlen > 32 else 'RV64 and RV32'}"]
    facts += [f"mode: what its encoding means in {row.mode.value} mode"] if row.mode is not None else []
    facts += [f"source: {row.source}"]
    parts.append("".join(f"- {fact}\n" for fact in facts))
    parts.append("## Refused for\n")
    parts.append(
        f"In this order: at its fetch {', '.join(FETCH_TRAPS)}, by PCC" + ("; then its own:\n" if row.traps else ".\n")
    )
    if row.traps:
        causes = [(number, f"`{each}`", CAUSES_BY_NAME[each].meaning) for number, each in enumerate(row.traps, start=1)]
        parts.append(table(["", "cause", "meaning"], causes))
    parts.append("## Encoding\n")
    words = [(f"RV{xlen}", f"`{encodings(xlen)[name].picture()}`") for xlen in (64, 32) if name in encodings(xlen)]
    parts.append(
        table(["machine", "bits 31 to 0"], words) if words else "None: it is one step of a program, and no instruction.\n"
    )
    shared = inspect.unwrap(RULES[name]) is not RULES[name]
    parts.append("## Rule\n")
    parts.append("As the reference executes it" + (", shared by its family:\n" if shared else ":\n"))
    parts.append(f"```python\n{inspect.getsource(RULES[name])}```\n")
    parts.append("## Theorems\n")
    titles = {
        **{row.name: row.title for row in isa.KEPT.values()},
        machine.NAME: "the fast path's step is the reference's",
    }
    cells = [(f"`{isa.PREFIX}.{name}.{each}`", titles[each]) for each in isa.columns()]
    parts.append(table(["cell of [the matrix](../matrix.md)", "what it keeps"], cells))
    lemmas = contracts.lemmas_for([name])
    parts.append(f"They lean on {', '.join(f'`{each}`' for each in lemmas)}: [what is proved](../proved.md).\n")
    return "\n".join(parts)


def matrix() -> str:
    """The matrix of operations and invariants: what each column says."""
    parts = [
        "# The matrix\n",
        "Generated from `spec/invariants.py`, `spec/guest.py` and `proofs/isa.py`. Every operation keeps every invariant: `capvisor prove --matrix` proves "
        "it and prints the table; a cell alone is `capvisor prove isa.csetbounds.M1.cc128`. [How one step becomes all runs]"
        "(../matrix.md).\n",
    ]
    for invariant in isa.KEPT.values():
        parts.append(f"## {invariant.name}: {invariant.title}\n\n{invariant.statement}\n\nSource: {invariant.source}.\n")
        parts.append(f"```python\n{inspect.getsource(invariant.holds)}```\n")
    parts.append(f"## {machine.NAME}: the fast path\n\n{machine.STATEMENT}\n\nScope: {machine.SCOPE}.\n")
    teeth = [
        (f"`isa.{row}.{column}`", ", ".join(f"`{each}`" for each in names)) for (row, column), names in isa.TEETH.items()
    ]
    parts.append("## Teeth\n")
    parts.append("Changes to the code (`proofs/mutants.py`) that make a cell fall, for every column:\n")
    parts.append(table(["cell", "broken by"], teeth))
    parts.append("## Rows\n")
    parts.append(", ".join(f"[`{name}`](instructions/{file_of(name)}.md)" for name in OPERATIONS) + "\n")
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
    parts.append(
        "## JSON\n\nWhat `--json FILE` writes is described by a JSON Schema, `cli/schemas/results.schema.json`; that of `guards` by "
        "`cli/schemas/guards.schema.json`.\n"
    )
    context = click.Context(capvisor, info_name="capvisor", max_content_width=100)
    parts.append(f"## capvisor\n\n```text\n{capvisor.get_help(context)}\n```\n")
    return "\n".join([*parts, *_verbs(capvisor, context)])


def _verbs(group: click.Group, context: click.Context) -> Iterator[str]:
    """The help of each verb of a group, and of those in it."""
    for name in group.list_commands(context):
        verb = group.get_command(context, name)
        assert verb is not None
        inner = click.Context(verb, info_name=name, parent=context, max_content_width=100)
        yield f"## {inner.command_path}\n\n```text\n{verb.get_help(inner)}\n```\n"
        if isinstance(verb, click.Group):
            yield from _verbs(verb, inner)


def _times() -> dict[str, Any]:
    times: dict[str, Any] = json.loads((Path(__file__).parent / "proof_times.json").read_text())
    return times


def _groups() -> dict[str, list[Theorem]]:
    """The theorems by group: what their names begin with."""
    groups: dict[str, list[Theorem]] = {}
    for theorem in THEOREMS.values():
        groups.setdefault(theorem.id.split(".")[0], []).append(theorem)
    return groups


def proved() -> str:
    """The groups of theorems."""
    times = _times()
    rows = [(f"[{name}](proved/{name}.md)", len(theorems), theorems[0].statement) for name, theorems in _groups().items()]
    return "\n".join(
        [
            "# What is proved\n",
            "Generated from `proofs/`. Each theorem is proved for every format that it names, for all values at full width unless its "
            "scope says otherwise. [How, and what must be trusted](../prover.md). Theorems about whole instructions are "
            "[the matrix](matrix.md).\n",
            f"Times are {times['solver']}'s seconds for all questions together, as one run of `capvisor prove --all --no-cache` gave "
            f"them, which took {times['elapsed_seconds']} s on two cores.\n",
            table(["group", "theorems", "the first of them"], rows),
            "```{toctree}\n:hidden:\n:glob:\n\nproved/*\n```\n",
        ]
    )


def proved_group(group: str) -> str:
    """The theorems of one group, in their own words."""
    times = _times()["solver_seconds"]
    parts = [f"# What is proved: {group}\n"]
    for theorem in _groups()[group]:
        parts.append(f"## {theorem.id}\n\n{theorem.statement}\n")
        facts = [f"formats: {', '.join(theorem.formats)}", f"scope: {theorem.scope}", f"source: {theorem.source}"]
        facts += [f"leans on: {', '.join(theorem.uses)}"] if theorem.uses else []
        facts += [f"broken by: {', '.join(theorem.mutants)}"] if theorem.mutants else []
        facts += [] if theorem.holds else ["FALSE: kept with its counterexample, and expected to be REFUTED"]
        facts.append("seconds: " + ", ".join(f"{times[f'{theorem.id}.{name}']:.2f} ({name})" for name in theorem.formats))
        parts.append("".join(f"- {fact}\n" for fact in facts))
    return "\n".join(parts)


def systems() -> str:
    """The systems side by side, and how they stand on each other."""
    shown = [(row.title, row.principals, row.passes, row.checked, row.mediated) for row in LAYERS.values()]
    sizes = []
    for name, row in LAYERS.items():
        kind, tools = SYSTEM_KINDS[name], STEP_PROOFS[name]
        cells = sum(len(tools.formats(step)) for step in tools.steps()) * len(tools.guarded.kept)
        lines = sum(_lines_of(f"model/{part}.py") for part in row.parts)
        policy = _lines_of(inspect.getsourcefile(kind.policy) or "")
        said = _lines_of(f"spec/{name}_invariants.py")
        sizes.append((f"`{name}`", lines, said, policy, len(kind.guards), len(kind.invariants), len(tools.steps()), cells))
    lines = sum(_lines_of(f"model/{part}.py") for part in ("stack", "stack_memory", "stack_system"))
    said, policy = _lines_of("spec/stack_invariants.py"), _lines_of("spec/stack_policy.py")
    cells = sum(len(stack_steps.parts(step)) * len(stack_steps.asked_in(step)) for step in stack_steps.steps())
    counts = len(STACK_GUARDS), len(STACK_INVARIANTS), len(stack_steps.steps()), cells
    sizes.append(("`stack`", lines, said, policy, *counts))
    couplings = [
        (f"`{each.guard}`", f"`{each.layer.value}`", each.supposes, ", ".join(each.carries)) for each in COUPLINGS.values()
    ]
    columns = [
        "",
        "lines of the model",
        "of its invariants",
        "of its guards",
        "guards",
        "invariants",
        "steps",
        "obligations",
    ]
    supposed = [
        (
            f"`{each.name}`",
            each.statement,
            ", ".join((*each.invariants, *each.steps, *each.theorems)),
            ", ".join(f"`{guard}`" for guard in each.guards),
            ", ".join(each.checked),
            each.trusted,
        )
        for each in SUPPOSITIONS.values()
    ]
    return "\n".join(
        [
            "# The four systems side by side\n",
            "Generated from `spec/composition.py` and the code. From the machine upwards:\n",
            table(["system", "kept apart", "passes", "hardware checks", "the trusted base mediates"], shown),
            "Which guard carries which invariant is [the matrix of guards](../guards.md). Lines are those with code, without comments, "
            "docstrings and blank ones; an obligation is a step, in a format or variant, against an invariant:\n",
            table(columns, sizes),
            "The capability machine below the last two is shared: [its own matrix](matrix.md) has what each instruction keeps.\n",
            "What is `stack` here is the four together: the memory below them, the views that they have of it, and what they owe each "
            "other. Its guards, and what falls without them:\n",
            table(["guard", "for", "what that layer takes for granted", "without it falls"], couplings),
            "## What each supposes of what it doesn't model\n",
            "`capvisor prove stack` proves steps of the stack and the theorems, and says of each row whether what gives it is proved "
            "([how they are composed](../stack.md)):\n",
            table(["supposition", "says", "proved", "guards of the stack", "checked while it runs", "trusted"], supposed),
        ]
    )


def _lines_of(path: str) -> int:
    """How many lines of a file have code, docstrings not counted."""
    source = (ROOT / path).read_text()
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    strings = {
        line
        for node in ast.walk(tree)
        for each in (node.body if isinstance(node, documented) else ())
        if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) and isinstance(each.value.value, str)
        for line in range(each.lineno, (each.end_lineno or each.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    return len({token.start[0] for token in tokens if token.type not in skipped} - strings)


PAGES = {
    "systems": systems,
    "operations": operations,
    "encodings": encodings_page,
    "language": language,
    "architecture": architecture,
    "command": command,
    "proved": proved,
    "matrix": matrix,
    **{f"proved/{group}": functools.partial(proved_group, group) for group in _groups()},
    **{f"instructions/{file_of(name)}": functools.partial(instruction, name) for name in OPERATIONS},
}


_COUNTED = {FALLS: "fall (-)", HOLDS: "hold (+)", UNKNOWN: "are open (?)"}
GUARDS_PAGE = Path(__file__).parent / "guards.md"
_TABLES = re.compile(
    r"(?<=<!-- tables of (\w{3}): python docs/generate.py guards -->\n).*?(?=<!-- end of tables -->)", re.DOTALL
)


def guards_tables(document: dict[str, Any]) -> str:
    """What `capvisor guards --json` has written, as tables: the matrix, and the programs of what falls."""
    matrix = document["matrix"]
    rows = [(f"`{guard}`", *(MARKS[cell["verdict"]] for cell in row.values())) for guard, row in matrix.items()]
    programs: dict[tuple[str, str], list[str]] = {}
    for guard, row in matrix.items():
        for name, cell in row.items():
            if cell["program"] is not None:
                programs.setdefault((guard, Path(cell["program"]).name), []).append(name)
    verdicts = [cell["verdict"] for row in matrix.values() for cell in row.values()]
    counts = ", ".join(f"{verdicts.count(verdict)} {text}" for verdict, text in _COUNTED.items())
    shown = [(f"`{guard}`", ", ".join(names), f"`{file}`") for (guard, file), names in programs.items()]
    parts = [table(["guard off", *document["invariants"]], rows), f"{len(verdicts)} cells: {counts}.\n"]
    return "\n".join(
        ["", *parts, table(["guard off", "falls", f"program in `programs/attacks/{document['system']}/`"], shown), ""]
    )


def with_guards(page: str, document: dict[str, Any]) -> str:
    """The page of guards, with the tables of a system anew."""
    assert document["system"] in {found[1] for found in _TABLES.finditer(page)}
    return _TABLES.sub(lambda found: guards_tables(document) if found[1] == document["system"] else found[0], page)


def write_guards() -> None:
    """Run the matrix of guards of each system on their page, and write its tables."""
    with TemporaryDirectory() as folder:
        for found in list(_TABLES.finditer(GUARDS_PAGE.read_text())):
            path = Path(folder) / f"{found[1]}.json"
            assert status_of(["guards", found[1], "--json", str(path)]) == Status.OK
            GUARDS_PAGE.write_text(with_guards(GUARDS_PAGE.read_text(), json.loads(path.read_text())))


def main() -> None:
    """Write every page."""
    REFERENCE.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        path = REFERENCE / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(make())


if __name__ == "__main__":
    write_guards() if sys.argv[1:] == ["guards"] else main()
