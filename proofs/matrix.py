"""Proving cells of the matrix of operations and invariants: by rows, in parallel, with what was proved before kept.

A row's cells share one execution, so that a worker proves them together. They are kept under a digest of the sources of the
reference, the specification and the prover: where one of these changes, everything is proved anew.
"""

import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from pathlib import Path
from typing import Any

from capvisor.proofs import isa, solve
from capvisor.proofs import runner as lemmas
from capvisor.proofs.runner import Outcome, Settings, Verdict, Workers
from capvisor.proofs.solve import Answer
from capvisor.proofs.theorem import Obligation, obligations

_SOURCES = ("capvisor.spec", "capvisor.model", "capvisor.fastpath", "capvisor.proofs")


def prove(
    chosen: list[Obligation],
    settings: Settings,
    finished: Callable[[Outcome], None] = lambda outcome: None,
    family: Any = isa,
) -> tuple[list[Outcome], bool]:
    """Prove cells, and the theorems that they lean on; the outcomes of all, and whether Ctrl-C ended it early.

    `finished` is called with each outcome as soon as it is there. `family` is the module that has the cells, says how they
    are proved together (`tasks`), and proves them.
    """
    known = obligations()
    needed = {name: known[name] for each in chosen for name in each.uses}
    leant_on, interrupted = lemmas.prove(needed.values(), settings, finished)
    outcomes: dict[str, Outcome] = {}
    if not interrupted:
        interrupted = _Run(chosen, settings, finished, outcomes, family).run()
    proved = {outcome.obligation.id for outcome in leant_on if outcome.verdict is Verdict.PROVED}
    for outcome in outcomes.values():
        missing = [name for name in outcome.obligation.uses if name not in proved]
        if missing and outcome.verdict is Verdict.PROVED:
            outcome.verdict, outcome.reason = Verdict.UNKNOWN, f"leans on what isn't proved: {', '.join(missing)}"
    return [*leant_on, *(outcomes[each.id] for each in chosen if each.id in outcomes)], interrupted


class _Run:
    def __init__(
        self,
        chosen: list[Obligation],
        settings: Settings,
        finished: Callable[[Outcome], None],
        outcomes: dict[str, Outcome],
        family: Any,
    ) -> None:
        self._family = family
        self._chosen, self._settings, self._finished, self._outcomes = chosen, settings, finished, outcomes
        self._version = solve.version("z3")
        self._workers = Workers(settings.workers)
        self._waiting: dict[Future[list[Outcome]], tuple[Any, int]] = {}

    def run(self) -> bool:
        """Prove what isn't kept; whether Ctrl-C ended it."""
        try:
            for obligation in self._chosen:
                self._recall(obligation)
            missing = [each for each in self._chosen if each.id not in self._outcomes]
            for task in self._family.tasks(missing):
                self._submit(task, 1)
            while self._waiting:
                self._collect()
        except KeyboardInterrupt:
            return True
        finally:
            self._workers.stop(at_once=bool(self._waiting))
        return False

    def _recall(self, obligation: Obligation) -> None:
        kept = self._settings.cache.get(self._key(obligation.id)) if self._settings.cache is not None else None
        if kept is not None:
            outcome = Outcome(obligation, Verdict.PROVED, kept.seconds, 1, 1, (self._version,), kept.values)
            self._outcomes[obligation.id] = outcome
            self._finished(outcome)

    def _key(self, name: str) -> str:
        return f"{sources()}:{name}:{self._version}"

    def _submit(self, task: Any, attempt: int) -> None:
        limits = self._settings.timeout_s, self._settings.rlimit
        self._waiting[self._workers.submit(self._family.prove, task, *limits)] = task, attempt

    def _collect(self) -> None:
        """Take what has been proved. What a worker was at that was killed is tried once more."""
        done, _others = wait(list(self._waiting), return_when=FIRST_COMPLETED)
        for future in done:
            task, attempt = self._waiting.pop(future)
            try:
                outcomes = future.result()
            except BrokenProcessPool:
                if attempt == 1:
                    self._submit(task, 2)
                    continue
                reason = "a worker process was killed (out of memory?)"
                outcomes = [Outcome(self._family.cells()[name], Verdict.UNKNOWN, reason=reason) for name in task.ids]
            for outcome in outcomes:
                # What came from another process is said of this one's obligations.
                outcome.obligation = self._family.cells()[outcome.obligation.id]
                self._outcomes[outcome.obligation.id] = outcome
                if outcome.verdict is Verdict.PROVED and self._settings.cache is not None:
                    answer = Answer("unsat", outcome.seconds, outcome.example)
                    self._settings.cache.put(self._key(outcome.obligation.id), answer)
                self._finished(outcome)


@functools.cache
def sources() -> str:
    """A digest of everything that a cell's verdict depends on, but the solver."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        folder = Path(str(import_module(name).__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{name} {path.relative_to(folder)}".encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def table_of(outcomes: list[Outcome]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Cells by operation and invariant: the names of the columns, and rows of `+` for each format in which it is proved.

    A row has a mark for each format in the order of the formats, a dot where a machine lacks the operation.
    """
    marks = {Verdict.PROVED: "+", Verdict.UNKNOWN: "?", Verdict.VACUOUS: "v", Verdict.REFUTED: "X", Verdict.ERROR: "E"}
    found = {outcome.obligation.id: marks[outcome.verdict] for outcome in outcomes}
    columns = [name for name in isa.columns() if any(f".{name}." in each for each in found)]
    rows = []
    for row, formats in isa.rows().items():
        cells = []
        for column in columns:
            names = [f"{isa.PREFIX}.{row}.{column}.{fmt.name}" for fmt in isa.FORMATS.values()]
            known = {f"{isa.PREFIX}.{row}.{column}.{fmt.name}" for fmt in formats}
            cells.append("".join(found.get(name, " ") if name in known else "." for name in names))
        if any(cell.strip(" .") for cell in cells):
            rows.append((row, *cells))
    return columns, rows
