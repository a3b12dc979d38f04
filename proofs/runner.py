"""Proving obligations: their questions are answered in parallel processes, each by a fresh solver."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from capvisor.proofs import bounds as _bounds  # declares its theorems
from capvisor.proofs import capability as _capability
from capvisor.proofs import composition as _composition
from capvisor.proofs import kernels as _kernels
from capvisor.proofs import lane_memory as _lane_memory
from capvisor.proofs import monitor as _monitor
from capvisor.proofs import orc_mint as _orc_mint
from capvisor.proofs import programs, solve
from capvisor.proofs.cache import Cache
from capvisor.proofs.solve import Answer
from capvisor.proofs.theorem import Obligation, Queries, obligations, queries, replay

assert _bounds and _capability and _composition and _kernels and _lane_memory and _monitor and _orc_mint


class Verdict(IntEnum):
    """How an obligation came out, the worse the higher."""

    PROVED = 0
    VACUOUS = 1
    UNKNOWN = 2
    REFUTED = 3
    ERROR = 4


@dataclass
class Outcome:
    """The verdict on an obligation, with what led to it."""

    obligation: Obligation
    verdict: Verdict
    seconds: float = 0.0
    """Solver time of all its questions together."""
    questions: int = 0
    cached: int = 0
    solvers: tuple[str, ...] = ()
    example: dict[str, int] | None = None
    """Values that satisfy the assumptions."""
    counterexample: dict[str, int] | None = None
    reason: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether a true statement was proved, or a false one refuted."""
        return self.verdict is (Verdict.PROVED if self.obligation.theorem.holds else Verdict.REFUTED)


@dataclass(frozen=True)
class Settings:
    """How to prove: with which solvers, for how long at most a question, in how many processes, and what to keep."""

    solvers: tuple[str, ...] = ("z3",)
    timeout_s: float = 120.0
    rlimit: int = 0
    """Z3's count of steps at which a question is given up, the same on every machine; 0 for none."""
    workers: int = 2
    cache: Cache | None = None
    dump: Path | None = None


@lru_cache(maxsize=4)
def _queries(obligation_id: str) -> Queries:
    known = obligations()
    return queries(known[obligation_id] if obligation_id in known else programs.load(obligation_id))


def _answer(obligation_id: str, label: str, solver: str, timeout_s: float, rlimit: int) -> Answer:
    """One question, in a worker process."""
    asked = _queries(obligation_id)
    if asked.abstract is not None and label == "0":
        answer = solve.ask(solver, asked.abstract, {}, timeout_s / 4, rlimit)
        if answer.result == "unsat":
            return answer
    return solve.ask(solver, asked.conditions(label), asked.symbols, timeout_s, rlimit)


@dataclass
class _Pending:
    """An obligation while its questions are being answered."""

    obligation: Obligation
    key: str
    labels: tuple[str, ...]
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    cached: int = 0
    error: str = ""

    def questions(self, solvers: tuple[str, ...]) -> list[tuple[str, str]]:
        return [(label, solver) for label in self.labels for solver in solvers]

    def is_complete(self, solvers: tuple[str, ...]) -> bool:
        return bool(self.error) or len(self.answers) == len(self.questions(solvers))


