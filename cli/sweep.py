"""`capvisor prove --sweep`: a part of the code is changed in one place after the other, and each change must be noticed."""

from dataclasses import replace

from capvisor.campaign.cvm_alone import Alone, First, UpToTheFirst, first_found
from capvisor.campaign.systems import CRASHES
from capvisor.cli.output import console, progress, table
from capvisor.cli.status import Status
from capvisor.proofs import sweep, tpt_sweep
from capvisor.proofs.mutants import source_in_force
from capvisor.proofs.sweep import EQUIVALENT, MONITOR_MODULES, SWEEPS, TPT_MODULES, Change, Finding
from capvisor.spec.policy import GUARDS, INTENDED, PROTOTYPE_0_0_1

OTHERWISE = (replace(INTENDED, **dict.fromkeys(GUARDS, False)), PROTOTYPE_0_0_1)
"""Policies that decide otherwise what a policy decides: every guard off, and some."""


def sweep_parts(parts: list[str], timeout_s: float, workers: int) -> int:
    """Every comparison negated and every guard dropped, one at a time: who notices it, or why nobody does."""
    findings: list[Finding] = []
    modules = tuple(module for part in parts for module in SWEEPS[part])
    total = sum(len(sweep.changes(module)) for module in modules)
    with progress("changes", total) as advance:
        for finding in sweep.sweep(modules, timeout_s, workers, examine):
            findings.append(finding)
            advance(1)
    out = console(is_final=True)
    for heading, column in (("noticed by", "noticed_by"), ("noticed by comparison alone", "compared_by")):
        rows = [(each.change.line, each.change.name, getattr(each, column)) for each in findings if getattr(each, column)]
        if rows:
            out.print(table(("line", "change", heading), rows, right=(0,)), soft_wrap=False)
            out.print()
    survivors = [finding for finding in findings if not finding.is_noticed]
    rows = [(each.change.line, each.change.name, each.equivalent or "NOT EXPLAINED: a gap") for each in survivors]
    if rows:
        out.print(
            table(("line", "change that nothing notices", "why it changes nothing"), rows, right=(0,)), soft_wrap=False
        )
        out.print()
    unexplained = sum(not finding.is_explained for finding in survivors)
    compared = sum(bool(finding.compared_by) for finding in findings)
    noticed = f"{total - len(survivors)} noticed{f' ({compared} by comparison alone)' if compared else ''}"
    out.print(f"{total} changes: {noticed}, {len(survivors)} survive, {unexplained} unexplained")
    return Status.VIOLATION if unexplained else Status.OK


def examine(change: Change, timeout_s: float) -> Finding:
    """See whether a change is noticed: of the monitor by campaigns, of everything else by theorems."""
    if change.module in MONITOR_MODULES:
        return _examine_monitor(change)
    if change.module in TPT_MODULES:
        return tpt_sweep.examine(change, timeout_s)
    return sweep.examine(change, timeout_s)


# -- the monitor -----------------------------------------------------------------------------------------------------------


def _examine_monitor(change: Change) -> Finding:
    """See whether the invariants notice a change of the reference, or a comparison with the fast path at least.

    Where a bounded campaign sees no difference, no step of it violates anything. Where it does, the reference goes on alone
    from there, held against the invariants.
    """
    with source_in_force(change.module, change.source):
        differs = first_found(INTENDED, UpToTheFirst)
        if differs is None:
            return _compared(change, _found_otherwise())
        violation = first_found(INTENDED, Alone, differs.run)
        if violation is not None and violation.what != CRASHES:
            return Finding(change, noticed_by=f"{violation.what} after {violation.step}")
    return _compared(change, differs)


def _found_otherwise() -> First | None:
    return next(filter(None, (first_found(policy, UpToTheFirst) for policy in OTHERWISE)), None)


def _compared(change: Change, differs: First | None) -> Finding:
    if differs is None:
        return Finding(change, equivalent=EQUIVALENT.get(change.name, ""))
    return Finding(change, compared_by=f"{differs.what} after {differs.step}")
