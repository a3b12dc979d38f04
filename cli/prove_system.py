"""`capvisor prove cvm`: theorems on the steps of a system."""

import fnmatch
from dataclasses import asdict
from pathlib import Path

from capvisor.cli.output import console, progress, table, write_json
from capvisor.cli.status import InputError, Status
from capvisor.dsl.system import policy_named
from capvisor.proofs.cache import Cache
from capvisor.proofs.cvm import steps
from capvisor.proofs.cvm_runner import prove
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS

SYSTEM = "cvm"
_MARKS = {"unsat": "+", "sat": "-", "unknown": "?"}


def prove_system(
    patterns: tuple[str, ...],
    policy_name: str,
    timeout_s: float,
    workers: int,
    cache: Cache | None,
    json_path: Path | None,
) -> int:
    """Prove that steps keep the invariants of the system; patterns choose steps, `file_*.cc64` those of one format."""
    try:
        name, policy = policy_named(policy_name)
    except LookupError as error:
        raise InputError(f"--policy {policy_name}: {error.args[0]}; or `without:GUARD,...`") from None
    chosen = _choose(patterns)
    with progress("steps", len(chosen)) as advance:
        outcomes, interrupted = prove(chosen, policy, timeout_s, workers, cache, lambda _outcome: advance(1))
    out = console()
    rows = [
        (f"{each.step}.{each.format}", *(_MARKS.get(each.answers.get(column, ""), "") for column in CVM_INVARIANTS))
        for each in outcomes
    ]
    out.print(table(("step", *CVM_INVARIANTS), rows), soft_wrap=False)
    proved = sum(each.is_proved for each in outcomes)
    out.print(f"\n{proved} of {len(chosen)} steps keep every invariant under {name}: + proved, - not so, ? unknown")
    for each in outcomes:
        if each.reason:
            out.print(f"{each.step}.{each.format}: {each.reason}")
    if interrupted:
        out.print("ended early: what was proved is kept, the same command goes on")
    found = [{**asdict(each), "is_proved": each.is_proved} for each in outcomes]
    write_json(json_path, "prove-system", {"system": SYSTEM, "policy": name, "steps": found})
    if any("sat" in each.answers.values() for each in outcomes):
        return Status.VIOLATION
    return Status.OK if proved == len(chosen) else Status.INCONCLUSIVE


def _choose(patterns: tuple[str, ...]) -> list[tuple[str, str]]:
    """Steps with their formats."""
    known = [
        (step, fmt.name)
        for step in steps()
        for fmt in FORMATS.values()
        if step not in OPERATIONS or OPERATIONS[step].minimum_xlen <= fmt.address_width
    ]
    if not patterns:
        return known
    chosen = [
        (step, fmt)
        for step, fmt in known
        if any(fnmatch.fnmatch(step, each) or fnmatch.fnmatch(f"{step}.{fmt}", each) for each in patterns)
    ]
    if not chosen:
        raise InputError(
            f"no step matches {' '.join(patterns)}: they are instructions, calls and create, destroy, start_thread"
        )
    return chosen
