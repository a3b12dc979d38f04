"""Programs of a para-pass-through VMM on both implementations: each operation done once more where states are compared."""

from contextlib import suppress
from typing import Any

import numpy as np

from capvisor.campaign.systems import CrashError
from capvisor.campaign.vmm_systems import Size, Systems
from capvisor.dsl.syntax import Program
from capvisor.dsl.vmm_layout import Layout, place
from capvisor.spec.vmm_policy import VmmPolicy


class VmmPair:
    """Follows a run: one lane of the fast path and a machine of the reference, compared after every operation."""

    def __init__(self, program: Program, policy: VmmPolicy) -> None:
        assert program.system is not None
        layout = Layout(program.system)
        size = Size(layout.frames, (layout.region[0], layout.region[1] + 1), layout.vcpus, len(layout.devices))
        self._systems = Systems(size, 1, policy, lambda system: place(system, layout), oracles=False)

    @property
    def compared(self) -> int:
        """How many states were compared."""
        return self._systems.counts.compared

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        """An operation."""
        numbers = tuple(np.full(1, each, np.uint64) for each in operands)
        # Where the fast path ends with an error, that is among what was found.
        with suppress(CrashError):
            self._systems.step(name, numbers)

    def difference(self) -> str | None:
        """The first operation whose ends or states differ, and how; None where there is none."""
        for found in self._systems.found:
            return f"{found.step}: {found.what}: {'; '.join(found.details)}"
        return None
