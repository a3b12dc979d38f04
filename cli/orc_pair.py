"""Programs of shared objects on both implementations: each step done once more where whole states are compared."""

import numpy as np

from capvisor.campaign.orc_states import differences
from capvisor.dsl.orc_layout import Layout
from capvisor.dsl.syntax import Program
from capvisor.fastpath import object_operations as _operations  # declares the kernels
from capvisor.fastpath.objects import BatchObjects
from capvisor.model.memory import Memory
from capvisor.model.object_operations import perform
from capvisor.model.objects import ObjectMonitor
from capvisor.spec.object_policy import ObjectPolicy

assert _operations


class OrcPair:
    """Follows a run: one lane of the fast path and a base of the reference, compared after every step."""

    def __init__(self, program: Program, policy: ObjectPolicy) -> None:
        layout = Layout(program)
        fmt, (base, size) = layout.format, layout.memory
        self._monitor = ObjectMonitor(Memory(fmt, base, size), policy)
        self._batch = BatchObjects(fmt, base, size, 1, policy)
        self._difference: str | None = None
        self.compared = 0
        """How many states were compared."""

    def instruction(self, thread: int, name: str, numbers: tuple[int, ...]) -> None:
        """One instruction of a thread."""
        trap = self._monitor.step(self._monitor.threads[thread], name, numbers)
        cause = int(self._batch.step(np.array([thread]), name, numbers)[0])
        self._compare(name, [] if (cause != 0) == (trap is not None) else ["only one of them refuses it"])

    def operation(self, thread: int | None, name: str, operands: tuple[int, ...]) -> None:
        """An operation; without a thread, the base's."""
        who = None if thread is None else self._monitor.threads[thread]
        code = perform(self._monitor, who, name, *operands)
        harts = None if thread is None else np.array([thread])
        words = [np.array([each], np.uint64) for each in operands]
        actual = int(self._batch.perform(np.array([0]), harts, name, words)[0])
        self._compare(name, [] if actual == code else [f"reference {code.name}, fast path {actual}"])

    def _compare(self, name: str, found: list[str]) -> None:
        self.compared += 1
        found = [*found, *differences(self._monitor, self._batch, 0)]
        if found and self._difference is None:
            self._difference = f"{name}: {'; '.join(found[:4])}"

    def difference(self) -> str | None:
        """The first step whose ends or states differ, and how; None where there is none."""
        return self._difference
