"""`capvisor prove stack`: how the systems stand on each other, and that no supposition is left without what gives it."""

from collections import Counter
from pathlib import Path

from capvisor.cli.junit import Case, junit_xml
from capvisor.cli.output import console, progress, table, write_json, write_text
from capvisor.cli.prove_system import MARKS, step_case
from capvisor.cli.status import Status
from capvisor.cli.step_proofs import STEP_PROOFS
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.proofs import runner, stack_steps
from capvisor.proofs.cache import Cache
from capvisor.proofs.guards_off import largest
from capvisor.proofs.runner import Outcome, Settings, Verdict
from capvisor.proofs.steps import TOGETHER, Key, StepOutcome, recalled_whole
from capvisor.proofs.theorem import THEOREMS, Obligation, obligations
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


def step_keys() -> list[Key]:
    """The steps of the four together, with their parts."""
    return [(step, part) for step in stack_steps.steps() for part in stack_steps.parts(step)]


def across(steps: list[StepOutcome], wanted: list[Key], kept: dict[str, frozenset[str]]) -> frozenset[str]:
    """What every step of the four together keeps, if all were asked, by what the layers keep and by each other."""
    if {(each.step, each.format) for each in steps} != set(wanted):
        return frozenset()
    of_layers = {f"{layer}.{name}" for layer, names in kept.items() for name in names}
    return frozenset(largest({*stack_steps.KEPT, *of_layers}, steps) & set(stack_steps.KEPT))


def _marked(outcome: StepOutcome) -> tuple[str, ...]:
    marks = (MARKS.get(outcome.answers.get(name, ""), "") for name in stack_steps.KEPT)
    return (f"{outcome.step}.{outcome.format}", *marks)


def list_suppositions() -> int:
    """Show what the layers suppose, and prove nothing."""
    rows = [(each.name, each.statement, _given_by(each)) for each in SUPPOSITIONS.values()]
    console(is_final=True).print(table(("supposition", "says", "given by"), rows), soft_wrap=False)
    return Status.OK


def prove_stack(timeout_s: float, workers: int, cache: Cache | None, json_path: Path | None, junit_path: Path | None) -> int:
    """Prove the theorems of the composition, and hold every supposition against what has been proved of the layers."""
    chosen, wanted = theorems(), step_keys()
    with progress("steps and theorems", len(wanted) + len(runner.with_lemmas(chosen))) as advance:
        steps, interrupted = stack_steps.prove_all(wanted, timeout_s, workers, cache, lambda: advance(1))
        outcomes: list[Outcome] = []
        if not interrupted:
            settings = Settings(timeout_s=timeout_s, workers=workers, cache=cache)
            outcomes, interrupted = runner.prove(chosen, settings, lambda _outcome: advance(1))
    verdicts: dict[str, dict[str, Verdict]] = {}
    for outcome in outcomes:
        verdicts.setdefault(outcome.obligation.theorem.id, {})[outcome.obligation.format.name] = outcome.verdict
    formats = tuple(FORMATS)
    kept = {fmt: {name: _kept(name, fmt, cache) for name in LAYERS} for fmt in formats}
    for of_layers in kept.values():
        of_layers[NAME] = across(steps, wanted, of_layers)
    states = {
        name: {fmt: _state(row, of_format(verdicts, fmt), kept[fmt]) for fmt in formats}
        for name, row in SUPPOSITIONS.items()
    }
    out = console(is_final=True)
    out.print(table(("step", *stack_steps.KEPT), [_marked(each) for each in steps]), soft_wrap=False)
    for each in steps:
        if each.reason:
            out.print(f"{each.step}.{each.format}: {each.reason}")
    rows = [(name, row.statement, _given_by(row), *states[name].values()) for name, row in SUPPOSITIONS.items()]
    out.print(table(("supposition", "says", "given by", *formats), rows), soft_wrap=False)
    found_of = [(name, *(found[fmt].name if fmt in found else "" for fmt in formats)) for name, found in verdicts.items()]
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
    proved = {name: {fmt: verdict.name for fmt, verdict in found.items()} for name, found in verdicts.items()}
    of_steps = [{"step": each.step, "part": each.format, "answers": each.answers} for each in steps]
    write_json(json_path, "prove-stack", {"suppositions": told, "theorems": proved, "steps": of_steps})
    cases = [*map(_as_case, outcomes), *(step_case(NAME, each) for each in steps)]
    write_text(junit_path, junit_xml("prove", cases))
    falls = any("sat" in each.answers.values() for each in steps)
    if FALLS in reached or falls or any(outcome.verdict is Verdict.REFUTED for outcome in outcomes):
        return Status.VIOLATION
    is_whole = not interrupted and all(outcome.verdict is Verdict.PROVED for outcome in outcomes)
    is_whole = is_whole and all(each.is_proved for each in steps)
    return Status.OK if is_whole and OPEN not in reached else Status.INCONCLUSIVE


def _given_by(row: Supposition) -> str:
    parts = {"": (*row.invariants, *row.steps, *row.theorems), "guards: ": row.guards, "checked: ": row.checked}
    said = [f"{what}{', '.join(names)}" for what, names in parts.items() if names]
    return "; ".join([*said, *([f"trusted: {row.trusted}"] if row.trusted else [])])


def of_format(verdicts: dict[str, dict[str, Verdict]], fmt: str) -> dict[str, list[Verdict]]:
    """What was found of the theorems that a format's suppositions rest on: what there is of one format only, is of all."""
    found = {}
    for name, of_formats in verdicts.items():
        is_of_all = set(THEOREMS[name].formats) == set(FORMATS)
        found[name] = [verdict for each, verdict in of_formats.items() if each == fmt or not is_of_all]
    return found


def _kept(system: str, fmt: str, cache: Cache | None) -> frozenset[str]:
    """The invariants that every step of a system keeps, in a format."""
    whole = fmt if STEP_PROOFS[system].are_formats_apart else TOGETHER
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
    return set(STEP_PROOFS[system].guarded.kept) <= kept.get(system, frozenset())


def _as_case(outcome: Outcome) -> Case:
    name = outcome.obligation.id.removeprefix(PREFIX)
    message = "" if outcome.as_expected else f"{outcome.verdict.name} {outcome.reason}".strip()
    return Case("capvisor.composition", name, outcome.seconds, message, outcome.verdict is Verdict.UNKNOWN)
