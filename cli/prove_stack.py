"""`capvisor prove stack`: how the systems stand on each other, and that no supposition is left without what gives it."""

from pathlib import Path

from capvisor.cli.junit import Case, junit_xml
from capvisor.cli.output import console, progress, table, write_json, write_text
from capvisor.cli.status import Status
from capvisor.cli.systems import SYSTEM_TOOLS
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.proofs import runner
from capvisor.proofs.cache import Cache
from capvisor.proofs.runner import Outcome, Settings, Verdict
from capvisor.proofs.steps import recalled_whole
from capvisor.proofs.theorem import Obligation, obligations
from capvisor.spec.composition import SUPPOSITIONS, Supposition

NAME = "stack"
PREFIX = "composition."
PROVED, CHECKED, TRUSTED, OPEN, FALLS = "proved", "checked", "trusted", "open", "falls"
"""Of a supposition: what gives it is proved; or that, and the rest is checked while a stack runs; or somebody is trusted; or
not all of what gives it is known to hold; or it doesn't.
"""


def theorems() -> list[Obligation]:
    """The theorems on what the layers come to together, in every format."""
    return [each for name, each in obligations().items() if name.startswith(PREFIX)]


def list_suppositions() -> int:
    """Show what the layers suppose, and prove nothing."""
    rows = [(each.name, each.statement, _given_by(each)) for each in SUPPOSITIONS.values()]
    console(is_final=True).print(table(("supposition", "says", "given by"), rows), soft_wrap=False)
    return Status.OK


def prove_stack(timeout_s: float, workers: int, cache: Cache | None, json_path: Path | None, junit_path: Path | None) -> int:
    """Prove the theorems of the composition, and hold every supposition against what has been proved of the layers."""
    chosen = theorems()
    with progress("theorems", len(runner.with_lemmas(chosen))) as advance:
        settings = Settings(timeout_s=timeout_s, workers=workers, cache=cache)
        outcomes, interrupted = runner.prove(chosen, settings, lambda _outcome: advance(1))
    verdicts: dict[str, list[Verdict]] = {}
    for outcome in outcomes:
        verdicts.setdefault(outcome.obligation.theorem.id, []).append(outcome.verdict)
    kept = {name: _kept(name, cache) for name in SYSTEM_TOOLS}
    states = {name: _state(row, verdicts, kept) for name, row in SUPPOSITIONS.items()}
    out = console(is_final=True)
    rows = [(row.name, row.statement, _given_by(row), states[name]) for name, row in SUPPOSITIONS.items()]
    out.print(table(("supposition", "says", "given by", ""), rows), soft_wrap=False)
    formats = tuple(dict.fromkeys(each.format.name for each in chosen))
    found_of = [(name, *(verdict.name for verdict in found)) for name, found in verdicts.items()]
    out.print(table(("theorem", *formats), found_of), soft_wrap=False)
    counts = ", ".join(f"{[*states.values()].count(state)} {state}" for state in (PROVED, CHECKED, TRUSTED, OPEN, FALLS))
    out.print(f"\n{len(states)} suppositions: {counts}")
    missing = [name for name, found in kept.items() if not found and _is_needed(name)]
    if missing:
        verbs = ", ".join(f"`capvisor prove {name}`" for name in missing)
        out.print(f"open is also what wasn't asked since the code was changed: {verbs}")
    if interrupted:
        out.print("ended early: what was proved is kept, the same command goes on")
    told = [
        {"name": name, "layer": row.layer, "statement": row.statement, "given_by": _given_by(row), "state": states[name]}
        for name, row in SUPPOSITIONS.items()
    ]
    proved = {name: [verdict.name for verdict in found] for name, found in verdicts.items()}
    write_json(json_path, "prove-stack", {"suppositions": told, "theorems": proved})
    write_text(junit_path, junit_xml("prove", [_as_case(outcome) for outcome in outcomes]))
    if FALLS in states.values() or any(outcome.verdict is Verdict.REFUTED for outcome in outcomes):
        return Status.VIOLATION
    return Status.INCONCLUSIVE if OPEN in states.values() or interrupted else Status.OK


def _given_by(row: Supposition) -> str:
    parts = {"": (*row.invariants, *row.steps, *row.theorems), "guards: ": row.guards, "checked: ": row.checked}
    said = [f"{what}{', '.join(names)}" for what, names in parts.items() if names]
    return "; ".join([*said, *([f"trusted: {row.trusted}"] if row.trusted else [])])


def _kept(system: str, cache: Cache | None) -> frozenset[str]:
    """The invariants that every step of a system keeps, in every format that was asked."""
    policy = SYSTEM_KINDS[system].intended
    tools = SYSTEM_TOOLS[system]
    formats = dict.fromkeys(fmt for step in tools.steps() for fmt in tools.formats(step))
    found = [whole for fmt in formats if (whole := recalled_whole(system, fmt, policy, cache)) is not None]
    return frozenset.intersection(*found) if found else frozenset()


def _is_needed(system: str) -> bool:
    return any(name.startswith(f"{system}.") for row in SUPPOSITIONS.values() for name in (*row.invariants, *row.steps))


def _state(row: Supposition, verdicts: dict[str, list[Verdict]], kept: dict[str, frozenset[str]]) -> str:
    """What is known of a supposition: the least of what it is given by."""
    of_theorems = [verdict for name in row.theorems for verdict in verdicts.get(name, [Verdict.UNKNOWN])]
    if Verdict.REFUTED in of_theorems:
        return FALLS
    if row.trusted and not row.theorems and not row.checked and not row.invariants:
        return TRUSTED
    invariants = (name.split(".") for name in row.invariants)
    is_kept = all(name in kept.get(system, ()) for system, name in invariants)
    # A step that was asked with all others has kept what they keep.
    is_asked = all(kept.get(name.split(".")[0]) for name in row.steps)
    if not (is_kept and is_asked and all(verdict is Verdict.PROVED for verdict in of_theorems)):
        return OPEN
    return TRUSTED if row.trusted else CHECKED if row.checked else PROVED


def _as_case(outcome: Outcome) -> Case:
    name = outcome.obligation.id.removeprefix(PREFIX)
    message = "" if outcome.as_expected else f"{outcome.verdict.name} {outcome.reason}".strip()
    return Case("capvisor.composition", name, outcome.seconds, message, outcome.verdict is Verdict.UNKNOWN)
