"""`capvisor prove SYSTEM`: theorems on the steps of a system, of whatever kind."""

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from capvisor.cli import programs
from capvisor.cli.junit import Case, junit_xml
from capvisor.cli.output import console, progress, table, write_json, write_text
from capvisor.cli.status import InputError, Status
from capvisor.cli.step_proofs import step_proofs
from capvisor.dsl.guards import FALLS, HOLDS, UNKNOWN, falling
from capvisor.dsl.system import policy_named
from capvisor.dsl.system_kinds import SYSTEM_KINDS, SystemKind
from capvisor.proofs import guards_off, steps
from capvisor.proofs.cache import Cache
from capvisor.proofs.steps import StepOutcome

MARKS = {"unsat": "+", "sat": "-", "unknown": "?"}


def prove_system(
    system: str,
    patterns: tuple[str, ...],
    policy_name: str,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    json_path: Path | None,
    junit_path: Path | None,
) -> int:
    """Prove that steps keep the invariants of the system; patterns choose steps, `file_*.cc64` those of one format.

    What a step has in its name after the dot is a capability format, or what the kind of system has in its place.
    """
    try:
        name, policy = policy_named(policy_name, SYSTEM_KINDS[system])
    except LookupError as error:
        raise InputError(f"--policy {policy_name}: {error.args[0]}; or `without:GUARD,...`") from None
    chosen = _choose(system, patterns)
    tools = step_proofs(system)
    fallen = _fallen(SYSTEM_KINDS[system], policy)
    supposed = tuple(each for each in tools.guarded.kept if each not in fallen)
    with progress("steps and what they lean on", tools.count(chosen)) as advance:
        outcomes, interrupted = tools.prove(chosen, policy, timeout_s, workers, cache, lambda: advance(1), supposed)
    out = console(is_final=True)
    _keep_whole(system, policy, outcomes, chosen, fallen, None if interrupted else cache)
    columns = tuple(dict.fromkeys(name for each in outcomes for name in each.answers))
    rows = [
        (f"{each.step}.{each.format}", *(MARKS.get(each.answers.get(column, ""), "") for column in columns))
        for each in outcomes
    ]
    out.print(table(("step", *columns), rows), soft_wrap=False)
    proved = sum(each.is_proved for each in outcomes)
    out.print(f"\n{proved} of {len(chosen)} steps keep every invariant under {name}: + proved, - not so, ? unknown")
    for each in outcomes:
        if each.reason:
            out.print(f"{each.step}.{each.format}: {each.reason}")
    if interrupted:
        out.print("ended early: what was proved is kept, the same command goes on")
    verdicts = {}
    if fallen:
        holds = set() if interrupted else set(guards_off.holding(tools.guarded, outcomes, fallen))
        verdicts = {
            each: FALLS if each in fallen else HOLDS if each in holds else UNKNOWN
            for each in SYSTEM_KINDS[system].invariants
        }
        _show_policy(out.print, system, name, verdicts, fallen, is_whole=set(chosen) >= set(_choose(system, ())))
    found = [{**asdict(each), "is_proved": each.is_proved} for each in outcomes]
    told = {
        each: {"verdict": verdict, "program": str(fallen[each]) if each in fallen else None}
        for each, verdict in verdicts.items()
    }
    write_json(json_path, "prove-system", {"system": system, "policy": name, "steps": found, "invariants": told})
    write_text(junit_path, junit_xml("prove", [step_case(system, each) for each in outcomes]))
    if fallen or any("sat" in each.answers.values() for each in outcomes):
        return Status.VIOLATION
    return Status.OK if proved == len(chosen) else Status.INCONCLUSIVE


