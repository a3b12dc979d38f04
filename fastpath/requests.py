"""Operations on many systems of translation pass-through: what is asked, how it ends, and which kernel does it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.refusals import Refusals, declaring
from capvisor.fastpath.workspace import Causes, Words
from capvisor.spec.paging import FIRST_VM
from capvisor.spec.tpt import MAX_VMS, OPERATIONS, Code, FaultKind

if TYPE_CHECKING:
    from capvisor.fastpath.tpt import BatchSystem

VM_NUMBERS = FIRST_VM + MAX_VMS
"""Numbers of VMs, and all tags, are less."""


class Results(NamedTuple):
    """How one operation ended in each of some lanes.

    `code` is a `Code`, `fault` a `FaultKind`; of a fault, `error` is the error code, `frame` the frame that the host learns.
    `value` is what was read.
    """

    code: Causes
    fault: Causes
    error: Words
    frame: Words
    value: Words


class Request(Refusals):
    """One operation in each of some lanes, and how it ends there."""

    def __init__(self, system: "BatchSystem", lanes: Indices) -> None:
        self.system, self.lanes = system, lanes
        count = len(lanes)
        self.results = Results(
            np.zeros(count, np.uint8), np.zeros(count, np.uint8), *(np.zeros(count, np.uint64) for _ in range(3))
        )
        super().__init__(self.results.code, Code.RANGE)

    def fault(self, who: Indices, kind: FaultKind, frame: Words | int = 0) -> None:
        """Let some meet a fault."""
        self.results.fault[who], self.results.frame[who] = kind, frame

    @property
    def passed(self) -> Indices:
        """Those that have neither been refused nor met a fault, counted from 0."""
        return np.flatnonzero((self.results.code == 0) & (self.results.fault == 0))


OperationKernel = Callable[..., None]
OPERATION_KERNELS: dict[str, OperationKernel] = {}
"""The kernel of each operation, by name; it takes the system, the request and the operands."""


operation = declaring(OPERATION_KERNELS, OPERATIONS)
"""Declares the kernel of the operation of a name."""
