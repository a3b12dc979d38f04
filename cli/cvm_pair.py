"""Programs of cVMs on both implementations: the runner's events, done once more where whole states are compared."""

import numpy as np

from capvisor.campaign.cvm_systems import Systems
from capvisor.campaign.systems import exercise
from capvisor.dsl.evaluate import format_of, memory_of
from capvisor.dsl.syntax import Program
from capvisor.spec.policy import MonitorPolicy


class CvmPair:
    """Follows a run: one lane of the fast path and a monitor of the reference, compared after every step."""

    def __init__(self, program: Program, policy: MonitorPolicy) -> None:
        self._systems = Systems(format_of(program), *memory_of(program), 1, policy, oracles=False)

    @property
    def compared(self) -> int:
        """How many states were compared."""
        return self._systems.counts.compared

    def instruction(self, thread: int, name: str, numbers: tuple[int, ...]) -> None:
        """One instruction of a thread."""
        exercise(self._systems, lambda: self._systems.instruction(thread, name, numbers))

    def leave(self, thread: int) -> None:
        """The second part of a call."""
        exercise(self._systems, lambda: self._systems.leave(thread))

    def create(self, cvm_id: int, base: int, size: int, *, is_purecap: bool, outer: int) -> None:
        """A cVM, and its first thread."""
        where = np.array([base], np.uint64)
        exercise(self._systems, lambda: self._systems.create(cvm_id, where, size, is_purecap, outer))

    def destroy(self, cvm_id: int) -> None:
        """The end of a cVM."""
        exercise(self._systems, lambda: self._systems.destroy(cvm_id))

    def difference(self) -> str | None:
        """The first step whose states differ, and how; None where there is none."""
        for found in self._systems.found:
            return f"{found.step}: {found.what}: {'; '.join(found.details)}"
        return None
