"""`capvisor prove SYSTEM`: theorems on the steps of a system, of whatever kind."""

import fnmatch
from dataclasses import asdict
from pathlib import Path

from capvisor.cli.junit import Case, junit_xml
from capvisor.cli.output import console, progress, table, write_json, write_text
from capvisor.cli.status import InputError, Status
from capvisor.cli.systems import SYSTEM_TOOLS
from capvisor.dsl.system import policy_named
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.proofs.cache import Cache
from capvisor.proofs.cvm_runner import StepOutcome

_MARKS = {"unsat": "+", "sat": "-", "unknown": "?"}


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
    tools = SYSTEM_TOOLS[system]
    assert tools.prove is not None  # what has steps has a prover
    with progress("steps and what they lean on", tools.count(chosen)) as advance:
        outcomes, interrupted = tools.prove(chosen, policy, timeout_s, workers, cache, lambda: advance(1))
    out = console(is_final=True)
    columns = tuple(dict.fromkeys(name for each in outcomes for name in each.answers))
    rows = [
        (f"{each.step}.{each.format}", *(_MARKS.get(each.answers.get(column, ""), "") for column in columns))
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
    found = [{**asdict(each), "is_proved": each.is_proved} for each in outcomes]
    write_json(json_path, "prove-system", {"system": system, "policy": name, "steps": found})
    write_text(junit_path, junit_xml("prove", [_as_case(system, each) for each in outcomes]))
    if any("sat" in each.answers.values() for each in outcomes):
        return Status.VIOLATION
    return Status.OK if proved == len(chosen) else Status.INCONCLUSIVE


def list_steps(system: str, patterns: tuple[str, ...]) -> int:
    """Show steps, with their formats and their kinds, and prove nothing."""
    kinds = SYSTEM_TOOLS[system].all_steps()
    rows = [(f"{step}.{fmt}", kinds[step]) for step, fmt in _choose(system, patterns)]
    console(is_final=True).print(table(("step", "kind"), rows), soft_wrap=False)
    return Status.OK


def _as_case(system: str, outcome: StepOutcome) -> Case:
    """An outcome as a JUnit test case: an invariant that isn't kept is a failure, one of which nobody knows an error."""
    falls, unknown = (
        [name for name, answer in outcome.answers.items() if answer == result] for result in ("sat", "unknown")
    )
    said = [f"not kept: {', '.join(falls)}"] * bool(falls) + [f"not known: {', '.join(unknown)}"] * bool(unknown)
    message = "; ".join([*said, *([outcome.reason] if outcome.reason else [])])
    return Case(f"capvisor.{system}", f"{outcome.step}.{outcome.format}", outcome.seconds, message, not falls)


def _choose(system: str, patterns: tuple[str, ...]) -> list[tuple[str, str]]:
    """Steps with their formats: those that are all of them together, or of all that there are those that patterns choose."""
    tools = SYSTEM_TOOLS[system]
    if not tools.all_steps():
        raise InputError(f"nothing can be proved of the steps of a system {system} yet")
    known = [(step, fmt) for step in (tools.all_steps() if patterns else tools.steps()) for fmt in tools.formats(step)]
    if not patterns:
        return known
    chosen: dict[tuple[str, str], None] = {}
    for pattern in patterns:
        found = [each for each in known if any(fnmatch.fnmatch(name, pattern) for name in (each[0], ".".join(each)))]
        if not found:
            raise InputError(f"no step is called or matched by `{pattern}`: `capvisor prove {system} --list '*'` shows them")
        chosen |= dict.fromkeys(found)
    return list(chosen)
