"""`capvisor prove stack`: how the systems stand on each other, and that no supposition is left without what gives it."""

from collections import Counter
from pathlib import Path

from capvisor.cli.junit import Case, junit_xml
from capvisor.cli.output import console, progress, table, write_json, write_text
from capvisor.cli.status import Status
from capvisor.cli.systems import SYSTEM_TOOLS
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.proofs import runner
from capvisor.proofs.cache import Cache
from capvisor.proofs.runner import Outcome, Settings, Verdict
from capvisor.proofs.steps import TOGETHER, recalled_whole
from capvisor.proofs.theorem import Obligation, obligations
from capvisor.spec.composition import LAYERS, SUPPOSITIONS, Supposition
from capvisor.spec.formats import FORMATS

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
    formats = tuple(FORMATS)
    kept = {fmt: {name: _kept(name, fmt, cache) for name in LAYERS} for fmt in formats}
    states = {
        name: {fmt: _state(row, _of_format(verdicts, formats.index(fmt)), kept[fmt]) for fmt in formats}
        for name, row in SUPPOSITIONS.items()
    }
    out = console(is_final=True)
    rows = [(name, row.statement, _given_by(row), *states[name].values()) for name, row in SUPPOSITIONS.items()]
    out.print(table(("supposition", "says", "given by", *formats), rows), soft_wrap=False)
    found_of = [(name, *(verdict.name for verdict in found)) for name, found in verdicts.items()]
    out.print(table(("theorem", *formats), found_of), soft_wrap=False)
    reached = [state for of_formats in states.values() for state in of_formats.values()]
    out.print()
    for fmt in formats:
        counts = Counter(of_formats[fmt] for of_formats in states.values())
        out.print(f"{fmt}: " + ", ".join(f"{counts[state]} {state}" for state in (PROVED, CHECKED, TRUSTED, OPEN, FALLS)))
    missing = [name for name in LAYERS if not all(found[name] for found in kept.values())]
    if missing:
        verbs = ", ".join(f"`capvisor prove {name}`" for name in missing)
        out.print(f"open is also what wasn't asked since the code was changed: {verbs}")
    if interrupted:
        out.print("ended early: what was proved is kept, the same command goes on")
    told = [
        {"name": name, "layer": row.layer, "statement": row.statement, "given_by": _given_by(row), "states": states[name]}
        for name, row in SUPPOSITIONS.items()
    ]
    proved = {name: [verdict.name for verdict in found] for name, found in verdicts.items()}
    write_json(json_path, "prove-stack", {"suppositions": told, "theorems": proved})
    write_text(junit_path, junit_xml("prove", [_as_case(outcome) for outcome in outcomes]))
    if FALLS in reached or any(outcome.verdict is Verdict.REFUTED for outcome in outcomes):
        return Status.VIOLATION
    is_whole = not interrupted and all(outcome.verdict is Verdict.PROVED for outcome in outcomes)
    return Status.OK if is_whole and OPEN not in reached else Status.INCONCLUSIVE


def _given_by(row: Supposition) -> str:
    parts = {"": (*row.invariants, *row.steps, *row.theorems), "guards: ": row.guards, "checked: ": row.checked}
    said = [f"{what}{', '.join(names)}" for what, names in parts.items() if names]
    return "; ".join([*said, *([f"trusted: {row.trusted}"] if row.trusted else [])])


def _of_format(verdicts: dict[str, list[Verdict]], number: int) -> dict[str, list[Verdict]]:
    return {name: found[number : number + 1] for name, found in verdicts.items()}


def _kept(system: str, fmt: str, cache: Cache | None) -> frozenset[str]:
    """The invariants that every step of a system keeps, in a format."""
    whole = fmt if SYSTEM_TOOLS[system].are_formats_apart else TOGETHER
    return recalled_whole(system, whole, SYSTEM_KINDS[system].intended, cache) or frozenset()


def _state(row: Supposition, verdicts: dict[str, list[Verdict]], kept: dict[str, frozenset[str]]) -> str:
    """What is known of a supposition: the least of what it is given by."""
    of_theorems = [verdict for name in row.theorems for verdict in verdicts.get(name) or [Verdict.UNKNOWN]]
    if Verdict.REFUTED in of_theorems:
        return FALLS
    if row.trusted and not row.theorems and not row.checked and not row.invariants:
        return TRUSTED
    invariants = (name.split(".") for name in row.invariants)
    is_kept = all(name in kept.get(system, ()) for system, name in invariants)
    # A step was asked with all others of its system: if these keep everything, so does it.
    is_asked = all(_keeps_all(kept, name.split(".")[0]) for name in row.steps)
    if not (is_kept and is_asked and all(verdict is Verdict.PROVED for verdict in of_theorems)):
        return OPEN
    return TRUSTED if row.trusted else CHECKED if row.checked else PROVED


def _keeps_all(kept: dict[str, frozenset[str]], system: str) -> bool:
    guarded = SYSTEM_TOOLS[system].guarded
    return guarded is not None and set(guarded.kept) <= kept.get(system, frozenset())


def _as_case(outcome: Outcome) -> Case:
    name = outcome.obligation.id.removeprefix(PREFIX)
    message = "" if outcome.as_expected else f"{outcome.verdict.name} {outcome.reason}".strip()
    return Case("capvisor.composition", name, outcome.seconds, message, outcome.verdict is Verdict.UNKNOWN)