def prove(
    chosen: Iterable[Obligation],
    settings: Settings,
    finished: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[list[Outcome], bool]:
    """Prove obligations; their outcomes in the order of the obligations, and whether Ctrl-C ended it early.

    `finished` is called with each outcome as soon as it is there. Answers are kept in the cache one by one, so that nothing
    finished is lost. Raises SolverMissing.
    """
    return _Run(with_lemmas(chosen), settings, finished).run()


def with_lemmas(chosen: Iterable[Obligation]) -> list[Obligation]:
    """The obligations and all that they lean on, lemmas first. Raises ValueError for a circle."""
    known, ordered, visiting = obligations(), dict[str, Obligation](), list[str]()

    def visit(obligation: Obligation) -> None:
        if obligation.id in ordered:
            return
        if obligation.id in visiting:
            raise ValueError(f"theorems lean on each other in a circle: {' -> '.join([*visiting, obligation.id])}")
        visiting.append(obligation.id)
        for name in obligation.uses:
            visit(known[name])
        visiting.pop()
        ordered[obligation.id] = obligation

    for obligation in chosen:
        visit(obligation)
    return list(ordered.values())


@dataclass(frozen=True)
class _Question:
    """One question that a worker has been asked, for the first or the second time."""

    pending: _Pending
    label: str
    solver: str
    attempt: int = 1


_Result = TypeVar("_Result")


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Let the first Ctrl-C interrupt, and others do nothing from then on: the process says what was finished, and ends."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Let Ctrl-C wait. Processes that are started meanwhile inherit that, and so are never interrupted themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """Processes that answer questions; where one is killed, all are replaced. Ctrl-C is for the one that asks."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._count, mp_context=get_context("spawn"))

    def submit(self, function: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        with _interrupted_later():
            try:
                return self._pool.submit(function, *arguments)
            except BrokenProcessPool:
                self._pool.shutdown(wait=False)
                self._pool = self._new()
                return self._pool.submit(function, *arguments)

    def stop(self, *, at_once: bool) -> None:
        """Let the processes end, at once where what they do isn't wanted any more."""
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=not at_once, cancel_futures=True)
        for process in processes if at_once else ():
            process.terminate()


class _Run:
    def __init__(
        self,
        chosen: list[Obligation],
        settings: Settings,
        finished: Callable[[Outcome], None],
    ) -> None:
        self._settings, self._finished = settings, finished
        self._versions = {solver: solve.version(solver) for solver in dict.fromkeys(("z3", *settings.solvers))}
        self._chosen = chosen
        self._outcomes: dict[str, Outcome] = {}
        self._workers = Workers(settings.workers)
        self._waiting: dict[Future[Answer], _Question] = {}

    def run(self) -> tuple[list[Outcome], bool]:
        interrupted = False
        try:
            for obligation in self._chosen:
                self._submit(obligation)
                self._collect(timeout=0)
            while self._waiting:
                self._collect(timeout=None)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self._workers.stop(at_once=bool(self._waiting))
        self._hold_back()
        ids = [obligation.id for obligation in self._chosen]
        return [self._outcomes[each] for each in ids if each in self._outcomes], interrupted

    def _hold_back(self) -> None:
        """What leans on an obligation that isn't proved isn't proved either; nor is what leans on that."""
        changed = True
        while changed:
            changed = False
            for outcome in self._outcomes.values():
                if outcome.verdict is not Verdict.PROVED:
                    continue
                missing = [name for name in outcome.obligation.uses if not self._is_proved(name)]
                if missing:
                    outcome.verdict, outcome.reason = Verdict.UNKNOWN, f"leans on what isn't proved: {', '.join(missing)}"
                    changed = True

    def _is_proved(self, name: str) -> bool:
        return name in self._outcomes and self._outcomes[name].verdict is Verdict.PROVED

    def _submit(self, obligation: Obligation) -> None:
        """Build an obligation's questions; answer them from the cache, or have them answered."""
        try:
            asked = queries(obligation)
        except Exception as error:
            self._finish(_Pending(obligation, "", (), error=f"{type(error).__name__}: {error}"))
            return
        pending = _Pending(obligation, asked.key(), asked.labels)
        self._dump(obligation, asked)
        for label, solver in pending.questions(self._settings.solvers):
            kept = self._settings.cache.get(self._key(pending, label, solver)) if self._settings.cache is not None else None
            if kept is not None:
                pending.answers[label, solver] = kept
                pending.cached += 1
            else:
                self._ask(_Question(pending, label, solver))
        if pending.is_complete(self._settings.solvers):
            self._finish(pending)

    def _ask(self, question: _Question) -> None:
        settings = self._settings
        limits = settings.timeout_s, settings.rlimit
        future = self._workers.submit(_answer, question.pending.obligation.id, question.label, question.solver, *limits)
        self._waiting[future] = question

    def _key(self, pending: _Pending, label: str, solver: str) -> str:
        return f"{pending.key}:{label}:{self._versions[solver]}"

    def _collect(self, timeout: float | None) -> None:
        """Take what has been answered. What a worker was asked that was killed is asked once more."""
        done, _others = wait(list(self._waiting), timeout=timeout, return_when=FIRST_COMPLETED)
        for future in done:
            question = self._waiting.pop(future)
            pending, label, solver = question.pending, question.label, question.solver
            try:
                answer = future.result()
                if self._settings.cache is not None:
                    self._settings.cache.put(self._key(pending, label, solver), answer)
            except BrokenProcessPool:
                if question.attempt == 1:
                    self._ask(replace(question, attempt=2))
                    continue
                answer = Answer("unknown", 0.0, reason="a worker process was killed (out of memory?)")
            except Exception as error:
                answer = Answer("unknown", 0.0, reason=f"{type(error).__name__}: {error}")
                pending.error = pending.error or answer.reason
            was_complete = pending.is_complete(self._settings.solvers)
            pending.answers[label, solver] = answer
            if not was_complete and pending.is_complete(self._settings.solvers):
                self._finish(pending)

    def _dump(self, obligation: Obligation, asked: Queries) -> None:
        if self._settings.dump is None:
            return
        for label in asked.labels:
            expected = "sat" if label == "assumptions" else "unsat" if obligation.theorem.holds else "unknown"
            path = self._settings.dump / f"{obligation.id}.{label}.smt2"
            path.write_text(solve.smtlib(asked.conditions(label), expected))

    def _finish(self, pending: _Pending) -> None:
        outcome = _judge(pending, tuple(self._versions[solver] for solver in self._settings.solvers))
        self._outcomes[pending.obligation.id] = outcome
        self._finished(outcome)


def _judge(pending: _Pending, solvers: tuple[str, ...]) -> Outcome:
    """The verdict from all answers, and the counterexample once it has been replayed."""
    answers = pending.answers
    outcome = Outcome(
        pending.obligation,
        Verdict.PROVED,
        sum(answer.seconds for answer in answers.values()),
        len(answers),
        pending.cached,
        solvers,
    )
    if pending.error:
        outcome.verdict, outcome.reason = Verdict.ERROR, pending.error
        return outcome
    for label in pending.labels:
        results = {solver: answer for (name, solver), answer in answers.items() if name == label}
        known = {answer.result for answer in results.values()} - {"unknown"}
        if len(known) > 1:
            outcome.verdict, outcome.reason = Verdict.ERROR, f"solvers disagree on {label}"
            return outcome
        for answer in results.values():
            _take(outcome, label, answer)
    return outcome


def _take(outcome: Outcome, label: str, answer: Answer) -> None:
    if label == "assumptions":
        if answer.result == "sat":
            outcome.example = answer.values
        elif answer.result == "unsat":
            outcome.verdict = max(outcome.verdict, Verdict.VACUOUS)
            outcome.reason = "no values satisfy the assumptions"
            return
    elif answer.result == "sat":
        if label == "cases":
            outcome.verdict, outcome.reason = Verdict.ERROR, "the cases don't cover everything"
        elif outcome.verdict < Verdict.REFUTED:
            _refute(outcome, answer.values or {})
        return
    if answer.result == "unknown" and outcome.verdict < Verdict.UNKNOWN:
        outcome.verdict, outcome.reason = Verdict.UNKNOWN, f"question {label}: {answer.reason}"


def _refute(outcome: Outcome, values: dict[str, int]) -> None:
    """A counterexample counts once the reference itself, on plain ints, fails in the same way."""
    if not outcome.obligation.theorem.replays:
        outcome.verdict, outcome.reason = Verdict.UNKNOWN, "there are states that break it, which can't be replayed"
        return
    assumed, holds = replay(outcome.obligation, values)
    outcome.counterexample = values
    if assumed and not holds:
        outcome.verdict, outcome.reason = Verdict.REFUTED, ""
    else:
        outcome.verdict = Verdict.ERROR
        outcome.reason = "a defect of the prover: the counterexample doesn't fail when it is replayed on plain ints"