def _keep_whole(
    system: str,
    policy: Any,
    outcomes: list[StepOutcome],
    chosen: list[tuple[str, str]],
    fallen: dict[str, Path],
    cache: Cache | None,
) -> None:
    """Keep what all steps together keep, if all were asked: of a format, where formats are systems of their own."""
    tools = step_proofs(system)
    groups: dict[str, set[tuple[str, str]]] = {}
    for step in tools.steps():
        for fmt in tools.formats(step):
            groups.setdefault(fmt if tools.are_formats_apart else steps.TOGETHER, set()).add((step, fmt))
    for name, keys in groups.items():
        found = [each for each in outcomes if (each.step, each.format) in keys]
        if cache is not None and keys <= set(chosen) and len(found) == len(keys):
            steps.keep_whole(system, name, policy, guards_off.holding(tools.guarded, found, fallen), cache)


def _fallen(kind: SystemKind, policy: Any) -> dict[str, Path]:
    """What doesn't hold under a policy with guards off: of each invariant the shortest attack that makes it fall."""
    if all(getattr(policy, guard) for guard in kind.guards):
        return {}
    if not kind.attacks.is_dir():
        raise InputError(f"there is no {kind.attacks} here, whose programs show what falls with guards off")
    attacks = [(path, programs.read_any(path)) for path in programs.find((kind.attacks,))]
    return {name: path for name, path in falling(attacks, policy).items() if name in kind.invariants}


def _show_policy(
    write: Callable[..., None], system: str, name: str, verdicts: dict[str, str], fallen: dict[str, Path], *, is_whole: bool
) -> None:
    """What a policy with guards off has and hasn't."""
    rows = [(each, verdict, str(fallen.get(each, ""))) for each, verdict in verdicts.items()]
    write()
    write(table(("invariant", f"under {name}", "program that makes it fall"), rows), soft_wrap=False)
    write("\nWhat falls was not supposed, nor does anything hold here whose proofs lean on it.")
    if not is_whole:
        write(f"Not all steps were asked: what is said to hold is kept by those that were (all: `capvisor prove {system}`).")


def list_steps(system: str, patterns: tuple[str, ...]) -> int:
    """Show steps, with their formats and their kinds, and prove nothing."""
    kinds = step_proofs(system).all_steps()
    rows = [(f"{step}.{fmt}", kinds[step]) for step, fmt in _choose(system, patterns)]
    console(is_final=True).print(table(("step", "kind"), rows), soft_wrap=False)
    return Status.OK


def step_case(system: str, outcome: StepOutcome) -> Case:
    """An outcome as a JUnit test case: an invariant that isn't kept is a failure, one of which nobody knows an error."""
    falls, unknown = (
        [name for name, answer in outcome.answers.items() if answer == result] for result in ("sat", "unknown")
    )
    said = [f"not kept: {', '.join(falls)}"] * bool(falls) + [f"not known: {', '.join(unknown)}"] * bool(unknown)
    message = "; ".join([*said, *([outcome.reason] if outcome.reason else [])])
    return Case(f"capvisor.{system}", f"{outcome.step}.{outcome.format}", outcome.seconds, message, not falls)


def _choose(system: str, patterns: tuple[str, ...]) -> list[tuple[str, str]]:
    """Steps with their formats: those that are all of them together; or what patterns choose of these, or else of others.

    So a pattern means each instruction by itself only where it matches none of those that are all of them.
    """
    tools = step_proofs(system)
    together, others = (
        [(step, fmt) for step in kinds for fmt in tools.formats(step)] for kinds in (tools.steps(), tools.all_steps())
    )
    if not patterns:
        return together
    chosen: dict[tuple[str, str], None] = {}
    for pattern in patterns:
        found = _matching(together, pattern) or _matching(others, pattern)
        if not found:
            raise InputError(f"no step is called or matched by `{pattern}`: `capvisor prove {system} --list` shows them")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _matching(known: Iterable[tuple[str, str]], pattern: str) -> list[tuple[str, str]]:
    return [each for each in known if any(fnmatch.fnmatch(name, pattern) for name in (each[0], ".".join(each)))]
