"""Who does the work of a campaign: this process, a pool of them, or a cluster."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol

from capvisor.campaign.subjects import perform
from capvisor.campaign.unit import Outcome, Work

MOST_RESTARTS = 5
"""How often workers that died are replaced before a campaign gives up."""


class SchedulerError(Exception):
    """The work can't be done, for a reason that a user can see to; the message says which."""


class Scheduler(Protocol):
    """Where units are done. `restarts` counts how often workers had to be replaced."""

    restarts: int

    def submit(self, work: Work) -> "Future[Outcome]":
        """Have a unit done."""

    def result(self, work: Work, future: "Future[Outcome]") -> Outcome:
        """What it came to. Raises SchedulerError where it can't be done."""

    def cancel(self) -> None:
        """Drop what hasn't begun."""

    def close(self) -> None:
        """Let go of workers."""


class Here:
    """Units are done in this process, when their results are asked for."""

    restarts = 0

    def submit(self, work: Work) -> "Future[Outcome]":
        """Nothing is done yet."""
        return Future()

    def result(self, work: Work, future: "Future[Outcome]") -> Outcome:
        """Do it now."""
        return perform(work)

    def cancel(self) -> None:
        """Nothing has begun."""

    def close(self) -> None:
        """There are no workers."""


class Pool:
    """Units are done by some processes of this machine; those that die are replaced, and their units done again."""

    def __init__(self, workers: int, task: Callable[[Work], Outcome] = perform) -> None:
        self.restarts = 0
        self._count, self._task = workers, task
        self._pool = self._new()
        self._generation: dict[Future[Outcome], int] = {}

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._count, mp_context=get_context("spawn"), initializer=_ignore_interrupts)

    def submit(self, work: Work) -> "Future[Outcome]":
        """Have a unit done by the next process that is free."""
        try:
            future = self._pool.submit(self._task, work)
        except BrokenProcessPool:
            self._restart()
            future = self._pool.submit(self._task, work)
        self._generation[future] = self.restarts
        return future

    def result(self, work: Work, future: "Future[Outcome]") -> Outcome:
        """What it came to."""
        while True:
            try:
                return future.result()
            except BrokenProcessPool:
                # All units of a broken pool are lost; the first of them that is asked for brings the new one.
                if self._generation.pop(future, self.restarts) == self.restarts:
                    self._restart()
                future = self.submit(work)

    def _restart(self) -> None:
        if self.restarts == MOST_RESTARTS:
            raise SchedulerError(f"workers died {MOST_RESTARTS + 1} times; with --workers 1 the reason shows")
        self.restarts += 1
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._new()

    def cancel(self) -> None:
        """Drop what hasn't begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Let go of the processes, in the middle of what they do."""
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


class Cluster:
    """Units are done by the workers of a dask.distributed scheduler, which replaces those that die."""

    restarts = 0

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        """Raises SchedulerError where distributed isn't installed or the scheduler can't be reached."""
        try:
            from distributed import Client  # noqa: PLC0415 - an extra
        except ImportError:
            raise SchedulerError("--scheduler needs dask.distributed: pip install 'capvisor[cluster]'") from None
        try:
            make: Any = Client
            self._client = make(address, timeout=timeout_s, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise SchedulerError(f"no scheduler at {address}: {str(error).splitlines()[0]}") from None

    def submit(self, work: Work) -> Any:
        """Have a unit done somewhere."""
        return self._client.submit(perform, work, pure=False, retries=MOST_RESTARTS)

    def result(self, work: Work, future: Any) -> Outcome:
        """What it came to."""
        from distributed import CancelledError, KilledWorker  # noqa: PLC0415 - an extra

        try:
            outcome: Outcome = future.result()
        except (KilledWorker, CancelledError) as error:
            raise SchedulerError(f"the cluster can't do unit {work.shard}: {type(error).__name__}") from None
        return outcome

    def cancel(self) -> None:
        """Nothing: closing drops what hasn't begun."""

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()


def scheduler_of(workers: int, address: str | None) -> Scheduler:
    """The scheduler that a user asked for."""
    if address is not None:
        return Cluster(address)
    return Here() if workers == 1 else Pool(workers)


def default_workers() -> int:
    """As many as this process may use processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ignore_interrupts() -> None:
    """Ctrl-C is for the process that started the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
